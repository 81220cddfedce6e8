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
    /// What has come since an earlier one.
    #[must_use]
    pub fn since(self, before: Tally) -> Tally {
        Tally {
            bytes: self.bytes.saturating_sub(before.bytes),
            lines: self.lines.saturating_sub(before.lines),
            records: self.records.saturating_sub(before.records),
        }
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
    /// Every reason.
    pub const ALL: [Lost; 7] = [
        Lost::Truncated,
        Lost::Vanished,
        Lost::Quota,
        Lost::Rate,
        Lost::DeadLettersFull,
        Lost::Drain,
        Lost::Unreadable,
    ];

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
    /// Physical lines whose fate is known.
    pub fn lines(&self) -> u64 {
        self.delivered.lines
            + self.dead_lettered.lines
            + self.filtered.lines
            + self.lost_total().lines
    }
    /// Records whose fate is known.
    pub fn records(&self) -> u64 {
        self.delivered.records
            + self.dead_lettered.records
            + self.filtered.records
            + self.lost_total().records
    }
    /// All that was lost.
    pub fn lost_total(&self) -> Tally {
        let mut all = Tally::default();
        self.lost.values().for_each(|tally| all.add(*tally));
        all
    }
    /// What has come since an earlier one of the same flows.
    #[must_use]
    pub fn since(&self, before: &Ledger) -> Ledger {
        let mut lost = self.lost.clone();
        for (reason, tally) in &before.lost {
            if let Some(all) = lost.get_mut(reason) {
                *all = all.since(*tally);
            }
        }
        lost.retain(|_, tally| !tally.is_zero());
        Ledger {
            delivered: self.delivered.since(before.delivered),
            duplicates: self.duplicates.saturating_sub(before.duplicates),
            dead_lettered: self.dead_lettered.since(before.dead_lettered),
            filtered: self.filtered.since(before.filtered),
            lost,
            replayed: self.replayed.saturating_sub(before.replayed),
        }
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
