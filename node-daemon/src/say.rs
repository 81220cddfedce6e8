//! Speak to the person or script at the other end: the only place that writes to stdout and stderr.
//! Invariants: an error is one line of cause and one of cure, on stderr; a reader that has gone away (`| head`) ends
//! the talk quietly.

use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Why a command could not do what it was asked, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What went wrong, in one line.
    pub cause: String,
    /// What to do, in one line.
    pub cure: String,
    /// The exit code: 1 the work failed, 2 it was asked for wrongly.
    pub exit: u8,
}

impl Fault {
    /// The work failed: exit code 1.
    pub fn new(cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            cause: cause.into(),
            cure: cure.into(),
            exit: 1,
        }
    }

    /// It was asked for wrongly, or its configuration is bad: exit code 2.
    pub fn usage(cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            exit: 2,
            ..Self::new(cause, cure)
        }
    }
}

/// Writes one line to stdout.
///
/// # Errors
/// As stdout gives them; a reader that has gone away is none.
pub fn line(text: impl fmt::Display) -> io::Result<()> {
    quietly(writeln!(io::stdout().lock(), "{text}"))
}

/// Writes a value to stdout as JSON: pretty on a terminal, one line otherwise.
///
/// # Errors
/// As stdout gives them; a reader that has gone away is none.
pub fn json(value: &impl serde::Serialize) -> io::Result<()> {
    let text = if io::stdout().is_terminal() {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    line(text.map_err(io::Error::other)?)
}

/// Tells a fault on stderr: its cause, then its cure.
pub fn fault(fault: &Fault) {
    let (cause, cure) = (one_line(&fault.cause), one_line(&fault.cure));
    // There is nowhere left to say that stderr is gone.
    drop(write!(
        io::stderr().lock(),
        "ringpilot: {cause}\ndo: {cure}\n"
    ));
}

/// Tells something on stderr that keeps nothing from going on.
pub fn note(text: impl fmt::Display) {
    // There is nowhere left to say that stderr is gone.
    drop(writeln!(io::stderr().lock(), "ringpilot: {text}"));
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn quietly(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
