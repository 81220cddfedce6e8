//! Batches: encoded records bound for one target of one output, with the spans they came from.
//! Place: parse -> **batch** -> ship.
//! Invariants: a chunk is one slice encoded once, shared by every flow that was at the same place; its bytes
//! count against the budget for as long as anyone holds it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::ledger::Tally;

pub mod escape;
pub mod id;
pub mod json;
pub mod target;
pub mod time;

/// How records are written into a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// One JSON object and `\n` per record.
    Json,
    /// The record's text and `\n`.
    Raw,
    /// Elasticsearch bulk: `{"create":{"_id":"…"}}\n`, then the object and `\n`. The index stands in the request.
    Bulk,
}

/// Days since 1970-01-01 (UTC): what `{date}` in an index name stands for.
pub type Day = i32;

/// One record in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Where it ends in the chunk's bytes (line end included); it starts where the one before ends.
    pub encoded_end: u32,
    /// Bytes of the source that became this record, line ends and envelopes included.
    pub source_bytes: u32,
    /// Physical lines of the source that became this record.
    pub lines: u32,
    /// Where it starts in its file.
    pub start: u64,
}

/// The records of one slice that belong to one day, encoded by one codec.
#[derive(Debug)]
pub struct Chunk {
    /// The encoded records.
    pub bytes: Bytes,
    /// One per record, in order.
    pub records: Vec<Mark>,
    /// What all records together became of.
    pub total: Tally,
    /// The day whose index the records go to.
    pub day: Day,
    /// First 8 bytes of every record id of this source.
    pub source_hash: u64,
    /// The stream's generation.
    pub generation: u16,
    /// Counts the bytes until the last holder lets go.
    pub hold: Hold,
}

impl Chunk {
    /// Record `n` as encoded, line end included.
    pub fn record(&self, n: usize) -> &[u8] {
        let start = if n == 0 {
            0
        } else {
            self.records[n - 1].encoded_end as usize
        };
        &self.bytes[start..self.records[n].encoded_end as usize]
    }
}

/// A number of bytes counted in a budget until this is dropped.
#[derive(Debug)]
pub struct Hold {
    bytes: usize,
    budget: Arc<AtomicUsize>,
}

impl Hold {
    /// Counts `bytes` in `budget`.
    pub fn new(budget: &Arc<AtomicUsize>, bytes: usize) -> Self {
        budget.fetch_add(bytes, Ordering::Relaxed);
        Self {
            bytes,
            budget: Arc::clone(budget),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.budget.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Buffers of chunks, used again: a fresh one would cost a page fault for every 4 KiB.
#[derive(Debug, Default)]
pub struct Pool(Mutex<Pooled>);

#[derive(Debug, Default)]
struct Pooled {
    buffers: Vec<Vec<u8>>,
    /// Their capacities together.
    bytes: usize,
}

/// Bytes of all buffers kept, which count against no budget: about what one batch gives back at once.
const POOLED_BYTES: usize = 8 * 1024 * 1024;
/// A larger one is not kept: long lines would fill the pool with buffers that short ones need not.
const LARGEST_POOLED_BYTES: usize = 2 * 1024 * 1024;

impl Pool {
    /// An empty buffer.
    pub fn take(&self) -> Vec<u8> {
        let mut pooled = self.0.lock();
        let buffer = pooled.buffers.pop().unwrap_or_default();
        pooled.bytes -= buffer.capacity();
        buffer
    }
    /// Gives a buffer back.
    pub fn give(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() == 0 || buffer.capacity() > LARGEST_POOLED_BYTES {
            return;
        }
        buffer.clear();
        let mut pooled = self.0.lock();
        if pooled.bytes + buffer.capacity() <= POOLED_BYTES {
            pooled.bytes += buffer.capacity();
            pooled.buffers.push(buffer);
        }
    }
    /// The buffer as bytes that come back here when nobody holds them any more.
    pub fn lend(self: &Arc<Self>, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent {
            buffer,
            pool: Arc::clone(self),
        })
    }
}

#[derive(Debug)]
struct Lent {
    buffer: Vec<u8>,
    pool: Arc<Pool>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.buffer));
    }
}

/// A part of a batch: the records of one slice of one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanOf {
    /// The source, by the pipeline's number.
    pub source: u64,
    /// The span's number in the source's flow to the batch's output.
    pub span: u64,
}

/// Encoded records bound for one target of one output.
#[derive(Debug)]
pub struct Batch {
    /// Unique among this output's batches since the start.
    pub id: u64,
    /// Index, topic or logstore as declared.
    pub target: Arc<str>,
    /// The day of its chunks.
    pub day: Day,
    /// One slice each, in the order they were read.
    pub chunks: Vec<Arc<Chunk>>,
    /// Of which flow each chunk is a span; as many as chunks.
    pub spans: Vec<SpanOf>,
    /// Records in all chunks.
    pub records: usize,
    /// Encoded bytes in all chunks.
    pub bytes: usize,
}

impl Batch {
    /// Every record in order: its number in the batch, its chunk, and its encoded bytes with line end.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Arc<Chunk>, &[u8])> {
        self.chunks
            .iter()
            .flat_map(|chunk| (0..chunk.records.len()).map(move |n| (chunk, chunk.record(n))))
            .enumerate()
            .map(|(n, (chunk, bytes))| (n, chunk, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_kept_for_later_stay_within_their_bound_however_many_and_large_come_back() {
        let pool = Pool::default();
        for size in [1 << 10, 700 << 10, 2 << 20, 5 << 20, 64 << 10] {
            for _ in 0..64 {
                pool.give(Vec::with_capacity(size));
                let kept: usize = (pool.0.lock().buffers.iter().map(Vec::capacity)).sum();
                assert_eq!(kept, pool.0.lock().bytes);
                assert!(kept <= POOLED_BYTES);
            }
        }
        while pool.take().capacity() > 0 {}
        assert_eq!(pool.0.lock().bytes, 0);
    }
}
