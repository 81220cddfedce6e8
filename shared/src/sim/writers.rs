//! Everybody else's side of the machine: those who write, rotate and remove the logs that the daemon reads.
//! Place: within **sim**; tests and `workload` call it. Paths are the host's; links in them are followed as Linux does.
//! Invariant: errors are those of Linux, checked against the real one in `tests`.

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::disk::{Directory, NodeId, What, errno};
use super::walk::Links;
use super::{Machine, State, Who};
use crate::host::{EntryKind, Stat};

impl Machine {
    /// Makes an empty file that is not there yet.
    ///
    /// # Errors
    /// As Linux gives them; `AlreadyExists`.
    pub fn create(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.state()
            .make_new(path.as_ref(), What::File(Box::default()))
    }

    /// Appends to a file; makes it where it is not there.
    ///
    /// # Errors
    /// As Linux gives them; at `StorageFull` a part is there.
    pub fn append(&self, path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let node = state.open_or_make(path.as_ref())?;
        state.append(node, bytes)
    }

    /// Writes into a file that is there.
    ///
    /// # Errors
    /// As Linux gives them.
    pub fn write_at(&self, path: impl AsRef<Path>, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let (node, moment) = (state.file(path.as_ref())?, state.moment());
        state.disk.write(node, offset, bytes, Who::Workload, moment)
    }

    /// Cuts a file, or extends it by a hole.
    ///
    /// # Errors
    /// As Linux gives them.
    pub fn truncate(&self, path: impl AsRef<Path>, length: u64) -> io::Result<()> {
        let mut state = self.state();
        let (node, moment) = (state.file(path.as_ref())?, state.moment());
        state.disk.set_len(node, length, Who::Workload, moment)
    }

    /// Makes a hole in a file, whose size stays (`FALLOC_FL_PUNCH_HOLE`).
    ///
    /// # Errors
    /// As Linux gives them.
    pub fn punch(&self, path: impl AsRef<Path>, hole: Range<u64>) -> io::Result<()> {
        let mut state = self.state();
        let (node, moment) = (state.file(path.as_ref())?, state.moment());
        state.disk.punch(node, hole, Who::Workload, moment)
    }

    /// Opens a file as a program does that keeps its log open, whatever becomes of its name; makes it where it is
    /// not there.
    ///
    /// # Errors
    /// As Linux gives them.
    pub fn writer(&self, path: impl AsRef<Path>) -> io::Result<Writer> {
        let mut state = self.state();
        let node = state.open_or_make(path.as_ref())?;
        state.disk.opened(node, Who::Workload);
        Ok(Writer {
            machine: self.clone(),
            node,
            boot: state.boots,
            position: None,
        })
    }

    /// Moves a name, over another if there is one.
    ///
    /// # Errors
    /// As Linux gives them.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
        self.state()
            .rename(from.as_ref(), to.as_ref(), Who::Workload)
    }

    /// Gives a file one more name.
    ///
    /// # Errors
    /// As Linux gives them.
    pub fn link(&self, file: impl AsRef<Path>, name: impl AsRef<Path>) -> io::Result<()> {
        let mut state = self.state();
        let moment = state.moment();
        let node = state.disk.walk(file.as_ref(), Links::NotLast)?.found()?;
        let place = state.disk.walk(name.as_ref(), Links::NotLast)?;
        let dir = place.dir()?;
        let name = place
            .name
            .ok_or_else(|| errno(libc::EEXIST))?
            .to_os_string();
        state.disk.link(node, dir, &name, Who::Workload, moment)
    }

    /// Copies a file's bytes into another, which is made, or cut to nothing before.
    ///
    /// # Errors
    /// As Linux gives them.
    pub fn copy(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
        let mut state = self.state();
        let source = state.file(from.as_ref())?;
        let target = state.open_or_make(to.as_ref())?;
        if source == target {
            return Err(errno(libc::EINVAL));
        }
        let moment = state.moment();
        state.disk.set_len(target, 0, Who::Workload, moment)?;
        // As `cp` does: by runs of data, so that holes stay holes.
        let content = state.disk.file(source)?.content.clone();
        for (at, bytes) in content.data() {
            state.disk.write(target, at, bytes, Who::Workload, moment)?;
        }
        if content.size() > state.disk.file(target)?.content.size() {
            let size = content.size();
            state.disk.set_len(target, size, Who::Workload, moment)?;
        }
        Ok(())
    }

    /// Removes a name of what is no directory.
    ///
    /// # Errors
    /// As Linux gives them.
    pub fn delete(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.state().unlink(path.as_ref(), Who::Workload)
    }

    /// Makes a symbolic link named `path`.
    ///
    /// # Errors
    /// As Linux gives them.
    pub fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> io::Result<()> {
        let target = target.as_ref().to_path_buf();
        self.state().make_new(path.as_ref(), What::Link(target))
    }

    /// Makes a symbolic link, or lets the one that is there point elsewhere, in one step: a link beside it that is
    /// renamed over it.
    ///
    /// # Errors
    /// As Linux gives them.
    pub fn replace_symlink(
        &self,
        target: impl AsRef<Path>,
        path: impl AsRef<Path>,
    ) -> io::Result<()> {
        let mut beside = path.as_ref().as_os_str().to_os_string();
        beside.push(".new");
        // One that an earlier try has left.
        if self.kind(&beside) == Some(EntryKind::Link) {
            self.delete(&beside)?;
        }
        self.symlink(target, &beside)?;
        self.rename(&beside, path)
    }

    /// Makes a directory and those above it.
    ///
    /// # Errors
    /// As Linux gives them.
    pub fn make_dir(&self, dir: impl AsRef<Path>) -> io::Result<()> {
        self.state().make_dir(dir.as_ref(), Who::Workload)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As Linux gives them.
    pub fn delete_dir(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut state = self.state();
        let moment = state.moment();
        let place = state.disk.walk(path.as_ref(), Links::NotLast)?;
        place.found()?;
        let dir = place.dir()?;
        let name = place.name.ok_or_else(|| errno(libc::EBUSY))?.to_os_string();
        state.disk.remove_dir(dir, &name, Who::Workload, moment)
    }

    /// Removes a directory and all that is in it, as when a container goes.
    ///
    /// # Errors
    /// As Linux gives them.
    pub fn delete_tree(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        for name in self.names(path)? {
            let inner = path.join(name);
            match self.kind(&inner) {
                Some(EntryKind::Directory) => self.delete_tree(&inner)?,
                _ => self.delete(&inner)?,
            }
        }
        self.delete_dir(path)
    }

    /// Makes a FIFO.
    ///
    /// # Errors
    /// As Linux gives them.
    pub fn make_fifo(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.state().make_new(path.as_ref(), What::Other)
    }

    /// Lets the daemon neither open nor pass nor list what stands there, or lets it again.
    ///
    /// # Errors
    /// Where nothing is there.
    pub fn forbid(&self, path: impl AsRef<Path>, forbidden: bool) -> io::Result<()> {
        let mut state = self.state();
        let node = state.disk.walk(path.as_ref(), Links::Follow)?.found()?;
        state.disk.node_mut(node).forbidden = forbidden;
        Ok(())
    }

    /// Makes these bytes of a file unreadable (`EIO`), and only these; an empty range makes all readable again.
    ///
    /// # Errors
    /// Where no file is there.
    pub fn set_bad(&self, path: impl AsRef<Path>, bad: Range<u64>) -> io::Result<()> {
        let mut state = self.state();
        let node = state.disk.walk(path.as_ref(), Links::Follow)?.found()?;
        state.disk.set_bad(node, bad)
    }

    /// What stands under a path's last name; `None` where nothing does.
    #[must_use]
    pub fn kind(&self, path: impl AsRef<Path>) -> Option<EntryKind> {
        let state = self.state();
        let node = state.disk.walk(path.as_ref(), Links::NotLast).ok()?.node?;
        Some(state.disk.kind(node))
    }

    /// A file's bytes, holes as zeros; without faults.
    ///
    /// # Errors
    /// Where no file is there.
    pub fn content(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let state = self.state();
        let node = state.disk.walk(path.as_ref(), Links::Follow)?.found()?;
        Ok(state.disk.file(node)?.content.to_vec())
    }

    /// What a file is now.
    ///
    /// # Errors
    /// Where nothing is there.
    pub fn stat(&self, path: impl AsRef<Path>) -> io::Result<Stat> {
        let state = self.state();
        let node = state.disk.walk(path.as_ref(), Links::Follow)?.found()?;
        Ok(state.disk.stat(node))
    }

    /// With which mode a file was made.
    ///
    /// # Errors
    /// Where nothing is there.
    pub fn mode(&self, path: impl AsRef<Path>) -> io::Result<u32> {
        let state = self.state();
        let node = state.disk.walk(path.as_ref(), Links::Follow)?.found()?;
        Ok(state.disk.node(node).mode)
    }

    /// The names in a directory, in any order.
    ///
    /// # Errors
    /// Where no directory is there.
    pub fn names(&self, dir: impl AsRef<Path>) -> io::Result<Vec<OsString>> {
        self.state().names(dir.as_ref())
    }

    /// Where a symbolic link points.
    ///
    /// # Errors
    /// `InvalidInput` where something else is there.
    pub fn read_link(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        let state = self.state();
        let node = state.disk.walk(path.as_ref(), Links::NotLast)?.found()?;
        match &state.disk.node(node).what {
            What::Link(target) => Ok(target.clone()),
            _ => Err(errno(libc::EINVAL)),
        }
    }
}

/// A file that a program has open for writing. It survives the daemon, but no reboot.
#[derive(Debug)]
pub struct Writer {
    machine: Machine,
    node: NodeId,
    boot: u64,
    /// Where the next write goes; `None`: to the end.
    position: Option<u64>,
}

impl Writer {
    /// From now on it writes where it left off and not at the end, so that a truncation leaves a hole.
    #[must_use]
    pub fn keeping_its_position(mut self) -> Self {
        let state = self.machine.state();
        self.position = state
            .disk
            .file(self.node)
            .ok()
            .map(|file| file.content.size());
        drop(state);
        self
    }

    /// Writes.
    ///
    /// # Errors
    /// As Linux gives them; `Other` after a reboot.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.machine.state();
        if state.boots != self.boot {
            return Err(io::Error::other("a handle from before the reboot"));
        }
        match &mut self.position {
            None => state.append(self.node, bytes),
            Some(position) => {
                let moment = state.moment();
                state
                    .disk
                    .write(self.node, *position, bytes, Who::Workload, moment)?;
                *position += bytes.len() as u64;
                Ok(())
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut state = self.machine.state();
        if state.boots == self.boot {
            state.disk.closed(self.node, Who::Workload);
        }
    }
}

impl State {
    fn append(&mut self, node: NodeId, bytes: &[u8]) -> io::Result<()> {
        let moment = self.moment();
        let end = self.disk.file(node)?.content.size();
        self.disk.write(node, end, bytes, Who::Workload, moment)
    }

    /// A regular file that is there, opened for writing.
    fn file(&self, path: &Path) -> io::Result<NodeId> {
        let node = self.disk.walk(path, Links::Follow)?.found()?;
        self.disk.file(node)?;
        Ok(node)
    }

    /// A regular file, made where it is not there.
    fn open_or_make(&mut self, path: &Path) -> io::Result<NodeId> {
        let moment = self.moment();
        let place = self.disk.walk(path, Links::Follow)?;
        let node = match place.node {
            Some(node) => node,
            None => {
                let (dir, name) = (place.dir()?, place.name.unwrap_or_default().to_os_string());
                let what = What::File(Box::default());
                self.disk
                    .make(dir, &name, what, 0o644, Who::Workload, moment)
            }
        };
        self.disk.file(node)?;
        Ok(node)
    }

    /// Makes something where nothing is.
    fn make_new(&mut self, path: &Path, what: What) -> io::Result<()> {
        let moment = self.moment();
        let place = self.disk.walk(path, Links::NotLast)?;
        if place.node.is_some() {
            return Err(errno(libc::EEXIST));
        }
        let (dir, name) = (place.dir()?, place.name.unwrap_or_default().to_os_string());
        self.disk
            .make(dir, &name, what, 0o644, Who::Workload, moment);
        Ok(())
    }

    /// Makes a directory and those above it, as `std::fs::create_dir_all` does.
    pub(super) fn make_dir(&mut self, dir: &Path, who: Who) -> io::Result<()> {
        let made = match (self.make_one_dir(dir, who), dir.parent()) {
            (Err(error), Some(above)) if error.kind() == io::ErrorKind::NotFound => {
                self.make_dir(above, who)?;
                self.make_one_dir(dir, who)
            }
            (made, _) => made,
        };
        made.or_else(|error| {
            let found = self.disk.walk(dir, Links::Follow).ok();
            match found.and_then(|place| place.node) {
                Some(node) if self.disk.kind(node) == EntryKind::Directory => Ok(()),
                _ => Err(error),
            }
        })
    }

    fn make_one_dir(&mut self, dir: &Path, who: Who) -> io::Result<()> {
        let moment = self.moment();
        let place = self.disk.walk(dir, Links::NotLast)?;
        if place.node.is_some() {
            return Err(errno(libc::EEXIST));
        }
        let (above, name) = (place.dir()?, place.name.unwrap_or_default().to_os_string());
        let what = What::Directory(Directory::new());
        self.disk.make(above, &name, what, 0o755, who, moment);
        Ok(())
    }

    pub(super) fn names(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let node = self.disk.walk(dir, Links::Follow)?.found()?;
        match &self.disk.node(node).what {
            What::Directory(names) => Ok(names.keys().map(|(_, name)| name.clone()).collect()),
            _ => Err(errno(libc::ENOTDIR)),
        }
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path, who: Who) -> io::Result<()> {
        let moment = self.moment();
        let from = self.disk.walk(from, Links::NotLast)?;
        let to = self.disk.walk(to, Links::NotLast)?;
        let busy = || errno(libc::EBUSY);
        let from_name = from.name.ok_or_else(busy)?.to_os_string();
        let to_name = to.name.ok_or_else(busy)?.to_os_string();
        let (from_dir, to_dir) = (from.dir()?, to.dir()?);
        let (above_from, above_to) = (from.above, to.above);
        self.disk.rename(
            (from_dir, &from_name),
            (to_dir, &to_name),
            &above_from,
            &above_to,
            who,
            moment,
        )
    }

    pub(super) fn unlink(&mut self, path: &Path, who: Who) -> io::Result<()> {
        let moment = self.moment();
        let place = self.disk.walk(path, Links::NotLast)?;
        place.found()?;
        let dir = place.dir()?;
        let name = place
            .name
            .ok_or_else(|| errno(libc::EISDIR))?
            .to_os_string();
        self.disk.unlink(dir, &name, who, moment)
    }
}
