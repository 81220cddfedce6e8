//! A disk in memory for tests: it can be killed at any operation, lose power, fill up, turn read-only, and forget
//! what it was told to sync.
//! What a kill leaves: everything that was done, and any prefix of the write it fell into. What a power loss leaves:
//! what was synced; of each later write, in any combination, nothing, all, or a part from either end; of later
//! changes of names the first few, as file systems with a journal do.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use ringpilot_shared::host::{Disk, OwnFile, Space, Stat};

/// Numbers from a seed (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub u64);

impl Dice {
    pub(crate) fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below.max(1)
    }
    fn size(&mut self, up_to: usize) -> usize {
        usize::try_from(self.roll(up_to as u64 + 1)).expect("it fitted before")
    }
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Cut(usize),
}

#[derive(Debug, Clone, Default)]
struct Node {
    data: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
    birth_ns: i64,
    modified_ns: i64,
    home: PathBuf,
    mode: u32,
}

fn change(data: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, bytes) => {
            if data.len() < at + bytes.len() {
                data.resize(at + bytes.len(), 0);
            }
            data[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        Change::Cut(len) => data.resize(*len, 0),
    }
}

#[derive(Debug, Clone)]
enum Naming {
    /// What each name means afterwards.
    Files(Vec<(PathBuf, Option<u64>)>),
    Folder(PathBuf),
}

#[derive(Debug, Clone, Default)]
struct State {
    files: HashMap<u64, Node>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    /// Changes of names that are not durable, with their folder.
    unsynced_names: Vec<(PathBuf, Naming)>,
    dirs: BTreeSet<PathBuf>,
    durable_dirs: BTreeSet<PathBuf>,
    last_inode: u64,
    now_ns: i64,
    /// Life of the handles: older ones are dead.
    life: u64,
    operations: u64,
    crash_at: Option<u64>,
    dead: bool,
    dice: u64,
    room: Option<u64>,
    handles: usize,
    read_only: Vec<PathBuf>,
    forgetful: Vec<PathBuf>,
}

/// The disk; its clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct TestDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct TestFile {
    disk: TestDisk,
    inode: u64,
    life: u64,
}

const DEAD: &str = "killed";

impl State {
    /// One operation that changes something under `path`; whether it is the last.
    fn step(&mut self, path: &Path) -> io::Result<bool> {
        if self.dead {
            return Err(io::Error::other(DEAD));
        }
        self.now_ns += 1_000_000;
        let last = self.crash_at == Some(self.operations);
        self.operations += 1;
        self.dead |= last;
        if self.read_only.iter().any(|dir| path.starts_with(dir)) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(last)
    }

    /// The same for one that is done whole or not at all.
    fn whole_step(&mut self, path: &Path) -> io::Result<()> {
        match self.step(path)? {
            true => Err(io::Error::other(DEAD)),
            false => Ok(()),
        }
    }

    fn rename(&mut self, dir: &Path, changes: Vec<(PathBuf, Option<u64>)>) {
        for (name, inode) in &changes {
            match inode {
                Some(inode) => self.names.insert(name.clone(), *inode),
                None => self.names.remove(name),
            };
        }
        let naming = Naming::Files(changes);
        self.unsynced_names.push((dir.to_owned(), naming));
    }

    fn make_durable(&mut self, naming: Naming) {
        match naming {
            Naming::Folder(dir) => drop(self.durable_dirs.insert(dir)),
            Naming::Files(changes) => {
                for (name, inode) in changes {
                    match inode {
                        Some(inode) => self.durable_names.insert(name, inode),
                        None => self.durable_names.remove(&name),
                    };
                }
            }
        }
    }
}

fn dir_of(path: &Path) -> PathBuf {
    path.parent().expect("a file's path").to_owned()
}

impl TestDisk {
    pub(crate) fn arc(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }
    /// How many changes were made.
    pub(crate) fn operations(&self) -> u64 {
        self.0.lock().operations
    }
    /// Kills the process at the change with this number.
    pub(crate) fn crash_at(&self, operation: u64, dice: u64) {
        let mut state = self.0.lock();
        state.crash_at = Some(operation);
        state.dice = dice;
    }
    /// Whether that has happened.
    pub(crate) fn is_dead(&self) -> bool {
        self.0.lock().dead
    }
    fn copy(&self, change: impl FnOnce(&mut State)) -> Self {
        let mut state = self.0.lock().clone();
        state.life += 1;
        state.handles = 0;
        state.dead = false;
        state.crash_at = None;
        change(&mut state);
        Self(Arc::new(Mutex::new(state)))
    }
    /// What a new process finds.
    pub(crate) fn after_kill(&self) -> Self {
        self.copy(|_| {})
    }
    /// What the next boot finds.
    pub(crate) fn after_power_loss(&self, seed: u64) -> Self {
        let mut dice = Dice(seed);
        self.copy(|state| {
            let kept = dice.size(state.unsynced_names.len());
            let unsynced = std::mem::take(&mut state.unsynced_names);
            for (_, naming) in unsynced.into_iter().take(kept) {
                state.make_durable(naming);
            }
            let durable = &state.durable_dirs;
            let is_there = |dir: &Path| {
                let named = |dir: &Path| dir == Path::new("/") || durable.contains(dir);
                dir.ancestors().all(named)
            };
            state.dirs.retain(|dir| is_there(dir));
            state
                .durable_names
                .retain(|name, _| is_there(&dir_of(name)));
            state.durable_dirs = state.dirs.clone();
            state.names = state.durable_names.clone();
            let named: BTreeSet<u64> = state.names.values().copied().collect();
            state.files.retain(|inode, _| named.contains(inode));
            let mut inodes: Vec<u64> = named.into_iter().collect();
            inodes.sort_unstable();
            for inode in inodes {
                let node = state.files.get_mut(&inode).expect("it has a name");
                for unsynced in std::mem::take(&mut node.unsynced) {
                    let survived = match (&unsynced, dice.roll(4)) {
                        (_, 0) => continue,
                        (Change::Write(at, bytes), 1) => {
                            Change::Write(*at, bytes[..dice.size(bytes.len())].to_vec())
                        }
                        (Change::Write(at, bytes), 2) => {
                            let from = dice.size(bytes.len());
                            Change::Write(at + from, bytes[from..].to_vec())
                        }
                        _ => unsynced,
                    };
                    change(&mut node.durable, &survived);
                }
                node.data = node.durable.clone();
            }
        })
    }
    /// The bytes of a file as anyone sees them.
    pub(crate) fn bytes(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let state = self.0.lock();
        let inode = state.names.get(path.as_ref())?;
        Some(state.files[inode].data.clone())
    }
    /// Someone else writes a file: the same node, durable at once.
    pub(crate) fn put(&self, path: impl AsRef<Path>, bytes: &[u8]) {
        let mut state = self.0.lock();
        let (path, now_ns) = (path.as_ref().to_owned(), state.now_ns);
        state.last_inode += 1;
        let inode = state.names.get(&path).copied().unwrap_or(state.last_inode);
        state.names.insert(path.clone(), inode);
        state.durable_names.insert(path.clone(), inode);
        let node = state.files.entry(inode).or_insert_with(|| Node {
            birth_ns: now_ns,
            home: path,
            ..Node::default()
        });
        node.unsynced.clear();
        node.data = bytes.to_vec();
        node.durable = bytes.to_vec();
        node.modified_ns = now_ns;
    }
    /// Someone else moves or (without `to`) removes a file.
    pub(crate) fn take(&self, from: impl AsRef<Path>, to: Option<&Path>) {
        let mut state = self.0.lock();
        let inode = state.names.remove(from.as_ref()).expect("it is there");
        state.durable_names.remove(from.as_ref());
        if let Some(to) = to {
            state.names.insert(to.to_owned(), inode);
            state.durable_names.insert(to.to_owned(), inode);
        }
    }
    /// Every file's path.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.0.lock().names.keys().cloned().collect()
    }
    /// A file's permissions.
    pub(crate) fn mode(&self, path: &str) -> u32 {
        let state = self.0.lock();
        state.files[&state.names[Path::new(path)]].mode
    }
    /// So many bytes may still be written; any if `None`.
    pub(crate) fn set_room(&self, room: Option<u64>) {
        self.0.lock().room = room;
    }
    /// Nothing below `dir` can be changed.
    pub(crate) fn set_read_only(&self, dir: &str, read_only: bool) {
        let mut state = self.0.lock();
        state.read_only.retain(|d| d != Path::new(dir));
        if read_only {
            state.read_only.push(dir.into());
        }
    }
    /// Syncs below `dir` fail, and what they should have made durable will be lost with the power.
    pub(crate) fn set_forgetful(&self, dir: &str, forgetful: bool) {
        let mut state = self.0.lock();
        state.forgetful.retain(|d| d != Path::new(dir));
        if forgetful {
            state.forgetful.push(dir.into());
        }
    }
    /// How many files are open.
    pub(crate) fn handles(&self) -> usize {
        self.0.lock().handles
    }
    /// Lets time pass.
    pub(crate) fn pass(&self, seconds: i64) {
        self.0.lock().now_ns += seconds * 1_000_000_000;
    }
    /// The time.
    pub(crate) fn now_ns(&self) -> i64 {
        self.0.lock().now_ns
    }
}

impl Disk for TestDisk {
    fn open(
        &self,
        beneath: &Path,
        path: &Path,
        create: Option<u32>,
    ) -> io::Result<Arc<dyn OwnFile>> {
        assert!(
            path.starts_with(beneath),
            "{path:?} is not beneath {beneath:?}"
        );
        let mut state = self.0.lock();
        if state.dead {
            return Err(io::Error::other(DEAD));
        }
        let inode = match (state.names.get(path).copied(), create) {
            (Some(inode), _) => inode,
            (None, None) => return Err(io::ErrorKind::NotFound.into()),
            (None, Some(mode)) => {
                if !state.dirs.contains(&dir_of(path)) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                state.whole_step(path)?;
                state.last_inode += 1;
                let (inode, now_ns) = (state.last_inode, state.now_ns);
                let node = Node {
                    birth_ns: now_ns,
                    modified_ns: now_ns,
                    home: path.to_owned(),
                    mode,
                    ..Node::default()
                };
                state.files.insert(inode, node);
                state.rename(&dir_of(path), vec![(path.to_owned(), Some(inode))]);
                inode
            }
        };
        state.handles += 1;
        Ok(Arc::new(TestFile {
            disk: self.clone(),
            inode,
            life: state.life,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.whole_step(from)?;
        let inode = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        let changes = vec![(from.to_owned(), None), (to.to_owned(), Some(inode))];
        state.rename(&dir_of(to), changes);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.whole_step(path)?;
        let inode = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let freed = state.files[&inode].data.len() as u64;
        state.room = state.room.map(|room| room + freed);
        state.rename(&dir_of(path), vec![(path.to_owned(), None)]);
        Ok(())
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.whole_step(dir)?;
        let mut missing: Vec<&Path> = dir.ancestors().collect();
        missing.retain(|dir| !state.dirs.contains(*dir));
        for dir in missing.into_iter().rev() {
            state.dirs.insert(dir.to_owned());
            if let Some(above) = dir.parent() {
                let naming = Naming::Folder(dir.to_owned());
                state.unsynced_names.push((above.to_owned(), naming));
            }
        }
        Ok(())
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let state = self.0.lock();
        if state.dead {
            return Err(io::Error::other(DEAD));
        }
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let names = state.names.keys().filter(|name| name.parent() == Some(dir));
        Ok(names
            .filter_map(|name| Some(name.file_name()?.to_owned()))
            .collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.whole_step(dir)?;
        let all = std::mem::take(&mut state.unsynced_names);
        for (of, naming) in all {
            if of == dir {
                state.make_durable(naming);
            } else {
                state.unsynced_names.push((of, naming));
            }
        }
        Ok(())
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        let free = self.0.lock().room.unwrap_or(1 << 40);
        Ok(Space {
            free,
            total: 1 << 40,
        })
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        self.disk.0.lock().handles -= 1;
    }
}

impl TestFile {
    fn with<T>(&self, act: impl FnOnce(&mut State, u64) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.0.lock();
        if state.dead || state.life != self.life {
            return Err(io::Error::other(DEAD));
        }
        act(&mut state, self.inode)
    }
    fn change(&self, wanted: Change) -> io::Result<()> {
        self.with(|state, inode| {
            let home = state.files[&inode].home.clone();
            let last = state.step(&home)?;
            let length = state.files[&inode].data.len();
            let mut result = Ok(());
            let wanted = match wanted {
                Change::Write(at, mut bytes) => {
                    let grows = (at + bytes.len()).saturating_sub(length) as u64;
                    if let Some(room) = state.room {
                        let lacks = usize::try_from(grows.saturating_sub(room)).expect("small");
                        if lacks > 0 {
                            bytes.truncate(bytes.len() - lacks);
                            result = Err(io::ErrorKind::StorageFull.into());
                        }
                        state.room = Some(room - grows.min(room));
                    }
                    if last {
                        let mut dice = Dice(state.dice);
                        bytes.truncate(dice.size(bytes.len()));
                        result = Err(io::Error::other(DEAD));
                    }
                    Change::Write(at, bytes)
                }
                Change::Cut(_) if last => return Err(io::Error::other(DEAD)),
                Change::Cut(to) => {
                    let freed = length.saturating_sub(to) as u64;
                    state.room = state.room.map(|room| room + freed);
                    Change::Cut(to)
                }
            };
            let now_ns = state.now_ns;
            let node = state.files.get_mut(&inode).expect("a handle's file");
            node.modified_ns = now_ns;
            change(&mut node.data, &wanted);
            node.unsynced.push(wanted);
            result
        })
    }
}

impl OwnFile for TestFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|state, inode| {
            let data = &state.files[&inode].data;
            let from = usize::try_from(offset).expect("small").min(data.len());
            let n = buffer.len().min(data.len() - from);
            buffer[..n].copy_from_slice(&data[from..from + n]);
            Ok(n)
        })
    }

    fn write_at(&self, parts: &[io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        self.change(Change::Write(
            usize::try_from(offset).expect("small"),
            bytes,
        ))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Cut(usize::try_from(len).expect("small")))
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state, inode| {
            let home = state.files[&inode].home.clone();
            state.whole_step(&home)?;
            let forgetful = state.forgetful.iter().any(|dir| home.starts_with(dir));
            let node = state.files.get_mut(&inode).expect("a handle's file");
            for unsynced in std::mem::take(&mut node.unsynced) {
                if !forgetful {
                    change(&mut node.durable, &unsynced);
                }
            }
            match forgetful {
                true => Err(io::Error::other("Input/output error")),
                false => Ok(()),
            }
        })
    }

    fn stat(&self) -> io::Result<Stat> {
        self.with(|state, inode| {
            let node = &state.files[&inode];
            Ok(Stat {
                device: 1,
                inode,
                birth_ns: Some(node.birth_ns),
                size: node.data.len() as u64,
                disk_bytes: node.data.len() as u64,
                links: state.names.values().filter(|n| **n == inode).count() as u64,
                modified_ns: node.modified_ns,
                may_hang: false,
            })
        })
    }
}
