//! Each number's name, unit and help, as Prometheus reads them.
//! Place: a snapshot -> **metrics** -> `/metrics`.
//! Invariants: a name stays what it is; what has no value yet is 0 and not missing; label values are few, those that a
//! container or server chooses included. Source: OpenMetrics 1.0 (a counter's family has no `_total`, its sample has).

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::{ContainerLag, Snapshot, State};
use crate::ledger::Lost;

/// What `Content-Type` the text has.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Clock ticks per second in `/proc/self/stat`: the kernel's USER_HZ is 100 on every machine we run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// The states that a ring may be in.
const RING_STATES: [&str; 4] = ["connected", "draining", "poisoned", "waiting"];

/// What the kernel says of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Process {
    /// Processor time, user and system.
    pub cpu_seconds: f64,
    /// Memory in RAM.
    pub resident_bytes: u64,
    /// Open files.
    pub open_fds: u64,
}

impl Process {
    /// As of now; `None` where `/proc` is not there.
    #[must_use]
    pub fn now() -> Option<Self> {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).ok();
        Some(Self {
            cpu_seconds: cpu_seconds(&read("stat")?)?,
            resident_bytes: resident_bytes(&read("status")?)?,
            open_fds: std::fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        })
    }
}

/// Fields 14 and 15 of `stat`, counted after the name, which may hold anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// A snapshot as text; `containers` is empty unless lag per container is wanted.
///
/// # Errors
/// None but a formatter's own.
pub fn text<Sources>(
    snapshot: &Snapshot<Sources>,
    containers: &[ContainerLag],
    process: Option<&Process>,
) -> Result<String, fmt::Error> {
    let mut families = families(snapshot);
    if !containers.is_empty() {
        families.extend(of_containers(containers));
    }
    if let Some(process) = process {
        families.extend(of_process(process));
    }
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(families)));
    let mut written = String::new();
    text::encode(&mut written, &registry)?;
    Ok(written)
}

/// One metric with all its samples.
#[derive(Debug)]
struct Family {
    name: &'static str,
    unit: Option<Unit>,
    help: &'static str,
    is_counter: bool,
    samples: Vec<(Vec<(&'static str, String)>, Number)>,
}

#[derive(Debug, Clone, Copy)]
enum Number {
    Whole(u64),
    Fraction(f64),
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Family {
    fn counter(name: &'static str, unit: Option<Unit>, help: &'static str) -> Self {
        Self {
            name,
            unit,
            help,
            is_counter: true,
            samples: Vec::new(),
        }
    }

    fn gauge(name: &'static str, unit: Option<Unit>, help: &'static str) -> Self {
        Self {
            is_counter: false,
            ..Self::counter(name, unit, help)
        }
    }

    fn with(mut self, labels: &[(&'static str, &str)], value: u64) -> Self {
        self.push(labels, Number::Whole(value));
        self
    }

    fn seconds(mut self, value: f64) -> Self {
        self.push(&[], Number::Fraction(value));
        self
    }

    fn push(&mut self, labels: &[(&'static str, &str)], value: Number) {
        let labels = labels
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        self.samples.push((labels, value));
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for family in &self.0 {
            let kind = if family.is_counter {
                MetricType::Counter
            } else {
                MetricType::Gauge
            };
            let mut metric =
                encoder.encode_descriptor(family.name, family.help, family.unit.as_ref(), kind)?;
            for (labels, value) in &family.samples {
                match (labels.is_empty(), family.is_counter) {
                    (true, true) => match value {
                        Number::Whole(n) => metric.encode_counter::<NoLabelSet, _, u64>(n, None)?,
                        Number::Fraction(n) => {
                            metric.encode_counter::<NoLabelSet, _, u64>(n, None)?;
                        }
                    },
                    (true, false) => match value {
                        Number::Whole(n) => metric.encode_gauge(n)?,
                        Number::Fraction(n) => metric.encode_gauge(n)?,
                    },
                    (false, is_counter) => {
                        let one = metric.encode_family(labels)?;
                        match (value, is_counter) {
                            (Number::Whole(n), true) => ConstCounter::new(*n).encode(one)?,
                            (Number::Fraction(n), true) => ConstCounter::new(*n).encode(one)?,
                            (Number::Whole(n), false) => ConstGauge::new(*n).encode(one)?,
                            (Number::Fraction(n), false) => ConstGauge::new(*n).encode(one)?,
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// The families that are there whatever is asked for.
fn families<Sources>(snapshot: &Snapshot<Sources>) -> Vec<Family> {
    let mut all = vec![
        Family::counter(
            "ringpilot_read",
            Some(Unit::Bytes),
            "Source bytes read since the start, each output for itself",
        )
        .with(&[], snapshot.read.bytes),
        Family::counter(
            "ringpilot_read_lines",
            None,
            "Physical lines read since the start, each output for itself",
        )
        .with(&[], snapshot.read.lines),
    ];
    all.extend(of_ledgers(snapshot));
    all.extend(of_outputs(snapshot));
    let mut sources = Family::gauge(
        "ringpilot_sources",
        None,
        "Files and streams by what they are doing",
    );
    for state in State::ALL {
        let n = snapshot.sources_by_state.get(&state).copied();
        sources.push(
            &[("state", state.label())],
            Number::Whole(n.unwrap_or_default()),
        );
    }
    all.push(sources);
    all.push(
        Family::gauge(
            "ringpilot_waiting_declarations",
            None,
            "Declarations whose files are not there yet",
        )
        .with(&[], snapshot.waiting.len() as u64),
    );
    all.push(
        Family::gauge(
            "ringpilot_declaration_problems",
            None,
            "Problems with what workloads or the operator asked for; /api/status and explain tell each",
        )
        .with(&[], snapshot.problems.len() as u64),
    );
    all.push(
        Family::counter(
            "ringpilot_ring_frames",
            None,
            "Frames taken from the shims' rings",
        )
        .with(&[], snapshot.ring_frames),
    );
    let mut rings = Family::gauge("ringpilot_rings", None, "Rings of shims by state");
    for state in RING_STATES {
        let n = snapshot.rings.iter().filter(|ring| ring.state == state);
        rings.push(&[("state", state)], Number::Whole(n.count() as u64));
    }
    all.push(rings);
    all.push(
        Family::gauge(
            "ringpilot_checkpoint_age",
            Some(Unit::Seconds),
            "Time since the last good save of the cursors",
        )
        .seconds(snapshot.checkpoint.age_seconds),
    );
    all.push(
        Family::gauge(
            "ringpilot_held",
            Some(Unit::Bytes),
            "Encoded bytes in memory, of at most memory_budget",
        )
        .with(&[], snapshot.held_bytes),
    );
    all
}

/// What the ledgers say. They are kept over restarts: these counters go on where they were.
fn of_ledgers<Sources>(snapshot: &Snapshot<Sources>) -> Vec<Family> {
    let mut delivered = Family::counter(
        "ringpilot_delivered_records",
        None,
        "Records that the output has acknowledged",
    );
    let mut duplicates = Family::counter(
        "ringpilot_duplicate_records",
        None,
        "Delivered records that the output had already, by their id",
    );
    let mut filtered = Family::counter(
        "ringpilot_filtered_records",
        None,
        "Records that the workload's own filters drop",
    );
    let mut lost = Family::counter(
        "ringpilot_lost",
        Some(Unit::Bytes),
        "Source bytes that never reached the output, by reason",
    );
    let mut lost_records = Family::counter(
        "ringpilot_lost_records",
        None,
        "Records that never reached the output, by reason; bytes lost before they were read are no records yet",
    );
    let mut replayed = Family::counter(
        "ringpilot_replayed",
        Some(Unit::Bytes),
        "Source bytes read again after a restart that may have been sent before",
    );
    let mut unbalanced = Family::gauge(
        "ringpilot_ledger_open",
        None,
        "1 if the output's ledger does not close to the byte, which is a fault of the daemon",
    );
    let mut in_flight = 0;
    for (output, account) in &snapshot.ledger {
        let output = [("output", output.as_str())];
        delivered.push(&output, Number::Whole(account.delivered.records));
        duplicates.push(&output, Number::Whole(account.duplicate_records));
        filtered.push(&output, Number::Whole(account.filtered.records));
        replayed.push(&output, Number::Whole(account.replayed.bytes));
        unbalanced.push(&output, Number::Whole(u64::from(!account.closes)));
        in_flight += account.in_flight.bytes;
        // All reasons from the start, so that an alert sees the first loss as an increase.
        for reason in Lost::ALL {
            let tally = account.lost_by_reason.get(&reason).copied();
            let tally = tally.unwrap_or_default();
            let labels = [output[0], ("reason", reason.label())];
            lost.push(&labels, Number::Whole(tally.bytes));
            lost_records.push(&labels, Number::Whole(tally.records));
        }
    }
    let in_flight = Family::gauge(
        "ringpilot_in_flight",
        Some(Unit::Bytes),
        "Source bytes read and not settled, over all outputs",
    )
    .with(&[], in_flight);
    vec![
        delivered,
        duplicates,
        filtered,
        lost,
        lost_records,
        replayed,
        in_flight,
        unbalanced,
    ]
}

/// What the outputs say, since the start.
fn of_outputs<Sources>(snapshot: &Snapshot<Sources>) -> Vec<Family> {
    let mut dead = Family::counter(
        "ringpilot_dead_letter_records",
        None,
        "Records that the output refused for good since the start, kept as dead letters, by the class of refusal",
    );
    let mut lag = Family::gauge(
        "ringpilot_lag",
        Some(Unit::Bytes),
        "Bytes known to be there that the output has not acknowledged",
    );
    let mut up = Family::gauge(
        "ringpilot_output_up",
        None,
        "1 if the last attempt went well, or none was made",
    );
    let mut requests = Family::counter(
        "ringpilot_output_requests",
        None,
        "Attempts since the start by how they ended: ok, partial, failed, too_large",
    );
    let mut retries = Family::counter(
        "ringpilot_output_retries",
        None,
        "Loads sent again since the start",
    );
    for output in &snapshot.outputs {
        let name = ("output", output.name.as_str());
        lag.push(&[name], Number::Whole(output.lag_bytes));
        up.push(&[name], Number::Whole(u64::from(output.up)));
        retries.push(&[name], Number::Whole(output.retries));
        for code in ["ok", "partial", "failed", "too_large"] {
            let n = output.requests.get(code).copied().unwrap_or_default();
            requests.push(&[name, ("code", code)], Number::Whole(n));
        }
        for (reason, n) in &output.dead_letters {
            dead.push(&[name, ("reason", reason)], Number::Whole(*n));
        }
    }
    vec![dead, lag, up, requests, retries]
}

fn of_containers(containers: &[ContainerLag]) -> Vec<Family> {
    let mut lag = Family::gauge(
        "ringpilot_container_lag",
        Some(Unit::Bytes),
        "Bytes of a container's logs that the output has not acknowledged",
    );
    let mut lines = Family::gauge(
        "ringpilot_container_delivered_lines",
        None,
        "Physical lines delivered of the container's files that are known now",
    );
    for one in containers {
        let labels = [
            ("namespace", one.namespace.as_str()),
            ("pod", one.pod.as_str()),
            ("container", one.container.as_str()),
            ("output", one.output.as_str()),
        ];
        lag.push(&labels, Number::Whole(one.lag_bytes));
        lines.push(&labels, Number::Whole(one.delivered_lines));
    }
    vec![lag, lines]
}

/// Named as every exporter names them, without our prefix.
fn of_process(process: &Process) -> Vec<Family> {
    vec![
        Family::counter(
            "process_cpu",
            Some(Unit::Seconds),
            "Processor time, user and system",
        )
        .seconds(process.cpu_seconds),
        Family::gauge(
            "process_resident_memory",
            Some(Unit::Bytes),
            "Memory in RAM",
        )
        .with(&[], process.resident_bytes),
        Family::gauge("process_open_fds", None, "Open file descriptors")
            .with(&[], process.open_fds),
    ]
}
