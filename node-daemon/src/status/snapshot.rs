//! What is told of the daemon, as plain data: the shape of `/api/status`.
//! Place: made in [`super`], written by `http`, read by `explain`, `metrics` and the commands.
//! Invariant: names and units are those of the interface; a field that is new has a default, so that an older daemon's
//! answer is read, too.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::follow::Source as Followed;
use crate::ledger::{Lost, Tally};
use crate::problem::Problem;

/// Everything at one moment: the shape of `/api/status`. `Sources` is a list of [`Source`], or what serializes to one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot<Sources = Vec<Source>> {
    /// The node's name.
    pub node: String,
    /// The daemon's version.
    pub version: String,
    /// Seconds since the daemon started.
    pub uptime_seconds: f64,
    /// Whether the first full list of every runtime has been heard.
    pub ready: bool,
    /// Why it is not ready; empty when it is.
    pub not_ready_because: String,
    /// Where everything went, by output.
    pub ledger: BTreeMap<String, Account>,
    /// How many sources are in each state.
    pub sources_by_state: BTreeMap<State, u64>,
    /// Every source.
    pub sources: Sources,
    /// Declarations that are wanted and have no file yet.
    pub waiting: Vec<Waiting>,
    /// Every output.
    pub outputs: Vec<Output>,
    /// Every ring.
    pub rings: Vec<Ring>,
    /// Frames taken from rings since the daemon started.
    #[serde(default)]
    pub ring_frames: u64,
    /// What is wrong, and what to do.
    pub problems: Vec<Problem>,
    /// How the checkpoint fares.
    pub checkpoint: CheckpointState,
    /// Read since the start, each output for itself.
    pub read: Read,
    /// Encoded bytes in memory.
    pub held_bytes: u64,
}

/// Where the bytes of one output went, those of earlier runs included. In bytes and physical lines
/// `read = delivered + dead_lettered + filtered + lost + in_flight`; records are counted beside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// What was read. Its bytes come from the flows' positions, not from the sum of the others.
    pub read: Tally,
    /// The output has it.
    pub delivered: Tally,
    /// Refused for good and kept.
    pub dead_lettered: Tally,
    /// Not wanted by the workload's own filters, or holes of files.
    pub filtered: Tally,
    /// Lost, for whatever reason.
    pub lost: Tally,
    /// The same by reason.
    pub lost_by_reason: BTreeMap<Lost, Tally>,
    /// Read, and not settled.
    pub in_flight: Tally,
    /// Read again after a restart; beside the equation.
    pub replayed: Replayed,
    /// Delivered records that the output had already, by our own id.
    pub duplicate_records: u64,
    /// Bytes that open groups (parts of a line, lines of a record) hold: not yet counted as read.
    pub open_bytes: u64,
    /// Whether the equation holds, to the byte.
    pub closes: bool,
}

/// What was read again: only its bytes are known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// Source bytes.
    pub bytes: u64,
}

/// What a source is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is read as it grows.
    Following,
    /// Nothing more will be written to it; what is there is still to be delivered.
    Draining,
    /// All that will ever be there is settled.
    Done,
    /// It cannot be read now, see its trouble.
    Unreadable,
}

impl State {
    /// Every state.
    pub const ALL: [State; 4] = [
        State::Following,
        State::Draining,
        State::Done,
        State::Unreadable,
    ];

    /// The label in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            State::Following => "following",
            State::Draining => "draining",
            State::Done => "done",
            State::Unreadable => "unreadable",
        }
    }

    pub(super) fn of(source: &Followed) -> Self {
        match source {
            _ if source.is_over() => State::Done,
            _ if source.trouble.is_some() => State::Unreadable,
            // Of one that was truncated or is gone, what was read may still be on its way.
            _ if source.finished => State::Draining,
            _ if source.file.is_none() => State::Unreadable,
            _ => State::Following,
        }
    }
}

/// Whose log it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// `docker`, `cri`, `static`, …
    pub runtime: String,
    /// The runtime's id; empty for the configuration's own sources.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// Its pod.
    pub pod: String,
    /// The pod's namespace.
    pub namespace: String,
    /// How problems name it: `shop/web-7d4f (nginx)`.
    pub who: String,
}

/// A file, stream or ring as one declaration wants it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// The same for as long as the file lives, also over restarts.
    pub id: String,
    /// The declaration's name.
    pub name: String,
    /// The declared target.
    pub target: String,
    /// The format's name.
    pub format: String,
    /// Whose it is.
    pub container: Container,
    /// `file`, `stdout` or `ring`.
    pub via: String,
    /// Which way it is read, and why; empty where `via` says all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub way: String,
    /// Where it was last seen, in its owner's view.
    pub path: String,
    /// Its inode number.
    pub inode: u64,
    /// Its size when last looked at.
    pub size_bytes: u64,
    /// How far the furthest of its flows has read.
    pub read_bytes: u64,
    /// What it is doing.
    pub state: State,
    /// Why it cannot be read, if it cannot.
    pub trouble: Option<String>,
    /// One for each output.
    pub flows: Vec<FlowState>,
}

/// A source towards one output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowState {
    /// The output's name.
    pub output: String,
    /// Everything before this offset is settled: delivered, or accounted for in the ledger.
    pub acked_bytes: u64,
    /// Bytes known to be there that are not settled.
    pub lag_bytes: u64,
    /// While there is lag, for how long the file has not grown: its oldest unsettled byte is at least so old. 0
    /// without lag.
    pub lag_seconds: f64,
    /// Why it does not get on, while it lags: the reading's trouble, else the output's.
    pub last_error: Option<String>,
}

/// A declaration without a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The declaration's name.
    pub name: String,
    /// The declared target.
    pub target: String,
    /// Whose it is.
    pub container: Container,
    /// `file`, `stdout` or `ring`.
    pub via: String,
    /// Which way it is read, and why; empty where `via` says all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub way: String,
}

/// An output.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// `effectively-once`, `at-least-once` or `not-acknowledged`.
    pub guarantee: String,
    /// Whether the last attempt went well, or none was made.
    pub up: bool,
    /// Bytes of all sources that are not settled here.
    pub lag_bytes: u64,
    /// Encoded bytes it holds.
    pub held_bytes: u64,
    /// Encoded bytes it may hold.
    pub share_bytes: u64,
    /// Attempts since the start by how they ended: `ok`, `partial`, `failed`, `too_large`.
    pub requests: BTreeMap<String, u64>,
    /// Loads sent again since the start.
    pub retries: u64,
    /// Dead letters since the start, by the class of their refusal.
    pub dead_letters: BTreeMap<String, u64>,
    /// Why it is not going well now.
    pub trouble: Option<String>,
    /// The last trouble there was.
    pub last_trouble: Option<String>,
}

/// A shim's ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// Whose it is.
    pub pod: String,
    /// What it is doing: `waiting` for its shim, `connected`, `draining`, or `poisoned`.
    pub state: String,
    /// Files of it that are known.
    #[serde(default)]
    pub files: usize,
    /// Log bytes taken since the daemon started.
    #[serde(default)]
    pub bytes: u64,
    /// Frames that they came in.
    #[serde(default)]
    pub frames: u64,
    /// Bytes of it in the daemon's memory.
    #[serde(default)]
    pub held_bytes: usize,
    /// Why its ring was last dropped.
    #[serde(default)]
    pub last_error: Option<String>,
}

/// How the checkpoint fares.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckpointState {
    /// Seconds since the last save.
    pub age_seconds: f64,
    /// Why saving fails, if it does.
    pub failing: Option<String>,
}

/// What was read since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Source bytes.
    pub bytes: u64,
    /// Physical lines.
    pub lines: u64,
}

/// The lag of one container at one output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerLag {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container's name; empty for the configuration's own sources.
    pub container: String,
    /// The output's name.
    pub output: String,
    /// Bytes not settled.
    pub lag_bytes: u64,
    /// Physical lines delivered, of the files that are known now.
    pub delivered_lines: u64,
}
