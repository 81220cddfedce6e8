//! One file of the file output: how it is opened, written in transactions, synced, and what is done when someone
//! else had his hands on it.
//! Place: within **ship::file**; a lock around each slot makes the order of its transactions that of its bytes.
//! Invariants:
//! - before a file's first byte, the journal durably knows the file and its length (a **mark**); the mark is never
//!   older than ten minutes when a byte is written;
//! - before each write, its transaction is appended, or, while the journal cannot be written, a hidden file
//!   `.NAME.unnoted` stands beside the file, durably: then the file is not cut at the next start. It stands there, too,
//!   while a sync has failed;
//! - `length` is the end of whole records; what a failed write left behind it is cut before the next one;
//! - nothing is marked synced that was not.

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use ringpilot_shared::host::{Disk, OwnFile, Stat};

use super::paths::{self, Pattern};
use super::rotate::{Rotate, shift};
use crate::checkpoint::durable::{sync_names, sync_way_to};
use crate::checkpoint::{Entry, FileMark, FlowKey, Journal, SavedFlow, SavedWrite};

/// A mark is renewed when it is older. The checkpoint does not trust one much older than this.
const RENEW_NS: u64 = 10 * 60 * 1_000_000_000;
/// Bytes that are written again at a time after a sync failed.
const AGAIN_BYTES: usize = 256 << 10;

/// Folders are few, but for those named by a date.
const MOST_WAYS: usize = 4096;

/// What all files of one output share.
pub(super) struct Common {
    pub output: Arc<str>,
    pub pattern: Pattern,
    pub mode: u32,
    pub rotate: Option<Rotate>,
    pub disk: Arc<dyn Disk>,
    pub journal: Arc<dyn Journal>,
    /// Folders that survive a power loss, as far as they are remembered.
    pub ways: Mutex<HashSet<PathBuf>>,
    pub wall_ns: Arc<dyn Fn() -> i64 + Send + Sync>,
}

impl Common {
    pub(super) fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn OwnFile>> {
        let beneath = &self.pattern.beneath;
        let mode = create.then_some(self.mode);
        match self.disk.open(beneath, path, mode) {
            Err(error) if create && error.kind() == io::ErrorKind::NotFound => {
                self.disk.make_dir(folder(path))?;
                self.disk.open(beneath, path, mode)
            }
            other => other,
        }
    }
}

/// The folder of a file.
pub(super) fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// What went wrong with a file, and what to do, for the operator.
pub(super) fn cause(path: &Path, what: &str, error: &io::Error) -> String {
    use io::ErrorKind::{
        InvalidInput, NotADirectory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem,
        StorageFull,
    };
    let cure = match error.kind() {
        StorageFull | QuotaExceeded => "free space there; nothing is lost meanwhile",
        PermissionDenied | ReadOnlyFilesystem => "let the daemon write there",
        InvalidInput | NotADirectory => {
            "remove what stands in its way: a link, or what is no regular file"
        }
        _ => "mend that disk, or write elsewhere",
    };
    format!("`{}` cannot be {what}: {error}; do: {cure}", path.display())
}

/// A file by its path, open or not.
#[derive(Debug)]
pub(super) struct Slot {
    pub path: PathBuf,
    pub open: Option<OpenFile>,
    /// What the checkpoint durably knows of the file at this path.
    pub mark: Option<FileMark>,
    /// Whether the marked file's name survives a power loss, as far as this run knows.
    named: bool,
}

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub handle: Arc<dyn OwnFile>,
    inode: u64,
    birth_ns: Option<i64>,
    /// The end of whole records.
    pub length: u64,
    /// How much of it is synced and noted so.
    synced: u64,
    /// Its name may not survive a power loss yet.
    new: bool,
    /// When its last durable mark was made.
    marked_ns: Option<i64>,
    /// The hidden file stands beside it.
    unnoted: bool,
    /// Its last byte is no line end: the next record would be glued to it.
    half_line: bool,
    /// A failed write may have left bytes behind `length`.
    cut_due: bool,
    /// A sync failed: what lies behind `synced` may be on no disk, though it can be read.
    forgotten: bool,
    /// Counts what others did to the file.
    epoch: u64,
}

impl OpenFile {
    /// Whether there is anything to sync or to note.
    pub(super) fn is_dirty(&self) -> bool {
        self.synced != self.length || self.new || self.unnoted || self.forgotten
    }

    pub(super) fn is_unnoted(&self) -> bool {
        self.unnoted
    }

    fn to_sync(&self) -> SyncDue {
        SyncDue {
            handle: Arc::clone(&self.handle),
            new: self.new,
            epoch: self.epoch,
            length: self.length,
        }
    }

    fn is(&self, stat: &Stat) -> bool {
        self.inode == stat.inode && self.birth_ns == stat.birth_ns
    }

    /// Writes what a failed sync may have lost once more, so that the next sync has it to do.
    fn write_again(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; AGAIN_BYTES];
        let mut at = self.synced;
        while at < self.length {
            let left = usize::try_from(self.length - at).unwrap_or(usize::MAX);
            let want = left.min(AGAIN_BYTES);
            let got = self.handle.read_at(&mut buffer[..want], at)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.handle.write_at(&[IoSlice::new(&buffer[..got])], at)?;
            at += got as u64;
        }
        self.forgotten = false;
        Ok(())
    }

    fn ends_in_half_a_line(&self) -> io::Result<bool> {
        if self.length == 0 {
            return Ok(false);
        }
        let mut last = [0];
        let got = self.handle.read_at(&mut last, self.length - 1)?;
        Ok(got == 1 && last[0] != b'\n')
    }
}

/// What is to be synced, taken while the slot was locked, for a sync without the lock.
pub(super) struct SyncDue {
    pub handle: Arc<dyn OwnFile>,
    pub new: bool,
    epoch: u64,
    length: u64,
}

impl Slot {
    pub(super) fn new(path: PathBuf, mark: Option<FileMark>) -> Self {
        Self {
            path,
            open: None,
            mark,
            named: false,
        }
    }

    /// Writes records behind all others, with the places of their flows. `Err` says why not, in the operator's words;
    /// then nothing of them counts.
    pub(super) fn write(
        &mut self,
        common: &Common,
        parts: &mut Vec<IoSlice<'_>>,
        flows: &[(FlowKey, SavedFlow)],
    ) -> Result<(), String> {
        let mut bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        self.ready(common)?;
        if let Some(rotate) = &common.rotate
            && let Some(open) = &self.open
            && open.length > 0
            && open.length + bytes > rotate.size
        {
            self.rotate(common, rotate)?;
            self.ready(common)?;
        }
        self.ensure_mark(common)?;
        let path = &self.path;
        let Some(open) = &mut self.open else {
            return Err(cause(path, "opened", &io::ErrorKind::NotFound.into()));
        };
        if open.half_line {
            parts.insert(0, IoSlice::new(b"\n"));
            bytes += 1;
        }
        let note = |from, length, flows: &[(FlowKey, SavedFlow)]| {
            Entry::Write(SavedWrite {
                output: Arc::clone(&common.output),
                path: path.clone(),
                inode: open.inode,
                birth_ns: open.birth_ns,
                from,
                length,
                flows: flows.to_vec(),
            })
        };
        let (from, length) = (open.length, open.length + bytes);
        let noted = common.journal.append(&[note(from, length, flows)]);
        // That it was not written after all: else a later record that reaches this length would stand for it.
        let undo = || drop(common.journal.append(&[note(from, from, &[])]));
        if noted.is_err() && !open.unnoted {
            if let Err(error) = make_unnoted(common, path) {
                undo();
                return Err(cause(path, "written without the checkpoint", &error));
            }
            open.unnoted = true;
        }
        match open.handle.write_at(parts, from) {
            Ok(()) => {
                open.length = length;
                open.half_line = false;
                Ok(())
            }
            Err(error) => {
                undo();
                open.cut_due = open.handle.set_len(from).is_err();
                Err(cause(path, "written", &error))
            }
        }
    }

    /// Opens the file if it is not, and makes it fit to be written: `length` is its length.
    fn ready(&mut self, common: &Common) -> Result<(), String> {
        if let Some(open) = &self.open {
            let stat = open.handle.stat();
            if stat.is_ok_and(|stat| stat.links == 0) {
                // Someone deleted it, and what is in it. It is complete, whoever still has it open.
                drop(self.sync(common));
                self.open = None;
            }
        }
        if self.open.is_none() {
            let open = self.open_file(common);
            self.open = Some(open.map_err(|error| cause(&self.path, "opened", &error))?);
        }
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let mut mend = || {
            if open.cut_due {
                open.handle.set_len(open.length)?;
                open.cut_due = false;
            }
            let size = open.handle.stat()?.size;
            if size != open.length {
                // Someone emptied it, or wrote to it: what is there is his.
                open.epoch += 1;
                open.length = size;
                open.synced = open.synced.min(size);
                open.marked_ns = None;
                open.half_line = open.ends_in_half_a_line()?;
            }
            io::Result::Ok(())
        };
        mend().map_err(|error| cause(&self.path, "written", &error))?;
        if self.open.as_ref().is_some_and(|open| open.forgotten) {
            // Nothing is added to what may be lost.
            let synced = self.sync(common);
            synced.map_err(|error| cause(&self.path, "made durable", &error))?;
        }
        Ok(())
    }

    fn open_file(&mut self, common: &Common) -> io::Result<OpenFile> {
        let handle = common.open(&self.path, true)?;
        let stat = handle.stat()?;
        let known = self.mark.take().filter(|mark| {
            (mark.inode, mark.birth_ns, mark.length) == (stat.inode, stat.birth_ns, stat.size)
        });
        let mut open = OpenFile {
            handle,
            inode: stat.inode,
            birth_ns: stat.birth_ns,
            length: stat.size,
            synced: stat.size,
            // Also one that was there already: a former run may have been killed before it synced the name.
            new: !(known.is_some() && self.named),
            marked_ns: known.map(|mark| mark.at_ns),
            unnoted: common.open(&paths::unnoted(&self.path), false).is_ok(),
            half_line: false,
            cut_due: false,
            forgotten: false,
            epoch: 0,
        };
        open.half_line = open.ends_in_half_a_line()?;
        Ok(open)
    }

    /// Makes the journal durably know this file at this length, if it does not or has not for long.
    fn ensure_mark(&mut self, common: &Common) -> Result<(), String> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let now_ns = (common.wall_ns)();
        if open
            .marked_ns
            .is_some_and(|at| at.abs_diff(now_ns) < RENEW_NS)
        {
            return Ok(());
        }
        if open.length > 0 {
            let sync = open.to_sync();
            sync_file(common, &self.path, &sync)
                .map_err(|error| cause(&self.path, "made durable", &error))?;
            open.new = false;
            open.synced = open.length;
        }
        let noted = common
            .journal
            .append(&mark(common, &self.path, open, now_ns))
            .and_then(|()| common.journal.sync());
        if noted.is_err() && !open.unnoted {
            make_unnoted(common, &self.path)
                .map_err(|error| cause(&self.path, "written without the checkpoint", &error))?;
            open.unnoted = true;
        }
        open.marked_ns = Some(now_ns);
        Ok(())
    }

    /// What a sync has to do now; `None` if nothing.
    pub(super) fn begin_sync(&mut self) -> io::Result<Option<SyncDue>> {
        let Some(open) = self.open.as_mut().filter(|open| open.is_dirty()) else {
            return Ok(None);
        };
        if open.forgotten {
            open.write_again()?;
        }
        Ok(Some(open.to_sync()))
    }

    /// Notes what a sync has done.
    pub(super) fn end_sync(&mut self, common: &Common, sync: &SyncDue, result: &io::Result<()>) {
        let Some(open) = &mut self.open else {
            return;
        };
        if !Arc::ptr_eq(&open.handle, &sync.handle) || open.epoch != sync.epoch {
            return;
        }
        if result.is_err() {
            open.forgotten = true;
            open.unnoted = open.unnoted || make_unnoted(common, &self.path).is_ok();
            return;
        }
        open.new = false;
        if open.synced < sync.length || open.unnoted {
            let now_ns = (common.wall_ns)();
            let synced = Entry::Synced {
                output: Arc::clone(&common.output),
                path: self.path.clone(),
                inode: open.inode,
                birth_ns: open.birth_ns,
                length: sync.length,
                at_ns: now_ns,
            };
            open.synced = open.synced.max(sync.length);
            // One that the disk does not take is remembered by the journal.
            if common.journal.append(&[synced]).is_ok() {
                open.marked_ns = open.marked_ns.map(|_| now_ns);
            }
        }
    }

    /// Makes everything in the file durable, and notes so.
    pub(super) fn sync(&mut self, common: &Common) -> io::Result<()> {
        let Some(sync) = self.begin_sync()? else {
            return Ok(());
        };
        let result = sync_file(common, &self.path, &sync);
        self.end_sync(common, &sync, &result);
        result
    }

    /// The journal has everything again: the file may be cut by it.
    pub(super) fn noted_again(&mut self, common: &Common) {
        let again = match &mut self.open {
            None => true,
            Some(open) if open.unnoted => !open.forgotten && open.marked_ns.is_some(),
            Some(_) => false,
        };
        if again && common.disk.remove(&paths::unnoted(&self.path)).is_ok() {
            // One that a power loss brings back only means that records may come twice.
            drop(sync_names(&*common.disk, folder(&self.path)));
            if let Some(open) = &mut self.open {
                open.unnoted = false;
            }
        }
    }

    /// Closes the file if its path leads elsewhere: someone else rotates it.
    pub(super) fn follow_path(&mut self, common: &Common) {
        let Some(open) = &self.open else {
            return;
        };
        let there = common.open(&self.path, false).and_then(|file| file.stat());
        let moved = match there {
            Ok(stat) => !open.is(&stat),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if moved && !open.is_dirty() {
            self.open = None;
        }
    }

    /// Closes the file, everything in it durable; how it stood is remembered.
    pub(super) fn close(&mut self, common: &Common) -> io::Result<()> {
        self.sync(common)?;
        let Some(open) = self.open.take_if(|open| !open.is_dirty() && !open.cut_due) else {
            return Ok(());
        };
        self.mark = open.marked_ns.map(|at_ns| FileMark {
            output: Arc::clone(&common.output),
            path: self.path.clone(),
            inode: open.inode,
            birth_ns: open.birth_ns,
            length: open.length,
            at_ns,
        });
        self.named = true;
        Ok(())
    }

    /// Gives the file its first rotated name. Its successor is made by the next `ready`.
    fn rotate(&mut self, common: &Common, rotate: &Rotate) -> Result<(), String> {
        let synced = self.sync(common);
        synced.map_err(|error| cause(&self.path, "made durable", &error))?;
        if common.journal.sync().is_err()
            && let Some(open) = self.open.as_mut().filter(|open| !open.unnoted)
        {
            make_unnoted(common, &self.path)
                .map_err(|error| cause(&self.path, "rotated without the checkpoint", &error))?;
            open.unnoted = true;
        }
        shift(common, &self.path, rotate.keep)
            .map_err(|error| cause(&self.path, "rotated", &error))?;
        self.open = None;
        Ok(())
    }
}

/// A transaction of nothing, and that it is synced: the file is known at this length.
fn mark(common: &Common, path: &Path, open: &OpenFile, at_ns: i64) -> [Entry; 2] {
    let (inode, birth_ns, length) = (open.inode, open.birth_ns, open.length);
    [
        Entry::Write(SavedWrite {
            output: Arc::clone(&common.output),
            path: path.to_owned(),
            inode,
            birth_ns,
            from: length,
            length,
            flows: Vec::new(),
        }),
        Entry::Synced {
            output: Arc::clone(&common.output),
            path: path.to_owned(),
            inode,
            birth_ns,
            length,
            at_ns,
        },
    ]
}

/// Syncs a file's bytes, and its name if that is new.
pub(super) fn sync_file(common: &Common, path: &Path, sync: &SyncDue) -> io::Result<()> {
    sync.handle.sync()?;
    if sync.new {
        sync_names(&*common.disk, folder(path))?;
        let mut ways = common.ways.lock();
        if !ways.contains(folder(path)) {
            sync_way_to(&*common.disk, folder(path))?;
            if ways.len() >= MOST_WAYS {
                ways.clear();
            }
            ways.insert(folder(path).to_owned());
        }
    }
    Ok(())
}

/// Puts the hidden file beside `path`, durably.
fn make_unnoted(common: &Common, path: &Path) -> io::Result<()> {
    common.open(&paths::unnoted(path), true)?;
    sync_names(&*common.disk, folder(path))
}
