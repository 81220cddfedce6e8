//! Find out what opened files are: a stream that is known, the copy of one, a log that begins, or nothing to be read.
//! Place: within **follow**; a look gathers files by listing, and all of them are judged together, because one may tell
//! what another is.
//! Invariants: of several copies the oldest belongs to the stream whose rest it holds, the others are lives of their own
//! that nobody saw; a file is one stream only, however many names and wants it has.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::follower::{File, Follower, Passed, Round, Want, is_intact, tell};
use super::identity::{Identity, tail_at};
use super::known::{KnownStream, last_life};
use super::list::matches;
use super::rotation::{Candidate, Read, holds_what_was_read, is_within};
use super::{Copy, Event, Seen, StreamKey, WantId};

/// So much of a log must have been read before another file than a rotated form of its own name is taken for its copy:
/// many logs of one folder may begin with the same header.
const PROVEN_BYTES: u64 = 4096;
/// The times of files may lag the clock by so much (one tick of the slowest kernel).
const CLOCK_TICK_NS: i64 = 10_000_000;
/// How long a copy of a stream that is not truncated waits unread.
const COPY_WAITS: Duration = Duration::from_secs(60);

/// What a file turned out to be.
enum Meaning {
    /// The copy of a stream that has begun anew.
    CopyOf(StreamKey),
    /// The copy of one that is known and not open, whose own file is gone.
    RestOf(StreamKey),
    /// A copy, perhaps unfinished, of a stream that goes on; or nothing yet.
    Waits,
    /// Everything in it is, or was, read elsewhere.
    Passed,
    /// A stream of its own.
    New,
}

/// Streams in one folder that a file may be the copy of, by the length and the hash of their heads.
#[derive(Default)]
struct Copied {
    by_head: BTreeMap<usize, HashMap<u64, Vec<CopiedOne>>>,
}

struct CopiedOne {
    key: StreamKey,
    read: Read,
    is_open: bool,
    /// Where it was last seen, if it is not open.
    path: PathBuf,
}

impl CopiedOne {
    fn at_base(&self, one: &Candidate) -> bool {
        self.path == one.base && one.path != one.base
    }
}

/// How a known stream was met again.
enum Met {
    Same(KnownStream),
    /// Its file holds other bytes now.
    Begun(KnownStream),
    /// It is closed, and nothing has changed.
    AtRest,
}

impl KnownStream {
    /// Whether what is recognised of it, when so much of it was read, can hardly be another's, too.
    fn is_proven(&self, read: u64) -> bool {
        self.identity.birth_ns.is_some() || read >= PROVEN_BYTES
    }
}

impl Follower {
    /// Judges every file that was found in this look or waits since an earlier one.
    pub(super) fn judge(&mut self, round: &mut Round<'_>) {
        self.pass_by_old(round);
        let mut unknown = Vec::new();
        let mut found = std::mem::take(&mut round.found);
        // Where a link leads to may be found under its own name, too: what is meant counts.
        let meant: HashSet<(u64, u64)> = found
            .iter()
            .filter(|one| one.matches)
            .map(Candidate::node)
            .collect();
        found.retain(|one| one.matches || !meant.contains(&one.node()));
        found.sort_by(Candidate::by_age);
        for one in found {
            unknown.extend(self.recognise(one, round));
        }
        for mut one in std::mem::take(&mut self.waiting) {
            if let Ok(stat) = one.handle.stat() {
                one.stat = stat;
            }
            unknown.push(one);
        }
        unknown.sort_by(Candidate::by_age);
        let copied = self.copied(&unknown, round);
        let inodes: HashSet<u64> = unknown.iter().map(|one| one.stat.inode).collect();
        let mut copies: BTreeMap<StreamKey, Candidate> = BTreeMap::new();
        let mut begun = Vec::new();
        for one in unknown {
            if self.nodes.contains_key(&one.node()) {
                begun.push(one);
                continue;
            }
            match self.meaning(&one, &copied, &copies, &inodes, round) {
                Meaning::CopyOf(stream) => {
                    round.cut.insert(stream);
                    copies.insert(stream, one);
                }
                Meaning::RestOf(stream) => self.take_rest(stream, one, round),
                Meaning::Waits => self.wait(one, round.now),
                Meaning::Passed => self.pass(&one, one.passed_by),
                Meaning::New => begun.push(one),
            }
        }
        for stream in std::mem::take(&mut round.cut) {
            let copy = copies.remove(&stream);
            if copy.is_some() || !self.may_have_copy(stream, round.now) {
                self.undecided.remove(&stream);
                self.truncated(stream, copy, round);
            }
        }
        for one in begun {
            self.begin(one, round);
        }
        // A name whose new holder was known already: the chain goes on there.
        for (id, path, old) in std::mem::take(&mut round.left) {
            let holder = self
                .wants
                .get(&id)
                .and_then(|want| want.names.get(&path).copied());
            if let Some(new) = holder.filter(|new| *new != old) {
                self.succeed(old, new, round);
            }
        }
    }

    /// Whether the rest of a stream may be in a copy that cannot be seen now, because a folder cannot be listed or a file
    /// in it not be opened. That is waited for only so long.
    fn may_have_copy(&mut self, stream: StreamKey, now: Duration) -> bool {
        let Some(file) = self.files.get(&stream).filter(|file| !file.is_copy) else {
            return false;
        };
        let mut wants = file.homes.iter().filter_map(|(id, _)| self.wants.get(id));
        if !wants.any(|want| want.failed) {
            return false;
        }
        let since = *self.undecided.entry(stream).or_insert(now);
        now < since + COPY_WAITS
    }

    /// Rotated forms that a want's first look finds are nobody's wish, unless they are younger than what was accounted for
    /// before the program ended; of a log that is not known, before it was last alive.
    fn pass_by_old(&mut self, round: &mut Round<'_>) {
        let mut before: HashMap<&Path, (i64, Option<i64>)> = HashMap::new();
        let known = &self.known;
        let mut old = Vec::new();
        for (n, one) in round.found.iter().enumerate() {
            // What was followed once was asked for, whether it can be proven to be the same or not.
            let is_known = || {
                let mut streams = known.of_inode(one.stat.inode);
                streams.any(|stream| stream.identity.same_node(&one.stat, self.boot))
            };
            if !one.first || one.matches || is_known() {
                continue;
            }
            let (until_ns, birth_ns) = *before.entry(&one.base).or_insert_with(|| {
                let Some(stream) = known.last_at(&one.base) else {
                    return (self.began_ns, None);
                };
                match stream.accounted_ns {
                    Some(until_ns) => (until_ns, None),
                    None => (stream.modified_ns, stream.identity.birth_ns),
                }
            });
            let is_born_later = match (one.stat.birth_ns, birth_ns) {
                (Some(one), Some(before)) => one >= before,
                _ => true,
            };
            if one.made_ns() < until_ns || !is_born_later {
                old.push(n);
            }
        }
        for n in old {
            round.found[n].passed_by = true;
        }
    }

    /// Notes, of everything that was listed whole, until when all that lies beside it is accounted for: followed, known,
    /// or not to be read. What waits is not, nor is what was made after the listing began.
    pub(super) fn account(&mut self, round: &mut Round<'_>) {
        for (id, listed_ns) in std::mem::take(&mut round.listed) {
            let Some(want) = self.wants.get(&id).filter(|want| !want.failed) else {
                continue;
            };
            let waiting = self.waiting.iter().filter(|one| one.want == id);
            let oldest = waiting.map(Candidate::made_ns).min();
            let until_ns = listed_ns
                .saturating_sub(CLOCK_TICK_NS)
                .min(oldest.unwrap_or(i64::MAX));
            for key in want.names.values() {
                let Some(file) = self.files.get_mut(key) else {
                    continue;
                };
                // No later than its own time: so nothing is told of a log that rests.
                let until_ns = until_ns.min(file.stat.modified_ns);
                if file.accounted_ns != Some(until_ns) {
                    file.accounted_ns = Some(until_ns);
                    round.events.push(Event::Accounted {
                        stream: *key,
                        until_ns,
                    });
                }
            }
        }
    }

    /// Finds the stream whose file this is; the file again, if there is none.
    fn recognise(&mut self, mut one: Candidate, round: &mut Round<'_>) -> Option<Candidate> {
        if let Some(key) = self.nodes.get(&one.node()).copied() {
            if one.matches {
                self.named(key, &one, round);
            }
            return None;
        }
        if let Some(waiting) = self.waiting.iter_mut().find(|w| w.node() == one.node()) {
            if one.matches || !waiting.matches {
                (waiting.path, waiting.base) = (one.path, one.base);
                waiting.matches = one.matches;
            }
            return None;
        }
        let wall_ns = self.host.wall_ns();
        if let Some(want) = self.wants.get_mut(&one.want)
            && let Some(passed) = want.passed.get_mut(&one.stat.inode)
        {
            let same_node = passed.device == one.stat.device
                && passed.birth_ns == one.stat.birth_ns
                // Without a birth time an inode number proves nothing: only what is unchanged is the same.
                && (passed.birth_ns.is_some()
                    || (passed.modified_ns, passed.size) == (one.stat.modified_ns, one.stat.size));
            if same_node && (passed.size == one.stat.size || (passed.is_old && !one.matches)) {
                passed.path = one.path;
                return None;
            }
            // What was passed by because it was old is no longer, once it has a name that is meant.
            one.first &= passed.is_old;
            want.passed.remove(&one.stat.inode);
        }
        match self.meet(&one, round, wall_ns) {
            None => Some(one),
            Some(Met::AtRest) => None,
            Some(Met::Same(stream)) => {
                self.add_known(stream, one, round);
                None
            }
            Some(Met::Begun(stream)) => {
                // Nothing is known of how long it was but what was read of it.
                let read = round.positions.furthest(stream.key);
                one.stat.size = read.map_or(0, |(offset, _)| offset);
                one.stat.modified_ns = stream.modified_ns;
                round.cut.insert(stream.key);
                self.add_known(stream, one, round);
                None
            }
        }
    }

    /// Whether a file is that of a stream that is known and not open. Of one stream's lives only the last can be in it.
    fn meet(&mut self, one: &Candidate, round: &Round<'_>, wall_ns: i64) -> Option<Met> {
        let mut lives: BTreeMap<u64, KnownStream> = BTreeMap::new();
        for stream in self.known.of_inode(one.stat.inode) {
            if !stream.identity.same_node(&one.stat, self.boot) {
                continue;
            }
            let last = lives.entry(stream.key.id).or_insert_with(|| stream.clone());
            if last.key.generation < stream.key.generation {
                *last = stream.clone();
            }
        }
        let mut same: Option<(u64, KnownStream)> = None;
        let mut begun: Option<KnownStream> = None;
        for stream in lives.into_values() {
            let (read, tail) = round.positions.furthest(stream.key).unwrap_or_default();
            if read > 0 && tail == 0 {
                // What was not read of it was given up: that life is over.
                continue;
            }
            let same_tail = one.stat.size >= read
                && (tail == 0
                    || tail_at(&*one.handle, read).is_ok_and(|found| found == Some(tail)));
            if same_tail && stream.identity.same_head(&*one.handle).unwrap_or(false) {
                let is_better = |(other_read, other): &(u64, KnownStream)| {
                    match (other.is_proven(*other_read), stream.is_proven(read)) {
                        // One number was given out twice: the file that was written last has it.
                        (false, false) => {
                            (other.modified_ns, *other_read) < (stream.modified_ns, read)
                        }
                        (true, true) => *other_read < read,
                        (is_other_proven, _) => !is_other_proven,
                    }
                };
                if same.as_ref().is_none_or(is_better) {
                    same = Some((read, stream));
                }
                continue;
            }
            let proven =
                stream.identity.birth_ns.is_some() && stream.identity.birth_ns == one.stat.birth_ns;
            if proven && !self.has_later_life(stream.key) {
                begun = Some(stream);
            }
        }
        if let Some((read, stream)) = same {
            if self.is_rather_another(one, read, &stream, round) {
                return None;
            }
            if !one.matches && self.known.is_unchanged(stream.key, &one.stat, wall_ns) {
                return Some(Met::AtRest);
            }
            return self.known.remove(stream.key).map(Met::Same);
        }
        self.known.remove(begun?.key).map(Met::Begun)
    }

    /// Whether a stream has begun anew since: then what holds this life is a copy.
    fn has_later_life(&self, key: StreamKey) -> bool {
        self.last_life(key.id) > Some(key)
    }

    fn last_life(&self, id: u64) -> Option<StreamKey> {
        self.known.last_life(id).max(last_life(&self.files, id))
    }

    /// Whether a file that only its inode number and a few bytes say to be a stream's is rather another, to which the
    /// number was given out again: one that came since, the copy of its log, or its log's next file.
    fn is_rather_another(
        &self,
        one: &Candidate,
        read: u64,
        stream: &KnownStream,
        round: &Round<'_>,
    ) -> bool {
        if stream.is_proven(read) || one.stat.modified_ns == stream.modified_ns {
            return false;
        }
        if one.came {
            // Its own file was in none of the folders any more.
            return true;
        }
        if one.path == one.base {
            // What lost its name before does not have it now.
            return stream.successor.is_some();
        }
        let (Ok(head), Some(dir)) = (one.head(), one.path.parent()) else {
            return false;
        };
        let log = self
            .wants
            .get(&one.want)
            .and_then(|want| want.names.get(&one.base).copied());
        let holds = |key: StreamKey, identity: Identity, is_own: bool| {
            let (offset, tail) = round.positions.furthest(key).unwrap_or_default();
            let other = Read {
                identity,
                offset,
                tail,
            };
            offset > read
                && (is_own || offset >= PROVEN_BYTES)
                && holds_what_was_read(one, &head, &other)
        };
        let home = (one.want, dir.to_path_buf());
        let mut known = self.known.of_dir(dir);
        let mut open = self.homes.get(&home).into_iter().flatten();
        known.any(|other| {
            let is_own = other.path == one.base;
            other.key != stream.key && holds(other.key, other.identity, is_own)
        }) || open.any(|key| {
            let file = self.files.get(key).filter(|file| !file.is_copy);
            file.is_some_and(|file| holds(*key, file.identity, log == Some(*key)))
        })
    }

    /// The streams that these files may be copies of.
    fn copied(
        &self,
        unknown: &[Candidate],
        round: &Round<'_>,
    ) -> HashMap<(WantId, PathBuf), Copied> {
        let homes: BTreeSet<(WantId, &Path)> = unknown
            .iter()
            .filter(|one| !one.passed_by)
            .filter_map(|one| Some((one.want, one.path.parent()?)))
            .collect();
        let firsts: BTreeSet<(WantId, &Path)> = unknown
            .iter()
            .filter(|one| one.first)
            .filter_map(|one| Some((one.want, one.path.parent()?)))
            .collect();
        let mut all = HashMap::new();
        for (id, dir) in homes {
            let mut copied = Copied::default();
            let home = (id, dir.to_path_buf());
            for key in self.homes.get(&home).into_iter().flatten() {
                if let Some(file) = self.files.get(key).filter(|file| !file.is_copy) {
                    copied.add(*key, file.identity, None, round);
                }
            }
            if firsts.contains(&(id, dir)) {
                for stream in self.known.of_dir(dir) {
                    copied.add(stream.key, stream.identity, Some(&stream.path), round);
                }
            }
            all.insert(home, copied);
        }
        all
    }

    fn meaning(
        &self,
        one: &Candidate,
        copied: &HashMap<(WantId, PathBuf), Copied>,
        copies: &BTreeMap<StreamKey, Candidate>,
        inodes: &HashSet<u64>,
        round: &Round<'_>,
    ) -> Meaning {
        if one.passed_by {
            return Meaning::Passed;
        }
        let Ok(head) = one.head() else {
            return Meaning::New;
        };
        let is_late = one
            .waits_since
            .is_some_and(|since| round.now >= since + COPY_WAITS);
        // The log that it may be a rotated form of, if that still has its name: of a log that was renamed itself no
        // copy is made.
        let log = self
            .wants
            .get(&one.want)
            .filter(|_| one.path != one.base)
            .and_then(|want| want.names.get(&one.base))
            .and_then(|key| Some((*key, self.files.get(key)?)));
        let dir = one.path.parent().unwrap_or(Path::new(""));
        let copied = copied.get(&(one.want, dir.to_path_buf()));
        let mut copies_of = copied.map_or_else(Vec::new, |copied| copied.of(one, &head));
        // Its own log first, then the one of which most is proven.
        let is_own = |copied: &CopiedOne| match copied.is_open {
            true => log.is_some_and(|(log, _)| log == copied.key),
            false => copied.at_base(one),
        };
        copies_of.sort_by_key(|one| (!is_own(one), u64::MAX - one.read.offset, one.key));
        // Everything in it is in its log, too, as far as that was read or not.
        let mut is_in = log
            .filter(|(_, file)| is_within(one, &head, &*file.handle))
            .map(|(key, _)| key);
        let mut is_fork = false;
        for of in copies_of {
            let (key, is_own) = (of.key, is_own(of));
            let is_weak = of.read.offset < PROVEN_BYTES;
            if copies.contains_key(&key) || (is_weak && !is_own) {
                continue;
            }
            if !of.is_open {
                // Where birth times are unknown its own file is met as another with its number.
                let begun = !is_weak || inodes.contains(&of.read.identity.inode);
                if begun && self.known.contains(key) {
                    return Meaning::RestOf(key);
                }
                continue;
            }
            let Some(file) = self.files.get(&key) else {
                continue;
            };
            if round.cut.contains(&key) {
                return Meaning::CopyOf(key);
            }
            if is_within(one, &head, &*file.handle) {
                is_in.get_or_insert(key);
                continue;
            }
            // It holds what the log does not: the log was cut since, though what was read of it looks as before (the
            // header with which each of its lives begins), or it was not even looked at.
            let is_cut = is_weak && is_own && of.read.offset > 0;
            if is_cut || !is_intact(file, of.read.offset, of.read.tail) {
                return Meaning::CopyOf(key);
            }
            is_fork = true;
        }
        match is_in {
            Some(key) => {
                let is_read = || {
                    let read = round.positions.read_by_all(key);
                    read.is_some_and(|read| read >= one.stat.size)
                };
                match (is_late, one.matches) {
                    (false, _) => Meaning::Waits,
                    (true, true) => Meaning::New,
                    (true, false) if is_read() => Meaning::Passed,
                    (true, false) => Meaning::Waits,
                }
            }
            None if is_fork && !is_late => Meaning::Waits,
            // A rotated form that is empty is a copy that was just begun, or nothing.
            None if one.stat.size == 0 && one.path != one.base && !one.first => match is_late {
                true if one.matches => Meaning::New,
                _ if one.stat.links == 0 => Meaning::Passed,
                _ => Meaning::Waits,
            },
            // It was still being copied when it was looked at, and its log was cut before the two were compared.
            None if one.path != one.base && !is_late && one.has_changed() => Meaning::Waits,
            None => Meaning::New,
        }
    }

    fn wait(&mut self, mut one: Candidate, now: Duration) {
        one.waits_since.get_or_insert(now);
        self.waiting.push(one);
    }

    pub(super) fn pass(&mut self, one: &Candidate, is_old: bool) {
        if let Some(want) = self.wants.get_mut(&one.want) {
            let passed = Passed {
                path: one.path.clone(),
                device: one.stat.device,
                birth_ns: one.stat.birth_ns,
                modified_ns: one.stat.modified_ns,
                size: one.stat.size,
                is_old,
            };
            want.passed.insert(one.stat.inode, passed);
        }
    }

    /// A stream's own file is gone, or another's now; what was not read of it is in this copy.
    fn take_rest(&mut self, stream: StreamKey, one: Candidate, round: &mut Round<'_>) {
        let Some(mut known) = self.known.remove(stream) else {
            return;
        };
        known.identity = known.identity.moved(&one.stat, self.boot);
        self.add_known(known, one, round);
        if let Some(file) = self.files.get_mut(&stream) {
            file.is_copy = true;
        }
    }

    /// A file has one more name.
    fn named(&mut self, key: StreamKey, one: &Candidate, round: &mut Round<'_>) {
        let Some(file) = self.files.get_mut(&key) else {
            return;
        };
        let id = one.want;
        let was_seen = file.homes.iter().any(|(want, _)| *want == id);
        let was_nameless = file.names.is_empty();
        if !file.names.contains(&(id, one.path.clone())) {
            file.names.push((id, one.path.clone()));
        }
        file.last = (id, one.path.clone());
        if let Some(want) = self.wants.get_mut(&id) {
            want.names.insert(one.path.clone(), key);
        }
        self.note_home(key, id, &one.path);
        let Some(file) = self.files.get(&key) else {
            return;
        };
        if was_seen {
            if was_nameless {
                round.events.push(Event::Renamed {
                    stream: key,
                    path: one.path.clone(),
                });
            }
            return;
        }
        let seen = Seen {
            want: id,
            path: one.path.clone(),
            stream: key,
            file: Arc::clone(&file.handle),
            stat: file.stat,
            identity: file.identity,
            after: None,
            known: true,
            existed: false,
            finished: file.finished,
            accounted_ns: file.accounted_ns,
        };
        round.events.push(Event::Seen(seen));
    }

    fn note_home(&mut self, key: StreamKey, id: WantId, path: &Path) {
        let home = (id, path.parent().unwrap_or(Path::new("")).to_path_buf());
        if let Some(file) = self.files.get_mut(&key)
            && !file.homes.contains(&home)
        {
            file.homes.push(home.clone());
            self.homes.entry(home).or_default().insert(key);
        }
    }

    /// Adds an open file as a stream that was known before.
    fn add_known(&mut self, stream: KnownStream, one: Candidate, round: &mut Round<'_>) {
        let key = stream.key;
        let (want, base) = (one.want, one.base.clone());
        let newest = |wants: &BTreeMap<WantId, Want>| wants.get(&want)?.newest.get(&base).copied();
        let before = newest(&self.wants);
        let (is_copy, at_base) = (self.has_later_life(key), one.path == one.base);
        let accounted_ns = stream.accounted_ns.or(Some(stream.modified_ns));
        self.add(key, one, stream.identity, accounted_ns, None, round);
        if let Some(file) = self.files.get_mut(&key) {
            file.successor = stream.successor.filter(|_| !at_base);
            file.is_copy = is_copy;
        }
        let successor = stream.successor.filter(|_| !at_base);
        // What has a successor is not the last of its chain, whenever it is found.
        if let (Some(before), Some(_)) = (before, successor)
            && let Some(want) = self.wants.get_mut(&want)
        {
            want.newest.insert(base, before);
        }
    }

    /// Adds an open file as a stream; one that was known comes with what it was accounted for.
    fn add(
        &mut self,
        key: StreamKey,
        one: Candidate,
        mut identity: Identity,
        known: Option<i64>,
        after: Option<StreamKey>,
        round: &mut Round<'_>,
    ) {
        let id = one.want;
        let node = one.node();
        let Some(want) = self.wants.get_mut(&id) else {
            return;
        };
        (identity.device, identity.boot) = (one.stat.device, self.boot);
        let accounted_ns = known.or(Some(self.began_ns));
        if one.matches {
            want.names.insert(one.path.clone(), key);
        }
        // The last of its chain, unless the name itself is held by another.
        let is_last = match want.names.get(&one.base) {
            Some(holder) => *holder == key,
            None => true,
        };
        if is_last {
            want.newest.insert(one.base.clone(), key);
        }
        let file = File {
            handle: Arc::clone(&one.handle),
            identity,
            stat: one.stat,
            names: Vec::from_iter(one.matches.then(|| (id, one.path.clone()))),
            last: (id, one.path.clone()),
            homes: Vec::new(),
            owner: Arc::clone(&want.wanted.owner),
            pinned_bytes: want.wanted.pinned_bytes,
            changed_at: round.now,
            finished: false,
            successor: None,
            at_once: want.wanted.rotates_at_once,
            shed: false,
            is_copy: false,
            accounted_ns,
        };
        self.nodes.insert(node, key);
        self.files.insert(key, file);
        self.note_home(key, id, &one.path);
        round.events.push(Event::Seen(Seen {
            want: id,
            path: one.path,
            stream: key,
            file: one.handle,
            stat: one.stat,
            identity,
            after,
            known: known.is_some(),
            existed: one.existed && known.is_none(),
            finished: false,
            accounted_ns,
        }));
        if let Some(before) = after {
            self.succeed(before, key, round);
        }
    }

    /// Begins a stream of its own; a file that became one meanwhile has one more name.
    fn begin(&mut self, one: Candidate, round: &mut Round<'_>) {
        if let Some(key) = self.nodes.get(&one.node()).copied() {
            if one.matches {
                self.named(key, &one, round);
            }
            return;
        }
        let identity = match Identity::take(&*one.handle, &one.stat, self.boot) {
            Ok(identity) => identity,
            // It is tried again at the next listing.
            Err(error) => {
                if let Some(want) = self.wants.get_mut(&one.want) {
                    want.siblings.remove(&one.path);
                    want.failed = true;
                    tell(want, one.want, &one.path, &error, &mut round.events);
                }
                return;
            }
        };
        let key = StreamKey {
            id: self.random(),
            generation: 0,
        };
        let after = self.wants.get(&one.want).and_then(|want| {
            let newest = want.newest.get(&one.base).copied()?;
            // What was found beside a log that goes on does not come after it.
            let goes_on = want.names.get(&one.base) == Some(&newest) && one.path != one.base;
            (!goes_on).then_some(newest)
        });
        self.add(key, one, identity, None, after, round);
    }

    pub(super) fn succeed(&mut self, old: StreamKey, new: StreamKey, round: &mut Round<'_>) {
        if let Some(file) = self.files.get_mut(&old)
            && file.successor.is_none()
        {
            file.successor = Some(new);
            round.events.push(Event::Succeeded {
                stream: old,
                by: new,
            });
        }
    }

    /// A file begins anew: its next generation, and where the rest of the old one is.
    fn truncated(&mut self, old: StreamKey, copy: Option<Candidate>, round: &mut Round<'_>) {
        let Some(file) = self.files.get(&old) else {
            return;
        };
        if file.is_copy {
            // Its stream's own file goes on elsewhere: what was here is gone, and what is here now is to be judged.
            if let Some(file) = self.close(old) {
                for (id, _) in &file.homes {
                    if let Some(want) = self.wants.get_mut(id) {
                        (want.verifies, want.must_list) = (true, true);
                    }
                }
            }
            round.events.push(Event::Overwritten { stream: old });
            return;
        }
        let handle = Arc::clone(&file.handle);
        let Ok(stat) = handle.stat() else { return };
        // A generation has two bytes in a record's id; after the last one the stream is another.
        let last = self.last_life(old.id).unwrap_or(old);
        let new = match last.generation.checked_add(1) {
            Some(generation) => StreamKey {
                id: old.id,
                generation,
            },
            None => StreamKey {
                id: self.random(),
                generation: 0,
            },
        };
        let Ok(identity) = Identity::take(&*handle, &stat, self.boot) else {
            return;
        };
        let Some(mut file) = self.close(old) else {
            return;
        };
        let begun = File {
            handle,
            identity,
            stat,
            names: std::mem::take(&mut file.names),
            last: file.last.clone(),
            homes: Vec::new(),
            owner: Arc::clone(&file.owner),
            changed_at: round.now,
            finished: false,
            successor: None,
            shed: false,
            is_copy: false,
            ..file
        };
        for want in self.wants.values_mut() {
            for holder in want.names.values_mut().filter(|holder| **holder == old) {
                *holder = new;
            }
            for newest in want.newest.values_mut().filter(|newest| **newest == old) {
                *newest = new;
            }
        }
        self.nodes.insert((stat.device, stat.inode), new);
        self.files.insert(new, begun);
        for (id, dir) in &file.homes {
            self.note_home(new, *id, &dir.join("-"));
        }
        let copy = copy.map(|one| {
            let identity = file.identity.moved(&one.stat, self.boot);
            self.nodes.insert(one.node(), old);
            let id = one.want;
            let mut names = Vec::new();
            if let Some(want) = self.wants.get_mut(&id)
                && matches(&want.wanted.pattern, &one.path)
            {
                want.names.insert(one.path.clone(), old);
                names.push((id, one.path.clone()));
            }
            let file = File {
                handle: Arc::clone(&one.handle),
                identity,
                stat: one.stat,
                names,
                last: (id, one.path.clone()),
                homes: Vec::new(),
                changed_at: round.now,
                finished: true,
                successor: Some(new),
                is_copy: true,
                ..file
            };
            self.files.insert(old, file);
            self.note_home(old, id, &one.path);
            Copy {
                path: one.path,
                file: one.handle,
                stat: one.stat,
                identity,
            }
        });
        round.events.push(Event::Truncated {
            old,
            new,
            identity,
            copy,
            stat,
        });
    }
}

impl Copied {
    fn add(
        &mut self,
        key: StreamKey,
        identity: Identity,
        closed_at: Option<&Path>,
        round: &Round<'_>,
    ) {
        let (offset, tail) = round.positions.furthest(key).unwrap_or_default();
        // Of a life that is over nothing is missed; of one that was never read its head tells.
        if (offset > 0 && tail != 0) || (offset == 0 && identity.head_len > 0) {
            let read = Read {
                identity,
                offset,
                tail,
            };
            self.by_head
                .entry(identity.head_len as usize)
                .or_default()
                .entry(identity.head)
                .or_default()
                .push(CopiedOne {
                    key,
                    read,
                    is_open: closed_at.is_none(),
                    path: closed_at.unwrap_or(Path::new("")).to_path_buf(),
                });
        }
    }

    /// Those of which a file holds all that was read.
    fn of(&self, one: &Candidate, head: &[u8]) -> Vec<&CopiedOne> {
        let mut of = Vec::new();
        for (length, heads) in self.by_head.range(..=head.len()) {
            let hash = match length {
                0 => 0,
                length => xxh3_64(&head[..*length]),
            };
            let same = heads.get(&hash).into_iter().flatten();
            of.extend(same.filter(|of| holds_what_was_read(one, head, &of.read)));
        }
        of
    }
}
