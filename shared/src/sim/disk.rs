//! File systems in memory: inodes and names, as POSIX has them, and worse where a promise allows worse.
//! Place: within **sim**; `walk` finds in it, `unsynced` knows what of it is safe, the machine is its only user.
//! Invariants: an inode lives while it has a name or is open; its number is given out again as soon as it does not;
//! what is occupied is counted; errors are those of Linux.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::clock::Moment;
use super::content::{BLOCK, Content, index};
use super::rng::mix;
use super::unsynced::{Naming, Namings, Slot, Unsynced, Who};
use super::wakes::Listeners;
use crate::host::{EntryKind, Space, Stat};

/// An inode for as long as the simulation lasts; unlike its number it never comes twice.
pub(super) type NodeId = usize;

/// The host's root directory.
pub(super) const ROOT: NodeId = 0;

/// The number of the first disk's first partition.
pub(super) const FIRST_DEVICE: u64 = 0x801;

/// Which inode number a new file gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InodeNumbers {
    /// The lowest that is free, as on ext4: a deleted file's number comes again at once.
    LowestFree,
    /// The one that was freed last.
    LastFreed,
    /// One that was never given out, as on tmpfs and btrfs.
    Fresh,
}

/// How a file system behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// Whether it keeps birth times.
    pub has_birth_times: bool,
    /// Whether it lies on a network or in user space.
    pub may_hang: bool,
    /// Its size in bytes.
    pub total_bytes: u64,
    /// Which numbers new inodes get.
    pub inode_numbers: InodeNumbers,
}

impl Default for FileSystem {
    /// Like ext4, and a TiB of it.
    fn default() -> Self {
        Self {
            has_birth_times: true,
            may_hang: false,
            total_bytes: 1 << 40,
            inode_numbers: InodeNumbers::LowestFree,
        }
    }
}

#[derive(Debug)]
pub(super) struct System {
    pub(super) is: FileSystem,
    pub(super) device: u64,
    pub(super) used_bytes: u64,
    pub(super) next_inode: u64,
    pub(super) free_inodes: BTreeSet<u64>,
    pub(super) last_freed: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) what: What,
    pub(super) system: usize,
    pub(super) inode: u64,
    /// Its names, each with its directory.
    pub(super) named_in: Vec<(NodeId, OsString)>,
    /// How often the daemon has it open, and how often others do.
    pub(super) opens: [u32; 2],
    /// How many namings that are not safe speak of it.
    pub(super) unsafe_namings: u32,
    pub(super) has_number: bool,
    birth_ns: i64,
    pub(super) modified_ns: i64,
    pub(super) mode: u32,
    pub(super) forbidden: bool,
    /// A directory that stands for a file system: cannot be moved or removed.
    is_mount: bool,
}

#[derive(Debug)]
pub(super) enum What {
    Directory(Directory),
    File(Box<File>),
    Link(PathBuf),
    Other,
    Gone,
}

/// Names in the order of their hashes: as good as none, but always the same.
pub(super) type Directory = BTreeMap<(u64, OsString), NodeId>;

#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) content: Content,
    pub(super) unsynced: Unsynced,
    /// What cannot be read.
    bad: Range<u64>,
}

#[derive(Debug)]
pub(super) struct Disk {
    pub(super) nodes: Vec<Node>,
    pub(super) systems: Vec<System>,
    pub(super) namings: Namings,
    pub(super) listeners: Listeners,
    seed: u64,
}

pub(super) fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl Disk {
    pub(super) fn new(seed: u64, root: FileSystem, listeners: Listeners) -> Self {
        let mut disk = Self {
            nodes: Vec::new(),
            systems: Vec::new(),
            namings: Namings::default(),
            listeners,
            seed,
        };
        disk.add_system(root);
        let moment = Moment {
            now: std::time::Duration::ZERO,
            stamp_ns: 0,
        };
        disk.new_node(0, What::Directory(Directory::new()), 0o755, moment);
        disk.nodes[ROOT].is_mount = true;
        disk
    }

    fn add_system(&mut self, is: FileSystem) {
        self.systems.push(System {
            is,
            device: FIRST_DEVICE + self.systems.len() as u64,
            used_bytes: 0,
            next_inode: 2,
            free_inodes: BTreeSet::new(),
            last_freed: Vec::new(),
        });
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id]
    }

    /// Where a name stands in a directory's order.
    pub(super) fn place(&self, name: &OsStr) -> u64 {
        let hash = name.as_bytes().iter().fold(self.seed | 1, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
        });
        mix(hash)
    }

    /// What a directory has under a name.
    pub(super) fn child(&self, dir: NodeId, name: &OsStr) -> Option<NodeId> {
        let What::Directory(names) = &self.nodes[dir].what else {
            return None;
        };
        let place = self.place(name);
        names
            .range((place, OsString::new())..)
            .take_while(|((at, _), _)| *at == place)
            .find(|((_, other), _)| other == name)
            .map(|(_, node)| *node)
    }

    pub(super) fn kind(&self, node: NodeId) -> EntryKind {
        match self.nodes[node].what {
            What::Directory(_) => EntryKind::Directory,
            What::File(_) => EntryKind::File,
            What::Link(_) => EntryKind::Link,
            What::Other | What::Gone => EntryKind::Other,
        }
    }

    pub(super) fn inode(&self, node: NodeId) -> u64 {
        self.nodes[node].inode
    }

    pub(super) fn is_empty(&self, dir: NodeId) -> bool {
        matches!(&self.nodes[dir].what, What::Directory(names) if names.is_empty())
    }

    pub(super) fn same_system(&self, a: NodeId, b: NodeId) -> bool {
        self.nodes[a].system == self.nodes[b].system
    }

    pub(super) fn stat(&self, id: NodeId) -> Stat {
        let node = &self.nodes[id];
        let system = &self.systems[node.system];
        let (size, disk_bytes) = match &node.what {
            What::File(file) => (file.content.size(), file.content.disk_bytes()),
            _ => (0, 0),
        };
        Stat {
            device: system.device,
            inode: node.inode,
            birth_ns: system.is.has_birth_times.then_some(node.birth_ns),
            size,
            disk_bytes,
            links: node.named_in.len() as u64,
            modified_ns: node.modified_ns,
            may_hang: system.is.may_hang,
        }
    }

    pub(super) fn space(&self, node: NodeId) -> Space {
        let system = &self.systems[self.nodes[node].system];
        Space {
            free: system.is.total_bytes.saturating_sub(system.used_bytes),
            total: system.is.total_bytes,
        }
    }

    /// Makes a file system as big as what is in it and `free` bytes.
    pub(super) fn set_free(&mut self, node: NodeId, free: u64) {
        let system = &mut self.systems[self.nodes[node].system];
        system.is.total_bytes = system.used_bytes + free;
    }

    /// Makes an empty directory the root of a file system of its own.
    pub(super) fn mount(&mut self, dir: NodeId, is: FileSystem) {
        self.add_system(is);
        self.free_number(dir);
        let system = self.systems.len() - 1;
        self.nodes[dir].system = system;
        self.nodes[dir].inode = self.systems[system].take_inode();
        self.nodes[dir].has_number = true;
        self.nodes[dir].is_mount = true;
    }

    /// Makes an inode that has no name yet.
    fn new_node(&mut self, system: usize, what: What, mode: u32, moment: Moment) -> NodeId {
        self.nodes.push(Node {
            what,
            system,
            inode: self.systems[system].take_inode(),
            named_in: Vec::new(),
            opens: [0; 2],
            unsafe_namings: 0,
            has_number: true,
            birth_ns: moment.stamp_ns,
            modified_ns: moment.stamp_ns,
            mode,
            forbidden: false,
            is_mount: false,
        });
        self.nodes.len() - 1
    }

    /// Makes something new under a name that is free.
    pub(super) fn make(
        &mut self,
        dir: NodeId,
        name: &OsStr,
        what: What,
        mode: u32,
        who: Who,
        moment: Moment,
    ) -> NodeId {
        let node = self.new_node(self.nodes[dir].system, what, mode, moment);
        self.rename_slots(vec![self.slot(dir, name, Some(node))], who, moment);
        node
    }

    /// Gives a file one more name.
    pub(super) fn link(
        &mut self,
        node: NodeId,
        dir: NodeId,
        name: &OsStr,
        who: Who,
        moment: Moment,
    ) -> io::Result<()> {
        if self.child(dir, name).is_some() {
            return Err(errno(libc::EEXIST));
        }
        if !self.same_system(node, dir) {
            return Err(errno(libc::EXDEV));
        }
        if self.kind(node) == EntryKind::Directory {
            return Err(errno(libc::EPERM));
        }
        self.rename_slots(vec![self.slot(dir, name, Some(node))], who, moment);
        Ok(())
    }

    /// Takes a name away from what is no directory.
    pub(super) fn unlink(
        &mut self,
        dir: NodeId,
        name: &OsStr,
        who: Who,
        moment: Moment,
    ) -> io::Result<()> {
        let node = self.child(dir, name).ok_or_else(|| errno(libc::ENOENT))?;
        if self.kind(node) == EntryKind::Directory {
            return Err(errno(libc::EISDIR));
        }
        self.rename_slots(vec![self.slot(dir, name, None)], who, moment);
        Ok(())
    }

    /// Removes an empty directory.
    pub(super) fn remove_dir(
        &mut self,
        dir: NodeId,
        name: &OsStr,
        who: Who,
        moment: Moment,
    ) -> io::Result<()> {
        let node = self.child(dir, name).ok_or_else(|| errno(libc::ENOENT))?;
        match &self.nodes[node].what {
            What::Directory(_) if self.nodes[node].is_mount => Err(errno(libc::EBUSY)),
            What::Directory(names) if names.is_empty() => {
                self.rename_slots(vec![self.slot(dir, name, None)], who, moment);
                Ok(())
            }
            What::Directory(_) => Err(errno(libc::ENOTEMPTY)),
            _ => Err(errno(libc::ENOTDIR)),
        }
    }

    /// Moves a name over another. `above_to`: the directories above the new name, `to.0` among them.
    pub(super) fn rename(
        &mut self,
        from: (NodeId, &OsStr),
        to: (NodeId, &OsStr),
        above_from: &[NodeId],
        above_to: &[NodeId],
        who: Who,
        moment: Moment,
    ) -> io::Result<()> {
        let node = self
            .child(from.0, from.1)
            .ok_or_else(|| errno(libc::ENOENT))?;
        let replaced = self.child(to.0, to.1);
        if self.nodes[node].is_mount || replaced.is_some_and(|node| self.nodes[node].is_mount) {
            return Err(errno(libc::EBUSY));
        }
        if !self.same_system(from.0, to.0) {
            return Err(errno(libc::EXDEV));
        }
        if above_to.contains(&node) {
            return Err(errno(libc::EINVAL));
        }
        if replaced.is_some_and(|replaced| above_from.contains(&replaced)) {
            return Err(errno(libc::ENOTEMPTY));
        }
        if replaced == Some(node) {
            return Ok(());
        }
        let is_directory = self.kind(node) == EntryKind::Directory;
        if let Some(replaced) = replaced {
            match &self.nodes[replaced].what {
                What::Directory(_) if !is_directory => return Err(errno(libc::EISDIR)),
                What::Directory(names) if !names.is_empty() => return Err(errno(libc::ENOTEMPTY)),
                What::Directory(_) => {}
                _ if is_directory => return Err(errno(libc::ENOTDIR)),
                _ => {}
            }
        }
        let slots = vec![
            self.slot(from.0, from.1, None),
            self.slot(to.0, to.1, Some(node)),
        ];
        self.rename_slots(slots, who, moment);
        Ok(())
    }

    fn slot(&self, dir: NodeId, name: &OsStr, new: Option<NodeId>) -> Slot {
        Slot {
            dir,
            name: name.to_os_string(),
            old: self.child(dir, name),
            new,
        }
    }

    /// Changes what names stand for, all at once, and remembers that it is not safe yet.
    fn rename_slots(&mut self, slots: Vec<Slot>, who: Who, moment: Moment) {
        let concerned: Vec<NodeId> = slots
            .iter()
            .flat_map(|slot| [slot.old, slot.new])
            .flatten()
            .collect();
        let naming = Naming {
            when: moment.now,
            who,
            inodes: concerned
                .iter()
                .map(|node| (self.nodes[*node].system, self.nodes[*node].inode))
                .collect(),
            moves_directory: slots.len() > 1
                && concerned
                    .iter()
                    .any(|node| self.kind(*node) == EntryKind::Directory),
            slots,
        };
        for slot in &naming.slots {
            self.nodes[slot.dir].modified_ns = moment.stamp_ns;
            self.set_slot(slot.dir, &slot.name, slot.new);
            self.listeners.tell(slot.dir, Some(&slot.name));
        }
        for node in &concerned {
            self.nodes[*node].unsafe_namings += 1;
            self.listeners.tell(*node, None);
        }
        self.namings.push(naming);
        for node in concerned {
            self.let_go(node);
        }
        let safe = self.namings.age(moment.now);
        self.settle(safe);
    }

    pub(super) fn set_slot(&mut self, dir: NodeId, name: &OsStr, to: Option<NodeId>) {
        let key = (self.place(name), name.to_os_string());
        let What::Directory(names) = &mut self.nodes[dir].what else {
            return;
        };
        let old = match to {
            Some(node) => names.insert(key, node),
            None => names.remove(&key),
        };
        if let Some(old) = old {
            let named_in = &mut self.nodes[old].named_in;
            let is_it = |other: &(NodeId, OsString)| other.0 == dir && other.1 == name;
            if let Some(at) = named_in.iter().position(is_it) {
                named_in.swap_remove(at);
            }
        }
        if let Some(node) = to {
            self.nodes[node].named_in.push((dir, name.to_os_string()));
        }
    }

    /// Forgets namings that are safe now.
    fn settle(&mut self, safe: Vec<Naming>) {
        for slot in safe.iter().flat_map(|naming| &naming.slots) {
            for node in [slot.old, slot.new].into_iter().flatten() {
                self.nodes[node].unsafe_namings -= 1;
                self.let_go(node);
            }
        }
    }

    /// Gives back what belongs to an inode that nobody can reach any more.
    fn let_go(&mut self, id: NodeId) {
        let node = &mut self.nodes[id];
        if id == ROOT || !node.named_in.is_empty() || node.opens != [0; 2] {
            return;
        }
        if node.has_number {
            if let What::File(file) = &node.what {
                self.systems[node.system].used_bytes -= file.content.disk_bytes();
            }
            self.free_number(id);
            self.listeners.gone(id);
        }
        // Until its removal is safe a power loss can bring it back.
        let node = &mut self.nodes[id];
        if node.unsafe_namings == 0 {
            node.what = What::Gone;
        }
    }

    fn free_number(&mut self, id: NodeId) {
        let node = &mut self.nodes[id];
        node.has_number = false;
        let system = &mut self.systems[node.system];
        match system.is.inode_numbers {
            InodeNumbers::LowestFree => {
                system.free_inodes.insert(node.inode);
            }
            InodeNumbers::LastFreed => system.last_freed.push(node.inode),
            InodeNumbers::Fresh => {}
        }
    }

    pub(super) fn opened(&mut self, id: NodeId, who: Who) {
        self.nodes[id].opens[who as usize] += 1;
    }

    pub(super) fn closed(&mut self, id: NodeId, who: Who) {
        self.nodes[id].opens[who as usize] -= 1;
        self.let_go(id);
    }

    /// Closes what the daemon has open.
    pub(super) fn close_ours(&mut self) {
        for id in 0..self.nodes.len() {
            self.nodes[id].opens[Who::Ours as usize] = 0;
            self.let_go(id);
        }
    }

    pub(super) fn file(&self, id: NodeId) -> io::Result<&File> {
        match &self.nodes[id].what {
            What::File(file) => Ok(file),
            What::Directory(_) => Err(errno(libc::EISDIR)),
            _ => Err(errno(libc::EINVAL)),
        }
    }

    /// Reads as `pread` does, up to what cannot be read.
    pub(super) fn read(&self, id: NodeId, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let file = self.file(id)?;
        let end = offset + buffer.len() as u64;
        if file.bad.start >= end || offset >= file.bad.end || file.bad.is_empty() {
            return Ok(file.content.read(buffer, offset));
        }
        if offset >= file.bad.start && offset < file.content.size() {
            return Err(errno(libc::EIO));
        }
        let before = index(file.bad.start.saturating_sub(offset));
        Ok(file.content.read(&mut buffer[..before], offset))
    }

    /// Changes what cannot be read of a file.
    pub(super) fn set_bad(&mut self, id: NodeId, bad: Range<u64>) -> io::Result<()> {
        self.file(id)?;
        if let What::File(file) = &mut self.nodes[id].what {
            file.bad = bad;
        }
        Ok(())
    }

    /// Writes as much of `bytes` as there is room for: how many, if not all.
    pub(super) fn write(
        &mut self,
        id: NodeId,
        offset: u64,
        bytes: &[u8],
        who: Who,
        moment: Moment,
    ) -> io::Result<()> {
        let free = self.space(id).free;
        let node = &mut self.nodes[id];
        let What::File(file) = &mut node.what else {
            return Err(errno(libc::EINVAL));
        };
        // Never more than a block more than it is long.
        let length = bytes.len() as u64;
        let fits = if length + 2 * BLOCK <= free {
            length
        } else {
            file.content.fits(offset, length, free)
        };
        let fitting = &bytes[..index(fits)];
        if !fitting.is_empty() {
            file.unsynced.age(&file.content, moment.now);
            file.unsynced
                .write(&file.content, offset, fitting, who, moment.now);
            let before = file.content.disk_bytes();
            file.content.write(offset, fitting);
            self.systems[node.system].used_bytes += file.content.disk_bytes() - before;
            node.modified_ns = moment.stamp_ns;
            self.tell_of(id);
        }
        if fits < length {
            return Err(errno(libc::ENOSPC));
        }
        Ok(())
    }

    pub(super) fn set_len(
        &mut self,
        id: NodeId,
        length: u64,
        who: Who,
        moment: Moment,
    ) -> io::Result<()> {
        self.change(id, moment, |file| {
            file.unsynced
                .set_len(&file.content, length, who, moment.now);
            file.content.set_len(length);
        })
    }

    pub(super) fn punch(
        &mut self,
        id: NodeId,
        hole: Range<u64>,
        who: Who,
        moment: Moment,
    ) -> io::Result<()> {
        self.change(id, moment, |file| {
            file.unsynced
                .punch(&file.content, hole.clone(), who, moment.now);
            file.content.punch(hole);
        })
    }

    fn change(
        &mut self,
        id: NodeId,
        moment: Moment,
        how: impl FnOnce(&mut File),
    ) -> io::Result<()> {
        let node = &mut self.nodes[id];
        let What::File(file) = &mut node.what else {
            return Err(errno(libc::EINVAL));
        };
        file.unsynced.age(&file.content, moment.now);
        let before = file.content.disk_bytes();
        how(file);
        let system = &mut self.systems[node.system];
        system.used_bytes = system.used_bytes + file.content.disk_bytes() - before;
        node.modified_ns = moment.stamp_ns;
        self.tell_of(id);
        Ok(())
    }

    /// A sync of a file's content, or one that fails.
    pub(super) fn sync(&mut self, id: NodeId, succeeds: bool) {
        if let What::File(file) = &mut self.nodes[id].what {
            if succeeds {
                file.unsynced.synced(&file.content);
            } else {
                file.unsynced.sync_failed();
            }
        }
    }

    /// Makes the names in a directory safe, and all that they build on.
    pub(super) fn sync_dir(&mut self, dir: NodeId) {
        let safe = self
            .namings
            .commit(|naming| naming.slots.iter().any(|slot| slot.dir == dir));
        self.settle(safe);
    }
}

impl System {
    fn take_inode(&mut self) -> u64 {
        let again = match self.is.inode_numbers {
            InodeNumbers::LowestFree => self.free_inodes.pop_first(),
            InodeNumbers::LastFreed => self.last_freed.pop(),
            InodeNumbers::Fresh => None,
        };
        again.unwrap_or_else(|| {
            self.next_inode += 1;
            self.next_inode - 1
        })
    }
}
