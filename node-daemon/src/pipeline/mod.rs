//! The pipeline: every source, flow and output of the daemon, and the steps that move them.
//! Place: the whole picture. Bytes: `apply` (the follower's word) -> `turn` (a worker's slice), `end` (what is open at
//! the end of a file) -> `ack::next_load` (to the transport); positions: `ack` (the output's word) -> `save` (the
//! checkpoint). This page has what threads call; those have the steps themselves.
//! Invariants: one lock, never held while a file is read, a record encoded, or anything sent or synced; every step is
//! a function that threads only call, so that the simulation runs this very code; only a verdict moves a cursor.

mod ack;
mod apply;
mod end;
mod rate;
mod reload;
mod save;
mod turn;
mod view;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use ringpilot_shared::follow::{Event, Positions, StreamKey, WantId};
use ringpilot_shared::host::{Host, Wakes};
use tokio::sync::Notify;

pub use reload::MOST_OUTPUTS;
pub use view::View;

use crate::batch::{Codec, Day, Pool, SpanOf};
use crate::checkpoint::{Entry, FlowKey, Journal, SavedFlow, SavedSource};
use crate::control::tap::Whose;
use crate::declare::StartAt;
use crate::flow::FlowTurn;
use crate::follow::{Source, Spec};
use crate::ledger::{Ledger, Lost};
use crate::ship::dead_letter::{DeadLetters, Kept, Letter};
use crate::ship::retry::{Attempt, Refusal, Shipper};
use crate::ship::{Output, Verdict};
use crate::worker::{Done, Job, Worker};

const NS_PER_DAY: i64 = 86_400_000_000_000;

/// The daemon's data path. Shared by every thread of it.
#[derive(Debug)]
pub struct Pipeline {
    state: Mutex<State>,
    work: Condvar,
    host: Arc<dyn Host>,
    journal: Arc<dyn Journal>,
    dead_letters: Arc<dyn DeadLetters>,
    budget: Arc<AtomicUsize>,
    pool: Arc<Pool>,
    /// One for each output there may ever be: told when it may have something to send.
    pub shipping: Vec<Notify>,
    saving: (Mutex<bool>, Condvar),
    /// Wakes the follower when there is something for it to judge.
    pub follower: OnceLock<Arc<dyn Wakes>>,
}

/// What the pipeline is made with.
#[derive(Debug)]
pub struct Plan {
    /// This node's name: part of every source hash.
    pub node: String,
    /// Most encoded bytes in memory.
    pub memory_budget: usize,
    /// Where files begin that are there at the first start on a fresh `data_dir`.
    pub start_at: StartAt,
    /// Everything is read only so far as it is when it is first seen.
    pub once: bool,
    /// The outputs.
    pub outputs: Vec<OutputPlan>,
}

/// One output of the plan.
#[derive(Debug)]
pub struct OutputPlan {
    /// Its queue.
    pub shipper: Shipper,
    /// How its records are written.
    pub codec: Codec,
    /// Where it begins if it is new on a `data_dir` that is not; at the end if `None`.
    pub start_at: Option<StartAt>,
    /// Whether the checkpoint knows it.
    pub known: bool,
    /// Whether it names an index or path by the day, so that the read day must be durable before it is used.
    pub dated: bool,
}

/// How an output is reached.
#[derive(Debug, Clone)]
pub struct Route {
    /// Where loads go.
    pub output: Arc<dyn Output>,
    /// How its records are written.
    pub codec: Codec,
    /// How long one attempt may take.
    pub timeout: Duration,
}

/// What the checkpoint knew at the start.
#[derive(Debug, Default)]
pub struct Known {
    /// Sources.
    pub sources: HashMap<(StreamKey, Arc<str>), SavedSource>,
    /// Flows.
    pub flows: HashMap<FlowKey, SavedFlow>,
    /// Which stream took each one's name.
    pub successors: HashMap<StreamKey, StreamKey>,
    /// The furthest cursor of each stream, and the hash before it.
    pub furthest: HashMap<StreamKey, (u64, u64)>,
    /// Nothing was known: the first start on this `data_dir`.
    pub fresh: bool,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    known: Known,
    /// Whose name each stream took, as far as that is known from before.
    predecessors: HashMap<StreamKey, StreamKey>,
    sources: BTreeMap<u64, Source>,
    by_stream: HashMap<StreamKey, Vec<u64>>,
    wants: HashMap<WantId, Want>,
    next_source: u64,
    queue: VecDeque<(u64, usize)>,
    later: Vec<(Duration, u64, usize)>,
    starved: Vec<Vec<(u64, usize)>>,
    /// Streams that may have been truncated, for the follower to judge.
    suspects: Vec<StreamKey>,
    /// Streams that nobody needs any more, for the follower to let go.
    released: Vec<StreamKey>,
    /// Entries for the next save.
    pending: Vec<Entry>,
    save_number: u64,
    /// The clock at the start.
    started: Duration,
    /// It has been told what was not found again.
    told_missing: bool,
    /// The clock at the last step.
    now: Duration,
    /// When every source was last looked at for what time alone brings.
    scanned_at: Duration,
    must_save: bool,
    saved_at: Duration,
    save_failing: Option<Arc<str>>,
    stopping: bool,
    /// Everything is read only so far as it was when it was first seen.
    once: bool,
    random: u64,
    totals: Totals,
    /// What is wanted and cannot be read.
    troubles: BTreeMap<(WantId, PathBuf), String>,
    /// What became of the bytes of flows that are forgotten, by output.
    closed: Vec<Ledger>,
    /// Outputs that should look for something to send.
    hungry: Vec<usize>,
    rates: rate::Rates,
    /// What the configuration does not want any more.
    dropped_wants: HashSet<WantId>,
    /// When it was last written down which outputs there are, nanoseconds since 1970.
    outputs_told_ns: i64,
}

#[derive(Debug)]
struct Want {
    spec: Arc<Spec>,
    start_at: Option<StartAt>,
    ignore_older: Option<Duration>,
    /// Its container has gone: since when. What the follower's last look finds is still read.
    gone_at: Option<Duration>,
}

/// What was read in this run, over all outputs.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Totals {
    /// Source bytes read, each flow for itself.
    pub read_bytes: u64,
    /// Physical lines read, each flow for itself.
    pub read_lines: u64,
    /// Slices worked.
    pub slices: u64,
}

/// Where a flow reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// The first byte that its next read wants.
    pub from: u64,
    /// How far it has read.
    pub read: u64,
}

/// What a step of a worker came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// A slice was worked.
    Worked,
    /// Nothing is to be read.
    Idle,
}

/// What can be said of the pipeline as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settledness {
    /// Bytes that are read and not settled, or encoded and not sent.
    pub in_flight: u64,
    /// Flows that have something to read as far as is known.
    pub behind: usize,
    /// Flows that wait at an open group.
    pub open: usize,
}

impl Pipeline {
    /// A pipeline that continues what is `known`.
    pub fn new(
        host: Arc<dyn Host>,
        journal: Arc<dyn Journal>,
        dead_letters: Arc<dyn DeadLetters>,
        plan: Plan,
        known: Known,
        seed: u64,
    ) -> Arc<Self> {
        let mut plan = plan;
        for output in &mut plan.outputs {
            output.shipper.dated = output.dated;
        }
        let new = plan.outputs.iter().filter(|output| !output.known);
        let new: Vec<_> = new.map(|output| Arc::clone(&output.shipper.name)).collect();
        let pending = match new.is_empty() {
            true => Vec::new(),
            false => vec![Entry::Outputs(new, host.wall_ns())],
        };
        let starved = plan.outputs.iter().map(|_| Vec::new()).collect();
        let closed = plan.outputs.iter().map(|_| Ledger::default()).collect();
        let shipping = (0..MOST_OUTPUTS.max(plan.outputs.len()))
            .map(|_| Notify::new())
            .collect();
        let saved_at = host.now();
        Arc::new(Self {
            state: Mutex::new(State {
                once: plan.once,
                plan,
                predecessors: known
                    .successors
                    .iter()
                    .map(|(before, next)| (*next, *before))
                    .collect(),
                known,
                sources: BTreeMap::new(),
                by_stream: HashMap::new(),
                wants: HashMap::new(),
                next_source: 0,
                queue: VecDeque::new(),
                later: Vec::new(),
                starved,
                suspects: Vec::new(),
                released: Vec::new(),
                pending,
                save_number: 1,
                started: saved_at,
                told_missing: false,
                now: saved_at,
                scanned_at: Duration::ZERO,
                must_save: false,
                saved_at,
                save_failing: None,
                stopping: false,
                random: seed | 1,
                totals: Totals::default(),
                troubles: BTreeMap::new(),
                closed,
                hungry: Vec::new(),
                rates: rate::Rates::default(),
                dropped_wants: HashSet::new(),
                outputs_told_ns: 0,
            }),
            work: Condvar::new(),
            host,
            journal,
            dead_letters,
            budget: Arc::default(),
            pool: Arc::default(),
            shipping,
            saving: (Mutex::new(false), Condvar::new()),
            follower: OnceLock::new(),
        })
    }

    /// A worker for this pipeline.
    #[must_use]
    pub fn worker(&self) -> Worker {
        Worker::new(Arc::clone(&self.pool), Arc::clone(&self.budget))
    }

    /// Encoded bytes in memory.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.budget.load(Ordering::Relaxed)
    }

    /// Takes note of what a want is for, before the follower is told of it.
    pub fn want(
        &self,
        want: WantId,
        spec: Arc<Spec>,
        start_at: Option<StartAt>,
        ignore_older: Option<Duration>,
    ) {
        let want_of = Want {
            spec,
            start_at,
            ignore_older,
            gone_at: None,
        };
        self.state.lock().wants.insert(want, want_of);
    }

    /// A want's container has gone: another's claim counts from now on where there is one.
    pub fn unwant(&self, want: WantId) {
        let now = self.host.now();
        let mut state = self.state.lock();
        if let Some(want) = state.wants.get_mut(&want) {
            want.gone_at.get_or_insert(now);
        }
        for source in state.sources.values_mut() {
            if let Some(claim) = source.claims.iter_mut().find(|claim| claim.want == want) {
                claim.gone = true;
                // The first that lives counts; where none does, the last one's words go on.
                source
                    .claims
                    .sort_by_key(|claim| (claim.gone, claim.spec.created_ns));
                if source.claims.iter().any(|claim| !claim.gone) {
                    source.claims.retain(|claim| !claim.gone);
                }
            }
        }
    }

    /// Takes the follower's word.
    pub fn apply(&self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let now = self.host.now();
        let mut state = self.state.lock();
        for event in events {
            state.apply(event, &*self.host, now);
        }
        let must_save = state.needs_save();
        drop(state);
        self.work.notify_all();
        if must_save {
            self.save_soon();
        }
    }

    /// Streams that may have been truncated, and those that may be let go; each told once.
    #[must_use]
    pub fn for_follower(&self) -> (Vec<StreamKey>, Vec<StreamKey>) {
        let mut state = self.state.lock();
        (
            std::mem::take(&mut state.suspects),
            std::mem::take(&mut state.released),
        )
    }

    /// Reads and works one slice of the flow whose turn it is.
    pub fn turn(&self, worker: &mut Worker) -> Turn {
        self.turn_told(worker, &mut |_, _, _| {})
    }

    /// The same, and tells what was worked, and for which flows of its source.
    pub fn turn_told(
        &self,
        worker: &mut Worker,
        told: &mut dyn FnMut(&Job, &[usize], &Done),
    ) -> Turn {
        let (picked, hungry) = {
            let mut state = self.state.lock();
            let picked = state.pick(self.host.wall_ns());
            (picked, std::mem::take(&mut state.hungry))
        };
        for output in hungry {
            self.shipping[output].notify_one();
        }
        let Some((job, source, flows)) = picked else {
            return Turn::Idle;
        };
        let done = worker.work(&job);
        told(&job, &flows, &done);
        let mut state = self.state.lock();
        let sends = state.commit(source, &flows, &job, done, self.host.now());
        let must_save = state.needs_save();
        let has_suspects = !state.suspects.is_empty();
        drop(state);
        if has_suspects && let Some(wakes) = self.follower.get() {
            wakes.wake();
        }
        for output in sends {
            self.shipping[output].notify_one();
        }
        if must_save {
            self.save_soon();
        }
        Turn::Worked
    }

    /// Waits until there may be work, at most `longest`.
    pub fn wait_for_work(&self, longest: Duration) {
        let mut state = self.state.lock();
        if state.queue.is_empty() {
            self.work.wait_for(&mut state, longest);
        }
    }

    /// Does what time alone brings: groups that have rested long enough are closed, errors tried again, the day
    /// turns. To be called at least each 100 ms.
    pub fn tick(&self) {
        let now = self.host.now();
        let mut state = self.state.lock();
        state.tick(now, self.host.wall_ns());
        let must_save = state.needs_save();
        let has_work = !state.queue.is_empty();
        drop(state);
        if has_work {
            self.work.notify_all();
        }
        if must_save {
            self.save_soon();
        }
    }

    /// The next load for an output to send now, if any.
    #[must_use]
    pub fn next_load(&self, output: usize) -> Option<Attempt> {
        let mut state = self.state.lock();
        state.next_load(output, self.host.now())
    }

    /// When [`Pipeline::next_load`] may have something that it has not now.
    #[must_use]
    pub fn wakes_at(&self, output: usize) -> Option<Duration> {
        self.state.lock().plan.outputs[output].shipper.wakes_at()
    }

    /// Takes an output's word on a load. Blocking where records become dead letters.
    pub fn finish(&self, output: usize, number: u64, verdict: Verdict) {
        let now = self.host.now();
        let mut state = self.state.lock();
        let finished = state.plan.outputs[output]
            .shipper
            .finish(number, verdict, now);
        let refused = state.settle(output, finished);
        if state.plan.outputs[output].shipper.removed {
            state.drop_gathered(output);
        }
        if !refused.is_empty() {
            let name = Arc::clone(&state.plan.outputs[output].shipper.name);
            let whence: Vec<_> = refused.iter().map(|one| state.whence(one)).collect();
            drop(state);
            let kept = self.bury(&name, &refused, &whence);
            state = self.state.lock();
            state.buried(output, refused, kept, self.host.now());
        }
        drop(state);
        self.work.notify_all();
        self.shipping[output].notify_one();
    }

    fn bury(
        &self,
        output: &str,
        refused: &[Refusal],
        whence: &[(String, String)],
    ) -> Result<Kept, String> {
        let letters: Vec<Letter<'_>> = refused
            .iter()
            .zip(whence)
            .filter_map(|(refusal, (log, path))| {
                let (chunk, n, _) = ack::locate(refusal)?;
                Some(Letter {
                    log,
                    path,
                    target: &refusal.batch.target,
                    day: chunk.day,
                    reason: &refusal.reason,
                    detail: &refusal.detail,
                    source_hash: chunk.source_hash,
                    generation: chunk.generation,
                    start: chunk.records[n].start,
                    record: chunk.record(n),
                })
            })
            .collect();
        self.dead_letters.put(output, &letters)
    }

    /// Writes down what has changed, durably. The file output's files first, then the cursors that depend on them.
    ///
    /// # Errors
    /// As the disk gives them; delivery goes on, and the next save tries again.
    pub fn save(&self) -> std::io::Result<()> {
        let now = self.host.now();
        let mut state = self.state.lock();
        let (number, entries) = state.snapshot(self.host.wall_ns());
        let committing: Vec<_> = state
            .plan
            .outputs
            .iter()
            .filter(|output| output.shipper.output.commits() && !output.shipper.removed)
            .map(|output| Arc::clone(&output.shipper.output))
            .collect();
        drop(state);
        let mut result = Ok(());
        for output in committing {
            if let Err(error) = output.sync() {
                result = Err(error);
            }
        }
        if result.is_ok() {
            // What cannot be appended is remembered, and written by the sync: only that tries again what failed before.
            drop(self.journal.append(&entries));
            result = self.journal.sync();
        }
        let mut state = self.state.lock();
        state.saved(number, entries, result.as_ref().err(), now);
        drop(state);
        self.work.notify_all();
        result
    }

    /// Where an output's loads go.
    #[must_use]
    pub fn output(&self, output: usize) -> Arc<dyn Output> {
        Arc::clone(&self.state.lock().plan.outputs[output].shipper.output)
    }

    /// Where an output's loads go, and how long one may take.
    #[must_use]
    pub fn way_of(&self, output: usize) -> (Arc<dyn Output>, Duration) {
        let state = self.state.lock();
        let shipper = &state.plan.outputs[output].shipper;
        (Arc::clone(&shipper.output), shipper.timeout)
    }

    /// An output's name, and whose each of these spans of its flows is, for those who look on.
    #[must_use]
    pub fn logs_of(
        &self,
        output: usize,
        spans: &[SpanOf],
    ) -> Option<(Arc<str>, Vec<Option<Whose>>)> {
        let state = self.state.lock();
        let name = Arc::clone(&state.plan.outputs.get(output)?.shipper.name);
        let mut last: Option<(u64, usize)> = None;
        let mut all: Vec<Option<Whose>> = Vec::with_capacity(spans.len());
        for span in spans {
            let number = span.source / 256;
            // Neighbours are mostly of one source.
            if let Some((known, at)) = last
                && known == number
            {
                let whose = all[at].clone();
                all.push(whose);
                continue;
            }
            last = Some((number, all.len()));
            all.push(state.sources.get(&number).map(|source| {
                let spec = source.spec();
                Whose {
                    called: spec.called(),
                    names: vec![
                        spec.who.clone(),
                        spec.name.to_string(),
                        spec.owner.to_string(),
                        source.path.to_string_lossy().into_owned(),
                    ],
                }
            }));
        }
        Some((name, all))
    }

    /// How an output is reached now, by its name.
    #[must_use]
    pub fn route_of(&self, name: &str) -> Option<Route> {
        let state = self.state.lock();
        let plan = state.plan.outputs.iter();
        plan.filter(|plan| !plan.shipper.removed && *plan.shipper.name == *name)
            .map(|plan| Route {
                output: Arc::clone(&plan.shipper.output),
                codec: plan.codec,
                timeout: plan.shipper.timeout,
            })
            .next()
    }

    /// What the outputs are called.
    #[must_use]
    pub fn output_names(&self) -> Vec<Arc<str>> {
        let state = self.state.lock();
        let names = state.plan.outputs.iter();
        names
            .filter(|plan| !plan.shipper.removed)
            .map(|plan| Arc::clone(&plan.shipper.name))
            .collect()
    }

    /// Wakes every thread that waits for work.
    pub fn wake_all(&self) {
        self.work.notify_all();
        self.save_soon();
        self.shipping.iter().for_each(Notify::notify_one);
    }

    /// Who a want is for, for telling people.
    #[must_use]
    pub fn spec_of(&self, want: WantId) -> Option<Arc<Spec>> {
        self.state
            .lock()
            .wants
            .get(&want)
            .map(|want| Arc::clone(&want.spec))
    }

    /// Where what was there before the daemon is begun, as a want says it, or the configuration; at its beginning on a
    /// `data_dir` that is not fresh.
    #[must_use]
    pub fn start_of(&self, want: WantId) -> StartAt {
        let state = self.state.lock();
        let declared = state.wants.get(&want).and_then(|want| want.start_at);
        match state.known.fresh {
            true => declared.unwrap_or(state.plan.start_at),
            false => StartAt::Beginning,
        }
    }

    /// Whether a container's file of this inode is still a source.
    #[must_use]
    pub fn has_inode(&self, owner: &str, inode: u64) -> bool {
        let state = self.state.lock();
        let mut sources = state.sources.values();
        sources.any(|source| source.identity.inode == inode && &*source.spec().owner == owner)
    }

    /// Whether everything is read only so far as it is when it is first seen.
    #[must_use]
    pub fn is_once(&self) -> bool {
        self.state.lock().once
    }

    /// Asks the saver to save at once.
    pub fn save_soon(&self) {
        *self.saving.0.lock() = true;
        self.saving.1.notify_one();
    }

    /// Waits until somebody asks for a save, at most `longest`; whether somebody did.
    pub fn wait_to_save(&self, longest: Duration) -> bool {
        let mut asked = self.saving.0.lock();
        if !*asked {
            self.saving.1.wait_for(&mut asked, longest);
        }
        std::mem::take(&mut *asked)
    }

    /// Stops reading; what is gathered is sent at once.
    pub fn stop_reading(&self) {
        let mut state = self.state.lock();
        state.stopping = true;
        for output in &mut state.plan.outputs {
            output.shipper.flushing = true;
        }
        drop(state);
        self.shipping.iter().for_each(Notify::notify_one);
    }

    /// What is still on its way.
    #[must_use]
    pub fn settledness(&self) -> Settledness {
        let state = self.state.lock();
        let mut all = Settledness {
            in_flight: 0,
            behind: 0,
            open: 0,
        };
        for source in state.sources.values() {
            for flow in &source.flows {
                all.in_flight += flow.in_flight();
                if !flow.spans.is_empty() {
                    all.in_flight = all.in_flight.max(1);
                }
                let waits = flow.stuck_at == Some(source.stat.size);
                if waits && flow.turn != FlowTurn::Done {
                    let at_end = flow.read.offset >= source.stat.size && flow.read.held.is_empty();
                    all.open += usize::from(!at_end);
                } else if source.file.is_some()
                    && flow.turn != FlowTurn::Done
                    && (flow.read.offset < source.stat.size
                        || !flow.read.held.is_empty()
                        || source.suspended)
                {
                    all.behind += 1;
                }
            }
        }
        for output in &state.plan.outputs {
            if !output.shipper.is_empty() {
                all.in_flight = all.in_flight.max(1);
            }
        }
        all
    }

    /// Ends every file where it is now: open groups are closed there, as `run --once` wants.
    pub fn end_all(&self) {
        let mut state = self.state.lock();
        let numbers: Vec<u64> = state.sources.keys().copied().collect();
        for number in numbers {
            if let Some(source) = state.sources.get_mut(&number) {
                source.finished = true;
            }
            state.wake(number);
        }
        drop(state);
        self.work.notify_all();
    }

    /// Where each flow of a stream stands that still reads it, those of its successor that continue its last group
    /// included; and the offset up to which every flow has settled it.
    #[must_use]
    pub fn needs(&self, stream: StreamKey) -> (Vec<Need>, Option<u64>) {
        self.state.lock().needs(stream)
    }

    /// Whose an open stream is.
    #[must_use]
    pub fn owner_of(&self, stream: StreamKey) -> Option<Arc<str>> {
        let state = self.state.lock();
        let number = state.by_stream.get(&stream)?.first()?;
        Some(Arc::clone(&state.sources.get(number)?.spec().owner))
    }

    /// Counts as lost what is not read of a stream that cannot be read any more.
    pub fn give_up(&self, stream: StreamKey, reason: Lost) {
        self.state.lock().give_up(stream, reason);
        self.work.notify_all();
    }

    /// What bytes in memory are counted in.
    #[must_use]
    pub fn budget(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.budget)
    }

    /// Looks at everything, for the status page and the metrics.
    pub fn look<T>(&self, at: impl FnOnce(View<'_>) -> T) -> T {
        let state = self.state.lock();
        at(View {
            state: &state,
            now: self.host.now(),
        })
    }
}

impl Positions for Pipeline {
    fn furthest(&self, stream: StreamKey) -> Option<(u64, u64)> {
        self.state.lock().furthest(stream)
    }
    fn read_by_all(&self, stream: StreamKey) -> Option<u64> {
        self.state.lock().read_by_all(stream)
    }
}

impl State {
    fn random(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn day_of(wall_ns: i64) -> Day {
    Day::try_from(wall_ns.div_euclid(NS_PER_DAY)).unwrap_or(0)
}
