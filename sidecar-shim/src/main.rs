//! `ringpilot-shim`: argv only; the loop is in the library.
fn main() {}
