//! The daemon's side of the machine: the traits of `host`, on the simulated clock and disk.
//! Place: within **sim**; what the real host does by system calls is done here on `disk`, after `faults` had its say.
//! Invariant: the state is never locked while someone else's code runs.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::disk::{NodeId, What, errno};
use super::faults::{Failure, Op};
use super::walk::Links;
use super::{Machine, State, Who};
use crate::follow::View;
use crate::host::{self, Entry, EntryKind, Host, LogFile, OwnFile, Space, Stat};

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
        let node = *state
            .disk
            .find_in(view, path)?
            .first()
            .ok_or_else(|| errno(libc::ENOENT))?;
        state
            .disk
            .file(node)
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        if state.disk.node(node).forbidden {
            return Err(errno(libc::EACCES));
        }
        Ok(Arc::new(self.hold(&mut state, node, path)))
    }

    fn list(&self, view: &View, dir: &Path) -> io::Result<Vec<Entry>> {
        let mut state = self.state();
        state.meet(Op::List, dir)?;
        let disk = &state.disk;
        let mut entries: Vec<Entry> = Vec::new();
        for found in disk.find_in(view, dir)? {
            if disk.node(found).forbidden {
                return Err(errno(libc::EACCES));
            }
            let What::Directory(names) = &disk.node(found).what else {
                return Err(errno(libc::ENOTDIR));
            };
            for ((_, name), node) in names {
                entries.push(Entry {
                    name: name.clone(),
                    kind: disk.kind(*node),
                    inode: disk.inode(*node),
                });
            }
        }
        Ok(entries)
    }
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
    fn meet(&mut self, op: Op, path: &Path) -> io::Result<()> {
        self.faults
            .meet(op, &[path])
            .map_err(|failure| failure.error)
    }
}
