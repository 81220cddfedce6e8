//! `ringpilot-bench`: argv only.
fn main() {}
