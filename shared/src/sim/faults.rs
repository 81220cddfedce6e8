//! What goes wrong for the daemon: errors by operation and folder, and a death in the middle of its own writes.
//! Place: within **sim**; every operation of the daemon asks here first.
//! Invariants: those whose logs are read never meet a fault; an operation that fails is counted all the same.

use std::io;
use std::path::{Path, PathBuf};

/// An operation of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `Host::open_log`.
    OpenLog,
    /// `LogFile::read_at`.
    ReadLog,
    /// `LogFile::stat` and `LogFile::next_data`.
    StatLog,
    /// `Host::list`.
    List,
    /// `Host::wakes`.
    Wakes,
    /// `Wakes::watch`.
    Watch,
    /// `Disk::open`.
    Open,
    /// `OwnFile::read_at`.
    Read,
    /// `OwnFile::write_at`.
    Write,
    /// `OwnFile::set_len`.
    SetLen,
    /// `OwnFile::sync`.
    Sync,
    /// `OwnFile::stat`.
    Stat,
    /// `Disk::rename`.
    Rename,
    /// `Disk::remove`.
    Remove,
    /// `Disk::make_dir`.
    MakeDir,
    /// `Disk::names`.
    Names,
    /// `Disk::sync_dir`.
    SyncDir,
    /// `Disk::space`.
    Space,
}

impl Op {
    /// All that change our own files, or would.
    pub const CHANGES: &'static [Self] = &[
        Self::Open,
        Self::Write,
        Self::SetLen,
        Self::Rename,
        Self::Remove,
        Self::MakeDir,
    ];

    fn is_own(self) -> bool {
        !matches!(
            self,
            Self::OpenLog | Self::ReadLog | Self::StatLog | Self::List | Self::Wakes | Self::Watch
        )
    }
}

/// Something that goes wrong.
#[derive(Debug, Clone)]
pub struct Fault {
    ops: Vec<Op>,
    beneath: PathBuf,
    errno: i32,
    skip: u64,
    times: u64,
}

impl Fault {
    /// These operations on what lies at or beneath a path give this error of Linux, always. A handle lies where it
    /// was opened.
    #[must_use]
    pub fn new(ops: &[Op], beneath: impl AsRef<Path>, errno: i32) -> Self {
        Self {
            ops: ops.to_vec(),
            beneath: beneath.as_ref().to_path_buf(),
            errno,
            skip: 0,
            times: u64::MAX,
        }
    }

    /// A folder that is mounted read-only.
    #[must_use]
    pub fn read_only(dir: impl AsRef<Path>) -> Self {
        Self::new(Op::CHANGES, dir, libc::EROFS)
    }

    /// Only so many times.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Only once.
    #[must_use]
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Not before so many have succeeded.
    #[must_use]
    pub fn after(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }
}

/// Names a fault that was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultId(u64);

/// What an operation that must fail gives.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: io::Error,
    /// Whether a write gets some of its bytes written before.
    pub(super) tears: bool,
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    set: Vec<(FaultId, Fault)>,
    last_id: u64,
    own_ops: u64,
    crash_at: Option<u64>,
    crashed: bool,
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) -> FaultId {
        self.last_id += 1;
        self.set.push((FaultId(self.last_id), fault));
        FaultId(self.last_id)
    }

    pub(super) fn remove(&mut self, id: FaultId) {
        self.set.retain(|(other, _)| *other != id);
    }

    pub(super) fn clear(&mut self) {
        self.set.clear();
    }

    pub(super) fn own_ops(&self) -> u64 {
        self.own_ops
    }

    pub(super) fn crash_at(&mut self, n: u64) {
        self.crash_at = Some(n);
    }

    pub(super) fn has_crashed(&self) -> bool {
        self.crashed
    }

    pub(super) fn revive(&mut self) {
        self.crash_at = None;
        self.crashed = false;
    }

    /// Before each operation of the daemon: whether it fails.
    pub(super) fn meet(&mut self, op: Op, paths: &[&Path]) -> Result<(), Failure> {
        if op.is_own() {
            let number = self.own_ops;
            self.own_ops += 1;
            let crashes_now = !self.crashed && self.crash_at.is_some_and(|at| number >= at);
            if self.crashed || crashes_now {
                self.crashed = true;
                return Err(Failure {
                    error: io::Error::other("crashed"),
                    tears: crashes_now,
                });
            }
        }
        for (_, fault) in &mut self.set {
            if fault.times == 0
                || !fault.ops.contains(&op)
                || !paths.iter().any(|path| path.starts_with(&fault.beneath))
            {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            fault.times -= 1;
            return Err(Failure {
                error: io::Error::from_raw_os_error(fault.errno),
                tears: matches!(fault.errno, libc::ENOSPC | libc::EIO | libc::EDQUOT),
            });
        }
        Ok(())
    }
}
