//! What a pod's shim and the daemon say to each other: its messages act on the pod, and are answered.
//! Place: within one pod; `drain` says when its socket has something.
//! Invariants: as the pod's; what is not expected at this point of the talk is a breach.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use ringpilot_shared::follow::{
    Event, KnownStream, Positions as _, Seen, StreamKey, WantId, Wanted,
};
use ringpilot_shared::ring::consume::Consumer;
use ringpilot_shared::ring::{Offer, layout, memfd, posix_shm};
use ringpilot_shared::wire::handshake::{ToDaemon, ToShim, fitting};
use ringpilot_shared::wire::{MESSAGE_LIMIT, SCHEMA, STRING_LIMIT, VERSION, socket};

use super::{
    Around, Fault, MESSAGES_A_SECOND, MESSAGES_A_TURN, MOST_DECLARED, MOST_WAITING, Pod, Stream,
    broke, pod_name,
};
use crate::discover::{Heard, Runtime, State, Stdout, Workload};
use crate::rings::Memory;
use crate::rings::window::RingFile;

impl Pod {
    /// Takes messages, and first what was published before them. Whether there was anything.
    pub(in crate::rings) fn hear(
        &mut self,
        around: &Around,
        copy: &mut [u8],
    ) -> Result<bool, Fault> {
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

    pub(super) fn act(&mut self, message: ToDaemon, around: &Around) -> Result<(), Fault> {
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
                        accounted_ns: None,
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

    /// Tells the pipeline of one of its streams; of any other the shim's word is nothing.
    pub(super) fn of(
        &mut self,
        stream: StreamKey,
        around: &Around,
        event: impl FnOnce(&mut Stream) -> Option<Event>,
    ) -> Result<(), Fault> {
        let event = self.streams.get_mut(&stream).and_then(event);
        around.pipeline.apply(event.into_iter().collect());
        Ok(())
    }

    pub(super) fn welcome(&mut self, wanted_log2: u8, around: &Around) -> Result<(), Fault> {
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

    pub(super) fn declare(&mut self, name: &[u8], value: &[u8], more: bool) -> Result<(), Fault> {
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
    pub(super) fn ready(&mut self, around: &Around) -> Result<(), Fault> {
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
        let pod = pod_name(&self.name);
        // As every other runtime names it: by its container, where its folder says which.
        let container = pod.as_ref().map(|pod| pod.container.clone());
        let name = container.filter(|name| !name.is_empty());
        let workload = Workload {
            runtime: Runtime::Shim,
            id: self.owner.to_string(),
            name: name.unwrap_or_else(|| self.name.clone()),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            environment,
            mounts: Vec::new(),
            stdout: Stdout::None("a shim reads files only".to_owned()),
            roots: Vec::new(),
            pid: 0,
            created_ns: 0,
            state: State::Running,
            pod,
        };
        if self.workload.as_ref() == Some(&workload) {
            return self.start(around);
        }
        self.workload = Some(workload.clone());
        // The receiver is gone only when the daemon ends.
        drop(around.heard.send(Heard::Here(Box::new(workload))));
        Ok(())
    }

    pub(in crate::rings) fn want(&mut self, wanted: Wanted, name: Arc<str>) -> Result<(), Fault> {
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

    pub(super) fn tell_want(&mut self, id: WantId) -> Result<(), Fault> {
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
    pub(in crate::rings) fn start(&mut self, around: &Around) -> Result<(), Fault> {
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
            accounted_ns: None,
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

    pub(super) fn say(&mut self, message: &ToShim) -> Result<(), Fault> {
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
    pub(in crate::rings) fn flush(&mut self) -> Result<(), Fault> {
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
    pub(in crate::rings) fn is_blocked(&self) -> bool {
        self.link.as_ref().is_some_and(|link| !link.out.is_empty())
    }
}
