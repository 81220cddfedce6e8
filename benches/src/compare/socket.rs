//! The ring's honest rival: a forwarder in each pod, a unix stream to one collector.
//! Place: processes that `fleet` starts.
//! Invariants: as little as it can be: no checkpoint, no resume, no acknowledgement, no bound per pod, nothing judged. What
//! it costs is the least that a socket costs, not what a collector like ours would cost with one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use memchr::{memchr, memrchr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::floor::{Bulk, action, record};

/// Writes are gathered for so long, as the shim does.
const GATHER: Duration = Duration::from_millis(100);
/// A record waits for others so long, as in the daemon.
const BATCH_WAIT: Duration = Duration::from_millis(500);
/// And a batch is so long.
const BATCH: usize = 1024 * 1024;
/// File and length, before bytes.
const HEADER: usize = 8;
const CHUNK: usize = 64 * 1024;

/// The end in a pod.
#[derive(Debug, clap::Args)]
pub(crate) struct Forwarder {
    /// The collector's socket
    socket: PathBuf,
    /// What is forwarded
    files: Vec<PathBuf>,
}

impl Forwarder {
    /// Forwards until the collector is gone.
    ///
    /// # Errors
    /// When it is gone, or a file cannot be read.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let mut to = UnixStream::connect(&self.socket)?;
        let wakes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mut files = Vec::new();
        for path in &self.files {
            wakes.add_watch(path, AddWatchFlags::IN_MODIFY)?;
            files.push((File::open(path)?, 0_u64));
        }
        let mut buffer = vec![0; HEADER + CHUNK];
        loop {
            for (number, (file, offset)) in files.iter_mut().enumerate() {
                loop {
                    let read = file.read_at(&mut buffer[HEADER..], *offset)?;
                    // Whole lines, so that the other end need not join any.
                    let Some(end) = memrchr(b'\n', &buffer[HEADER..HEADER + read]) else {
                        break;
                    };
                    let length = end + 1;
                    buffer[..4].copy_from_slice(&u32::try_from(number)?.to_le_bytes());
                    buffer[4..HEADER].copy_from_slice(&u32::try_from(length)?.to_le_bytes());
                    to.write_all(&buffer[..HEADER + length])?;
                    *offset += length as u64;
                }
            }
            poll(
                &mut [PollFd::new(wakes.as_fd(), PollFlags::POLLIN)],
                PollTimeout::NONE,
            )?;
            std::thread::sleep(GATHER);
            // Whatever they were: every file is looked at.
            drop(wakes.read_events());
        }
    }
}

/// The end on the node.
#[derive(Debug, clap::Args)]
pub(crate) struct Collector {
    /// Where it listens
    socket: PathBuf,
    /// The sink's port on 127.0.0.1
    port: u16,
}

impl Collector {
    /// Collects for ever.
    ///
    /// # Errors
    /// When the sink fails.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let listener = UnixListener::bind(&self.socket)?;
        listener.set_nonblocking(true)?;
        let mut sink = Bulk::connect(self.port)?;
        let mut ends: BTreeMap<i32, (UnixStream, Vec<u8>)> = BTreeMap::new();
        let mut chunk = vec![0; 4 * CHUNK];
        let (mut out, mut records, mut lines) = (Vec::new(), 0, 0);
        let mut first: Option<Instant> = None;
        loop {
            let wait = first.map(|at| BATCH_WAIT.saturating_sub(at.elapsed()));
            let timeout = match wait {
                Some(wait) => PollTimeout::from(u16::try_from(wait.as_millis() + 1)?),
                None => PollTimeout::NONE,
            };
            let mut polled: Vec<PollFd<'_>> = ends
                .values()
                .map(|(end, _)| PollFd::new(end.as_fd(), PollFlags::POLLIN))
                .collect();
            polled.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
            poll(&mut polled, timeout)?;
            let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
            let comes = polled.pop().is_some_and(|fd| is_ready(&fd));
            let ready: Vec<i32> = polled
                .iter()
                .filter(|fd| is_ready(fd))
                .map(|fd| fd.as_fd().as_raw_fd())
                .collect();
            drop(polled);
            if comes {
                let (end, _) = listener.accept()?;
                ends.insert(end.as_raw_fd(), (end, Vec::new()));
            }
            for fd in ready {
                let (end, waiting) = ends.get_mut(&fd).context("a stream is lost")?;
                let read = end.read(&mut chunk)?;
                if read == 0 {
                    ends.remove(&fd);
                    continue;
                }
                waiting.extend_from_slice(&chunk[..read]);
                let mut at = 0;
                while let Some(whole) = framed(&waiting[at..]) {
                    let mut rest = &waiting[at + HEADER..at + whole];
                    while let Some(end) = memchr(b'\n', rest) {
                        action(&mut out, lines);
                        record(&mut out, &rest[..end]);
                        rest = &rest[end + 1..];
                        (lines, records) = (lines + 1, records + 1);
                    }
                    at += whole;
                    first = first.or_else(|| Some(Instant::now()));
                    if out.len() >= BATCH {
                        sink.send(&out, records)?;
                        out.clear();
                        (records, first) = (0, None);
                    }
                }
                waiting.drain(..at);
            }
            if first.is_some_and(|at| at.elapsed() >= BATCH_WAIT) {
                if records > 0 {
                    sink.send(&out, records)?;
                }
                out.clear();
                (records, first) = (0, None);
            }
        }
    }
}

/// Length of the frame at the start, its header included, if all of it is there.
fn framed(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(4..HEADER)?.try_into().ok()?;
    let whole = HEADER + u32::from_le_bytes(length) as usize;
    (bytes.len() >= whole).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_counts_when_all_of_it_is_there() {
        let mut bytes = vec![0, 0, 0, 0, 3, 0, 0, 0];
        assert_eq!(framed(&bytes), None);
        bytes.extend_from_slice(b"a\n");
        assert_eq!(framed(&bytes), None);
        bytes.extend_from_slice(b"\nmore");
        assert_eq!(framed(&bytes), Some(11));
        assert_eq!(framed(&bytes[..3]), None);
    }
}
