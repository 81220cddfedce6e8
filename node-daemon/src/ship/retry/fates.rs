//! What an answer means for each record of a load: settled, refused, or to be sent again.
//! Place: within **retry**; pure, no clock and no queue.

use std::sync::Arc;

use super::{End, Finished, Refusal, Settled};
use crate::ledger::Tally;
use crate::ship::{Fate, Load};

pub(super) fn settle_all(load: &Load, end: End, settled: &mut Vec<Settled>) {
    if let Some(some) = &load.records {
        let fates = vec![
            match end {
                End::Delivered => Fate::Delivered,
                End::Duplicate => Fate::Duplicate,
            };
            some.len()
        ];
        let mut finished = Finished::default();
        settle_each(load, &fates, &mut finished, &mut Vec::new(), &mut None);
        settled.append(&mut finished.settled);
        return;
    }
    for (chunk, span) in load.batch.chunks.iter().zip(&load.batch.spans) {
        settled.push(Settled {
            span: *span,
            records: u32::try_from(chunk.records.len()).unwrap_or(u32::MAX),
            tally: chunk.total,
            end,
        });
    }
}

pub(super) fn settle_each(
    load: &Load,
    fates: &[Fate],
    finished: &mut Finished,
    again: &mut Vec<u32>,
    cause: &mut Option<Arc<str>>,
) {
    let mut chunk = 0;
    let mut first = 0_usize;
    for n in 0..load.len() {
        let record = match &load.records {
            Some(some) => some[n],
            None => u32::try_from(n).unwrap_or(u32::MAX),
        };
        while chunk + 1 < load.batch.chunks.len()
            && record as usize >= first + load.batch.chunks[chunk].records.len()
        {
            first += load.batch.chunks[chunk].records.len();
            chunk += 1;
        }
        let mark = load.batch.chunks[chunk].records[record as usize - first];
        let tally = Tally {
            bytes: u64::from(mark.source_bytes),
            lines: u64::from(mark.lines),
            records: 1,
        };
        // An output that answered for fewer records than it was given has said nothing of the rest.
        let end = match fates.get(n) {
            Some(Fate::Delivered) => End::Delivered,
            Some(Fate::Duplicate) => End::Duplicate,
            Some(Fate::Refused { reason, detail }) => {
                finished.refused.push(Refusal {
                    batch: Arc::clone(&load.batch),
                    record,
                    reason: Arc::clone(reason),
                    detail: Arc::clone(detail),
                });
                continue;
            }
            Some(Fate::Again { cause: why }) => {
                cause.get_or_insert_with(|| Arc::clone(why));
                again.push(record);
                continue;
            }
            None => {
                cause.get_or_insert_with(|| "the answer is shorter than the request".into());
                again.push(record);
                continue;
            }
        };
        let span = load.batch.spans[chunk];
        match finished.settled.last_mut() {
            Some(last) if last.span == span && last.end == end => {
                last.records += 1;
                last.tally.add(tally);
            }
            _ => finished.settled.push(Settled {
                span,
                records: 1,
                tally,
                end,
            }),
        }
    }
}

/// A load in two; one record cannot be halved and is tried again as it is.
pub(super) fn halves(load: &Load) -> Vec<Load> {
    let all: Vec<u32> = match &load.records {
        Some(some) => some.to_vec(),
        None => (0..u32::try_from(load.batch.records).unwrap_or(u32::MAX)).collect(),
    };
    let (a, b) = all.split_at(all.len() / 2);
    [a, b]
        .into_iter()
        .filter(|half| !half.is_empty())
        .map(|half| Load {
            batch: Arc::clone(&load.batch),
            records: Some(half.into()),
            after: Arc::from([]),
        })
        .collect()
}
