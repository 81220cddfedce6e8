//! The host as the stages see it: a clock, files, and a way to be woken. Real here, simulated in `sim`.
//! Place: every stage that needs time or a disk takes a `Host`; nothing else reads a clock or opens a file.
//! Invariants: monotonic time never goes back; wall time may jump and is only shown or stamped.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A clock and the files that logs are in.
pub trait Host: Send + Sync + std::fmt::Debug {
    /// Time since an arbitrary start; never goes back.
    fn now(&self) -> Duration;
    /// Nanoseconds since 1970-01-01 UTC; may jump.
    fn wall_ns(&self) -> i64;
    /// The kernel's id of this boot (`/proc/sys/kernel/random/boot_id`); device numbers and unsynced
    /// writes count only within one.
    fn boot_id(&self) -> u128;
    /// Opens `path` as seen in `view` for reading, if it is a regular file; never blocks on a FIFO.
    ///
    /// # Errors
    /// As the walk meets them; `InvalidInput` when what stands there is no regular file.
    fn open_log(&self, view: &crate::follow::View, path: &Path) -> io::Result<Arc<dyn LogFile>>;
    /// Lists a directory as seen in `view`: names with what they are.
    ///
    /// # Errors
    /// As the walk meets them.
    fn list(&self, view: &crate::follow::View, dir: &Path) -> io::Result<Vec<Entry>>;
}

/// A file that is being followed, held open whatever becomes of its names.
pub trait LogFile: Send + Sync + std::fmt::Debug {
    /// Reads at `offset` without moving anything shared; 0 at the end.
    ///
    /// # Errors
    /// As the file system gives them.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// What the file is now.
    ///
    /// # Errors
    /// As the file system gives them.
    fn stat(&self) -> io::Result<Stat>;
    /// The first offset at or after `offset` that holds data and is no hole (SEEK_DATA); `None` past the end.
    ///
    /// # Errors
    /// As the file system gives them.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;
}

/// What a file is at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Device; counts only within one boot.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Birth time in nanoseconds since 1970, where the file system keeps one (statx STATX_BTIME).
    pub birth_ns: Option<i64>,
    /// Length in bytes.
    pub size: u64,
    /// Bytes that it occupies on disk (st_blocks * 512).
    pub disk_bytes: u64,
    /// Number of names; 0 when deleted.
    pub links: u64,
    /// Last modification, nanoseconds since 1970.
    pub modified_ns: i64,
    /// Whether it lies on a network or user-space file system, whose reads may hang (fstatfs).
    pub may_hang: bool,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name; any bytes.
    pub name: std::ffi::OsString,
    /// What it is.
    pub kind: EntryKind,
    /// Its inode as the listing tells it.
    pub inode: u64,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A FIFO, socket, device, or unknown.
    Other,
}
