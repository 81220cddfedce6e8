//! The ring: log bytes from a shim in an untrusted pod to the node's daemon, through sealed shared memory.
//! Place: the shim's follower -> **ring** -> the daemon's streams.
//!
//! ```text
//!  shim (in the pod)                                             daemon (on the node)
//!  read() ──► data: page 0 words │ frames …………… ──► pread ──► private copy ──► judged ──► streams
//!             head ──────────────────────────────────► head        (the data area is never mapped here)
//!             released, armed ◄────────────────────── control: one page, the pod can only read it
//!             eventfd ───────────────────────────────► epoll       (rung only when armed)
//!             socket ◄═ HELLO WELCOME OPEN RESUME DURABLE SPACE DRAIN … ═► socket
//! ```
//!
//! Rules:
//! - One producer, one consumer. A frame is there when `head` passes it: a shim killed mid-frame leaves nothing.
//! - The daemon keeps tail, capacity, sequence and lanes in private variables; its words in shared memory are for
//!   the shim to read, never for itself.
//! - Everything is judged on a private copy (V1 to V10, see `Poison` and `lanes`): a ring that breaks a rule is
//!   dropped whole, and other rings do not notice.
//! - *Released* (space, at copy-out) and *durable* (acknowledged and in the checkpoint, told by message) are two
//!   positions: the log file is the buffer, the ring is only the way.
//! - Both ends store, fence, then load (`doorbell`): no wake-up is lost.
//! - Two backends, one protocol: `memfd` (sealed; nobody needs trust) and `posix_shm` (the `shared_memory` crate;
//!   one trust domain). Unsafe code is in `mapping` and `words` alone.

pub mod layout;

pub mod mapping;

pub mod words;

pub mod doorbell;

pub mod memfd;

pub mod posix_shm;

pub mod produce;

pub mod consume;

pub mod lanes;

/// Which memory carries a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Sealed memfds, handed over the socket. The default.
    Memfd,
    /// POSIX shared memory by name, where no descriptor can be handed over or sealed.
    Posix,
}

/// The daemon's end as made, and what the shim needs to open the other.
#[derive(Debug)]
pub struct Made {
    /// The daemon's end.
    pub daemon: consume::DaemonMemory,
    /// What WELCOME carries.
    pub offer: Offer,
}

/// What the shim opens its end with.
#[derive(Debug)]
pub enum Offer {
    /// Descriptors of the data and control memory.
    Memfd {
        /// The pod may write it, and cannot change its size.
        data: std::os::fd::OwnedFd,
        /// The pod can only read it.
        control: std::os::fd::OwnedFd,
    },
    /// Names of the segments.
    Posix {
        /// As in `/dev/shm`.
        data: String,
        /// As in `/dev/shm`.
        control: String,
    },
}
