//! `ringpilot`: argv only; the commands are in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringpilot::cli::run_arguments(std::env::args_os())
}
