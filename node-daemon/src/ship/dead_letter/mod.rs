//! What an output refused for good.
//! Place: ship -> **dead letters** -> ack: a refused record is durable here before its cursor moves past it.
//! Invariants: keyed by the record's id, so that a crash does not double a letter; bounded per output; one JSON object
//! a line in `DATA_DIR/dead-letters/OUTPUT.ndjson`, so that a person can read it with nothing but this file. A file
//! grows at its end, or is exchanged whole for one with fewer letters: whoever reads it sees one or the other.

mod resend;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use ringpilot_shared::host::{Disk, Host, OwnFile};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use resend::{Resent, resend};

use crate::batch::Day;
use crate::settings::{DeadLetterSettings, OutputSettings, WhenFull};

/// One refused record.
#[derive(Debug, Clone, Copy)]
pub struct Letter<'a> {
    /// Where it was bound for.
    pub target: &'a str,
    /// The day of its index.
    pub day: Day,
    /// The class of the refusal.
    pub reason: &'a str,
    /// The server's words.
    pub detail: &'a str,
    /// Whose log it is from, as problems name it; empty if its source has gone.
    pub log: &'a str,
    /// The file it is from, in its owner's view; empty if its source has gone.
    pub path: &'a str,
    /// First 8 bytes of its id.
    pub source_hash: u64,
    /// The stream's generation.
    pub generation: u16,
    /// Where it starts in its file.
    pub start: u64,
    /// The record as it was encoded.
    pub record: &'a [u8],
}

/// What became of letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// So many, from the first on, are durable; those after them are dropped because there is no room.
    pub written: usize,
}

/// A place where refused records are kept.
pub trait DeadLetters: Send + Sync + std::fmt::Debug {
    /// Writes letters of an output down, durably.
    ///
    /// # Errors
    /// Why none of them could be written, in an operator's words: they are tried again.
    fn put(&self, output: &str, letters: &[Letter<'_>]) -> Result<Kept, String>;
}

/// A letter as it lies on disk.
#[derive(Debug, Serialize, Deserialize)]
pub struct Written<'a> {
    /// Source hash, generation and start: the same for the same record after a crash.
    pub id: String,
    /// When it was refused, nanoseconds since 1970.
    pub refused_ns: i64,
    /// Where it was bound for.
    pub target: String,
    /// Days since 1970-01-01 of its index.
    pub day: Day,
    /// The class of the refusal.
    pub reason: String,
    /// The server's words.
    pub detail: String,
    /// Whose log it is from, as problems name it.
    #[serde(default)]
    pub log: String,
    /// The file it is from, in its owner's view.
    #[serde(default)]
    pub path: String,
    /// The id by which the output knows it, where it knows ids: it is sent again under the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// The record is text that is not JSON: `record` is that text as a JSON string.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub text: bool,
    /// The record.
    #[serde(borrow)]
    pub record: &'a RawValue,
}

impl Written<'_> {
    /// The stream's generation and the record's start in it, in bytes; `None` where the id is not of this form.
    #[must_use]
    pub fn position(&self) -> Option<(u16, u64)> {
        let mut parts = self.id.split('-').skip(1);
        let generation = u16::from_str_radix(parts.next()?, 16).ok()?;
        Some((generation, u64::from_str_radix(parts.next()?, 16).ok()?))
    }
}

/// The letters of one output, summed up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// How many there are.
    pub letters: u64,
    /// How long the file is.
    pub bytes: u64,
    /// By the class of the refusal.
    pub reasons: BTreeMap<String, u64>,
    /// When the oldest was refused, nanoseconds since 1970.
    pub oldest_ns: Option<i64>,
    /// When the youngest was refused, nanoseconds since 1970.
    pub newest_ns: Option<i64>,
    /// Lines that are no letters: somebody else wrote there.
    pub unreadable: u64,
}

impl Summary {
    /// Counts one more line.
    pub fn add(&mut self, line: &[u8]) {
        let Ok(letter) = serde_json::from_slice::<Written<'_>>(line) else {
            self.unreadable += 1;
            return;
        };
        self.letters += 1;
        let at = letter.refused_ns;
        self.oldest_ns = Some(self.oldest_ns.map_or(at, |oldest| oldest.min(at)));
        self.newest_ns = Some(self.newest_ns.map_or(at, |newest| newest.max(at)));
        *self.reasons.entry(letter.reason).or_default() += 1;
    }
}

/// Where letters lie beneath `data_dir`.
pub const FOLDER: &str = "dead-letters";
/// The line before a record in a bulk request.
#[derive(Debug, Deserialize)]
struct Action {
    create: ActionId,
}

#[derive(Debug, Deserialize)]
struct ActionId {
    #[serde(rename = "_id")]
    id: String,
}

/// Letters are as private as logs are.
const MODE: u32 = 0o600;

/// Letters in files, one file an output.
#[derive(Debug)]
pub struct DeadLetterFiles {
    disk: Arc<dyn Disk>,
    host: Arc<dyn Host>,
    dir: PathBuf,
    outputs: Mutex<HashMap<String, Arc<Mutex<Of>>>>,
}

#[derive(Debug, Default)]
struct Of {
    settings: DeadLetterSettings,
    /// `None` until the first letter.
    file: Option<Open>,
    /// Somebody sends its letters again just now.
    resending: bool,
}

#[derive(Debug)]
struct Open {
    file: Arc<dyn OwnFile>,
    length: u64,
    ids: HashSet<u128>,
}

impl DeadLetterFiles {
    /// Letters beneath `data_dir`; nothing is opened before the first.
    pub fn open<H: Disk + Host + 'static>(
        host: Arc<H>,
        data_dir: &Path,
        outputs: &[OutputSettings],
    ) -> Self {
        let letters = Self {
            disk: Arc::clone(&host) as _,
            host,
            dir: data_dir.join(FOLDER),
            outputs: Mutex::default(),
        };
        letters.set_outputs(outputs);
        letters
    }

    /// The outputs there are from now on; the letters of others stay where they are.
    pub fn set_outputs(&self, outputs: &[OutputSettings]) {
        let mut all = self.outputs.lock();
        for output in outputs {
            all.entry(output.name.clone()).or_default().lock().settings = output.dead_letters;
        }
    }

    fn of(&self, output: &str) -> Option<Arc<Mutex<Of>>> {
        self.outputs.lock().get(output).map(Arc::clone)
    }

    fn open_file(&self, output: &str) -> io::Result<Open> {
        self.disk.make_dir(&self.dir)?;
        // The folder's own name must survive, too.
        if let Some(above) = self.dir.parent() {
            self.disk.sync_dir(above)?;
        }
        let path = path_of(&self.dir, output);
        let file = self.disk.open(&self.dir, &path, Some(MODE))?;
        self.disk.sync_dir(&self.dir)?;
        let mut bytes = Vec::new();
        let size = file.stat()?.size;
        bytes.resize(usize::try_from(size).unwrap_or(usize::MAX), 0);
        let mut have = 0;
        while have < bytes.len() {
            match file.read_at(&mut bytes[have..], have as u64)? {
                0 => break,
                n => have += n,
            }
        }
        bytes.truncate(have);
        // A crash may have left half a letter: its record was not settled and comes again.
        let whole = memchr::memrchr(b'\n', &bytes).map_or(0, |at| at + 1);
        file.set_len(whole as u64)?;
        let ids = bytes[..whole]
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice::<Written<'_>>(line).ok())
            .map(|letter| key(&letter.id))
            .collect();
        Ok(Open {
            file,
            length: whole as u64,
            ids,
        })
    }
}

/// The file of an output's letters.
#[must_use]
pub fn path_of(dir: &Path, output: &str) -> PathBuf {
    dir.join(format!("{output}.ndjson"))
}

fn key(id: &str) -> u128 {
    xxhash_rust::xxh3::xxh3_128(id.as_bytes())
}

impl DeadLetters for DeadLetterFiles {
    fn put(&self, output: &str, letters: &[Letter<'_>]) -> Result<Kept, String> {
        let told = |what: &str, error: &dyn std::fmt::Display| {
            format!(
                "dead letters of output {output} cannot be {what}: {error}; make room in data_dir"
            )
        };
        let Some(of) = self.of(output) else {
            return Err(format!("no output is called {output}"));
        };
        let mut of = of.lock();
        if of.file.is_none() {
            of.file = Some(
                self.open_file(output)
                    .map_err(|error| told("opened", &error))?,
            );
        }
        let settings = of.settings;
        let Some(open) = &mut of.file else {
            return Err(format!("dead letters of output {output} are not open"));
        };
        let mut text = Vec::new();
        let mut ids = Vec::new();
        let mut written = 0;
        for letter in letters {
            let id = format!(
                "{:016x}-{:04x}-{:012x}",
                letter.source_hash, letter.generation, letter.start
            );
            let is_known = open.ids.contains(&key(&id));
            if !is_known {
                let before = text.len();
                self.write(&mut text, &id, letter);
                if open.length + text.len() as u64 > settings.max_bytes {
                    text.truncate(before);
                    break;
                }
                ids.push(key(&id));
            }
            written += 1;
        }
        if written < letters.len() && settings.when_full == WhenFull::Wait {
            return Err(format!(
                "dead letters of output {output} are full ({}); look at them with `ringpilot dead-letters list`, \
                 retry or remove them, or raise dead_letters.max_bytes",
                crate::settings::show_size(settings.max_bytes)
            ));
        }
        if !text.is_empty() {
            let done = open
                .file
                .write_at(&[io::IoSlice::new(&text)], open.length)
                .and_then(|()| open.file.sync());
            if let Err(error) = done {
                // What is half there is written over by the next try.
                drop(open.file.set_len(open.length));
                return Err(told("written", &error));
            }
            open.length += text.len() as u64;
            open.ids.extend(ids);
        }
        Ok(Kept { written })
    }
}

impl DeadLetterFiles {
    fn write(&self, text: &mut Vec<u8>, id: &str, letter: &Letter<'_>) {
        // A bulk record has its action line before it, and each its line end behind it.
        let record = letter.record.strip_suffix(b"\n").unwrap_or(letter.record);
        let (action, record) = match memchr::memrchr(b'\n', record) {
            Some(at) => (&record[..at], &record[at + 1..]),
            None => (&b""[..], record),
        };
        let document = serde_json::from_slice::<Action>(action)
            .ok()
            .map(|action| action.create.id);
        let lossy = String::from_utf8_lossy(record);
        let value = serde_json::from_str::<&RawValue>(&lossy);
        let plain;
        let text_only = value.is_err();
        let record = match value {
            Ok(value) => value,
            Err(_) => {
                // The raw codec's text.
                plain = serde_json::value::to_raw_value(&lossy).unwrap_or_default();
                &plain
            }
        };
        let written = Written {
            id: id.to_owned(),
            refused_ns: self.host.wall_ns(),
            target: letter.target.to_owned(),
            day: letter.day,
            reason: letter.reason.to_owned(),
            detail: letter.detail.to_owned(),
            log: letter.log.to_owned(),
            path: letter.path.to_owned(),
            document,
            text: text_only,
            record,
        };
        // Strings, numbers and checked JSON always serialise.
        if serde_json::to_writer(&mut *text, &written).is_ok() {
            text.push(b'\n');
        }
    }
}
