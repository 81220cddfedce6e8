//! One file system of the simulated machine: its device, its room, and which inode numbers it gives out.
//! Place: within **sim**; the disk has one for its root and one for each mount.
//! Invariant: a number is given to one inode at a time. Sources: ext4 and XFS give a freed number out again at once.

use std::collections::BTreeSet;

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
    next_inode: u64,
    free_inodes: BTreeSet<u64>,
    last_freed: Vec<u64>,
}

impl System {
    pub(super) fn new(is: FileSystem, device: u64) -> Self {
        Self {
            is,
            device,
            used_bytes: 0,
            next_inode: 2,
            free_inodes: BTreeSet::new(),
            last_freed: Vec::new(),
        }
    }

    /// Counts anew which numbers are free, after a reboot.
    pub(super) fn number_again(&mut self, taken: &BTreeSet<u64>) {
        let free = (2..self.next_inode).filter(|inode| !taken.contains(inode));
        match self.is.inode_numbers {
            InodeNumbers::LowestFree => self.free_inodes = free.collect(),
            InodeNumbers::LastFreed => self.last_freed = free.collect(),
            InodeNumbers::Fresh => {}
        }
    }

    pub(super) fn free_inode(&mut self, inode: u64) {
        match self.is.inode_numbers {
            InodeNumbers::LowestFree => {
                self.free_inodes.insert(inode);
            }
            InodeNumbers::LastFreed => self.last_freed.push(inode),
            InodeNumbers::Fresh => {}
        }
    }

    pub(super) fn take_inode(&mut self) -> u64 {
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
