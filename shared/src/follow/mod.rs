//! Follow files: which file, which offset, and what a new name, inode or size means.
//! Place: **follow** -> decode; the daemon and the shim run this same code.
//! Invariants: a file is matched to a stream by identity, never by path; a handle is held until its bytes are
//! read and acknowledged; inotify only wakes, stat decides.

pub mod glob;
pub mod hang;
pub mod identity;
pub mod open;
pub mod wake;

pub mod held;

mod follower;
mod judge;
mod known;
mod leave;
mod list;
mod rotation;

use std::path::PathBuf;

use std::fmt;
use std::io;
use std::sync::Arc;

pub use follower::{
    FINISHED_AFTER, Follower, MOST_FILES, MOST_FILES_OF_HOST, Positions, SWEEP_EVERY, Wanted,
};
pub use identity::Identity;
pub use known::KnownStream;

use crate::host::{LogFile, Stat};

/// One file life and how often it began anew (truncation). A position is (generation, offset).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct StreamKey {
    /// The stream's id, unique on this node for ever (random).
    pub id: u64,
    /// 0 for a new file; one more at each truncation.
    pub generation: u16,
}

/// How paths named by a workload are resolved: in the container's view, beneath the host's root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// Where the host's files are seen: `/`, or `/host`.
    pub host_root: PathBuf,
    /// The container's root directory on the host, best first: the overlay's upper directory, then the merged one or
    /// `/proc/PID/root`, where what is not in the first is sought. Empty: the host itself, or a container of whose
    /// own file system nothing is known.
    pub roots: Vec<PathBuf>,
    /// The container's mounts, longest container path first.
    pub mounts: Vec<Mount>,
    /// Whether paths are the host's own (static sources): no container root applies.
    pub is_host: bool,
}

/// One mount in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where the container sees it, absolute.
    pub container: PathBuf,
    /// Where the host has it, absolute, before `host_root`.
    pub host: PathBuf,
}

/// What is wanted to be followed; given once in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WantId(pub u64);

/// A want sees a stream for the first time in this run.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which want.
    pub want: WantId,
    /// Under which path, in its view.
    pub path: PathBuf,
    /// Which stream.
    pub stream: StreamKey,
    /// The open file.
    pub file: Arc<dyn LogFile>,
    /// What it is now.
    pub stat: Stat,
    /// What it is recognised by.
    pub identity: Identity,
    /// The stream whose name it took.
    pub after: Option<StreamKey>,
    /// Whether the stream was known before: from an earlier run, or to another want.
    pub known: bool,
    /// Whether the file was there before the program started.
    pub existed: bool,
    /// Whether nothing more will be written to it.
    pub finished: bool,
    /// As in [`KnownStream::accounted_ns`].
    pub accounted_ns: Option<i64>,
}

/// The copy that was made of a file before it was truncated.
#[derive(Debug, Clone)]
pub struct Copy {
    /// Where it is.
    pub path: PathBuf,
    /// The open copy.
    pub file: Arc<dyn LogFile>,
    /// What it is now.
    pub stat: Stat,
    /// What it is recognised by.
    pub identity: Identity,
}

/// What a look has found.
#[derive(Debug, Clone)]
pub enum Event {
    /// A want sees a stream.
    Seen(Seen),
    /// A file's size or time has changed.
    Changed {
        /// Which.
        stream: StreamKey,
        /// What it is now.
        stat: Stat,
    },
    /// More is known of what a stream is recognised by.
    Known {
        /// Which.
        stream: StreamKey,
        /// All that is known.
        identity: Identity,
    },
    /// A file has another name.
    Renamed {
        /// Which.
        stream: StreamKey,
        /// Where it is now, in its want's view.
        path: PathBuf,
    },
    /// Its folder was listed: more of what lies beside a stream is accounted for.
    Accounted {
        /// Which.
        stream: StreamKey,
        /// As in [`KnownStream::accounted_ns`].
        until_ns: i64,
    },
    /// Another file has the name that this one had.
    Succeeded {
        /// Which lost it.
        stream: StreamKey,
        /// Which has it, or had it next.
        by: StreamKey,
    },
    /// A file was truncated and begins anew.
    Truncated {
        /// The life that ended.
        old: StreamKey,
        /// The life that begins, in the same file.
        new: StreamKey,
        /// What the new one is recognised by.
        identity: Identity,
        /// Where the rest of the old one is, if a copy was found.
        copy: Option<Copy>,
        /// What the file is now.
        stat: Stat,
    },
    /// A suspicion was false: the file holds what was read.
    Intact {
        /// Which.
        stream: StreamKey,
    },
    /// Nothing more will be written to a file.
    Finished {
        /// Which.
        stream: StreamKey,
    },
    /// A file that was finished has changed after all.
    Unfinished {
        /// Which.
        stream: StreamKey,
    },
    /// A file is given up, because too many bytes were held.
    Shed {
        /// Which.
        stream: StreamKey,
    },
    /// The copy in which the rest of a stream was has been overwritten.
    Overwritten {
        /// Which.
        stream: StreamKey,
    },
    /// A file that was released is closed.
    Released {
        /// Which.
        stream: StreamKey,
        /// It has no name left: nobody will see it again.
        deleted: bool,
    },
    /// A stream that was not open was not seen for so long that it is known no longer.
    Forgotten {
        /// Which.
        stream: StreamKey,
    },
    /// Something that is wanted cannot be read, or can be again.
    Trouble {
        /// Whose.
        want: WantId,
        /// Where.
        path: PathBuf,
        /// What is wrong; none when it is well again.
        trouble: Option<(io::ErrorKind, String)>,
    },
}

impl fmt::Display for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}", self.id, self.generation)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Seen(seen) => write!(f, "{} is {}", seen.path.display(), seen.stream),
            Event::Changed { stream, stat } => write!(f, "{stream} has {} bytes", stat.size),
            Event::Known { stream, .. } => write!(f, "{stream} is known better"),
            Event::Renamed { stream, path } => write!(f, "{stream} is now {}", path.display()),
            Event::Accounted { stream, .. } => write!(f, "{stream} is alone, or with known files"),
            Event::Succeeded { stream, by } => write!(f, "{stream} gave its name to {by}"),
            Event::Truncated { old, new, copy, .. } => {
                let copied = if copy.is_some() {
                    "with a copy"
                } else {
                    "without a copy"
                };
                write!(f, "{old} was truncated {copied} and is now {new}")
            }
            Event::Overwritten { stream, .. } => write!(f, "{stream} was overwritten"),
            Event::Forgotten { stream, .. } => write!(f, "{stream} is forgotten"),
            Event::Intact { stream } => write!(f, "{stream} holds what was read"),
            Event::Finished { stream } => write!(f, "{stream} is finished"),
            Event::Unfinished { stream } => write!(f, "{stream} is written again"),
            Event::Shed { stream } => write!(f, "{stream} is given up: too much was held"),
            Event::Released { stream, deleted } => {
                let gone = if *deleted { " and gone" } else { "" };
                write!(f, "{stream} is closed{gone}")
            }
            Event::Trouble { path, trouble, .. } => match trouble {
                Some((_, text)) => write!(f, "{}: {text}", path.display()),
                None => write!(f, "{}: well again", path.display()),
            },
        }
    }
}
