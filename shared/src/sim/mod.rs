//! A Host from a seed: a machine whose clock is turned by hand and whose files are in memory, for tests that run the
//! real code through histories no real machine would go through twice.
//! Place: the feature `sim`, off by default; tests and the benches take a [`Machine`] where the programs take the
//! real host. `workload` writes logs on it.
//! Invariants: the same seed and the same calls give the same history, in one thread; nothing here reads a clock or
//! opens a file; what was written survives the daemon's death, what was synced survives a power loss.
//!
//! A [`Machine`] has two sides. The daemon's: [`Host`](crate::host::Host) and [`Disk`](crate::host::Disk), with
//! faults and crashes. And everybody else's (`writers`): those whose logs are read, time, and power. Those paths are
//! the host's, and `View::host_root` means nothing here.

mod clock;
mod content;
mod disk;
mod faults;
mod handles;
mod reboot;
mod rng;
mod unsynced;
mod wakes;
mod walk;
pub mod workload;
mod writers;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use disk::{FileSystem, InodeNumbers};
pub use faults::{Fault, FaultId, Op};
pub use rng::Rng;
pub use unsynced::{PowerLoss, Survival};
pub use writers::Writer;

use clock::{Clock, Moment};
use disk::Disk;
use faults::Faults;
use unsynced::Who;
use wakes::Listeners;

/// What kind of machine it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Its root file system; others are mounted ([`Machine::mount`]).
    pub root: FileSystem,
    /// How coarse times of files are; what happens within one tick has one time. 4 ms by default, as on Linux.
    pub tick: Duration,
    /// How likely a read gives less than is there, though never nothing. 0.0 by default.
    pub short_reads: f64,
    /// How likely a change is told to nobody ([`Machine::lose_wakes`]). 0.0 by default.
    pub lost_wakes: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            root: FileSystem::default(),
            tick: Duration::from_millis(4),
            short_reads: 0.0,
            lost_wakes: 0.0,
        }
    }
}

/// A simulated machine. Clones are the same machine.
#[derive(Clone)]
pub struct Machine {
    state: Arc<Mutex<State>>,
}

/// All of it.
#[derive(Debug)]
struct State {
    settings: Settings,
    clock: Clock,
    disk: Disk,
    faults: Faults,
    rng: Rng,
    /// Which life of the daemon this is: what an earlier one held is closed.
    life: u64,
    boots: u64,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}

impl Machine {
    /// A machine with default [`Settings`].
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with(seed, Settings::default())
    }

    /// A machine of some kind, with nothing on it.
    #[must_use]
    pub fn with(seed: u64, settings: Settings) -> Self {
        let mut rng = Rng::new(seed);
        let listeners = Listeners::new(rng.fork(), settings.lost_wakes);
        let state = State {
            settings,
            clock: Clock::new(rng.next_u64(), settings.tick),
            disk: Disk::new(rng.next_u64(), settings.root, listeners),
            faults: Faults::default(),
            rng,
            life: 0,
            boots: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a test that failed left half done is that test's failure.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets time pass, on both clocks.
    pub fn pass(&self, time: Duration) {
        self.state().clock.pass(time);
    }

    /// Sets the wall clock forward, or back.
    pub fn jump_wall(&self, by_ns: i64) {
        self.state().clock.jump(by_ns);
    }

    /// The daemon's process is killed: what it wrote stays, what it had open is closed, and an unfinished
    /// [`Self::crash_at`] is forgotten. Handles of its time only give errors from now on.
    pub fn kill(&self) {
        let mut state = self.state();
        state.life += 1;
        state.faults.revive();
        state.disk.listeners.clear();
        state.disk.close_ours();
    }

    /// An orderly restart: everything is written, nothing is open any more; the boot and the numbers of devices are
    /// others.
    pub fn reboot(&self) {
        let mut rng = self.state().rng.fork();
        self.boot_again(&mut rng, None);
    }

    /// The power fails, and comes back: as [`Self::reboot`], but what was not synced may be gone.
    pub fn power_loss(&self, rng: &mut Rng, loss: PowerLoss) {
        self.boot_again(rng, Some(loss));
    }

    fn boot_again(&self, rng: &mut Rng, loss: Option<PowerLoss>) {
        let mut state = self.state();
        state.life += 1;
        state.boots += 1;
        state.faults.revive();
        state.clock.boot_again();
        state.disk.reboot(rng, loss);
    }

    /// From now on the daemon's operations meet this fault.
    pub fn fail(&self, fault: Fault) -> FaultId {
        self.state().faults.add(fault)
    }

    /// Takes one fault away.
    pub fn heal(&self, fault: FaultId) {
        self.state().faults.remove(fault);
    }

    /// Takes all faults away.
    pub fn heal_all(&self) {
        self.state().faults.clear();
    }

    /// How many operations on our own files there were so far.
    #[must_use]
    pub fn own_ops(&self) -> u64 {
        self.state().faults.own_ops()
    }

    /// The daemon dies within its own file operation number `n`, counted as [`Self::own_ops`] counts: that one, and
    /// all after it, fail with `Other`. A write is torn there.
    pub fn crash_at(&self, n: u64) {
        self.state().faults.crash_at(n);
    }

    /// Whether it has come to that.
    #[must_use]
    pub fn has_crashed(&self) -> bool {
        self.state().faults.has_crashed()
    }

    /// Lets own file operations succeed again. [`Self::kill`] and the reboots do so, too.
    pub fn revive(&self) {
        self.state().faults.revive();
    }

    /// Makes the empty directory `dir` the root of a file system of its own; the directory is made where it is not.
    ///
    /// # Errors
    /// As Linux gives them; `DirectoryNotEmpty`.
    pub fn mount(&self, dir: impl AsRef<Path>, is: FileSystem) -> std::io::Result<()> {
        self.make_dir(&dir)?;
        let mut state = self.state();
        let node = state
            .disk
            .walk(dir.as_ref(), walk::Links::Follow)?
            .found()?;
        if !state.disk.is_empty(node) {
            return Err(disk::errno(libc::ENOTEMPTY));
        }
        state.disk.mount(node, is);
        Ok(())
    }

    /// Leaves `free` bytes on the file system that `dir` lies on, for everybody.
    ///
    /// # Errors
    /// Where `dir` is not there.
    pub fn set_free(&self, dir: impl AsRef<Path>, free: u64) -> std::io::Result<()> {
        let mut state = self.state();
        let node = state
            .disk
            .walk(dir.as_ref(), walk::Links::Follow)?
            .found()?;
        state.disk.set_free(node, free);
        Ok(())
    }
}

impl State {
    fn moment(&self) -> Moment {
        self.clock.moment()
    }
}
