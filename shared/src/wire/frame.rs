//! A frame of the ring: its 32-byte header and its metadata, written, read, and judged.
//! Place: `ring::produce` writes it after the log's bytes, `ring::consume` reads it from its private copy.
//! Invariants: a header is believed only after `Header::read`, which checks every length against the others and the
//! checksum; metadata only after `rkyv` has validated it in the exact slice that the header names.
//!
//! ```text
//! 0        4     5      6          8          16       20     24      28    32            …16      …32
//! | total  |kind |flags |metadata  | sequence |payload | lane | crc32c |  0  | payload … |0| metadata |0|
//! |  u32   | u8  | u8   |bytes u16 |   u64    |bytes   | u32  |  u32   | u32 | log bytes | | rkyv     | |
//! ```
//! All little endian. A frame starts at a multiple of 32, so what is left before the ring's end always holds a
//! header; the metadata starts at a multiple of 16. The checksum covers header (its own field as 0) and metadata;
//! log bytes need none: a pod may write what it likes into its own log.

use rkyv::rancor::Failure;
use rkyv::ser::Positional;
use rkyv::ser::allocator::SubAllocator;
use rkyv::ser::writer::Buffer;
use rkyv::{Archive, Serialize};

/// Bytes of a header.
pub const HEADER: usize = 32;

/// Frames start at, and are as long as, multiples of this.
pub const ALIGN: usize = 32;

/// Metadata starts at a multiple of this.
pub const METADATA_ALIGN: usize = 16;

/// Longest metadata: its length is a `u16`.
pub const METADATA_LIMIT: usize = u16::MAX as usize;

/// Room that metadata without line lengths always fits in.
pub const METADATA_ROOM: usize = 96;

/// The payload's last byte ends no line: the line goes on in this lane's next frame.
pub const FLAG_CONTINUES: u8 = 1;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of one lane.
    Batch,
    /// Nothing: what was left before the ring's end.
    Pad,
    /// A word about a lane, in its place among the lane's bytes.
    Mark,
}

/// A frame's first 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the whole frame.
    pub total: u32,
    /// What it is.
    pub kind: Kind,
    /// `FLAG_CONTINUES`.
    pub flags: u8,
    /// Bytes of metadata.
    pub metadata: u16,
    /// One more than the frame before, pads included.
    pub sequence: u64,
    /// Bytes of payload.
    pub payload: u32,
    /// Whose bytes; 0 for a pad.
    pub lane: u32,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a header, or than its `total`.
    #[error("the frame ends before it is whole")]
    Short,
    /// Not one of ours.
    #[error("no frame is of kind {0}")]
    Kind(u8),
    /// Unknown flags or bytes that must be 0.
    #[error("reserved bits are set")]
    Reserved,
    /// Lengths that contradict each other or exceed the limit.
    #[error("a frame of {total} bytes cannot hold {payload} bytes and {metadata} of metadata")]
    Lengths {
        /// As the header says.
        total: u32,
        /// As the header says.
        payload: u32,
        /// As the header says.
        metadata: u16,
    },
    /// Header or metadata changed on the way.
    #[error("the checksum is {found:08x}, not {expected:08x}")]
    Checksum {
        /// Of the bytes.
        expected: u32,
        /// In the header.
        found: u32,
    },
    /// `rkyv` refuses the metadata.
    #[error("the metadata is no archive of this schema")]
    Metadata,
    /// Line lengths that are 0 or do not add up to the payload.
    #[error("line lengths do not add up to the payload")]
    LineLengths,
}

/// `length` rounded up to a multiple of `to`, a power of two. Saturates.
#[must_use]
pub const fn round_up(length: usize, to: usize) -> usize {
    length.saturating_add(to - 1) & !(to - 1)
}

/// Bytes of a frame with this much payload and metadata.
#[must_use]
pub const fn frame_length(payload: usize, metadata: usize) -> usize {
    round_up(metadata_at(payload).saturating_add(metadata), ALIGN)
}

/// Where the metadata starts in a frame with this much payload.
#[must_use]
pub const fn metadata_at(payload: usize) -> usize {
    HEADER.saturating_add(round_up(payload, METADATA_ALIGN))
}

impl Header {
    /// The header of a frame with this much payload and metadata.
    #[must_use]
    pub fn new(kind: Kind, lane: u32, sequence: u64, payload: u32, metadata: u16) -> Self {
        let total = frame_length(payload as usize, metadata as usize);
        Self {
            total: u32::try_from(total).unwrap_or(u32::MAX),
            kind,
            flags: 0,
            metadata,
            sequence,
            payload,
            lane,
        }
    }

    /// The 32 bytes, with their checksum over `metadata`.
    #[must_use]
    pub fn write(&self, metadata: &[u8]) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..4].copy_from_slice(&self.total.to_le_bytes());
        bytes[4] = match self.kind {
            Kind::Batch => 1,
            Kind::Pad => 2,
            Kind::Mark => 3,
        };
        bytes[5] = self.flags;
        bytes[6..8].copy_from_slice(&self.metadata.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.payload.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.lane.to_le_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes), metadata);
        bytes[24..28].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads and judges the header of the frame that starts `bytes`; `limit` is the longest frame allowed.
    /// Gives the header and the metadata's bytes.
    ///
    /// # Errors
    /// Whatever keeps it from being a frame.
    pub fn read(bytes: &[u8], limit: usize) -> Result<(Self, &[u8]), FrameError> {
        let head: &[u8; HEADER] = bytes.first_chunk().ok_or(FrameError::Short)?;
        let u32_at =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let kind = match head[4] {
            1 => Kind::Batch,
            2 => Kind::Pad,
            3 => Kind::Mark,
            other => return Err(FrameError::Kind(other)),
        };
        let header = Self {
            total: u32_at(0),
            kind,
            flags: head[5],
            metadata: u16::from_le_bytes([head[6], head[7]]),
            sequence: u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32,
            payload: u32_at(16),
            lane: u32_at(20),
        };
        if header.flags & !FLAG_CONTINUES != 0 || u32_at(28) != 0 {
            return Err(FrameError::Reserved);
        }
        let total = header.total as usize;
        let lengths = FrameError::Lengths {
            total: header.total,
            payload: header.payload,
            metadata: header.metadata,
        };
        if total > limit || total < HEADER || !total.is_multiple_of(ALIGN) {
            return Err(lengths);
        }
        let metadata = match kind {
            // A pad has neither, whatever its length: what follows its header is not looked at.
            Kind::Pad if header.payload == 0 && header.metadata == 0 => Some(0..0),
            Kind::Pad => None,
            Kind::Mark if header.payload != 0 => None,
            Kind::Batch if header.payload == 0 => None,
            Kind::Batch | Kind::Mark => {
                let (payload, metadata) = (header.payload as usize, header.metadata as usize);
                let start = metadata_at(payload);
                (frame_length(payload, metadata) == total).then(|| start..start + metadata)
            }
        };
        let metadata = metadata.ok_or(lengths)?;
        let metadata = bytes
            .get(..total)
            .and_then(|frame| frame.get(metadata))
            .ok_or(FrameError::Short)?;
        let mut unsummed = *head;
        unsummed[24..28].fill(0);
        let expected = crc32c::crc32c_append(crc32c::crc32c(&unsummed), metadata);
        let found = u32_at(24);
        if expected != found {
            return Err(FrameError::Checksum { expected, found });
        }
        Ok((header, metadata))
    }

    /// Where the payload is in the frame.
    #[must_use]
    pub fn payload_range(&self) -> std::ops::Range<usize> {
        HEADER..HEADER + self.payload as usize
    }
}

/// Which bytes a batch frame holds.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize)]
#[rkyv(derive(Debug))]
pub struct BatchMetadata {
    /// Where the payload starts in its file.
    pub offset: u64,
    /// How long the file was when it was read: a lane whose bytes reach it is at its end.
    pub size: u64,
    /// When it was read, nanoseconds since 1970 by the pod's clock.
    pub read_ns: i64,
    /// The shim's number of the file.
    pub file: u32,
    /// The generation that the daemon assigned.
    pub generation: u16,
    /// Bytes of each line, line end included; empty: the daemon splits.
    pub lines: Vec<u32>,
}

/// What a mark says about its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// `bytes` of the file were not read and will not be: the lane goes on after them.
    Gap,
    /// The file holds other bytes than those that were read: the lane ends, the daemon assigns a generation.
    Truncated,
    /// The file is gone (deleted, or rotated away) and was read to its end: the lane ends.
    Finished,
}

/// A word about a lane, in its place among the lane's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize)]
#[rkyv(derive(Debug))]
pub struct MarkMetadata {
    /// Where the lane stands in its file.
    pub offset: u64,
    /// How many bytes it is about; 0 where it is about none.
    pub bytes: u64,
    /// The file's length now.
    pub size: u64,
    /// The shim's number of the file.
    pub file: u32,
    /// The generation that the daemon assigned.
    pub generation: u16,
    /// 1 gap, 2 truncated, 3 finished.
    pub what: u8,
}

/// A batch's metadata as read from its private copy.
#[derive(Debug, Clone, Copy)]
pub struct BatchView<'copy> {
    archived: &'copy ArchivedBatchMetadata,
}

impl BatchView<'_> {
    /// Where the payload starts in its file.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.archived.offset.to_native()
    }
    /// How long the file was when it was read.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.archived.size.to_native()
    }
    /// When it was read, by the pod's clock.
    #[must_use]
    pub fn read_ns(&self) -> i64 {
        self.archived.read_ns.to_native()
    }
    /// The shim's number of the file.
    #[must_use]
    pub fn file(&self) -> u32 {
        self.archived.file.to_native()
    }
    /// The generation.
    #[must_use]
    pub fn generation(&self) -> u16 {
        self.archived.generation.to_native()
    }
    /// Bytes of each line; empty where the shim did not split.
    pub fn lines(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.archived.lines.iter().map(|length| length.to_native())
    }
}

/// Writes a batch's metadata to the start of `to`; gives its length, or nothing when `to` is too small.
pub fn write_batch(metadata: &BatchMetadata, to: &mut [u8]) -> Option<u16> {
    let written = rkyv::api::low::to_bytes_in_with_alloc::<_, _, Failure>(
        metadata,
        Buffer::from(to),
        SubAllocator::empty(),
    )
    .ok()?;
    u16::try_from(written.pos()).ok()
}

/// Writes a mark's metadata to the start of `to`; gives its length, or nothing when `to` is too small.
pub fn write_mark(mark: &MarkMetadata, to: &mut [u8]) -> Option<u16> {
    let written = rkyv::api::low::to_bytes_in_with_alloc::<_, _, Failure>(
        mark,
        Buffer::from(to),
        SubAllocator::empty(),
    )
    .ok()?;
    u16::try_from(written.pos()).ok()
}

/// Validates a batch's metadata, and its line lengths against the payload.
///
/// # Errors
/// `Metadata` (also where the copy is not aligned), `LineLengths`.
pub fn read_batch(metadata: &[u8], payload: u32) -> Result<BatchView<'_>, FrameError> {
    let archived = rkyv::api::low::access::<ArchivedBatchMetadata, Failure>(metadata)
        .map_err(|_| FrameError::Metadata)?;
    if !archived.lines.is_empty() {
        let mut left = payload;
        for length in archived.lines.iter().map(|length| length.to_native()) {
            left = match left.checked_sub(length) {
                Some(rest) if length > 0 => rest,
                _ => return Err(FrameError::LineLengths),
            };
        }
        if left != 0 {
            return Err(FrameError::LineLengths);
        }
    }
    Ok(BatchView { archived })
}

/// Validates a mark's metadata.
///
/// # Errors
/// `Metadata`.
pub fn read_mark(metadata: &[u8]) -> Result<(What, MarkMetadata), FrameError> {
    let archived = rkyv::api::low::access::<ArchivedMarkMetadata, Failure>(metadata)
        .map_err(|_| FrameError::Metadata)?;
    let what = match archived.what {
        1 => What::Gap,
        2 => What::Truncated,
        3 => What::Finished,
        _ => return Err(FrameError::Metadata),
    };
    Ok((
        what,
        MarkMetadata {
            offset: archived.offset.to_native(),
            bytes: archived.bytes.to_native(),
            size: archived.size.to_native(),
            file: archived.file.to_native(),
            generation: archived.generation.to_native(),
            what: archived.what,
        },
    ))
}

impl What {
    /// As it is written in a mark.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Gap => 1,
            Self::Truncated => 2,
            Self::Finished => 3,
        }
    }
}
