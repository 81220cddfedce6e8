//! The disk over a reboot: what is left, and what is numbered anew.
//! Place: within **sim**; `unsynced` says what a power loss took, here it is taken.
//! Invariants: afterwards nothing is open and everything is safe; what cannot be reached from the root is gone; an
//! inode number is one file's.

use std::collections::BTreeSet;

use super::disk::{Disk, FIRST_DEVICE, InodeNumbers, ROOT, What};
use super::rng::Rng;
use super::unsynced::{Namings, PowerLoss};

impl Disk {
    /// The machine stops and starts: nothing is open any more, and devices are numbered anew. With `loss` the power
    /// failed, else everything was written.
    pub(super) fn reboot(&mut self, rng: &mut Rng, loss: Option<PowerLoss>) {
        self.listeners.clear();
        match loss {
            Some(loss) => {
                for naming in self.namings.lose(rng, loss) {
                    for slot in naming.slots.iter().rev() {
                        self.set_slot(slot.dir, &slot.name, slot.old);
                    }
                }
            }
            None => self.namings = Namings::default(),
        }
        let reached = self.reached();
        for system in &mut self.systems {
            system.used_bytes = 0;
        }
        for (id, reached) in reached.into_iter().enumerate() {
            let node = &mut self.nodes[id];
            node.opens = [0; 2];
            node.unsafe_namings = 0;
            if !reached {
                node.what = What::Gone;
                continue;
            }
            if let What::File(file) = &mut node.what {
                match loss {
                    Some(loss) => file.content = file.unsynced.lose(&file.content, rng, loss),
                    None => file.unsynced.synced_all(&file.content),
                }
                self.systems[node.system].used_bytes += file.content.disk_bytes();
            }
        }
        self.number_again();
        // Often the numbers of others: the order in which disks are found changes.
        let mut devices: Vec<u64> = (0..=self.systems.len() as u64)
            .map(|n| FIRST_DEVICE + n)
            .collect();
        rng.shuffle(&mut devices);
        for (system, device) in self.systems.iter_mut().zip(devices) {
            system.device = device;
        }
    }

    /// Which inodes have a way to them from the root; what names them is written down anew.
    fn reached(&mut self) -> Vec<bool> {
        let mut named_in = vec![Vec::new(); self.nodes.len()];
        let mut ahead = vec![ROOT];
        while let Some(dir) = ahead.pop() {
            if let What::Directory(names) = &self.nodes[dir].what {
                for ((_, name), node) in names {
                    if named_in[*node].is_empty() {
                        ahead.push(*node);
                    }
                    named_in[*node].push((dir, name.clone()));
                }
            }
        }
        let mut reached = Vec::with_capacity(named_in.len());
        for (node, named_in) in self.nodes.iter_mut().zip(named_in) {
            reached.push(!named_in.is_empty());
            node.named_in = named_in;
        }
        reached[ROOT] = true;
        reached
    }

    /// Finds out which inode numbers are free.
    fn number_again(&mut self) {
        let mut taken = vec![BTreeSet::new(); self.systems.len()];
        for node in &mut self.nodes {
            node.has_number = !matches!(node.what, What::Gone);
            if node.has_number {
                taken[node.system].insert(node.inode);
            }
        }
        for (system, taken) in self.systems.iter_mut().zip(taken) {
            let free = (2..system.next_inode).filter(|inode| !taken.contains(inode));
            match system.is.inode_numbers {
                InodeNumbers::LowestFree => system.free_inodes = free.collect(),
                InodeNumbers::LastFreed => system.last_freed = free.collect(),
                InodeNumbers::Fresh => {}
            }
        }
    }
}
