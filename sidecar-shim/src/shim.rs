//! The loop: follow, tell, read into the ring.
//! Place: `command` and the tests run it; `link` is the way to the daemon.
//! Invariants: handles outlive the daemon's restart; a link that breaks costs only what was in its ring, which is read
//! again; every stream is told again to a new daemon before anything is read for it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ringpilot_shared::follow::glob::Pattern;
use ringpilot_shared::follow::{
    Event, Follower, Identity, KnownStream, Positions, StreamKey, View, WantId, Wanted,
};
use ringpilot_shared::host::{Host, LogFile, RealHost, Stat, Wakes, Woken};
use ringpilot_shared::wire::STRING_LIMIT;
use ringpilot_shared::wire::handshake::{CopySeen, ToDaemon, ToShim, can_tell, fitting};

use crate::link::{Link, Sent};
use crate::settings::Settings;
use crate::{health, say};

/// Writes to followed files are gathered for so long before they are looked at, and then again until there are none.
const GATHER: Duration = Duration::from_millis(125);
/// Sizes and times of a file whose bytes are on their way are told this often: its frames tell its size, too.
const TELL: Duration = Duration::from_secs(1);
/// Frames between two looks at anything else.
const FRAMES_A_TURN: usize = 16;
/// Between two tries to connect, at least and at most.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A daemon that starts with its pods is not missed before.
const PATIENCE: Duration = Duration::from_secs(3);
/// A file that is drained at the shim's end counts as finished when it was not written for so long.
const RESTED: Duration = Duration::from_secs(1);
/// While it ends everything is looked at this often.
const ENDING_LOOK: Duration = Duration::from_millis(100);

/// How a shim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Bytes of its files that were not handed over.
    pub unread: u64,
    /// Bytes that were handed over or not, and that not every output had acknowledged.
    pub unacknowledged: u64,
    /// Whether every output has everything.
    pub is_settled: bool,
}

/// A file as the daemon was told of it.
#[derive(Debug)]
struct Followed {
    file: Arc<dyn LogFile>,
    stat: Stat,
    identity: Identity,
    seen: Vec<(WantId, std::path::PathBuf)>,
    after: Option<StreamKey>,
    successor: Option<StreamKey>,
    existed: bool,
    known: bool,
    finished: bool,
    /// Its size or time has changed since the daemon was told of them.
    untold: bool,
}

/// Where each stream stands.
#[derive(Debug, Default)]
struct Places {
    /// Furthest sent, and the hash before it.
    furthest: HashMap<StreamKey, (u64, u64)>,
    durable: HashMap<StreamKey, u64>,
}

impl Positions for Places {
    fn furthest(&self, stream: StreamKey) -> Option<(u64, u64)> {
        self.furthest.get(&stream).copied()
    }
    fn read_by_all(&self, stream: StreamKey) -> Option<u64> {
        self.durable.get(&stream).copied()
    }
}

struct Shim<'a> {
    settings: &'a Settings,
    host: Arc<RealHost>,
    follower: Option<Follower>,
    wakes: Option<Arc<dyn Wakes>>,
    files: BTreeMap<StreamKey, Followed>,
    places: Places,
    /// By declaration: our number of the want, and the daemon's.
    wants: BTreeMap<Vec<u8>, (WantId, u64)>,
    known: Vec<KnownStream>,
    link: Option<Link>,
    connect_at: Duration,
    pause: Duration,
    epoch: u64,
    heard: Woken,
    look_at: Option<Duration>,
    /// The next look is for what may have been written since the last: it is none when nothing was.
    lingers: Option<Duration>,
    /// What is untold is told then.
    tell_at: Option<Duration>,
    suspects: Vec<StreamKey>,
    released: Vec<StreamKey>,
    ending: Option<Duration>,
    told_down: bool,
}

/// Runs until `ending` becomes readable and everything is handed over, or `drain_timeout` is over.
///
/// # Errors
/// When the machine refuses what every program gets; a daemon that is not there is waited for.
pub fn run(settings: &Settings, ending: BorrowedFd<'_>) -> io::Result<Ended> {
    let host = Arc::new(RealHost::new());
    let mut shim = Shim {
        settings,
        follower: None,
        wakes: None,
        files: BTreeMap::new(),
        places: Places::default(),
        wants: BTreeMap::new(),
        known: Vec::new(),
        link: None,
        connect_at: Duration::ZERO,
        pause: RECONNECT.0,
        epoch: random(),
        heard: Woken::default(),
        look_at: None,
        lingers: None,
        tell_at: None,
        suspects: Vec::new(),
        released: Vec::new(),
        ending: None,
        told_down: false,
        host,
    };
    let mut alive = None;
    loop {
        let now = shim.host.now();
        if shim.link.is_none() && now >= shim.connect_at {
            shim.connect(now);
        }
        if shim.link.as_ref().is_some_and(|link| link.ring.is_some()) {
            alive = alive.or_else(health::stand);
        } else if shim.ending.is_none() {
            alive = None;
        }
        if let Err(error) = shim.turn() {
            shim.unlink(&error);
        }
        if let Some(until) = shim.ending {
            let ended = shim.ended();
            if ended.is_settled || shim.host.now() >= until {
                if let Some(link) = &mut shim.link {
                    let bye = ToDaemon::Bye {
                        unread: ended.unread,
                    };
                    // A daemon that is gone needs no farewell.
                    drop(link.say(&bye));
                }
                return Ok(ended);
            }
        }
        if shim.wait(ending)? && shim.ending.is_none() {
            shim.ending = Some(shim.host.now() + settings.drain_timeout);
            if let Some(link) = shim.link.as_mut().filter(|link| link.started)
                && let Err(error) = link.say(&ToDaemon::Ending {})
            {
                shim.unlink(&error);
            }
        }
    }
}

impl Shim<'_> {
    fn connect(&mut self, now: Duration) {
        let tried = Link::connect(
            &self.settings.socket,
            self.epoch,
            self.settings.capacity_log2,
        );
        match tried {
            Ok(link) => self.link = Some(link),
            Err(error) => {
                if !self.told_down && now >= PATIENCE {
                    self.told_down = true;
                    say(&format!(
                        "the node's socket {} cannot be reached: {error}\n\
                         it is tried again by itself; is it mounted, and does the daemon run?",
                        self.settings.socket.display()
                    ));
                }
                self.later(now);
            }
        }
    }

    /// Another try after a while: twice as long each time, at a random point of it.
    fn later(&mut self, now: Duration) {
        let pause_ms = u64::try_from(self.pause.as_millis()).unwrap_or(u64::MAX);
        self.connect_at = now + Duration::from_millis(pause_ms / 2 + random() % pause_ms.max(1));
        self.pause = (self.pause * 2).min(RECONNECT.1);
    }

    fn unlink(&mut self, error: &io::Error) {
        let now = self.host.now();
        if self.link.take().is_some_and(|link| link.started) {
            say(&format!(
                "the link to the node broke: {error}\nit is made again by itself; nothing is lost"
            ));
            self.pause = RECONNECT.0;
        }
        self.known.clear();
        self.later(now);
    }

    /// Hears the daemon, looks at the files if it is time, and sends.
    fn turn(&mut self) -> io::Result<()> {
        while let Some(link) = &mut self.link {
            let Some(message) = link.hear()? else { break };
            self.act(message)?;
        }
        if let Some(link) = &mut self.link {
            link.flush()?;
        }
        self.look()?;
        self.send()
    }

    fn act(&mut self, message: ToShim) -> io::Result<()> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        match message {
            ToShim::Welcome { .. } => {
                for (name, value) in &self.settings.declared {
                    let mut parts = value.chunks(STRING_LIMIT / 2).peekable();
                    loop {
                        let part = parts.next().unwrap_or_default();
                        let more = parts.peek().is_some();
                        link.say(&ToDaemon::Declare {
                            name: name.clone(),
                            value: part.to_vec(),
                            more,
                        })?;
                        if !more {
                            break;
                        }
                    }
                }
                link.say(&ToDaemon::Ready {})?;
            }
            ToShim::Known {
                stream,
                identity,
                modified_ns,
                successor,
                seen_ns,
                offset,
                tail,
                path,
            } => {
                let place = self.places.furthest.entry(stream).or_default();
                *place = (*place).max((offset, tail));
                self.known.push(KnownStream {
                    key: stream,
                    identity,
                    path,
                    modified_ns,
                    accounted_ns: None,
                    successor,
                    seen_ns,
                });
            }
            ToShim::Follow {
                want,
                name,
                pinned_bytes,
                pattern,
            } => self.follow(want, name, pinned_bytes, &pattern),
            ToShim::Start {} => self.start()?,
            ToShim::Resume {
                lane,
                file,
                stream,
                offset,
                limit,
            } => {
                if let Some(followed) = self.files.get(&stream) {
                    let at = (offset, limit.max(offset));
                    if link.resume(lane, file, stream, at, &followed.file).is_err() {
                        self.suspects.push(stream);
                    }
                }
            }
            ToShim::Grant { lane, limit } => {
                if let Some(lane) = link.lanes.get_mut(&lane) {
                    lane.limit = lane.limit.max(limit);
                }
            }
            ToShim::Stop { lane } => drop(link.lanes.remove(&lane)),
            ToShim::Durable { stream, offset } => {
                self.places.durable.insert(stream, offset);
            }
            ToShim::Release { stream } => self.released.push(stream),
            ToShim::Suspect { stream } => self.suspects.push(stream),
            ToShim::Space {} => link.space(),
            ToShim::Drain {} => {
                let until = self.host.now() + self.settings.drain_timeout;
                self.ending.get_or_insert(until);
            }
            ToShim::Refused { cause, after_ms } => {
                let now = self.host.now();
                let cause = String::from_utf8_lossy(&cause).into_owned();
                self.link = None;
                self.known.clear();
                if !self.told_down {
                    self.told_down = true;
                    say(&format!(
                        "the node refuses this shim: {cause}\nit is tried again by itself"
                    ));
                }
                self.later(now);
                let least = now + Duration::from_millis(u64::from(after_ms));
                self.connect_at = self.connect_at.max(least);
            }
        }
        Ok(())
    }

    fn follow(&mut self, want: u64, name: Vec<u8>, pinned_bytes: u64, pattern: &[u8]) {
        let next = WantId(self.wants.len() as u64 + 1);
        let (local, daemons) = self.wants.entry(name).or_insert((next, want));
        *daemons = want;
        let (local, host) = (*local, Arc::clone(&self.host));
        let pattern = std::str::from_utf8(pattern).map(Pattern::new);
        let Ok(Ok(pattern)) = pattern else { return };
        let known = std::mem::take(&mut self.known);
        let follower = self
            .follower
            .get_or_insert_with(|| Follower::new(host, known, random()));
        self.wakes = follower.wakes();
        follower.want(Wanted {
            want: local,
            owner: "pod".into(),
            view: View {
                host_root: "/".into(),
                is_host: true,
                ..View::default()
            },
            pattern,
            from_start: true,
            rotates_at_once: false,
            pinned_bytes,
        });
        self.look_at = Some(Duration::ZERO);
    }

    /// The daemon is ready: it is told again of every stream, in the order in which they began.
    fn start(&mut self) -> io::Result<()> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        (link.started, self.told_down) = (true, false);
        self.pause = RECONNECT.0;
        let mut order: Vec<StreamKey> = self.files.keys().copied().collect();
        order.sort_by_key(|key| (key.generation, self.files[key].identity.birth_ns, key.id));
        for key in &order {
            for message in seen(*key, &self.files[key], &self.wants) {
                link.say(&message)?;
            }
        }
        for key in &order {
            if let Some(by) = self.files[key].successor {
                link.say(&ToDaemon::Succeeded { stream: *key, by })?;
            }
        }
        if self.ending.is_some() {
            link.say(&ToDaemon::Ending {})?;
        }
        self.look_at = Some(Duration::ZERO);
        Ok(())
    }

    fn look(&mut self) -> io::Result<()> {
        let now = self.host.now();
        if self.ending.is_some() || self.tell_at.is_some_and(|at| now >= at) {
            self.tell_untold()?;
        }
        let Some(follower) = &mut self.follower else {
            if let Some(link) = self
                .link
                .as_mut()
                .filter(|link| link.started && !link.looked)
            {
                link.looked = true;
                link.say(&ToDaemon::Looked {})?;
            }
            return Ok(());
        };
        let is_due = self.look_at.is_some_and(|at| now >= at)
            || !self.suspects.is_empty()
            || !self.released.is_empty()
            || now >= follower.due_at(now);
        if !is_due {
            return Ok(());
        }
        self.look_at = None;
        let mut woken = std::mem::take(&mut self.heard);
        if woken != Woken::default() && self.ending.is_none() {
            // Who writes goes on writing: listening for its first write would wake once more for each look.
            self.look_at = Some(now + GATHER);
            self.lingers = self.look_at;
        }
        woken.overflow |= self.ending.is_some();
        let suspects = std::mem::take(&mut self.suspects);
        let released = std::mem::take(&mut self.released);
        let events = follower.look(woken, &suspects, &released, &self.places);
        for event in events {
            self.tell(event)?;
        }
        if self.ending.is_some() {
            self.finish_rested()?;
            self.look_at = Some(now + ENDING_LOOK);
        }
        if let Some(link) = self
            .link
            .as_mut()
            .filter(|link| link.started && !link.looked)
        {
            link.looked = true;
            link.say(&ToDaemon::Looked {})?;
        }
        Ok(())
    }

    /// At the shim's end nothing more is expected of a file that rests: its last line may be closed.
    fn finish_rested(&mut self) -> io::Result<()> {
        let wall_ns = self.host.wall_ns();
        let Some(link) = self.link.as_mut().filter(|link| link.started) else {
            return Ok(());
        };
        for (key, followed) in &mut self.files {
            let age_ns = wall_ns.saturating_sub(followed.stat.modified_ns);
            let rests = i128::from(age_ns) >= RESTED.as_nanos() as i128;
            if !followed.finished && rests {
                followed.finished = true;
                link.say(&ToDaemon::Finished { stream: *key })?;
            }
        }
        Ok(())
    }

    /// Tells sizes and times that frames did not tell, or not all of.
    fn tell_untold(&mut self) -> io::Result<()> {
        if self.tell_at.take().is_none() {
            return Ok(());
        }
        let Some(link) = self.link.as_mut().filter(|link| link.started) else {
            return Ok(());
        };
        for (stream, followed) in &mut self.files {
            if std::mem::take(&mut followed.untold) {
                link.say(&ToDaemon::Changed {
                    stream: *stream,
                    stat: followed.stat,
                })?;
            }
        }
        Ok(())
    }

    /// Takes note of what the follower found, and tells the daemon.
    fn tell(&mut self, event: Event) -> io::Result<()> {
        if !matches!(event, Event::Changed { .. }) {
            // What a file came to is known before what became of it.
            self.tell_untold()?;
        }
        let messages = self.note(event);
        if let Some(link) = self.link.as_mut().filter(|link| link.started) {
            for message in &messages {
                link.say(message)?;
            }
        }
        Ok(())
    }

    fn note(&mut self, event: Event) -> Vec<ToDaemon> {
        let daemons = |wants: &BTreeMap<Vec<u8>, (WantId, u64)>, local: WantId| {
            let mut wants = wants.values();
            wants
                .find(|(want, _)| *want == local)
                .map(|(_, want)| *want)
        };
        let message = match event {
            Event::Seen(one) => {
                let key = one.stream;
                if !can_tell(&one.path) {
                    let want = daemons(&self.wants, one.want).unwrap_or_default();
                    return vec![ToDaemon::Trouble {
                        want,
                        error: -1,
                        text: fitting("a path is longer than 720 bytes and not followed"),
                    }];
                }
                let followed = self.files.entry(key).or_insert_with(|| Followed {
                    file: one.file,
                    stat: one.stat,
                    identity: one.identity,
                    seen: Vec::new(),
                    after: one.after,
                    successor: None,
                    existed: one.existed,
                    known: one.known,
                    finished: one.finished,
                    untold: false,
                });
                followed.seen.push((one.want, one.path));
                return seen(key, followed, &self.wants);
            }
            Event::Changed { stream, stat } => {
                let mut sends = false;
                if let Some(link) = &mut self.link {
                    link.grew(stream);
                    sends = link.sends(stream) && self.ending.is_none();
                }
                if let Some(followed) = self.files.get_mut(&stream) {
                    followed.stat = stat;
                    followed.untold = sends;
                }
                if sends {
                    let at = self.host.now() + TELL;
                    self.tell_at.get_or_insert(at);
                    return Vec::new();
                }
                ToDaemon::Changed { stream, stat }
            }
            Event::Known { stream, identity } => {
                if let Some(followed) = self.files.get_mut(&stream) {
                    followed.identity = identity;
                }
                ToDaemon::Identified { stream, identity }
            }
            Event::Renamed { stream, path } => {
                if !can_tell(&path) {
                    return Vec::new();
                }
                if let Some(followed) = self.files.get_mut(&stream)
                    && let Some((_, known)) = followed.seen.last_mut()
                {
                    known.clone_from(&path);
                }
                ToDaemon::Renamed { stream, path }
            }
            // Each of its lives tells the next by the times of the files alone.
            Event::Accounted { .. } => return Vec::new(),
            Event::Succeeded { stream, by } => {
                if let Some(followed) = self.files.get_mut(&stream) {
                    followed.successor = Some(by);
                }
                ToDaemon::Succeeded { stream, by }
            }
            Event::Truncated {
                old,
                new,
                identity,
                copy,
                stat,
            } => {
                let copy = copy.filter(|copy| can_tell(&copy.path));
                if let Some(link) = &mut self.link {
                    link.lanes.retain(|_, lane| lane.stream != old);
                }
                let Some(mut before) = self.files.remove(&old) else {
                    return Vec::new();
                };
                let begun = Followed {
                    file: Arc::clone(&before.file),
                    stat,
                    identity,
                    seen: before.seen.clone(),
                    after: Some(old),
                    successor: None,
                    existed: false,
                    known: false,
                    finished: false,
                    untold: false,
                };
                self.files.insert(new, begun);
                let told = copy.as_ref().map(|copy| CopySeen {
                    path: copy.path.clone(),
                    identity: copy.identity,
                    size: copy.stat.size,
                    modified_ns: copy.stat.modified_ns,
                });
                if let Some(copy) = copy {
                    (before.file, before.stat) = (copy.file, copy.stat);
                    (before.identity, before.finished) = (copy.identity, true);
                    before.successor = Some(new);
                    if let Some((_, path)) = before.seen.last_mut() {
                        *path = copy.path;
                    }
                    self.files.insert(old, before);
                }
                ToDaemon::Truncated {
                    old,
                    new,
                    identity,
                    copy: told,
                    size: stat.size,
                    modified_ns: stat.modified_ns,
                }
            }
            Event::Intact { stream } => {
                if let Some(link) = &mut self.link {
                    link.grew(stream);
                }
                ToDaemon::Intact { stream }
            }
            Event::Finished { stream } => {
                self.set_finished(stream, true);
                ToDaemon::Finished { stream }
            }
            Event::Unfinished { stream } => {
                self.set_finished(stream, false);
                ToDaemon::Unfinished { stream }
            }
            Event::Shed { stream } => {
                self.files.remove(&stream);
                ToDaemon::Shed { stream }
            }
            Event::Overwritten { stream } => {
                self.files.remove(&stream);
                ToDaemon::Overwritten { stream }
            }
            Event::Released { stream, deleted } => {
                self.files.remove(&stream);
                if deleted {
                    self.places.furthest.remove(&stream);
                }
                self.places.durable.remove(&stream);
                ToDaemon::Released { stream, deleted }
            }
            Event::Forgotten { stream } => {
                self.places.furthest.remove(&stream);
                ToDaemon::Forgotten { stream }
            }
            Event::Trouble {
                want,
                path,
                trouble,
            } => {
                let Some(want) = daemons(&self.wants, want) else {
                    return Vec::new();
                };
                match trouble {
                    None => ToDaemon::Trouble {
                        want,
                        error: 0,
                        text: Vec::new(),
                    },
                    Some((kind, text)) => ToDaemon::Trouble {
                        want,
                        error: match kind {
                            io::ErrorKind::PermissionDenied => 13,
                            io::ErrorKind::NotFound => 2,
                            _ => -1,
                        },
                        text: fitting(&format!("{}: {text}", path.display())),
                    },
                }
            }
        };
        vec![message]
    }

    fn set_finished(&mut self, stream: StreamKey, finished: bool) {
        if let Some(followed) = self.files.get_mut(&stream) {
            followed.finished = finished;
        }
    }

    fn send(&mut self) -> io::Result<()> {
        for _ in 0..FRAMES_A_TURN {
            let Some(link) = self.link.as_mut().filter(|link| link.started) else {
                return Ok(());
            };
            let files = &self.files;
            let file_of = |key: StreamKey| {
                let followed = files.get(&key)?;
                Some((Arc::clone(&followed.file), followed.stat.size))
            };
            match link.send(file_of, self.host.wall_ns())? {
                Sent::Frame { stream, end, tail } => {
                    let place = self.places.furthest.entry(stream).or_default();
                    if end >= place.0 {
                        *place = (end, tail);
                    }
                }
                Sent::Suspect(stream) => self.suspects.push(stream),
                Sent::Failed(stream, error) => {
                    let want = self.files.get(&stream).and_then(|one| one.seen.first());
                    let mut wants = self.wants.values();
                    let want = want.and_then(|(local, _)| wants.find(|(want, _)| want == local));
                    if let Some((_, want)) = want {
                        link.say(&ToDaemon::Trouble {
                            want: *want,
                            error: i64::from(error.raw_os_error().unwrap_or(-1)),
                            text: fitting(&error.to_string()),
                        })?;
                    }
                }
                Sent::Nothing if link.can_send() => {}
                Sent::Nothing => return Ok(()),
            }
        }
        Ok(())
    }

    /// How it would end now.
    fn ended(&mut self) -> Ended {
        let mut ended = Ended {
            unread: 0,
            unacknowledged: 0,
            is_settled: false,
        };
        for (key, followed) in &self.files {
            let (read, _) = self.places.furthest.get(key).copied().unwrap_or_default();
            let durable = self.places.durable.get(key).copied().unwrap_or_default();
            ended.unread += followed.stat.size.saturating_sub(read.max(durable));
            ended.unacknowledged += followed.stat.size.saturating_sub(durable);
        }
        let is_told = self
            .link
            .as_mut()
            .is_some_and(|link| link.looked && !link.is_blocked() && link.is_drained());
        let all_finished = self.files.values().all(|one| one.finished);
        ended.is_settled = is_told && all_finished && ended.unacknowledged == 0;
        ended
    }

    /// Waits for any of: the daemon, the files, time, the end. Whether the end was asked for.
    fn wait(&mut self, ending: BorrowedFd<'_>) -> io::Result<bool> {
        let now = self.host.now();
        let mut until = now + Duration::from_secs(60);
        if self.link.is_none() {
            until = until.min(self.connect_at);
        }
        if let Some(follower) = &self.follower {
            until = until.min(follower.due_at(now));
        }
        // What is untold goes with the next look, if there is to be one.
        if let Some(at) = self.look_at.or(self.tell_at) {
            until = until.min(at);
        }
        if let Some(at) = self.ending {
            until = until.min(at);
        }
        let sends = self
            .link
            .as_ref()
            .is_some_and(|link| link.started && link.can_send());
        if sends || !self.suspects.is_empty() || !self.released.is_empty() {
            until = now;
        }
        let mut fds = Vec::with_capacity(3);
        // Once asked for, the end is no news.
        let asked = match self.ending {
            None => PollFlags::POLLIN,
            Some(_) => PollFlags::empty(),
        };
        fds.push(PollFd::new(ending, asked));
        // While writes are gathered the files are not listened to: each write would wake.
        let wakes = self.wakes.clone().filter(|_| self.look_at.is_none());
        let files = wakes.as_ref().and_then(|wakes| wakes.descriptor());
        let files = files.map(|files| {
            fds.push(PollFd::new(files, PollFlags::POLLIN));
            fds.len() - 1
        });
        if let Some(link) = &self.link {
            let mut flags = PollFlags::POLLIN;
            flags.set(PollFlags::POLLOUT, link.is_blocked());
            fds.push(PollFd::new(link.descriptor(), flags));
        }
        // Rounded up: waking a little too early would only wait again.
        let left_ms = until.saturating_sub(now).as_micros().div_ceil(1_000);
        let timeout = PollTimeout::from(u16::try_from(left_ms).unwrap_or(u16::MAX));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let ends = is_ready(&fds[0]);
        let has_files = files.is_some_and(|at| is_ready(&fds[at]));
        drop(fds);
        if let (true, Some(wakes)) = (has_files, &wakes) {
            let woken = wakes.wait(Duration::ZERO);
            if woken != Woken::default() {
                let gather = if woken.is_urgent() {
                    Duration::ZERO
                } else {
                    GATHER
                };
                self.look_at = Some(self.host.now() + gather);
            }
            self.heard.extend(woken);
        } else if let (true, Some(wakes)) = (
            self.look_at.is_some_and(|at| self.host.now() >= at),
            &self.wakes,
        ) {
            // What was written while it was gathered is looked at with the rest.
            let woken = wakes.wait(Duration::ZERO);
            if woken == Woken::default() && self.look_at == self.lingers {
                self.look_at = None;
            }
            self.heard.extend(woken);
        }
        Ok(ends)
    }
}

/// What tells a stream to a daemon that may not know of it.
fn seen(
    key: StreamKey,
    followed: &Followed,
    wants: &BTreeMap<Vec<u8>, (WantId, u64)>,
) -> Vec<ToDaemon> {
    followed
        .seen
        .iter()
        .filter_map(|(local, path)| {
            let (_, want) = wants.values().find(|(want, _)| want == local)?;
            Some(ToDaemon::Seen {
                want: *want,
                stream: key,
                stat: followed.stat,
                identity: followed.identity,
                after: followed.after,
                known: followed.known,
                existed: followed.existed,
                finished: followed.finished,
                path: path.clone(),
            })
        })
        .collect()
}

/// A number that no other process is likely to have.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}
