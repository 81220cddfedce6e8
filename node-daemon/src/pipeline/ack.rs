//! Answers become positions: loads go out with where they lead to, and come back as fates.
//! Place: ship -> **ack** -> the flows' cursors, right to left.
//! Invariants: only a fate moves a cursor; a refused record is a dead letter before it is settled; what left memory is
//! read again from the first span that did.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ringpilot_shared::follow::StreamKey;

use super::State;
use super::save::save_flow;
use crate::batch::{Chunk, SpanOf};
use crate::checkpoint::{FlowKey, SavedFlow};
use crate::flow::{FlowTurn, Held};
use crate::follow::Source;
use crate::ledger::{Lost, Tally};
use crate::ship::dead_letter::Kept;
use crate::ship::retry::{Attempt, End, Finished, Refusal, Settled};

impl State {
    pub(super) fn next_load(&mut self, output: usize, now: Duration) -> Option<Attempt> {
        let plan = &mut self.plan.outputs[output];
        let mut attempt = plan.shipper.next(now)?;
        if plan.shipper.output.commits() {
            attempt.load.after = self.after(output, &attempt).into();
        }
        Some(attempt)
    }

    /// Where the flows in a load stand once it is delivered.
    pub(super) fn after(&self, output: usize, attempt: &Attempt) -> Vec<(FlowKey, SavedFlow)> {
        let batch = &attempt.load.batch;
        let mut last: BTreeMap<u64, (u64, Tally)> = BTreeMap::new();
        for (chunk, span) in batch.chunks.iter().zip(&batch.spans) {
            let entry = last.entry(span.source).or_default();
            entry.0 = entry.0.max(span.span);
            entry.1.add(chunk.total);
        }
        // A span of several days is in several batches: only the last of them completes it.
        last.into_iter()
            .filter_map(|(id, (span, delivered))| {
                let (number, n) = (id / 256, usize::try_from(id % 256).ok()?);
                let source = self.sources.get(&number)?;
                let flow = source.flows.get(n)?;
                let key = self.key(source, output);
                let open_elsewhere = flow
                    .spans
                    .iter()
                    .take_while(|one| one.number <= span)
                    .map(|one| u64::from(one.open))
                    .sum::<u64>()
                    > delivered.records;
                if open_elsewhere {
                    return None;
                }
                let (position, ledger) = flow.after(span, delivered);
                let mut saved = save_flow(flow, &position, source.stat.size);
                saved.ledger = ledger;
                Some((key, saved))
            })
            .collect()
    }

    pub(super) fn key(&self, source: &Source, output: usize) -> FlowKey {
        FlowKey {
            stream: source.stream,
            declaration: Arc::clone(&source.spec().name),
            output: Arc::clone(&self.plan.outputs[output].shipper.name),
        }
    }

    /// Settles what a verdict decided; what was refused must be buried first.
    pub(super) fn settle(&mut self, output: usize, finished: Finished) -> Vec<Refusal> {
        let mut touched = BTreeSet::new();
        for settled in &finished.settled {
            self.settle_one(settled);
            touched.insert(settled.span.source / 256);
        }
        for dropped in &finished.dropped {
            let (number, n) = (dropped.source / 256, (dropped.source % 256) as usize);
            if let Some(source) = self.sources.get_mut(&number) {
                let flow = &mut source.flows[n];
                flow.rewind(dropped.span);
                if flow.turn == FlowTurn::Quiet || flow.turn == FlowTurn::Done {
                    flow.turn = FlowTurn::Queued;
                    self.queue.push_back((number, n));
                }
                // What left memory and is no longer in its file is gone.
                self.lose(number);
            }
        }
        for number in touched {
            self.settle_source(number);
        }
        self.feed(output);
        finished.refused
    }

    /// Whose log a refused record is from, and which file.
    pub(super) fn whence(&self, refusal: &Refusal) -> (String, String) {
        let source =
            locate(refusal).and_then(|(_, _, span)| self.sources.get(&(span.source / 256)));
        source.map_or_else(Default::default, |source| {
            (
                source.spec().called(),
                source.path.to_string_lossy().into_owned(),
            )
        })
    }

    pub(super) fn settle_one(&mut self, settled: &Settled) {
        let (number, n) = (
            settled.span.source / 256,
            (settled.span.source % 256) as usize,
        );
        if let Some(source) = self.sources.get_mut(&number)
            && let Some(flow) = source.flows.get_mut(n)
        {
            flow.settle(settled.span.span, settled.records, |ledger| {
                ledger.delivered.add(settled.tally);
                if settled.end == End::Duplicate {
                    ledger.duplicates += u64::from(settled.records);
                }
            });
            flow.collect();
        }
    }

    /// Dead letters were written, dropped because they are full, or could not be written.
    pub(super) fn buried(
        &mut self,
        output: usize,
        refused: Vec<Refusal>,
        kept: Result<Kept, String>,
        now: Duration,
    ) {
        match kept {
            Err(cause) => {
                let cause: Arc<str> = cause.into();
                let shipper = &mut self.plan.outputs[output].shipper;
                let finished = shipper.refuse_again(&refused, now, &cause);
                self.settle(output, finished);
            }
            Ok(kept) => {
                let shipper = &mut self.plan.outputs[output].shipper;
                shipper.letters_kept(&refused, now);
                let mut touched = BTreeSet::new();
                for (i, refusal) in refused.iter().enumerate() {
                    let Some((chunk, n, span)) = locate(refusal) else {
                        continue;
                    };
                    let mark = chunk.records[n];
                    let tally = Tally {
                        bytes: u64::from(mark.source_bytes),
                        lines: u64::from(mark.lines),
                        records: 1,
                    };
                    let (number, n) = (span.source / 256, (span.source % 256) as usize);
                    if let Some(flow) = self
                        .sources
                        .get_mut(&number)
                        .and_then(|source| source.flows.get_mut(n))
                    {
                        if i < kept.written {
                            let counts = &mut self.plan.outputs[output].shipper.counts;
                            counts.dead_letter(&refusal.reason);
                        }
                        flow.settle(span.span, 1, |ledger| {
                            if i < kept.written {
                                ledger.dead_lettered.add(tally);
                            } else {
                                ledger
                                    .lost
                                    .entry(Lost::DeadLettersFull)
                                    .or_default()
                                    .add(tally);
                            }
                        });
                        flow.collect();
                    }
                    touched.insert(number);
                }
                for number in touched {
                    self.settle_source(number);
                }
            }
        }
        self.feed(output);
    }

    /// Lets those read again that waited for this output.
    pub(super) fn feed(&mut self, output: usize) {
        let starved = std::mem::take(&mut self.starved[output]);
        self.plan.outputs[output].shipper.hungry = false;
        for (number, n) in starved {
            if let Some(source) = self.sources.get_mut(&number)
                && source.flows[n].turn == FlowTurn::Starved
            {
                source.flows[n].turn = FlowTurn::Queued;
                self.queue.push_back((number, n));
            }
        }
    }

    /// Lets a source go whose every flow is done and settled, and those beside it in its chain, which may have waited for it.
    pub(super) fn settle_source(&mut self, number: u64) {
        let Some(source) = self.sources.get(&number) else {
            return;
        };
        let (before, next) = (source.predecessor, source.successor);
        self.release_if_over(source.stream);
        for other in [before, next].into_iter().flatten() {
            self.release_if_over(other);
        }
    }

    fn release_if_over(&mut self, stream: StreamKey) {
        if self.released.contains(&stream) {
            return;
        }
        let Some(numbers) = self.by_stream.get(&stream) else {
            return;
        };
        let sources = || numbers.iter().filter_map(|number| self.sources.get(number));
        // A group that crossed to the successor is still read from here.
        let is_read_by_successor = sources()
            .filter_map(|source| self.by_stream.get(&source.successor?))
            .flatten()
            .filter_map(|other| self.sources.get(other))
            .flat_map(|other| &other.flows)
            .any(|flow| {
                let holds = |held: &Held| held.earlier.as_ref().map(|e| e.stream) == Some(stream);
                flow.cursor.held.iter().any(holds)
            });
        // What was handed over to it is known by it until its predecessor has left its own end.
        let is_heir = sources()
            .filter(|source| source.spec().joins())
            .filter_map(|source| self.by_stream.get(&source.predecessor?))
            .flatten()
            .filter_map(|other| self.sources.get(other))
            .any(|other| !other.is_over());
        if sources().all(Source::is_over) && !is_read_by_successor && !is_heir {
            self.released.push(stream);
        }
    }
}

/// The chunk of a refused record, its number in that, and its span.
pub(super) fn locate(refusal: &Refusal) -> Option<(&Arc<Chunk>, usize, SpanOf)> {
    let mut n = refusal.record as usize;
    for (chunk, span) in refusal.batch.chunks.iter().zip(&refusal.batch.spans) {
        if n < chunk.records.len() {
            return Some((chunk, n, *span));
        }
        n -= chunk.records.len();
    }
    None
}
