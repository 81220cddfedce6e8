//! The shim: one poll loop that follows a pod's files and fills a shared-memory ring.
//! Place: the pod's files -> **shim** ═ ring ═ the node's daemon. It runs the daemon's own follower.
//! Invariants: one thread; nothing is written to disk, parsed or kept but the files' handles; what is read, and from
//! where, is the daemon's word alone: after a restart of either side it is said anew.

mod health;
mod link;
mod settings;
mod shim;

use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

pub use settings::{DRAIN_TIMEOUT, HELP, SOCKET, Settings, Task};
pub use shim::{Ended, run};

/// The command: reads arguments and environment, runs, and gives the exit code.
pub fn command(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let task = match settings::read(arguments, std::env::vars_os()) {
        Ok(task) => task,
        Err(wrong) => {
            say(&wrong);
            return ExitCode::from(2);
        }
    };
    match task {
        Task::Say(text) => {
            // A reader that has gone away wants no more of it.
            drop(std::io::stdout().write_all(text.as_bytes()));
            ExitCode::SUCCESS
        }
        Task::Health => match health::is_alive() {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(1),
        },
        Task::Run(settings) => serve(&settings),
    }
}

fn serve(settings: &Settings) -> ExitCode {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    // Blocked, they come by the descriptor, into the one loop.
    let ending = signals
        .thread_block()
        .and_then(|()| SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC));
    let ended = match ending {
        Ok(ending) => run(settings, ending.as_fd()),
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(ended) if ended.unread == 0 && ended.is_settled => ExitCode::SUCCESS,
        Ok(ended) => {
            say(&format!(
                "{} bytes were not handed over, {} not yet acknowledged, when --drain-timeout was over\n\
                 give it more time (and the pod: terminationGracePeriodSeconds), or mend the output that is down",
                ended.unread, ended.unacknowledged
            ));
            ExitCode::from(1)
        }
        Err(error) => {
            say(&format!(
                "the shim cannot run: {error}\ngive the container what the reason names"
            ));
            ExitCode::from(1)
        }
    }
}

/// A line for people, on stderr.
fn say(text: &str) {
    // Nobody may be there to read it.
    drop(writeln!(std::io::stderr(), "ringpilot-shim: {text}"));
}
