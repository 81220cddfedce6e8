//! The node daemon: from a workload's declaration to a delivered, acknowledged, checkpointed record.
//!
//! Modules stand here in the order of the flow; bytes go down this page, positions come back up.

pub mod discover;

pub mod declare;

pub mod collect;

pub mod api_stdout;

pub mod follow;

pub mod rings;

pub mod decode;

pub mod parse;

pub mod pattern;

pub mod filter;

pub mod tag;

pub mod worker;

pub mod batch;

pub mod ship;

pub mod flow;

pub mod pipeline;

pub mod ledger;

pub mod checkpoint;

pub mod policy;

pub mod settings;

pub mod problem;

pub mod daemon;

pub mod status;

pub mod control;

pub mod import;

pub mod run;

pub mod demo;

#[cfg(feature = "sim")]
pub mod sim;

pub mod manifest;

pub mod inject;

pub mod check;

pub mod say;

pub mod cli;
