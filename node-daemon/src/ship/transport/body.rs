//! What a request sends: the records of a load as they lie in their chunks.
//! Place: transport; `Web` hands it to the connection piece by piece.
//! Invariants: a run of records that lie side by side is one slice of its chunk, not a copy; short runs, as a retry of
//! every second record makes them, are gathered, at most [`GATHERED_BYTES`] at a time; the length is known beforehand.
//!
//! Measured, 2.75 GB in batches of 8 chunks to loopback: 0.16 CPU-s/GB this way, 0.22 with the chunks joined into the
//! one `Bytes` that the crate `elasticsearch` takes, which would also hold every batch twice.

use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};

use crate::batch::Batch;
use crate::ship::Load;

/// A shorter run is copied together with its neighbours: a system call costs more than the copy.
const SHORT_RUN_BYTES: usize = 16 * 1024;
/// How much is gathered at most.
const GATHERED_BYTES: usize = 64 * 1024;

/// What a request sends.
#[derive(Debug, Clone)]
pub enum Body {
    /// Nothing.
    Empty,
    /// Bytes that are no records of a batch as they lie.
    Whole(Bytes),
    /// The records of a load as they are encoded.
    Records(Load),
}

impl Body {
    /// The bytes, piece by piece.
    pub fn pieces(&self) -> Pieces {
        match self {
            Self::Empty => Pieces::whole(Bytes::new()),
            Self::Whole(bytes) => Pieces::whole(bytes.clone()),
            Self::Records(load) => Pieces::of(load),
        }
    }
}

/// A body's bytes, piece by piece.
#[derive(Debug)]
pub struct Pieces {
    /// What was found already and is yet to be handed out.
    waiting: Option<Bytes>,
    load: Option<Load>,
    at: Place,
    left: usize,
}

impl Pieces {
    fn whole(bytes: Bytes) -> Self {
        Self {
            left: bytes.len(),
            waiting: (!bytes.is_empty()).then_some(bytes),
            load: None,
            at: Place::default(),
        }
    }

    /// The records of a load.
    pub fn of(load: &Load) -> Self {
        let left = match &load.records {
            None => load.batch.chunks.iter().map(|c| c.bytes.len()).sum(),
            Some(records) => {
                let mut at = Place::default();
                std::iter::from_fn(|| at.next_run(&load.batch, records))
                    .map(|(_, run)| run.len())
                    .sum()
            }
        };
        Self {
            left,
            waiting: None,
            load: Some(load.clone()),
            at: Place::default(),
        }
    }

    /// Bytes that are yet to come.
    pub fn left(&self) -> usize {
        self.left
    }

    fn piece(&mut self) -> Option<Bytes> {
        if let Some(bytes) = self.waiting.take() {
            return Some(bytes);
        }
        let load = self.load.as_ref()?;
        let chunks = &load.batch.chunks;
        let Some(records) = &load.records else {
            let chunk = chunks.get(self.at.chunk)?;
            self.at.chunk += 1;
            return Some(chunk.bytes.clone());
        };
        let mut gathered = BytesMut::new();
        while gathered.len() < GATHERED_BYTES {
            let Some((chunk, run)) = self.at.next_run(&load.batch, records) else {
                break;
            };
            let bytes = &chunks[chunk].bytes;
            if run.len() < SHORT_RUN_BYTES {
                gathered.extend_from_slice(&bytes[run]);
                continue;
            }
            let run = bytes.slice(run);
            if gathered.is_empty() {
                return Some(run);
            }
            self.waiting = Some(run);
            break;
        }
        (!gathered.is_empty()).then(|| gathered.freeze())
    }
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        // A chunk without records is nothing to send.
        loop {
            let piece = self.piece()?;
            if !piece.is_empty() {
                self.left = self.left.saturating_sub(piece.len());
                return Some(piece);
            }
        }
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

/// How far we are in a batch.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// The chunk we are in.
    chunk: usize,
    /// The number in the batch of that chunk's first record.
    first: usize,
    /// How many of the chosen records are behind us.
    done: usize,
}

impl Place {
    /// The next chosen records that lie side by side in one chunk: its number, and where in its bytes they are.
    /// Numbers that do not ascend or are none of the batch's, which nobody should ask for, end the load.
    fn next_run(&mut self, batch: &Batch, chosen: &[u32]) -> Option<(usize, Range<usize>)> {
        let from = *chosen.get(self.done)? as usize;
        while from >= self.first + batch.chunks.get(self.chunk)?.records.len() {
            self.first += batch.chunks[self.chunk].records.len();
            self.chunk += 1;
        }
        let chunk = &batch.chunks[self.chunk];
        let from = from.checked_sub(self.first)?;
        let run = chosen[self.done..]
            .iter()
            .zip(from..chunk.records.len())
            .take_while(|(chosen, n)| **chosen as usize == self.first + n)
            .count();
        self.done += run;
        let end_of = |n: usize| chunk.records[n].encoded_end as usize;
        let start = from.checked_sub(1).map_or(0, end_of);
        Some((self.chunk, start..end_of(from + run - 1)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;
    use crate::batch::{Chunk, Hold, Mark};

    /// A batch of chunks with records of these lengths, each filled with its own number.
    pub(crate) fn batch(chunks: &[Vec<usize>]) -> Arc<Batch> {
        let budget = Arc::new(AtomicUsize::new(0));
        let mut number = 0u8;
        let chunks: Vec<Arc<Chunk>> = chunks
            .iter()
            .map(|lengths| {
                let mut bytes = Vec::new();
                let records = lengths
                    .iter()
                    .map(|length| {
                        bytes.resize(bytes.len() + length, number);
                        number = number.wrapping_add(1);
                        Mark {
                            encoded_end: bytes.len() as u32,
                            source_bytes: 1,
                            lines: 1,
                            start: 0,
                        }
                    })
                    .collect();
                Arc::new(Chunk {
                    total: crate::ledger::Tally::default(),
                    hold: Hold::new(&budget, bytes.len()),
                    bytes: bytes.into(),
                    records,
                    day: 0,
                    source_hash: 0,
                    generation: 0,
                })
            })
            .collect();
        Arc::new(Batch {
            id: 1,
            target: "web".into(),
            day: 0,
            records: chunks.iter().map(|c| c.records.len()).sum(),
            bytes: chunks.iter().map(|c| c.bytes.len()).sum(),
            spans: Vec::new(),
            chunks,
        })
    }

    fn load(batch: Arc<Batch>, records: Option<Vec<u32>>) -> Load {
        Load {
            batch,
            records: records.map(Into::into),
            after: Arc::new([]),
        }
    }

    #[test]
    fn a_whole_batch_is_sent_as_it_lies() {
        let load = load(batch(&[vec![3, 4], vec![], vec![5]]), None);
        let pieces: Vec<Bytes> = Pieces::of(&load).collect();
        assert_eq!(pieces.len(), 2);
        for (piece, chunk) in pieces.iter().zip([0, 2]) {
            assert_eq!(piece.as_ptr(), load.batch.chunks[chunk].bytes.as_ptr());
        }
    }

    #[test]
    fn a_long_run_is_a_slice_and_short_ones_are_gathered() {
        let lengths = vec![20_000, 10, 20_000, 10, 10];
        let load = load(batch(&[lengths]), Some(vec![0, 2, 4]));
        let pieces: Vec<Bytes> = Pieces::of(&load).collect();
        let lengths: Vec<usize> = pieces.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [20_000, 20_000, 10]);
        assert_eq!(
            pieces[1].as_ptr(),
            load.batch.chunks[0].bytes[20_010..].as_ptr()
        );
    }

    #[test]
    fn numbers_that_nobody_should_ask_for_do_no_harm() {
        for wrong in [vec![9], vec![1, 0], vec![1, 1], vec![u32::MAX]] {
            let load = load(batch(&[vec![3, 4], vec![5]]), Some(wrong));
            let pieces = Pieces::of(&load);
            let left = pieces.left();
            assert_eq!(pieces.map(|piece| piece.len()).sum::<usize>(), left);
        }
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_records_asked_for_and_as_long_as_was_said(
            chunks in proptest::collection::vec(proptest::collection::vec(0usize..30_000, 0..8), 0..5),
            chosen in proptest::collection::vec(any::<bool>(), 40),
        ) {
            let batch = batch(&chunks);
            let records: Vec<u32> = (0..batch.records as u32)
                .filter(|n| chosen[*n as usize % chosen.len()])
                .collect();
            let expected: Vec<u8> = batch
                .iter()
                .filter(|(n, _, _)| records.contains(&(*n as u32)))
                .flat_map(|(_, _, bytes)| bytes.to_vec())
                .collect();
            let mut pieces = Pieces::of(&load(Arc::clone(&batch), Some(records)));
            prop_assert_eq!(pieces.left(), expected.len());
            let sent: Vec<u8> = pieces.by_ref().flatten().collect();
            prop_assert_eq!(pieces.left(), 0);
            prop_assert!(sent == expected);
        }
    }
}
