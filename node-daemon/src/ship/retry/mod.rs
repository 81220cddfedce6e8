//! When a batch is sent, and when again: one output's loads between the workers and its transport.
//! Place: batch -> **retry** -> an [`Output`]'s attempt -> ack. A state machine: it is told the time and asked what to
//! send; whoever sends tells it the verdict.
//! Invariants: a target that refuses holds back no other target of its output, and no output another; what was not
//! answered for is sent again for ever; for an ordered output one load of a target is in flight; what is dropped from
//! memory is the newest, so that its flows read it again from there.

mod fates;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::{Fate, Load, Output, Verdict};
use crate::batch::{Batch, Chunk, Day, SpanOf};
use crate::ledger::Tally;
use crate::settings::OutputSettings;
use fates::{halves, settle_all, settle_each};

/// Between two words on an output in the log, at least.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Requests answered without trouble until one more may be in flight.
const STEP_UP_AFTER: f64 = 8.0;

/// One output's loads.
#[derive(Debug)]
pub struct Shipper {
    /// The output's name.
    pub name: Arc<str>,
    /// Its type.
    pub kind: String,
    /// Where loads go.
    pub output: Arc<dyn Output>,
    /// Encoded bytes it may hold.
    pub share: usize,
    /// Encoded bytes it holds.
    pub held: usize,
    /// What it has done so far.
    pub counts: Counts,
    /// A flow waits for room: what is gathered is sent at once.
    pub hungry: bool,
    /// No more will come: what is gathered is sent at once.
    pub flushing: bool,
    /// Its index or path is named by the day: one day a batch.
    pub dated: bool,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// The configuration has it no more.
    pub removed: bool,
    /// Nothing is sent for the moment.
    pub is_held_back: bool,
    batch_bytes: usize,
    batch_wait: Duration,
    min_backoff: Duration,
    max_backoff: Duration,
    most_in_flight: f64,
    /// How many requests may be in flight (additive increase, multiplicative decrease).
    allowed: f64,
    targets: BTreeMap<Arc<str>, Target>,
    /// Targets in whose turn it is.
    turns: VecDeque<Arc<str>>,
    in_flight: HashMap<u64, (Arc<str>, Load)>,
    next_number: u64,
    next_batch: u64,
    pause: Pause,
    /// What the log says is wrong.
    told: Option<Arc<str>>,
    /// When the log last said anything.
    told_at: Option<Duration>,
    random: u64,
}

/// What an output has done since the start.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Counts {
    /// Attempts by how they ended: `ok`, `partial`, `failed`, `too_large`.
    pub requests: BTreeMap<&'static str, u64>,
    /// Loads sent again.
    pub retries: u64,
    /// Records that became dead letters, by the class of their refusal; at most [`REASONS`] classes.
    pub dead_letters: BTreeMap<Arc<str>, u64>,
    /// Why it is not going well now, in an operator's words; none when the last attempt went well.
    pub trouble: Option<Arc<str>>,
    /// The last trouble there was.
    pub last_trouble: Option<Arc<str>>,
}

/// A server may name any class: so many are counted by name, the rest as `other`.
pub const REASONS: usize = 32;

impl Counts {
    /// Counts one dead letter.
    pub fn dead_letter(&mut self, reason: &Arc<str>) {
        let is_counted =
            self.dead_letters.contains_key(reason) || self.dead_letters.len() < REASONS;
        let class = if is_counted {
            Arc::clone(reason)
        } else {
            "other".into()
        };
        *self.dead_letters.entry(class).or_default() += 1;
    }
}

#[derive(Debug, Default)]
struct Target {
    open: Option<Open>,
    /// Sent before and to be sent again, then never sent; in order.
    queue: VecDeque<Load>,
    in_flight: usize,
    held: usize,
    pause: Pause,
}

#[derive(Debug)]
struct Open {
    day: Day,
    since: Duration,
    chunks: Vec<Arc<Chunk>>,
    spans: Vec<SpanOf>,
    records: usize,
    bytes: usize,
}

/// A pause before the next try.
#[derive(Debug, Default)]
struct Pause {
    until: Duration,
    /// How long the last was at most; zero when all goes well.
    last: Duration,
    cause: Option<Arc<str>>,
}

/// A load on its way.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Its number, to be given back with the verdict.
    pub number: u64,
    /// What to send.
    pub load: Load,
}

/// What became of some records of one span.
#[derive(Debug, Clone)]
pub struct Settled {
    /// Whose.
    pub span: SpanOf,
    /// How many records.
    pub records: u32,
    /// Their source bytes, lines and records.
    pub tally: Tally,
    /// Their fate.
    pub end: End,
}

/// A fate that is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The output has them.
    Delivered,
    /// The output had them already.
    Duplicate,
}

/// A record that an output refused for good.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The batch it was in.
    pub batch: Arc<Batch>,
    /// Its number in the batch.
    pub record: u32,
    /// The class.
    pub reason: Arc<str>,
    /// The server's words.
    pub detail: Arc<str>,
}

/// What a verdict led to.
#[derive(Debug, Default)]
pub struct Finished {
    /// What is settled.
    pub settled: Vec<Settled>,
    /// What must become a dead letter before it is settled.
    pub refused: Vec<Refusal>,
    /// Flows whose spans from this number on are no longer in memory: they read again from there.
    pub dropped: Vec<SpanOf>,
}

impl Shipper {
    /// One output's empty queue.
    pub fn new(
        settings: &OutputSettings,
        batch_wait: Duration,
        output: Arc<dyn Output>,
        share: usize,
        seed: u64,
    ) -> Self {
        let concurrency = settings.concurrency.max(1) as f64;
        let mut shipper = Self {
            name: settings.name.as_str().into(),
            kind: settings.kind.clone(),
            output,
            share,
            held: 0,
            counts: Counts::default(),
            hungry: false,
            flushing: false,
            dated: true,
            timeout: settings.timeout,
            removed: false,
            is_held_back: false,
            batch_bytes: 0,
            batch_wait: settings.batch_wait.unwrap_or(batch_wait),
            min_backoff: settings.retry.min_backoff,
            max_backoff: settings.retry.max_backoff,
            most_in_flight: concurrency,
            allowed: concurrency,
            targets: BTreeMap::new(),
            turns: VecDeque::new(),
            in_flight: HashMap::new(),
            next_number: 0,
            next_batch: 0,
            pause: Pause::default(),
            told: None,
            told_at: None,
            random: seed | 1,
        };
        shipper.change(settings, batch_wait, share);
        shipper
    }

    /// Takes other manners; what is gathered and on its way stays.
    pub fn change(&mut self, settings: &OutputSettings, batch_wait: Duration, share: usize) {
        self.share = share;
        self.timeout = settings.timeout;
        let largest = self.output.largest_batch().unwrap_or(u64::MAX);
        let largest = usize::try_from(largest).unwrap_or(usize::MAX);
        // A batch must fit well into what may be held, or nothing would ever be full.
        self.batch_bytes = settings.batch_bytes.min(share / 8).min(largest).max(1);
        self.batch_wait = settings.batch_wait.unwrap_or(batch_wait);
        self.min_backoff = settings.retry.min_backoff;
        self.max_backoff = settings.retry.max_backoff;
        self.most_in_flight = settings.concurrency.max(1) as f64;
        self.allowed = self.allowed.min(self.most_in_flight);
    }

    /// Forgets every pause: where loads go has changed.
    pub fn forgive(&mut self) {
        self.pause = Pause::default();
        self.counts.trouble = None;
        self.allowed = self.most_in_flight;
        for target in self.targets.values_mut() {
            target.pause = Pause::default();
        }
    }

    /// Whether no load is on its way.
    #[must_use]
    pub fn nothing_in_flight(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Takes everything out of memory that is not on its way; the first span of each flow that goes.
    pub fn drop_all(&mut self) -> Vec<SpanOf> {
        let mut dropped: BTreeMap<u64, u64> = BTreeMap::new();
        for target in self.targets.values_mut() {
            let mut spans: Vec<SpanOf> = Vec::new();
            for load in target.queue.drain(..) {
                spans.extend(&load.batch.spans);
            }
            spans.extend(target.open.take().into_iter().flat_map(|open| open.spans));
            for span in spans {
                let first = dropped.entry(span.source).or_insert(span.span);
                *first = (*first).min(span.span);
            }
            target.held = 0;
        }
        self.held = 0;
        for (name, load) in self.in_flight.values() {
            let bytes: usize = load.batch.chunks.iter().map(|c| c.bytes.len()).sum();
            self.held += bytes;
            if let Some(target) = self.targets.get_mut(name) {
                target.held += bytes;
            }
        }
        let spans = dropped.into_iter();
        spans
            .map(|(source, span)| SpanOf { source, span })
            .collect()
    }

    /// Whether one more slice for this target may be read.
    #[must_use]
    pub fn has_room(&self, target: &str) -> bool {
        let held = self.targets.get(target).map_or(0, |target| target.held);
        self.held < self.share && held < self.share / 4
    }

    /// Takes the chunks of a flow's span, one a day. An output that is not dated gets them in one batch, so that the
    /// span is there whole or not at all.
    pub fn push(&mut self, name: &Arc<str>, chunks: &[Arc<Chunk>], span: SpanOf, now: Duration) {
        if chunks.is_empty() {
            return;
        }
        let next_batch = &mut self.next_batch;
        let target = self.targets.entry(Arc::clone(name)).or_insert_with(|| {
            self.turns.push_back(Arc::clone(name));
            Target::default()
        });
        let together = if self.dated { 1 } else { chunks.len() };
        for chunks in chunks.chunks(together) {
            let bytes: usize = chunks.iter().map(|chunk| chunk.bytes.len()).sum();
            let day = chunks[0].day;
            let does_not_fit = target.open.as_ref().is_some_and(|open| {
                (self.dated && open.day != day) || open.bytes + bytes > self.batch_bytes
            });
            if does_not_fit {
                target.seal(name, next_batch);
            }
            let open = target.open.get_or_insert_with(|| Open {
                day,
                since: now,
                chunks: Vec::new(),
                spans: Vec::new(),
                records: 0,
                bytes: 0,
            });
            for chunk in chunks {
                open.records += chunk.records.len();
                open.chunks.push(Arc::clone(chunk));
                open.spans.push(span);
            }
            open.bytes += bytes;
            target.held += bytes;
            self.held += bytes;
            if open.bytes >= self.batch_bytes {
                target.seal(name, next_batch);
            }
        }
    }

    /// The next load to send now, if any.
    pub fn next(&mut self, now: Duration) -> Option<Attempt> {
        if self.is_held_back
            || self.removed
            || self.in_flight.len() >= self.allowed as usize
            || (self.pause.last > Duration::ZERO
                && (now < self.pause.until || !self.in_flight.is_empty()))
        {
            return None;
        }
        let at_once = self.hungry || self.flushing;
        for _ in 0..self.turns.len() {
            self.turns.rotate_left(1);
            let Some(name) = self.turns.back().map(Arc::clone) else {
                break;
            };
            let Some(target) = self.targets.get_mut(&name) else {
                continue;
            };
            let is_paused = target.pause.last > Duration::ZERO
                && (now < target.pause.until || target.in_flight > 0);
            if is_paused || (self.output.ordered() && target.in_flight > 0) {
                continue;
            }
            let is_due = target
                .open
                .as_ref()
                .is_some_and(|open| at_once || now >= open.since + self.batch_wait);
            if target.queue.is_empty() && is_due {
                target.seal(&name, &mut self.next_batch);
            }
            let Some(load) = target.queue.pop_front() else {
                continue;
            };
            target.in_flight += 1;
            let number = self.next_number;
            self.next_number += 1;
            self.in_flight.insert(number, (name, load.clone()));
            return Some(Attempt { number, load });
        }
        None
    }

    /// When [`Shipper::next`] may have something that it has not now.
    #[must_use]
    pub fn wakes_at(&self) -> Option<Duration> {
        let paused = |pause: &Pause| (pause.last > Duration::ZERO).then_some(pause.until);
        if self.is_held_back
            || self.removed
            || self.in_flight.len() >= self.allowed as usize
            || (self.pause.last > Duration::ZERO && !self.in_flight.is_empty())
        {
            // An answer comes first.
            return None;
        }
        let mut at: Option<Duration> = None;
        for target in self.targets.values() {
            let waits = self.output.ordered() || target.pause.last > Duration::ZERO;
            if waits && target.in_flight > 0 {
                continue;
            }
            let due = match (&target.open, target.queue.is_empty()) {
                (_, false) => Some(Duration::ZERO),
                (Some(open), true) => Some(open.since + self.batch_wait),
                (None, true) => None,
            };
            let due = due.map(|due| due.max(paused(&target.pause).unwrap_or_default()));
            at = match (at, due) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        at.map(|at| at.max(paused(&self.pause).unwrap_or_default()))
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held == 0 && self.in_flight.is_empty()
    }

    /// Whether this target refuses at the moment, and why.
    #[must_use]
    pub fn trouble_of(&self, target: &str) -> Option<Arc<str>> {
        let own = self.targets.get(target).and_then(|t| t.pause.cause.clone());
        own.or_else(|| self.pause.cause.clone())
    }

    /// Takes the verdict on an attempt.
    pub fn finish(&mut self, number: u64, verdict: Verdict, now: Duration) -> Finished {
        let mut finished = Finished::default();
        let Some((name, load)) = self.in_flight.remove(&number) else {
            return finished;
        };
        let Some(target) = self.targets.get_mut(&name) else {
            return finished;
        };
        target.in_flight -= 1;
        let mut again = Vec::new();
        let mut cause: Option<Arc<str>> = None;
        let ended = match verdict {
            Verdict::All(Fate::Delivered) => {
                settle_all(&load, End::Delivered, &mut finished.settled);
                "ok"
            }
            Verdict::All(Fate::Duplicate) => {
                settle_all(&load, End::Duplicate, &mut finished.settled);
                "ok"
            }
            Verdict::All(fate) => {
                let fates = vec![fate; load.len()];
                settle_each(&load, &fates, &mut finished, &mut again, &mut cause);
                "partial"
            }
            Verdict::Each(fates) => {
                settle_each(&load, &fates, &mut finished, &mut again, &mut cause);
                if again.is_empty() { "ok" } else { "partial" }
            }
            Verdict::Failed { cause: why } => {
                self.note_trouble(now, Some(&why));
                self.pause_output(now, why);
                *self.counts.requests.entry("failed").or_default() += 1;
                self.put_back(&name, vec![load]);
                return finished;
            }
            // It cannot be made smaller: its own fault, and for good.
            Verdict::TooLarge if load.len() <= 1 => {
                let fates = vec![
                    Fate::Refused {
                        reason: "too_large".into(),
                        detail: "the output takes no request of the size of this one record".into(),
                    };
                    load.len()
                ];
                settle_each(&load, &fates, &mut finished, &mut again, &mut cause);
                "too_large"
            }
            Verdict::TooLarge => {
                let halves = halves(&load);
                *self.counts.requests.entry("too_large").or_default() += 1;
                self.put_back(&name, halves);
                return finished;
            }
        };
        *self.counts.requests.entry(ended).or_default() += 1;
        self.pause = Pause::default();
        // Whether what was refused can be written down is not known yet: `letters_kept` or `refuse_again` follows.
        if again.is_empty() && finished.refused.is_empty() {
            self.note_trouble(now, None);
        }
        if again.is_empty() {
            self.allowed = (self.allowed + 1.0 / STEP_UP_AFTER).min(self.most_in_flight);
            self.let_go(&name, &load);
            if let Some(target) = self.targets.get_mut(&name)
                && finished.refused.is_empty()
            {
                target.pause = Pause::default();
            }
        } else {
            self.allowed = (self.allowed / 2.0).max(1.0);
            let cause = cause.unwrap_or_else(|| "the output did not say why".into());
            self.note_trouble(now, Some(&cause));
            self.counts.last_trouble = Some(Arc::clone(&cause));
            let random = self.random();
            if let Some(target) = self.targets.get_mut(&name) {
                // Some were taken: the target is slow, not closed.
                if again.len() < load.len() {
                    target.pause.last = Duration::ZERO;
                }
                target
                    .pause
                    .grow(now, self.min_backoff, self.max_backoff, random, cause);
            }
            let rest = Load {
                records: Some(again.into()),
                ..load
            };
            self.put_back(&name, vec![rest]);
            self.shed(&name, &mut finished);
        }
        finished
    }

    /// Notes what is wrong, or that all is well again, and says so in the log: not each try, and not each flap.
    fn note_trouble(&mut self, now: Duration, cause: Option<&Arc<str>>) {
        let may_tell = self.told_at.is_none_or(|at| now >= at + TELL_EVERY);
        match (cause, &self.told) {
            (Some(cause), told) if told.as_ref() != Some(cause) && may_tell => {
                tracing::warn!(
                    "output `{}`: {cause}; it is tried again by itself",
                    self.name
                );
                self.told = Some(Arc::clone(cause));
                self.told_at = Some(now);
            }
            (None, Some(_)) if may_tell => {
                tracing::info!("output `{}` takes records again", self.name);
                self.told = None;
                self.told_at = Some(now);
            }
            _ => {}
        }
        self.counts.trouble = cause.cloned();
    }

    /// Refused records of one load are dead letters now: all of it is settled.
    pub fn letters_kept(&mut self, refused: &[Refusal], now: Duration) {
        let Some(first) = refused.first() else {
            return;
        };
        // Another part of the batch may still have to be sent again: that says itself what is wrong.
        if self.is_held(&first.batch.target, first.batch.id) {
            return;
        }
        if let Some(target) = self.targets.get_mut(&first.batch.target) {
            target.pause = Pause::default();
        }
        self.note_trouble(now, None);
    }

    /// Puts refused records of one load back: their dead letters could not be written. Their target waits; what leaves
    /// memory for it is given back.
    pub fn refuse_again(
        &mut self,
        refused: &[Refusal],
        now: Duration,
        cause: &Arc<str>,
    ) -> Finished {
        let mut finished = Finished::default();
        let Some(first) = refused.first() else {
            return finished;
        };
        let name = Arc::clone(&first.batch.target);
        let is_held = self.is_held(&name, first.batch.id);
        let random = self.random();
        let Some(target) = self.targets.get_mut(&name) else {
            return finished;
        };
        let why = Arc::clone(cause);
        target
            .pause
            .grow(now, self.min_backoff, self.max_backoff, random, why);
        if !is_held {
            let bytes: usize = first.batch.chunks.iter().map(|c| c.bytes.len()).sum();
            target.held += bytes;
            self.held += bytes;
        }
        let load = Load {
            batch: Arc::clone(&first.batch),
            records: Some(refused.iter().map(|refusal| refusal.record).collect()),
            after: Arc::from([]),
        };
        self.note_trouble(now, Some(cause));
        self.counts.last_trouble = Some(Arc::clone(cause));
        self.put_back(&name, vec![load]);
        self.shed(&name, &mut finished);
        finished
    }

    fn pause_output(&mut self, now: Duration, cause: Arc<str>) {
        self.allowed = (self.allowed / 2.0).max(1.0);
        self.counts.last_trouble = Some(Arc::clone(&cause));
        let random = self.random();
        self.pause
            .grow(now, self.min_backoff, self.max_backoff, random, cause);
    }

    /// Loads go back in front, oldest first.
    fn put_back(&mut self, name: &Arc<str>, loads: Vec<Load>) {
        self.counts.retries += 1;
        let Some(target) = self.targets.get_mut(name) else {
            return;
        };
        for load in loads.into_iter().rev() {
            let place = target
                .queue
                .iter()
                .position(|other| other.batch.id > load.batch.id)
                .unwrap_or(target.queue.len());
            target.queue.insert(place, load);
        }
        // The halves of one batch keep their order: both stand before the next batch.
        target.queue.make_contiguous().sort_by_key(|load| {
            (
                load.batch.id,
                load.records.as_ref().and_then(|some| some.first().copied()),
            )
        });
    }

    /// Whether any load of a batch is still to be settled.
    fn is_held(&self, name: &Arc<str>, batch: u64) -> bool {
        let queued = self.targets.get(name).map(|target| &target.queue);
        queued
            .into_iter()
            .flatten()
            .any(|load| load.batch.id == batch)
            || self
                .in_flight
                .values()
                .any(|(_, load)| load.batch.id == batch)
    }

    /// The batch's bytes are held until the last of its loads is settled.
    fn let_go(&mut self, name: &Arc<str>, load: &Load) {
        if self.is_held(name, load.batch.id) {
            return;
        }
        let bytes: usize = load.batch.chunks.iter().map(|c| c.bytes.len()).sum();
        if let Some(target) = self.targets.get_mut(name) {
            target.held = target.held.saturating_sub(bytes);
            self.held = self.held.saturating_sub(bytes);
        }
    }

    /// Blocked targets together hold at most a quarter of the share: of the one that refused just now everything but
    /// its oldest load leaves memory, if the quarter is full.
    fn shed(&mut self, name: &Arc<str>, finished: &mut Finished) {
        let blocked: usize = self
            .targets
            .values()
            .filter(|target| target.pause.last > Duration::ZERO)
            .map(|target| target.held)
            .sum();
        if blocked <= self.share / 4 {
            return;
        }
        let Some(target) = self.targets.get_mut(name) else {
            return;
        };
        if target.in_flight > 0 {
            return;
        }
        let kept = target.queue.front().map(|load| load.batch.id);
        let mut dropped: BTreeMap<u64, u64> = BTreeMap::new();
        let mut note = |spans: &[SpanOf]| {
            for span in spans {
                let first = dropped.entry(span.source).or_insert(span.span);
                *first = (*first).min(span.span);
            }
        };
        let mut freed = 0;
        let mut batches = BTreeSet::new();
        target.queue.retain(|load| {
            if Some(load.batch.id) == kept {
                return true;
            }
            if batches.insert(load.batch.id) {
                freed += load
                    .batch
                    .chunks
                    .iter()
                    .map(|c| c.bytes.len())
                    .sum::<usize>();
            }
            note(&load.batch.spans);
            false
        });
        if let Some(open) = target.open.take() {
            freed += open.bytes;
            note(&open.spans);
        }
        target.held = target.held.saturating_sub(freed);
        self.held = self.held.saturating_sub(freed);
        finished.dropped.extend(
            dropped
                .into_iter()
                .map(|(source, span)| SpanOf { source, span }),
        );
    }

    /// A number from 0 to 1, for jitter.
    fn random(&mut self) -> f64 {
        // xorshift64: jitter needs no more.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl Target {
    fn seal(&mut self, name: &Arc<str>, next_batch: &mut u64) {
        let Some(open) = self.open.take() else { return };
        let batch = Batch {
            id: *next_batch,
            target: Arc::clone(name),
            day: open.day,
            chunks: open.chunks,
            spans: open.spans,
            records: open.records,
            bytes: open.bytes,
        };
        *next_batch += 1;
        self.queue.push_back(Load {
            batch: Arc::new(batch),
            records: None,
            after: Arc::from([]),
        });
    }
}

impl Pause {
    /// Full jitter: the next pause is anything up to twice the longest the last could be.
    fn grow(
        &mut self,
        now: Duration,
        least: Duration,
        most: Duration,
        random: f64,
        cause: Arc<str>,
    ) {
        self.last = (self.last * 2).clamp(least, most.max(least));
        self.until = now + self.last.mul_f64(random.clamp(0.0, 1.0));
        self.cause = Some(cause);
    }
}

#[cfg(test)]
mod tests;
