//! What is written down, and what is remembered of streams that are let go.
//! Place: ack -> **save** -> the checkpoint.
//! Invariants: new sources are written before old ones, so that a group that crossed a rotation is never in neither, and a
//! file that began anew is known when its old life is in a copy; what lies beside a file is accounted for last; what could
//! not be written is written with the next save.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use ringpilot_shared::follow::StreamKey;

use super::State;
use crate::checkpoint::{Entry, FlowKey, SavedFlow, SavedHeld, SavedSource, SavedStream};
use crate::flow::{Flow, FlowTurn, Position};

/// When an output was last there is known to an hour: its cursors are kept for days.
const OUTPUTS_TOLD_EVERY_NS: i64 = 3_600 * 1_000_000_000;

impl State {
    /// Whether somebody waits for a save since this was last asked.
    pub(super) fn needs_save(&mut self) -> bool {
        std::mem::take(&mut self.must_save)
    }

    /// What must be written down now. New sources come before old ones, so that a group that crossed a rotation is
    /// never in neither.
    pub(super) fn snapshot(&mut self, wall_ns: i64) -> (u64, Vec<Entry>) {
        let number = self.save_number;
        self.save_number += 1;
        let mut entries = std::mem::take(&mut self.pending);
        if wall_ns > self.outputs_told_ns.saturating_add(OUTPUTS_TOLD_EVERY_NS) {
            self.outputs_told_ns = wall_ns;
            let there = self.plan.outputs.iter();
            let there = there
                .filter(|plan| !plan.shipper.removed)
                .map(|plan| Arc::clone(&plan.shipper.name))
                .collect();
            entries.push(Entry::Outputs(there, wall_ns));
        }
        let names: Vec<Arc<str>> = self
            .plan
            .outputs
            .iter()
            .map(|output| Arc::clone(&output.shipper.name))
            .collect();
        let mut accounted = Vec::new();
        for source in self.sources.values_mut().rev() {
            if source.unsaved {
                source.unsaved = false;
                let first = source.flows.iter().map(|flow| flow.cursor.offset).min();
                let first = first.unwrap_or_default();
                // Read days before every cursor choose no index any more; the last of them still holds there.
                let behind = source
                    .days
                    .iter()
                    .filter(|(from, _)| *from <= first)
                    .count();
                if behind > 1 {
                    source.days = source.days[behind - 1..].into();
                }
                if source.cuts.iter().any(|cut| cut.at < first) {
                    source.cuts = source
                        .cuts
                        .iter()
                        .copied()
                        .filter(|c| c.at >= first)
                        .collect();
                }
                let stream = SavedStream {
                    key: source.stream,
                    identity: source.identity,
                    owner: source.spec().owner.to_string(),
                    path: source.path.clone(),
                    modified_ns: source.stat.modified_ns,
                    accounted_ns: source.accounted_before,
                    successor: source.successor,
                    seen_ns: wall_ns,
                };
                // What lies beside it is accounted for when that is written, too.
                if source.accounted_ns != source.accounted_before {
                    source.accounted_before = source.accounted_ns;
                    let accounted_ns = source.accounted_ns;
                    accounted.push(Entry::Stream(SavedStream {
                        accounted_ns,
                        ..stream.clone()
                    }));
                }
                entries.push(Entry::Stream(stream));
                entries.push(Entry::Source(SavedSource {
                    stream: source.stream,
                    declaration: Arc::clone(&source.spec().name),
                    source_hash: source.source_hash,
                    days: source.days.to_vec(),
                    cuts: source.cuts.to_vec(),
                }));
            }
        }
        for source in self.sources.values_mut().rev() {
            let (stream, declaration) = (source.stream, Arc::clone(&source.claims[0].spec.name));
            let size = source.stat.size;
            for flow in source.flows.iter_mut().filter(|flow| flow.unsaved) {
                flow.unsaved = false;
                let key = FlowKey {
                    stream,
                    declaration: Arc::clone(&declaration),
                    output: Arc::clone(&names[flow.output]),
                };
                let saved = save_flow(flow, &flow.cursor, size);
                flow.saved_unread = saved.unread;
                entries.push(Entry::Flow(key, saved));
            }
        }
        entries.extend(accounted);
        (number, entries)
    }

    pub(super) fn saved(
        &mut self,
        number: u64,
        entries: Vec<Entry>,
        error: Option<&std::io::Error>,
        now: Duration,
    ) {
        match error {
            None => {
                self.saved_at = now;
                self.save_failing = None;
            }
            Some(error) => {
                self.save_failing = Some(error.to_string().into());
                // They are written down when it works again; newer ones of the same things come after them.
                let newer = std::mem::take(&mut self.pending);
                self.pending = newest(entries);
                self.pending.extend(newer);
            }
        }
        let opened: Vec<u64> = self
            .sources
            .values()
            .filter(|source| source.gate.is_some_and(|gate| gate <= number))
            .map(|source| source.number)
            .collect();
        for number in &opened {
            let random = self.random();
            if let Some(source) = self.sources.get_mut(number) {
                source.gate = None;
                for flow in &mut source.flows {
                    flow.stuck_at = None;
                }
                if error.is_some() {
                    // Not durable: another id, so that a replay is a duplicate and never a false conflict.
                    source.source_hash = random;
                    source.unsaved = true;
                }
            }
        }
        for number in opened {
            self.wake(number);
        }
    }

    /// A stream's file is closed. A deleted one is forgotten; another is remembered, so that it is known when seen
    /// again.
    pub(super) fn let_go(&mut self, stream: StreamKey, deleted: bool) {
        let names: Vec<Arc<str>> = self
            .plan
            .outputs
            .iter()
            .map(|output| Arc::clone(&output.shipper.name))
            .collect();
        for number in self.by_stream.remove(&stream).unwrap_or_default() {
            let Some(source) = self.sources.remove(&number) else {
                continue;
            };
            if let (false, Some(next)) = (deleted, source.successor) {
                self.known.successors.insert(stream, next);
                self.predecessors.insert(next, stream);
            }
            let declaration = Arc::clone(&source.spec().name);
            for flow in &source.flows {
                if deleted {
                    self.closed[flow.output].add(&flow.ledger);
                    continue;
                }
                let key = FlowKey {
                    stream,
                    declaration: Arc::clone(&declaration),
                    output: Arc::clone(&names[flow.output]),
                };
                // What it holds is settled, or given up and counted.
                let saved = save_flow(flow, &flow.cursor, flow.cursor.offset);
                if flow.unsaved {
                    self.pending.push(Entry::Flow(key.clone(), saved.clone()));
                }
                let furthest = self.known.furthest.entry(stream).or_default();
                *furthest = (*furthest).max((saved.offset, saved.tail));
                self.known.flows.insert(key, saved);
            }
            if !deleted {
                let saved = SavedSource {
                    stream,
                    declaration: Arc::clone(&declaration),
                    source_hash: source.source_hash,
                    days: source.days.to_vec(),
                    cuts: source.cuts.to_vec(),
                };
                if source.unsaved {
                    self.pending.push(Entry::Source(saved.clone()));
                }
                self.known.sources.insert((stream, declaration), saved);
            }
        }
        if deleted {
            self.forget(stream);
        }
    }

    /// Forgets a stream that nobody will see again.
    pub(super) fn forget(&mut self, stream: StreamKey) {
        self.known.furthest.remove(&stream);
        if let Some(next) = self.known.successors.remove(&stream) {
            self.predecessors.remove(&next);
        }
        let outputs = self.plan.outputs.iter().map(|output| &output.shipper.name);
        let outputs: Vec<Arc<str>> = outputs.cloned().collect();
        let names: HashSet<Arc<str>> = self
            .wants
            .values()
            .map(|want| Arc::clone(&want.spec.name))
            .collect();
        for declaration in names {
            self.known
                .sources
                .remove(&(stream, Arc::clone(&declaration)));
            for (output, name) in outputs.iter().enumerate() {
                let key = FlowKey {
                    stream,
                    declaration: Arc::clone(&declaration),
                    output: Arc::clone(name),
                };
                if let Some(flow) = self.known.flows.remove(&key) {
                    self.closed[output].add(&flow.ledger_without_file());
                }
            }
        }
        self.pending.push(Entry::Forget(stream));
    }
}

/// A flow as it is written down at a position; its file has `size` bytes.
pub(super) fn save_flow(flow: &Flow, position: &Position, size: u64) -> SavedFlow {
    SavedFlow {
        unread: match flow.retired {
            true => 0,
            false => size.saturating_sub(position.offset),
        },
        offset: position.offset,
        tail: position.tail,
        held: position
            .held
            .iter()
            .map(|held| SavedHeld {
                from: held.from,
                to: held.to,
                earlier: held.earlier.as_ref().map(|earlier| earlier.stream),
            })
            .collect(),
        start: flow.start,
        brought: flow.brought,
        brought_from: flow.brought_from,
        handed: flow.handed,
        sent: flow.read.offset.max(flow.sent_before),
        done: flow.turn == FlowTurn::Done && flow.spans.is_empty() && !flow.retired,
        ledger: flow.ledger.clone(),
    }
}

/// The last entry of each flow, stream and source.
fn newest(entries: Vec<Entry>) -> Vec<Entry> {
    #[derive(PartialEq, Eq, Hash)]
    enum Of {
        Stream(StreamKey),
        Source(StreamKey, Arc<str>),
        Flow(FlowKey),
        Other(usize),
    }
    let mut seen = HashSet::new();
    let mut kept: Vec<Entry> = Vec::new();
    for (n, entry) in entries.into_iter().enumerate().rev() {
        let of = match &entry {
            Entry::Stream(stream) => Of::Stream(stream.key),
            Entry::Source(source) => Of::Source(source.stream, Arc::clone(&source.declaration)),
            Entry::Flow(key, _) => Of::Flow(key.clone()),
            _ => Of::Other(n),
        };
        if seen.insert(of) {
            kept.push(entry);
        }
    }
    kept.reverse();
    kept
}
