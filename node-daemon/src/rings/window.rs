//! A file that only a shim can open, as the pipeline reads it: from the bytes that came through the ring.
//! Place: the drain thread fills it, workers read it as any other `LogFile`.
//! Invariants: a window is one run of the file's bytes without a gap, copied out of the ring; bytes that are not in a
//! window are asked for, never waited for: the read gives 0 or `WouldBlock`, and a change is told when they have come;
//! every byte here is counted in the memory budget; what nobody needs any more is dropped.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ringpilot_shared::follow::StreamKey;
use ringpilot_shared::host::{LogFile, Stat};

use super::Shared;
use crate::pipeline::Need;

/// A shim may send so much beyond what a flow has read: two slices.
const AHEAD: u64 = 512 * 1024;
/// The same for a group or a line that is longer: a group's bound, a line's, and a slice.
const AHEAD_MOST: u64 = 3 * 1024 * 1024;
/// A lane is granted more when so much of its room is free.
const GRANT_STEP: u64 = 128 * 1024;
/// A window that was read within so long is not taken for one whose output is stuck.
const BUSY: Duration = Duration::from_millis(500);

/// One file of a pod.
#[derive(Debug)]
pub(super) struct RingFile {
    shared: Arc<Shared>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Which life of the file this is now.
    stream: StreamKey,
    stat: Stat,
    windows: Vec<Window>,
    /// Where reads found nothing.
    missed: Vec<u64>,
    /// The drain thread was asked to look at it and has not yet.
    asked: bool,
}

#[derive(Debug)]
struct Window {
    start: u64,
    bytes: VecDeque<u8>,
    /// Who fills it; none when it was taken back.
    lane: Option<u32>,
    limit: u64,
    ahead: u64,
    /// How far it was read by whoever read furthest.
    read_to: u64,
    read_at: Instant,
    counted: Counted,
}

/// Bytes counted in the memory budget and in what all rings hold.
#[derive(Debug)]
struct Counted {
    bytes: usize,
    in_budget: Arc<AtomicUsize>,
    in_rings: Arc<AtomicUsize>,
}

impl Counted {
    fn set(&mut self, bytes: usize) {
        for counter in [&self.in_budget, &self.in_rings] {
            if bytes >= self.bytes {
                counter.fetch_add(bytes - self.bytes, Ordering::Relaxed);
            } else {
                counter.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            }
        }
        self.bytes = bytes;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Window {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
    /// Whether a reader at `at` reads here, or waits here for more.
    fn serves(&self, at: u64) -> bool {
        self.start <= at && at <= self.end()
    }
    fn holds(&self, at: u64) -> bool {
        self.start <= at && at < self.end()
    }
    fn cut_before(&mut self, at: u64) {
        let n = usize::try_from(at - self.start).unwrap_or(usize::MAX);
        let n = n.min(self.bytes.len());
        self.bytes.drain(..n);
        self.start += n as u64;
        self.counted.set(self.bytes.len());
    }
}

/// What the daemon is to tell the shim after a look at a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Take this lane back.
    Stop(u32),
    /// The lane may go on up to there.
    Grant(u32, u64),
    /// A new lane from there on, up to there: its number is to be told to [`RingFile::begun`].
    Begin(u64, u64),
}

/// Why bytes of a lane were not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The lane was taken back: they were on their way.
    Stale,
    /// They go beyond what was granted.
    BeyondLimit,
}

impl RingFile {
    pub(super) fn new(shared: Arc<Shared>, stream: StreamKey, stat: Stat) -> Arc<Self> {
        Arc::new(Self {
            shared,
            inner: Mutex::new(Inner {
                stream,
                stat: whole(stat),
                windows: Vec::new(),
                missed: Vec::new(),
                asked: false,
            }),
        })
    }

    /// The file's latest stat.
    pub(super) fn now(&self) -> Stat {
        self.inner.lock().stat
    }

    /// The shim has looked at the file.
    pub(super) fn set(&self, stat: Stat) -> Stat {
        let mut inner = self.inner.lock();
        inner.stat = whole(stat);
        inner.stat
    }

    /// The file begins anew: nothing of its old life is left here.
    pub(super) fn begin_anew(&self, stream: StreamKey, stat: Stat) {
        let mut inner = self.inner.lock();
        inner.windows.clear();
        (inner.stream, inner.stat) = (stream, whole(stat));
    }

    /// Takes a lane's bytes; what the file is now.
    pub(super) fn append(
        &self,
        lane: u32,
        offset: u64,
        bytes: &[u8],
        size: u64,
    ) -> Result<Stat, Refused> {
        let mut inner = self.inner.lock();
        let window = inner.windows.iter_mut().find(|w| w.lane == Some(lane));
        let window = window
            .filter(|window| window.end() == offset)
            .ok_or(Refused::Stale)?;
        if offset + bytes.len() as u64 > window.limit {
            return Err(Refused::BeyondLimit);
        }
        window.bytes.extend(bytes);
        window.counted.set(window.bytes.len());
        let end = window.end();
        inner.stat.size = inner.stat.size.max(size).max(end);
        inner.stat.disk_bytes = inner.stat.size;
        Ok(inner.stat)
    }

    /// Every lane is gone with its ring; what has come stays.
    pub(super) fn unlink(&self) {
        for window in &mut self.inner.lock().windows {
            window.lane = None;
        }
    }

    /// Drops what nobody needs and says what is to be asked for. `linked`: whether a shim could be asked.
    pub(super) fn service(&self, needs: &[Need], linked: bool) -> Vec<Order> {
        let mut inner = self.inner.lock();
        inner.asked = false;
        let size = inner.stat.size;
        let mut orders = Vec::new();
        inner.windows.retain_mut(|window| {
            let served = || needs.iter().filter(|need| window.serves(need.from));
            let Some(from) = served().map(|need| need.from).min() else {
                orders.extend(window.lane.map(Order::Stop));
                return false;
            };
            let read = served().map(|need| need.read).max().unwrap_or(from);
            // Who is far behind the others here reads again, in a lane of its own, when its output takes more.
            let near = served().filter(|need| need.read + AHEAD_MOST / 2 >= read);
            window.cut_before(near.map(|need| need.from).min().unwrap_or(from));
            let (Some(lane), end) = (window.lane, window.end()) else {
                return true;
            };
            // A line or a group that is longer than what was granted: read to the end, and nothing came of it.
            if end == window.limit && end < size && window.limit >= read + window.ahead {
                window.ahead = (window.ahead * 2).min(AHEAD_MOST);
            } else if read + AHEAD > window.limit {
                window.ahead = AHEAD;
            }
            let limit = read + window.ahead;
            if limit >= window.limit + GRANT_STEP {
                window.limit = limit;
                orders.push(Order::Grant(lane, limit));
            }
            true
        });
        // A lane that has come to where another began is needed no longer.
        for n in 0..inner.windows.len() {
            let (end, lane) = (inner.windows[n].end(), inner.windows[n].lane);
            let meets = |(m, other): (usize, &Window)| m != n && other.holds(end);
            if let Some(lane) = lane
                && inner.windows.iter().enumerate().any(meets)
            {
                inner.windows[n].lane = None;
                orders.push(Order::Stop(lane));
            }
        }
        let mut missed = std::mem::take(&mut inner.missed);
        missed.sort_unstable();
        missed.dedup();
        for at in missed {
            let comes =
                |window: &Window| window.holds(at) || (window.lane.is_some() && window.serves(at));
            if linked && at < size && !inner.windows.iter().any(comes) {
                orders.push(Order::Begin(at, at + AHEAD));
            }
        }
        orders
    }

    /// A lane was given, as [`Order::Begin`] wanted.
    pub(super) fn begun(&self, lane: u32, start: u64, limit: u64) {
        let counted = Counted {
            bytes: 0,
            in_budget: Arc::clone(&self.shared.budget),
            in_rings: Arc::clone(&self.shared.held),
        };
        let mut inner = self.inner.lock();
        let ended = |window: &&mut Window| window.lane.is_none() && window.end() == start;
        if let Some(window) = inner.windows.iter_mut().find(ended) {
            // What ended here without a lane is continued by this one.
            (window.lane, window.limit) = (Some(lane), limit);
            return;
        }
        inner.windows.push(Window {
            start,
            bytes: VecDeque::new(),
            lane: Some(lane),
            limit,
            ahead: AHEAD,
            read_to: start,
            read_at: Instant::now(),
            counted,
        });
    }

    /// Drops the window that was not read for longest, if its output seems to be stuck; what it held, since when, and
    /// its lane.
    pub(super) fn stuck(&self) -> Option<(usize, Instant)> {
        let inner = self.inner.lock();
        let quiet = inner
            .windows
            .iter()
            .filter(|window| window.bytes.len() > 64 * 1024 && window.read_at.elapsed() > BUSY);
        let oldest = quiet.min_by_key(|window| window.read_at)?;
        Some((oldest.bytes.len(), oldest.read_at))
    }

    /// Drops that window; its lane.
    pub(super) fn evict(&self, read_at: Instant) -> Option<u32> {
        let mut inner = self.inner.lock();
        let at = inner.windows.iter().position(|w| w.read_at == read_at)?;
        inner.windows.swap_remove(at).lane
    }

    /// Whether any of these readers has something to read here, or stands at the end.
    pub(super) fn has_for_one(&self, needs: &[Need]) -> bool {
        let inner = self.inner.lock();
        let here = |window: &Window, at: u64| {
            let rest = usize::try_from(at - window.start).unwrap_or(usize::MAX);
            let mut rest = window.bytes.iter().skip(rest);
            // A line whose end will not come, and that was looked at, is nothing to read.
            window.read_to < window.end() || rest.any(|byte| *byte == b'\n')
        };
        needs.iter().any(|need| {
            let mut windows = inner.windows.iter().filter(|w| w.holds(need.read));
            need.read >= inner.stat.size || windows.any(|window| here(window, need.read))
        })
    }

    /// Whether nothing but what is here is missing to anyone.
    pub(super) fn has_all(&self, needs: &[Need]) -> bool {
        let inner = self.inner.lock();
        let size = inner.stat.size;
        let all = |need: &Need| {
            need.read >= size
                || inner
                    .windows
                    .iter()
                    .any(|window| window.holds(need.from) && window.end() >= size)
        };
        needs.iter().all(all)
    }

    /// What is here of the life that ends, as the file that the rest is read from.
    pub(super) fn rest(&self) -> Arc<Self> {
        let mut inner = self.inner.lock();
        let mut windows = std::mem::take(&mut inner.windows);
        for window in &mut windows {
            window.lane = None;
        }
        Arc::new(Self {
            shared: Arc::clone(&self.shared),
            inner: Mutex::new(Inner {
                stream: inner.stream,
                stat: inner.stat,
                windows,
                missed: Vec::new(),
                asked: false,
            }),
        })
    }

    /// Bytes in memory.
    pub(super) fn held(&self) -> usize {
        let inner = self.inner.lock();
        inner.windows.iter().map(|window| window.bytes.len()).sum()
    }

    /// Gives memory back that a burst has left behind.
    pub(super) fn shrink(&self) {
        for window in &mut self.inner.lock().windows {
            if window.bytes.capacity() > 64 * 1024 && window.bytes.len() < 4 * 1024 {
                window.bytes.shrink_to_fit();
            }
        }
    }
}

/// Holes cannot be seen from here: what the shim reads as zeros comes as zeros.
fn whole(stat: Stat) -> Stat {
    let size = stat.size.min(i64::MAX as u64);
    Stat {
        size,
        disk_bytes: size,
        may_hang: false,
        ..stat
    }
}

impl LogFile for RingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let size = inner.stat.size;
        let mut asks = false;
        let mut result = Ok(0);
        if let Some(window) = inner.windows.iter_mut().find(|w| w.holds(offset)) {
            let at = usize::try_from(offset - window.start).unwrap_or(usize::MAX);
            let n = buffer.len().min(window.bytes.len() - at);
            let (first, second) = window.bytes.as_slices();
            let from_first = first.len().saturating_sub(at).min(n);
            if from_first > 0 {
                buffer[..from_first].copy_from_slice(&first[at..at + from_first]);
            }
            if from_first < n {
                let from = (at + from_first) - first.len();
                buffer[from_first..n].copy_from_slice(&second[from..from + n - from_first]);
            }
            window.read_to = window.read_to.max(offset + n as u64);
            window.read_at = Instant::now();
            asks = window.lane.is_some() && offset + n as u64 + AHEAD / 2 >= window.limit;
            result = Ok(n);
        } else if offset < size {
            let ends = |window: &&Window| window.end() == offset;
            let end = inner.windows.iter().find(ends);
            let comes = end.is_some_and(|window| window.lane.is_some());
            let is_full = end.is_some_and(|window| window.end() >= window.limit);
            asks = !comes || is_full;
            if !comes {
                inner.missed.push(offset);
            }
            if end.is_none() {
                result = Err(io::Error::from(io::ErrorKind::WouldBlock));
            }
        }
        if asks && !inner.asked {
            inner.asked = true;
            self.shared.ask(inner.stream);
        }
        result
    }

    fn stat(&self) -> io::Result<Stat> {
        Ok(self.now())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok((offset < self.inner.lock().stat.size).then_some(offset))
    }

    fn has_arrived(&self, offset: u64) -> bool {
        let inner = self.inner.lock();
        inner.windows.iter().any(|window| window.holds(offset))
    }
}
