//! `ringpilot-shim`: argv only; the loop is in the library.

fn main() -> std::process::ExitCode {
    ringpilot_shim::command(std::env::args_os().skip(1))
}
