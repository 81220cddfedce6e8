//! One slice, from bytes to encoded records, without a stop.
//! Place: follow -> **worker** (decode, parse, filter, batch) -> ship. A worker thread calls [`Worker::work`] outside
//! every lock; the pipeline gives the job and takes what was done.
//! Invariants: bytes are conserved: what a slice consumed is records, filtered, or held by open groups; the same
//! bytes with the same cuts make the same records, whoever reads them; nothing here allocates per line.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use ringpilot_shared::follow::StreamKey;
use ringpilot_shared::follow::identity::{TAIL_BYTES, tail_at, tail_hash};
use ringpilot_shared::host::LogFile;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::batch::id::{RecordId, write_action};
use crate::batch::json::{Entry, Flags, Writer, write_raw};
use crate::batch::{Chunk, Codec, Day, Hold, Mark, Pool};
use crate::checkpoint::SavedCut;
use crate::decode::lines::Unit;
use crate::decode::multiline::Step;
use crate::decode::{Channel, Envelope, Part, cri, docker_json, lines};
use crate::flow::{Earlier, Held, Position};
use crate::follow::{Source, Spec};
use crate::ledger::{Ledger, Tally};
use crate::parse::Record;

/// Bytes of a slice, if its lines are not longer.
pub const SLICE_BYTES: usize = 256 * 1024;
/// How many bytes of its files a group may span.
const GROUP_SPAN_BYTES: u64 = 1024 * 1024;
/// At this many encoded bytes a slice ends early: many small lines become much more than they were.
const ENCODED_BYTES: usize = 2 * 1024 * 1024;
/// Longest physical line of a runtime's own form: 16 KiB of text, each byte escaped, and what stands around it.
const ENVELOPE_BYTES: usize = 1024 * 1024;
/// How many ranges a position may carry.
const MOST_HELD: usize = 256;
/// A record's own time that is further from the read day than this does not choose the index.
const SUSPECT_BEFORE: Day = 7;
/// The same, in the future.
const SUSPECT_AFTER: Day = 1;
/// Set in the start of a record that began in another file than its chunk's: no file is so long.
const CROSSED: u64 = 1 << 47;
/// So much room that nothing was written to may be held with a chunk.
const SPARE_BYTES: usize = 4096;
/// What some programs write at the start of a file.
const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";
const NS_PER_DAY: i64 = 86_400_000_000_000;

/// A slice to be worked.
#[derive(Debug, Clone)]
pub struct Job {
    /// How its bytes become records.
    pub spec: Arc<Spec>,
    /// Its file.
    pub file: Arc<dyn LogFile>,
    /// Which life of it.
    pub stream: StreamKey,
    /// Where to begin.
    pub position: Position,
    /// The furthest that was read of the file, and the hash of the bytes before: what is read further back is of the
    /// same life only as long as those are there.
    pub furthest: (u64, u64),
    /// How many of its first bytes are known, and their hash: what is first read must begin so.
    pub head: (u32, u64),
    /// The file's length as last seen.
    pub size: u64,
    /// Nothing beyond it is read, if it is to be read only so far.
    pub until: Option<u64>,
    /// Whether it has holes.
    pub sparse: bool,
    /// First 8 bytes of every record id.
    pub source_hash: u64,
    /// Read days by offset.
    pub days: Arc<[(u64, Day)]>,
    /// Where groups were closed by time.
    pub cuts: Arc<[SavedCut]>,
    /// Codecs to encode with, each once.
    pub codecs: Vec<Codec>,
    /// The wall clock, nanoseconds since 1970: the time of records that say none.
    pub now_ns: i64,
}

/// What came of a slice.
#[derive(Debug)]
pub struct Done {
    /// Where it ended.
    pub after: Position,
    /// For each codec of the job, one chunk a day.
    pub chunks: Vec<Vec<Arc<Chunk>>>,
    /// Records in the chunks of one codec.
    pub records: u32,
    /// What was settled on the spot: filtered records, holes.
    pub settled: Ledger,
    /// Bytes that were consumed, of this file and of an earlier one.
    pub bytes: u64,
    /// What to do next.
    pub outcome: Outcome,
}

/// Why a slice ended.
#[derive(Debug)]
pub enum Outcome {
    /// It moved; there may be more.
    Moved,
    /// Nothing more can be made of what is there: the file's end, or a group that is still open.
    Waiting(AtEnd),
    /// The file does not hold what was read before: it was truncated.
    Truncated,
    /// The storage gave an error.
    Failed(io::Error),
}

/// What is at the end of a file.
#[derive(Debug)]
pub struct AtEnd {
    /// How many bytes the file had.
    pub size: u64,
    /// One past the last whole line that an open group of whole lines holds; none if no such group is open.
    pub group_end: Option<u64>,
    /// What open groups hold, in order; the last line without end is not part of it.
    pub open: Vec<Held>,
    /// Whether a line without end is there.
    pub partial: bool,
    /// Hash of the bytes before the end of the last whole line.
    pub tail: u64,
}

/// A worker's own memory, used again for every slice.
#[derive(Debug)]
pub struct Worker {
    pool: Arc<Pool>,
    budget: Arc<AtomicUsize>,
    read: Vec<u8>,
    held: Vec<u8>,
    text: Vec<u8>,
    record: Record,
    writer: Writer,
    groups: [Group; 2],
}

/// Physical lines that become one record.
#[derive(Debug, Default)]
struct Group {
    open: bool,
    text: Vec<u8>,
    /// Whether the last line in it has not ended (P without F).
    unfinished: bool,
    /// Where the unfinished line starts in `text`.
    line_from: usize,
    lines_whole: usize,
    ranges: Vec<Held>,
    source_bytes: u64,
    lines: u32,
    start: u64,
    /// The file it began in, if that is another: its hash and generation.
    origin: Option<(u64, u16)>,
    end: u64,
    hash: u64,
    time_ns: Option<i64>,
    flagged: bool,
}

impl Group {
    fn clear(&mut self) {
        self.open = false;
        self.text.clear();
        self.unfinished = false;
        self.line_from = 0;
        self.lines_whole = 0;
        self.ranges.clear();
        self.source_bytes = 0;
        self.lines = 0;
        self.hash = 0;
        self.time_ns = None;
        self.flagged = false;
    }
}

/// One physical line: where it stands, and its hash before anything was unescaped in it.
#[derive(Clone, Copy)]
struct Physical<'a> {
    from: u64,
    to: u64,
    hash: u64,
    earlier: Option<&'a Earlier>,
    /// It was cut because it is longer than a record may be.
    split: bool,
    /// It had no end when its file was finished.
    incomplete: bool,
}

/// What a slice's records are gathered in.
struct Gather<'job> {
    job: &'job Job,
    /// By codec, by day.
    outs: Vec<Vec<Out>>,
    records: u32,
    settled: Ledger,
    bytes: u64,
    /// Bytes written, by all codecs.
    encoded: usize,
}

#[derive(Debug)]
struct Out {
    day: Day,
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    total: Tally,
}

impl Worker {
    /// A worker whose chunks count in `budget`.
    #[must_use]
    pub fn new(pool: Arc<Pool>, budget: Arc<AtomicUsize>) -> Self {
        Self {
            pool,
            budget,
            read: Vec::new(),
            held: Vec::new(),
            text: Vec::new(),
            record: Record::default(),
            writer: Writer::default(),
            groups: Default::default(),
        }
    }

    /// Works one slice.
    pub fn work(&mut self, job: &Job) -> Done {
        let mut gather = Gather {
            job,
            outs: job.codecs.iter().map(|_| Vec::new()).collect(),
            records: 0,
            settled: Ledger::default(),
            bytes: 0,
            encoded: 0,
        };
        self.groups.iter_mut().for_each(Group::clear);
        let (after, outcome) = match self.slice(job, &mut gather) {
            Ok(ended) => ended,
            Err(error) => (job.position.clone(), Outcome::Failed(error)),
        };
        let failed = matches!(outcome, Outcome::Truncated | Outcome::Failed(_));
        let mut done = Done {
            after: if failed { job.position.clone() } else { after },
            chunks: Vec::new(),
            records: gather.records,
            settled: gather.settled,
            bytes: gather.bytes,
            outcome,
        };
        for (codec, outs) in gather.outs.into_iter().enumerate() {
            let mut chunks = Vec::new();
            for out in outs {
                if failed {
                    self.pool.give(out.bytes);
                    continue;
                }
                let mut out = out;
                // A few records must not hold a buffer that many have filled before.
                if out.bytes.capacity() > 2 * out.bytes.len() + SPARE_BYTES {
                    let exact = out.bytes.as_slice().to_vec();
                    self.pool.give(std::mem::replace(&mut out.bytes, exact));
                }
                let held = out.bytes.capacity() + out.marks.len() * size_of::<Mark>();
                chunks.push(Arc::new(Chunk {
                    bytes: self.pool.lend(out.bytes),
                    records: out.marks,
                    total: out.total,
                    day: out.day,
                    source_hash: job.source_hash,
                    generation: job.stream.generation,
                    hold: Hold::new(&self.budget, held),
                }));
            }
            debug_assert!(codec < job.codecs.len());
            done.chunks.push(chunks);
        }
        if failed {
            (done.records, done.settled, done.bytes) = (0, Ledger::default(), 0);
        }
        done
    }

    /// Reads and works; where it ended and why.
    fn slice(&mut self, job: &Job, gather: &mut Gather<'_>) -> io::Result<(Position, Outcome)> {
        let offset = job.position.offset;
        let prefix = usize::try_from(offset.min(TAIL_BYTES as u64)).unwrap_or(TAIL_BYTES);
        let from = offset - prefix as u64;
        let most = job.until.map_or(usize::MAX, |until| {
            usize::try_from(until.saturating_sub(from)).unwrap_or(usize::MAX)
        });
        let longest = match job.spec.envelope {
            Envelope::Plain => job.spec.max_bytes,
            Envelope::DockerJson | Envelope::Cri => job.spec.max_bytes.max(ENVELOPE_BYTES),
        };
        let mut want = SLICE_BYTES;
        let mut have = fill(&*job.file, &mut self.read, 0, from, most.min(prefix + want))?;
        if have < prefix
            || (job.position.tail != 0 && tail_hash(&self.read[..prefix]) != job.position.tail)
        {
            return Ok((job.position.clone(), Outcome::Truncated));
        }
        let (length, head) = job.head;
        let begins_so = || {
            let found = self.read[..have].get(..length as usize);
            length == 0 || found.is_some_and(|found| xxh3_64(found) == head)
        };
        if offset == 0 && !begins_so() {
            return Ok((job.position.clone(), Outcome::Truncated));
        }
        let (furthest, tail) = job.furthest;
        if furthest > offset
            && tail_at(&*job.file, furthest)?.is_none_or(|found| tail != 0 && found != tail)
        {
            return Ok((job.position.clone(), Outcome::Truncated));
        }
        let unit = job.spec.unit();
        if job.sparse
            && let Some(data) = job.file.next_data(offset)?
            && data > offset
        {
            return self.hole(job, gather, data);
        }
        if let Some(zeros) = zeros(unit, &self.read[..have], prefix, want) {
            return self.hole(job, gather, offset + zeros as u64);
        }
        self.read_held(job)?;
        // Whole lines up to here; more is read only while there is none.
        let (end, limit) = loop {
            let bytes = &self.read[prefix..have];
            let is_all = have < prefix + want;
            let cut = job
                .cuts
                .iter()
                .map(|cut| cut.at)
                .rfind(|at| *at > offset && *at <= offset + bytes.len() as u64);
            let last = last_line_end(unit, bytes);
            let end = last
                .max(cut.map(|at| usize::try_from(at - offset).unwrap_or(0)))
                .unwrap_or(0);
            if end > 0 || is_all || bytes.len() > longest {
                break (end, is_all);
            }
            want = (want * 2).min(longest + SLICE_BYTES);
            have = fill(
                &*job.file,
                &mut self.read,
                have,
                from,
                most.min(prefix + want),
            )?;
        };
        let size = offset + (have - prefix) as u64;
        // Parts and lines are unescaped in place: what proves the next position is taken before.
        let tail = tail_hash(&self.read[..prefix + end]);
        self.replay_held(job, gather);
        let mut buffer = std::mem::take(&mut self.read);
        let mut at = 0;
        let data = &mut buffer[prefix..have];
        // Where a held group was closed without one more byte, the cut is at the position itself.
        let is_held = !job.position.held.is_empty();
        let inside = |at: u64| (at > offset || (is_held && at == offset)) && at <= size;
        for cut in job.cuts.iter().filter(|cut| inside(cut.at)) {
            let to = usize::try_from(cut.at - offset).unwrap_or(usize::MAX);
            at = self.lines(job, gather, data, at, to.min(data.len()), cut.end);
            if gather.encoded > ENCODED_BYTES {
                break;
            }
            self.cut(gather, cut.end);
        }
        at = self.lines(job, gather, data, at, end.max(at), false);
        let is_full = gather.encoded > ENCODED_BYTES;
        let rest = data.len() - at;
        if rest > longest && !is_full {
            // A line longer than a record may be: its first piece.
            let piece = lines::cut(unit, job.spec.charset.as_ref(), &data[at..], longest);
            let physical = physical(offset, at, at + piece, data, true, false);
            self.line(gather, &mut data[at..at + piece], physical);
            at += piece;
        }
        let partial = at < data.len();
        let consumed = offset + at as u64;
        self.read = buffer;
        let tail = if at == end {
            tail
        } else {
            self.tail_before(job, consumed)?
        };
        self.finish(job, consumed, tail, size, limit && !is_full, partial)
    }

    /// Skips a hole, as filtered bytes. What open groups hold before it they hold behind it.
    fn hole(
        &mut self,
        job: &Job,
        gather: &mut Gather<'_>,
        data: u64,
    ) -> io::Result<(Position, Outcome)> {
        let bytes = data - job.position.offset;
        gather.bytes += bytes;
        gather.settled.filtered.add(Tally {
            bytes,
            lines: 0,
            records: 0,
        });
        let after = Position {
            offset: data,
            tail: self.tail_before(job, data)?,
            held: Arc::clone(&job.position.held),
        };
        Ok((after, Outcome::Moved))
    }

    fn tail_before(&self, job: &Job, offset: u64) -> io::Result<u64> {
        Ok(tail_at(&*job.file, offset)?.unwrap_or(0))
    }

    /// Reads the ranges that open groups held.
    fn read_held(&mut self, job: &Job) -> io::Result<()> {
        self.held.clear();
        for held in job.position.held.iter() {
            let file = match &held.earlier {
                None => Some(&job.file),
                Some(earlier) => earlier.file.as_ref(),
            };
            let Some(file) = file else { continue };
            let have = self.held.len();
            let len = usize::try_from(held.len()).unwrap_or(usize::MAX);
            let mut range = std::mem::take(&mut self.held);
            range.resize(have + len, 0);
            let got = read_all(&**file, &mut range[have..], held.from)?;
            range.truncate(have + got);
            self.held = range;
            if got < len {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "a file is shorter than what an open group holds of it",
                ));
            }
        }
        Ok(())
    }

    /// Works the held ranges' lines again.
    fn replay_held(&mut self, job: &Job, gather: &mut Gather<'_>) {
        let unit = job.spec.unit();
        let mut held_bytes = std::mem::take(&mut self.held);
        let mut at = 0;
        for held in job.position.held.iter() {
            if held.earlier.as_ref().is_some_and(|e| e.file.is_none()) {
                continue;
            }
            let to = at + usize::try_from(held.len()).unwrap_or(0);
            let range = &mut held_bytes[at..to];
            let mut from = 0;
            while from < range.len() {
                let end = lines::next_line(unit, range, from).unwrap_or(range.len());
                let physical = Physical {
                    from: held.from + from as u64,
                    to: held.from + end as u64,
                    hash: xxh3_64_with_seed(&range[from..end], 0),
                    earlier: held.earlier.as_ref(),
                    split: false,
                    incomplete: false,
                };
                self.line(gather, &mut range[from..end], physical);
                from = end;
            }
            at = to;
        }
        self.held = held_bytes;
    }

    /// Works the lines of `data[at..to]`; where it stopped. With `all`, what is left without a line end is one, too.
    fn lines(
        &mut self,
        job: &Job,
        gather: &mut Gather<'_>,
        data: &mut [u8],
        mut at: usize,
        to: usize,
        all: bool,
    ) -> usize {
        let unit = job.spec.unit();
        let offset = job.position.offset;
        while at < to && gather.encoded <= ENCODED_BYTES {
            let (end, whole) = match lines::next_line(unit, &data[..to], at) {
                Some(end) => (end, true),
                None if all => (to, false),
                None => break,
            };
            let mut from = at;
            while end - from > job.spec.max_bytes && job.spec.envelope == Envelope::Plain {
                let piece = lines::cut(
                    unit,
                    job.spec.charset.as_ref(),
                    &data[from..end],
                    job.spec.max_bytes,
                );
                let physical = physical(offset, from, from + piece, data, true, false);
                self.line(gather, &mut data[from..from + piece], physical);
                from += piece;
            }
            let physical = physical(offset, from, end, data, false, !whole);
            self.line(gather, &mut data[from..end], physical);
            at = end;
        }
        at
    }

    /// Works one physical line.
    fn line(&mut self, gather: &mut Gather<'_>, line: &mut [u8], physical: Physical<'_>) {
        let spec = &gather.job.spec;
        let unit = spec.unit();
        let part = match spec.envelope {
            Envelope::Plain => {
                let mark = match &spec.charset {
                    Some(charset) if physical.from == 0 => charset.mark(line),
                    None if physical.from == 0 && line.starts_with(UTF8_MARK) => UTF8_MARK.len(),
                    _ => 0,
                };
                Part {
                    start: mark,
                    end: lines::trim(unit, line).len().max(mark),
                    time_ns: None,
                    channel: Channel::Stdout,
                    whole: true,
                    raw: false,
                }
            }
            Envelope::DockerJson => docker_json::decode(line),
            Envelope::Cri => cri::decode(line),
        };
        let text = &line[part.start..part.end];
        let mut scratch = std::mem::take(&mut self.text);
        let text = match &spec.charset {
            Some(charset) => charset.to_utf8(text, &mut scratch),
            None => text,
        };
        let index = usize::from(part.channel == Channel::Stderr);
        let group = &self.groups[index];
        if !group.open && part.whole && spec.multiline.is_none() {
            // The common case: a line is a record, and nothing is copied.
            let whole = Whole {
                start: physical.from,
                origin: None,
                end: physical.to,
                hash: physical.hash,
                source_bytes: physical.to - physical.from,
                lines: 1,
                time_ns: part.time_ns,
                channel: channel_of(spec, part.channel),
                incomplete: physical.incomplete,
                split: physical.split,
                raw: part.raw,
            };
            emit(
                &mut self.record,
                &mut self.writer,
                &self.pool,
                gather,
                text,
                whole,
            );
        } else {
            self.join(gather, text, part, physical, index);
        }
        self.text = scratch;
    }

    /// Adds a line, or a part of one, to its channel's group.
    fn join(
        &mut self,
        gather: &mut Gather<'_>,
        text: &[u8],
        part: Part,
        physical: Physical<'_>,
        index: usize,
    ) {
        let spec = Arc::clone(&gather.job.spec);
        let starts_line = !self.groups[index].unfinished;
        // The rule sees whole lines; a line in parts is judged by its first part, which is at least as long as any
        // pattern that names a beginning needs.
        let step = match (&spec.multiline, starts_line) {
            (Some(rule), true) => rule.place(text, self.groups[index].lines_whole),
            _ => Step::Continue,
        };
        let overflows = matches!(step, Step::Overflow { .. });
        if self.groups[index].open
            && ((step == Step::Begin && starts_line)
                || overflows
                || self.is_full(&spec, text, physical, index))
        {
            if step != Step::Begin {
                self.groups[index].flagged = true;
            }
            self.close(gather, index);
        }
        if self.ranges() >= MOST_HELD {
            self.close_oldest(gather);
        }
        let group = &mut self.groups[index];
        if !group.open {
            group.clear();
            group.open = true;
            group.start = physical.from;
            group.origin = physical
                .earlier
                .and_then(|earlier| Some((earlier.source_hash?, earlier.stream.generation)));
            group.time_ns = part.time_ns;
            group.flagged = overflows;
        } else if starts_line {
            group.text.push(b'\n');
        }
        if starts_line {
            group.line_from = group.text.len();
        }
        group.text.extend_from_slice(text);
        group.unfinished = !part.whole;
        group.lines_whole += usize::from(part.whole);
        group.source_bytes += physical.to - physical.from;
        group.lines += 1;
        group.end = physical.to;
        group.hash = xxh3_64_with_seed(&physical.hash.to_le_bytes(), group.hash);
        group.flagged |= physical.incomplete;
        match group.ranges.last_mut() {
            Some(last)
                if last.to == physical.from
                    && last.earlier.as_ref().map(|e| e.stream)
                        == physical.earlier.map(|e| e.stream) =>
            {
                last.to = physical.to;
            }
            _ => group.ranges.push(Held {
                from: physical.from,
                to: physical.to,
                earlier: physical.earlier.cloned(),
            }),
        }
        let ended = match &spec.multiline {
            None => part.whole,
            Some(_) => part.whole && matches!(step, Step::End | Step::Overflow { end: true }),
        };
        if ended || physical.split {
            self.close(gather, index);
        }
    }

    /// Whether this line is too much for its group.
    fn is_full(&self, spec: &Spec, text: &[u8], physical: Physical<'_>, index: usize) -> bool {
        let group = &self.groups[index];
        group.text.len() + 1 + text.len() > spec.max_bytes
            || group.source_bytes + (physical.to - physical.from) > GROUP_SPAN_BYTES
            || (physical.earlier.is_none()
                && group.ranges.first().is_some_and(|first| {
                    first.earlier.is_none() && physical.to - first.from > GROUP_SPAN_BYTES
                }))
    }

    fn ranges(&self) -> usize {
        self.groups.iter().map(|group| group.ranges.len()).sum()
    }

    fn close_oldest(&mut self, gather: &mut Gather<'_>) {
        let oldest = (0..2)
            .filter(|index| self.groups[*index].open)
            .min_by_key(|index| self.groups[*index].start);
        if let Some(index) = oldest {
            self.groups[index].flagged = true;
            self.close(gather, index);
        }
    }

    /// Closes the groups that time has ended: those of whole lines, and at a file's end all.
    fn cut(&mut self, gather: &mut Gather<'_>, end: bool) {
        for index in 0..2 {
            if self.groups[index].open && (end || !self.groups[index].unfinished) {
                self.groups[index].flagged |= self.groups[index].unfinished;
                self.close(gather, index);
            }
        }
    }

    /// Makes a record of a group.
    fn close(&mut self, gather: &mut Gather<'_>, index: usize) {
        let mut group = std::mem::take(&mut self.groups[index]);
        if group.open {
            let channel = if index == 0 {
                Channel::Stdout
            } else {
                Channel::Stderr
            };
            let whole = Whole {
                start: group.start,
                origin: group.origin,
                end: group.end,
                hash: group.hash,
                source_bytes: group.source_bytes,
                lines: group.lines,
                time_ns: group.time_ns,
                channel: channel_of(&gather.job.spec, channel),
                incomplete: group.flagged,
                split: false,
                raw: false,
            };
            emit(
                &mut self.record,
                &mut self.writer,
                &self.pool,
                gather,
                &group.text,
                whole,
            );
        }
        group.clear();
        self.groups[index] = group;
    }

    /// Where the slice ended, with what is still open.
    fn finish(
        &mut self,
        job: &Job,
        consumed: u64,
        tail: u64,
        size: u64,
        is_all: bool,
        partial: bool,
    ) -> io::Result<(Position, Outcome)> {
        let mut open: Vec<Held> = Vec::new();
        for group in self.groups.iter().filter(|group| group.open) {
            open.extend(group.ranges.iter().cloned());
        }
        // Those of an earlier file first, then by offset.
        open.sort_by_key(|held| (held.earlier.is_none(), held.from));
        let has_earlier = open.iter().any(|held| held.earlier.is_some());
        // One run that reaches to the end is read again from its start: no need to carry it.
        let run_from = open
            .iter()
            .rev()
            .try_fold(consumed, |to, held| (held.to == to).then_some(held.from));
        let after = match run_from {
            Some(from) if !has_earlier && from >= job.position.offset => Position {
                offset: from,
                tail: if from == consumed {
                    tail
                } else {
                    self.tail_before(job, from)?
                },
                held: Arc::default(),
            },
            _ => Position {
                offset: consumed,
                tail,
                held: open.clone().into(),
            },
        };
        let has_group = self
            .groups
            .iter()
            .any(|group| group.open && !group.unfinished);
        let outcome = if is_all {
            Outcome::Waiting(AtEnd {
                size,
                group_end: has_group.then_some(consumed),
                open,
                partial,
                tail,
            })
        } else {
            Outcome::Moved
        };
        Ok((after, outcome))
    }
}

/// A record before it is parsed.
#[derive(Clone, Copy)]
struct Whole {
    start: u64,
    origin: Option<(u64, u16)>,
    end: u64,
    hash: u64,
    source_bytes: u64,
    lines: u32,
    time_ns: Option<i64>,
    channel: Option<Channel>,
    incomplete: bool,
    split: bool,
    raw: bool,
}

/// Only what a runtime wrapped knows its channel.
fn channel_of(spec: &Spec, channel: Channel) -> Option<Channel> {
    (spec.envelope != Envelope::Plain).then_some(channel)
}

fn physical(
    offset: u64,
    from: usize,
    to: usize,
    data: &[u8],
    split: bool,
    incomplete: bool,
) -> Physical<'static> {
    Physical {
        from: offset + from as u64,
        to: offset + to as u64,
        hash: xxh3_64_with_seed(&data[from..to], 0),
        earlier: None,
        split,
        incomplete,
    }
}

/// Filters, parses and writes one record with every codec.
fn emit(
    record: &mut Record,
    writer: &mut Writer,
    pool: &Arc<Pool>,
    gather: &mut Gather<'_>,
    text: &[u8],
    whole: Whole,
) {
    let job = gather.job;
    let spec = &*job.spec;
    let tally = Tally {
        bytes: whole.source_bytes,
        lines: u64::from(whole.lines),
        records: 1,
    };
    gather.bytes += whole.source_bytes;
    if !spec.filter.keeps(text) {
        gather.settled.filtered.add(tally);
        return;
    }
    spec.parser.parse(text, job.now_ns, record);
    let read_day = Source::day_at(&job.days, whole.start);
    let time_ns = record.time_ns.or(whole.time_ns);
    let (time_ns, day, suspect) = match time_ns {
        None => (job.now_ns, read_day, false),
        Some(ns) => {
            let day = Day::try_from(ns.div_euclid(NS_PER_DAY)).unwrap_or(Day::MAX);
            if day < read_day - SUSPECT_BEFORE || day > read_day + SUSPECT_AFTER {
                (ns, read_day, true)
            } else {
                (ns, day, false)
            }
        }
    };
    let entry = Entry {
        text,
        record,
        time_ns,
        channel: whole.channel,
        flags: Flags {
            incomplete: whole.incomplete,
            split: whole.split,
            time_suspect: suspect,
            failure: whole
                .raw
                .then_some("the runtime's own form could not be read"),
            time_failure: record.time_failure,
        },
    };
    for (n, codec) in job.codecs.iter().enumerate() {
        let out = out_of_day(&mut gather.outs[n], day, pool);
        let before = out.bytes.len();
        match codec {
            Codec::Raw => write_raw(&mut out.bytes, text),
            Codec::Json => writer.write_record(&mut out.bytes, &spec.tags, &spec.names, &entry),
            Codec::Bulk => {
                let own = (job.source_hash, job.stream.generation);
                let (source_hash, generation) = whole.origin.unwrap_or(own);
                let id = RecordId {
                    source_hash,
                    generation,
                    start: whole.start,
                    end_and_bytes: xxh3_64_with_seed(&whole.hash.to_le_bytes(), whole.end),
                };
                write_action(&mut out.bytes, &id, None);
                writer.write_record(&mut out.bytes, &spec.tags, &spec.names, &entry);
            }
        }
        out.marks.push(Mark {
            encoded_end: u32::try_from(out.bytes.len()).unwrap_or(u32::MAX),
            source_bytes: u32::try_from(whole.source_bytes).unwrap_or(u32::MAX),
            lines: whole.lines,
            start: whole.start | if whole.origin.is_some() { CROSSED } else { 0 },
        });
        out.total.add(tally);
        gather.encoded += out.bytes.len() - before;
    }
    gather.records += 1;
}

/// The buffer for a day; nearly always there is one.
fn out_of_day<'a>(outs: &'a mut Vec<Out>, day: Day, pool: &Arc<Pool>) -> &'a mut Out {
    let at = match outs.iter().position(|out| out.day == day) {
        Some(at) => at,
        None => {
            outs.push(Out {
                day,
                bytes: pool.take(),
                marks: Vec::new(),
                total: Tally::default(),
            });
            outs.len() - 1
        }
    };
    &mut outs[at]
}

/// Reads until `to` bytes are in `buffer` (`have` are already) or the file ends; how many are in it.
fn fill(
    file: &dyn LogFile,
    buffer: &mut Vec<u8>,
    have: usize,
    from: u64,
    to: usize,
) -> io::Result<usize> {
    if buffer.len() < to {
        buffer.resize(to, 0);
    }
    Ok(have + read_all(file, &mut buffer[have..to], from + have as u64)?)
}

fn read_all(file: &dyn LogFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], offset + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

/// How many zeros stand at the start of a file, or behind a hole: what a writer leaves that goes on at its old place
/// after a truncation, where the file system gives no hole. Only if something stands behind them: elsewhere zeros may
/// be what is not yet written.
fn zeros(unit: Unit, read: &[u8], prefix: usize, most: usize) -> Option<usize> {
    let (before, bytes) = read.split_at(prefix);
    if unit != Unit::One || bytes.first() != Some(&0) || before.last().is_some_and(|b| *b != 0) {
        return None;
    }
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    (zeros < bytes.len() || zeros >= most).then_some(zeros)
}

/// One past the last line end in `bytes`.
fn last_line_end(unit: Unit, bytes: &[u8]) -> Option<usize> {
    match unit {
        Unit::One => memchr::memrchr(b'\n', bytes).map(|at| at + 1),
        Unit::Utf16Le | Unit::Utf16Be => {
            let mut last = None;
            while let Some(end) = lines::next_line(unit, bytes, last.unwrap_or(0)) {
                last = Some(end);
            }
            last
        }
    }
}
