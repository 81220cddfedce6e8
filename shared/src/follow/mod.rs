//! Follow files: which file, which offset, and what a new name, inode or size means.
//! Place: **follow** -> decode; the daemon and the shim run this same code.
//! Invariants: a file is matched to a stream by identity, never by path; a handle is held until its bytes are
//! read and acknowledged; inotify only wakes, stat decides.

pub mod hang;
pub mod identity;
pub mod open;
pub mod wake;

use std::path::PathBuf;

pub use identity::Identity;

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
