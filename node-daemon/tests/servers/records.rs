//! Numbered records in batches, as the pipeline would make them.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use ringpilot::batch::{Batch, Chunk, Codec, Day, Hold, Mark};
use ringpilot::ship::Load;

/// The day of all batches: 2026-11-24.
pub(crate) const DAY: Day = 20_781;
/// Records of a chunk, and chunks of a batch.
const CHUNK: usize = 500;
const CHUNKS: usize = 8;

/// How many records are delivered where it does not matter.
pub(crate) fn count() -> usize {
    match std::env::var("RINGPILOT_E2E_RECORDS") {
        Ok(count) => count.parse().expect("a number in RINGPILOT_E2E_RECORDS"),
        Err(_) => 20_000,
    }
}

/// A record's object, without line end.
pub(crate) fn object(number: usize) -> String {
    format!(
        r#"{{"@timestamp":"2026-11-24T10:{:02}:{:02}.{:03}Z","message":"line {number} said \"grüße\" \\ and went on for a while, as lines do when nobody stops them","n":{number},"stream":"stdout","k8s_pod":"web-7d4f","k8s_pod_namespace":"shop","host":"node-1"}}"#,
        number / 60_000 % 60,
        number / 1_000 % 60,
        number % 1_000
    )
}

/// Loads of records `numbers`, in batches of at most 4,000. `object` gives each record's object, `index` the index of
/// its own if it has one.
pub(crate) fn loads(
    target: &str,
    codec: &Codec,
    numbers: std::ops::Range<usize>,
    object: impl Fn(usize) -> String,
    index: impl Fn(usize) -> Option<String>,
) -> Vec<Load> {
    let budget = Arc::new(AtomicUsize::new(0));
    let numbers: Vec<usize> = numbers.collect();
    let chunks: Vec<Arc<Chunk>> = numbers
        .chunks(CHUNK)
        .map(|numbers| {
            let mut bytes = Vec::new();
            let mut records = Vec::new();
            for number in numbers {
                if *codec == Codec::Bulk {
                    let index = index(*number);
                    let index = index
                        .map(|i| format!(r#","_index":"{i}""#))
                        .unwrap_or_default();
                    bytes.extend(
                        format!("{{\"create\":{{\"_id\":\"{number:032}\"{index}}}}}\n").bytes(),
                    );
                }
                bytes.extend(object(*number).bytes());
                bytes.push(b'\n');
                records.push(Mark {
                    encoded_end: bytes.len().try_into().unwrap(),
                    source_bytes: 100,
                    lines: 1,
                    start: *number as u64 * 100,
                });
            }
            Arc::new(Chunk {
                total: ringpilot::ledger::Tally::default(),
                hold: Hold::new(&budget, bytes.len()),
                bytes: bytes.into(),
                records,
                day: DAY,
                source_hash: 7,
                generation: 0,
            })
        })
        .collect();
    chunks
        .chunks(CHUNKS)
        .zip(1..)
        .map(|(chunks, id)| Load {
            batch: Arc::new(Batch {
                id,
                target: target.into(),
                day: DAY,
                chunks: chunks.to_vec(),
                spans: Vec::new(),
                records: chunks.iter().map(|chunk| chunk.records.len()).sum(),
                bytes: chunks.iter().map(|chunk| chunk.bytes.len()).sum(),
            }),
            records: None,
            after: Arc::new([]),
        })
        .collect()
}

/// The number in its batch of each record of a load.
pub(crate) fn numbers(load: &Load) -> Vec<u32> {
    match &load.records {
        Some(records) => records.to_vec(),
        None => (0..load.batch.records.try_into().unwrap()).collect(),
    }
}

/// The same batch's records `numbers`.
pub(crate) fn part(load: &Load, numbers: Vec<u32>) -> Load {
    Load {
        records: Some(numbers.into()),
        ..load.clone()
    }
}
