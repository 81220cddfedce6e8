//! The node daemon: from a workload's declaration to a delivered, acknowledged, checkpointed record.
//!
//! Modules stand here in the order of the flow.

pub mod problem;
