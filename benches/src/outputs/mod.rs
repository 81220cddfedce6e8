//! Several outputs at once: whether one that is down or slow holds back another, what a full quota costs whom, and
//! whether all of it stays within the memory that is allowed.
//! Place: real servers or receivers, some behind a [`Gate`]; the daemon is a process of its own.
//! Invariants: what arrived is counted where it arrived; what is said to be lost is the daemon's own word, and both
//! together must be what was written.

mod independence;
mod memory;
mod quota;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::gate::Gate;

/// Several outputs at once, one of them down or slow.
#[derive(Debug, clap::Args)]
pub(crate) struct Outputs {
    /// What is looked at
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "independence,quota,memory"
    )]
    case: Vec<Case>,
    /// How long an output is down
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// An Elasticsearch or OpenSearch that gets the lines of `quota` instead of a receiver, such as http://127.0.0.1:9200
    #[arg(long)]
    server: Option<String>,
    /// The program; the one beside this unless given
    #[arg(long)]
    program: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Case {
    /// Three outputs: one is down, one takes 1 MB/s; the third is to be as fast as alone.
    Independence,
    /// Two outputs, one of them down while files are deleted unread: exactly what is over the quota is lost, to it alone.
    Quota,
    /// Ten outputs of eight kinds, most of them down; 240 files, 40 of them with lines of up to 1 MiB.
    Memory,
}

/// Length of an ordinary line.
const LINE_BYTES: usize = 200;
/// Longer than any wait here takes.
const LONG: Duration = Duration::from_secs(180);
/// What the daemon may have resident.
const MOST_RESIDENT: u64 = 64 << 20;

impl Outputs {
    /// Runs every case.
    ///
    /// # Errors
    /// When a promise is not kept. What was written is kept then.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        for case in &self.case {
            let dir = tempfile::Builder::new()
                .prefix("ringpilot-outputs.")
                .tempdir()?;
            let done = match case {
                Case::Independence => self.independence(dir.path()),
                Case::Quota => self.quota(dir.path()),
                Case::Memory => self.memory(dir.path()),
            };
            if let Err(error) = done {
                // What went wrong is looked at afterwards.
                return Err(error.context(format!("kept: {}", dir.keep().display())));
            }
        }
        Ok(())
    }
}

/// A gate before a port of this machine.
fn gate(port: u16, is_open: bool, rate: u64) -> std::io::Result<Gate> {
    Gate::before(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), is_open, rate)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
