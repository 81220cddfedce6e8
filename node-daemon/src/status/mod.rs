//! What an operator sees: one snapshot of all that the daemon knows of itself, behind the page, the metrics and
//! `explain`.
//! Place: beside the flow; reads the pipeline and the problems, changes nothing.
//! Invariants: the pipeline's lock is held only while plain data is copied, text is made after it; one snapshot is
//! made at a time; no setting of an output is shown, so no secret is. Source of the shape: the interface's HTTP part.

pub mod explain;
pub mod http;
mod limit;
pub mod metrics;
mod snapshot;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringpilot_shared::follow::StreamKey;
use serde::{Serialize, Serializer};

pub use http::{Served, serve};
pub use snapshot::{
    Account, CheckpointState, Container, ContainerLag, FlowState, Output, Read, Replayed, Ring,
    Snapshot, Source, State, Waiting,
};

use crate::daemon::Daemon;
use crate::flow::{Flow, FlowTurn};
use crate::follow::{Source as Followed, Spec};
use crate::ledger::{Ledger, Tally};
use crate::pipeline::{Pipeline, Totals, View};
use crate::problem::{Problem, Problems};
use crate::rings::{RingStatus, Rings};

/// Where snapshots are taken.
#[derive(Debug)]
pub struct Status {
    pipeline: Arc<Pipeline>,
    problems: Arc<Problems>,
    ready: Arc<AtomicBool>,
    node: String,
    per_container: bool,
    started: Duration,
    rings: Option<Rings>,
}

fn ring(ring: RingStatus) -> Ring {
    Ring {
        pod: ring.pod,
        state: ring.state.to_owned(),
        files: ring.files,
        bytes: ring.bytes,
        frames: ring.frames,
        held_bytes: ring.held_bytes,
        last_error: ring.last_error,
    }
}

/// Sources as they were copied: made into text one by one, while they are written.
#[derive(Debug)]
pub struct Rows {
    rows: Vec<Row>,
    outputs: Arc<[Arc<str>]>,
}

#[derive(Debug)]
struct Row {
    spec: Arc<Spec>,
    stream: StreamKey,
    path: PathBuf,
    inode: u64,
    size: u64,
    read: u64,
    state: State,
    trouble: Option<String>,
    idle: Duration,
    flows: Vec<RowFlow>,
}

#[derive(Debug)]
struct RowFlow {
    output: usize,
    acked: u64,
    lag: u64,
    lines: u64,
    error: Option<Arc<str>>,
}

/// What one output's flows come to while they are looked at.
#[derive(Debug, Clone, Default)]
struct Sum {
    lag: u64,
    /// By the positions of the flows.
    read: u64,
    /// By the ledgers of the same flows.
    accounted: u64,
    open: u64,
    in_flight: Tally,
}

/// What is copied while the lock is held.
#[derive(Debug)]
struct Looked {
    now: Duration,
    rows: Vec<Row>,
    states: BTreeMap<State, u64>,
    waiting: Vec<Arc<Spec>>,
    sums: Vec<(Sum, Ledger)>,
    outputs: Vec<(Output, Arc<str>)>,
    /// Which of them the configuration has no more: their numbers stay.
    removed: Vec<bool>,
    checkpoint: CheckpointState,
    totals: Totals,
}

impl Status {
    /// The status of a daemon.
    #[must_use]
    pub fn of(daemon: &Daemon) -> Arc<Self> {
        let settings = &daemon.settings;
        Self::new(
            Arc::clone(&daemon.pipeline),
            Arc::clone(&daemon.problems),
            daemon.readiness(),
            &settings.node_name,
            settings.per_container_metrics,
            daemon.rings.clone(),
        )
    }

    /// The status of a pipeline that starts now.
    #[must_use]
    pub fn new(
        pipeline: Arc<Pipeline>,
        problems: Arc<Problems>,
        ready: Arc<AtomicBool>,
        node: &str,
        per_container: bool,
        rings: Option<Rings>,
    ) -> Arc<Self> {
        let started = pipeline.look(|view| view.now);
        Arc::new(Self {
            pipeline,
            problems,
            ready,
            node: node.to_owned(),
            per_container,
            started,
            rings,
        })
    }

    /// Whether the first full list of every runtime has been heard.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Everything at this moment; without the sources' own rows unless they are wanted.
    #[must_use]
    pub fn snapshot(&self, with_sources: bool) -> Snapshot<Rows> {
        let looked = self.pipeline.look(|view| look(&view, with_sources));
        let problems = self.problems.all();
        let ready = self.is_ready();
        let names: Arc<[Arc<str>]> = looked
            .outputs
            .iter()
            .map(|(_, name)| Arc::clone(name))
            .collect();
        let ledger = names
            .iter()
            .zip(&looked.sums)
            .zip(&looked.removed)
            .filter(|(_, removed)| !**removed)
            .map(|((name, (sum, ledger)), _)| (name.to_string(), account(sum, ledger)))
            .collect();
        Snapshot {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: looked.now.saturating_sub(self.started).as_secs_f64(),
            ready,
            not_ready_because: if ready {
                String::new()
            } else {
                not_ready(&problems)
            },
            ledger,
            sources_by_state: looked.states,
            sources: Rows {
                rows: looked.rows,
                outputs: names,
            },
            waiting: looked
                .waiting
                .iter()
                .map(|spec| Waiting {
                    name: spec.name.to_string(),
                    target: spec.shown.target.clone(),
                    container: container(spec),
                    via: spec.shown.via.to_owned(),
                    way: spec.shown.way.clone(),
                })
                .collect(),
            outputs: looked
                .outputs
                .into_iter()
                .zip(&looked.removed)
                .filter(|(_, removed)| !**removed)
                .map(|((shown, _), _)| shown)
                .collect(),
            rings: self
                .rings
                .iter()
                .flat_map(Rings::status)
                .map(ring)
                .collect(),
            ring_frames: self.rings.as_ref().map_or(0, Rings::frames),
            problems,
            checkpoint: looked.checkpoint,
            read: Read {
                bytes: looked.totals.read_bytes,
                lines: looked.totals.read_lines,
            },
            held_bytes: self.pipeline.held_bytes() as u64,
        }
    }

    /// The metrics at this moment, as text.
    ///
    /// # Errors
    /// None but a formatter's own.
    pub fn metrics(&self) -> Result<String, std::fmt::Error> {
        let snapshot = self.snapshot(self.per_container);
        let containers = snapshot.sources.by_container();
        metrics::text(&snapshot, &containers, metrics::Process::now().as_ref())
    }
}

impl Rows {
    /// The sources as they are told.
    pub fn told(&self) -> impl Iterator<Item = Source> {
        self.rows.iter().map(|row| row.tell(&self.outputs))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Lag and lines by container and output.
    #[must_use]
    pub fn by_container(&self) -> Vec<ContainerLag> {
        let mut all: BTreeMap<(&str, &str, &str, usize), ContainerLag> = BTreeMap::new();
        for row in &self.rows {
            let shown = &row.spec.shown;
            // The configuration's own sources are no container's; they are told together.
            let name = if row.spec.owner.is_empty() {
                ""
            } else {
                shown.container.as_str()
            };
            for flow in &row.flows {
                let key = (
                    shown.namespace.as_str(),
                    shown.pod.as_str(),
                    name,
                    flow.output,
                );
                let one = all.entry(key).or_insert_with(|| ContainerLag {
                    namespace: shown.namespace.clone(),
                    pod: shown.pod.clone(),
                    container: name.to_owned(),
                    output: self.outputs[flow.output].to_string(),
                    ..ContainerLag::default()
                });
                one.lag_bytes += flow.lag;
                one.delivered_lines += flow.lines;
            }
        }
        all.into_values().collect()
    }
}

impl Serialize for Rows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.told())
    }
}

impl Row {
    fn tell(&self, outputs: &[Arc<str>]) -> Source {
        let (spec, shown) = (&self.spec, &self.spec.shown);
        let flows = self.flows.iter().map(|flow| FlowState {
            output: outputs[flow.output].to_string(),
            acked_bytes: flow.acked,
            lag_bytes: flow.lag,
            lag_seconds: match flow.lag {
                0 => 0.0,
                _ => self.idle.as_secs_f64(),
            },
            last_error: match &self.trouble {
                Some(trouble) => Some(trouble.clone()),
                None => flow.error.as_deref().map(str::to_owned),
            },
        });
        Source {
            id: format!(
                "{:016x}-{}-{}",
                self.stream.id, self.stream.generation, spec.name
            ),
            name: spec.name.to_string(),
            target: shown.target.clone(),
            format: shown.format.to_owned(),
            container: container(spec),
            via: shown.via.to_owned(),
            way: shown.way.clone(),
            path: self.path.to_string_lossy().into_owned(),
            inode: self.inode,
            size_bytes: self.size,
            read_bytes: self.read,
            state: self.state,
            trouble: self.trouble.clone(),
            flows: flows.collect(),
        }
    }
}

fn container(spec: &Spec) -> Container {
    let shown = &spec.shown;
    Container {
        runtime: shown.runtime.clone(),
        id: spec.owner.to_string(),
        name: shown.container.clone(),
        pod: shown.pod.clone(),
        namespace: shown.namespace.clone(),
        who: spec.who.clone(),
    }
}

/// Copies what is told; the pipeline stands still meanwhile.
fn look(view: &View<'_>, with_sources: bool) -> Looked {
    let mut removed = Vec::new();
    let mut outputs: Vec<(Output, Arc<str>)> = view
        .outputs()
        .map(|shipper| {
            let counts = &shipper.counts;
            let told = |text: &Option<Arc<str>>| text.as_deref().map(str::to_owned);
            let shown = Output {
                name: shipper.name.to_string(),
                kind: shipper.kind.clone(),
                guarantee: guarantee(shipper.output.guarantee()).to_owned(),
                up: counts.trouble.is_none(),
                lag_bytes: 0,
                held_bytes: shipper.held as u64,
                share_bytes: shipper.share as u64,
                requests: counts
                    .requests
                    .iter()
                    .map(|(code, n)| ((*code).to_owned(), *n))
                    .collect(),
                retries: counts.retries,
                dead_letters: counts
                    .dead_letters
                    .iter()
                    .map(|(reason, n)| (reason.to_string(), *n))
                    .collect(),
                trouble: told(&counts.trouble),
                last_trouble: told(&counts.last_trouble),
            };
            removed.push(shipper.removed);
            (shown, Arc::clone(&shipper.name))
        })
        .collect();
    let troubles: Vec<Option<Arc<str>>> = view
        .outputs()
        .map(|shipper| shipper.counts.trouble.clone())
        .collect();
    let mut sums = vec![Sum::default(); outputs.len()];
    let mut states: BTreeMap<State, u64> = State::ALL.map(|state| (state, 0)).into();
    let mut with_file = HashSet::new();
    // Of their number, and not as vectors grow: with thousands that is most of what a look takes.
    let mut rows = Vec::new();
    if with_sources {
        rows.reserve_exact(view.sources().count());
    }
    // What the configuration wants no more is open only until nobody names it; its ledger counts as that of files gone.
    for source in view.sources().filter(|source| !source.ended) {
        let state = State::of(source);
        *states.entry(state).or_default() += 1;
        with_file.extend(source.claims.iter().map(|claim| claim.want));
        for flow in source.flows.iter().filter(|flow| !flow.retired) {
            sums[flow.output].add(source, flow);
        }
        if with_sources {
            rows.push(row(source, state, view.now, &troubles));
        }
    }
    let waiting = view
        .wants()
        .filter(|(want, _)| !with_file.contains(want))
        .map(|(_, spec)| Arc::clone(spec))
        .collect();
    for ((shown, _), sum) in outputs.iter_mut().zip(&sums) {
        shown.lag_bytes = sum.lag;
    }
    Looked {
        now: view.now,
        rows,
        states,
        waiting,
        sums: sums
            .into_iter()
            .enumerate()
            .map(|(n, sum)| (sum, view.ledger(n).0))
            .collect(),
        outputs,
        removed,
        checkpoint: CheckpointState {
            age_seconds: view.checkpoint_age().as_secs_f64(),
            failing: view.save_failing().map(ToString::to_string),
        },
        totals: view.totals(),
    }
}

fn row(source: &Followed, state: State, now: Duration, troubles: &[Option<Arc<str>>]) -> Row {
    let mut flows = Vec::with_capacity(source.flows.len());
    for flow in source.flows.iter().filter(|flow| !flow.retired) {
        let lag = source.lag(flow);
        flows.push(RowFlow {
            output: flow.output,
            acked: settled(flow),
            lag,
            lines: flow.ledger.delivered.lines,
            error: troubles[flow.output].clone().filter(|_| lag > 0),
        });
    }
    Row {
        spec: Arc::clone(source.spec()),
        stream: source.stream,
        path: source.path.clone(),
        inode: source.stat.inode,
        size: source.stat.size,
        read: source
            .flows
            .iter()
            .map(|flow| flow.read.offset)
            .max()
            .unwrap_or(0),
        state,
        trouble: match (&source.trouble, state) {
            (None, State::Unreadable) => {
                Some("its file is not open: it is not found again".to_owned())
            }
            (trouble, _) => trouble.clone(),
        },
        idle: now.saturating_sub(source.grew_at),
        flows,
    }
}

/// Everything before is settled: the cursor, less what open groups hold before it.
fn settled(flow: &Flow) -> u64 {
    flow.cursor.offset.saturating_sub(flow.cursor.held_bytes())
}

impl Sum {
    fn add(&mut self, source: &Followed, flow: &Flow) {
        self.lag += source.lag(flow);
        let open = flow.read.held_bytes();
        let handed = flow.handed + flow.spans.iter().map(|span| span.handed).sum::<u64>();
        self.read += (flow.read.offset + flow.brought).saturating_sub(flow.start + handed + open);
        self.accounted += flow.ledger.accounted();
        if flow.turn != FlowTurn::Done {
            self.open += open;
        }
        self.in_flight.add(Tally {
            bytes: flow.in_flight(),
            lines: flow.spans.iter().map(|span| span.lines).sum(),
            records: flow.spans.iter().map(|span| span.records).sum(),
        });
    }
}

fn account(sum: &Sum, ledger: &Ledger) -> Account {
    let lost = ledger.lost_total();
    let in_flight = sum.in_flight;
    // Files that are gone are in the ledger alone.
    let gone = ledger.accounted().saturating_sub(sum.accounted);
    let read = Tally {
        bytes: sum.read + gone,
        lines: ledger.lines() + in_flight.lines,
        records: ledger.records() + in_flight.records,
    };
    Account {
        read,
        delivered: ledger.delivered,
        dead_lettered: ledger.dead_lettered,
        filtered: ledger.filtered,
        lost,
        lost_by_reason: ledger.lost.clone(),
        in_flight,
        replayed: Replayed {
            bytes: ledger.replayed,
        },
        duplicate_records: ledger.duplicates,
        open_bytes: sum.open,
        closes: read.bytes == ledger.accounted() + in_flight.bytes,
    }
}

fn guarantee(of: crate::ship::Guarantee) -> &'static str {
    use crate::ship::Guarantee;
    match of {
        Guarantee::EffectivelyOnce => "effectively-once",
        Guarantee::AtLeastOnce => "at-least-once",
        Guarantee::NotAcknowledged => "not-acknowledged",
    }
}

/// Why the daemon is not ready, with the runtime that keeps it where one does.
fn not_ready(problems: &[Problem]) -> String {
    let runtime = problems
        .iter()
        .find(|problem| problem.key.starts_with("discover."));
    match runtime {
        Some(problem) => format!("the first list of containers has not come: {problem}"),
        None => "the first list of containers has not come".to_owned(),
    }
}

#[cfg(test)]
mod tests;
