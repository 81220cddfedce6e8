//! Lanes: which file, generation and offset each lane stands at (V6).
//! Place: after `consume`, before bytes become a stream's.
//! Invariants: only the daemon gives lanes, each number once; a lane's bytes follow one another; what a pod sends in a
//! lane that was taken back is dropped unread, because it was on its way before the pod could know.

use std::collections::BTreeMap;

use super::consume::{Frame, Poison};
use crate::wire::frame::What;

/// One lane: a file read once through the ring, from one position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane {
    /// The shim's number of the file.
    pub file: u32,
    /// The generation that the daemon assigned.
    pub generation: u16,
    /// Where its next byte is in the file.
    pub offset: u64,
    /// The file's length as last told; not before `offset`.
    pub size: u64,
}

/// What a frame means after V6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// Bytes from `offset` on.
    Bytes {
        /// Whose.
        lane: Lane,
        /// Where they start.
        offset: u64,
    },
    /// A word about the lane; after `Truncated` and `Finished` it is taken back.
    Mark {
        /// Whose, as it stood before.
        lane: Lane,
        /// What.
        what: What,
        /// How many bytes it is about.
        bytes: u64,
    },
    /// Sent before the pod knew that the lane was taken back.
    Stale,
}

/// The lanes of one ring.
#[derive(Debug, Default)]
pub struct Lanes {
    live: BTreeMap<u32, Lane>,
    given: u32,
}

impl Lanes {
    /// Gives a new lane. Numbers begin at 1 and are not used again.
    pub fn give(&mut self, file: u32, generation: u16, offset: u64) -> u32 {
        self.given = self.given.saturating_add(1);
        self.live.insert(
            self.given,
            Lane {
                file,
                generation,
                offset,
                size: offset,
            },
        );
        self.given
    }

    /// Takes a lane back.
    pub fn take(&mut self, lane: u32) -> Option<Lane> {
        self.live.remove(&lane)
    }

    /// Where a lane stands.
    #[must_use]
    pub fn get(&self, lane: u32) -> Option<&Lane> {
        self.live.get(&lane)
    }

    /// Live lanes.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Lane)> {
        self.live.iter().map(|(number, lane)| (*number, lane))
    }

    /// Live lanes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether no lane is live.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Judges a frame by V6 and moves its lane.
    ///
    /// # Errors
    /// The rule that was broken.
    pub fn judge(&mut self, frame: &Frame<'_>) -> Result<Judged, Poison> {
        let (number, file, generation, offset, size) = match frame {
            Frame::Batch { lane, metadata, .. } => (
                *lane,
                metadata.file(),
                metadata.generation(),
                metadata.offset(),
                metadata.size(),
            ),
            Frame::Mark { lane, mark, .. } => {
                (*lane, mark.file, mark.generation, mark.offset, mark.size)
            }
        };
        let Some(lane) = self.live.get_mut(&number) else {
            return if number == 0 || number > self.given {
                Err(Poison::Lane(number))
            } else {
                Ok(Judged::Stale)
            };
        };
        if (lane.file, lane.generation) != (file, generation) {
            return Err(Poison::Other {
                lane: number,
                file,
                generation,
            });
        }
        if lane.offset != offset {
            return Err(Poison::Jump {
                lane: number,
                expected: lane.offset,
                found: offset,
            });
        }
        let before = *lane;
        let moved = match frame {
            Frame::Batch { payload, .. } => payload.len() as u64,
            Frame::Mark {
                what: What::Gap,
                mark,
                ..
            } => mark.bytes,
            Frame::Mark { .. } => 0,
        };
        // A file's offsets are signed in the kernel.
        lane.offset = offset
            .checked_add(moved)
            .filter(|end| i64::try_from(*end).is_ok())
            .ok_or(Poison::Overflow(number))?;
        lane.size = size.clamp(lane.offset, i64::MAX as u64);
        let after = *lane;
        Ok(match frame {
            Frame::Batch { .. } => Judged::Bytes {
                lane: after,
                offset,
            },
            Frame::Mark { what, mark, .. } => {
                if *what != What::Gap {
                    self.live.remove(&number);
                }
                Judged::Mark {
                    lane: before,
                    what: *what,
                    bytes: mark.bytes,
                }
            }
        })
    }
}
