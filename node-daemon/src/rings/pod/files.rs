//! The streams that a pod's shim follows: the events of a follower that runs elsewhere.
//! Place: within one pod; `talk` brings the shim's events, the pipeline gets them as a follower's own.
//! Invariants: as the pod's; what a pod can no longer give is counted lost, once.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ringpilot_shared::follow::{Copy, Event, Identity, KnownStream, Seen, StreamKey, WantId};
use ringpilot_shared::host::Stat;
use ringpilot_shared::wire::FILES_LIMIT;
use ringpilot_shared::wire::handshake::ToShim;

use super::{Around, Fault, MOST_KNOWN, Pod, Stream, broke};
use crate::ledger::Lost;
use crate::problem::Problem;
use crate::rings::window::RingFile;

impl Pod {
    /// Whether a stream is this pod's own.
    pub(super) fn is_mine(&self, key: StreamKey) -> bool {
        self.streams.contains_key(&key) || self.known.iter().any(|one| one.key == key)
    }

    pub(super) fn seen(&mut self, seen: Seen, around: &Around) -> Result<(), Fault> {
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
                durable_at: std::time::Duration::ZERO,
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

    pub(super) fn truncated(
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
            durable_at: std::time::Duration::ZERO,
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
    pub(super) fn take_lanes(
        &mut self,
        file: &Arc<RingFile>,
        around: &Around,
    ) -> Result<(), Fault> {
        let orders = file.service(&[], false);
        self.carry_out(None, file, orders, around)
    }

    pub(super) fn trouble(&mut self, want: u64, error: i64, text: &[u8], around: &Around) {
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

    pub(super) fn tell_problems(&self, around: &Around) {
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
    pub(super) fn looked(&mut self, around: &Around) {
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
    pub(super) fn end(&mut self, key: StreamKey, around: &Around) {
        if let Some(one) = self.streams.get_mut(&key)
            && !one.finished
        {
            one.finished = true;
            around.pipeline.apply(vec![Event::Finished { stream: key }]);
        }
    }

    /// Gives up what can be had no more. To be called now and then while no shim, or not the stream's, is there.
    pub(in crate::rings) fn give_up(&mut self, around: &Around) {
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
    pub(in crate::rings) fn is_over(&self) -> bool {
        self.removed && self.link.is_none() && self.streams.is_empty()
    }

    /// A stream is needed by nobody any more.
    pub(in crate::rings) fn released(
        &mut self,
        key: StreamKey,
        around: &Around,
    ) -> Result<(), Fault> {
        let told = self.streams.get(&key).is_some_and(|one| one.is_told);
        if self.link.as_ref().is_some_and(|link| link.started) && told {
            return self.say(&ToShim::Release { stream: key });
        }
        // Nobody holds the file: one that is still there is recognised when its shim comes again.
        self.let_go(key, self.removed, around);
        Ok(())
    }

    pub(in crate::rings) fn suspect(&mut self, key: StreamKey) -> Result<(), Fault> {
        self.say(&ToShim::Suspect { stream: key })
    }

    pub(super) fn let_go(&mut self, key: StreamKey, deleted: bool, around: &Around) {
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
                accounted_ns: None,
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
}
