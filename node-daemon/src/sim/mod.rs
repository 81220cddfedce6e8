//! A whole node from a seed: the real follower, pipeline, checkpoint and file output on a simulated machine, with
//! outputs that refuse, delay and forget; and what must be true of it at every step.
//! Place: the feature `sim`; `cargo test` runs some thousand histories, `ringpilot-bench simulate` any number.
//! Invariants: one thread, no real time; a failure names its seed, and the seed makes it again.

mod history;
mod node;
mod server;

pub use history::{Failure, Options, Summary, run};
