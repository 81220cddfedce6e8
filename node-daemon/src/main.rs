//! `ringpilot`: argv only.
fn main() {}
