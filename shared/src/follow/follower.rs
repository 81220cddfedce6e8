//! The follower: which file, which stream, and what a new name, inode or size means.
//! Place: within **follow**; one thread calls [`Follower::look`] when it was woken and at each sweep, and gives the
//! events to who reads. `list` finds names, `judge` finds out what their files are, `leave` lets files go.
//! Invariants: the file system is listed and stat'ed, never believed by an event; a file that was opened is held until
//! it is deleted or renamed away *and* released; in any doubt a file is a new stream, read from its first byte.
//!
//! What a look may find, and what it means:
//!
//! | found | meaning |
//! |---|---|
//! | a name with the node of an open file | the same stream (a rename, a hard link) |
//! | a name with the node of a known stream, same head, same bytes before the cursor | that stream, after a restart |
//! | the same, but a test fails and the birth times agree | the stream's next generation |
//! | a file with a stream's head and the bytes before its cursor, that stream truncated | its copy: what was not read is there |
//! | the same, and the stream's file holds all of it | waits, at most 60 s |
//! | a rotated form of a name, there before the name was first followed | nobody asked for it |
//! | anything else | a new stream |
//!
//! Rotated forms of a followed name (`app.log.1` beside `app.log`) are looked for in every listing, whether the
//! pattern means them or not: what came and went between two looks is there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::glob::Pattern;
use super::identity::{HEAD_BYTES, Identity, tail_at};
use super::known::{Known, KnownStream};
use super::rotation::Candidate;
use super::{Event, StreamKey, View, WantId};
use crate::host::{Host, LogFile, Stat, Wakes, WatchId, Woken};

/// Everything is looked at this often, whatever was heard.
pub const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// A folder in which a followed file was written is listed again this often: a rename over it tells no new name.
const LIST_EVERY: Duration = Duration::from_secs(1);
/// A file that nobody names any more is finished when it has not changed for this long.
pub const FINISHED_AFTER: Duration = Duration::from_secs(5);
/// Files that one declaration of a container may have followed.
pub const MOST_FILES: usize = 2_000;
/// Files that one source of the operator's may have followed.
pub const MOST_FILES_OF_HOST: usize = 10_000;

/// What is to be followed.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its number; given once.
    pub want: WantId,
    /// Whose it is: the container's id; empty for the host.
    pub owner: Arc<str>,
    /// How its path is resolved.
    pub view: View,
    /// Which files.
    pub pattern: Pattern,
    /// It was wanted when the program started: files found at the first look existed before it.
    pub from_start: bool,
    /// A runtime writes it and changes over at once: a file that has a successor is finished.
    pub rotates_at_once: bool,
    /// Most bytes of its deleted files that are held.
    pub pinned_bytes: u64,
}

impl Wanted {
    /// How many files may match.
    #[must_use]
    pub fn most_files(&self) -> usize {
        if self.owner.is_empty() {
            MOST_FILES_OF_HOST
        } else {
            MOST_FILES
        }
    }
}

/// Where reading stands.
pub trait Positions {
    /// The furthest offset of any flow of a stream, and the hash of the bytes before it; `None` for a stream that
    /// nobody has begun.
    fn furthest(&self, stream: StreamKey) -> Option<(u64, u64)>;
    /// The offset up to which every flow of an open stream has read.
    fn read_by_all(&self, stream: StreamKey) -> Option<u64>;
}

/// Follows every wanted file.
#[derive(Debug)]
pub struct Follower {
    pub(super) host: Arc<dyn Host>,
    pub(super) wakes: Option<Arc<dyn Wakes>>,
    pub(super) boot: u128,
    pub(super) wants: BTreeMap<WantId, Want>,
    pub(super) watches: HashMap<WatchId, (WantId, PathBuf)>,
    /// Open files.
    pub(super) files: BTreeMap<StreamKey, File>,
    /// The same by device and inode.
    pub(super) nodes: HashMap<(u64, u64), StreamKey>,
    /// The same by the folders in which a want has seen them.
    pub(super) homes: HashMap<(WantId, PathBuf), BTreeSet<StreamKey>>,
    /// Those that may be let go once nobody names them.
    pub(super) releasable: BTreeSet<StreamKey>,
    pub(super) known: Known,
    /// Until when, nanoseconds since 1970, the program's last life is known to have looked; where it had none, its start.
    pub(super) began_ns: i64,
    pub(super) waiting: Vec<Candidate>,
    /// Streams whose file has begun anew, since when: their folder cannot be listed, where a copy may be.
    pub(super) undecided: BTreeMap<StreamKey, Duration>,
    pub(super) swept_at: Option<Duration>,
    random: u64,
    pub(super) node_pinned_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Want {
    pub wanted: Wanted,
    pub gone: bool,
    pub must_list: bool,
    /// Something happened to names: those that look unchanged may be others' now.
    pub verifies: bool,
    pub looked: bool,
    /// Something could not be listed or opened when it was last listed.
    pub failed: bool,
    pub dirs: BTreeMap<PathBuf, Dir>,
    /// Names that it means, and whose they are.
    pub names: BTreeMap<PathBuf, StreamKey>,
    /// Names whose rotated forms are looked for.
    pub bases: HashSet<PathBuf>,
    /// Those of them that were links when last seen, each with the watch of what it leads to: that is written under
    /// another name, perhaps in another folder.
    pub links: HashMap<PathBuf, Option<WatchId>>,
    /// The last stream of each chain of rotations, by its base.
    pub newest: HashMap<PathBuf, StreamKey>,
    /// Rotated forms in the last listing, with their inodes.
    pub siblings: HashMap<PathBuf, u64>,
    /// Files that are not read, by inode.
    pub passed: HashMap<u64, Passed>,
    pub troubles: BTreeMap<PathBuf, String>,
    pub full: bool,
    /// Inode numbers of the files in its folders, once those were listed whole: of those that were there at that time,
    /// or were opened since.
    pub there: Option<HashSet<u64>>,
}

/// A file that is known and not read.
#[derive(Debug, Clone)]
pub(super) struct Passed {
    /// Where it was when it was last opened.
    pub path: PathBuf,
    pub device: u64,
    pub birth_ns: Option<i64>,
    pub modified_ns: i64,
    pub size: u64,
    /// It was rotated before its log was followed; else everything in it was read elsewhere.
    pub is_old: bool,
}

#[derive(Debug)]
pub(super) struct Dir {
    pub watch: Option<WatchId>,
    pub listed_at: Duration,
    pub dirty: bool,
}

#[derive(Debug)]
pub(super) struct File {
    pub handle: Arc<dyn LogFile>,
    pub identity: Identity,
    pub stat: Stat,
    /// Where a want sees it now.
    pub names: Vec<(WantId, PathBuf)>,
    /// Where it was last seen, and by whom.
    pub last: (WantId, PathBuf),
    /// In which folders it was seen.
    pub homes: Vec<(WantId, PathBuf)>,
    pub owner: Arc<str>,
    pub pinned_bytes: u64,
    pub changed_at: Duration,
    pub finished: bool,
    /// Who has its name now.
    pub successor: Option<StreamKey>,
    pub at_once: bool,
    pub shed: bool,
    /// It is a copy: its stream's own file has begun anew.
    pub is_copy: bool,
    /// As in [`super::KnownStream::accounted_ns`].
    pub accounted_ns: Option<i64>,
}

/// One look: what it is told, and what it finds.
pub(super) struct Round<'a> {
    pub now: Duration,
    pub positions: &'a dyn Positions,
    pub events: Vec<Event>,
    pub list_now: BTreeSet<WantId>,
    /// What was listed, and when, nanoseconds since 1970.
    pub listed: Vec<(WantId, i64)>,
    /// Streams whose file has begun anew.
    pub cut: BTreeSet<StreamKey>,
    /// Files whose meaning is to be found.
    pub found: Vec<Candidate>,
    /// Names that are no more, or are another file's.
    pub left: Vec<(WantId, PathBuf, StreamKey)>,
}

impl Follower {
    /// A follower of nothing yet, which knows these streams. `seed` makes its stream ids.
    #[must_use]
    pub fn new(host: Arc<dyn Host>, known: Vec<KnownStream>, seed: u64) -> Self {
        Self {
            boot: host.boot_id(),
            wakes: host.wakes().ok(),
            wants: BTreeMap::new(),
            watches: HashMap::new(),
            files: BTreeMap::new(),
            nodes: HashMap::new(),
            homes: HashMap::new(),
            releasable: BTreeSet::new(),
            began_ns: known
                .iter()
                .map(|stream| stream.accounted_ns.unwrap_or(stream.modified_ns))
                .max()
                .unwrap_or_else(|| host.wall_ns()),
            known: Known::new(known, host.now()),
            waiting: Vec::new(),
            undecided: BTreeMap::new(),
            swept_at: None,
            random: seed,
            node_pinned_bytes: super::held::NODE_PINNED_BYTES,
            host,
        }
    }

    /// What to wait on between two looks; `None` where the kernel gives none, and only the sweep looks.
    #[must_use]
    pub fn wakes(&self) -> Option<Arc<dyn Wakes>> {
        self.wakes.clone()
    }

    /// Follows one more thing, or the same with another view; looked at in the next look.
    pub fn want(&mut self, wanted: Wanted) {
        if let Some(want) = self.wants.get_mut(&wanted.want) {
            want.wanted = wanted;
            want.gone = false;
            want.must_list = true;
            return;
        }
        self.wants.insert(
            wanted.want,
            Want {
                wanted,
                gone: false,
                must_list: true,
                verifies: false,
                looked: false,
                failed: false,
                dirs: BTreeMap::new(),
                names: BTreeMap::new(),
                bases: HashSet::new(),
                links: HashMap::new(),
                newest: HashMap::new(),
                siblings: HashMap::new(),
                passed: HashMap::new(),
                troubles: BTreeMap::new(),
                full: false,
                there: None,
            },
        );
    }

    /// Its container has gone: what is open is read to its end, and nothing new is looked for after one last look.
    pub fn unwant(&mut self, want: WantId) {
        if let Some(want) = self.wants.get_mut(&want) {
            want.gone = true;
            want.must_list = true;
        }
    }

    /// How many files are open.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.files.len() + self.waiting.len()
    }

    /// Whether everything that was heard has been looked at, and nothing of it failed.
    #[must_use]
    pub fn is_up_to_date(&self) -> bool {
        let mut wants = self.wants.values();
        self.undecided.is_empty()
            && wants.all(|want| {
                !want.must_list && !want.failed && want.dirs.values().all(|dir| !dir.dirty)
            })
    }

    /// Whether a file waits unread, because it may be the copy of a log that is still to be cut.
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether a want's folders have been listed once: which files were there before is decided.
    #[must_use]
    pub fn has_looked(&self, want: WantId) -> bool {
        self.wants.get(&want).is_some_and(|want| want.looked)
    }

    /// When the next look is due if nothing is heard.
    #[must_use]
    pub fn due_at(&self, now: Duration) -> Duration {
        let mut due = self.swept_at.map_or(now, |at| at + SWEEP_EVERY);
        let ending = self
            .files
            .values()
            .filter(|file| !file.finished && (file.names.is_empty() || file.successor.is_some()))
            .map(|file| file.changed_at + FINISHED_AFTER);
        for at in ending {
            due = due.min(at.max(now + Duration::from_millis(50)));
        }
        if !self.waiting.is_empty() {
            due = due.min(now + LIST_EVERY);
        }
        let dirty = self
            .wants
            .values()
            .flat_map(|want| want.dirs.values())
            .filter(|dir| dir.dirty)
            .map(|dir| dir.listed_at + LIST_EVERY);
        dirty.fold(due, |due, at| due.min(at.max(now)))
    }

    /// Looks at what may have changed. `suspects` may have been truncated; `released` are needed by nobody any more.
    pub fn look(
        &mut self,
        woken: Woken,
        suspects: &[StreamKey],
        released: &[StreamKey],
        positions: &dyn Positions,
    ) -> Vec<Event> {
        let now = self.host.now();
        let mut round = Round {
            now,
            positions,
            events: Vec::new(),
            list_now: BTreeSet::new(),
            listed: Vec::new(),
            cut: self.undecided.keys().copied().collect(),
            found: Vec::new(),
            left: Vec::new(),
        };
        let sweeps = woken.overflow || self.swept_at.is_none_or(|at| now >= at + SWEEP_EVERY);
        self.note_released(released, &mut round);
        // Of a name that is followed it is known only that something happened; a write shows in its file.
        let heard = self.hear(woken, &mut round);
        let mut stats: BTreeSet<StreamKey> = heard.keys().copied().collect();
        if sweeps {
            self.swept_at = Some(now);
            stats.extend(self.files.keys().copied());
        } else {
            let ending = self.files.iter().filter(|(_, file)| {
                !file.finished && (file.names.is_empty() || file.successor.is_some())
            });
            stats.extend(ending.map(|(key, _)| *key));
        }
        stats.retain(|key| !round.cut.contains(key));
        for key in stats {
            let written = self.stat(key, &mut round);
            if let (false, Some(want)) = (written, heard.get(&key)) {
                round.list_now.insert(*want);
            }
        }
        for stream in suspects {
            self.suspect(*stream, &mut round);
        }
        for (id, want) in &self.wants {
            let is_due = |dir: &Dir| dir.dirty && now >= dir.listed_at + LIST_EVERY;
            if sweeps || want.must_list || want.dirs.values().any(is_due) {
                round.list_now.insert(*id);
            }
        }
        // Where the rest of what was truncated is, is a question of names.
        for key in &round.cut {
            let wants = self.files.get(key).into_iter().flat_map(|file| &file.homes);
            for (id, _) in wants {
                if let Some(want) = self.wants.get_mut(id) {
                    want.verifies = true;
                    round.list_now.insert(*id);
                }
            }
        }
        for want in std::mem::take(&mut round.list_now) {
            self.list(want, &mut round);
        }
        self.judge(&mut round);
        self.account(&mut round);
        self.finish(&mut round);
        self.release(&mut round);
        self.shed(&mut round.events);
        let forgotten = self.known.prune(now, self.host.wall_ns());
        let forgotten = forgotten.into_iter();
        round
            .events
            .extend(forgotten.map(|stream| Event::Forgotten { stream }));
        round.events
    }

    /// Takes in what was heard: which followed files something happened to, and under which want.
    fn hear(&mut self, woken: Woken, round: &mut Round<'_>) -> BTreeMap<StreamKey, WantId> {
        let mut heard = BTreeMap::new();
        for watch in woken.gone {
            if let Some((id, at)) = self.watches.remove(&watch)
                && let Some(want) = self.wants.get_mut(&id)
            {
                want.dirs.remove(&at);
                if let Some(watch) = want.links.get_mut(&at) {
                    *watch = None;
                }
                want.verifies = true;
                round.list_now.insert(id);
            }
        }
        let changed = woken.changed.into_iter().map(|at| (at, true));
        let written = woken.written.into_iter().map(|at| (at, false));
        for ((watch, name), is_name) in changed.chain(written) {
            let Some((id, at)) = self.watches.get(&watch) else {
                continue;
            };
            let Some(want) = self.wants.get_mut(id) else {
                continue;
            };
            let stream = followed(want, at, name.as_deref());
            if let Some(stream) = stream {
                heard.insert(stream, *id);
            }
            match stream {
                // A new name.
                None if is_name => {
                    want.verifies = true;
                    round.list_now.insert(*id);
                }
                // Its own file was written to: no name has changed.
                Some(_) if !is_name => {}
                // A known name went, or became another's; or something was written that is nobody's, or whose name was
                // missed: the folder is listed within a second.
                _ => {
                    if let Some(dir) = want.dirs.get_mut(at) {
                        dir.dirty = true;
                    }
                }
            }
        }
        heard
    }

    /// Looks at an open file; whether it has changed.
    fn stat(&mut self, key: StreamKey, round: &mut Round<'_>) -> bool {
        let Some(file) = self.files.get_mut(&key) else {
            return true;
        };
        // First how far it was read, then how long it is: a file that is read while it grows is else taken for cut.
        let (read, tail) = round.positions.furthest(key).unwrap_or_default();
        let Ok(stat) = file.handle.stat() else {
            return true;
        };
        if stat.links != file.stat.links {
            for (want, _) in &file.names {
                round.list_now.insert(*want);
            }
        }
        // A file that became shorter was cut. Where all that was read is as it was, nothing is lost by going on.
        if stat.size < read || (stat.size < file.stat.size && !is_intact(file, read, tail)) {
            round.cut.insert(key);
            return true;
        }
        let changed = stat.size != file.stat.size || stat.modified_ns != file.stat.modified_ns;
        file.stat = stat;
        // What is first in it is known before it is read. Later only what was read is taken: the bytes before the cursor
        // say that it is still the same.
        let known = match (file.identity.head_len, read) {
            (0, 0) => stat.size,
            _ if tail != 0
                && u64::from(file.identity.head_len) < read.min(HEAD_BYTES as u64)
                && tail_at(&*file.handle, read).is_ok_and(|found| found == Some(tail)) =>
            {
                read
            }
            _ => 0,
        };
        if known > 0
            && let Ok(true) = file.identity.grow(&*file.handle, known)
        {
            round.events.push(Event::Known {
                stream: key,
                identity: file.identity,
            });
        }
        if changed && !file.shed {
            file.changed_at = round.now;
            if file.finished {
                file.finished = false;
                self.releasable.remove(&key);
                round.events.push(Event::Unfinished { stream: key });
            }
            round.events.push(Event::Changed { stream: key, stat });
        }
        changed
    }

    /// Someone found other bytes than were read before.
    fn suspect(&mut self, key: StreamKey, round: &mut Round<'_>) {
        let Some(file) = self.files.get(&key) else {
            return;
        };
        let (read, tail) = round.positions.furthest(key).unwrap_or_default();
        if is_intact(file, read, tail) {
            round.events.push(Event::Intact { stream: key });
        } else {
            round.cut.insert(key);
        }
    }

    pub(super) fn random(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The stream that is followed under a name in a watched folder, or behind a watched link.
fn followed(want: &Want, at: &Path, name: Option<&OsStr>) -> Option<StreamKey> {
    let key = match name {
        Some(name) => want.names.get(&at.join(name)),
        None => want.names.get(at),
    };
    key.copied()
}

/// Whether a file still holds all that was read of it.
pub(super) fn is_intact(file: &File, read: u64, tail: u64) -> bool {
    tail_at(&*file.handle, read)
        .is_ok_and(|found| found.is_some() && (tail == 0 || found == Some(tail)))
        && file.identity.same_head(&*file.handle).unwrap_or(false)
}

/// Tells a trouble once, until it changes.
pub(super) fn tell(
    want: &mut Want,
    id: WantId,
    path: &Path,
    error: &io::Error,
    events: &mut Vec<Event>,
) {
    let text = error.to_string();
    if want.troubles.get(path) != Some(&text) {
        want.troubles.insert(path.to_path_buf(), text.clone());
        events.push(Event::Trouble {
            want: id,
            path: path.to_path_buf(),
            trouble: Some((error.kind(), text)),
        });
    }
}
