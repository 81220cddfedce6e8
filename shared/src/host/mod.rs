//! The host as the stages see it: a clock, files, and a way to be woken. Real here, simulated in `sim`.
//! Place: every stage that needs time or a disk takes a `Host`; nothing else reads a clock or opens a file.
//! Invariants: monotonic time never goes back; wall time may jump and is only shown or stamped.

mod disk;
mod real;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use real::RealHost;

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
    /// As the walk meets them, with an [`OpenError`](crate::follow::open::OpenError) as their source where the real
    /// host opens; `InvalidInput` when what stands there is no regular file, `TimedOut` when its mount hangs.
    fn open_log(&self, view: &crate::follow::View, path: &Path) -> io::Result<Arc<dyn LogFile>>;
    /// Lists a directory as seen in `view`: calls `each` with every name but `.` and `..`, what it is, and its inode as
    /// the listing tells it (`stat` of the opened file is the truth), in no order, until it breaks. Nothing is kept
    /// of the names, so a directory may hold any number of them.
    ///
    /// # Errors
    /// As the walk meets them; `NotADirectory` when it is none, `TimedOut` when its mount hangs. Names told before an
    /// error stand, but are not all.
    fn list(
        &self,
        view: &crate::follow::View,
        dir: &Path,
        each: &mut dyn FnMut(&OsStr, EntryKind, u64) -> ControlFlow<()>,
    ) -> io::Result<()>;
    /// A new way to be woken when something changes in directories; one for each thread that waits.
    ///
    /// # Errors
    /// As the kernel gives them: `fs.inotify.max_user_instances` may be reached.
    fn wakes(&self) -> io::Result<Arc<dyn Wakes>>;
}

/// Wakes a thread when something changes in watched directories. A hint only: events may be missed (a network file
/// system, an overlay seen from below, an overflow), so a periodic sweep is the truth.
pub trait Wakes: Send + Sync + std::fmt::Debug {
    /// Watches a directory, or one file (a link's target, a volume that is a file), as seen in `view`. The same one may
    /// be watched any number of times.
    ///
    /// # Errors
    /// As the walk meets them; `StorageFull` when the kernel's limit of watches is reached, `Unsupported` for a
    /// mount that may hang. What is not watched is found by the sweep.
    fn watch(&self, view: &crate::follow::View, path: &Path) -> io::Result<WatchId>;
    /// Watches no longer; what it changed before may still be told once.
    fn unwatch(&self, watch: WatchId);
    /// Blocks until something has changed, [`Wakes::wake`] is called or `timeout` is over, and takes all that is known
    /// by then, each name once. A file that is written without pause wakes every time: the caller sleeps (up to
    /// 100 ms) between two calls, and what happens meanwhile costs one event.
    fn wait(&self, timeout: Duration) -> Woken;
    /// Ends the present [`Wakes::wait`], or the next.
    fn wake(&self);
    /// What becomes readable when something has changed, for those that wait on more than this; `None` where only
    /// [`Wakes::wait`] waits.
    fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

/// A watch of a [`Wakes`]; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchId(pub u64);

/// What a [`Wakes::wait`] ended with. Nothing of it when the time was over.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Woken {
    /// Names that came, went or became others: the name in the watched directory, `None` for what is watched itself.
    pub changed: BTreeSet<(WatchId, Option<OsString>)>,
    /// What was only written to, or given other rights or fewer names; named likewise.
    pub written: BTreeSet<(WatchId, Option<OsString>)>,
    /// What these watched is deleted or unmounted: they tell nothing more. [`Wakes::unwatch`] is not needed.
    pub gone: Vec<WatchId>,
    /// Events were lost: everything must be looked at.
    pub overflow: bool,
    /// [`Wakes::wake`] was called.
    pub called: bool,
}

impl Woken {
    /// Whether something was told that must not wait for more: anything but writes.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.overflow || self.called || !self.gone.is_empty() || !self.changed.is_empty()
    }

    /// Takes in what was told later.
    pub fn extend(&mut self, mut later: Self) {
        self.changed.append(&mut later.changed);
        self.written.append(&mut later.written);
        self.gone.append(&mut later.gone);
        self.overflow |= later.overflow;
        self.called |= later.called;
    }
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
    /// Whether the file system has room left, a tenth of it free: without that nothing deleted is kept for later.
    fn has_room(&self) -> bool {
        true
    }
    /// Whether a read at `offset` would give what is there. Of a file that is read through a ring the bytes may still be
    /// on their way: its reads then give 0 or `WouldBlock`, and a change is told when they have come.
    fn has_arrived(&self, _offset: u64) -> bool {
        true
    }
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
    fn names(&self, dir: &Path) -> io::Result<Vec<OsString>>;
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
