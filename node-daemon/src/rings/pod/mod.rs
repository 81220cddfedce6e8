//! One pod: its socket, its shim's ring, and the streams that the shim follows.
//! Place: `drain` calls it when something came or time has passed; it tells the pipeline.
//! Invariants: the shim's word is taken only of this pod's own wants and streams (V6, V7); numbers are clamped, strings
//! capped; a message never counts before the frames that were published before it; any breach is a [`Fault`], after
//! which the link is gone and the streams wait for the next.
//!
//! `talk` has what shim and daemon say to each other, `files` the streams, `take` the ring; here is a pod from its first
//! connection to its end.

mod files;
mod take;
mod talk;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use ringpilot_shared::follow::{Identity, KnownStream, StreamKey, WantId, Wanted};
use ringpilot_shared::host::Host;
use ringpilot_shared::ring::consume::Consumer;
use ringpilot_shared::ring::lanes::Lanes;
use ringpilot_shared::wire::handshake::{ToShim, fitting};
use ringpilot_shared::wire::{FILES_LIMIT, socket};
use tokio::sync::mpsc;

use crate::discover::{Heard, Pod as PodName, Runtime, Workload};
use crate::pipeline::Pipeline;
use crate::problem::{Problem, Problems};
use crate::rings::window::RingFile;
use crate::rings::{Limits, OWNER, RingStatus, Shared};

/// Messages taken of one pod in one go.
const MESSAGES_A_TURN: usize = 64;
/// Messages a second that a pod may send for long; so many may come at once.
const MESSAGES_A_SECOND: u32 = 4_000;
/// Messages that may wait for a shim that does not take them.
const MOST_WAITING: usize = 32 * 1024;
/// Bytes of declarations of one pod.
const MOST_DECLARED: usize = 256 * 1024;
/// Streams of a pod that are known and not open: more are forgotten, oldest first.
const MOST_KNOWN: usize = 2 * FILES_LIMIT;
/// Longest pause of a pod that broke a rule.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// After so long without a breach the next one counts as the first.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);
/// How often a shim hears how far its files are acknowledged, while nothing waits for it: each time it wakes.
const DURABLE_EACH: Duration = Duration::from_secs(2);
/// A shim must have said HELLO within this time.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// What every pod needs.
#[derive(Debug)]
pub(super) struct Around {
    pub(super) host: Arc<dyn Host>,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) problems: Arc<Problems>,
    pub(super) shared: Arc<Shared>,
    pub(super) heard: mpsc::UnboundedSender<Heard>,
    pub(super) limits: Limits,
    pub(super) prefix: String,
}

/// Why a link ended.
#[derive(Debug)]
pub(super) enum Fault {
    /// The shim is gone.
    Closed,
    /// It broke a rule.
    Broke(String),
}

fn broke(what: impl std::fmt::Display) -> Fault {
    Fault::Broke(what.to_string())
}

/// One pod.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) id: u64,
    pub(super) name: String,
    owner: Arc<str>,
    pub(super) listener: Option<OwnedFd>,
    pub(super) link: Option<Link>,
    streams: BTreeMap<StreamKey, Stream>,
    /// By the number that frames carry.
    numbers: BTreeMap<u32, StreamKey>,
    next_number: u32,
    known: VecDeque<KnownStream>,
    wants: BTreeMap<WantId, (Wanted, Arc<str>)>,
    workload: Option<Workload>,
    troubles: BTreeMap<u64, Problem>,
    /// Its folder is gone: nobody comes again.
    pub(super) removed: bool,
    breaches: u32,
    broke_at: Duration,
    pub(super) refused_until: Duration,
    frames: u64,
    bytes: u64,
    last_error: Option<String>,
}

/// A connection, and the ring on it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) socket: OwnedFd,
    pub(super) bell: Option<EventFd>,
    consumer: Option<Consumer>,
    lanes: Lanes,
    out: VecDeque<Vec<u8>>,
    since: Duration,
    declared: Vec<(String, Vec<u8>)>,
    parts: Option<(String, Vec<u8>)>,
    declared_bytes: usize,
    is_ready: bool,
    started: bool,
    looked: bool,
    ending: bool,
    allowance: u32,
    allowed_at: Duration,
    /// Wakes in a row that brought nothing (V8).
    pub(super) empty_wakes: u32,
    pub(super) armed: bool,
    pub(super) busy_at: Duration,
    /// Until then its bell is waited for, not the tick.
    hot_until: Duration,
}

#[derive(Debug)]
struct Stream {
    file: Arc<RingFile>,
    number: u32,
    path: PathBuf,
    identity: Identity,
    after: Option<StreamKey>,
    successor: Option<StreamKey>,
    finished: bool,
    /// The shim of this link has told of it.
    is_told: bool,
    durable: u64,
    /// When `durable` was told last.
    durable_at: Duration,
}

/// What a drain did.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Took {
    pub(super) more: bool,
    /// There is much in this ring, or was a moment ago.
    pub(super) hot: bool,
}

impl Pod {
    pub(super) fn new(
        id: u64,
        dir: &Path,
        name: String,
        known: Vec<KnownStream>,
    ) -> io::Result<Self> {
        let listener = socket::listen_at(&dir.join("s"), 0o666)?;
        Ok(Self {
            id,
            owner: format!("{OWNER}{name}").into(),
            name,
            listener: Some(listener),
            link: None,
            streams: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next_number: 0,
            known: known.into(),
            wants: BTreeMap::new(),
            workload: None,
            troubles: BTreeMap::new(),
            removed: false,
            breaches: 0,
            broke_at: Duration::ZERO,
            refused_until: Duration::ZERO,
            frames: 0,
            bytes: 0,
            last_error: None,
        })
    }

    /// Whether its socket is still where shims find it.
    pub(super) fn is_bound(&self, dir: &Path) -> bool {
        dir.join("s").symlink_metadata().is_ok()
    }

    /// It has a socket again.
    pub(super) fn rebound(&mut self, listener: OwnedFd) {
        if std::mem::take(&mut self.removed) {
            self.workload = None;
            self.wants.clear();
        }
        self.listener = Some(listener);
    }

    /// Whether time alone may bring something for it.
    pub(super) fn is_unsettled(&self) -> bool {
        match &self.link {
            None => self.removed && !self.streams.is_empty(),
            Some(link) if !link.started || !link.out.is_empty() => true,
            Some(_) => self
                .streams
                .values()
                .any(|one| !one.is_told || one.durable < one.file.now().size),
        }
    }

    /// Takes the newest shim that connects; the one before is drained and dropped.
    pub(super) fn accept(&mut self, around: &Around, copy: &mut [u8]) -> bool {
        let Some(listener) = &self.listener else {
            return false;
        };
        let mut newest = None;
        // As many as may queue up: the last is the one that counts.
        for _ in 0..16 {
            match socket::accept(listener.as_fd()) {
                Ok(Some(end)) => newest = Some(end),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!("pod {}: no shim can be accepted: {error}", self.name);
                    break;
                }
            }
        }
        let Some(end) = newest else { return false };
        let now = around.host.now();
        if now < self.refused_until {
            let after = self.refused_until.saturating_sub(now);
            let refused = ToShim::Refused {
                cause: fitting(self.last_error.as_deref().unwrap_or("it broke a rule")),
                after_ms: u32::try_from(after.as_millis()).unwrap_or(u32::MAX),
            };
            // Whether it hears why or not, it is refused.
            if let Some(bytes) = refused.write() {
                drop(socket::send(end.as_fd(), &bytes, &[]));
            }
            return false;
        }
        if self.link.is_some() {
            // What the older one had published is not lost; what is wrong with it counts no more.
            drop(self.drain(around, copy));
            self.unlink();
        }
        self.link = Some(Link {
            socket: end,
            bell: None,
            consumer: None,
            lanes: Lanes::default(),
            out: VecDeque::new(),
            since: now,
            declared: Vec::new(),
            parts: None,
            declared_bytes: 0,
            is_ready: false,
            started: false,
            looked: false,
            ending: false,
            allowance: MESSAGES_A_SECOND,
            allowed_at: now,
            empty_wakes: 0,
            armed: false,
            busy_at: now,
            hot_until: Duration::ZERO,
        });
        true
    }

    pub(super) fn owner(&self) -> &str {
        &self.owner
    }

    /// What is done a few times a second while the pod is active: positions back to the shim, memory back to the node.
    pub(super) fn tend(&mut self, around: &Around) -> Result<(), Fault> {
        if let Some(link) = &self.link
            && link.consumer.is_none()
            && around.host.now() >= link.since + HELLO_WITHIN
        {
            return Err(broke("it connected and said nothing"));
        }
        if self.link.as_ref().is_none_or(|link| !link.started) {
            return Ok(());
        }
        let now = around.host.now();
        let ending = self.link.as_ref().is_some_and(|link| link.ending);
        let keys: Vec<StreamKey> = self.streams.keys().copied().collect();
        for key in keys {
            if self.streams[&key].file.held() > 4 * 1024 {
                self.service(key, around)?;
            }
            let (_, settled) = around.pipeline.needs(key);
            let Some(one) = self.streams.get_mut(&key) else {
                continue;
            };
            one.file.shrink();
            // A shim that ends waits for it, and a file that is over is held until it.
            let awaited = ending || one.finished || one.successor.is_some();
            let is_due = awaited || now >= one.durable_at + DURABLE_EACH;
            if let Some(offset) = settled.filter(|offset| is_due && *offset > one.durable) {
                (one.durable, one.durable_at) = (offset, now);
                self.say(&ToShim::Durable {
                    stream: key,
                    offset,
                })?;
            }
        }
        Ok(())
    }

    /// The link ended. After a breach the pod is let in again only after a pause.
    pub(super) fn fault(&mut self, fault: Fault, around: &Around) {
        if let Fault::Broke(reason) = fault {
            let now = around.host.now();
            if now >= self.broke_at + FORGIVEN_AFTER {
                self.breaches = 0;
            }
            let pause = around.limits.first_pause * 2_u32.saturating_pow(self.breaches.min(20));
            self.breaches += 1;
            self.broke_at = now;
            self.refused_until = now + pause.min(LONGEST_PAUSE);
            tracing::warn!("pod {}: its ring is dropped: {reason}", self.name);
            self.last_error = Some(reason);
            self.tell_problems(around);
        }
        self.unlink();
    }

    fn unlink(&mut self) {
        self.link = None;
        for one in self.streams.values_mut() {
            one.file.unlink();
            one.is_told = false;
        }
    }

    /// Its folder is gone.
    pub(super) fn remove(&mut self, around: &Around) {
        self.removed = true;
        self.listener = None;
        drop(around.heard.send(Heard::Gone {
            runtime: Runtime::Shim,
            id: self.owner.to_string(),
        }));
    }

    pub(super) fn status(&self, now: Duration) -> RingStatus {
        RingStatus {
            pod: self.name.clone(),
            state: match &self.link {
                Some(link) if link.ending => "draining",
                Some(link) if link.started => "connected",
                None if now < self.refused_until => "poisoned",
                _ => "waiting",
            },
            files: self.streams.len(),
            frames: self.frames,
            bytes: self.bytes,
            held_bytes: self.streams.values().map(|one| one.file.held()).sum(),
            last_error: self.last_error.clone(),
        }
    }
}

/// `NAMESPACE_POD_UID`, or `NAMESPACE_POD_UID_CONTAINER`, as the CSI driver names a folder by the kubelet's word; any other
/// name is the pod's own. None of the parts may have a `_` in Kubernetes.
fn pod_name(folder: &str) -> Option<PodName> {
    let mut parts = folder.split('_');
    let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
    let container = parts.next();
    let is_whole = parts.next().is_none() && ![namespace, name, uid].contains(&"");
    (is_whole && container != Some("")).then(|| PodName {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        uid: uid.to_owned(),
        container: container.unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folders_name_says_whose_it_is() {
        let told = |folder| pod_name(folder).map(|pod| (pod.name, pod.container));
        let is = |name: &str, container: &str| Some((name.to_owned(), container.to_owned()));
        assert_eq!(told("shop_web-0_u-1"), is("web-0", ""));
        assert_eq!(told("shop_web-0_u-1_nginx"), is("web-0", "nginx"));
        for other in ["web", "shop_web", "shop__u-1", "shop_web_u-1_", "a_b_c_d_e"] {
            assert_eq!(told(other), None, "{other}");
        }
    }
}
