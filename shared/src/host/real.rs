//! The real host: the kernel's clocks and files.
//! Place: made once by each program's `main` and handed to all stages; the simulation is the other `Host`.
//! Invariants: a log is opened by the walk alone (`follow::open`); what lies on a mount that may hang is touched only
//! by that mount's lane (`follow::hang`), from the walk into it to the close.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{Whence, lseek};

use super::{EntryKind, Host, LogFile, Stat, Wakes};
use crate::follow::View;
use crate::follow::hang::{self, Guarded, Lane, Lanes, MountTable, may_hang_number};
use crate::follow::open::{self, Limits, OpenError, Place, file_system};
use crate::follow::wake::Inotify;

/// As many mounts that may hang as one path may run through.
const MOST_MOUNTS: usize = 8;

/// Names that a lane lists at a time.
const NAMES_AT_ONCE: usize = 1024;

/// The kernel's clocks and files.
#[derive(Debug)]
pub struct RealHost {
    start: Instant,
    boot: u128,
    mounts: Arc<MountTable>,
    lanes: Lanes,
}

impl Default for RealHost {
    fn default() -> Self {
        Self::new()
    }
}

impl RealHost {
    /// The host that this process runs on.
    #[must_use]
    pub fn new() -> Self {
        Self::with_deadline(hang::DEADLINE)
    }

    /// The same, where a call on a mount that may hang takes at most `deadline`.
    #[must_use]
    pub fn with_deadline(deadline: Duration) -> Self {
        let start = Instant::now();
        Self {
            start,
            // Without one, each start counts as a boot: then device numbers prove nothing, which is safe.
            boot: boot_id().unwrap_or_else(|| wall_ns().unsigned_abs().into()),
            mounts: Arc::new(MountTable::open()),
            lanes: Lanes::new(deadline),
        }
    }

    /// Does `work` with what it may enter: here, or where it enters a mount that may hang, in that one's lane.
    fn walk<T: Send + 'static>(
        &self,
        view: &View,
        path: &Path,
        work: fn(&View, &Path, &Limits) -> Result<T, OpenError>,
    ) -> io::Result<(T, Option<Arc<Lane>>)> {
        let mut limits = Limits {
            prone: self.mounts.prone(),
            entered: Vec::new(),
        };
        let mut lane: Option<Arc<Lane>> = None;
        loop {
            let result = match &lane {
                None => work(view, path, &limits),
                Some(lane) => {
                    let (view, path, limits) = (view.clone(), path.to_owned(), limits.clone());
                    lane.run(move || work(&view, &path, &limits))?
                }
            };
            match result {
                Ok(result) => return Ok((result, lane)),
                Err(OpenError::MayHang { device, .. }) if limits.entered.len() < MOST_MOUNTS => {
                    limits.entered.push(device);
                    lane = Some(self.lanes.of(device));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn boot_id() -> Option<u128> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()
}

fn wall_ns() -> i64 {
    since_1970(SystemTime::now())
}

fn since_1970(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}

impl Host for RealHost {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall_ns(&self) -> i64 {
        wall_ns()
    }

    fn boot_id(&self) -> u128 {
        self.boot
    }

    fn open_log(&self, view: &View, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let (file, lane) = self.walk(view, path, |view, path, limits| {
            open::file(view, path, limits).map(RealFile::new)
        })?;
        let lane = match lane {
            Some(lane) => lane,
            None if file.may_hang => self.lanes.of(file.file.metadata()?.dev()),
            None => return Ok(Arc::new(file)),
        };
        Ok(Arc::new(Guarded::new(Arc::new(file), lane)))
    }

    fn list(
        &self,
        view: &View,
        dir: &Path,
        each: &mut dyn FnMut(&OsStr, EntryKind, u64) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let (mut listing, lane) = self.walk(view, dir, Listing::open)?;
        let Some(lane) = lane else {
            return listing.tell(each).map(drop);
        };
        // The names come in portions from where the listing may be stuck.
        let listing = Arc::new(Mutex::new(listing));
        let result = loop {
            let theirs = Arc::clone(&listing);
            let portion = lane.run(move || {
                let mut names = Vec::new();
                let mut listing = theirs.lock().unwrap_or_else(PoisonError::into_inner);
                let ended = listing.tell(&mut |name, kind, inode| {
                    names.push((name.to_owned(), kind, inode));
                    if names.len() < NAMES_AT_ONCE {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                });
                (names, ended)
            });
            let (names, ended) = match portion {
                Ok(portion) => portion,
                Err(error) => break Err(error),
            };
            let told = names
                .iter()
                .try_for_each(|(name, kind, inode)| each(name, *kind, *inode));
            match ended {
                Ok(ControlFlow::Break(())) if told.is_continue() => {}
                Ok(_) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        lane.close(Box::new(listing));
        result
    }

    fn wakes(&self) -> io::Result<Arc<dyn Wakes>> {
        Ok(Arc::new(Inotify::new(Arc::clone(&self.mounts))?))
    }
}

/// A directory as all roots together have it: a name in a better root hides the same in the others, and a mount hides
/// what it lies on.
#[derive(Debug)]
struct Listing {
    mounts: Vec<(OsString, EntryKind, u64)>,
    mounts_told: bool,
    /// Each root's directory, and its names where they are not all told.
    roots: Vec<(Place, Option<nix::dir::OwningIter>)>,
}

impl Listing {
    fn open(view: &View, path: &Path, limits: &Limits) -> Result<Self, OpenError> {
        let places = match open::directories(view, path, limits) {
            Err(error) if error.is_missing() => {
                // Of a container without a root only the mounts are known, and so where they lie.
                let mounts = mounts_in(view, path, limits);
                if mounts.is_empty() {
                    return Err(error);
                }
                return Ok(Self {
                    mounts,
                    mounts_told: false,
                    roots: Vec::new(),
                });
            }
            places => places?,
        };
        let mounts = places
            .first()
            .map(|place| mounts_in(view, &place.path, limits))
            .unwrap_or_default();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let roots = places.into_iter().map(|place| {
            let names = Dir::openat(&place.fd, ".", flags, Mode::empty())
                .map_err(|error| OpenError::at(&place.path, error))?;
            Ok((place, Some(names.into_iter())))
        });
        Ok(Self {
            mounts,
            mounts_told: false,
            roots: roots.collect::<Result<_, _>>()?,
        })
    }

    /// Tells the names that are left until `each` breaks; goes on behind that name when it is called again.
    fn tell(
        &mut self,
        each: &mut dyn FnMut(&OsStr, EntryKind, u64) -> ControlFlow<()>,
    ) -> io::Result<ControlFlow<()>> {
        if !self.mounts_told {
            self.mounts_told = true;
            for (name, kind, inode) in &self.mounts {
                if each(name, *kind, *inode).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        for at in 0..self.roots.len() {
            let (better, rest) = self.roots.split_at_mut(at);
            let Some((place, names)) = rest.first_mut() else {
                break;
            };
            for entry in names.iter_mut().flatten() {
                let entry = entry?;
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                let is_hidden = matches!(name.as_bytes(), b"." | b"..")
                    || self.mounts.iter().any(|(mount, _, _)| mount == name)
                    || better.iter().any(|(better, _)| lstat(better, name).is_ok());
                if is_hidden {
                    continue;
                }
                let kind = match entry.file_type() {
                    Some(kind) => kind_of_type(kind),
                    None => match lstat(place, name) {
                        Ok(stat) => kind_of(&stat),
                        // Gone since.
                        Err(Errno::ENOENT) => continue,
                        Err(error) => return Err(error.into()),
                    },
                };
                if each(name, kind, entry.ino()).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            // An ended stream must not be read again: it might begin anew.
            *names = None;
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// The names that the container's mounts have in one of its directories. What is not there on the host is left out.
fn mounts_in(view: &View, dir: &Path, limits: &Limits) -> Vec<(OsString, EntryKind, u64)> {
    if view.is_host {
        return Vec::new();
    }
    let mut names = Vec::new();
    for mount in &view.mounts {
        // Beneath a directory that only has mounts deeper down, the next part of their way is a name, too.
        let Ok(inner) = mount.container.strip_prefix(dir) else {
            continue;
        };
        let mut parts = inner.components();
        let Some(name) = parts.next().map(|part| part.as_os_str().to_owned()) else {
            continue;
        };
        if names.iter().any(|(other, _, _)| *other == name) {
            continue;
        }
        if parts.next().is_some() {
            names.push((name, EntryKind::Directory, 0));
            continue;
        }
        match open::mount_stat(view, mount, limits) {
            Ok(stat) => names.push((name, kind_of(&stat), stat.st_ino)),
            // Known only when it is entered.
            Err(OpenError::MayHang { .. }) => names.push((name, EntryKind::Directory, 0)),
            Err(_) => {}
        }
    }
    names
}

fn lstat(place: &Place, name: &OsStr) -> nix::Result<FileStat> {
    fstatat(&place.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

fn kind_of(stat: &FileStat) -> EntryKind {
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => EntryKind::File,
        SFlag::S_IFDIR => EntryKind::Directory,
        SFlag::S_IFLNK => EntryKind::Link,
        _ => EntryKind::Other,
    }
}

fn kind_of_type(kind: Type) -> EntryKind {
    match kind {
        Type::File => EntryKind::File,
        Type::Directory => EntryKind::Directory,
        Type::Symlink => EntryKind::Link,
        _ => EntryKind::Other,
    }
}

/// A regular file, open for reading.
#[derive(Debug)]
struct RealFile {
    file: File,
    may_hang: bool,
}

impl RealFile {
    fn new(file: File) -> Self {
        let may_hang = file_system(&file).is_some_and(may_hang_number);
        Self { file, may_hang }
    }
}

impl LogFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.file, buffer, offset)
    }

    fn stat(&self) -> io::Result<Stat> {
        stat_of(&self.file, self.may_hang)
    }

    fn has_room(&self) -> bool {
        // One that cannot say, or counts nothing (overlays of some kinds, /proc), is not short of room.
        fstatvfs(&self.file).map_or(true, |all| {
            all.blocks_available().saturating_mul(10) >= all.blocks()
        })
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let from = i64::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        // This moves our own description's offset, which nobody uses.
        match lseek(self.file.as_fd(), from, Whence::SeekData) {
            Ok(data) => Ok(u64::try_from(data).ok()),
            Err(Errno::ENXIO) => Ok(None),
            // A file system that knows no holes: all is data.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => {
                Ok((offset < self.file.metadata()?.len()).then_some(offset))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What an open file is now; one statx.
pub(super) fn stat_of(file: &File, may_hang: bool) -> io::Result<Stat> {
    let metadata = file.metadata()?;
    Ok(Stat {
        device: metadata.dev(),
        inode: metadata.ino(),
        birth_ns: metadata.created().ok().map(since_1970),
        size: metadata.len(),
        disk_bytes: metadata.blocks().saturating_mul(512),
        links: metadata.nlink(),
        modified_ns: metadata
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(metadata.mtime_nsec()),
        may_hang,
    })
}
