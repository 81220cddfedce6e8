//! What travels between shim and daemon: versions, limits, frames and messages.
//! Place: `ring` moves frames, the node's socket moves messages; both are written and judged here.
//! Invariants: bytes are judged on a private copy and never in place; every length is capped before it is used;
//! no shared pointers, strings, maps or recursion on the wire; this code holds no `unsafe` of ours.

pub mod frame;

pub mod handshake;

pub mod socket;

/// The protocol's major version: offsets, header and message layouts are fixed within it.
pub const VERSION: u16 = 1;

/// Changes when an archived type changes: `rkyv` archives carry no schema of their own.
pub const SCHEMA: u64 = 0x5249_4e47_0001_0001;

/// Longest message on the node's socket, in bytes.
pub const MESSAGE_LIMIT: usize = 1024;

/// Longest path, name or part of a value in a message, in bytes. A longer path is told as a problem and not followed.
pub const STRING_LIMIT: usize = 720;

/// Files one pod may have open in its rings at once.
pub const FILES_LIMIT: usize = 1024;

/// Lanes one ring may have at once: each file's first, and those that read again for outputs that fell behind.
pub const LANES_LIMIT: usize = 2 * FILES_LIMIT;
