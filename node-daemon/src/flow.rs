//! A flow: one source towards one output, with a cursor of its own.
//! Place: the pipeline holds flows; a worker reads for them, `ack` moves their cursors.
//! Invariants: the cursor is the end of the contiguous settled prefix; spans settle in any order and leave in
//! order; what lies between start and cursor is in the ledger, to the byte.

use std::collections::VecDeque;
use std::sync::Arc;

use ringpilot_shared::follow::StreamKey;
use ringpilot_shared::host::LogFile;

use crate::ledger::{Ledger, Lost, Tally};

/// A range of a file that an open group (parts of a line, lines of a record) still holds.
#[derive(Debug, Clone)]
pub struct Held {
    /// First byte.
    pub from: u64,
    /// One past the last byte.
    pub to: u64,
    /// The file before a rotation, where the group began there.
    pub earlier: Option<Earlier>,
}

/// The file in which a group began that its successor continues.
#[derive(Debug, Clone)]
pub struct Earlier {
    /// Its stream.
    pub stream: StreamKey,
    /// Its handle; `None` when it could not be opened again after a restart.
    pub file: Option<Arc<dyn LogFile>>,
    /// First 8 bytes of the ids of records that begin in it, if that is known: a group that crossed has the id that it
    /// would have had without.
    pub source_hash: Option<u64>,
}

impl Held {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.to - self.from
    }
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.to <= self.from
    }
    fn same_place(&self, other: &Held) -> bool {
        self.from == other.from
            && self.to == other.to
            && self.earlier.as_ref().map(|e| e.stream) == other.earlier.as_ref().map(|e| e.stream)
    }
}

/// A place in a stream: everything before `offset` has been read, and of that the `held` ranges are read again
/// because their group was still open.
#[derive(Debug, Clone, Default)]
pub struct Position {
    /// Bytes from the start of the file.
    pub offset: u64,
    /// `tail_hash` of the at most 64 bytes before `offset`; 0 at the file's start.
    pub tail: u64,
    /// Ranges of open groups before `offset`, in file order, those of an earlier file first. At most 256.
    pub held: Arc<[Held]>,
}

impl Position {
    /// The file's start.
    pub fn start() -> Self {
        Self::default()
    }
    /// Bytes that open groups hold.
    pub fn held_bytes(&self) -> u64 {
        self.held.iter().map(Held::len).sum()
    }
    /// Whether an open group began in an earlier file that is not open.
    pub fn misses_file(&self) -> bool {
        self.held
            .iter()
            .any(|held| held.earlier.as_ref().is_some_and(|e| e.file.is_none()))
    }
    /// Whether two flows stand at the same place with the same open groups, so that one slice serves both.
    pub fn same_place(&self, other: &Position) -> bool {
        self.offset == other.offset
            && self.held.len() == other.held.len()
            && self
                .held
                .iter()
                .zip(other.held.iter())
                .all(|(a, b)| a.same_place(b))
    }
}

/// What became of the records of one slice so far.
#[derive(Debug, Default)]
pub struct Span {
    /// Its number in the flow, ascending.
    pub number: u64,
    /// The cursor once this span and all before it are settled.
    pub after: Position,
    /// Records whose fate is still open.
    pub open: u32,
    /// Source bytes it takes from the window.
    pub window: u64,
    /// Physical lines and records in it, whatever their fate; told to people, beside the balance of bytes.
    pub lines: u64,
    /// See `lines`.
    pub records: u64,
    /// The fates known so far.
    pub ledger: Ledger,
    /// Bytes of an open group at its end that the successor's flow took over.
    pub handed: u64,
}

/// A source towards one output.
#[derive(Debug)]
pub struct Flow {
    /// Index of the output.
    pub output: usize,
    /// Where it began: bytes before are not its business. What a group brought along from an earlier file counts
    /// in `brought`.
    pub start: u64,
    /// Bytes of an earlier file that its first group continues.
    pub brought: u64,
    /// From which file those are.
    pub brought_from: Option<StreamKey>,
    /// Bytes of its last group that the successor took over.
    pub handed: u64,
    /// Next to be read.
    pub read: Position,
    /// The end of the contiguous settled prefix.
    pub cursor: Position,
    /// Read and not settled, in order.
    pub spans: VecDeque<Span>,
    /// Number of the next span.
    pub next_span: u64,
    /// Source bytes from the oldest unsettled to the furthest read.
    pub window: u64,
    /// Where its bytes went, up to the cursor.
    pub ledger: Ledger,
    /// How far it had been sent before the last restart: below that, what is read is a replay.
    pub sent_before: u64,
    /// The file's size at which a slice made no progress (an open group): it waits for more.
    pub stuck_at: Option<u64>,
    /// What it is doing.
    pub turn: FlowTurn,
    /// Bytes it may still read in this round, less what it overdrew.
    pub deficit: i64,
    /// Bytes behind the cursor as they were last saved.
    pub saved_unread: u64,
    /// Its cursor or ledger has moved since the last save.
    pub unsaved: bool,
    /// Nobody wants it now: it is not read, and only settles what is on its way.
    pub retired: bool,
}

/// Where a flow stands between being quiet and being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowTurn {
    /// Nothing to read, as far as is known.
    Quiet,
    /// In the queue of those that may be read.
    Queued,
    /// A worker reads for it.
    Reading,
    /// Its window or its output's share is full; it is queued again when something settles.
    Starved,
    /// It waits for time to pass: after an error of the storage, or at its rate limit.
    Later,
    /// Everything that will ever be there is read.
    Done,
}

impl Flow {
    /// A flow that begins at `position`.
    pub fn at(output: usize, start: u64, position: Position) -> Self {
        Self {
            output,
            start,
            brought: 0,
            brought_from: None,
            handed: 0,
            read: position.clone(),
            cursor: position,
            spans: VecDeque::new(),
            next_span: 0,
            window: 0,
            ledger: Ledger::default(),
            sent_before: 0,
            stuck_at: None,
            turn: FlowTurn::Quiet,
            deficit: 0,
            saved_unread: 0,
            unsaved: true,
            retired: false,
        }
    }

    /// It is not wanted any more. A worker that reads for it just now finds out when it commits.
    pub fn retire(&mut self) {
        self.retired = true;
        self.turn = FlowTurn::Done;
    }

    /// Takes note of a slice that was read: records to come, and what was settled on the spot.
    pub fn push(&mut self, after: Position, records: u32, settled: Ledger, bytes: u64) -> u64 {
        let replayed = after
            .offset
            .min(self.sent_before)
            .saturating_sub(self.read.offset);
        self.ledger.replayed += replayed;
        let number = self.next_span;
        self.next_span += 1;
        self.read = after.clone();
        self.window += bytes;
        self.spans.push_back(Span {
            number,
            after,
            open: records,
            window: bytes,
            lines: settled.lines(),
            records: u64::from(records) + settled.records(),
            ledger: settled,
            handed: 0,
        });
        number
    }

    /// Ends the flow at `end`: the group that is open there, so many bytes of it, goes on in the successor.
    pub fn hand_over(&mut self, end: u64, tail: u64, bytes: u64) {
        let after = Position {
            offset: end,
            tail,
            held: Arc::default(),
        };
        self.push(after, 0, Ledger::default(), 0);
        if let Some(last) = self.spans.back_mut() {
            last.handed = bytes;
        }
        self.collect();
    }

    /// Settles records of a span. Unknown spans (of a flow that was reset) are ignored.
    pub fn settle(&mut self, number: u64, records: u32, what: impl FnOnce(&mut Ledger)) {
        let Ok(at) = self.spans.binary_search_by_key(&number, |span| span.number) else {
            return;
        };
        let span = &mut self.spans[at];
        span.open = span.open.saturating_sub(records);
        what(&mut span.ledger);
    }

    /// Moves the cursor over the settled prefix; whether it moved.
    pub fn collect(&mut self) -> bool {
        let mut moved = false;
        while self.spans.front().is_some_and(|span| span.open == 0) {
            let Some(span) = self.spans.pop_front() else {
                break;
            };
            self.window -= span.window;
            self.ledger.add(&span.ledger);
            self.handed += span.handed;
            self.cursor = span.after;
            moved = true;
        }
        if moved && self.spans.is_empty() {
            // Most flows are quiet most of the time, and there may be thousands.
            self.spans = VecDeque::new();
        }
        self.unsaved |= moved;
        moved
    }

    /// Gives up what has not been read up to `end`, and what open groups hold, as lost. What is in flight stays so.
    pub fn lose_unread(&mut self, end: u64, reason: Lost) -> u64 {
        let end = end.max(self.read.offset);
        let bytes = end - self.read.offset + self.read.held_bytes();
        if bytes == 0 {
            return 0;
        }
        let mut lost = Ledger::default();
        let tally = Tally {
            bytes,
            lines: 0,
            records: 0,
        };
        lost.lost.insert(reason, tally);
        let after = Position {
            offset: end,
            tail: 0,
            held: Arc::default(),
        };
        self.push(after, 0, lost, bytes);
        bytes
    }

    /// Gives up the ranges of an earlier file that is gone.
    pub fn lose_missing(&mut self) {
        let is_there = |held: &&Held| held.earlier.as_ref().is_none_or(|e| e.file.is_some());
        let kept: Arc<[Held]> = self.read.held.iter().filter(is_there).cloned().collect();
        let bytes = self.read.held_bytes() - kept.iter().map(Held::len).sum::<u64>();
        let mut lost = Ledger::default();
        let tally = Tally {
            bytes,
            lines: 0,
            records: 0,
        };
        lost.lost.insert(Lost::Vanished, tally);
        let after = Position {
            held: kept,
            ..self.read.clone()
        };
        self.push(after, 0, lost, bytes);
        self.collect();
    }

    /// Forgets what was read from this span on: it is read again. The spans before stay. No number comes twice: an
    /// answer for what was forgotten means nothing.
    pub fn rewind(&mut self, span: u64) {
        while self.spans.back().is_some_and(|last| last.number >= span) {
            if let Some(last) = self.spans.pop_back() {
                self.window -= last.window;
            }
        }
        self.sent_before = self.sent_before.max(self.read.offset);
        self.read = self
            .spans
            .back()
            .map_or(&self.cursor, |last| &last.after)
            .clone();
        self.stuck_at = None;
    }

    /// Where the flow and its ledger stand once every span up to this one is delivered; `delivered` is what the open
    /// records of those spans come to.
    pub fn after(&self, span: u64, delivered: Tally) -> (Position, Ledger) {
        let mut ledger = self.ledger.clone();
        let mut position = self.cursor.clone();
        for one in self.spans.iter().take_while(|one| one.number <= span) {
            ledger.add(&one.ledger);
            position = one.after.clone();
        }
        ledger.delivered.add(delivered);
        (position, ledger)
    }

    /// Source bytes that were read and are not settled.
    pub fn in_flight(&self) -> u64 {
        self.window
    }

    /// Whether position - start = delivered + dead-lettered + filtered + lost, at the cursor.
    pub fn ledger_closes(&self) -> bool {
        self.cursor.offset + self.brought
            == self.start + self.cursor.held_bytes() + self.handed + self.ledger.accounted()
    }
}
