//! The follower's word: what is seen, changed, renamed, truncated or gone becomes sources and flows.
//! Place: follow -> **apply** -> turn.
//! Invariants: a stream is one source for each declaration name; what is not read of a life that ended is read from its
//! copy, or counted as lost.

use std::sync::Arc;
use std::time::Duration;

use ringpilot_shared::follow::identity::TAIL_BYTES;
use ringpilot_shared::follow::{Copy, Event, Identity, Seen, StreamKey};
use ringpilot_shared::host::{Host, LogFile, Stat};
use xxhash_rust::xxh3::Xxh3;

use super::{Need, OutputPlan, State, Want, day_of};
use crate::checkpoint::{FlowKey, SavedFlow};
use crate::declare::StartAt;
use crate::flow::{Earlier, Flow, FlowTurn, Held, Position};
use crate::follow::{Claim, Source, Spec};
use crate::import::ANY;
use crate::ledger::Lost;

impl State {
    pub(super) fn apply(&mut self, event: Event, host: &dyn Host, now: Duration) {
        match event {
            Event::Seen(seen) => self.seen(seen, host, now),
            Event::Changed { stream, stat } if !self.once => {
                for number in self.by_stream.get(&stream).cloned().unwrap_or_default() {
                    if let Some(source) = self.sources.get_mut(&number) {
                        if stat.size != source.stat.size {
                            source.grew_at = now;
                        }
                        source.stat = stat;
                        // Also when only the time changed: what was read may have been overwritten.
                        for flow in &mut source.flows {
                            flow.stuck_at = None;
                        }
                    }
                    self.wake(number);
                }
            }
            Event::Known { stream, identity } => {
                for number in self.by_stream.get(&stream).cloned().unwrap_or_default() {
                    let needs_record = self
                        .sources
                        .get(&number)
                        .is_some_and(|source| self.needs_record(source.spec()));
                    if let Some(source) = self.sources.get_mut(&number) {
                        // How it begins is durable before it is read: else, after a crash, nobody could tell its copy
                        // from the next life in its file.
                        let is_first = source.identity.head_len == 0
                            && source.flows.iter().all(|flow| flow.read.offset == 0);
                        if is_first && needs_record {
                            source.gate = Some(self.save_number);
                            self.must_save = true;
                        }
                        source.identity = identity;
                        source.unsaved = true;
                    }
                }
            }
            Event::Renamed { stream, path } => {
                for number in self.by_stream.get(&stream).cloned().unwrap_or_default() {
                    if let Some(source) = self.sources.get_mut(&number) {
                        source.path.clone_from(&path);
                        source.unsaved = true;
                    }
                }
            }
            Event::Truncated {
                old,
                new,
                identity,
                copy,
                stat,
            } => self.truncated(old, new, identity, copy, stat, host, now),
            Event::Accounted { stream, until_ns } => {
                for number in self.by_stream.get(&stream).cloned().unwrap_or_default() {
                    if let Some(source) = self.sources.get_mut(&number) {
                        // Written with whatever else is: an older one is only more careful.
                        source.unsaved |= source.accounted_ns.is_some_and(|old| old > until_ns);
                        source.accounted_ns = Some(until_ns);
                    }
                }
            }
            Event::Succeeded { stream, by } => {
                for number in self.by_stream.get(&stream).cloned().unwrap_or_default() {
                    if let Some(source) = self.sources.get_mut(&number) {
                        source.successor.get_or_insert(by);
                        source.unsaved = true;
                    }
                }
                for number in self.by_stream.get(&by).cloned().unwrap_or_default() {
                    if let Some(source) = self.sources.get_mut(&number) {
                        source.predecessor = Some(stream);
                    }
                }
            }
            Event::Finished { stream } => {
                for number in self.by_stream.get(&stream).cloned().unwrap_or_default() {
                    if let Some(source) = self.sources.get_mut(&number) {
                        source.finished = true;
                        for flow in &mut source.flows {
                            flow.stuck_at = None;
                        }
                    }
                    self.wake(number);
                }
            }
            Event::Unfinished { stream } => {
                for number in self.by_stream.get(&stream).cloned().unwrap_or_default() {
                    if let Some(source) = self.sources.get_mut(&number) {
                        source.finished = false;
                    }
                    self.wake(number);
                }
            }
            Event::Intact { stream } => {
                for number in self.by_stream.get(&stream).cloned().unwrap_or_default() {
                    if let Some(source) = self.sources.get_mut(&number) {
                        source.suspended = false;
                        for flow in &mut source.flows {
                            flow.stuck_at = None;
                        }
                    }
                    self.wake(number);
                }
            }
            Event::Released { stream, deleted } => self.let_go(stream, deleted),
            Event::Shed { stream } => self.give_up(stream, Lost::Quota),
            Event::Overwritten { stream } => self.give_up(stream, Lost::Truncated),
            Event::Forgotten { stream } => self.forget(stream),
            Event::Changed { .. } => {}
            Event::Trouble {
                want,
                path,
                trouble,
            } => match trouble {
                None => drop(self.troubles.remove(&(want, path))),
                Some((_, text)) => {
                    let text = format!("{}: {text}", path.display());
                    self.troubles.insert((want, path), text);
                }
            },
        }
    }

    /// A want sees a stream: a new source, or one more claim on one that is there.
    pub(super) fn seen(&mut self, seen: Seen, host: &dyn Host, now: Duration) {
        let Some(want) = self.wants.get(&seen.want) else {
            // What the configuration has just let go was looked at once more.
            if self.dropped_wants.contains(&seen.want) && !self.by_stream.contains_key(&seen.stream)
            {
                self.released.push(seen.stream);
            }
            return;
        };
        let spec = Arc::clone(&want.spec);
        let (want_start, ignore_older) = (want.start_at, want.ignore_older);
        let (known_fresh, plan_start) = (self.known.fresh, self.plan.start_at);
        let claim = Claim {
            want: seen.want,
            spec: Arc::clone(&spec),
            gone: want.gone_at.is_some(),
        };
        let there = self
            .by_stream
            .get(&seen.stream)
            .into_iter()
            .flatten()
            .copied()
            .find(|number| {
                self.sources
                    .get(number)
                    .is_some_and(|source| source.spec().name == spec.name)
            });
        if let Some(source) = there.and_then(|number| self.sources.get_mut(&number)) {
            if source.claims.iter().all(|other| other.want != seen.want) {
                source.claims.push(claim);
                source
                    .claims
                    .sort_by_key(|claim| (claim.gone, claim.spec.created_ns));
                source
                    .claims
                    .dedup_by(|b, a| a.gone == b.gone && a.want == b.want);
            }
            source.path = seen.path;
            if source.ended {
                // It was let go by the configuration, and is wanted again before it was closed.
                source.claims.retain(|claim| claim.want == seen.want);
                let number = source.number;
                self.released.retain(|stream| *stream != seen.stream);
                self.reconcile(number);
            }
            return;
        }
        let saved = self
            .known
            .sources
            .remove(&(seen.stream, Arc::clone(&spec.name)));
        let wall_ns = host.wall_ns();
        let today = day_of(wall_ns);
        let is_durable = saved.is_some();
        let (source_hash, days, cuts) = match saved {
            Some(saved) => (saved.source_hash, saved.days, saved.cuts),
            None => (self.source_hash(&seen, &spec), vec![(0, today)], Vec::new()),
        };
        let start = |output: &OutputPlan| -> u64 {
            let rule = if !seen.existed {
                None
            } else if known_fresh {
                Some(want_start.unwrap_or(plan_start))
            } else if !output.known {
                Some(output.start_at.unwrap_or(StartAt::End))
            } else {
                None
            };
            let age_ns = wall_ns.saturating_sub(seen.stat.modified_ns);
            let older = |age: Duration| i128::from(age_ns) > age.as_nanos() as i128;
            if seen.existed && !seen.known && ignore_older.is_some_and(older) {
                return seen.stat.size;
            }
            match rule {
                None | Some(StartAt::Beginning) => 0,
                Some(StartAt::End) => seen.stat.size,
                Some(StartAt::Age(age)) if older(age) => seen.stat.size,
                Some(StartAt::Age(_)) => 0,
            }
        };
        // What another agent has read is not read again by a source that is made for the first time.
        let any = FlowKey {
            stream: seen.stream,
            declaration: ANY.into(),
            output: ANY.into(),
        };
        let imported = self.known.flows.get(&any).filter(|_| !is_durable).cloned();
        let mut flows = Vec::new();
        for (output, _) in &spec.outputs {
            let plan = &self.plan.outputs[*output];
            let key = FlowKey {
                stream: seen.stream,
                declaration: Arc::clone(&spec.name),
                output: Arc::clone(&plan.shipper.name),
            };
            flows.push((*output, key, start(plan)));
        }
        let flows: Vec<Flow> = flows
            .into_iter()
            .map(|(output, key, start)| match self.known.flows.remove(&key) {
                Some(saved) => self.restore(output, &key.declaration, &saved),
                None if imported.is_some() => {
                    let saved = imported.clone().unwrap_or_default();
                    self.restore(output, &key.declaration, &saved)
                }
                None => {
                    let position = Position {
                        offset: start,
                        tail: tail_of(&*seen.file, start),
                        held: Arc::default(),
                    };
                    Flow::at(output, start, position)
                }
            })
            .collect();
        let may_take_back = flows.iter().any(|flow| flow.handed > 0);
        let number = self.next_source;
        self.next_source += 1;
        let successor = self.known.successors.get(&seen.stream).copied();
        let predecessor = seen
            .after
            .or_else(|| self.predecessors.get(&seen.stream).copied());
        // Deterministic ids need no record of their own. A day that an index is named by does; and a transaction of
        // the file output means nothing without the stream that it speaks of.
        let must_be_durable = !is_durable
            && (seen.stream.generation > 0
                || seen.identity.birth_ns.is_none()
                || self.needs_record(&spec));
        let mut days = days;
        // Midnight passed while nobody ran. What lies behind the cursors may have been sent on the day before, as far as
        // the file reaches now, and would get a second copy in another index; what comes after it cannot have been.
        let turned = is_durable && days.last().is_some_and(|(_, day)| *day < today);
        if turned {
            let read = flows.iter().map(|flow| flow.read.offset).max();
            days.push((seen.stat.size.max(read.unwrap_or_default()), today));
        }
        let must_be_durable = must_be_durable || (turned && self.needs_record(&spec));
        // Nothing beside a new file is accounted for in the checkpoint but what was beside the one before it.
        let before = seen.after.filter(|_| !seen.known);
        let accounted_before = before
            .and_then(|before| self.accounted_before(before))
            .or(seen.accounted_ns);
        let source = Source {
            number,
            stream: seen.stream,
            identity: seen.identity,
            path: seen.path,
            claims: vec![claim],
            file: Some(seen.file),
            stat: seen.stat,
            grew_at: now,
            seen_at: now,
            finished: seen.finished,
            ended: false,
            rested_at: None,
            given_up: None,
            suspended: false,
            source_hash,
            days: days.into(),
            cuts: cuts.into(),
            gate: must_be_durable.then_some(self.save_number),
            flows,
            successor,
            predecessor,
            may_take_back,
            unsaved: true,
            trouble: None,
            accounted_ns: seen.accounted_ns,
            accounted_before,
        };
        self.must_save |= must_be_durable;
        self.sources.insert(number, source);
        self.by_stream.entry(seen.stream).or_default().push(number);
        if let Some(before) = seen.after {
            for other in self.by_stream.get(&before).cloned().unwrap_or_default() {
                if let Some(source) = self.sources.get_mut(&other) {
                    source.successor.get_or_insert(seen.stream);
                    source.unsaved = true;
                }
                self.wake(other);
            }
        }
        self.wake(number);
    }

    /// Until when all beside a stream's file is accounted for in the checkpoint.
    fn accounted_before(&self, stream: StreamKey) -> Option<i64> {
        let mut open = self.by_stream.get(&stream)?.iter();
        open.find_map(|number| self.sources.get(number)?.accounted_before)
    }

    /// Whether an output needs a source to be known before anything of it is sent.
    fn needs_record(&self, spec: &Spec) -> bool {
        spec.outputs.iter().any(|(output, _)| {
            let plan = &self.plan.outputs[*output];
            plan.dated || plan.shipper.output.commits()
        })
    }

    /// First 8 bytes of every record id of a source. Random where the file system keeps no birth times: an inode
    /// number alone may be another file's.
    pub(super) fn source_hash(&mut self, seen: &Seen, spec: &Spec) -> u64 {
        let Some(birth_ns) = seen.identity.birth_ns else {
            return self.random();
        };
        let mut hash = Xxh3::new();
        for part in [self.plan.node.as_bytes(), spec.owner.as_bytes()] {
            hash.update(part);
            hash.update(&[0]);
        }
        hash.update(&seen.identity.inode.to_le_bytes());
        hash.update(&birth_ns.to_le_bytes());
        hash.update(spec.name.as_bytes());
        hash.digest()
    }

    pub(super) fn restore(&self, output: usize, declaration: &Arc<str>, saved: &SavedFlow) -> Flow {
        let held: Arc<[Held]> = saved
            .held
            .iter()
            .map(|held| Held {
                from: held.from,
                to: held.to,
                earlier: held.earlier.map(|stream| Earlier {
                    stream,
                    file: self.file_of(stream),
                    source_hash: self.hash_of(stream, declaration),
                }),
            })
            .collect();
        let position = Position {
            offset: saved.offset,
            tail: saved.tail,
            held,
        };
        let mut flow = Flow::at(output, saved.start, position);
        flow.brought = saved.brought;
        flow.brought_from = saved.brought_from;
        flow.handed = saved.handed;
        flow.ledger = saved.ledger.clone();
        flow.sent_before = saved.sent;
        flow.unsaved = false;
        if saved.done {
            flow.turn = FlowTurn::Done;
        }
        flow
    }

    /// First 8 bytes of the ids of a stream's records under this name.
    pub(super) fn hash_of(&self, stream: StreamKey, declaration: &Arc<str>) -> Option<u64> {
        let open = self.by_stream.get(&stream).into_iter().flatten();
        let mut open = open.filter_map(|number| self.sources.get(number));
        let source = open.find(|source| source.spec().name == *declaration);
        let known = || {
            let key = (stream, Arc::clone(declaration));
            Some(self.known.sources.get(&key)?.source_hash)
        };
        source.map(|source| source.source_hash).or_else(known)
    }

    pub(super) fn file_of(&self, stream: StreamKey) -> Option<Arc<dyn LogFile>> {
        self.by_stream
            .get(&stream)?
            .iter()
            .find_map(|number| self.sources.get(number)?.file.clone())
    }

    /// A file began anew. What was not read of its old life is read from its copy, or lost.
    #[expect(clippy::too_many_arguments, reason = "the event's own fields")]
    pub(super) fn truncated(
        &mut self,
        old: StreamKey,
        new: StreamKey,
        identity: Identity,
        copy: Option<Copy>,
        stat: Stat,
        host: &dyn Host,
        now: Duration,
    ) {
        for number in self.by_stream.get(&old).cloned().unwrap_or_default() {
            let Some(source) = self.sources.get_mut(&number) else {
                continue;
            };
            source.suspended = false;
            source.finished = true;
            source.successor.get_or_insert(new);
            source.unsaved = true;
            let file = source.file.take();
            let path = source.path.clone();
            let accounted_ns = source.accounted_ns;
            let end = source.stat.size;
            match &copy {
                Some(copy) => {
                    source.file = Some(Arc::clone(&copy.file));
                    source.stat = copy.stat;
                    source.identity = copy.identity;
                    source.path.clone_from(&copy.path);
                    for flow in &mut source.flows {
                        flow.stuck_at = None;
                    }
                }
                None => source.given_up = Some((end, Lost::Truncated)),
            }
            let claims = source.claims.clone();
            self.lose(number);
            self.wake(number);
            let Some(file) = file else { continue };
            for (n, claim) in claims.iter().enumerate() {
                let seen = Seen {
                    want: claim.want,
                    path: path.clone(),
                    stream: new,
                    file: Arc::clone(&file),
                    stat,
                    identity,
                    after: Some(old),
                    known: false,
                    existed: false,
                    finished: false,
                    accounted_ns,
                };
                if n == 0 && !self.wants.contains_key(&claim.want) {
                    // Its container has gone; its file's new life is still its.
                    let want = Want {
                        spec: Arc::clone(&claim.spec),
                        start_at: None,
                        ignore_older: None,
                        gone_at: Some(now),
                    };
                    self.wants.insert(claim.want, want);
                    self.seen(seen, host, now);
                    self.wants.remove(&claim.want);
                } else {
                    self.seen(seen, host, now);
                }
            }
        }
    }

    /// Gives up what was not read of a stream, and its handle.
    pub(super) fn give_up(&mut self, stream: StreamKey, reason: Lost) {
        for number in self.by_stream.get(&stream).cloned().unwrap_or_default() {
            if let Some(source) = self.sources.get_mut(&number) {
                source.file = None;
                source.finished = true;
                source.given_up = Some((source.stat.size, reason));
            }
            self.lose(number);
        }
    }

    /// Counts as lost what is not read of a source that was given up. A flow that is being read now is left until then.
    pub(super) fn lose(&mut self, number: u64) {
        let Some(source) = self.sources.get_mut(&number) else {
            return;
        };
        let Some((end, reason)) = source.given_up else {
            return;
        };
        for flow in source
            .flows
            .iter_mut()
            .filter(|f| f.turn != FlowTurn::Reading)
        {
            if flow.turn != FlowTurn::Done {
                flow.lose_unread(end, reason);
                flow.turn = FlowTurn::Done;
                flow.unsaved = true;
            }
            flow.collect();
        }
        self.wake_successor(number);
        self.settle_source(number);
    }

    /// Queues every flow of a source that may have something to read.
    pub(super) fn wake(&mut self, number: u64) {
        let Some(source) = self.sources.get_mut(&number) else {
            return;
        };
        let mut queued = false;
        for (n, flow) in source.flows.iter_mut().enumerate() {
            // What was written after the end was told, or handed over, is read like anything else.
            let is_reborn = flow.turn == FlowTurn::Done
                && !flow.retired
                && source.file.is_some()
                && source.stat.size > flow.read.offset;
            if flow.turn == FlowTurn::Quiet || is_reborn {
                flow.turn = FlowTurn::Queued;
                self.queue.push_back((number, n));
                queued = true;
            }
        }
        if !queued {
            self.settle_source(number);
        }
    }

    pub(super) fn furthest(&self, stream: StreamKey) -> Option<(u64, u64)> {
        let open = self
            .by_stream
            .get(&stream)
            .into_iter()
            .flatten()
            .filter_map(|number| self.sources.get(number))
            .flat_map(|source| &source.flows)
            .map(|flow| (flow.read.offset, flow.read.tail));
        let known = self.known.furthest.get(&stream).copied();
        // Where a tail is not known nothing can be proven: another flow's, if there is one.
        open.chain(known)
            .max_by_key(|(offset, tail)| (*offset, *tail != 0))
    }

    pub(super) fn needs(&self, stream: StreamKey) -> (Vec<Need>, Option<u64>) {
        let of = |key: StreamKey| {
            let numbers = self.by_stream.get(&key).into_iter().flatten();
            numbers.filter_map(|number| self.sources.get(number))
        };
        let before = |held: &Held| match &held.earlier {
            None => Some(held.from),
            Some(_) => None,
        };
        let mut needs = Vec::new();
        let mut settled: Option<u64> = None;
        for source in of(stream) {
            for flow in &source.flows {
                let first = flow.cursor.held.iter().filter_map(before).min();
                let done = first.unwrap_or(u64::MAX).min(flow.cursor.offset);
                settled = Some(settled.map_or(done, |least| least.min(done)));
                if flow.turn == FlowTurn::Done {
                    continue;
                }
                let tail = flow.read.offset.saturating_sub(TAIL_BYTES as u64);
                let held = flow.read.held.iter().filter_map(before).min();
                needs.push(Need {
                    from: held.unwrap_or(tail).min(tail),
                    read: flow.read.offset,
                });
            }
            for next in source.successor.into_iter().flat_map(of) {
                let held = next.flows.iter().flat_map(|flow| flow.read.held.iter());
                needs.extend(held.filter_map(|held| {
                    let earlier = held.earlier.as_ref()?;
                    (earlier.stream == stream).then_some(Need {
                        from: held.from,
                        read: held.to,
                    })
                }));
            }
        }
        (needs, settled)
    }

    pub(super) fn read_by_all(&self, stream: StreamKey) -> Option<u64> {
        self.by_stream
            .get(&stream)?
            .iter()
            .filter_map(|number| self.sources.get(number))
            .flat_map(|source| &source.flows)
            .filter(|flow| !flow.retired)
            .map(|flow| flow.read.offset)
            .min()
    }
}

fn tail_of(file: &dyn LogFile, offset: u64) -> u64 {
    ringpilot_shared::follow::identity::tail_at(file, offset)
        .ok()
        .flatten()
        .unwrap_or(0)
}
