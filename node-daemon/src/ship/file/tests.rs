//! The file output's promises: each record exactly once, whatever happens and whenever.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::batch::{Batch, Chunk, Hold, Mark};

/// A load of records as encoded, in chunks of two.
pub(crate) fn load_of(target: &str, records: &[&str]) -> Load {
    let budget = Arc::new(AtomicUsize::new(0));
    let chunks: Vec<Arc<Chunk>> = records
        .chunks(2)
        .map(|records| {
            let bytes = records.concat().into_bytes();
            let mut encoded_end = 0;
            let marks = records.iter().map(|record| {
                encoded_end += u32::try_from(record.len()).expect("short");
                Mark {
                    encoded_end,
                    source_bytes: 0,
                    lines: 1,
                    start: 0,
                }
            });
            Arc::new(Chunk {
                records: marks.collect(),
                day: 0,
                source_hash: 0,
                generation: 0,
                hold: Hold::new(&budget, bytes.len()),
                bytes: bytes.into(),
            })
        })
        .collect();
    Load {
        batch: Arc::new(Batch {
            id: 0,
            target: target.into(),
            day: 0,
            spans: Vec::new(),
            records: records.len(),
            bytes: chunks.iter().map(|chunk| chunk.bytes.len()).sum(),
            chunks,
        }),
        records: None,
        after: Arc::new([]),
    }
}
