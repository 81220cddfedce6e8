//! The checkpoint: (stream, declaration, output) -> position, and what each stream is recognised by.
//! Place: ack -> **checkpoint**; read once at the start.
//! Invariants: it never refuses a start: what is damaged is told and read again from the logs; what is appended is
//! durable only after a sync; what a sync covers was true when it was appended; a position never goes back within
//! one stream (only `Forget` ends it), so entries may overtake each other.
//!
//! How cursors of the file output are saved, each second, by the saver:
//! 1. take the cursors of its flows;
//! 2. `Output::sync`: the files are synced, then each is noted as `Synced`; on an error, leave out 3 for its flows;
//! 3. append `Flow` for what was taken: never ahead of what is synced in the files;
//! 4. `Journal::sync`.

pub(crate) mod durable;
mod format;
mod journal;
mod live;
mod lock;
mod recover;
#[cfg(test)]
pub(crate) mod test_disk;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ringpilot_shared::follow::{Identity, KnownStream, StreamKey};
use serde::{Deserialize, Serialize};

use crate::batch::Day;
use crate::ledger::{Ledger, Lost};

pub use journal::{Checkpoint, Loaded, Opened};
pub use lock::{Held as LockHeld, Lock, lock};
pub use recover::{FileMark, Files, Look, NoFiles};

/// Which flow a cursor belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FlowKey {
    /// Its stream.
    #[serde(rename = "s")]
    pub stream: StreamKey,
    /// The declaration's name.
    #[serde(rename = "d")]
    pub declaration: Arc<str>,
    /// The output's name.
    #[serde(rename = "o")]
    pub output: Arc<str>,
}

/// A range that an open group holds before the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedHeld {
    /// First byte.
    pub from: u64,
    /// One past the last byte.
    pub to: u64,
    /// In which earlier file, if not in the flow's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earlier: Option<StreamKey>,
}

/// Where a flow stands. Within one stream it only goes forward: of two, the one that is further counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFlow {
    /// The cursor.
    #[serde(rename = "p")]
    pub offset: u64,
    /// Hash of the bytes before it.
    #[serde(rename = "t")]
    pub tail: u64,
    /// What open groups hold before it.
    #[serde(rename = "h", default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<SavedHeld>,
    /// Where it began.
    #[serde(rename = "a", default)]
    pub start: u64,
    /// Bytes of an earlier file that its first group continues.
    #[serde(rename = "b", default)]
    pub brought: u64,
    /// From which file those are.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    pub brought_from: Option<StreamKey>,
    /// Bytes of its last group that the successor took over.
    #[serde(rename = "g", default)]
    pub handed: u64,
    /// How far it had been sent.
    #[serde(rename = "m", default)]
    pub sent: u64,
    /// Everything that will ever be there is settled.
    #[serde(rename = "e", default, skip_serializing_if = "std::ops::Not::not")]
    pub done: bool,
    /// Bytes that were there behind the position, as far as was known: lost, if the file is never found again.
    #[serde(rename = "u", default, skip_serializing_if = "is_zero")]
    pub unread: u64,
    /// Where its bytes went.
    #[serde(rename = "l")]
    pub ledger: Ledger,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

impl SavedFlow {
    /// Where its bytes went if its file is not found again.
    #[must_use]
    pub fn ledger_without_file(&self) -> Ledger {
        let mut ledger = self.ledger.clone();
        if self.unread > 0 {
            let lost = ledger.lost.entry(Lost::Vanished).or_default();
            lost.bytes += self.unread;
        }
        ledger
    }
}

/// What a stream is recognised by, and where it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedStream {
    /// Its key.
    pub key: StreamKey,
    /// What the file is recognised by.
    pub identity: Identity,
    /// Whose it is: the container's or pod's id where it was first seen; empty for the host.
    pub owner: String,
    /// Its path as last seen, in the owner's view.
    #[serde(with = "format::any_path")]
    pub path: PathBuf,
    /// Last seen modification, nanoseconds since 1970.
    pub modified_ns: i64,
    /// What was made beside it before this, nanoseconds since 1970, and may be a rotated form of its name, is known, or
    /// nobody's wish; `None`: what was made before it was last modified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accounted_ns: Option<i64>,
    /// Which stream took its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<StreamKey>,
    /// Last seen by the daemon, nanoseconds since 1970: what is not seen for long is forgotten.
    pub seen_ns: i64,
}

impl SavedStream {
    /// As whoever follows it must know it.
    #[must_use]
    pub fn known(&self) -> KnownStream {
        KnownStream {
            key: self.key,
            identity: self.identity,
            path: self.path.clone(),
            modified_ns: self.modified_ns,
            accounted_ns: self.accounted_ns,
            successor: self.successor,
            seen_ns: self.seen_ns,
        }
    }
}

/// What belongs to a stream as one declaration wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSource {
    /// Its stream.
    pub stream: StreamKey,
    /// The declaration's name.
    pub declaration: Arc<str>,
    /// First 8 bytes of every record id; made once.
    pub source_hash: u64,
    /// From which offset on which day counts as the read day, ascending.
    pub days: Vec<(u64, Day)>,
    /// Where time, not text, ended a group, ascending; those before every cursor are dropped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cuts: Vec<SavedCut>,
}

/// A place where a group was closed by time: it is closed there again whenever those bytes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCut {
    /// Bytes from the start of the file.
    pub at: u64,
    /// The file had ended: a line without end is closed, too, and flagged; else only groups of whole lines.
    pub end: bool,
}

/// What the file output is about to write, in one transaction with the cursors of the flows in it: once the file is
/// this long, they hold. What an earlier transaction of the same file says beyond `from` was never written, or cut
/// off again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedWrite {
    /// The output's name.
    pub output: Arc<str>,
    /// The file's path.
    #[serde(with = "format::any_path")]
    pub path: PathBuf,
    /// The file's inode.
    pub inode: u64,
    /// The file's birth time.
    pub birth_ns: Option<i64>,
    /// The file's length before the write.
    pub from: u64,
    /// The file's length after the write.
    pub length: u64,
    /// Where the flows in it stand after the write.
    pub flows: Vec<(FlowKey, SavedFlow)>,
}

/// One thing that is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A stream is known, or known better.
    Stream(SavedStream),
    /// A source is known, or known better.
    Source(SavedSource),
    /// A flow stands here.
    Flow(FlowKey, SavedFlow),
    /// A stream is forgotten, with its sources and flows.
    Forget(StreamKey),
    /// The file output is about to write.
    Write(SavedWrite),
    /// The file output's file is synced up to this length.
    Synced {
        /// The output's name.
        output: Arc<str>,
        /// The file's path.
        #[serde(with = "format::any_path")]
        path: PathBuf,
        /// The file's inode.
        inode: u64,
        /// The file's birth time.
        birth_ns: Option<i64>,
        /// Up to where.
        length: u64,
        /// When, nanoseconds since 1970: a file that was modified long after its last mark is not cut by it.
        at_ns: i64,
    },
    /// The file output has left this path, everything in it synced: nothing more needs to be known of it.
    Left {
        /// The output's name.
        output: Arc<str>,
        /// The file's path.
        #[serde(with = "format::any_path")]
        path: PathBuf,
    },
    /// The daemon runs in this boot.
    Boot(u128),
    /// These outputs are known since then (nanoseconds since 1970): whether one is new decides where it begins. All that
    /// are met in one start are in one entry: after a crash within it, none of them has begun.
    Outputs(Vec<Arc<str>>, i64),
    /// An output is known no longer, nor where its flows stood.
    ForgetOutput(Arc<str>),
}

/// Where entries are appended: the checkpoint, or its stand-in in a test of one output.
pub trait Journal: Send + Sync + std::fmt::Debug {
    /// Appends entries, all or (after a crash) a prefix; not durable before a sync.
    ///
    /// # Errors
    /// As the disk gives them. The entries are remembered all the same, and written with the next sync that works:
    /// until then a crash forgets them.
    fn append(&self, entries: &[Entry]) -> io::Result<()>;
    /// Makes everything appended so far durable, also what could not be written when it was appended.
    ///
    /// # Errors
    /// As the disk gives them; the next call tries again.
    fn sync(&self) -> io::Result<()>;
}
