//! What is open at the end of a file: it waits, is closed by time, or crosses to the successor; and what else time brings.
//! Place: beside **turn**; a worker's slice that found nothing more ends here.
//! Invariants: a cut made by time is durable before its record is read; so is what a successor takes over, and both files'
//! positions are saved together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ringpilot_shared::follow::StreamKey;

use super::turn::{EARLIER_WAITS, PREDECESSOR_WAITS};
use super::{State, day_of};
use crate::checkpoint::{FlowKey, SavedCut, SavedFlow, SavedHeld};
use crate::flow::{Earlier, Flow, FlowTurn, Held};
use crate::follow::Source;
use crate::ledger::Ledger;
use crate::worker::AtEnd;

/// How often every source is looked at for what time alone brings: of thousands of quiet ones that costs.
const SCAN_EVERY: Duration = Duration::from_millis(500);
/// How much the unread part of a flow that stands still may change before it is saved.
const UNREAD_STEP: u64 = 256 * 1024;
/// A file that the checkpoint knows and that was not found for so long after the start is taken for gone.
const FOUND_WITHIN: Duration = Duration::from_secs(120);
/// How long after its container went a want is remembered: the follower looks once more.
const WANT_LINGERS: Duration = Duration::from_secs(600);

impl State {
    /// A flow is at the end of what there is. What is open there waits, is closed by time, or crosses to the
    /// successor.
    pub(super) fn waiting(&mut self, number: u64, flows: &[usize], at_end: &AtEnd, now: Duration) {
        let Some(source) = self.sources.get_mut(&number) else {
            return;
        };
        let cut_at = |at, end| SavedCut { at, end };
        if source.finished {
            // Shorter than it was known to be is not for this place to judge.
            if at_end.size < source.stat.size {
                return;
            }
            if at_end.partial {
                self.cut(number, flows, cut_at(at_end.size, true));
            } else if at_end.open.is_empty() {
                for n in flows {
                    source.flows[*n].turn = FlowTurn::Done;
                    source.flows[*n].unsaved = true;
                }
                self.wake_successor(number);
                self.settle_source(number);
            } else {
                self.hand_over_or_close(number, flows, at_end);
            }
            return;
        }
        // The timeout runs only at the end of the file; of one that has a successor, the group goes on there.
        if let Some(at) = at_end.group_end
            && source.spec().multiline.is_some()
            && source.successor.is_none()
            && now >= source.grew_at + source.spec().timeout
        {
            self.cut(number, flows, cut_at(at, false));
        }
    }

    /// Closes what is open at a place, and lets these flows read it again when that is durable.
    fn cut(&mut self, number: u64, flows: &[usize], cut: SavedCut) {
        let save = self.save_number;
        if self
            .sources
            .get_mut(&number)
            .is_some_and(|source| source.cut(cut, save))
        {
            self.must_save = true;
            self.requeue(number, flows);
        }
    }

    pub(super) fn requeue(&mut self, number: u64, flows: &[usize]) {
        if let Some(source) = self.sources.get_mut(&number) {
            for n in flows {
                let flow = &mut source.flows[*n];
                flow.stuck_at = None;
                if flow.turn == FlowTurn::Quiet {
                    flow.turn = FlowTurn::Queued;
                    self.queue.push_back((number, *n));
                }
            }
        }
    }

    /// A group is open at the end of a finished file: the successor's flow continues it, or it ends here.
    fn hand_over_or_close(&mut self, number: u64, flows: &[usize], at_end: &AtEnd) {
        let Some(source) = self.sources.get(&number) else {
            return;
        };
        let (stream, file) = (source.stream, source.file.clone());
        let name = &source.spec().name;
        let successor = source.successor.and_then(|key| {
            let numbers = self.by_stream.get(&key)?.iter().copied();
            let mut named = numbers.filter(|other| {
                let other = self.sources.get(other);
                other.is_some_and(|other| other.spec().name == *name)
            });
            named.next()
        });
        let has_earlier = at_end.open.iter().any(|held| held.earlier.is_some());
        let held: Arc<[Held]> = at_end
            .open
            .iter()
            .map(|held| Held {
                from: held.from,
                to: held.to,
                earlier: Some(Earlier {
                    stream,
                    file: file.clone(),
                    source_hash: Some(source.source_hash),
                }),
            })
            .collect();
        let bytes: u64 = held.iter().map(Held::len).sum();
        let mut closes = Vec::new();
        for n in flows {
            let flow = &self.sources[&number].flows[*n];
            // Once only: what is written to the file after that is no part of what was handed over.
            let may = !has_earlier && flow.handed == 0;
            let output = flow.output;
            let taken = may
                && match successor {
                    Some(other) => self.take_over(other, output, stream, &held, bytes),
                    None => self.was_taken_over(number, output, bytes),
                };
            match self.sources.get_mut(&number) {
                Some(source) if taken => {
                    let flow = &mut source.flows[*n];
                    flow.hand_over(at_end.size, at_end.tail, bytes);
                    flow.turn = FlowTurn::Done;
                    flow.unsaved = true;
                }
                _ => closes.push(*n),
            }
        }
        if !closes.is_empty() {
            let (at, end) = (at_end.size, true);
            self.cut(number, &closes, SavedCut { at, end });
        }
        self.wake_successor(number);
        self.settle_source(number);
    }

    /// Whether a successor that is no longer open has delivered a group of this source's file.
    fn was_taken_over(&self, number: u64, output: usize, bytes: u64) -> bool {
        let Some(source) = self.sources.get(&number) else {
            return false;
        };
        let Some(next) = source.successor else {
            return false;
        };
        let key = FlowKey {
            stream: next,
            ..self.key(source, output)
        };
        let flow = self.known.flows.get(&key);
        flow.is_some_and(|flow| {
            let holds = |held: &SavedHeld| held.earlier == Some(source.stream);
            flow.brought_from == Some(source.stream)
                && flow.brought == bytes
                && !flow.held.iter().any(holds)
        })
    }

    /// Lets a source's flow begin with a group of the file before it; whether it does, or did before.
    fn take_over(
        &mut self,
        number: u64,
        output: usize,
        from: StreamKey,
        held: &Arc<[Held]>,
        bytes: u64,
    ) -> bool {
        let Some(source) = self.sources.get_mut(&number) else {
            return false;
        };
        let Some(flow) = source.flows.iter_mut().find(|flow| flow.output == output) else {
            return false;
        };
        if flow.brought_from == Some(from) && flow.brought == bytes {
            // It has it from before a restart, or before its predecessor was read again.
            return true;
        }
        // What another file has handed over is not given up for this one's.
        let is_free = flow.brought_from.is_none()
            || (flow.brought_from == Some(from) && !flow.cursor.held.is_empty());
        let is_fresh = flow.cursor.offset == 0
            && flow.read.offset == 0
            && flow.start == 0
            && flow.spans.is_empty()
            && flow.turn != FlowTurn::Reading;
        if !is_fresh || !is_free {
            return false;
        }
        flow.brought_from = Some(from);
        flow.brought = bytes;
        flow.read.held = Arc::clone(held);
        flow.cursor.held = Arc::clone(held);
        flow.stuck_at = None;
        flow.unsaved = true;
        // Both files' positions are durable before a record of both is sent.
        source.gate = Some(self.save_number);
        self.must_save = true;
        true
    }

    /// Takes back what was handed over to a successor that had not delivered it when the program ended, and whose file
    /// did not come again: here it can still be read.
    fn take_back(&mut self, number: u64) {
        let Some(source) = self.sources.get(&number) else {
            return;
        };
        let next = source
            .successor
            .filter(|next| !self.by_stream.contains_key(next));
        let mut taken: Vec<(usize, Arc<[Held]>)> = Vec::new();
        for (n, flow) in source.flows.iter().enumerate() {
            let Some(next) = next.filter(|_| flow.handed > 0 && flow.spans.is_empty()) else {
                continue;
            };
            let key = FlowKey {
                stream: next,
                ..self.key(source, flow.output)
            };
            let Some(theirs) = self.known.flows.get(&key) else {
                continue;
            };
            let ours = theirs.held.iter();
            let ours = ours.filter(|held| held.earlier == Some(source.stream));
            let held: Arc<[Held]> = ours
                .map(|held| Held {
                    from: held.from,
                    to: held.to,
                    earlier: None,
                })
                .collect();
            if held.iter().map(Held::len).sum::<u64>() == flow.handed {
                taken.push((n, held));
            }
        }
        let Some(source) = self.sources.get_mut(&number) else {
            return;
        };
        source.may_take_back = false;
        for (n, held) in taken {
            let flow = &mut source.flows[n];
            flow.handed = 0;
            flow.read.held = Arc::clone(&held);
            flow.cursor.held = held;
            flow.stuck_at = None;
            if flow.turn == FlowTurn::Done {
                flow.turn = FlowTurn::Quiet;
            }
        }
        self.wake(number);
    }

    /// Where the bytes of a flow went whose file is not open: what was unread when the daemon ended is lost once its file
    /// has had time to be found. It is counted for as long as that is so: a file that comes back is read from its cursor.
    pub(super) fn ledger_of_known(&self, flow: &SavedFlow) -> Ledger {
        match self.now >= self.started + FOUND_WITHIN {
            true => flow.ledger_without_file(),
            false => flow.ledger.clone(),
        }
    }

    /// Says once what of an earlier run was not found again.
    fn tell_missing(&mut self) {
        if self.told_missing || self.now < self.started + FOUND_WITHIN {
            return;
        }
        self.told_missing = true;
        let mut missing: BTreeMap<(&str, &str), (usize, u64)> = BTreeMap::new();
        for (key, flow) in self.known.flows.iter().filter(|(_, flow)| flow.unread > 0) {
            let (files, bytes) = missing.entry((&key.declaration, &key.output)).or_default();
            *files += 1;
            *bytes += flow.unread;
        }
        for ((declaration, output), (files, bytes)) in missing {
            tracing::warn!(
                "log `{declaration}`: {files} files that were not read to their end went while the daemon was down, and at least \
                 {bytes} bytes of them are lost to output `{output}` (lost{{reason=\"vanished\"}}), unless they come back; do: \
                 keep more rotated files, so that they outlast a restart"
            );
        }
    }

    pub(super) fn wake_successor(&mut self, number: u64) {
        let Some(next) = self
            .sources
            .get(&number)
            .and_then(|source| source.successor)
        else {
            return;
        };
        for other in self.by_stream.get(&next).cloned().unwrap_or_default() {
            self.wake(other);
        }
    }

    pub(super) fn tick(&mut self, now: Duration, wall_ns: i64) {
        self.now = now;
        self.wants
            .retain(|_, want| want.gone_at.is_none_or(|at| now < at + WANT_LINGERS));
        let due: Vec<(u64, usize)> = {
            let (due, later) = std::mem::take(&mut self.later)
                .into_iter()
                .partition(|(at, ..)| *at <= now);
            self.later = later;
            let due: Vec<(Duration, u64, usize)> = due;
            due.into_iter().map(|(_, number, n)| (number, n)).collect()
        };
        for (number, n) in due {
            if let Some(source) = self.sources.get_mut(&number)
                && source.flows[n].turn == FlowTurn::Later
            {
                source.flows[n].turn = FlowTurn::Queued;
                self.queue.push_back((number, n));
            }
        }
        if now < self.scanned_at + SCAN_EVERY {
            return;
        }
        self.scanned_at = now;
        self.scan(now, wall_ns);
    }

    /// What time alone brings to sources that nobody has told anything of.
    fn scan(&mut self, now: Duration, wall_ns: i64) {
        self.tell_missing();
        let late = |source: &&Source| source.may_take_back && now >= source.seen_at + EARLIER_WAITS;
        let late: Vec<u64> = self
            .sources
            .values()
            .filter(late)
            .map(|source| source.number)
            .collect();
        for number in late {
            self.take_back(number);
        }
        let waits = |source: &&Source| {
            let is_late = source.predecessor.is_some() && now >= source.seen_at + PREDECESSOR_WAITS;
            source.flows.iter().any(|flow| {
                flow.read.misses_file()
                    || (is_late
                        && flow.turn == FlowTurn::Quiet
                        && flow.read.offset == 0
                        && flow.stuck_at.is_none())
            })
        };
        let waiting = self.sources.values().filter(waits);
        let waiting: Vec<u64> = waiting.map(|source| source.number).collect();
        for number in waiting {
            self.wake(number);
        }
        let today = day_of(wall_ns);
        let mut resting = Vec::new();
        for source in self.sources.values_mut() {
            for flow in &mut source.flows {
                // How much a flow that stands still has before it, for a restart that does not find its file again.
                let unread = source.stat.size.saturating_sub(flow.cursor.offset);
                let is_open = !flow.retired && flow.turn != FlowTurn::Done;
                flow.unsaved |= is_open && unread.abs_diff(flow.saved_unread) >= UNREAD_STEP;
            }
            let turned = source.days.last().is_some_and(|(_, day)| *day < today);
            // Of a slice that is being read nobody knows yet how far it goes.
            let is_read = |flow: &Flow| flow.turn == FlowTurn::Reading;
            if turned && !source.finished && !source.flows.iter().any(is_read) {
                // From the furthest place that was read on, the read day is today; what left memory was read, too.
                let furthest = |flow: &Flow| flow.read.offset.max(flow.sent_before);
                let from = source.flows.iter().map(furthest).max();
                let mut days = source.days.to_vec();
                days.push((from.unwrap_or_default(), today));
                source.days = days.into();
                source.unsaved = true;
                let dated = source
                    .flows
                    .iter()
                    .any(|flow| self.plan.outputs[flow.output].dated);
                if dated {
                    source.gate = Some(self.save_number);
                    self.must_save = true;
                }
            }
            let spec = source.spec();
            if spec.multiline.is_some()
                && !source.finished
                && source.successor.is_none()
                && now >= source.grew_at + spec.timeout
                && source.flows.iter().any(|flow| {
                    flow.turn == FlowTurn::Quiet
                        && flow.stuck_at == Some(source.stat.size)
                        && (flow.read.offset < source.stat.size || !flow.read.held.is_empty())
                })
            {
                resting.push(source.number);
            }
        }
        for number in resting {
            let Some(source) = self.sources.get_mut(&number) else {
                continue;
            };
            let flows: Vec<usize> = (0..source.flows.len()).collect();
            // A partial last line may be all that rests; the worker says so, and then nothing is cut.
            if source.rested_at != Some(source.stat.size) {
                source.rested_at = Some(source.stat.size);
                self.requeue(number, &flows);
            }
        }
    }
}
