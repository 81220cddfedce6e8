//! The ring's honest rival: the same file through a unix stream socket by `read` and `write` of 64 KiB, split into lines at
//! the other end.
//! Invariants: two threads, as the shim and the drain thread are two; the CPU time is each thread's own.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use memchr::memchr_iter;

use super::Peak;
use crate::measure::Cpu;

/// Sends a file through a socket pair and splits it.
///
/// # Errors
/// As the kernel gives them.
pub(super) fn peak(file: &Path) -> anyhow::Result<Peak> {
    let (mut to, mut from) = UnixStream::pair()?;
    let mut source = File::open(file)?;
    let clock = Instant::now();
    let sender = std::thread::spawn(move || -> anyhow::Result<f64> {
        let before = Cpu::of_thread()?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = source.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            to.write_all(&buffer[..read])?;
        }
        Ok((Cpu::of_thread()? - before).total())
    });
    let before = Cpu::of_thread()?;
    let mut buffer = vec![0; 256 * 1024];
    let (mut bytes, mut lines) = (0, 0);
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        lines += memchr_iter(b'\n', &buffer[..read]).count() as u64;
    }
    let daemon = (Cpu::of_thread()? - before).total();
    let sent = sender.join().ok().context("the sender ended early")??;
    Ok(Peak {
        shim: sent,
        daemon,
        wall: clock.elapsed().as_secs_f64(),
        bytes,
        lines,
    })
}
