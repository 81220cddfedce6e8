//! Send dead letters again, through the running daemon's own output.
//! Place: the control socket asks; beside the pipeline, whose flows have these records behind them.
//! Invariants: a record goes out under the id it had, so that an output that knows ids has it once; a letter leaves its
//! file only when the output has the record, by an exchange of the whole file: a crash in between sends it once more,
//! never not at all; a piece at a time is in memory, however many letters there are.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{DeadLetterFiles, MODE, Of, Written, key, path_of};
use crate::batch::{Batch, Chunk, Codec, Day, Hold, Mark, SpanOf};
use crate::ledger::Tally;
use crate::ship::{Fate, Load, Output, Verdict};

/// Letters read at a time, in bytes of their file.
const PIECE_BYTES: usize = 1 << 20;

/// What came of sending an output's letters again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resent {
    /// The output has them now; they are no letters any more.
    pub delivered: u64,
    /// It refused them again, by the class of the refusal; they stay.
    pub refused: BTreeMap<String, u64>,
    /// Still letters, those refused among them.
    pub left: u64,
    /// Why not all were tried, if so.
    pub stopped: Option<String>,
}

/// One letter on its way.
struct One {
    key: u128,
    target: String,
    day: Day,
    bytes: Vec<u8>,
}

/// Sends the letters of `output` again. `timeout` is how long one request may take.
///
/// # Errors
/// When they cannot be read, or are being sent already.
pub async fn resend(
    letters: &DeadLetterFiles,
    name: &str,
    output: &Arc<dyn Output>,
    codec: Codec,
    timeout: Duration,
) -> Result<Resent, String> {
    let Some(of) = letters.of(name) else {
        return Err(format!("no output is called `{name}`"));
    };
    let end = letters.begin_resending(name, &of)?;
    let mut resent = Resent::default();
    let mut settled = HashSet::new();
    let mut from = 0;
    let budget = Arc::new(AtomicUsize::new(0));
    while from < end && resent.stopped.is_none() {
        let piece = tokio::task::block_in_place(|| letters.piece(&of, from, end));
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                resent.stopped = Some(format!("the letters cannot be read: {error}"));
                break;
            }
        };
        from += piece.len() as u64;
        for load in loads(&piece, codec, &budget) {
            send(output, load, timeout, &mut settled, &mut resent).await;
            if resent.stopped.is_some() {
                break;
            }
        }
        if piece.is_empty() {
            break;
        }
    }
    let done = tokio::task::block_in_place(|| letters.end_resending(name, &of, &settled));
    match done {
        Ok(left) => {
            resent.left = left;
            Ok(resent)
        }
        Err(error) => Err(format!(
            "{} letters of output {name} were delivered, but the file of letters cannot be written: {error}; \
             sent again, they keep their ids",
            resent.delivered
        )),
    }
}

/// Letters of one target and day, in loads.
fn loads(piece: &[u8], codec: Codec, budget: &Arc<AtomicUsize>) -> Vec<(Vec<u128>, Load)> {
    let mut groups: BTreeMap<(String, Day), Vec<One>> = BTreeMap::new();
    for line in piece.split(|byte| *byte == b'\n') {
        let Some(one) = one(line, codec) else {
            continue;
        };
        groups
            .entry((one.target.clone(), one.day))
            .or_default()
            .push(one);
    }
    groups
        .into_iter()
        .map(|((target, day), group)| load(&target, day, &group, budget))
        .collect()
}

fn one(line: &[u8], codec: Codec) -> Option<One> {
    let letter: Written<'_> = serde_json::from_slice(line).ok()?;
    let mut bytes = Vec::with_capacity(line.len());
    if codec == Codec::Bulk {
        // One that was refused by another type of output has no document's id: its place in its file is one.
        let id = letter.document.as_deref().unwrap_or(&letter.id);
        let id = serde_json::to_string(id).ok()?;
        bytes.extend_from_slice(format!("{{\"create\":{{\"_id\":{id}}}}}\n").as_bytes());
    }
    match letter.text {
        true => {
            let text: String = serde_json::from_str(letter.record.get()).ok()?;
            bytes.extend_from_slice(text.as_bytes());
        }
        false => bytes.extend_from_slice(letter.record.get().as_bytes()),
    }
    bytes.push(b'\n');
    Some(One {
        key: key(&letter.id),
        target: letter.target,
        day: letter.day,
        bytes,
    })
}

fn load(target: &str, day: Day, group: &[One], budget: &Arc<AtomicUsize>) -> (Vec<u128>, Load) {
    let mut bytes = Vec::new();
    let mut records = Vec::new();
    for one in group {
        bytes.extend_from_slice(&one.bytes);
        records.push(Mark {
            encoded_end: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            source_bytes: 0,
            lines: 0,
            start: 0,
        });
    }
    let size = bytes.len();
    let chunk = Chunk {
        bytes: bytes.into(),
        records,
        total: Tally::default(),
        day,
        source_hash: 0,
        generation: 0,
        hold: Hold::new(budget, size),
    };
    let span = SpanOf {
        source: u64::MAX,
        span: u64::MAX,
    };
    let batch = Batch {
        id: u64::MAX,
        target: target.into(),
        day,
        chunks: vec![Arc::new(chunk)],
        spans: vec![span],
        records: group.len(),
        bytes: size,
    };
    let load = Load {
        batch: Arc::new(batch),
        records: None,
        after: Arc::from([]),
    };
    (group.iter().map(|one| one.key).collect(), load)
}

/// Sends one load; what the output says of it is noted.
async fn send(
    output: &Arc<dyn Output>,
    (keys, load): (Vec<u128>, Load),
    timeout: Duration,
    settled: &mut HashSet<u128>,
    resent: &mut Resent,
) {
    // Halves of what was too large, the first on top.
    let mut todo = vec![load];
    while let Some(load) = todo.pop() {
        let numbers: Vec<u32> = match &load.records {
            Some(some) => some.to_vec(),
            None => (0..u32::try_from(keys.len()).unwrap_or(u32::MAX)).collect(),
        };
        let verdict = match tokio::time::timeout(timeout * 10, output.attempt(&load)).await {
            Ok(verdict) => verdict,
            Err(_) => Verdict::Failed {
                cause: format!("no answer within {:?}", timeout * 10).into(),
            },
        };
        let fates = match verdict {
            Verdict::All(fate) => vec![fate; numbers.len()],
            Verdict::Each(fates) => fates,
            Verdict::Failed { cause } => {
                resent.stopped = Some(cause.to_string());
                return;
            }
            Verdict::TooLarge if numbers.len() > 1 => {
                let (first, second) = numbers.split_at(numbers.len() / 2);
                for half in [second, first] {
                    todo.push(Load {
                        records: Some(half.into()),
                        ..load.clone()
                    });
                }
                continue;
            }
            Verdict::TooLarge => vec![Fate::Refused {
                reason: "too_large".into(),
                detail: "the output takes no request of the size of this one record".into(),
            }],
        };
        for (number, fate) in numbers.iter().zip(fates) {
            match fate {
                Fate::Delivered | Fate::Duplicate => {
                    if let Some(key) = keys.get(*number as usize) {
                        settled.insert(*key);
                    }
                    resent.delivered += 1;
                }
                Fate::Refused { reason, .. } => {
                    *resent.refused.entry(reason.to_string()).or_default() += 1;
                }
                Fate::Again { cause } => resent.stopped = Some(cause.to_string()),
            }
        }
        if resent.stopped.is_some() {
            return;
        }
    }
}

impl DeadLetterFiles {
    /// Opens the letters of an output for one who sends them again; how long the file is now.
    fn begin_resending(&self, name: &str, of: &parking_lot::Mutex<Of>) -> Result<u64, String> {
        let mut of = of.lock();
        if of.resending {
            return Err(format!(
                "the letters of output {name} are being sent already"
            ));
        }
        if of.file.is_none() {
            let open = self.open_file(name);
            of.file = Some(open.map_err(|error| format!("the letters cannot be read: {error}"))?);
        }
        of.resending = true;
        Ok(of.file.as_ref().map_or(0, |open| open.length))
    }

    /// Whole lines from `from` on: about a megabyte, or one longer line.
    fn piece(&self, of: &parking_lot::Mutex<Of>, from: u64, end: u64) -> io::Result<Vec<u8>> {
        let Some(file) = of.lock().file.as_ref().map(|open| Arc::clone(&open.file)) else {
            return Ok(Vec::new());
        };
        let mut wanted = PIECE_BYTES;
        loop {
            let left = usize::try_from(end - from).unwrap_or(usize::MAX);
            let mut bytes = vec![0; wanted.min(left)];
            let mut have = 0;
            while have < bytes.len() {
                match file.read_at(&mut bytes[have..], from + have as u64)? {
                    0 => break,
                    n => have += n,
                }
            }
            bytes.truncate(have);
            if let Some(at) = memchr::memrchr(b'\n', &bytes) {
                bytes.truncate(at + 1);
                return Ok(bytes);
            }
            if have < wanted {
                return Ok(Vec::new());
            }
            wanted *= 2;
        }
    }

    /// Exchanges the file for one without the letters that are settled; how many are left.
    fn end_resending(
        &self,
        name: &str,
        of: &parking_lot::Mutex<Of>,
        settled: &HashSet<u128>,
    ) -> io::Result<u64> {
        let mut of = of.lock();
        of.resending = false;
        let Some(open) = of.file.as_mut() else {
            return Ok(0);
        };
        if settled.is_empty() {
            return Ok(open.ids.len() as u64);
        }
        let path = path_of(&self.dir, name);
        let new = path.with_extension("ndjson.new");
        let file = self.disk.open(&self.dir, &new, Some(MODE))?;
        let written = (|| {
            file.set_len(0)?;
            let (mut at, mut length) = (0, 0);
            let mut rest: Vec<u8> = Vec::new();
            let mut kept: Vec<u8> = Vec::new();
            let mut buffer = vec![0; PIECE_BYTES];
            while at < open.length {
                let most = usize::try_from(open.length - at).unwrap_or(usize::MAX);
                let most = most.min(buffer.len());
                let n = open.file.read_at(&mut buffer[..most], at)?;
                if n == 0 {
                    break;
                }
                at += n as u64;
                rest.extend_from_slice(&buffer[..n]);
                let Some(last) = memchr::memrchr(b'\n', &rest) else {
                    continue;
                };
                for line in rest[..=last].split_inclusive(|byte| *byte == b'\n') {
                    let is_settled = serde_json::from_slice::<Written<'_>>(line)
                        .is_ok_and(|letter| settled.contains(&key(&letter.id)));
                    if !is_settled {
                        kept.extend_from_slice(line);
                    }
                }
                rest.drain(..=last);
                file.write_at(&[io::IoSlice::new(&kept)], length)?;
                length += kept.len() as u64;
                kept.clear();
            }
            file.sync()?;
            self.disk.rename(&new, &path)?;
            self.disk.sync_dir(&self.dir)?;
            io::Result::Ok(length)
        })();
        match written {
            Ok(length) => {
                open.file = file;
                open.length = length;
                open.ids.retain(|id| !settled.contains(id));
                Ok(open.ids.len() as u64)
            }
            Err(error) => {
                // The old file is still there under its name, or the next opening finds which one is.
                drop(self.disk.remove(&new));
                of.file = None;
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::OutputSettings;
    use crate::ship::Guarantee;
    use crate::ship::dead_letter::{DeadLetters, Kept, Letter};
    use parking_lot::Mutex;
    use ringpilot_shared::host::RealHost;
    use std::future::Future;
    use std::pin::Pin;

    /// Takes what does not say `bad`; keeps everything it was sent.
    #[derive(Debug, Default)]
    struct Picky {
        sent: Mutex<Vec<String>>,
        is_down: bool,
    }

    impl Output for Picky {
        fn guarantee(&self) -> Guarantee {
            Guarantee::EffectivelyOnce
        }
        fn ordered(&self) -> bool {
            false
        }
        fn attempt<'a>(
            &'a self,
            load: &'a Load,
        ) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
            let fate = |record: &[u8]| match String::from_utf8_lossy(record) {
                text if text.contains("bad") => Fate::Refused {
                    reason: "mapper_parsing_exception".into(),
                    detail: "still".into(),
                },
                text => {
                    self.sent.lock().push(text.into_owned());
                    Fate::Delivered
                }
            };
            Box::pin(async move {
                match self.is_down {
                    true => Verdict::Failed {
                        cause: "connection refused".into(),
                    },
                    false => Verdict::Each(load.iter().map(|(_, record)| fate(record)).collect()),
                }
            })
        }
        fn probe(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
            Box::pin(std::future::ready(Ok(())))
        }
    }

    fn letter(start: u64, record: &str) -> Letter<'_> {
        Letter {
            target: "web",
            day: 3,
            reason: "mapper_parsing_exception",
            detail: "a number is wanted",
            log: "web, log `access`",
            path: "/logs/a.log",
            source_hash: 7,
            generation: 0,
            start,
            record: record.as_bytes(),
        }
    }

    fn letters(dir: &std::path::Path) -> DeadLetterFiles {
        let output = OutputSettings::of("elasticsearch", serde_yaml_ng::Value::Null);
        DeadLetterFiles::open(Arc::new(RealHost::new()), dir, &[output])
    }

    fn bulk(id: &str, record: &str) -> String {
        format!("{{\"create\":{{\"_id\":\"{id}\"}}}}\n{record}\n")
    }

    async fn again(files: &DeadLetterFiles, picky: &Arc<Picky>) -> Resent {
        let output: Arc<dyn Output> = Arc::clone(picky) as _;
        let wait = Duration::from_secs(5);
        resend(files, "elasticsearch", &output, Codec::Bulk, wait)
            .await
            .expect("letters that can be read")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_taken_now_keeps_its_id_and_leaves_and_what_is_refused_again_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = letters(dir.path());
        let (one, two, three) = (
            bulk("id-1", "{\"n\":1}"),
            bulk("id-2", "{\"n\":\"bad\"}"),
            bulk("id-3", "{\"n\":3}"),
        );
        let put = [letter(10, &one), letter(20, &two), letter(30, &three)];
        assert_eq!(files.put("elasticsearch", &put), Ok(Kept { written: 3 }));
        let picky = Arc::new(Picky::default());
        let resent = again(&files, &picky).await;
        assert_eq!((resent.delivered, resent.left), (2, 1));
        assert_eq!(resent.refused["mapper_parsing_exception"], 1);
        assert_eq!(*picky.sent.lock(), [one.clone(), three]);
        // A letter that left is one again when its record comes again; one that stayed is there once.
        let put = [letter(10, &one), letter(20, &two)];
        assert_eq!(files.put("elasticsearch", &put), Ok(Kept { written: 2 }));
        drop(files);
        let text = std::fs::read_to_string(dir.path().join("dead-letters/elasticsearch.ndjson"))
            .expect("the letters");
        let starts: Vec<u64> = text
            .lines()
            .map(|line| serde_json::from_str::<Written<'_>>(line).expect("a letter"))
            .filter_map(|letter| letter.position())
            .map(|(_, start)| start)
            .collect();
        assert_eq!(starts, [20, 10]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_output_that_is_down_keeps_every_letter_and_says_why() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = letters(dir.path());
        let one = bulk("id-1", "{\"n\":1}");
        files
            .put("elasticsearch", &[letter(10, &one)])
            .expect("room");
        let picky = Arc::new(Picky {
            is_down: true,
            ..Picky::default()
        });
        let resent = again(&files, &picky).await;
        assert_eq!((resent.delivered, resent.left), (0, 1));
        assert_eq!(resent.stopped.as_deref(), Some("connection refused"));
    }

    #[test]
    fn text_that_is_no_json_is_sent_as_it_was() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = letters(dir.path());
        let quoted = "\"whole\"\n";
        let put = [letter(1, "say \"hi\"\n"), letter(2, quoted)];
        files.put("elasticsearch", &put).expect("room");
        let text = std::fs::read(dir.path().join("dead-letters/elasticsearch.ndjson"));
        let text = text.expect("the letters");
        let sent: Vec<Vec<u8>> = text
            .split(|byte| *byte == b'\n')
            .filter_map(|line| one(line, Codec::Raw))
            .map(|one| one.bytes)
            .collect();
        assert_eq!(sent, [b"say \"hi\"\n".to_vec(), quoted.as_bytes().to_vec()]);
    }
}
