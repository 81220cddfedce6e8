//! Being woken by what changes on the simulated disk; or not, where a test wants to see the sweep at work.
//! Place: within **sim**; the disk tells of every change, a daemon's `Wakes` hears what it watches.
//! Invariants: a wait never blocks and lets no time pass: it gives what has changed by then, or nothing. What
//! inotify merges is merged; what belongs to an earlier life of the daemon hears nothing.
//! Source: inotify(7).

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::disk::{Disk, NodeId, errno};
use super::faults::Op;
use super::rng::Rng;
use super::{Machine, State};
use crate::follow::View;
use crate::host::{Wakes, WatchId, Woken};

/// All that listen.
#[derive(Debug)]
pub(super) struct Listeners {
    all: Vec<Listener>,
    last: u64,
    /// How likely a change is told to nobody.
    pub(super) lost: f64,
    /// How many watches there may be.
    pub(super) most_watches: usize,
    rng: Rng,
}

/// One `Wakes`.
#[derive(Debug)]
struct Listener {
    id: u64,
    watches: HashMap<NodeId, Vec<WatchId>>,
    told: Woken,
}

impl Listeners {
    pub(super) fn new(rng: Rng, lost: f64) -> Self {
        Self {
            all: Vec::new(),
            last: 0,
            lost,
            most_watches: usize::MAX,
            rng,
        }
    }

    /// Something changed in a directory, under this name, or in what is watched itself.
    pub(super) fn tell(&mut self, node: NodeId, name: Option<&OsStr>) {
        self.tell_all(node, name, |told| &mut told.changed);
    }

    /// Something was written to.
    fn tell_written(&mut self, node: NodeId, name: Option<&OsStr>) {
        self.tell_all(node, name, |told| &mut told.written);
    }

    fn tell_all(
        &mut self,
        node: NodeId,
        name: Option<&OsStr>,
        which: impl Fn(&mut Woken) -> &mut BTreeSet<(WatchId, Option<OsString>)>,
    ) {
        for listener in &mut self.all {
            for watch in listener.watches.get(&node).into_iter().flatten() {
                if self.lost <= 0.0 || !self.rng.chance(self.lost) {
                    let name = name.map(OsStr::to_os_string);
                    which(&mut listener.told).insert((*watch, name));
                }
            }
        }
    }

    /// Something is no more.
    pub(super) fn gone(&mut self, node: NodeId) {
        for listener in &mut self.all {
            listener
                .told
                .gone
                .extend(listener.watches.remove(&node).into_iter().flatten());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The daemon is no more.
    pub(super) fn clear(&mut self) {
        self.all.clear();
    }

    /// More has changed than the kernel remembers.
    pub(super) fn overflow(&mut self) {
        for listener in &mut self.all {
            listener.told.changed.clear();
            listener.told.written.clear();
            listener.told.overflow = true;
        }
    }

    fn add(&mut self) -> u64 {
        self.last += 1;
        self.all.push(Listener {
            id: self.last,
            watches: HashMap::new(),
            told: Woken::default(),
        });
        self.last
    }

    fn of(&mut self, id: u64) -> Option<&mut Listener> {
        self.all.iter_mut().find(|listener| listener.id == id)
    }

    fn watches(&self) -> usize {
        self.all.iter().map(|listener| listener.watches.len()).sum()
    }
}

impl Disk {
    /// The content of a file, or what it is, has changed.
    pub(super) fn tell_of(&mut self, id: NodeId) {
        if self.listeners.is_empty() {
            return;
        }
        for (dir, name) in &self.nodes[id].named_in {
            self.listeners.tell_written(*dir, Some(name));
        }
        self.listeners.tell_written(id, None);
    }
}

impl Machine {
    pub(super) fn listen(&self) -> Arc<dyn Wakes> {
        let id = self.state().disk.listeners.add();
        Arc::new(Ear {
            machine: self.clone(),
            id,
        })
    }

    /// From now on a change is told to nobody with this probability, from 0.0 to 1.0.
    pub fn lose_wakes(&self, probability: f64) {
        self.state().disk.listeners.lost = probability;
    }

    /// Everything that was not yet heard is lost, and that is told (`Woken::overflow`).
    pub fn overflow_wakes(&self) {
        self.state().disk.listeners.overflow();
    }

    /// How many directories and files may be watched (fs.inotify.max_user_watches).
    pub fn limit_watches(&self, most: usize) {
        self.state().disk.listeners.most_watches = most;
    }
}

/// One `Wakes`, as the daemon has it.
#[derive(Debug)]
struct Ear {
    machine: Machine,
    id: u64,
}

impl Drop for Ear {
    fn drop(&mut self) {
        let mut state = self.machine.state();
        let id = self.id;
        state
            .disk
            .listeners
            .all
            .retain(|listener| listener.id != id);
    }
}

impl Wakes for Ear {
    fn watch(&self, view: &View, path: &Path) -> io::Result<WatchId> {
        let mut state = self.machine.state();
        state.meet(Op::Watch, path)?;
        let State { disk, .. } = &mut *state;
        let found = disk.find_all_in(view, path)?.nodes;
        if found.iter().any(|node| disk.stat(*node).may_hang) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let listeners = &mut disk.listeners;
        if listeners.watches() >= listeners.most_watches {
            return Err(errno(libc::ENOSPC));
        }
        listeners.last += 1;
        let watch = WatchId(listeners.last);
        let listener = listeners
            .of(self.id)
            .ok_or_else(|| io::Error::other("a handle of a process that is gone"))?;
        for node in found {
            listener.watches.entry(node).or_default().push(watch);
        }
        Ok(watch)
    }

    fn unwatch(&self, watch: WatchId) {
        if let Some(listener) = self.machine.state().disk.listeners.of(self.id) {
            listener.watches.retain(|_, watches| {
                watches.retain(|other| *other != watch);
                !watches.is_empty()
            });
        }
    }

    fn wait(&self, _timeout: Duration) -> Woken {
        let mut state = self.machine.state();
        let Some(listener) = state.disk.listeners.of(self.id) else {
            return Woken::default();
        };
        std::mem::take(&mut listener.told)
    }

    fn wake(&self) {
        if let Some(listener) = self.machine.state().disk.listeners.of(self.id) {
            listener.told.called = true;
        }
    }
}
