//! Mounts that may hang: network and user-space file systems get a thread each, and only that thread waits for them.
//! Place: under the real `Host`; the walk (`open`) says where a path enters such a mount, and whatever touches it from
//! there on runs in its [`Lane`].
//! Invariants: at most one thread per mount is ever stuck (and one per chain of mounts that a path's links run through);
//! while it is, every call for that mount fails at once; what a stuck thread holds is one job and what was dropped
//! meanwhile; closing a file is done by the lane, too, because closing asks the server.

use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::stat::{major, minor};

use crate::host::{LogFile, Stat};

/// How long one call may take on a mount that may hang. A slow server is not a dead one: what it delivers late is in
/// the page cache when it is asked again.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// How long a lane keeps its thread without work.
const IDLE: Duration = Duration::from_secs(30);

/// As much as one guarded read fetches: a slice.
const MOST_AT_ONCE: usize = 256 * 1024;

/// Lanes without a thread or a file that are kept before they are cleared away.
const SPARE_LANES: usize = 64;

/// The lanes of all mounts that may hang.
#[derive(Debug)]
pub struct Lanes {
    deadline: Duration,
    lanes: Mutex<HashMap<Vec<u64>, Arc<Lane>>>,
}

impl Lanes {
    /// Lanes whose calls take at most `deadline`.
    #[must_use]
    pub fn new(deadline: Duration) -> Self {
        Self {
            deadline,
            lanes: Mutex::default(),
        }
    }

    /// The lane of a device (st_dev), or of those that one walk runs through: that has a lane of its own, so that a link
    /// from a mount that hangs cannot hold up the one that it leads to.
    #[must_use]
    pub fn of(&self, devices: &[u64]) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.len() >= SPARE_LANES && !lanes.contains_key(devices) {
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1 || lane.state().thread);
        }
        let lane = lanes.entry(devices.to_owned()).or_insert_with(|| {
            Arc::new(Lane {
                devices: devices.to_owned(),
                deadline: self.deadline,
                state: Mutex::default(),
                work: Condvar::new(),
                free: Condvar::new(),
            })
        });
        Arc::clone(lane)
    }
}

/// One mount's thread: calls for it wait their turn, and none waits longer than the deadline.
pub struct Lane {
    devices: Vec<u64>,
    deadline: Duration,
    state: Mutex<State>,
    /// Tells the thread that there is a job, or something to close.
    work: Condvar,
    /// Tells callers that the thread is free again.
    free: Condvar,
}

type Job = Box<dyn FnOnce() + Send>;

/// Where a job leaves what its caller waits for.
struct Slot<T> {
    answer: Mutex<Answer<T>>,
    told: Condvar,
}

enum Answer<T> {
    Awaited,
    Given(std::thread::Result<T>),
    /// Nobody waits any more: whatever comes is dropped where it was made.
    Unwanted,
}

impl<T> Slot<T> {
    fn put(&self, value: std::thread::Result<T>) {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*answer, Answer::Awaited) {
            *answer = Answer::Given(value);
            self.told.notify_one();
        } else {
            drop(answer);
            drop(value);
        }
    }

    fn wait(&self, give_up: Instant) -> Option<std::thread::Result<T>> {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match std::mem::replace(&mut *answer, Answer::Unwanted) {
                Answer::Given(value) => return Some(value),
                Answer::Unwanted => return None,
                Answer::Awaited => {
                    let left = give_up.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    *answer = Answer::Awaited;
                    answer = self
                        .told
                        .wait_timeout(answer, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
            }
        }
    }
}

#[derive(Default)]
struct State {
    /// A job that is not begun yet.
    job: Option<Job>,
    /// A job is waiting or being done.
    busy: bool,
    /// A caller gave up on the present job, or on waiting for its turn.
    hung: bool,
    /// The last job's.
    number: u64,
    /// A thread is there.
    thread: bool,
    /// What the thread drops when it comes to it.
    closing: Vec<Box<dyn Any + Send>>,
    /// The buffer of the last read.
    spare: Vec<u8>,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("devices", &self.devices)
            .field("hung", &self.is_hung())
            .finish_non_exhaustive()
    }
}

impl Lane {
    fn state(&self) -> MutexGuard<'_, State> {
        // Jobs run outside the lock, so a poisoned one holds a whole state all the same.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its thread is stuck.
    #[must_use]
    pub fn is_hung(&self) -> bool {
        self.state().hung
    }

    /// Does `work` on the mount's thread and waits for it, at most until the deadline.
    ///
    /// # Errors
    /// `TimedOut` when it takes longer, and at once while an earlier call is stuck; what `work` gives is dropped then,
    /// by the mount's thread. Otherwise as the thread could not be started.
    pub fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let give_up = Instant::now() + self.deadline;
        let slot = Arc::new(Slot {
            answer: Mutex::new(Answer::Awaited),
            told: Condvar::new(),
        });
        let number = self.begin(give_up, {
            let slot = Arc::clone(&slot);
            Box::new(move || slot.put(catch_unwind(AssertUnwindSafe(work))))
        })?;
        match slot.wait(give_up) {
            Some(Ok(value)) => Ok(value),
            Some(Err(_)) => Err(io::Error::other(
                "a call on a network or user-space mount broke off",
            )),
            None => {
                let mut state = self.state();
                state.hung |= state.busy && state.number == number;
                Err(self.hangs())
            }
        }
    }

    /// Hands a job to the thread when it is free; the job's number.
    fn begin(self: &Arc<Self>, give_up: Instant, job: Job) -> io::Result<u64> {
        let mut state = self.state();
        while state.busy {
            let left = give_up.saturating_duration_since(Instant::now());
            state.hung |= left.is_zero();
            if state.hung {
                return Err(self.hangs());
            }
            state = self
                .free
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        self.need_thread(&mut state)?;
        state.busy = true;
        state.number += 1;
        state.job = Some(job);
        self.work.notify_one();
        Ok(state.number)
    }

    /// Drops `thing` on the mount's thread, some time.
    pub fn close(self: &Arc<Self>, thing: Box<dyn Any + Send>) {
        let mut state = self.state();
        state.closing.push(thing);
        // Without a thread it stays until there is one: dropping it here could hang us.
        if self.need_thread(&mut state).is_ok() {
            self.work.notify_one();
        }
    }

    fn hangs(&self) -> io::Error {
        let numbers: Vec<_> = self
            .devices
            .iter()
            .map(|device| format!("{}:{}", major(*device), minor(*device)))
            .collect();
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "the network or user-space mount {} does not answer",
                numbers.join(" or ")
            ),
        )
    }

    fn need_thread(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        if !state.thread {
            let lane = Arc::clone(self);
            std::thread::Builder::new()
                .name("mount".to_owned())
                .stack_size(256 * 1024)
                .spawn(move || lane.work())?;
            state.thread = true;
        }
        Ok(())
    }

    /// The thread: it ends after a while without work.
    fn work(&self) {
        let mut state = self.state();
        loop {
            let closing = std::mem::take(&mut state.closing);
            let job = state.job.take();
            if closing.is_empty() && job.is_none() {
                let (kept, waited) = self
                    .work
                    .wait_timeout(state, IDLE)
                    .unwrap_or_else(PoisonError::into_inner);
                state = kept;
                if waited.timed_out() && state.job.is_none() && state.closing.is_empty() {
                    state.thread = false;
                    state.spare = Vec::new();
                    return;
                }
                continue;
            }
            state.busy = true;
            drop(state);
            if let Some(job) = job {
                job();
            }
            drop(closing);
            state = self.state();
            if state.job.is_none() {
                state.busy = false;
                state.hung = false;
                self.free.notify_all();
            }
        }
    }
}

/// A log file on a mount that may hang: every call runs in the mount's lane.
#[derive(Debug)]
pub struct Guarded {
    /// There until this is dropped.
    file: Option<Arc<dyn LogFile>>,
    lane: Arc<Lane>,
}

impl Guarded {
    /// Guards a file that was opened in `lane`.
    #[must_use]
    pub fn new(file: Arc<dyn LogFile>, lane: Arc<Lane>) -> Self {
        Self {
            file: Some(file),
            lane,
        }
    }

    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn LogFile) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let file = self.file.clone().ok_or(io::ErrorKind::NotFound)?;
        // The job's handle goes with the job: should this be dropped meanwhile, the lane closes the file.
        self.lane.run(move || {
            let result = work(&*file);
            drop(file);
            result
        })?
    }
}

impl LogFile for Guarded {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        // A stuck read still writes to its buffer when the mount comes back, so it has one of its own.
        let wanted = buffer.len().min(MOST_AT_ONCE);
        let mut bytes = std::mem::take(&mut self.lane.state().spare);
        let (bytes, read) = self.run(move |file| {
            bytes.resize(wanted, 0);
            let read = file.read_at(&mut bytes, offset)?;
            Ok((bytes, read))
        })?;
        let read = read.min(wanted);
        buffer[..read].copy_from_slice(&bytes[..read]);
        self.lane.state().spare = bytes;
        Ok(read)
    }

    fn stat(&self) -> io::Result<Stat> {
        self.run(|file| file.stat())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.run(move |file| file.next_data(offset))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            self.lane.close(Box::new(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_breaks_off_ends_nobody_elses() {
        let lanes = Lanes::new(Duration::from_secs(20));
        let lane = lanes.of(&[7]);
        let error = lane.run(|| panic!("broken")).map(|(): ()| ());
        assert_eq!(error.expect_err("broken").kind(), io::ErrorKind::Other);
        assert_eq!(lanes.of(&[7]).run(|| 5).expect("goes on"), 5);
        assert!(!lane.is_hung());
    }

    #[test]
    fn what_comes_too_late_is_dropped_by_the_threads_that_made_it() {
        struct Tells(std::sync::mpsc::Sender<std::thread::ThreadId>);
        impl Drop for Tells {
            fn drop(&mut self) {
                self.0.send(std::thread::current().id()).unwrap_or_default();
            }
        }
        let lane = Lanes::new(Duration::from_millis(10)).of(&[7]);
        let (dropped, by) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let late = Tells(dropped.clone());
        let result = lane.run(move || {
            wait.recv().expect("told");
            late
        });
        assert_eq!(
            result.map(drop).expect_err("late").kind(),
            io::ErrorKind::TimedOut
        );
        assert!(lane.is_hung());
        lane.close(Box::new(Tells(dropped)));
        go.send(()).expect("it waits");
        let here = std::thread::current().id();
        assert!(by.iter().take(2).all(|thread| thread != here));
    }
}
