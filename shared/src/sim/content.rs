//! What is in a file: bytes in runs, with holes between them, in blocks as a file system gives them out.
//! Place: within **sim**; the disk's files, and what of them a power loss leaves.
//! Invariants: a run begins at a block's start; between two runs lies at least one whole hole; no run reaches past
//! the size. A terabyte of hole costs nothing.

use std::ops::Range;

/// Bytes in a block: the unit of holes, and of what a file occupies.
pub(super) const BLOCK: u64 = 4096;

/// A file's bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Content {
    size: u64,
    runs: Vec<Run>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    at: u64,
    bytes: Vec<u8>,
}

impl Run {
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }

    /// Where its last block ends.
    fn block_end(&self) -> u64 {
        block_up(self.end())
    }
}

impl Content {
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.block_end() - run.at).sum()
    }

    /// Reads at `offset`; 0 at the end.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let length = (self.size.saturating_sub(offset)).min(buffer.len() as u64);
        let end = offset + length;
        let buffer = &mut buffer[..index(length)];
        let mut at = offset;
        let mut run = self.runs.partition_point(|run| run.end() <= offset);
        while at < end {
            let left = &mut buffer[index(at - offset)..];
            match self.runs.get(run) {
                Some(run) if run.at < end => {
                    let hole = run.at.saturating_sub(at);
                    left[..index(hole)].fill(0);
                    at += hole;
                    let from = index(at - run.at);
                    let taken = (run.bytes.len() - from).min(index(end - at));
                    buffer[index(at - offset)..][..taken]
                        .copy_from_slice(&run.bytes[from..from + taken]);
                    at += taken as u64;
                }
                _ => {
                    left.fill(0);
                    at = end;
                }
            }
            run += 1;
        }
        index(length)
    }

    /// Its bytes without the holes: each run's place, and the run.
    pub(super) fn data(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.runs.iter().map(|run| (run.at, run.bytes.as_slice()))
    }

    /// All its bytes, holes as zeros.
    pub(super) fn to_vec(&self) -> Vec<u8> {
        self.slice(0..self.size)
    }

    /// The bytes of `range`, as far as the file reaches.
    pub(super) fn slice(&self, range: Range<u64>) -> Vec<u8> {
        let length = range.end.min(self.size).saturating_sub(range.start);
        let mut bytes = vec![0; index(length)];
        self.read(&mut bytes, range.start);
        bytes
    }

    /// Writes at `offset`; what lies between the end and it becomes a hole.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len() as u64;
        self.size = self.size.max(end);
        let from = block_down(offset);
        // Most writes are appended to the last run.
        if let Some(last) = self.runs.last_mut()
            && last.at <= from
            && from <= last.block_end()
        {
            last.put(offset, bytes);
            return;
        }
        let first = self.runs.partition_point(|run| run.block_end() < from);
        let after = self
            .runs
            .partition_point(|run| run.at <= block_up(end))
            .max(first);
        let mut joined = Run {
            at: self.runs.get(first).map_or(from, |run| run.at.min(from)),
            bytes: Vec::new(),
        };
        for run in self.runs.drain(first..after) {
            joined.put(run.at, &run.bytes);
        }
        joined.put(offset, bytes);
        self.runs.insert(first, joined);
    }

    /// Cuts or extends; what is new is a hole.
    pub(super) fn set_len(&mut self, size: u64) {
        if size < self.size {
            let kept = self.runs.partition_point(|run| run.at < size);
            self.runs.truncate(kept);
            if let Some(last) = self.runs.last_mut() {
                last.bytes.truncate(index(
                    size.saturating_sub(last.at).min(last.end() - last.at),
                ));
            }
        }
        self.size = size;
    }

    /// Makes a hole: whole blocks are given back, parts of blocks become zeros. The size stays.
    pub(super) fn punch(&mut self, range: Range<u64>) {
        let freed = block_up(range.start)..if range.end >= self.size {
            block_up(self.size)
        } else {
            block_down(range.end)
        };
        let mut left = Vec::with_capacity(self.runs.len() + 1);
        for mut run in self.runs.drain(..) {
            let zero = range.start.max(run.at)..range.end.min(run.end());
            if zero.is_empty() {
                left.push(run);
                continue;
            }
            run.bytes[index(zero.start - run.at)..index(zero.end - run.at)].fill(0);
            let hole = freed.start.max(run.at)..freed.end.min(run.block_end());
            if hole.is_empty() {
                left.push(run);
                continue;
            }
            if hole.end < run.end() {
                let behind = run.bytes.split_off(index(hole.end - run.at));
                run.bytes.truncate(index(hole.start - run.at));
                let at = hole.end;
                left.push(run);
                left.push(Run { at, bytes: behind });
            } else {
                run.bytes.truncate(index(hole.start - run.at));
                left.push(run);
            }
        }
        left.retain(|run| !run.bytes.is_empty());
        self.runs = left;
    }

    /// The first offset at or after `offset` that is no hole.
    pub(super) fn next_data(&self, offset: u64) -> Option<u64> {
        let run = self.runs.partition_point(|run| run.block_end() <= offset);
        let found = self.runs.get(run)?.at.max(offset);
        (found < self.size).then_some(found)
    }

    /// How many of `length` bytes at `offset` can be written while only `free` more bytes may be occupied.
    pub(super) fn fits(&self, offset: u64, length: u64, free: u64) -> u64 {
        let end = offset + length;
        let mut free = free / BLOCK;
        let mut block = block_down(offset);
        while block < end {
            let run = self.runs.partition_point(|run| run.block_end() <= block);
            match self.runs.get(run) {
                Some(run) if run.at <= block => block = run.block_end(),
                next => {
                    let hole_end = next.map_or(end, |run| run.at.min(end));
                    let needed = (block_up(hole_end) - block) / BLOCK;
                    if needed > free {
                        return (block + free * BLOCK).saturating_sub(offset);
                    }
                    free -= needed;
                    block += needed * BLOCK;
                }
            }
        }
        length
    }
}

impl Run {
    /// Puts bytes at `offset`, which is not before it and not more than a block behind its last one.
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let from = index(offset - self.at);
        if from > self.bytes.len() {
            self.bytes.resize(from, 0);
        }
        let over = bytes.len().min(self.bytes.len() - from);
        self.bytes[from..from + over].copy_from_slice(&bytes[..over]);
        self.bytes.extend_from_slice(&bytes[over..]);
    }
}

pub(super) fn block_down(offset: u64) -> u64 {
    offset - offset % BLOCK
}

pub(super) fn block_up(offset: u64) -> u64 {
    offset.div_ceil(BLOCK) * BLOCK
}

/// A length that is in memory, as an index.
pub(super) fn index(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: u64 = 6 * BLOCK;

    #[derive(Debug, Clone)]
    enum Op {
        Write(u64, u64, u8),
        SetLen(u64),
        Punch(u64, u64),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let near_a_block = prop_oneof![
            0..MOST,
            (0..6_u64, 0..3_u64).prop_map(|(block, off)| (block * BLOCK + off).saturating_sub(1))
        ];
        let op = prop_oneof![
            3 => (near_a_block.clone(), 1..2 * BLOCK, any::<u8>())
                .prop_map(|(at, len, byte)| Op::Write(at, len, byte)),
            1 => near_a_block.clone().prop_map(Op::SetLen),
            1 => (near_a_block.clone(), near_a_block).prop_map(|(a, b)| Op::Punch(a.min(b), a.max(b))),
        ];
        prop::collection::vec(op, 1..12)
    }

    proptest! {
        /// Against plain bytes and a flag for each block.
        #[test]
        fn runs_hold_what_plain_bytes_would_hold(ops in ops()) {
            let mut content = Content::default();
            let mut plain: Vec<u8> = Vec::new();
            let mut held = [false; 10];
            for op in ops {
                match op {
                    Op::Write(at, len, byte) => {
                        let bytes = vec![byte; index(len)];
                        content.write(at, &bytes);
                        plain.resize(plain.len().max(index(at + len)), 0);
                        plain[index(at)..index(at + len)].copy_from_slice(&bytes);
                        held[index(at / BLOCK)..index((at + len).div_ceil(BLOCK))].fill(true);
                    }
                    Op::SetLen(len) => {
                        content.set_len(len);
                        plain.resize(index(len), 0);
                        held[index(len.div_ceil(BLOCK))..].fill(false);
                    }
                    Op::Punch(from, to) => {
                        content.punch(from..to);
                        let size = plain.len() as u64;
                        let reach = from.min(size)..to.min(size);
                        plain[index(reach.start)..index(reach.end)].fill(0);
                        let end = if to >= size { block_up(size) } else { block_down(to) };
                        if block_up(from) < end {
                            held[index(from.div_ceil(BLOCK))..index(end / BLOCK)].fill(false);
                        }
                    }
                }
                prop_assert_eq!(content.to_vec(), plain.clone());
                let blocks = held.iter().filter(|held| **held).count() as u64;
                prop_assert_eq!(content.disk_bytes(), blocks * BLOCK);
                for at in [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 7, 5 * BLOCK, MOST] {
                    let model = (at..plain.len() as u64).find(|at| held[index(at / BLOCK)]);
                    prop_assert_eq!(content.next_data(at), model);
                    for free in [0, 1, 2, 9] {
                        let mut room = free;
                        let fits = (at..at + 2 * BLOCK).take_while(|byte| {
                            let new = !held[index(byte / BLOCK)]
                                && (*byte == at || byte % BLOCK == 0);
                            room -= i64::from(new);
                            room >= 0
                        });
                        let fits = fits.count() as u64;
                        let free = free.unsigned_abs() * BLOCK;
                        prop_assert_eq!(content.fits(at, 2 * BLOCK, free), fits);
                    }
                }
            }
        }
    }

    #[test]
    fn a_terabyte_of_hole_costs_nothing() {
        let mut content = Content::default();
        content.write(0, b"head");
        content.write(1 << 40, b"tail");
        assert_eq!(content.disk_bytes(), 2 * BLOCK);
        assert_eq!(content.next_data(4096), Some(1 << 40));
        assert_eq!(content.slice((1 << 40) - 2..u64::MAX), b"\0\0tail");
    }
}
