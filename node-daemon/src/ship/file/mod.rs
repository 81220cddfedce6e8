//! Write records to files, each exactly once: every write is one transaction with the cursors of its flows.
//! Place: batch -> **ship::file** -> ack. Its journal is the checkpoint, which also makes the files agree with
//! it at the start (`OwnFiles`).
//! Invariants: records are written as they were encoded, whole and in order; what a write was told to have done is
//! in the file; a file is renamed or compressed only when it and its last transaction are synced. A batch is never
//! divided: a file is longer than `rotate_size` only where one batch is.

#[cfg(test)]
mod crash_tests;
mod paths;
mod recover;
mod rotate;
mod slot;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use ringpilot_shared::host::Disk;
use serde::Deserialize;

pub use paths::collisions;
pub use recover::OwnFiles;

use paths::Pattern;
use rotate::{Compressor, Rotate};
use slot::{Common, Slot, cause, sync_file};

use super::{Fate, Guarantee, Load, Output, Verdict};
use crate::batch::{Codec, Day};
use crate::checkpoint::{Entry, FileMark, Journal};
use crate::problem::{Problem, of_operator};
use crate::settings::{OutputSettings, Permissions, Size, from_value};

/// Files open at a time; the one not written for longest is synced and closed.
const OPEN_FILES: usize = 256;
/// Files known at a time: enough for a thousand targets on two days.
const KNOWN_FILES: usize = 2048;
/// Quiet open files whose path is looked at in each sync, to let go of what someone else renamed or deleted.
const LOOKED_AT: usize = 8;
/// Rotated files kept if nothing is said, as log-pilot does.
const KEEP: u32 = 7;

/// The output's own keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    path: String,
    #[serde(default)]
    codec: CodecWritten,
    rotate_size: Option<Size>,
    rotate_keep: Option<u32>,
    permissions: Option<Permissions>,
    compress: Option<bool>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CodecWritten {
    #[default]
    Json,
    Raw,
}

/// The file output.
#[derive(Debug)]
pub struct FileOutput {
    inner: Arc<Inner>,
}

struct Inner {
    common: Common,
    codec: CodecWritten,
    table: Mutex<Table>,
    /// Files that a former run may have left with the sign that they are not to be cut.
    signed: Mutex<Vec<PathBuf>>,
    compressor: Compressor,
    /// A thread compresses.
    compressing: AtomicBool,
    /// The output is gone.
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct Table {
    slots: BTreeMap<PathBuf, Place>,
    /// Counts uses.
    uses: u64,
    open: usize,
    /// Where looking at quiet files goes on.
    looked: PathBuf,
}

/// A slot with its path.
type OpenSlot = (PathBuf, Arc<Mutex<Slot>>);

#[derive(Debug)]
struct Place {
    slot: Arc<Mutex<Slot>>,
    used: u64,
    open: bool,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileOutput")
            .field("output", &self.common.output)
            .field("pattern", &self.common.pattern)
            .field("rotate", &self.common.rotate)
            .finish_non_exhaustive()
    }
}

impl FileOutput {
    /// An output as set. `known` is what the checkpoint knows of its files (`Loaded::files`; those of other outputs
    /// are left alone), `wall_ns` the time in nanoseconds since 1970.
    ///
    /// # Errors
    /// Everything that is wrong with its settings.
    pub fn new(
        settings: &OutputSettings,
        disk: Arc<dyn Disk>,
        journal: Arc<dyn Journal>,
        known: &[FileMark],
        wall_ns: Arc<dyn Fn() -> i64 + Send + Sync>,
    ) -> Result<Self, Vec<Problem>> {
        let at = settings.path();
        let written: Written = from_value(&settings.settings, &at).map_err(|one| vec![one])?;
        let (pattern, rotate) = judge(&written, &at)?;
        let output: Arc<str> = settings.name.as_str().into();
        let (mut table, compressor) = (Table::default(), Compressor::default());
        for mark in known.iter().filter(|mark| mark.output == output) {
            table.add(&mark.path, Some(mark.clone()));
            if rotate.is_some_and(|rotate| rotate.compress) {
                // What a former run left.
                compressor.ask(&mark.path);
            }
        }
        Ok(Self {
            inner: Arc::new(Inner {
                common: Common {
                    output,
                    pattern,
                    mode: written.permissions.map_or(0o600, |mode| mode.0),
                    rotate,
                    disk,
                    journal,
                    ways: Mutex::default(),
                    wall_ns,
                },
                codec: written.codec,
                signed: Mutex::new(table.slots.keys().cloned().collect()),
                table: Mutex::new(table),
                compressor,
                compressing: AtomicBool::new(false),
                ended: AtomicBool::new(false),
            }),
        })
    }

    /// How its batches are to be encoded.
    pub fn codec(&self) -> Codec {
        match self.inner.codec {
            CodecWritten::Json => Codec::Json,
            CodecWritten::Raw => Codec::Raw,
        }
    }

    /// Writes a load. Blocking.
    pub fn write(&self, load: &Load) -> Verdict {
        self.inner.write(load)
    }

    /// Does one piece of what need not be done at once (compressing rotated files); whether there is more. Blocking.
    /// In a tokio runtime `attempt` sees to it.
    pub fn tidy(&self) -> bool {
        self.inner.tidy()
    }
}

impl Drop for FileOutput {
    fn drop(&mut self) {
        self.inner.ended.store(true, Ordering::Relaxed);
    }
}

/// Judges what needs more than a type.
fn judge(written: &Written, at: &str) -> Result<(Pattern, Option<Rotate>), Vec<Problem>> {
    let mut problems = Vec::new();
    let pattern = Pattern::parse(&written.path)
        .map_err(|(reason, cure)| {
            problems.push(of_operator(
                format!("{at}.path"),
                &*written.path,
                reason,
                cure,
            ));
        })
        .ok();
    let rotate = match (written.rotate_size, written.rotate_keep, written.compress) {
        (None, None, None | Some(false)) | (Some(Size(0)), _, _) => None,
        (None, keep, _) => {
            let key = if keep.is_some() {
                "rotate_keep"
            } else {
                "compress"
            };
            problems.push(of_operator(
                format!("{at}.{key}"),
                keep.map_or("true".to_owned(), |keep| keep.to_string()),
                "no file is ever rotated here",
                "add `rotate_size: 100MiB`, or leave this out",
            ));
            None
        }
        (_, Some(0), _) => {
            problems.push(of_operator(
                format!("{at}.rotate_keep"),
                "0",
                "records would be deleted when a file is rotated",
                "write at least 1",
            ));
            None
        }
        (Some(size), keep, compress) => Some(Rotate {
            size: size.0,
            keep: keep.unwrap_or(KEEP),
            compress: compress.unwrap_or(false),
        }),
    };
    if rotate.is_some() && pattern.as_ref().is_some_and(Pattern::rotates_into_another) {
        problems.push(of_operator(
            format!("{at}.path"),
            &*written.path,
            "a rotated file of one target could have the name of another target's file",
            "end the file name in an extension, such as `{target}.ndjson`",
        ));
    }
    match pattern {
        Some(pattern) if problems.is_empty() => Ok((pattern, rotate)),
        _ => Err(problems),
    }
}

impl Table {
    fn add(&mut self, path: &Path, mark: Option<FileMark>) -> &mut Place {
        self.slots.entry(path.to_owned()).or_insert_with(|| Place {
            slot: Arc::new(Mutex::new(Slot::new(path.to_owned(), mark))),
            used: 0,
            open: false,
        })
    }

    /// The slot to close so that another may be opened: the one not used for longest.
    fn one_to_close(&mut self) -> Option<Arc<Mutex<Slot>>> {
        if self.open <= OPEN_FILES {
            return None;
        }
        let open = self.slots.values_mut().filter(|place| place.open);
        let oldest = open.min_by_key(|place| place.used)?;
        oldest.open = false;
        self.open -= 1;
        Some(Arc::clone(&oldest.slot))
    }

    /// Every open slot, and those few of them whose path is looked at in any case.
    fn open_slots(&mut self) -> (Vec<OpenSlot>, Vec<PathBuf>) {
        let mut open = Vec::new();
        for (path, place) in &mut self.slots {
            // One that is in use just now is open, or soon.
            place.open = place.slot.try_lock().is_none_or(|slot| slot.open.is_some());
            if place.open {
                open.push((path.clone(), Arc::clone(&place.slot)));
            }
        }
        self.open = open.len();
        let from = open.partition_point(|(path, _)| *path <= self.looked);
        let around = open.iter().cycle().skip(from);
        let quiet: Vec<PathBuf> = around
            .take(LOOKED_AT.min(open.len()))
            .map(|(path, _)| path.clone())
            .collect();
        self.looked = quiet.last().cloned().unwrap_or_default();
        (open, quiet)
    }

    /// Takes out what need not be known any more: closed, not used for longest, and in nobody's hands.
    fn one_to_leave(&mut self) -> Option<PathBuf> {
        if self.slots.len() <= KNOWN_FILES {
            return None;
        }
        let idle = |place: &Place| {
            // Slots are only handed out under the lock that is held here.
            !place.open
                && Arc::strong_count(&place.slot) == 1
                && place
                    .slot
                    .try_lock()
                    .is_some_and(|slot| slot.open.is_none())
        };
        let closed = self.slots.iter().filter(|(_, place)| idle(place));
        let path = closed.min_by_key(|(_, place)| place.used)?.0.clone();
        self.slots.remove(&path);
        Some(path)
    }
}

impl Inner {
    /// The slot of a path, in use from now on.
    fn slot(&self, path: &Path) -> Arc<Mutex<Slot>> {
        let (slot, to_close, left, first) = {
            let mut table = self.table.lock();
            table.uses += 1;
            let uses = table.uses;
            let place = table.add(path, None);
            let first = !std::mem::replace(&mut place.open, true);
            let slot = Arc::clone(&place.slot);
            place.used = uses;
            table.open += usize::from(first);
            (slot, table.one_to_close(), table.one_to_leave(), first)
        };
        if let Some(to_close) = to_close {
            // One that cannot be synced stays open, and is told by the next sync.
            drop(to_close.lock().close(&self.common));
        }
        if let Some(path) = left {
            let output = Arc::clone(&self.common.output);
            drop(self.common.journal.append(&[Entry::Left { output, path }]));
        }
        if first && self.compresses() {
            self.compressor.ask(path);
        }
        slot
    }

    fn compresses(&self) -> bool {
        self.common.rotate.is_some_and(|rotate| rotate.compress)
    }

    fn path(&self, target: &str, day: Day) -> Option<PathBuf> {
        // Declarations are judged when they are read; this only keeps a mistake there from leaving the folder.
        let safe = !target.contains(['/', '\0']) && target != "." && target != "..";
        safe.then(|| self.common.pattern.path(target, day))
    }

    fn write(&self, load: &Load) -> Verdict {
        let Some(path) = self.path(&load.batch.target, load.batch.day) else {
            return Verdict::All(Fate::Refused {
                reason: "bad_target".into(),
                detail: "the target cannot be part of a file name".into(),
            });
        };
        if load.is_empty() {
            return Verdict::All(Fate::Delivered);
        }
        let slot = self.slot(&path);
        let mut slot = slot.lock();
        let before = slot.open.as_ref().map(|open| Arc::clone(&open.handle));
        let result = slot.write(&self.common, &mut parts(load), &load.after);
        let rotated = match (&before, &slot.open) {
            (Some(before), Some(open)) => !Arc::ptr_eq(before, &open.handle),
            _ => false,
        };
        if rotated && self.compresses() {
            self.compressor.ask(&path);
        }
        match result {
            Ok(()) => Verdict::All(Fate::Delivered),
            Err(cause) => Verdict::Failed {
                cause: cause.into(),
            },
        }
    }

    fn sync(&self) -> io::Result<()> {
        let common = &self.common;
        let (open, quiet) = self.table.lock().open_slots();
        let mut result = Ok(());
        let mut unnoted = Vec::new();
        for (path, slot) in &open {
            let begun = slot.lock().begin_sync();
            let synced = match &begun {
                Ok(None) => {
                    if quiet.contains(path) {
                        slot.lock().follow_path(common);
                    }
                    continue;
                }
                Ok(Some(sync)) => {
                    let synced = sync_file(common, path, sync);
                    let mut slot = slot.lock();
                    slot.end_sync(common, sync, &synced);
                    slot.follow_path(common);
                    synced
                }
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            if let Err(error) = synced {
                result = Err(io::Error::new(
                    error.kind(),
                    cause(path, "made durable", &error),
                ));
            }
            if slot
                .lock()
                .open
                .as_ref()
                .is_some_and(|open| open.is_unnoted())
            {
                unnoted.push(Arc::clone(slot));
            }
        }
        let mut signed = self.signed.lock();
        if (!unnoted.is_empty() || !signed.is_empty()) && common.journal.sync().is_ok() {
            let slot = |path: PathBuf| Arc::clone(&self.table.lock().add(&path, None).slot);
            for slot in signed.drain(..).map(slot).chain(unnoted) {
                slot.lock().noted_again(common);
            }
        }
        result
    }

    fn tidy(&self) -> bool {
        let slot_of = |path: &Path| Arc::clone(&self.table.lock().add(path, None).slot);
        if let Err((path, error)) = self.compressor.step(&self.common, &slot_of) {
            tracing::warn!("{}", cause(&path, "compressed after its rotation", &error));
        }
        self.compressor.is_due()
    }

    /// Compresses on a thread of its own, unless one does.
    fn tidy_in_background(self: &Arc<Self>, runtime: &tokio::runtime::Handle) {
        if self.compressing.load(Ordering::Acquire)
            || !self.compressor.is_due()
            || self.compressing.swap(true, Ordering::AcqRel)
        {
            return;
        }
        let inner = Arc::clone(self);
        // Not waited for: it ends with the output, and what it leaves is done after the next start.
        drop(runtime.spawn_blocking(move || {
            let mut more = true;
            while more && !inner.ended.load(Ordering::Relaxed) {
                more = inner.tidy();
            }
            inner.compressing.store(false, Ordering::Release);
        }));
    }
}

/// The bytes of a load's records, as few parts as they lie in.
fn parts(load: &Load) -> Vec<IoSlice<'_>> {
    let chunks = &load.batch.chunks;
    let Some(records) = &load.records else {
        let bytes = chunks.iter().map(|chunk| &chunk.bytes[..]);
        return bytes
            .filter(|bytes| !bytes.is_empty())
            .map(IoSlice::new)
            .collect();
    };
    let mut parts = Vec::new();
    let mut wanted = records.iter().map(|n| *n as usize).peekable();
    let mut first = 0;
    for chunk in chunks {
        let after = first + chunk.records.len();
        while let Some(from) = wanted.next_if(|n| *n < after) {
            let mut to = from;
            while wanted.next_if(|n| *n == to + 1 && *n < after).is_some() {
                to += 1;
            }
            let start = match from - first {
                0 => 0,
                n => chunk.records[n - 1].encoded_end as usize,
            };
            let end = chunk.records[to - first].encoded_end as usize;
            parts.push(IoSlice::new(&chunk.bytes[start..end]));
        }
        first = after;
    }
    parts
}

impl Output for FileOutput {
    fn guarantee(&self) -> Guarantee {
        Guarantee::EffectivelyOnce
    }

    fn ordered(&self) -> bool {
        true
    }

    /// So that no file is longer than `rotate_size`.
    fn largest_batch(&self) -> Option<u64> {
        self.inner.common.rotate.map(|rotate| rotate.size)
    }

    fn commits(&self) -> bool {
        true
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn attempt<'a>(&'a self, load: &'a Load) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(async move {
            let Ok(runtime) = tokio::runtime::Handle::try_current() else {
                return self.inner.write(load);
            };
            let (inner, load) = (Arc::clone(&self.inner), load.clone());
            let written = runtime.spawn_blocking(move || inner.write(&load)).await;
            self.inner.tidy_in_background(&runtime);
            written.unwrap_or_else(|error| Verdict::Failed {
                cause: format!("writing the file ended before its end: {error}").into(),
            })
        })
    }

    fn probe(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        let inner = Arc::clone(&self.inner);
        let try_it = move || {
            let common = &inner.common;
            let path = common.pattern.beneath.join(".ringpilot-probe");
            common
                .open(&path, true)
                .and_then(|_| common.disk.remove(&path))
                .map_err(|error| cause(&common.pattern.beneath, "written to", &error))
        };
        Box::pin(async move {
            match tokio::runtime::Handle::try_current() {
                Err(_) => try_it(),
                Ok(runtime) => runtime
                    .spawn_blocking(try_it)
                    .await
                    .unwrap_or_else(|error| {
                        Err(format!("trying to write ended before its end: {error}"))
                    }),
            }
        })
    }
}
