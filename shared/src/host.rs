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

/// Files of our own: the checkpoint, dead letters, and what the file output writes. Blocking: never called on a
/// thread that serves the network.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// Opens a file for reading and writing; with `create` it is made if it is not there, with that mode. What stands
    /// after `beneath` in `path` is walked without following links.
    ///
    /// # Errors
    /// As the file system gives them; `InvalidInput` for a link, or what is no regular file.
    fn open(
        &self,
        beneath: &Path,
        path: &Path,
        create: Option<u32>,
    ) -> io::Result<Arc<dyn OwnFile>>;
    /// Gives a file another name, replacing what has it.
    ///
    /// # Errors
    /// As the file system gives them.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// As the file system gives them.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory and those above it.
    ///
    /// # Errors
    /// As the file system gives them.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names in a directory, in no order.
    ///
    /// # Errors
    /// As the file system gives them.
    fn names(&self, dir: &Path) -> io::Result<Vec<std::ffi::OsString>>;
    /// Makes the names in a directory survive a power loss.
    ///
    /// # Errors
    /// As the file system gives them.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes that an ordinary user may still write where `dir` is, and of how many in all.
    ///
    /// # Errors
    /// As the file system gives them.
    fn space(&self, dir: &Path) -> io::Result<Space>;
}

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Free bytes.
    pub free: u64,
    /// All bytes.
    pub total: u64,
}

/// An open file of our own.
pub trait OwnFile: Send + Sync + std::fmt::Debug {
    /// Reads at `offset`; 0 at the end.
    ///
    /// # Errors
    /// As the file system gives them.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `parts`, one after the other, from `offset` on. After an error any part of it may be there.
    ///
    /// # Errors
    /// As the file system gives them (`StorageFull` among them).
    fn write_at(&self, parts: &[io::IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Cuts or extends it.
    ///
    /// # Errors
    /// As the file system gives them.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes its content and length survive a power loss (fdatasync).
    ///
    /// # Errors
    /// As the device gives them; after one, what was written since the last success may be gone.
    fn sync(&self) -> io::Result<()>;
    /// What it is now.
    ///
    /// # Errors
    /// As the file system gives them.
    fn stat(&self) -> io::Result<Stat>;
}
