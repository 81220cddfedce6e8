//! The checkpoint as it is opened, appended to, and kept short.
//! Place: within **checkpoint**; the saver and the file output append, the start of the daemon opens.
//!
//! One segment `checkpoint-N.log` is appended to. When it has grown past its worth, and at each start, what is known
//! is written into `checkpoint.new`, synced, named `checkpoint-(N+1).log`, and the folder synced; then the older one
//! is removed. So at any moment there is one whole segment, and the highest counts.
//!
//! After any error nothing is known of what the disk has: from then on the checkpoint is **failing**. Entries are
//! remembered, `append` says so, and each `sync` tries to write everything anew into a segment of its own.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};
use ringpilot_shared::follow::StreamKey;
use ringpilot_shared::host::{Disk, OwnFile};

use super::durable::{sync_names, sync_way_to};
use super::format::{self, Found};
use super::live::Live;
use super::recover::{FileMark, Files, recover};
use super::{Entry, FlowKey, Journal, SavedFlow, SavedSource, SavedStream};
use crate::problem::{Problem, of_operator};

/// A segment is not written anew below this; tests want to see it often.
const COMPACT_BYTES: u64 = if cfg!(test) { 4 << 10 } else { 8 << 20 };
/// Nor before it has grown to this many times what is known.
const COMPACT_TIMES: u64 = 4;
/// Written at once.
const PIECE_BYTES: usize = 64 << 10;
/// Cursors are nobody else's business.
const MODE: u32 = 0o600;
const NEW: &str = "checkpoint.new";
/// Where a segment goes that was damaged, or is of a later release; one is kept.
const KEPT: &str = "checkpoint.kept";

/// The open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    node: String,
    inner: Mutex<Inner>,
    synced: Condvar,
}

#[derive(Debug)]
struct Inner {
    live: Live,
    /// The segment; `None` while there is none.
    file: Option<Arc<dyn OwnFile>>,
    number: u64,
    length: u64,
    /// It is not written anew before it is this long.
    compact_at: u64,
    /// Appends so far, and how many of them are durable.
    appended: u64,
    durable: u64,
    /// Something became durable since the last line that says so.
    mark_due: bool,
    syncing: bool,
    failing: Option<(io::ErrorKind, String)>,
    /// The folder itself survives a power loss.
    way_synced: bool,
    /// A segment whose rest may still tell someone something.
    keep_aside: Option<u64>,
    buffer: Vec<u8>,
}

/// What was found at the start.
#[derive(Debug)]
pub struct Opened {
    /// To append to.
    pub checkpoint: Checkpoint,
    /// What it said.
    pub loaded: Loaded,
    /// What is wrong with it, and what to do.
    pub problems: Vec<Problem>,
}

/// What the checkpoint said at the start. Where something was lost, less: the rest is read again.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Every stream.
    pub streams: HashMap<StreamKey, SavedStream>,
    /// Every source.
    pub sources: Vec<SavedSource>,
    /// Every flow; those of the file output as far as its files go.
    pub flows: HashMap<FlowKey, SavedFlow>,
    /// Every output, and when it was last there (nanoseconds since 1970).
    pub outputs: HashMap<Arc<str>, i64>,
    /// The file output's files, for `FileOutput::new`.
    pub files: Vec<FileMark>,
    /// In which boot the last writer ran.
    pub boot: Option<u128>,
    /// There was no checkpoint: this is the first start on this `data_dir`.
    pub fresh: bool,
    /// Its tail was cut as a crash does, and nothing else is wrong with it.
    pub torn_only: bool,
}

impl Checkpoint {
    /// Opens the checkpoint in `dir`, makes the file output's files agree with it, and writes it anew. Never fails:
    /// what cannot be read or written is told, and tried again at each sync. `boot` is this boot's id, `node` this
    /// node's name.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        node: &str,
        boot: u128,
        files: &mut dyn Files,
    ) -> Opened {
        let mut problems = Vec::new();
        let read = read_all(&*disk, dir, node, boot, &mut problems);
        let mut live = read.live;
        let before = live.boot;
        let ahead = recover(
            &mut live,
            before == Some(boot),
            !read.doubtful,
            files,
            &mut problems,
        );
        live.boot = Some(boot);
        let mut loaded = Loaded {
            streams: live.streams().map(|s| (s.key, s.clone())).collect(),
            sources: live.sources().cloned().collect(),
            flows: live
                .flows()
                .map(|(key, flow)| (key, flow.clone()))
                .collect(),
            outputs: live
                .outputs
                .iter()
                .map(|(name, since)| (Arc::clone(name), *since))
                .collect(),
            files: live.files(),
            boot: before,
            fresh: read.fresh,
            torn_only: read.torn && !read.doubtful,
        };
        loaded.flows.extend(ahead);
        let checkpoint = Self {
            disk,
            dir: dir.to_owned(),
            node: node.to_owned(),
            inner: Mutex::new(Inner {
                live,
                file: None,
                number: read.highest,
                length: 0,
                compact_at: 0,
                appended: 1,
                durable: 0,
                mark_due: false,
                syncing: false,
                failing: None,
                way_synced: false,
                keep_aside: read.doubtful.then_some(read.highest),
                buffer: Vec::new(),
            }),
            synced: Condvar::new(),
        };
        let mut inner = checkpoint.inner.lock();
        if let Err(error) = checkpoint.begin_segment(&mut inner) {
            inner.fail(&error);
            problems.extend(checkpoint.problem(&inner));
        }
        drop(inner);
        Opened {
            checkpoint,
            loaded,
            problems,
        }
    }

    /// What is wrong while it cannot be written; `None` when all is well.
    pub fn failing(&self) -> Option<Problem> {
        self.problem(&self.inner.lock())
    }

    /// The file output's files as they are known now, for a `FileOutput` that takes over from another.
    pub fn files(&self) -> Vec<FileMark> {
        self.inner.lock().live.files()
    }

    /// Bytes of the segment that is appended to.
    pub fn bytes(&self) -> u64 {
        self.inner.lock().length
    }

    fn problem(&self, inner: &Inner) -> Option<Problem> {
        let (kind, cause) = inner.failing.as_ref()?;
        let cure = match kind {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free space where `data_dir` is; nothing is lost while the daemon runs on"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "let the daemon write `data_dir`; until then a restart reads logs again"
            }
            _ => "mend the disk, or move `data_dir`; until then a restart reads logs again",
        };
        Some(of_operator(
            "data_dir",
            self.dir.display().to_string(),
            format!("positions cannot be saved: {cause}"),
            cure,
        ))
    }

    fn segment(&self, number: u64) -> PathBuf {
        self.dir.join(format!("checkpoint-{number}.log"))
    }

    /// Writes everything that is known into a segment of its own, and appends to that from now on.
    fn begin_segment(&self, inner: &mut Inner) -> io::Result<()> {
        let new = self.dir.join(NEW);
        let (file, length) = match self.write_new(inner, &new) {
            Ok(written) => written,
            Err(error) => {
                // So that a full disk has its space back.
                drop(self.disk.remove(&new));
                return Err(error);
            }
        };
        // A number is used once, also where it stays unknown whether it was taken.
        inner.number += 1;
        let path = self.segment(inner.number);
        self.disk.rename(&new, &path)?;
        sync_names(&*self.disk, &self.dir)?;
        if !inner.way_synced {
            sync_way_to(&*self.disk, &self.dir)?;
            inner.way_synced = true;
        }
        inner.file = Some(file);
        inner.length = length;
        inner.compact_at = COMPACT_BYTES.max(COMPACT_TIMES * length);
        inner.durable = inner.appended;
        inner.mark_due = false;
        inner.failing = None;
        // Older ones say nothing that this one does not. One that cannot be removed is ignored, and tried again.
        for number in segments(&self.disk.names(&self.dir).unwrap_or_default()) {
            let (path, kept) = (self.segment(number), self.dir.join(KEPT));
            if number < inner.number
                && (inner.keep_aside != Some(number) || self.disk.rename(&path, &kept).is_err())
            {
                drop(self.disk.remove(&path));
            }
        }
        Ok(())
    }

    fn write_new(&self, inner: &mut Inner, new: &Path) -> io::Result<(Arc<dyn OwnFile>, u64)> {
        inner.live.settle();
        let file = match self.disk.open(&self.dir, new, Some(MODE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.disk.make_dir(&self.dir)?;
                self.disk.open(&self.dir, new, Some(MODE))?
            }
            other => other?,
        };
        file.set_len(0)?;
        let mut length = 0;
        let mut buffer = std::mem::take(&mut inner.buffer);
        buffer.clear();
        let mut flush = |buffer: &mut Vec<u8>| -> io::Result<()> {
            file.write_at(&[io::IoSlice::new(buffer)], length)?;
            length += buffer.len() as u64;
            buffer.clear();
            Ok(())
        };
        format::write_header(&mut buffer, &self.node)?;
        inner.live.write_out(|entry| {
            format::write_entry(&mut buffer, entry)?;
            if buffer.len() >= PIECE_BYTES {
                flush(&mut buffer)?;
            }
            io::Result::Ok(())
        })?;
        format::write_whole(&mut buffer)?;
        flush(&mut buffer)?;
        file.sync()?;
        inner.buffer = buffer;
        Ok((file, length))
    }
}

impl Inner {
    fn fail(&mut self, error: &io::Error) {
        self.failing = Some((error.kind(), error.to_string()));
    }

    fn error(&self) -> Option<io::Error> {
        let (kind, cause) = self.failing.as_ref()?;
        Some(io::Error::new(*kind, cause.clone()))
    }

    fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        if std::mem::take(&mut self.mark_due) {
            format::write_durable(&mut buffer)?;
        }
        for entry in entries {
            format::write_entry(&mut buffer, entry)?;
        }
        let Some(file) = &self.file else {
            return Err(io::ErrorKind::NotFound.into());
        };
        file.write_at(&[io::IoSlice::new(&buffer)], self.length)?;
        self.length += buffer.len() as u64;
        buffer.shrink_to(PIECE_BYTES);
        self.buffer = buffer;
        Ok(())
    }
}

impl Journal for Checkpoint {
    fn append(&self, entries: &[Entry]) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut inner = self.inner.lock();
        if inner.failing.is_none()
            && let Err(error) = inner.append(entries)
        {
            inner.fail(&error);
        }
        inner.appended += 1;
        for entry in entries {
            inner.live.apply(entry.clone());
        }
        inner.error().map_or(Ok(()), Err)
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let wanted = inner.appended;
        loop {
            if inner.failing.is_some() {
                return self
                    .begin_segment(&mut inner)
                    .inspect_err(|error| inner.fail(error));
            }
            if inner.durable >= wanted {
                return Ok(());
            }
            if inner.syncing {
                self.synced.wait(&mut inner);
                continue;
            }
            let Some(file) = inner.file.clone() else {
                return Err(io::ErrorKind::NotFound.into());
            };
            let reached = inner.appended;
            inner.syncing = true;
            let result = MutexGuard::unlocked(&mut inner, || file.sync());
            inner.syncing = false;
            self.synced.notify_all();
            match result {
                Ok(()) => {
                    inner.durable = inner.durable.max(reached);
                    inner.mark_due = true;
                    inner.live.settle();
                    self.compact_when_due(&mut inner);
                }
                // One that was replaced meanwhile is of no interest any more.
                Err(error) if inner.durable < reached => inner.fail(&error),
                Err(_) => {}
            }
        }
    }
}

impl Checkpoint {
    fn compact_when_due(&self, inner: &mut Inner) {
        if inner.length < inner.compact_at || inner.failing.is_some() {
            return;
        }
        let number = inner.number;
        if let Err(error) = self.begin_segment(inner) {
            if inner.number == number {
                // The segment is as good as before: later, when there may be room.
                inner.compact_at = inner.length + inner.length / 4;
            } else {
                inner.fail(&error);
            }
        }
    }
}

/// The numbers of the segments among these names, ascending.
fn segments(names: &[std::ffi::OsString]) -> Vec<u64> {
    let number = |name: &std::ffi::OsString| {
        let digits = name
            .to_str()?
            .strip_prefix("checkpoint-")?
            .strip_suffix(".log")?;
        digits
            .parse::<u64>()
            .ok()
            .filter(|_| !digits.starts_with('+'))
    };
    let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// What the segments say.
struct ReadAll {
    live: Live,
    highest: u64,
    fresh: bool,
    torn: bool,
    /// Something is missing, or was written by rules that are not known here.
    doubtful: bool,
}

fn read_all(
    disk: &dyn Disk,
    dir: &Path,
    node: &str,
    boot: u128,
    problems: &mut Vec<Problem>,
) -> ReadAll {
    let mut all = ReadAll {
        live: Live::default(),
        highest: 0,
        fresh: false,
        torn: false,
        doubtful: false,
    };
    let told = |path: &Path, (reason, cure): (String, &str)| {
        of_operator("data_dir", path.display().to_string(), reason, cure)
    };
    let numbers = match disk.names(dir) {
        Ok(names) => segments(&names),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let reason = format!("saved positions cannot be read: {error}");
            let cure = "let the daemon read and write `data_dir`; until then logs are read again from their start";
            problems.push(told(dir, (reason, cure)));
            all.doubtful = true;
            Vec::new()
        }
    };
    let Some(highest) = numbers.last().copied() else {
        all.fresh = !all.doubtful;
        return all;
    };
    all.highest = highest;
    let mut read_one = |number: u64, live: &mut Live| {
        let path = dir.join(format!("checkpoint-{number}.log"));
        let found = match disk.open(dir, &path, None) {
            Ok(file) => format::read(&*file, live, boot),
            Err(error) => Found {
                unread: Some((0, error)),
                damaged: true,
                ..Found::default()
            },
        };
        let problem = explain(&found, node).map(|said| told(&path, said));
        problems.extend(problem.filter(|problem| !problems.contains(problem)));
        found
    };
    let found = read_one(highest, &mut all.live);
    all.torn = found.torn;
    all.doubtful = found.damaged || found.newer().is_some();
    if found.damaged && numbers.len() > 1 {
        // A crash left an older one behind: together they say most.
        all.live = Live::default();
        for number in numbers {
            read_one(number, &mut all.live);
        }
    }
    all
}

/// What is wrong with a segment, and what to do.
fn explain(found: &Found, node: &str) -> Option<(String, &'static str)> {
    if let Some(newer) = found.newer() {
        return Some((
            format!(
                "it was written by a later release (format {newer}; this one knows {})",
                format::FORMAT
            ),
            "go back to that release if logs come twice; its file is kept as checkpoint.kept",
        ));
    }
    if let Some((offset, error)) = &found.unread {
        return Some((
            format!("saved positions cannot be read past byte {offset}: {error}"),
            "mend the disk; what is missing is read again from the logs",
        ));
    }
    if found.damaged {
        let how = match (&found.header, found.bad) {
            (None, _) => "its first line is missing".to_owned(),
            (_, 0) => "its end is missing".to_owned(),
            (_, 1) => "one of its lines is bad".to_owned(),
            (_, bad) => format!("{bad} of its lines are bad"),
        };
        return Some((
            format!("saved positions are damaged: {how}"),
            "nothing: what is good is used, the rest is read again and may come twice; check the disk if it happens again",
        ));
    }
    let written_by = &found.header.as_ref()?.node;
    (written_by != node).then(|| {
        (
            format!("saved positions are those of node `{written_by}`"),
            "nothing if the node was renamed; if its disk was copied, empty `data_dir`",
        )
    })
}
