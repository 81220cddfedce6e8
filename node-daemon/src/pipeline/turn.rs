//! Whose turn it is, by bytes, and what a worker made of it.
//! Place: apply -> **turn** -> ship. Deficit round robin over flows.
//! Invariants: a slice is shared only by flows at the same place; a flow that cannot be fed is not read; what was made of
//! bytes that are no longer the flow's next ones is dropped.

use std::sync::Arc;
use std::time::Duration;

use super::State;
use crate::batch::{Codec, SpanOf};
use crate::flow::{FlowTurn, Held};
use crate::follow::{Source, Spec};
use crate::ledger::Lost;
use crate::worker::{Done, Job, Outcome};

/// Source bytes of a flow between the oldest unsettled and the furthest read.
const WINDOW_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes a flow may read in its turn.
const QUANTUM_BYTES: i64 = 256 * 1024;
/// How long the file that an open group began in is looked for after a restart.
pub(super) const EARLIER_WAITS: Duration = Duration::from_secs(10);
/// How long a file waits for the end of the one before it, whose open group it may have to continue.
pub(super) const PREDECESSOR_WAITS: Duration = Duration::from_secs(30);
/// After an error of the storage a file is tried again this much later.
const STORAGE_PAUSE: Duration = Duration::from_secs(2);

impl State {
    /// Whose turn it is: the next flow that can be read, with those that stand at the same place.
    pub(super) fn pick(&mut self, wall_ns: i64) -> Option<(Job, u64, Vec<usize>)> {
        if self.stopping {
            return None;
        }
        let mut rounds = self.queue.len();
        while rounds > 0 {
            rounds -= 1;
            let (number, n) = self.queue.pop_front()?;
            let Some(source) = self.sources.get(&number) else {
                continue;
            };
            if source.flows[n].turn != FlowTurn::Queued {
                continue;
            }
            if source.flows[n].read.misses_file() && !self.find_earlier(number, n) {
                self.rest(number, n, FlowTurn::Quiet);
                continue;
            }
            let Some(source) = self.sources.get(&number) else {
                continue;
            };
            match self.may_read(source, n) {
                May::Read => {
                    let (spec, output) = (source.spec(), source.flows[n].output);
                    if let Some(due) = self.rates.wait(spec.limits, &spec.owner, output, self.now) {
                        self.rates.note(&Arc::clone(spec), self.now);
                        self.rest(number, n, FlowTurn::Later);
                        self.later.push((due, number, n));
                        continue;
                    }
                }
                May::Not(turn) => {
                    self.rest(number, n, turn);
                    continue;
                }
            }
            let Some(source) = self.sources.get_mut(&number) else {
                continue;
            };
            let flow = &mut source.flows[n];
            flow.deficit = (flow.deficit + QUANTUM_BYTES).min(QUANTUM_BYTES);
            if flow.deficit <= 0 {
                self.queue.push_back((number, n));
                rounds += 1;
                continue;
            }
            if let Some(job) = self.job(number, n, wall_ns) {
                return Some(job);
            }
        }
        None
    }

    /// Finds the earlier file that a flow's open group began in, after a restart; whether the flow can go on. One that
    /// is not found in time is lost.
    pub(super) fn find_earlier(&mut self, number: u64, n: usize) -> bool {
        let Some(source) = self.sources.get(&number) else {
            return false;
        };
        let flow = &source.flows[n];
        let found: Vec<Held> = flow
            .read
            .held
            .iter()
            .cloned()
            .map(|mut held| {
                if let Some(earlier) = held.earlier.as_mut().filter(|e| e.file.is_none()) {
                    earlier.file = self.file_of(earlier.stream);
                    earlier.source_hash = self.hash_of(earlier.stream, &source.spec().name);
                }
                held
            })
            .collect();
        let is_late = self.now >= source.seen_at + EARLIER_WAITS;
        let Some(source) = self.sources.get_mut(&number) else {
            return false;
        };
        let flow = &mut source.flows[n];
        let at_cursor = flow.spans.is_empty();
        flow.read.held = found.into();
        if flow.read.misses_file() {
            if !is_late {
                return false;
            }
            flow.lose_missing();
        } else if at_cursor {
            flow.cursor.held = Arc::clone(&flow.read.held);
        }
        true
    }

    /// Whether a flow may be read now.
    fn may_read(&self, source: &Source, n: usize) -> May {
        let flow = &source.flows[n];
        if source.file.is_none() || source.suspended || source.gate.is_some() {
            return May::Not(FlowTurn::Quiet);
        }
        if flow.stuck_at == Some(source.stat.size) && !source.finished {
            return May::Not(FlowTurn::Quiet);
        }
        if self.waits_for_predecessor(source, n) {
            return May::Not(FlowTurn::Quiet);
        }
        let output = &self.plan.outputs[flow.output].shipper;
        let target = target_of(source.spec(), flow.output);
        if flow.window >= WINDOW_BYTES || !output.has_room(target) {
            return May::Not(FlowTurn::Starved);
        }
        May::Read
    }

    /// A flow that may have to continue a group begins when its predecessor has been read to the end.
    pub(super) fn waits_for_predecessor(&self, source: &Source, n: usize) -> bool {
        let flow = &source.flows[n];
        if !source.spec().joins() || flow.read.offset > 0 || !flow.read.held.is_empty() {
            return false;
        }
        let Some(before) = source.predecessor else {
            return false;
        };
        // A predecessor that is written to without an end is no reason to wait for ever.
        let is_late = self.now >= source.seen_at + PREDECESSOR_WAITS;
        self.by_stream
            .get(&before)
            .into_iter()
            .flatten()
            .filter_map(|number| self.sources.get(number))
            .filter(|other| other.spec().name == source.spec().name)
            .filter(|other| other.finished || !is_late)
            .flat_map(|other| &other.flows)
            .any(|other| other.output == flow.output && other.turn != FlowTurn::Done)
    }

    pub(super) fn rest(&mut self, number: u64, n: usize, turn: FlowTurn) {
        let Some(source) = self.sources.get_mut(&number) else {
            return;
        };
        let flow = &mut source.flows[n];
        flow.turn = turn;
        flow.deficit = flow.deficit.min(0);
        if turn == FlowTurn::Starved {
            let output = flow.output;
            self.starved[output].push((number, n));
            self.plan.outputs[output].shipper.hungry = true;
            if !self.hungry.contains(&output) {
                self.hungry.push(output);
            }
        }
    }

    pub(super) fn job(
        &mut self,
        number: u64,
        n: usize,
        wall_ns: i64,
    ) -> Option<(Job, u64, Vec<usize>)> {
        let position = self.sources[&number].flows[n].read.clone();
        let mut flows = vec![n];
        let source = &self.sources[&number];
        for (other, flow) in source.flows.iter().enumerate() {
            let waits = matches!(flow.turn, FlowTurn::Queued | FlowTurn::Quiet);
            if other != n
                && waits
                && flow.read.same_place(&position)
                && matches!(self.may_read(source, other), May::Read)
                && self
                    .rates
                    .wait(
                        source.spec().limits,
                        &source.spec().owner,
                        flow.output,
                        self.now,
                    )
                    .is_none()
            {
                flows.push(other);
            }
        }
        let mut codecs: Vec<Codec> = Vec::new();
        for n in &flows {
            let codec = self.plan.outputs[source.flows[*n].output].codec;
            if !codecs.contains(&codec) {
                codecs.push(codec);
            }
        }
        let job = Job {
            spec: Arc::clone(source.spec()),
            file: source.file.clone()?,
            stream: source.stream,
            position,
            furthest: self.furthest(source.stream).unwrap_or_default(),
            head: (source.identity.head_len, source.identity.head),
            size: source.stat.size,
            until: self.once.then_some(source.stat.size),
            sparse: source.stat.disk_bytes < source.stat.size,
            source_hash: source.source_hash,
            days: Arc::clone(&source.days),
            cuts: Arc::clone(&source.cuts),
            codecs,
            now_ns: wall_ns,
        };
        if let Some(source) = self.sources.get_mut(&number) {
            for n in &flows {
                source.flows[*n].turn = FlowTurn::Reading;
            }
        }
        Some((job, number, flows))
    }

    /// Takes what a worker made of a slice; the outputs that have something to send.
    pub(super) fn commit(
        &mut self,
        number: u64,
        flows: &[usize],
        job: &Job,
        done: Done,
        now: Duration,
    ) -> Vec<usize> {
        self.totals.slices += 1;
        let mut sends = Vec::new();
        let Some(source) = self.sources.get_mut(&number) else {
            return sends;
        };
        let is_current = source
            .file
            .as_ref()
            .is_some_and(|file| Arc::ptr_eq(file, &job.file));
        if let Outcome::Truncated = done.outcome {
            // Only a file that is still this source's can be judged; one that was exchanged meanwhile is read again.
            if is_current && !source.suspended {
                source.suspended = true;
                self.suspects.push(source.stream);
            }
        }
        for n in flows {
            let flow = &mut source.flows[*n];
            if flow.turn != FlowTurn::Reading {
                // It was given up while it was read.
                continue;
            }
            if !flow.read.same_place(&job.position) {
                // What it had read left memory meanwhile: it goes on from there.
                flow.turn = FlowTurn::Queued;
                self.queue.push_back((number, *n));
                continue;
            }
            let (mut records, bytes) = (done.records, done.bytes);
            let moved = !flow.read.same_place(&done.after) || bytes > 0;
            if moved {
                let codec = self.plan.outputs[flow.output].codec;
                let codec = job.codecs.iter().position(|one| *one == codec);
                let mut chunks = codec.map_or(&[][..], |codec| &done.chunks[codec]);
                let mut settled = done.settled.clone();
                let (limits, owner) = (job.spec.limits, &job.spec.owner);
                if self.rates.charge(limits, owner, flow.output, bytes, now) && records > 0 {
                    self.rates.note(&job.spec, now);
                    let lost = settled.lost.entry(Lost::Rate).or_default();
                    chunks.iter().for_each(|chunk| lost.add(chunk.total));
                    (records, chunks) = (0, &[]);
                }
                let span = flow.push(done.after.clone(), records, settled, bytes);
                flow.deficit -= i64::try_from(bytes).unwrap_or(i64::MAX);
                self.totals.read_bytes += bytes;
                let output = flow.output;
                let spec = Arc::clone(&source.claims[0].spec);
                let plan = &mut self.plan.outputs[output];
                let target = target_arc(&spec, output);
                if let Some(last) = flow.spans.back_mut() {
                    last.lines += chunks.iter().map(|chunk| chunk.total.lines).sum::<u64>();
                    self.totals.read_lines += last.lines;
                }
                let span = SpanOf {
                    source: number * 256 + *n as u64,
                    span,
                };
                plan.shipper.push(&target, chunks, span, now);
                if !chunks.is_empty() && !sends.contains(&output) {
                    sends.push(output);
                }
                if records == 0 {
                    source.flows[*n].collect();
                }
            }
            let flow = &mut source.flows[*n];
            match &done.outcome {
                Outcome::Moved => {
                    flow.turn = FlowTurn::Queued;
                    self.queue.push_back((number, *n));
                }
                Outcome::Waiting(at_end) => {
                    source.trouble = None;
                    flow.stuck_at = Some(at_end.size);
                    flow.turn = FlowTurn::Quiet;
                    flow.deficit = 0;
                    let is_here = job.file.has_arrived(at_end.size);
                    if source.stat.size > at_end.size && !is_here {
                        // The rest is on its way through a ring; a change tells when it has come.
                        flow.stuck_at = None;
                    } else if source.stat.size > at_end.size && !source.finished {
                        // It grew meanwhile.
                        flow.stuck_at = None;
                        flow.turn = FlowTurn::Queued;
                        self.queue.push_back((number, *n));
                    }
                }
                Outcome::Truncated => flow.turn = FlowTurn::Quiet,
                Outcome::Failed(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    flow.turn = FlowTurn::Quiet;
                    if job.file.has_arrived(job.position.offset) {
                        // It has come since.
                        flow.turn = FlowTurn::Queued;
                        self.queue.push_back((number, *n));
                    }
                }
                Outcome::Failed(error) => {
                    source.trouble = Some(error.to_string());
                    flow.turn = FlowTurn::Later;
                    self.later.push((now + STORAGE_PAUSE, number, *n));
                }
            }
        }
        if let Outcome::Waiting(at_end) = &done.outcome
            && is_current
        {
            let here = |n: &usize| {
                let flow = self.sources.get(&number)?.flows.get(*n)?;
                flow.read.same_place(&done.after).then_some(*n)
            };
            let flows: Vec<usize> = flows.iter().filter_map(here).collect();
            self.waiting(number, &flows, at_end, now);
        }
        self.lose(number);
        sends
    }
}

pub(super) enum May {
    Read,
    Not(FlowTurn),
}

fn target_of(spec: &Spec, output: usize) -> &str {
    spec.outputs
        .iter()
        .find(|(number, _)| *number == output)
        .map_or("", |(_, target)| target)
}

fn target_arc(spec: &Spec, output: usize) -> Arc<str> {
    spec.outputs
        .iter()
        .find(|(number, _)| *number == output)
        .map_or_else(|| Arc::from(""), |(_, target)| Arc::clone(target))
}
