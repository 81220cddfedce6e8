//! Rotate files: NAME.1 is the newest, as Filebeat's file output has it for log-pilot; and compress what is rotated.
//! Place: within **ship::file**. `shift` is called by the slot, under its lock; `Compressor` a piece at a time.
//! Invariants: no name that exists is ever replaced, so a crash between two steps loses none and leaves at most a gap,
//! which the next rotation fills; a compressed file has its name only when it is whole and synced, and where both it
//! and its original stand there, the original goes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use parking_lot::Mutex;
use ringpilot_shared::host::{OwnFile, Stat};

use super::paths::{half_compressed, parse_rotated, rotated};
use super::slot::{Common, Slot, folder};
use crate::checkpoint::durable::sync_names;

/// Compressed at a time.
const PIECE_BYTES: usize = 256 << 10;

/// When files are rotated, and what becomes of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rotate {
    /// A record that would make a file longer goes to the next one.
    pub size: u64,
    /// How many rotated files are kept.
    pub keep: u32,
    /// Whether they are compressed.
    pub compress: bool,
}

/// With so many kept, a folder's list is shorter than a look for each name.
const MANY_KEPT: u32 = 32;

/// The rotated files of `path`: by number, whether only the original is there (else the compressed file).
fn present(common: &Common, path: &Path, keep: u32) -> io::Result<BTreeMap<u32, Form>> {
    let mut found: BTreeMap<u32, (bool, bool)> = BTreeMap::new();
    if keep > MANY_KEPT {
        let own = path.file_name().unwrap_or_default();
        for name in common.disk.names(folder(path))? {
            if let Some((n, compressed)) = parse_rotated(own, &name) {
                let forms = found.entry(n).or_default();
                forms.0 |= !compressed;
                forms.1 |= compressed;
            }
        }
    } else {
        let there = |path: PathBuf| match common.open(&path, false) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            // What stands there is in the way, whatever it is.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(true),
            Err(error) => Err(error),
        };
        // Beyond those kept there are more only where more were kept before.
        for n in 1.. {
            let forms = (
                there(rotated(path, n, false))?,
                there(rotated(path, n, true))?,
            );
            if forms != (false, false) {
                found.insert(n, forms);
            } else if n > keep {
                break;
            }
        }
    }
    let mut present = BTreeMap::new();
    for (n, (original, compressed)) in found {
        if original && compressed {
            common.disk.remove(&rotated(path, n, false))?;
        }
        present.insert(
            n,
            if compressed {
                Form::Compressed
            } else {
                Form::Original
            },
        );
    }
    Ok(present)
}

/// In which form a rotated file is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Original,
    Compressed,
}

/// Names NAME as NAME.1, after making room for it; of those, `keep` are left.
pub(super) fn shift(common: &Common, path: &Path, keep: u32) -> io::Result<()> {
    let present = present(common, path, keep)?;
    // Up to the first gap they move up by one, the oldest first.
    let gap = (1..).find(|n| !present.contains_key(n)).unwrap_or(u32::MAX);
    for (n, form) in present.iter().rev() {
        let compressed = *form == Form::Compressed;
        let name = rotated(path, *n, compressed);
        if *n > keep || (*n == keep && *n < gap) {
            common.disk.remove(&name)?;
        } else if *n < gap {
            common
                .disk
                .rename(&name, &rotated(path, n + 1, compressed))?;
        }
    }
    common.disk.rename(path, &rotated(path, 1, false))
}

/// Compresses rotated files, oldest first, a piece at a time.
#[derive(Debug, Default)]
pub(super) struct Compressor {
    /// Files whose rotated ones are to be looked at.
    due: Mutex<BTreeSet<PathBuf>>,
    current: Mutex<Option<Job>>,
}

#[derive(Debug)]
struct Job {
    /// The name that was rotated away from.
    path: PathBuf,
    source: Arc<dyn OwnFile>,
    stat: Stat,
    read: u64,
    target: Arc<dyn OwnFile>,
    written: u64,
    encoder: GzEncoder<Vec<u8>>,
}

impl Compressor {
    /// Asks for the rotated files of `path` to be compressed.
    pub(super) fn ask(&self, path: &Path) {
        self.due.lock().insert(path.to_owned());
    }

    /// Whether there is anything to do.
    pub(super) fn is_due(&self) -> bool {
        !self.due.lock().is_empty() || self.current.lock().is_some()
    }

    /// Does one piece. `slot_of` gives the slot whose lock keeps others from rotating that file.
    ///
    /// # Errors
    /// What went wrong with which file; that one is left as it is until it is asked for again.
    pub(super) fn step(
        &self,
        common: &Common,
        slot_of: &dyn Fn(&Path) -> Arc<Mutex<Slot>>,
    ) -> Result<(), (PathBuf, io::Error)> {
        let mut current = self.current.lock();
        let Some(job) = &mut *current else {
            let Some(path) = self.due.lock().pop_first() else {
                return Ok(());
            };
            let slot = slot_of(&path);
            let _rotated_by_nobody = slot.lock();
            match Job::begin(common, &path) {
                Ok(None) => {}
                Ok(job) => {
                    *current = job;
                    // There may be more.
                    self.ask(&path);
                }
                Err(error) => return Err((path, error)),
            }
            return Ok(());
        };
        match job.step(common, slot_of) {
            Ok(false) => {}
            Ok(true) => *current = None,
            Err(error) => {
                let path = job.path.clone();
                *current = None;
                self.due.lock().remove(&path);
                drop(common.disk.remove(&half_compressed(&path)));
                return Err((path, error));
            }
        }
        Ok(())
    }
}

fn keep(common: &Common) -> u32 {
    common.rotate.map_or(0, |rotate| rotate.keep)
}

impl Job {
    fn begin(common: &Common, path: &Path) -> io::Result<Option<Self>> {
        let present = present(common, path, keep(common))?;
        let oldest = present
            .iter()
            .rev()
            .find(|(_, form)| **form == Form::Original);
        let half = half_compressed(path);
        let Some((n, _)) = oldest else {
            return match common.open(&half, false) {
                Ok(_) => common.disk.remove(&half).map(|()| None),
                Err(_) => Ok(None),
            };
        };
        let source = common.open(&rotated(path, *n, false), false)?;
        let target = common.open(&half, true)?;
        target.set_len(0)?;
        Ok(Some(Self {
            path: path.to_owned(),
            stat: source.stat()?,
            source,
            read: 0,
            target,
            written: 0,
            encoder: GzEncoder::new(Vec::new(), Compression::default()),
        }))
    }

    /// One piece, or the end; whether that was the end.
    fn step(
        &mut self,
        common: &Common,
        slot_of: &dyn Fn(&Path) -> Arc<Mutex<Slot>>,
    ) -> io::Result<bool> {
        if self.piece()? {
            return Ok(false);
        }
        self.target.sync()?;
        let slot = slot_of(&self.path);
        let _rotated_by_nobody = slot.lock();
        self.place(common)?;
        Ok(true)
    }

    /// Whether more is to come.
    fn piece(&mut self) -> io::Result<bool> {
        let mut buffer = vec![0; PIECE_BYTES];
        let got = self.source.read_at(&mut buffer, self.read)?;
        self.read += got as u64;
        match got {
            0 => self.encoder.try_finish()?,
            _ => self.encoder.write_all(&buffer[..got])?,
        }
        let out = self.encoder.get_mut();
        if !out.is_empty() {
            self.target.write_at(&[IoSlice::new(out)], self.written)?;
            self.written += out.len() as u64;
            out.clear();
        }
        Ok(got > 0)
    }

    /// Puts the compressed file in the place of its original, which may have moved up meanwhile, or be gone.
    fn place(&self, common: &Common) -> io::Result<()> {
        let half = half_compressed(&self.path);
        let is_original = |n: &&u32| {
            let there = common.open(&rotated(&self.path, **n, false), false);
            there.and_then(|file| file.stat()).is_ok_and(|stat| {
                (stat.inode, stat.birth_ns) == (self.stat.inode, self.stat.birth_ns)
            })
        };
        let present = present(common, &self.path, keep(common))?;
        let Some(n) = present.keys().find(is_original) else {
            return common.disk.remove(&half);
        };
        common.disk.rename(&half, &rotated(&self.path, *n, true))?;
        sync_names(&*common.disk, folder(&self.path))?;
        common.disk.remove(&rotated(&self.path, *n, false))
    }
}
