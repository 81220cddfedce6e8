//! The thread that drains all rings, in turns.
//! Place: woken by doorbells, sockets, readers that want more, and time; everything it does with a pod is in `pod`.
//! Invariants: a turn takes at most 256 KiB of one ring, then the next has its turn; a ring that is quiet costs nothing
//! (its bell is armed); one that is busy is looked at each 20 ms; one that wakes without a cause is left alone for a
//! while (V8); when the rings' share of memory is full, stuck windows go first, then nothing more is drained.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use ringpilot_shared::follow::{Event, KnownStream};
use ringpilot_shared::ring::consume::{PrivateCopy, private_copy};
use tokio::sync::mpsc;

use super::pod::{Around, Fault, Pod};
use super::{Command, OWNER, Parts, Shared};
use crate::discover::Heard;
use crate::problem::of_operator;

/// Bytes of one ring in one turn.
const QUANTUM: usize = 256 * 1024;
/// How often a busy ring is looked at.
const TICK: Duration = Duration::from_millis(20);
/// A ring without frames for so long goes to sleep.
const IDLE: Duration = Duration::from_secs(1);
/// Positions go back, and memory, this often while any ring is busy.
const TEND: Duration = Duration::from_millis(200);
/// The same while all are quiet, and how often folders are looked for, whatever was heard.
const SWEEP: Duration = Duration::from_secs(5);
/// Wakes in a row without a frame or a message before a ring goes to the penalty box.
const EMPTY_WAKES: u32 = 100;
/// Connections of one pod within a penalty's time.
const CONNECTS: u32 = 20;
/// How long it stays there.
const PENALTY: Duration = Duration::from_secs(1);
/// A stream that was not seen for so long is forgotten.
const FORGOTTEN_AFTER_NS: i64 = 7 * 24 * 3_600 * 1_000_000_000;

const WAKE: u64 = 0;
const FOLDERS: u64 = 1;
const KINDS: u64 = 4;
const LISTENER: u64 = 0;
const SOCKET: u64 = 1;
const BELL: u64 = 2;

/// The drain thread's own.
pub(super) struct Drain {
    dir: PathBuf,
    around: Around,
    epoll: Epoll,
    folders: Option<Inotify>,
    is_watched: bool,
    pods: BTreeMap<u64, Pod>,
    known: HashMap<String, Vec<KnownStream>>,
    next_pod: u64,
    /// Rings that are looked at each tick.
    busy: BTreeSet<u64>,
    /// Rings that have something now.
    ready: BTreeSet<u64>,
    /// In the penalty box until then.
    boxed: BTreeMap<u64, Duration>,
    /// How often a pod has connected, since when.
    connects: BTreeMap<u64, (Duration, u32)>,
    /// Pods that are not listened to, until then.
    deaf: BTreeMap<u64, Duration>,
    copy: PrivateCopy,
    tended_at: Duration,
    swept_at: Option<Duration>,
    shared: Arc<Shared>,
}

impl Drain {
    pub(super) fn new(
        parts: Parts,
        shared: Arc<Shared>,
        heard: mpsc::UnboundedSender<Heard>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&shared.wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        // Without one the sweep finds new folders.
        let folders = Inotify::init(flags).ok();
        if let Some(folders) = &folders {
            epoll.add(
                folders.as_fd(),
                EpollEvent::new(EpollFlags::EPOLLIN, FOLDERS),
            )?;
        }
        let mut known: HashMap<String, Vec<KnownStream>> = HashMap::new();
        let wall_ns = parts.host.wall_ns();
        let mut forgotten = Vec::new();
        for (owner, stream) in parts.known {
            if wall_ns.saturating_sub(stream.seen_ns) > FORGOTTEN_AFTER_NS {
                forgotten.push(Event::Forgotten { stream: stream.key });
            } else {
                known.entry(owner).or_default().push(stream);
            }
        }
        parts.pipeline.apply(forgotten);
        Ok(Self {
            dir: parts.dir,
            around: Around {
                host: parts.host,
                pipeline: parts.pipeline,
                problems: parts.problems,
                shared: Arc::clone(&shared),
                heard,
                limits: parts.limits,
                prefix: parts.prefix,
            },
            epoll,
            folders,
            is_watched: false,
            pods: BTreeMap::new(),
            known,
            next_pod: 1,
            busy: BTreeSet::new(),
            ready: BTreeSet::new(),
            boxed: BTreeMap::new(),
            connects: BTreeMap::new(),
            deaf: BTreeMap::new(),
            copy: private_copy(QUANTUM),
            tended_at: Duration::ZERO,
            swept_at: None,
            shared,
        })
    }

    pub(super) fn run(mut self) {
        let mut events = [EpollEvent::empty(); 64];
        while !self.shared.stop.load(Ordering::Acquire) {
            let n = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(n) => n,
                Err(nix::Error::EINTR) => 0,
                Err(error) => {
                    tracing::error!("rings cannot be waited for: {error}");
                    return;
                }
            };
            for event in &events[..n] {
                self.woken(event.data());
            }
            self.obey();
            self.drain_in_turn();
            self.pass_time();
        }
        // What shims have published and nobody has taken is read again from their files.
        for pod in self.pods.values_mut() {
            pod.fault(Fault::Closed, &self.around);
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let now = self.around.host.now();
        let mut wait = match self.swept_at {
            Some(at) => (at + SWEEP).saturating_sub(now),
            None => Duration::ZERO,
        };
        if !self.busy.is_empty() {
            wait = wait.min(TICK);
        }
        if !self.ready.is_empty() {
            wait = match self.is_full() {
                // The workers are behind: a moment, not a spin.
                true => Duration::from_millis(2),
                false => Duration::ZERO,
            };
        }
        let unsettled = self.pods.values().any(Pod::is_unsettled);
        if unsettled {
            wait = wait.min(TEND);
        }
        for until in self.boxed.values().chain(self.deaf.values()) {
            wait = wait.min(until.saturating_sub(now));
        }
        let ms = wait.as_micros().div_ceil(1_000);
        EpollTimeout::from(u16::try_from(ms).unwrap_or(u16::MAX))
    }

    fn is_full(&self) -> bool {
        self.shared.held.load(Ordering::Relaxed) >= self.around.limits.held_bytes
    }

    fn woken(&mut self, token: u64) {
        match token {
            WAKE => drop(self.shared.wake.read()),
            FOLDERS => {
                if let Some(folders) = &self.folders {
                    // Whatever it was: the folders are listed.
                    drop(folders.read_events());
                }
                self.swept_at = None;
            }
            token => {
                let id = token / KINDS;
                let Some(pod) = self.pods.get_mut(&id) else {
                    return;
                };
                match token % KINDS {
                    LISTENER => {
                        if pod.accept(&self.around, &mut self.copy) {
                            self.register(id);
                        }
                        self.rest_if_flooded(id);
                    }
                    SOCKET => match pod.hear(&self.around, &mut self.copy) {
                        Ok(true) => {
                            if let Some(link) = &mut pod.link {
                                link.empty_wakes = 0;
                                link.busy_at = self.around.host.now();
                            }
                            self.busy.insert(id);
                            self.register_bell(id);
                        }
                        Ok(false) => self.spurious(id),
                        Err(fault) => self.fault(id, fault),
                    },
                    _ => {
                        if let Some(link) = &mut pod.link {
                            link.empty_wakes += 1;
                        }
                        self.ready.insert(id);
                        self.box_if_spurious(id);
                    }
                }
                if let Some(pod) = self.pods.get_mut(&id)
                    && pod.is_blocked()
                    && let Err(fault) = pod.flush()
                {
                    self.fault(id, fault);
                }
            }
        }
    }

    /// A pod that connects without pause is not listened to for a while.
    fn rest_if_flooded(&mut self, id: u64) {
        let now = self.around.host.now();
        let (since, n) = self.connects.entry(id).or_insert((now, 0));
        if now >= *since + PENALTY {
            (*since, *n) = (now, 0);
        }
        *n += 1;
        if *n == CONNECTS
            && let Some(listener) = self.pods.get(&id).and_then(|pod| pod.listener.as_ref())
        {
            self.epoll.delete(listener).unwrap_or_default();
            self.deaf.insert(id, now + PENALTY);
        }
    }

    /// A wake of a socket that brought no message: its shim may not be read now, or takes none itself.
    fn spurious(&mut self, id: u64) {
        if let Some(link) = self.pods.get_mut(&id).and_then(|pod| pod.link.as_mut()) {
            link.empty_wakes += 1;
        }
        self.box_if_spurious(id);
    }

    fn box_if_spurious(&mut self, id: u64) {
        let Some(link) = self.pods.get_mut(&id).and_then(|pod| pod.link.as_mut()) else {
            return;
        };
        if link.empty_wakes < EMPTY_WAKES {
            return;
        }
        link.empty_wakes = 0;
        // Out of epoll; what it publishes is taken by the tick, as slowly as that.
        self.epoll.delete(&link.socket).unwrap_or_default();
        if let Some(bell) = &link.bell {
            self.epoll.delete(bell).unwrap_or_default();
        }
        let until = self.around.host.now() + PENALTY;
        self.boxed.insert(id, until);
        self.busy.insert(id);
    }

    fn register(&mut self, id: u64) {
        let Some(link) = self.pods.get_mut(&id).and_then(|pod| pod.link.as_mut()) else {
            return;
        };
        let event = EpollEvent::new(EpollFlags::EPOLLIN, id * KINDS + SOCKET);
        if let Err(error) = self.epoll.add(&link.socket, event) {
            tracing::error!("a shim cannot be listened to: {error}");
            self.fault(id, Fault::Closed);
        }
    }

    fn register_bell(&mut self, id: u64) {
        let Some(pod) = self.pods.get(&id) else {
            return;
        };
        let Some(bell) = pod.link.as_ref().and_then(|link| link.bell.as_ref()) else {
            return;
        };
        // Edge-triggered and never read: the pod holds the same open description. Already there is as good.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        let event = EpollEvent::new(flags, id * KINDS + BELL);
        self.epoll.add(bell, event).unwrap_or_default();
    }

    fn fault(&mut self, id: u64, fault: Fault) {
        self.busy.remove(&id);
        self.ready.remove(&id);
        self.boxed.remove(&id);
        if let Some(pod) = self.pods.get_mut(&id) {
            // Closing its descriptors takes them out of epoll, but for those that the pod holds, too.
            if let Some(bell) = pod.link.as_ref().and_then(|link| link.bell.as_ref()) {
                self.epoll.delete(bell).unwrap_or_default();
            }
            pod.fault(fault, &self.around);
        }
    }

    /// Does what other threads have asked for.
    fn obey(&mut self) {
        let commands = std::mem::take(&mut *self.shared.commands.lock());
        for command in commands {
            let (owner, key) = match &command {
                Command::Want(wanted, _) => (wanted.owner.to_string(), None),
                Command::Declared(owner) => (owner.clone(), None),
                Command::Suspect(key) | Command::Released(key) => {
                    let owner = self.shared.streams.lock().get(key).map(ToString::to_string);
                    let Some(owner) = owner else { continue };
                    (owner, Some(*key))
                }
            };
            let Some(pod) = self.pods.values_mut().find(|pod| pod.owner() == owner) else {
                continue;
            };
            let id = pod.id;
            let done = match (command, key) {
                (Command::Want(wanted, name), _) => pod.want(*wanted, name),
                (Command::Declared(_), _) => pod.start(&self.around),
                (Command::Suspect(_), Some(key)) => pod.suspect(key),
                (Command::Released(_), Some(key)) => pod.released(key, &self.around),
                _ => Ok(()),
            };
            if let Err(fault) = done {
                self.fault(id, fault);
            }
        }
        let mut asks = std::mem::take(&mut *self.shared.asks.lock());
        asks.sort_unstable();
        asks.dedup();
        for key in asks {
            let owner = self.shared.streams.lock().get(&key).cloned();
            let Some(owner) = owner else { continue };
            let Some(pod) = self.pods.values_mut().find(|pod| pod.owner() == &*owner) else {
                continue;
            };
            let id = pod.id;
            if let Err(fault) = pod.service(key, &self.around) {
                self.fault(id, fault);
            }
        }
    }

    /// One turn of each ring that has, or may have, something.
    fn drain_in_turn(&mut self) {
        if self.is_full() {
            self.make_room();
            if self.is_full() {
                self.ready.extend(self.busy.iter().copied());
                return;
            }
        }
        let mut turn = std::mem::take(&mut self.ready);
        turn.extend(self.busy.iter().copied());
        let now = self.around.host.now();
        for id in turn {
            let Some(pod) = self.pods.get_mut(&id) else {
                continue;
            };
            let took = match pod.drain(&self.around, &mut self.copy) {
                Ok(took) => took,
                Err(fault) => {
                    self.fault(id, fault);
                    continue;
                }
            };
            let Some(link) = &pod.link else {
                self.busy.remove(&id);
                continue;
            };
            let is_idle = now >= link.busy_at + IDLE;
            if took.more {
                self.ready.insert(id);
            } else if took.hot || is_idle {
                // A full ring rings at its next frame; a quiet one sleeps until there is one.
                if pod.arm() {
                    if is_idle && !self.boxed.contains_key(&id) {
                        self.busy.remove(&id);
                    }
                } else {
                    self.ready.insert(id);
                }
            } else {
                self.busy.insert(id);
            }
        }
    }

    /// Takes memory back from the windows whose outputs have not read for longest.
    fn make_room(&mut self) {
        while self.is_full() {
            let stuck = self
                .pods
                .iter()
                .filter_map(|(id, pod)| Some((pod.stuck()?, *id)))
                .min();
            let Some(((at, key), id)) = stuck else { return };
            let evicted = self.pods.get_mut(&id).map(|pod| pod.evict(key, at));
            if let Some(Err(fault)) = evicted {
                self.fault(id, fault);
            }
        }
    }

    fn pass_time(&mut self) {
        let now = self.around.host.now();
        let free: Vec<u64> = self
            .boxed
            .iter()
            .filter(|(_, until)| now >= **until)
            .map(|(id, _)| *id)
            .collect();
        for id in free {
            self.boxed.remove(&id);
            self.register(id);
            self.register_bell(id);
            self.ready.insert(id);
        }
        let heard_again: Vec<u64> = self
            .deaf
            .iter()
            .filter(|(_, until)| now >= **until)
            .map(|(id, _)| *id)
            .collect();
        for id in heard_again {
            self.deaf.remove(&id);
            self.connects.remove(&id);
            self.listen(id);
        }
        if now >= self.tended_at + TEND {
            self.tended_at = now;
            let mut faults = Vec::new();
            for (id, pod) in &mut self.pods {
                if (self.busy.contains(id) || pod.is_unsettled())
                    && let Err(fault) = pod.flush().and_then(|()| pod.tend(&self.around))
                {
                    faults.push((*id, fault));
                }
                pod.give_up(&self.around);
            }
            for (id, fault) in faults {
                self.fault(id, fault);
            }
            let status = self.pods.values().map(|pod| pod.status(now)).collect();
            *self.shared.status.lock() = status;
        }
        if self.swept_at.is_none_or(|at| now >= at + SWEEP) {
            self.swept_at = Some(now);
            self.sweep();
        }
    }

    /// Finds the pods' folders: their names say who is who.
    fn sweep(&mut self) {
        if !self.is_watched
            && let Some(folders) = &self.folders
        {
            let what = AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVE
                | AddWatchFlags::IN_ONLYDIR;
            self.is_watched = folders.add_watch(&self.dir, what).is_ok();
        }
        let mut names = BTreeSet::new();
        let listed = std::fs::read_dir(&self.dir);
        let Ok(listed) = listed else {
            // Gone or not yet there: whoever was in it has no socket now.
            self.is_watched = false;
            self.forget_missing(&names);
            return;
        };
        for entry in listed.flatten() {
            // Not through a link: a folder is who its name says only where it really is.
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if let (true, Ok(name)) = (is_dir, entry.file_name().into_string())
                && is_pod_name(&name)
            {
                names.insert(name);
            }
        }
        self.forget_missing(&names);
        for name in names {
            let dir = self.dir.join(&name);
            let there = self.pods.values().find(|pod| pod.name == name);
            let there = there.map(|pod| (pod.id, pod.removed || !pod.is_bound(&dir)));
            match there {
                Some((_, false)) => continue,
                // Its pod has taken its own socket away: it gets another, at each sweep once.
                Some((id, true)) => {
                    let Ok(listener) =
                        ringpilot_shared::wire::socket::listen_at(&dir.join("s"), 0o666)
                    else {
                        continue;
                    };
                    if let Some(pod) = self.pods.get_mut(&id) {
                        pod.rebound(listener);
                    }
                    self.listen(id);
                }
                None if self.pods.len() >= self.around.limits.rings => {
                    let problem = of_operator(
                        "discover.rings.dir",
                        self.dir.display().to_string(),
                        format!("more than {} folders are there", self.around.limits.rings),
                        "remove those of pods that are gone",
                    );
                    self.around.problems.set("rings", vec![problem]);
                    return;
                }
                None => {
                    let known = self.known.remove(&format!("{OWNER}{name}"));
                    let id = self.next_pod;
                    match Pod::new(id, &dir, name, known.unwrap_or_default()) {
                        Ok(pod) => {
                            self.next_pod += 1;
                            self.pods.insert(id, pod);
                            self.listen(id);
                        }
                        Err(error) => {
                            let problem = of_operator(
                                "discover.rings.dir",
                                dir.display().to_string(),
                                format!("no socket can be made there: {error}"),
                                "let the daemon write there",
                            );
                            self.around.problems.set("rings", vec![problem]);
                        }
                    }
                }
            }
        }
    }

    fn listen(&mut self, id: u64) {
        let listener = self.pods.get(&id).and_then(|pod| pod.listener.as_ref());
        let Some(listener) = listener else { return };
        let event = EpollEvent::new(EpollFlags::EPOLLIN, id * KINDS + LISTENER);
        if let Err(error) = self.epoll.add(listener, event) {
            tracing::error!("a ring's socket cannot be listened to: {error}");
        }
    }

    fn forget_missing(&mut self, names: &BTreeSet<String>) {
        for pod in self.pods.values_mut() {
            if !pod.removed && !names.contains(&pod.name) {
                pod.remove(&self.around);
            }
        }
        self.pods.retain(|_, pod| !pod.is_over());
        let Self {
            pods,
            connects,
            deaf,
            ..
        } = self;
        connects.retain(|id, _| pods.contains_key(id));
        deaf.retain(|id, _| pods.contains_key(id));
    }
}

/// What a pod's folder may be called: it becomes part of ids and of what people read.
fn is_pod_name(name: &str) -> bool {
    name.len() <= 200
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}
