//! The shim's end: log bytes are read straight into the ring, then framed around, then published.
//! Place: the follower -> **produce** -> the daemon's `consume`.
//! Invariants: one producer; nothing is visible before `head` passes it; a slot that is dropped was never there. The
//! daemon is trusted by its shims, yet its `released` is checked: a broken word stops the ring instead of
//! overwriting frames.

use std::sync::atomic::{Ordering, fence};

use super::doorbell::{ShimBell, ShimWords};
use super::layout::{
    ARMED_AT, EPOCH_AT, HEAD_AT, HEAD_INVERTED_AT, HEARTBEAT_AT, PAGE, RELEASED_AT,
    RELEASED_INVERTED_AT, WANTED_AT, capacity, frame_limit,
};
use super::words::Words;
use crate::wire::frame::{
    self, BatchMetadata, FLAG_CONTINUES, HEADER, Header, Kind, METADATA_ROOM, MarkMetadata,
    frame_length, metadata_at, round_up,
};

/// Payload below which a pad is written, if there is room at the start, rather than a frame squeezed in.
const SMALL: usize = 4096;

/// The shim's two mappings.
#[derive(Debug)]
pub struct ShimMemory {
    data: Words,
    control: Words,
}

impl ShimMemory {
    pub(super) fn new(data: Words, control: Words) -> Self {
        Self { data, control }
    }
}

impl ShimWords for ShimMemory {
    fn store_head(&self, head: u64) {
        self.data
            .u64(HEAD_INVERTED_AT)
            .store(!head, Ordering::Release);
        self.data.u64(HEAD_AT).store(head, Ordering::Release);
    }
    fn armed(&self) -> u32 {
        self.control.u32(ARMED_AT).load(Ordering::Acquire)
    }
    fn released(&self) -> Option<u64> {
        let released = self.control.u64(RELEASED_AT).load(Ordering::Acquire);
        let inverted = self
            .control
            .u64(RELEASED_INVERTED_AT)
            .load(Ordering::Acquire);
        (released == !inverted).then_some(released)
    }
    fn store_wanted(&self, number: u32) {
        self.data.u32(WANTED_AT).store(number, Ordering::Release);
    }
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// The daemon's words make no sense: drop this ring and ask for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ring's released position {released} is not between {from} and {head}")]
pub struct Broken {
    /// As the daemon wrote it.
    pub released: u64,
    /// As it was before.
    pub from: u64,
    /// As far as we have written.
    pub head: u64,
}

/// The producer's end of one ring.
#[derive(Debug)]
pub struct Producer {
    memory: ShimMemory,
    capacity: u64,
    head: u64,
    released: u64,
    sequence: u64,
    bell: ShimBell,
}

impl Producer {
    /// A producer on fresh memory.
    #[must_use]
    pub fn new(memory: ShimMemory, capacity_log2: u8, epoch: u64) -> Self {
        memory.data.u64(EPOCH_AT).store(epoch, Ordering::Relaxed);
        memory.store_head(0);
        Self {
            memory,
            capacity: capacity(capacity_log2),
            head: 0,
            released: 0,
            sequence: 0,
            bell: ShimBell::default(),
        }
    }

    /// Most payload that one frame of this ring holds.
    #[must_use]
    pub fn payload_limit(&self) -> usize {
        frame_limit(self.capacity) - HEADER - METADATA_ROOM
    }

    /// Bytes published and not yet released.
    ///
    /// # Errors
    /// Where the daemon's word makes no sense.
    pub fn used(&mut self) -> Result<u64, Broken> {
        self.look()?;
        Ok(self.head - self.released)
    }

    fn look(&mut self) -> Result<(), Broken> {
        if let Some(released) = self.memory.released() {
            if released < self.released || released > self.head {
                return Err(Broken {
                    released,
                    from: self.released,
                    head: self.head,
                });
            }
            self.released = released;
        }
        Ok(())
    }

    /// Room for a frame of up to `want` bytes of payload, maybe less; nothing when the ring is full.
    ///
    /// # Errors
    /// Where the daemon's word makes no sense.
    pub fn slot(&mut self, want: usize) -> Result<Option<Slot<'_>>, Broken> {
        let want = want.clamp(1, self.payload_limit());
        let Some(room) = self.room(
            frame_length(want, METADATA_ROOM),
            frame_length(want.min(SMALL), METADATA_ROOM),
        )?
        else {
            return Ok(None);
        };
        Ok(Some(Slot {
            payload: (room.length - HEADER - METADATA_ROOM).min(want),
            room,
            ring: self,
        }))
    }

    /// Writes a mark; false when the ring is full.
    ///
    /// # Errors
    /// Where the daemon's word makes no sense.
    pub fn mark(&mut self, lane: u32, mark: &MarkMetadata) -> Result<Option<Ring>, Broken> {
        let length = frame_length(0, METADATA_ROOM);
        let Some(room) = self.room(length, length)? else {
            return Ok(None);
        };
        self.pad(room.pad);
        let start = self.place(0);
        let written = self
            .bytes(start, length)
            .and_then(|to| frame::write_mark(mark, &mut to[HEADER..]));
        let Some(metadata) = written else {
            return Ok(None);
        };
        let header = Header::new(Kind::Mark, lane, self.sequence, 0, metadata);
        Ok(Some(self.finish(start, header)))
    }

    /// Contiguous room: `best` bytes, at least `least`, after a pad where the ring's end is too near.
    fn room(&mut self, best: usize, least: usize) -> Result<Option<Room>, Broken> {
        let room = |pad, length| Ok(Some(Room { pad, length }));
        for looked in [false, true] {
            if looked {
                self.look()?;
            }
            let free = (self.capacity - (self.head - self.released)) as usize;
            let to_end = (self.capacity - self.head % self.capacity) as usize;
            if to_end.min(free) >= best {
                return room(0, best);
            }
            // At the wrap the rest is used as it is when it holds something worth a frame.
            if to_end <= free && to_end >= least {
                return room(0, to_end);
            }
            if to_end < least && free >= to_end + least {
                return room(to_end, best.min(free - to_end));
            }
            // Less than asked for is worth taking only when a look has shown that there is no more.
            if looked && free.min(to_end) >= least {
                return room(0, free.min(to_end));
            }
        }
        Ok(None)
    }

    /// Writes a pad of `length` bytes, to be published with the frame that follows it.
    fn pad(&mut self, length: usize) {
        if length == 0 {
            return;
        }
        let start = self.place(0);
        let mut header = Header::new(Kind::Pad, 0, self.sequence, 0, 0);
        header.total = u32::try_from(length).unwrap_or(u32::MAX);
        let bytes = header.write(&[]);
        if let Some(to) = self.bytes(start, HEADER) {
            to.copy_from_slice(&bytes);
        }
        self.head += length as u64;
        self.sequence += 1;
    }

    /// Where the next frame starts in the mapping, `after` bytes of padding.
    fn place(&self, after: usize) -> usize {
        PAGE + ((self.head + after as u64) % self.capacity) as usize
    }

    fn bytes(&mut self, start: usize, length: usize) -> Option<&mut [u8]> {
        self.memory
            .data
            .mapping_mut()
            .data_mut(start..start + length)
    }

    fn finish(&mut self, start: usize, header: Header) -> Ring {
        let at = start + metadata_at(header.payload as usize);
        let metadata = usize::from(header.metadata);
        let written = self
            .memory
            .data
            .mapping_mut()
            .data_mut(at..at + metadata)
            .map(|metadata| header.write(metadata));
        if let (Some(bytes), Some(to)) = (written, self.bytes(start, HEADER)) {
            to.copy_from_slice(&bytes);
        }
        self.head += u64::from(header.total);
        self.sequence += 1;
        if self.bell.publish(&self.memory, self.head) {
            Ring::Needed
        } else {
            Ring::NotNeeded
        }
    }

    /// Asks to be told when a frame of `payload` bytes has room; true when it has already.
    ///
    /// # Errors
    /// Where the daemon's word makes no sense.
    pub fn want_space(&mut self, payload: usize) -> Result<bool, Broken> {
        // Twice: a pad may be needed before it.
        let need = 2 * frame_length(payload.clamp(1, SMALL), METADATA_ROOM) as u64;
        let needed = (self.head + need).saturating_sub(self.capacity);
        let there = self.bell.want(&self.memory, needed);
        self.look()?;
        Ok(there)
    }

    /// Takes the wish for space back.
    pub fn stop_wanting(&mut self) {
        self.bell.stop_wanting(&self.memory);
    }

    /// Shows the daemon that this shim still turns.
    pub fn beat(&self) {
        self.memory
            .data
            .u64(HEARTBEAT_AT)
            .fetch_add(1, Ordering::Relaxed);
    }

    /// Whether everything published has been released: the daemon has its copy.
    ///
    /// # Errors
    /// Where the daemon's word makes no sense.
    pub fn is_drained(&mut self) -> Result<bool, Broken> {
        Ok(self.used()? == 0)
    }
}

/// Whether the daemon sleeps and its eventfd must be rung.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "the daemon sleeps on when its bell is not rung"]
pub enum Ring {
    /// Ring it.
    Needed,
    /// It is awake, or was rung already.
    NotNeeded,
}

/// Room for one batch frame. Dropped, it was never there.
#[derive(Debug)]
pub struct Slot<'ring> {
    ring: &'ring mut Producer,
    room: Room,
    payload: usize,
}

/// Where a frame fits: all multiples of the frame alignment.
#[derive(Debug, Clone, Copy)]
struct Room {
    pad: usize,
    length: usize,
}

impl Slot<'_> {
    /// Where the log's bytes go.
    pub fn payload(&mut self) -> &mut [u8] {
        let start = self.ring.place(self.room.pad) + HEADER;
        let payload = self.payload;
        self.ring.bytes(start, payload).unwrap_or_default()
    }

    /// Publishes the first `payload` bytes. Line lengths that do not fit are left out: the daemon splits.
    /// `payload` of 0, or more than there is, publishes nothing.
    pub fn publish(self, payload: usize, lane: u32, metadata: &mut BatchMetadata) -> Ring {
        if payload == 0 || payload > self.payload {
            return Ring::NotNeeded;
        }
        let ring = self.ring;
        ring.pad(self.room.pad);
        let start = ring.place(0);
        let Some(frame) = ring.bytes(start, self.room.length) else {
            return Ring::NotNeeded;
        };
        let continues = frame[HEADER + payload - 1] != b'\n';
        // The gap before the metadata is zeroed, so that a frame never shows what was there before.
        frame[HEADER + payload..HEADER + round_up(payload, frame::METADATA_ALIGN)].fill(0);
        let room = &mut frame[metadata_at(payload)..];
        let room_length = room.len().min(frame::METADATA_LIMIT);
        let room = &mut room[..room_length];
        let mut length = frame::write_batch(metadata, room);
        if length.is_none() {
            metadata.lines.clear();
            length = frame::write_batch(metadata, room);
        }
        let (Some(length), Ok(payload)) = (length, u32::try_from(payload)) else {
            return Ring::NotNeeded;
        };
        let mut header = Header::new(Kind::Batch, lane, ring.sequence, payload, length);
        if continues {
            header.flags |= FLAG_CONTINUES;
        }
        ring.finish(start, header)
    }
}
