//! One pod: its socket, its shim's ring, and the streams that the shim follows.
//! Place: `drain` calls it when something came or time has passed; it tells the pipeline.
//! Invariants: the shim's word is taken only of this pod's own wants and streams (V6, V7); numbers are clamped, strings
//! capped; a message never counts before the frames that were published before it; any breach is a [`Fault`], after
//! which the link is gone and the streams wait for the next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use ringpilot_shared::follow::{
    Copy, Event, Identity, KnownStream, Positions, Seen, StreamKey, WantId, Wanted,
};
use ringpilot_shared::host::{Host, Stat};
use ringpilot_shared::ring::consume::{Consumer, Frame, frames};
use ringpilot_shared::ring::lanes::{Judged, Lanes};
use ringpilot_shared::ring::{Offer, layout, memfd, posix_shm};
use ringpilot_shared::wire::handshake::{ToDaemon, ToShim, fitting};
use ringpilot_shared::wire::{
    FILES_LIMIT, LANES_LIMIT, MESSAGE_LIMIT, SCHEMA, STRING_LIMIT, VERSION, socket,
};
use tokio::sync::mpsc;

use super::window::{Order, Refused, RingFile};
use super::{Limits, Memory, OWNER, RingStatus, Shared};
use crate::discover::{Heard, Pod as PodName, Runtime, State, Stdout, Workload};
use crate::ledger::Lost;
use crate::pipeline::Pipeline;
use crate::problem::{Problem, Problems};

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
}

/// What a drain did.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Took {
    pub(super) more: bool,
    /// The ring was full, or nearly.
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
        });
        true
    }

    /// Takes messages, and first what was published before them. Whether there was anything.
    pub(super) fn hear(&mut self, around: &Around, copy: &mut [u8]) -> Result<bool, Fault> {
        let mut messages = Vec::new();
        let mut closed = false;
        {
            let Some(link) = &mut self.link else {
                return Ok(false);
            };
            let now = around.host.now();
            let earned = now.saturating_sub(link.allowed_at).as_millis()
                * u128::from(MESSAGES_A_SECOND)
                / 1_000;
            if earned > 0 {
                let all = u128::from(link.allowance) + earned;
                link.allowance = u32::try_from(all)
                    .unwrap_or(u32::MAX)
                    .min(MESSAGES_A_SECOND);
                link.allowed_at = now;
            }
            let mut buffer = [0; MESSAGE_LIMIT];
            while messages.len() < MESSAGES_A_TURN && link.allowance > 0 {
                match socket::receive(link.socket.as_fd(), &mut buffer, None) {
                    Ok(socket::Received::Message(length)) => {
                        link.allowance -= 1;
                        messages.push(ToDaemon::read(&buffer[..length]).map_err(broke)?);
                    }
                    Ok(socket::Received::Nothing) => break,
                    Ok(socket::Received::TooLong) => {
                        return Err(broke("a message is longer than 1024 bytes"));
                    }
                    Ok(socket::Received::Closed) | Err(_) => {
                        closed = true;
                        break;
                    }
                }
            }
        }
        if messages.is_empty() && !closed {
            return Ok(false);
        }
        // At most what the ring holds: more that comes meanwhile has its turn.
        for _ in 0..=layout::capacity(layout::CAPACITY_LOG2_MAX) as usize / copy.len() {
            if !self.drain(around, copy)?.more {
                break;
            }
        }
        for message in messages {
            self.act(message, around)?;
        }
        if closed { Err(Fault::Closed) } else { Ok(true) }
    }

    fn act(&mut self, message: ToDaemon, around: &Around) -> Result<(), Fault> {
        let is_ready = self.link.as_ref().is_some_and(|link| link.is_ready);
        match message {
            ToDaemon::Hello {
                oldest,
                newest,
                schema,
                capacity_log2,
                ..
            } => {
                if !(oldest..=newest).contains(&VERSION) || schema != SCHEMA {
                    return Err(broke("it speaks another protocol than this daemon"));
                }
                self.welcome(capacity_log2, around)
            }
            ToDaemon::Declare { name, value, more } => self.declare(&name, &value, more),
            ToDaemon::Ready {} => self.ready(around),
            _ if !is_ready => Err(broke("it tells of files before it has declared any")),
            ToDaemon::Seen {
                want,
                stream,
                stat,
                identity,
                after,
                known,
                existed,
                finished,
                path,
            } => {
                let want = WantId(want);
                let Some((wanted, _)) = self.wants.get(&want) else {
                    return Err(broke("it saw a file that nobody wants of it"));
                };
                // What a pod has that came after the daemon's start is new, however old it is to its shim.
                let existed = existed && wanted.from_start;
                let after = after.filter(|key| self.is_mine(*key));
                self.seen(
                    Seen {
                        want,
                        path,
                        stream,
                        // Replaced by the stream's own.
                        file: RingFile::new(Arc::clone(&around.shared), stream, stat),
                        stat,
                        identity,
                        after,
                        known,
                        existed,
                        finished,
                    },
                    around,
                )
            }
            ToDaemon::Truncated {
                old,
                new,
                identity,
                copy,
                size,
                modified_ns,
            } => self.truncated(old, new, identity, copy, (size, modified_ns), around),
            ToDaemon::Trouble { want, error, text } => {
                self.trouble(want, error, &text, around);
                Ok(())
            }
            ToDaemon::Looked {} => {
                self.looked(around);
                Ok(())
            }
            ToDaemon::Ending {} => {
                if let Some(link) = &mut self.link {
                    link.ending = true;
                }
                Ok(())
            }
            ToDaemon::Bye { unread } => {
                if unread > 0 {
                    tracing::warn!(
                        "pod {}: its shim ended with {unread} bytes unread",
                        self.name
                    );
                }
                Err(Fault::Closed)
            }
            ToDaemon::Changed { stream, stat } => self.of(stream, around, |one| {
                let stat = one.file.set(stat);
                Some(Event::Changed { stream, stat })
            }),
            ToDaemon::Identified { stream, identity } => self.of(stream, around, |one| {
                one.identity = identity;
                Some(Event::Known { stream, identity })
            }),
            ToDaemon::Renamed { stream, path } => self.of(stream, around, |one| {
                one.path.clone_from(&path);
                Some(Event::Renamed { stream, path })
            }),
            ToDaemon::Succeeded { stream, by } => {
                if !self.is_mine(by) {
                    return Ok(());
                }
                self.of(stream, around, |one| {
                    one.successor = Some(by);
                    Some(Event::Succeeded { stream, by })
                })
            }
            ToDaemon::Intact { stream } => {
                self.of(stream, around, |_| Some(Event::Intact { stream }))
            }
            ToDaemon::Finished { stream } => self.of(stream, around, |one| {
                one.finished = true;
                Some(Event::Finished { stream })
            }),
            ToDaemon::Unfinished { stream } => self.of(stream, around, |one| {
                one.finished = false;
                Some(Event::Unfinished { stream })
            }),
            ToDaemon::Shed { stream } => self.of(stream, around, |_| Some(Event::Shed { stream })),
            ToDaemon::Overwritten { stream } => {
                self.of(stream, around, |_| Some(Event::Overwritten { stream }))
            }
            ToDaemon::Released { stream, deleted } => {
                self.let_go(stream, deleted, around);
                Ok(())
            }
            ToDaemon::Forgotten { stream } => {
                if self.streams.contains_key(&stream) || !self.is_mine(stream) {
                    return Ok(());
                }
                self.known.retain(|one| one.key != stream);
                around.pipeline.apply(vec![Event::Forgotten { stream }]);
                Ok(())
            }
        }
    }

    /// Whether a stream is this pod's own.
    fn is_mine(&self, key: StreamKey) -> bool {
        self.streams.contains_key(&key) || self.known.iter().any(|one| one.key == key)
    }

    /// Tells the pipeline of one of its streams; of any other the shim's word is nothing.
    fn of(
        &mut self,
        stream: StreamKey,
        around: &Around,
        event: impl FnOnce(&mut Stream) -> Option<Event>,
    ) -> Result<(), Fault> {
        let event = self.streams.get_mut(&stream).and_then(event);
        around.pipeline.apply(event.into_iter().collect());
        Ok(())
    }

    fn welcome(&mut self, wanted_log2: u8, around: &Around) -> Result<(), Fault> {
        let generation = around.host.wall_ns().unsigned_abs();
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        if link.consumer.is_some() {
            return Err(broke("it says HELLO twice"));
        }
        let log2 = wanted_log2.clamp(
            layout::CAPACITY_LOG2_MIN,
            layout::CAPACITY_LOG2_DEFAULT.max(20),
        );
        let owner = socket::peer(link.socket.as_fd()).ok();
        let posix = || posix_shm::make(log2, generation, owner);
        let made = match around.limits.memory {
            Memory::Memfd => memfd::make(log2, generation),
            Memory::Posix => posix(),
            Memory::Auto => memfd::make(log2, generation).or_else(|_| posix()),
        };
        let made = made.map_err(|error| {
            tracing::error!("pod {}: no ring can be made: {error}", self.name);
            Fault::Closed
        })?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = EventFd::from_flags(flags).map_err(|_| Fault::Closed)?;
        let (backend, names, held) = match made.offer {
            Offer::Memfd { data, control } => {
                (0, [String::new(), String::new()], vec![data, control])
            }
            Offer::Posix { data, control } => (1, [data, control], Vec::new()),
        };
        let [data, control] = names.map(String::into_bytes);
        let welcome = ToShim::Welcome {
            version: VERSION,
            backend,
            capacity_log2: log2,
            generation,
            data,
            control,
        };
        let mut descriptors: Vec<i32> = held.iter().map(AsRawFd::as_raw_fd).collect();
        descriptors.push(bell.as_fd().as_raw_fd());
        let bytes = welcome.write().ok_or(Fault::Closed)?;
        match socket::send(link.socket.as_fd(), &bytes, &descriptors) {
            Ok(true) => {}
            Ok(false) | Err(_) => return Err(Fault::Closed),
        }
        link.consumer = Some(Consumer::new(made.daemon, log2));
        link.bell = Some(bell);
        Ok(())
    }

    fn declare(&mut self, name: &[u8], value: &[u8], more: bool) -> Result<(), Fault> {
        let Some(link) = self.link.as_mut().filter(|link| !link.is_ready) else {
            return Err(broke("it declares after READY"));
        };
        link.declared_bytes += name.len() + value.len();
        if link.declared_bytes > MOST_DECLARED {
            return Err(broke("its declarations are longer than 256 KiB"));
        }
        let name = String::from_utf8_lossy(name).into_owned();
        let (of, mut whole) = link.parts.take().unwrap_or((name.clone(), Vec::new()));
        if of != name {
            return Err(broke("parts of two declarations are mixed"));
        }
        whole.extend_from_slice(value);
        if more {
            link.parts = Some((name, whole));
        } else {
            link.declared.push((name, whole));
        }
        Ok(())
    }

    /// Everything is declared: it is read as any container's environment.
    fn ready(&mut self, around: &Around) -> Result<(), Fault> {
        let Some(link) = self.link.as_mut().filter(|link| link.consumer.is_some()) else {
            return Err(broke("it is ready before HELLO"));
        };
        if std::mem::replace(&mut link.is_ready, true) {
            return Err(broke("it is ready twice"));
        }
        let environment = std::mem::take(&mut link.declared)
            .into_iter()
            .map(|(name, value)| {
                let name = if name.contains("_logs_") {
                    name
                } else {
                    format!("{}_logs_{name}", around.prefix)
                };
                (name, String::from_utf8_lossy(&value).into_owned())
            })
            .collect();
        let workload = Workload {
            runtime: Runtime::Shim,
            id: self.owner.to_string(),
            name: self.name.clone(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            environment,
            mounts: Vec::new(),
            stdout: Stdout::None("a shim reads files only".to_owned()),
            roots: Vec::new(),
            pid: 0,
            created_ns: 0,
            state: State::Running,
            pod: pod_name(&self.name),
        };
        if self.workload.as_ref() == Some(&workload) {
            return self.start(around);
        }
        self.workload = Some(workload.clone());
        // The receiver is gone only when the daemon ends.
        drop(around.heard.send(Heard::Here(Box::new(workload))));
        Ok(())
    }

    pub(super) fn owner(&self) -> &str {
        &self.owner
    }

    pub(super) fn want(&mut self, wanted: Wanted, name: Arc<str>) -> Result<(), Fault> {
        if wanted.pattern.text().len() > STRING_LIMIT {
            return Ok(());
        }
        let id = wanted.want;
        self.wants.insert(id, (wanted, name));
        if self.link.as_ref().is_some_and(|link| link.started) {
            return self.tell_want(id);
        }
        Ok(())
    }

    fn tell_want(&mut self, id: WantId) -> Result<(), Fault> {
        let Some((wanted, name)) = self.wants.get(&id) else {
            return Ok(());
        };
        let follow = ToShim::Follow {
            want: id.0,
            name: fitting(name),
            pinned_bytes: wanted.pinned_bytes,
            pattern: wanted.pattern.text().as_bytes().to_vec(),
        };
        self.say(&follow)
    }

    /// Its declarations have been read: the shim is told what is known and wanted.
    pub(super) fn start(&mut self, around: &Around) -> Result<(), Fault> {
        let Some(link) = self
            .link
            .as_mut()
            .filter(|link| link.is_ready && !link.started)
        else {
            return Ok(());
        };
        link.started = true;
        let live = self.streams.iter().map(|(key, one)| KnownStream {
            key: *key,
            identity: one.identity,
            path: one.path.clone(),
            modified_ns: one.file.now().modified_ns,
            successor: one.successor,
            seen_ns: around.host.wall_ns(),
        });
        let known: Vec<KnownStream> = live.chain(self.known.iter().cloned()).collect();
        for one in &known {
            let furthest = around.pipeline.furthest(one.key).unwrap_or_default();
            self.say(&ToShim::known(one, furthest))?;
        }
        let wants: Vec<WantId> = self.wants.keys().copied().collect();
        for want in wants {
            self.tell_want(want)?;
        }
        self.say(&ToShim::Start {})
    }

    fn say(&mut self, message: &ToShim) -> Result<(), Fault> {
        let (Some(link), Some(bytes)) = (&mut self.link, message.write()) else {
            return Ok(());
        };
        if link.out.len() >= MOST_WAITING {
            return Err(broke("it takes no messages"));
        }
        link.out.push_back(bytes);
        self.flush()
    }

    /// Sends what waits.
    pub(super) fn flush(&mut self) -> Result<(), Fault> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        while let Some(message) = link.out.front() {
            match socket::send(link.socket.as_fd(), message, &[]) {
                Ok(true) => drop(link.out.pop_front()),
                Ok(false) => break,
                Err(_) => return Err(Fault::Closed),
            }
        }
        Ok(())
    }

    /// Whether messages wait for the shim.
    pub(super) fn is_blocked(&self) -> bool {
        self.link.as_ref().is_some_and(|link| !link.out.is_empty())
    }

    fn seen(&mut self, seen: Seen, around: &Around) -> Result<(), Fault> {
        let key = seen.stream;
        let foreign = around
            .shared
            .streams
            .lock()
            .get(&key)
            .is_some_and(|owner| *owner != self.owner);
        if foreign
            || around
                .pipeline
                .owner_of(key)
                .is_some_and(|owner| owner != self.owner)
        {
            return Err(broke("it claims a stream of another pod"));
        }
        if !self.streams.contains_key(&key) && self.streams.len() >= FILES_LIMIT {
            let text = format!("more than {FILES_LIMIT} files are open; this one is not read");
            self.trouble(seen.want.0, -1, text.as_bytes(), around);
            return Ok(());
        }
        self.known.retain(|one| one.key != key);
        let is_new = !self.streams.contains_key(&key);
        let number = match self.streams.get(&key) {
            Some(one) => one.number,
            None => {
                self.next_number = self.next_number.wrapping_add(1);
                self.next_number
            }
        };
        let file = match self.streams.get(&key) {
            Some(one) => Arc::clone(&one.file),
            None => RingFile::new(Arc::clone(&around.shared), key, seen.stat),
        };
        let stat = file.set(seen.stat);
        let was_finished = self.streams.get(&key).is_some_and(|one| one.finished);
        let before = self.streams.get(&key).and_then(|one| one.after);
        self.streams.insert(
            key,
            Stream {
                file: Arc::clone(&file),
                number,
                path: seen.path.clone(),
                identity: seen.identity,
                after: seen.after.or(before),
                successor: self.streams.get(&key).and_then(|one| one.successor),
                finished: seen.finished,
                is_told: true,
                // A shim that tells of it anew knows nothing of how far it is settled.
                durable: 0,
            },
        );
        self.numbers.insert(number, key);
        let owner = Arc::clone(&self.owner);
        around.shared.streams.lock().insert(key, owner);
        let finished = seen.finished;
        let mut events = vec![Event::Seen(Seen { file, stat, ..seen })];
        if !is_new {
            events.push(Event::Changed { stream: key, stat });
            match (was_finished, finished) {
                (true, false) => events.push(Event::Unfinished { stream: key }),
                (false, true) => events.push(Event::Finished { stream: key }),
                _ => {}
            }
        }
        around.pipeline.apply(events);
        Ok(())
    }

    fn truncated(
        &mut self,
        old: StreamKey,
        new: StreamKey,
        identity: Identity,
        copy: Option<ringpilot_shared::wire::handshake::CopySeen>,
        (size, modified_ns): (u64, i64),
        around: &Around,
    ) -> Result<(), Fault> {
        let Some(mut before) = self.streams.remove(&old) else {
            return Ok(());
        };
        let is_next = new.id == old.id && new.generation == old.generation.wrapping_add(1);
        if self.is_mine(new) || (!is_next && around.pipeline.owner_of(new).is_some()) {
            return Err(broke("a life of a file begins that is there"));
        }
        self.take_lanes(&before.file, around)?;
        let (needs, _) = around.pipeline.needs(old);
        let was = before.file.now();
        let stat_of = |size, modified_ns| Stat {
            size,
            modified_ns,
            ..was
        };
        let rest = before.file.rest();
        let stat = stat_of(size, modified_ns);
        let file = Arc::clone(&before.file);
        file.begin_anew(new, stat);
        // What has come of the old life is not lost with it, where that is all that is wanted.
        let copied = match copy {
            Some(copy) => {
                rest.set(stat_of(copy.size, copy.modified_ns));
                Some((copy.path, copy.identity))
            }
            None if rest.has_all(&needs) => Some((before.path.clone(), before.identity)),
            None => None,
        };
        self.next_number = self.next_number.wrapping_add(1);
        let begun = Stream {
            file,
            number: self.next_number,
            path: before.path.clone(),
            identity,
            after: Some(old),
            successor: None,
            finished: false,
            is_told: true,
            durable: 0,
        };
        self.numbers.insert(begun.number, new);
        self.streams.insert(new, begun);
        around
            .shared
            .streams
            .lock()
            .insert(new, Arc::clone(&self.owner));
        let copy = copied.map(|(path, identity)| Copy {
            path,
            stat: rest.now(),
            file: Arc::clone(&rest) as _,
            identity,
        });
        if let Some(copy) = &copy {
            before.file = rest;
            before.identity = copy.identity;
            before.finished = true;
            before.successor = Some(new);
            self.streams.insert(old, before);
        } else {
            self.numbers.remove(&before.number);
        }
        let stat = self.streams[&new].file.now();
        around.pipeline.apply(vec![Event::Truncated {
            old,
            new,
            identity,
            copy,
            stat,
        }]);
        Ok(())
    }

    /// Takes back every lane that fills this file.
    fn take_lanes(&mut self, file: &Arc<RingFile>, around: &Around) -> Result<(), Fault> {
        let orders = file.service(&[], false);
        self.carry_out(None, file, orders, around)
    }

    fn trouble(&mut self, want: u64, error: i64, text: &[u8], around: &Around) {
        let Some((wanted, name)) = self.wants.get(&WantId(want)) else {
            return;
        };
        let path = PathBuf::from(wanted.pattern.text());
        let kind = match error {
            0 => None,
            2 => Some(io::ErrorKind::NotFound),
            13 => Some(io::ErrorKind::PermissionDenied),
            _ => Some(io::ErrorKind::Other),
        };
        let reason = String::from_utf8_lossy(text).into_owned();
        match kind {
            None => drop(self.troubles.remove(&want)),
            Some(kind) => {
                let cure = match kind {
                    io::ErrorKind::PermissionDenied => {
                        "let the shim's container run as a user that may read it"
                    }
                    io::ErrorKind::NotFound => {
                        "mount the folder into the shim's container, at the same path"
                    }
                    _ => "mend what the reason names; it is tried again by itself",
                };
                self.troubles.insert(
                    want,
                    Problem {
                        container: format!("pod {}, log `{name}`", self.name),
                        key: path.display().to_string(),
                        value: String::new(),
                        reason: reason.clone(),
                        cure: cure.to_owned(),
                    },
                );
            }
        }
        self.tell_problems(around);
        around.pipeline.apply(vec![Event::Trouble {
            want: WantId(want),
            path,
            trouble: kind.map(|kind| (kind, reason)),
        }]);
    }

    fn tell_problems(&self, around: &Around) {
        let mut problems: Vec<Problem> = self.troubles.values().cloned().collect();
        if let Some(reason) = self.last_error.as_ref().filter(|_| self.breaches > 0) {
            problems.push(Problem {
                container: format!("pod {}", self.name),
                key: "ring".to_owned(),
                value: String::new(),
                reason: format!("its shim broke the ring's rules: {reason}"),
                cure:
                    "use the `ringpilot-shim` of the daemon's version; it is let in again by itself"
                        .to_owned(),
            });
        }
        let owner = format!("rings/{}", self.name);
        if problems.is_empty() {
            around.problems.clear(&owner);
        } else {
            around.problems.set(&owner, problems);
        }
    }

    /// The shim has told of everything that it found at its first look.
    fn looked(&mut self, around: &Around) {
        let Some(link) = &mut self.link else { return };
        if std::mem::replace(&mut link.looked, true) {
            return;
        }
        // What it has not found again will not be written to by anyone.
        let lost: Vec<StreamKey> = self
            .streams
            .iter()
            .filter(|(_, one)| !one.is_told)
            .map(|(key, _)| *key)
            .collect();
        for key in lost {
            self.end(key, around);
        }
    }

    /// A stream that nobody can read on: finished, and what is not here is lost.
    fn end(&mut self, key: StreamKey, around: &Around) {
        if let Some(one) = self.streams.get_mut(&key)
            && !one.finished
        {
            one.finished = true;
            around.pipeline.apply(vec![Event::Finished { stream: key }]);
        }
    }

    /// Gives up what can be had no more. To be called now and then while no shim, or not the stream's, is there.
    pub(super) fn give_up(&mut self, around: &Around) {
        // While its folder is there its shim may come again, and find its files.
        let is_over = self.removed && self.link.is_none();
        let keys: Vec<StreamKey> = self
            .streams
            .iter()
            .filter(|(_, one)| {
                is_over || (self.link.as_ref().is_some_and(|l| l.looked) && !one.is_told)
            })
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.end(key, around);
            let (needs, _) = around.pipeline.needs(key);
            let file = &self.streams[&key].file;
            if !needs.is_empty() && !file.has_for_one(&needs) {
                let lost = if is_over { Lost::Drain } else { Lost::Vanished };
                around.pipeline.give_up(key, lost);
            }
        }
    }

    /// Whether nothing of it is left to be done.
    pub(super) fn is_over(&self) -> bool {
        self.removed && self.link.is_none() && self.streams.is_empty()
    }

    /// A stream is needed by nobody any more.
    pub(super) fn released(&mut self, key: StreamKey, around: &Around) -> Result<(), Fault> {
        let told = self.streams.get(&key).is_some_and(|one| one.is_told);
        if self.link.as_ref().is_some_and(|link| link.started) && told {
            return self.say(&ToShim::Release { stream: key });
        }
        // Nobody holds the file: one that is still there is recognised when its shim comes again.
        self.let_go(key, self.removed, around);
        Ok(())
    }

    pub(super) fn suspect(&mut self, key: StreamKey) -> Result<(), Fault> {
        self.say(&ToShim::Suspect { stream: key })
    }

    fn let_go(&mut self, key: StreamKey, deleted: bool, around: &Around) {
        let Some(one) = self.streams.remove(&key) else {
            return;
        };
        self.numbers.remove(&one.number);
        around.shared.streams.lock().remove(&key);
        let mut events = vec![Event::Released {
            stream: key,
            deleted,
        }];
        if !deleted {
            self.known.push_back(KnownStream {
                key,
                identity: one.identity,
                path: one.path,
                modified_ns: one.file.now().modified_ns,
                successor: one.successor,
                seen_ns: around.host.wall_ns(),
            });
            if self.known.len() > MOST_KNOWN
                && let Some(oldest) = self.known.pop_front()
            {
                events.push(Event::Forgotten { stream: oldest.key });
            }
        }
        around.pipeline.apply(events);
    }

    /// Takes what is in the ring, at most what `copy` holds.
    pub(super) fn drain(&mut self, around: &Around, copy: &mut [u8]) -> Result<Took, Fault> {
        let Some(link) = &mut self.link else {
            return Ok(Took::default());
        };
        let Some(consumer) = &mut link.consumer else {
            return Ok(Took::default());
        };
        if link.armed {
            link.armed = false;
            consumer.disarm();
        }
        let drained = consumer.drain(copy).map_err(broke)?;
        let mut changed = BTreeSet::new();
        let mut payloads = 0;
        for frame in frames(&copy[..drained.bytes]) {
            let frame = frame.map_err(broke)?;
            let judged = link.lanes.judge(&frame).map_err(broke)?;
            let (
                Judged::Bytes { lane, offset },
                Frame::Batch {
                    lane: number,
                    payload,
                    ..
                },
            ) = (judged, &frame)
            else {
                continue;
            };
            payloads += payload.len();
            let Some(key) = self.numbers.get(&lane.file) else {
                continue;
            };
            let Some(one) = self.streams.get(key) else {
                continue;
            };
            match one
                .file
                .append(*number, offset, &copy[payload.clone()], lane.size)
            {
                Ok(_) => drop(changed.insert(*key)),
                Err(Refused::Stale) => {}
                Err(Refused::BeyondLimit) => {
                    return Err(broke(format!(
                        "lane {number} goes beyond what it was granted"
                    )));
                }
            }
        }
        self.frames += drained.frames as u64;
        self.bytes += payloads as u64;
        let frames = drained.frames as u64;
        around.shared.frames.fetch_add(frames, Ordering::Relaxed);
        if drained.bytes > 0 {
            link.busy_at = around.host.now();
            link.empty_wakes = 0;
        }
        if drained.nudge {
            self.say(&ToShim::Space {})?;
        }
        let mut events = Vec::new();
        for key in &changed {
            let one = &self.streams[key];
            let stat = one.file.now();
            events.push(Event::Changed { stream: *key, stat });
            // Who continues this one's last group reads here, too.
            if let Some((next, one)) = one
                .successor
                .and_then(|next| self.streams.get_key_value(&next))
            {
                let stat = one.file.now();
                events.push(Event::Changed {
                    stream: *next,
                    stat,
                });
            }
        }
        around.pipeline.apply(events);
        for key in changed {
            if self.streams[&key].file.held() > 64 * 1024 {
                self.service(key, around)?;
            }
        }
        Ok(Took {
            more: drained.more,
            hot: drained.nudge || drained.bytes >= copy.len() / 4,
        })
    }

    /// Before sleeping on this ring; false when there is something to take.
    pub(super) fn arm(&mut self) -> bool {
        let Some(link) = &mut self.link else {
            return true;
        };
        let Some(consumer) = &mut link.consumer else {
            return true;
        };
        link.armed = consumer.arm();
        link.armed
    }

    /// Looks where one file's readers stand, and asks the shim for what they want.
    pub(super) fn service(&mut self, key: StreamKey, around: &Around) -> Result<(), Fault> {
        let Some(one) = self.streams.get(&key) else {
            return Ok(());
        };
        let (needs, _) = around.pipeline.needs(key);
        let linked = one.is_told && self.link.as_ref().is_some_and(|link| link.started);
        let file = Arc::clone(&one.file);
        let orders = file.service(&needs, linked);
        self.carry_out(Some(key), &file, orders, around)
    }

    fn carry_out(
        &mut self,
        key: Option<StreamKey>,
        file: &Arc<RingFile>,
        orders: Vec<Order>,
        _around: &Around,
    ) -> Result<(), Fault> {
        for order in orders {
            let Some(link) = &mut self.link else {
                return Ok(());
            };
            match order {
                Order::Stop(lane) => {
                    link.lanes.take(lane);
                    self.say(&ToShim::Stop { lane })?;
                }
                Order::Grant(lane, limit) => self.say(&ToShim::Grant { lane, limit })?,
                Order::Begin(offset, limit) => {
                    let number = key.and_then(|key| Some((key, self.streams.get(&key)?.number)));
                    let Some((stream, number)) = number.filter(|_| link.lanes.len() < LANES_LIMIT)
                    else {
                        continue;
                    };
                    let lane = link.lanes.give(number, stream.generation, offset);
                    file.begun(lane, offset, limit);
                    self.say(&ToShim::Resume {
                        lane,
                        file: number,
                        stream,
                        offset,
                        limit,
                    })?;
                }
            }
        }
        Ok(())
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
            if let Some(offset) = settled.filter(|offset| *offset > one.durable) {
                one.durable = offset;
                self.say(&ToShim::Durable {
                    stream: key,
                    offset,
                })?;
            }
        }
        Ok(())
    }

    /// The window whose output seems to be stuck for longest.
    pub(super) fn stuck(&self) -> Option<(std::time::Instant, StreamKey)> {
        let windows = self.streams.iter();
        windows
            .filter_map(|(key, one)| Some((one.file.stuck()?.1, *key)))
            .min_by_key(|(at, _)| *at)
    }

    /// Drops it: its flow reads again in a lane of its own.
    pub(super) fn evict(&mut self, key: StreamKey, at: std::time::Instant) -> Result<(), Fault> {
        let lane = self.streams.get(&key).and_then(|one| one.file.evict(at));
        if let (Some(lane), Some(link)) = (lane, &mut self.link) {
            link.lanes.take(lane);
            self.say(&ToShim::Stop { lane })?;
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

/// `NAMESPACE_POD_UID`, as the kubelet names a pod's folder; any other name is the pod's own.
fn pod_name(folder: &str) -> Option<PodName> {
    let mut parts = folder.split('_');
    let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
    (parts.next().is_none() && ![namespace, name, uid].contains(&"")).then(|| PodName {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        uid: uid.to_owned(),
        container: String::new(),
    })
}
