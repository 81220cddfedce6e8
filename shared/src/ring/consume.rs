//! The daemon's end: believes nothing.
//! Place: the shim's `produce` -> **consume** -> `lanes` -> the daemon's streams.
//! Invariants: the data area is never mapped here, it is `pread` into the caller's private memory; tail, capacity and
//! sequence are private; whatever a pod writes, `drain` gives whole judged frames or a `Poison`, never a panic and
//! never bytes from outside the ring. After a poison the ring is dropped.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{Ordering, fence};

use super::doorbell::{DaemonBell, DaemonWords, Head};
use super::layout::{
    ARMED_AT, CAPACITY_LOG2_AT, GENERATION_AT, HEAD_AT, HEARTBEAT_AT, MAGIC, MAGIC_AT, PAGE,
    RELEASED_AT, RELEASED_INVERTED_AT, VERSION_AT, WANTED_AT, capacity, frame_limit,
};
use super::posix_shm::Names;
use super::words::Words;
use crate::wire::VERSION;
use crate::wire::frame::{
    ALIGN, BatchView, FLAG_CONTINUES, FrameError, Header, Kind, MarkMetadata, What, read_batch,
    read_mark,
};

/// Private memory to drain into, aligned as archives want it.
pub type PrivateCopy = rkyv::util::AlignedVec<64>;

/// A private copy of `bytes` bytes.
#[must_use]
pub fn private_copy(bytes: usize) -> PrivateCopy {
    let mut copy = PrivateCopy::with_capacity(bytes);
    copy.resize(bytes, 0);
    copy
}

/// How the daemon reaches the shared words, and the file under the data.
#[derive(Debug)]
pub struct DaemonMemory {
    data: File,
    words: Reach,
}

#[derive(Debug)]
enum Reach {
    /// Memfd: page 0 of the data mapped read-only, the control page mapped writable.
    Mapped { head: Words, control: Words },
    /// Posix: by system calls, because the other side can take the memory away.
    Files { control: File, _names: Names },
}

impl DaemonMemory {
    pub(super) fn mapped(data: File, head: Words, control: Words) -> Self {
        Self {
            data,
            words: Reach::Mapped { head, control },
        }
    }

    pub(super) fn files(data: File, control: File, names: Names) -> Self {
        Self {
            data,
            words: Reach::Files {
                control,
                _names: names,
            },
        }
    }

    /// Writes what a person with a hex dump, and a shim of another version, would look for.
    pub(super) fn write_constants(&self, generation: u64) {
        let mut constants = [0; 24];
        constants[MAGIC_AT..MAGIC_AT + 8].copy_from_slice(&MAGIC.to_le_bytes());
        constants[VERSION_AT..VERSION_AT + 2].copy_from_slice(&VERSION.to_le_bytes());
        constants[GENERATION_AT..].copy_from_slice(&generation.to_le_bytes());
        // Informational: nobody decides by them, so a failure to write them stops nothing.
        drop(self.data.write_all_at(&constants, 0));
        self.store_released(0);
        match &self.words {
            Reach::Mapped { control, .. } => {
                control.u64(MAGIC_AT).store(MAGIC, Ordering::Relaxed);
                control
                    .u32(VERSION_AT)
                    .store(u32::from(VERSION), Ordering::Relaxed);
                control
                    .u64(GENERATION_AT)
                    .store(generation, Ordering::Relaxed);
            }
            Reach::Files { control, .. } => drop(control.write_all_at(&constants, 0)),
        }
        const { assert!(CAPACITY_LOG2_AT < GENERATION_AT) }
    }

    fn u64_in_data(&self, at: usize) -> Option<u64> {
        let mut word = [0; 8];
        self.data.read_exact_at(&mut word, at as u64).ok()?;
        Some(u64::from_le_bytes(word))
    }
}

impl DaemonWords for DaemonMemory {
    fn head(&self) -> Head {
        match &self.words {
            Reach::Mapped { head, .. } => Head::At(head.u64(HEAD_AT).load(Ordering::Acquire)),
            Reach::Files { .. } => {
                // Head and its inverse, in one read; the shim may stand between its two stores.
                let mut pair = [0; 16];
                for _ in 0..4 {
                    if self.data.read_exact_at(&mut pair, HEAD_AT as u64).is_err() {
                        return Head::Gone;
                    }
                    let [head, inverted] = [&pair[..8], &pair[8..]].map(|word| {
                        word.iter()
                            .rev()
                            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
                    });
                    if head == !inverted {
                        return Head::At(head);
                    }
                    std::hint::spin_loop();
                }
                // Never written: no shim has come yet.
                if pair == [0; 16] {
                    Head::At(0)
                } else {
                    Head::Unsettled
                }
            }
        }
    }

    fn store_armed(&self, number: u32) {
        match &self.words {
            Reach::Mapped { control, .. } => control.u32(ARMED_AT).store(number, Ordering::Release),
            Reach::Files { control, .. } => {
                drop(control.write_all_at(&number.to_le_bytes(), ARMED_AT as u64));
            }
        }
    }

    fn store_released(&self, released: u64) {
        match &self.words {
            Reach::Mapped { control, .. } => {
                control
                    .u64(RELEASED_INVERTED_AT)
                    .store(!released, Ordering::Release);
                control.u64(RELEASED_AT).store(released, Ordering::Release);
            }
            Reach::Files { control, .. } => {
                let mut pair = [0; 16];
                pair[..8].copy_from_slice(&released.to_le_bytes());
                pair[8..].copy_from_slice(&(!released).to_le_bytes());
                drop(control.write_all_at(&pair, RELEASED_AT as u64));
            }
        }
    }

    fn wanted(&self) -> u32 {
        match &self.words {
            Reach::Mapped { head, .. } => head.u32(WANTED_AT).load(Ordering::Acquire),
            Reach::Files { .. } => {
                let mut word = [0; 4];
                match self.data.read_exact_at(&mut word, WANTED_AT as u64) {
                    Ok(()) => u32::from_le_bytes(word),
                    Err(_) => 0,
                }
            }
        }
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// The rule that a ring broke. The ring is dropped whole; what was judged before stays good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Poison {
    /// V2: head is no multiple of the frame alignment.
    #[error("head {head} is not where a frame could start")]
    HeadUnaligned {
        /// As written.
        head: u64,
    },
    /// V2: head went back, or further ahead than the ring is long.
    #[error("head {head} is not between {last} and {capacity} bytes after {tail}")]
    HeadOutside {
        /// As written.
        head: u64,
        /// As written before.
        last: u64,
        /// How far we have read.
        tail: u64,
        /// The ring's length.
        capacity: u64,
    },
    /// The memory was cut short or taken away.
    #[error("the ring's memory was taken away")]
    MemoryGone,
    /// V4, V5, V6: bytes that are no frame.
    #[error("{error} (at {position})")]
    Frame {
        /// Which rule.
        error: FrameError,
        /// Where in the ring's life.
        position: u64,
    },
    /// V4: a frame is missing or repeated.
    #[error("frame {found} where {expected} should be")]
    Sequence {
        /// One more than the last.
        expected: u64,
        /// In the header.
        found: u64,
    },
    /// V4: a pad anywhere but before the ring's end, or a frame across it.
    #[error("a frame does not end at or before the ring's end")]
    Wrap,
    /// V4: head stands inside a frame.
    #[error("head stands inside a frame")]
    HeadInFrame,
    /// V6: a lane that was never given.
    #[error("lane {0} was never given")]
    Lane(u32),
    /// V6: a lane speaks of another file or generation than it was given for.
    #[error("lane {lane} speaks of file {file}, generation {generation}")]
    Other {
        /// The lane.
        lane: u32,
        /// As in the frame.
        file: u32,
        /// As in the frame.
        generation: u16,
    },
    /// V6: bytes that do not follow the last ones.
    #[error("lane {lane} goes on at {found} instead of {expected}")]
    Jump {
        /// The lane.
        lane: u32,
        /// Where it stood.
        expected: u64,
        /// As in the frame.
        found: u64,
    },
    /// V6: an offset past what a file can have.
    #[error("lane {0} goes past the largest file")]
    Overflow(u32),
}

/// What one drain did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Bytes of whole judged frames at the start of the private copy; 0 when there were none.
    pub bytes: usize,
    /// Frames among them, pads included.
    pub frames: usize,
    /// The shim waits for space and must be told.
    pub nudge: bool,
    /// There is more.
    pub more: bool,
}

/// The consumer's end of one ring.
#[derive(Debug)]
pub struct Consumer {
    memory: DaemonMemory,
    capacity: u64,
    tail: u64,
    last_head: u64,
    sequence: u64,
    bell: DaemonBell,
}

impl Consumer {
    /// A consumer on fresh memory.
    #[must_use]
    pub fn new(memory: DaemonMemory, capacity_log2: u8) -> Self {
        Self {
            memory,
            capacity: capacity(capacity_log2),
            tail: 0,
            last_head: 0,
            sequence: 0,
            bell: DaemonBell::default(),
        }
    }

    /// The same memory read from its start again, as if nothing had been drained.
    #[must_use]
    pub fn begun_anew(self) -> Self {
        Self {
            tail: 0,
            last_head: 0,
            sequence: 0,
            ..self
        }
    }

    /// Smallest private copy that `drain` needs: one frame.
    #[must_use]
    pub fn copy_minimum(&self) -> usize {
        frame_limit(self.capacity)
    }

    /// How far it has read, in bytes since the ring began.
    #[must_use]
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Bytes published and not yet drained (V2).
    ///
    /// # Errors
    /// Where `head` makes no sense.
    pub fn pending(&mut self) -> Result<usize, Poison> {
        let head = match self.memory.head() {
            Head::At(head) => head,
            Head::Unsettled => self.last_head,
            Head::Gone => return Err(Poison::MemoryGone),
        };
        if !head.is_multiple_of(ALIGN as u64) {
            return Err(Poison::HeadUnaligned { head });
        }
        let used = head
            .checked_sub(self.tail)
            .filter(|used| *used <= self.capacity);
        let (Some(used), true) = (used, head >= self.last_head) else {
            return Err(Poison::HeadOutside {
                head,
                last: self.last_head,
                tail: self.tail,
                capacity: self.capacity,
            });
        };
        self.last_head = head;
        // At most the capacity, which is at most 4 MiB.
        Ok(used as usize)
    }

    /// Copies what is published to the start of `copy` (16-aligned, at least `copy_minimum` or `pending` long),
    /// judges it there (V4), and gives the space back.
    ///
    /// # Errors
    /// The first rule broken. The frames before it are lost with it: the shim reads them again from the file.
    pub fn drain(&mut self, copy: &mut [u8]) -> Result<Drained, Poison> {
        let used = self.pending()?;
        let take = used.min(copy.len()) & !(ALIGN - 1);
        let copy = &mut copy[..take];
        let at = (self.tail % self.capacity) as usize;
        let (first, second) = copy.split_at_mut(take.min(self.capacity as usize - at));
        for (part, at) in [(first, at), (second, 0)] {
            self.memory
                .data
                .read_exact_at(part, (PAGE + at) as u64)
                .map_err(|_| Poison::MemoryGone)?;
        }
        let (bytes, frames) = self.judge(copy, take == used)?;
        self.tail += bytes as u64;
        let nudge = bytes > 0 && self.bell.release(&self.memory, self.tail);
        Ok(Drained {
            bytes,
            frames,
            nudge,
            more: bytes < used,
        })
    }

    /// V4 on the private copy: headers, sequence, wrap. Gives the bytes and number of whole frames.
    fn judge(&mut self, copy: &[u8], is_all: bool) -> Result<(usize, usize), Poison> {
        let limit = frame_limit(self.capacity);
        let (mut done, mut frames) = (0, 0);
        while done < copy.len() {
            let position = self.tail + done as u64;
            let header = match Header::read(&copy[done..], limit) {
                Ok((header, _)) => header,
                Err(FrameError::Short) if !is_all => break,
                Err(FrameError::Short) => return Err(Poison::HeadInFrame),
                Err(error) => return Err(Poison::Frame { error, position }),
            };
            let total = header.total as usize;
            if total > copy.len() - done {
                if is_all {
                    return Err(Poison::HeadInFrame);
                }
                break;
            }
            if header.sequence != self.sequence {
                return Err(Poison::Sequence {
                    expected: self.sequence,
                    found: header.sequence,
                });
            }
            let to_end = (self.capacity - position % self.capacity) as usize;
            if total > to_end || (header.kind == Kind::Pad && total != to_end) {
                return Err(Poison::Wrap);
            }
            self.sequence += 1;
            done += total;
            frames += 1;
        }
        Ok((done, frames))
    }

    /// Before sleeping: true when the shim will ring, false when there is something to drain.
    #[must_use = "false means: do not sleep"]
    pub fn arm(&mut self) -> bool {
        self.bell.arm(&self.memory, self.tail)
    }

    /// After sleeping.
    pub fn disarm(&mut self) {
        self.bell.disarm(&self.memory);
    }

    /// The shim's count of its turns, for the status; not judged.
    #[must_use]
    pub fn heartbeat(&self) -> u64 {
        match &self.memory.words {
            Reach::Mapped { head, .. } => head.u64(HEARTBEAT_AT).load(Ordering::Relaxed),
            Reach::Files { .. } => self.memory.u64_in_data(HEARTBEAT_AT).unwrap_or(0),
        }
    }
}

/// A judged frame of a private copy.
#[derive(Debug, Clone)]
pub enum Frame<'copy> {
    /// Bytes of a lane.
    Batch {
        /// Whose.
        lane: u32,
        /// Where the payload is in the copy.
        payload: std::ops::Range<usize>,
        /// What the shim says of it.
        metadata: BatchView<'copy>,
        /// Its last byte ends no line.
        continues: bool,
    },
    /// A word about a lane.
    Mark {
        /// Which.
        lane: u32,
        /// What about it.
        what: What,
        /// The numbers.
        mark: MarkMetadata,
    },
}

/// The frames of a drained copy, pads left out; each is judged (V5, line lengths of V6) as it is given.
/// After an error there is no further frame.
#[derive(Debug)]
pub struct Frames<'copy> {
    copy: &'copy [u8],
    done: usize,
}

/// The frames of the first `Drained::bytes` of a private copy; also of any other bytes, for parsers' tests.
#[must_use]
pub fn frames(copy: &[u8]) -> Frames<'_> {
    Frames { copy, done: 0 }
}

impl<'copy> Iterator for Frames<'copy> {
    type Item = Result<Frame<'copy>, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.done < self.copy.len() {
            let start = self.done;
            let read = self.copy.get(start..).unwrap_or_default();
            let frame = match Header::read(read, super::layout::FRAME_LIMIT) {
                Ok((header, metadata)) => {
                    self.done += header.total as usize;
                    match header.kind {
                        Kind::Pad => continue,
                        Kind::Batch => {
                            read_batch(metadata, header.payload).map(|metadata| Frame::Batch {
                                lane: header.lane,
                                payload: start + header.payload_range().start
                                    ..start + header.payload_range().end,
                                metadata,
                                continues: header.flags & FLAG_CONTINUES != 0,
                            })
                        }
                        Kind::Mark => read_mark(metadata).map(|(what, mark)| Frame::Mark {
                            lane: header.lane,
                            what,
                            mark,
                        }),
                    }
                }
                Err(error) => Err(error),
            };
            if frame.is_err() {
                self.done = self.copy.len();
            }
            return Some(frame);
        }
        None
    }
}
