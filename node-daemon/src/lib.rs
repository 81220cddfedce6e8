//! The node daemon: from a workload's declaration to a delivered, acknowledged, checkpointed record.
//!
//! Modules stand here in the order of the flow; bytes go down this page, positions come back up.

pub mod discover;

pub mod declare;

pub mod pattern;

pub mod decode;

pub mod filter;

pub mod parse;

pub mod batch;

pub mod ship;

pub mod flow;

pub mod ledger;

pub mod checkpoint;

pub mod policy;

pub mod settings;

pub mod problem;

pub mod manifest;

pub mod check;

pub mod say;

pub mod cli;
