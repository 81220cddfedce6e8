//! Streams that are known and not open: from the checkpoint, or let go while their file still had a name somewhere.
//! Place: within **follow**; asked for every file whose meaning is to be found.
//! Invariants: found by inode or by folder, never by going through all; what was not seen for seven days is forgotten.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::StreamKey;
use super::identity::Identity;
use crate::host::Stat;

/// A stream that is not seen for so long is forgotten.
const FORGOTTEN_AFTER_NS: i64 = 7 * 24 * 3_600 * 1_000_000_000;
/// Nothing is forgotten before the program had this long to look everywhere: containers come one by one.
const GRACE: Duration = Duration::from_secs(3_600);
/// How many of a folder are remembered. A log that rotates every few seconds leaves many; the oldest are long gone.
const MOST_OF_A_FOLDER: usize = 1_000;

/// A stream that the checkpoint knows.
#[derive(Debug, Clone)]
pub struct KnownStream {
    /// Its key.
    pub key: StreamKey,
    /// What it is recognised by.
    pub identity: Identity,
    /// Where it was last seen.
    pub path: PathBuf,
    /// When it was last modified, nanoseconds since 1970.
    pub modified_ns: i64,
    /// What was made beside it before this, nanoseconds since 1970, and may be a rotated form of its name, is known, or
    /// nobody's wish; `None`: what was made before it was last modified.
    pub accounted_ns: Option<i64>,
    /// Which stream took its name.
    pub successor: Option<StreamKey>,
    /// When it was last seen, nanoseconds since 1970.
    pub seen_ns: i64,
}

#[derive(Debug)]
struct Entry {
    stream: KnownStream,
    /// How long it was when it was let go with everything read; `None`: not known.
    size: Option<u64>,
    number: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Known {
    streams: BTreeMap<StreamKey, Entry>,
    by_inode: HashMap<u64, Vec<StreamKey>>,
    /// By folder, in the order in which they became known.
    by_dir: HashMap<PathBuf, BTreeMap<u64, StreamKey>>,
    next_number: u64,
    pruned_at: Option<Duration>,
    started_at: Duration,
}

impl Known {
    pub(super) fn new(streams: Vec<KnownStream>, now: Duration) -> Self {
        let mut known = Self {
            started_at: now,
            ..Self::default()
        };
        let mut streams = streams;
        // By key, so that nothing depends on the order in which they were read.
        streams.sort_by_key(|stream| (stream.seen_ns, stream.key));
        for stream in streams {
            known.insert(stream, None);
        }
        known
    }

    /// Remembers one more; which is forgotten instead, if there are too many in its folder.
    pub(super) fn insert(&mut self, stream: KnownStream, size: Option<u64>) -> Option<StreamKey> {
        let key = stream.key;
        self.remove(key);
        let number = self.next_number;
        self.next_number += 1;
        self.by_inode
            .entry(stream.identity.inode)
            .or_default()
            .push(key);
        let dir = self.by_dir.entry(folder(&stream.path)).or_default();
        dir.insert(number, key);
        let oldest = (dir.len() > MOST_OF_A_FOLDER)
            .then(|| dir.first_key_value().map(|(_, key)| *key))
            .flatten();
        self.streams.insert(
            key,
            Entry {
                stream,
                size,
                number,
            },
        );
        if let Some(oldest) = oldest {
            self.remove(oldest);
        }
        oldest
    }

    pub(super) fn remove(&mut self, key: StreamKey) -> Option<KnownStream> {
        let entry = self.streams.remove(&key)?;
        let inode = entry.stream.identity.inode;
        if let Some(keys) = self.by_inode.get_mut(&inode) {
            keys.retain(|other| *other != key);
            if keys.is_empty() {
                self.by_inode.remove(&inode);
            }
        }
        let dir = folder(&entry.stream.path);
        if let Some(keys) = self.by_dir.get_mut(&dir) {
            keys.remove(&entry.number);
            if keys.is_empty() {
                self.by_dir.remove(&dir);
            }
        }
        Some(entry.stream)
    }

    pub(super) fn contains(&self, key: StreamKey) -> bool {
        self.streams.contains_key(&key)
    }

    /// The last life that is known of a stream.
    pub(super) fn last_life(&self, id: u64) -> Option<StreamKey> {
        last_life(&self.streams, id)
    }

    /// Those whose inode number this is.
    pub(super) fn of_inode(&self, inode: u64) -> impl Iterator<Item = &KnownStream> {
        let keys = self.by_inode.get(&inode).into_iter().flatten();
        keys.filter_map(|key| Some(&self.streams.get(key)?.stream))
    }

    /// Those last seen in a folder, in the order in which they became known.
    pub(super) fn of_dir(&self, dir: &Path) -> impl Iterator<Item = &KnownStream> {
        let keys = self.by_dir.get(dir).into_iter().flat_map(BTreeMap::values);
        keys.filter_map(|key| Some(&self.streams.get(key)?.stream))
    }

    /// The stream that was last seen at a path.
    pub(super) fn last_at(&self, path: &Path) -> Option<&KnownStream> {
        self.of_dir(path.parent()?)
            .filter(|stream| stream.path == path)
            .max_by_key(|stream| {
                let is_last = stream.successor.is_none();
                (is_last, stream.modified_ns, stream.key.generation)
            })
    }

    /// Whether a stream's file is as it was when everything in it had been read. It is seen thereby.
    pub(super) fn is_unchanged(&mut self, key: StreamKey, stat: &Stat, wall_ns: i64) -> bool {
        let Some(entry) = self.streams.get_mut(&key) else {
            return false;
        };
        let same = entry.size == Some(stat.size) && entry.stream.modified_ns == stat.modified_ns;
        if same {
            entry.stream.seen_ns = wall_ns;
        }
        same
    }

    /// A file with this inode number is still where it was.
    pub(super) fn touch(&mut self, inode: u64, wall_ns: i64) {
        for key in self.by_inode.get(&inode).into_iter().flatten() {
            if let Some(entry) = self.streams.get_mut(key) {
                entry.stream.seen_ns = wall_ns;
            }
        }
    }

    /// Forgets what was not seen for long; which.
    pub(super) fn prune(&mut self, now: Duration, wall_ns: i64) -> Vec<StreamKey> {
        let since = self.pruned_at.unwrap_or(self.started_at);
        if now < since + GRACE {
            return Vec::new();
        }
        self.pruned_at = Some(now);
        let mut old: Vec<StreamKey> = self
            .streams
            .values()
            .filter(|entry| wall_ns.saturating_sub(entry.stream.seen_ns) > FORGOTTEN_AFTER_NS)
            .map(|entry| entry.stream.key)
            .collect();
        old.sort_unstable();
        for key in &old {
            self.remove(*key);
        }
        old
    }
}

/// The last life of a stream in a table.
pub(super) fn last_life<T>(table: &BTreeMap<StreamKey, T>, id: u64) -> Option<StreamKey> {
    let life = |generation| StreamKey { id, generation };
    let lives = table.range(life(0)..=life(u16::MAX));
    lives.map(|(key, _)| *key).next_back()
}

fn folder(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_path_buf()
}
