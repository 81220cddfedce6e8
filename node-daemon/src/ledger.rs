//! The ledger: where each byte went. It must close.
//! Place: kept per flow, moved only together with its cursor, saved with it.
//! Invariant: accounted bytes = delivered + dead-lettered + filtered + lost, in source bytes; what lies between the
//! cursor and the furthest read is in flight. Records are counted beside and balance nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A quantity of log: source bytes and physical lines are conserved, records are what they became.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Bytes of the source, envelopes and line ends included.
    pub bytes: u64,
    /// Physical lines of the source.
    pub lines: u64,
    /// Records.
    pub records: u64,
}

impl Tally {
    /// Adds another.
    pub fn add(&mut self, other: Tally) {
        self.bytes += other.bytes;
        self.lines += other.lines;
        self.records += other.records;
    }
    /// Whether nothing is in it.
    pub fn is_zero(&self) -> bool {
        *self == Tally::default()
    }
}

/// Why bytes were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lost {
    /// Truncated before it was read, and no copy was found.
    Truncated,
    /// Deleted or gone with its container before it was read.
    Vanished,
    /// Its handle was given up because a quota of held bytes was full.
    Quota,
    /// The workload's rate limit, where the policy says `drop`.
    Rate,
    /// The dead letters were full, where the output says `drop`.
    DeadLettersFull,
    /// A pod ended, and its shim could not hand over the rest in time.
    Drain,
    /// The storage gave an error for these bytes.
    Unreadable,
}

impl Lost {
    /// The label in metrics and in the checkpoint.
    pub fn label(self) -> &'static str {
        match self {
            Lost::Truncated => "truncated",
            Lost::Vanished => "vanished",
            Lost::Quota => "quota",
            Lost::Rate => "rate",
            Lost::DeadLettersFull => "dead_letters_full",
            Lost::Drain => "drain",
            Lost::Unreadable => "unreadable",
        }
    }
}

/// Where the bytes of a flow went, up to its cursor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// The output has them.
    #[serde(rename = "d", default)]
    pub delivered: Tally,
    /// Of these, those that the output had already, by our own id.
    #[serde(rename = "u", default)]
    pub duplicates: u64,
    /// Refused for good and kept as dead letters.
    #[serde(rename = "x", default)]
    pub dead_lettered: Tally,
    /// Not wanted by the workload's own filters, or holes of a file.
    #[serde(rename = "f", default)]
    pub filtered: Tally,
    /// Lost, by reason.
    #[serde(rename = "l", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lost: BTreeMap<Lost, Tally>,
    /// Bytes read again after a restart that had been sent before; beside the equation.
    #[serde(rename = "r", default)]
    pub replayed: u64,
}

impl Ledger {
    /// Bytes whose fate is known.
    pub fn accounted(&self) -> u64 {
        self.delivered.bytes
            + self.dead_lettered.bytes
            + self.filtered.bytes
            + self.lost_total().bytes
    }
    /// All that was lost.
    pub fn lost_total(&self) -> Tally {
        let mut all = Tally::default();
        self.lost.values().for_each(|tally| all.add(*tally));
        all
    }
    /// Adds another, as for a sum over flows.
    pub fn add(&mut self, other: &Ledger) {
        self.delivered.add(other.delivered);
        self.duplicates += other.duplicates;
        self.dead_lettered.add(other.dead_lettered);
        self.filtered.add(other.filtered);
        for (reason, tally) in &other.lost {
            self.lost.entry(*reason).or_default().add(*tally);
        }
        self.replayed += other.replayed;
    }
}
