//! The daemon's side of the machine: the traits of `host`, on the simulated clock and disk.
//! Place: within **sim**; what the real host does by system calls is done here on `disk`, after `faults` had its say.
//! Invariant: the state is never locked while someone else's code runs.

use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::{Bound, ControlFlow};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::disk::{Disk, NodeId, What, errno};
use super::faults::{Failure, Op};
use super::walk::Links;
use super::{Machine, State, Who};
use crate::follow::View;
use crate::host::{self, EntryKind, Host, LogFile, OwnFile, Space, Stat, Wakes};

/// Names that are listed between two looks of others at the disk.
const NAMES_AT_ONCE: usize = 128;

impl Host for Machine {
    fn now(&self) -> Duration {
        self.state().clock.now()
    }

    fn wall_ns(&self) -> i64 {
        self.state().clock.wall_ns()
    }

    fn boot_id(&self) -> u128 {
        self.state().clock.boot_id()
    }

    fn open_log(&self, view: &View, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let mut state = self.state();
        state.meet(Op::OpenLog, path)?;
        let node = state.disk.find_in(view, path)?;
        state
            .disk
            .file(node)
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        if state.disk.node(node).forbidden {
            return Err(errno(libc::EACCES));
        }
        Ok(Arc::new(self.hold(&mut state, node, path)))
    }

    fn list(
        &self,
        view: &View,
        dir: &Path,
        each: &mut dyn FnMut(&OsStr, EntryKind, u64) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let mut listing = {
            let mut state = self.state();
            state.meet(Op::List, dir)?;
            Listing::open(&state.disk, view, dir)?
        };
        loop {
            let portion = listing.portion(&self.state().disk);
            let Some(portion) = portion else {
                return Ok(());
            };
            for (name, kind, inode) in &portion {
                if each(name, *kind, *inode).is_break() {
                    return Ok(());
                }
            }
        }
    }

    fn wakes(&self) -> io::Result<Arc<dyn Wakes>> {
        self.state().meet(Op::Wakes, Path::new("/"))?;
        Ok(self.listen())
    }
}

type Entry = (OsString, EntryKind, u64);

/// A directory as all roots of a view together have it: a name in a better root hides the same in the others, and a
/// mount hides what it lies on.
struct Listing {
    mounts: Vec<Entry>,
    mounts_told: bool,
    roots: Vec<NodeId>,
    at: usize,
    /// What was told last of the present root.
    after: Bound<(u64, OsString)>,
}

impl Listing {
    fn open(disk: &Disk, view: &View, dir: &Path) -> io::Result<Self> {
        let (roots, mounts) = match disk.find_all_in(view, dir) {
            Ok(found) => (found.nodes, mounts_in(disk, view, &found.path)),
            // Of a container without a root only the mounts are known, and so where they lie.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mounts = mounts_in(disk, view, dir);
                if mounts.is_empty() {
                    return Err(error);
                }
                (Vec::new(), mounts)
            }
            Err(error) => return Err(error),
        };
        for dir in &roots {
            if disk.kind(*dir) != EntryKind::Directory {
                return Err(errno(libc::ENOTDIR));
            }
        }
        Ok(Self {
            mounts,
            mounts_told: false,
            roots,
            at: 0,
            after: Bound::Unbounded,
        })
    }

    /// The next names; `None` after the last. What is made and removed between two portions may be missed, as it may
    /// be on a real disk.
    fn portion(&mut self, disk: &Disk) -> Option<Vec<Entry>> {
        if !std::mem::replace(&mut self.mounts_told, true) && !self.mounts.is_empty() {
            return Some(self.mounts.clone());
        }
        let dir = *self.roots.get(self.at)?;
        let mut portion = Vec::new();
        let mut seen = 0;
        if let What::Directory(names) = &disk.node(dir).what {
            for (key, node) in names
                .range((self.after.clone(), Bound::Unbounded))
                .take(NAMES_AT_ONCE)
            {
                seen += 1;
                let name = &key.1;
                let mut better = self.roots[..self.at].iter();
                let is_hidden = self.mounts.iter().any(|(mount, _, _)| mount == name)
                    || better.any(|dir| disk.child(*dir, name).is_some());
                if !is_hidden {
                    portion.push((name.clone(), disk.kind(*node), disk.inode(*node)));
                }
                self.after = Bound::Excluded(key.clone());
            }
        }
        if seen < NAMES_AT_ONCE {
            self.at += 1;
            self.after = Bound::Unbounded;
        }
        Some(portion)
    }
}

/// The names that the container's mounts have in one of its directories. What is not there on the host is left out.
fn mounts_in(disk: &Disk, view: &View, dir: &Path) -> Vec<Entry> {
    let mut names: Vec<Entry> = Vec::new();
    for mount in view.mounts.iter().filter(|_| !view.is_host) {
        let Ok(inner) = mount.container.strip_prefix(dir) else {
            continue;
        };
        let mut parts = inner.components();
        let Some(name) = parts.next().map(|part| part.as_os_str().to_os_string()) else {
            continue;
        };
        if names.iter().any(|(other, _, _)| *other == name) {
            continue;
        }
        if parts.next().is_some() {
            names.push((name, EntryKind::Directory, 0));
        } else if let Ok(node) = disk.mounted(mount) {
            names.push((name, disk.kind(node), disk.inode(node)));
        }
    }
    names
}

impl host::Disk for Machine {
    fn open(
        &self,
        beneath: &Path,
        path: &Path,
        create: Option<u32>,
    ) -> io::Result<Arc<dyn OwnFile>> {
        let mut state = self.state();
        state.meet(Op::Open, path)?;
        let after = path
            .strip_prefix(beneath)
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        let last = after.components().count();
        let is_plain = |part| matches!(part, Component::Normal(_));
        if last == 0 || !after.components().all(is_plain) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let place = state.disk.walk(path, Links::Refuse { last })?;
        let node = match (place.node, create) {
            (Some(node), _) => {
                state
                    .disk
                    .file(node)
                    .map_err(|_| io::ErrorKind::InvalidInput)?;
                node
            }
            (None, None) => return Err(errno(libc::ENOENT)),
            (None, Some(mode)) => {
                let (dir, name) = (place.dir()?, place.name.unwrap_or_default().to_os_string());
                let what = What::File(Box::default());
                let moment = state.moment();
                state.disk.make(dir, &name, what, mode, Who::Ours, moment)
            }
        };
        Ok(Arc::new(self.hold(&mut state, node, path)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state
            .faults
            .meet(Op::Rename, &[from, to])
            .map_err(|failure| failure.error)?;
        state.rename(from, to, Who::Ours)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.meet(Op::Remove, path)?;
        state.unlink(path, Who::Ours)
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.meet(Op::MakeDir, dir)?;
        state.make_dir(dir, Who::Ours)
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let mut state = self.state();
        state.meet(Op::Names, dir)?;
        state.names(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.meet(Op::SyncDir, dir)?;
        let node = state.disk.walk(dir, Links::Follow)?.found()?;
        if state.disk.kind(node) != EntryKind::Directory {
            return Err(errno(libc::ENOTDIR));
        }
        state.disk.sync_dir(node);
        Ok(())
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let mut state = self.state();
        state.meet(Op::Space, dir)?;
        let node = state.disk.walk(dir, Links::Follow)?.found()?;
        Ok(state.disk.space(node))
    }
}

/// A file that the daemon has open.
#[derive(Debug)]
struct Held {
    machine: Machine,
    node: NodeId,
    /// As it was opened.
    path: PathBuf,
    /// Of which life of the daemon.
    life: u64,
}

impl Machine {
    fn hold(&self, state: &mut State, node: NodeId, path: &Path) -> Held {
        state.disk.opened(node, Who::Ours);
        Held {
            machine: self.clone(),
            node,
            path: path.to_path_buf(),
            life: state.life,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.machine.state();
        if state.life == self.life {
            state.disk.closed(self.node, Who::Ours);
        }
    }
}

impl Held {
    fn enter(&self, op: Op) -> Result<std::sync::MutexGuard<'_, State>, io::Error> {
        let mut state = self.machine.state();
        self.is_alive(&state)?;
        state.meet(op, &self.path)?;
        Ok(state)
    }

    fn is_alive(&self, state: &State) -> io::Result<()> {
        if state.life == self.life {
            Ok(())
        } else {
            Err(io::Error::other("a handle of a process that is gone"))
        }
    }
}

impl LogFile for Held {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.enter(Op::ReadLog)?;
        let short = state.settings.short_reads;
        let buffer = if short > 0.0 && buffer.len() > 1 && state.rng.chance(short) {
            let length = 1 + state.rng.index(buffer.len() - 1);
            &mut buffer[..length]
        } else {
            buffer
        };
        state.disk.read(self.node, buffer, offset)
    }

    fn stat(&self) -> io::Result<Stat> {
        Ok(self.enter(Op::StatLog)?.disk.stat(self.node))
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let state = self.enter(Op::StatLog)?;
        Ok(state.disk.file(self.node)?.content.next_data(offset))
    }
}

impl OwnFile for Held {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.enter(Op::Read)?.disk.read(self.node, buffer, offset)
    }

    fn write_at(&self, parts: &[io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut state = self.machine.state();
        self.is_alive(&state)?;
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let (mut left, end) = match state.faults.meet(Op::Write, &[&self.path]) {
            Ok(()) => (length, Ok(())),
            Err(Failure { error, tears }) if tears => (state.rng.index(length), Err(error)),
            Err(Failure { error, .. }) => return Err(error),
        };
        let moment = state.moment();
        let mut at = offset;
        for part in parts {
            let part = &part[..part.len().min(left)];
            state.disk.write(self.node, at, part, Who::Ours, moment)?;
            at += part.len() as u64;
            left -= part.len();
        }
        end
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.enter(Op::SetLen)?;
        let moment = state.moment();
        state.disk.set_len(self.node, len, Who::Ours, moment)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.machine.state();
        self.is_alive(&state)?;
        let met = state.faults.meet(Op::Sync, &[&self.path]);
        match met {
            Ok(()) => {
                state.disk.sync(self.node, true);
                Ok(())
            }
            Err(Failure { error, .. }) => {
                if !state.faults.has_crashed() {
                    state.disk.sync(self.node, false);
                }
                Err(error)
            }
        }
    }

    fn stat(&self) -> io::Result<Stat> {
        Ok(self.enter(Op::Stat)?.disk.stat(self.node))
    }
}

impl State {
    pub(super) fn meet(&mut self, op: Op, path: &Path) -> io::Result<()> {
        self.faults
            .meet(op, &[path])
            .map_err(|failure| failure.error)
    }
}
