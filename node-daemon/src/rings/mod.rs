//! Rings: the logs of pods whose files the node cannot see, as their shims send them.
//! Place: beside **follow**: a shim is a follower that runs elsewhere. What it tells becomes the same events as the
//! node's own follower's, and its files are read through `window` as if they were here; parsing, cursors, the
//! checkpoint and the outputs know nothing of rings.
//! Invariants: a pod is who its socket's folder says, never what it says itself; one thread drains all rings, in turns
//! of 256 KiB; bytes are judged on a private copy; a pod that breaks a rule loses its ring for a while and disturbs no
//! other; what is drained counts in the memory budget.

mod drain;
mod pod;
mod window;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use ringpilot_shared::follow::{KnownStream, StreamKey, Wanted};
use ringpilot_shared::host::Host;
use tokio::sync::mpsc;

use crate::checkpoint::{Loaded, SavedStream};
use crate::collect::Follow;
use crate::discover::Heard;
use crate::pipeline::Pipeline;
use crate::problem::Problems;

/// What the owners of rings' streams begin with, in the checkpoint and in ids.
const OWNER: &str = "ring:";

/// Which memory rings are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// Sealed memfds where the kernel has them, else POSIX segments.
    #[default]
    Auto,
    /// Sealed memfds.
    Memfd,
    /// POSIX segments.
    Posix,
}

/// How rings are kept.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Which memory.
    pub memory: Memory,
    /// Bytes of all rings' windows in the daemon's memory.
    pub held_bytes: usize,
    /// Rings on this node.
    pub rings: usize,
    /// The first pause of a pod that broke a rule; doubled each time, up to 5 minutes.
    pub first_pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: Memory::Auto,
            held_bytes: 8 * 1024 * 1024,
            rings: 1024,
            first_pause: Duration::from_secs(1),
        }
    }
}

/// What the drain thread is made with.
#[derive(Debug)]
pub struct Parts {
    /// Where each pod's folder is.
    pub dir: PathBuf,
    /// How rings are kept.
    pub limits: Limits,
    /// Clocks.
    pub host: Arc<dyn Host>,
    /// What bytes and events go to.
    pub pipeline: Arc<Pipeline>,
    /// Where problems are told.
    pub problems: Arc<Problems>,
    /// Pods' streams that the checkpoint knows, by owner.
    pub known: Vec<(String, KnownStream)>,
    /// Before a declaration that an argument made: the first of `label_prefixes`.
    pub prefix: String,
}

/// One ring, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingStatus {
    /// Whose.
    pub pod: String,
    /// `waiting`, `connected`, `draining` or `poisoned`.
    pub state: &'static str,
    /// Files of it that are known.
    pub files: usize,
    /// Frames taken.
    pub frames: u64,
    /// Log bytes taken.
    pub bytes: u64,
    /// Bytes of it in the daemon's memory.
    pub held_bytes: usize,
    /// Why it was last dropped.
    pub last_error: Option<String>,
}

/// The rings of this node; the handle that other threads have.
#[derive(Debug, Clone)]
pub struct Rings {
    shared: Arc<Shared>,
}

/// What the drain thread is told.
#[derive(Debug)]
enum Command {
    Want(Box<Wanted>, Arc<str>),
    /// Everything that this owner declared has been told.
    Declared(String),
    Suspect(StreamKey),
    Released(StreamKey),
}

/// Between the drain thread and all others.
#[derive(Debug)]
struct Shared {
    wake: EventFd,
    commands: Mutex<Vec<Command>>,
    asks: Mutex<Vec<StreamKey>>,
    /// The pods' streams that the pipeline has.
    streams: Mutex<HashMap<StreamKey, Arc<str>>>,
    status: Mutex<Vec<RingStatus>>,
    frames: AtomicU64,
    /// The pipeline's bytes in memory.
    budget: Arc<AtomicUsize>,
    /// The rings' part of them.
    held: Arc<AtomicUsize>,
    stop: AtomicBool,
}

impl Shared {
    fn wake(&self) {
        // It fails only when it has been rung 2^64 times and not heard.
        self.wake.write(1).unwrap_or_default();
    }
    fn ask(&self, stream: StreamKey) {
        let mut asks = self.asks.lock();
        asks.push(stream);
        if asks.len() == 1 {
            self.wake();
        }
    }
}

impl Rings {
    /// Starts the drain thread. What pods declare comes out of the receiver, as from any runtime.
    ///
    /// # Errors
    /// When the machine refuses a descriptor or a thread.
    pub fn start(
        parts: Parts,
    ) -> std::io::Result<(Self, mpsc::UnboundedReceiver<Heard>, JoinHandle<()>)> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared {
            wake,
            commands: Mutex::default(),
            asks: Mutex::default(),
            streams: Mutex::default(),
            status: Mutex::default(),
            frames: AtomicU64::new(0),
            budget: parts.pipeline.budget(),
            held: Arc::default(),
            stop: AtomicBool::new(false),
        });
        // Bounded by what it carries: one message for each declaration of a pod that has just said READY.
        let (heard, receiver) = mpsc::unbounded_channel();
        let drain = drain::Drain::new(parts, Arc::clone(&shared), heard)?;
        let thread = std::thread::Builder::new()
            .name("rings".to_owned())
            .spawn(move || drain.run())?;
        Ok((Self { shared }, receiver, thread))
    }

    /// Takes what is wanted of a shim; gives back what is not.
    #[must_use]
    pub fn follow(
        &self,
        follow: Follow,
        name_of: impl FnOnce(&Wanted) -> Arc<str>,
    ) -> Option<Follow> {
        match follow {
            Follow::Want(wanted) if wanted.owner.starts_with(OWNER) => {
                let name = name_of(&wanted);
                self.tell(Command::Want(Box::new(wanted), name));
                None
            }
            other => Some(other),
        }
    }

    /// Everything that this owner declared has been taken.
    pub fn declared(&self, owner: &str) {
        self.tell(Command::Declared(owner.to_owned()));
    }

    /// Takes those streams that are the shims' to judge or to let go; leaves the others.
    pub fn take(&self, suspects: &mut Vec<StreamKey>, released: &mut Vec<StreamKey>) {
        let streams = self.shared.streams.lock();
        let mut told = Vec::new();
        let is_ours = |key: &StreamKey| streams.contains_key(key);
        suspects.retain(|key| {
            let ours = is_ours(key);
            told.extend(ours.then_some(Command::Suspect(*key)));
            !ours
        });
        released.retain(|key| {
            let ours = is_ours(key);
            told.extend(ours.then_some(Command::Released(*key)));
            !ours
        });
        drop(streams);
        for command in told {
            self.tell(command);
        }
    }

    fn tell(&self, command: Command) {
        self.shared.commands.lock().push(command);
        self.shared.wake();
    }

    /// Every ring, for the status page.
    #[must_use]
    pub fn status(&self) -> Vec<RingStatus> {
        self.shared.status.lock().clone()
    }

    /// Frames taken in this run.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.shared.frames.load(Ordering::Relaxed)
    }

    /// Ends the drain thread.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
    }
}

/// Whether a stream is one that a shim follows, and not the node's follower.
#[must_use]
pub fn is_of_a_pod(stream: &SavedStream) -> bool {
    stream.owner.starts_with(OWNER)
}

/// The streams of pods in a checkpoint, by owner: the shims recognise them, not the node's follower.
#[must_use]
pub fn known(loaded: &Loaded) -> Vec<(String, KnownStream)> {
    let streams = loaded.streams.values();
    streams
        .filter(|stream| is_of_a_pod(stream))
        .map(|stream| (stream.owner.clone(), stream.known()))
        .collect()
}
