//! Delivers loads to an output until every record's fate is known, as the daemon does.

use futures_util::{StreamExt, stream};
use ringpilot::ship::{Fate, Load, Output, Verdict};

use crate::records::{numbers, part};

/// What came of delivering some loads to the end.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) delivered: usize,
    pub(crate) duplicates: usize,
    /// Class, and the number that the record has.
    pub(crate) refused: Vec<(String, usize)>,
    /// Records that had to be sent again, and why the last of them.
    pub(crate) again: usize,
    pub(crate) cause: String,
    /// Requests that failed as a whole, and why the last of them.
    pub(crate) failed: usize,
    pub(crate) failure: String,
    pub(crate) too_large: usize,
}

/// Sends loads, four at once, until the fate of every record is known, as the daemon does.
pub(crate) async fn deliver(output: &dyn Output, loads: Vec<Load>) -> Tally {
    let tallies = stream::iter(loads).map(|load| deliver_one(output, load));
    let tallies: Vec<Tally> = tallies.buffer_unordered(4).collect().await;
    tallies.into_iter().fold(Tally::default(), |mut all, one| {
        all.delivered += one.delivered;
        all.duplicates += one.duplicates;
        all.refused.extend(one.refused);
        all.again += one.again;
        all.failed += one.failed;
        all.too_large += one.too_large;
        for (kept, new) in [(&mut all.cause, one.cause), (&mut all.failure, one.failure)] {
            if !new.is_empty() {
                *kept = new;
            }
        }
        all
    })
}

async fn deliver_one(output: &dyn Output, load: Load) -> Tally {
    let first = load.batch.chunks[0].records[0].start as usize / 100;
    let mut tally = Tally::default();
    let mut open = vec![load];
    for _ in 0..1_000 {
        let Some(load) = open.pop() else {
            return tally;
        };
        let sent = numbers(&load);
        let fates = match output.attempt(&load).await {
            Verdict::All(fate) => vec![fate; sent.len()],
            Verdict::Each(fates) => fates,
            Verdict::Failed { cause } => {
                tally.failed += 1;
                tally.failure = cause.to_string();
                open.push(load);
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
            Verdict::TooLarge => {
                tally.too_large += 1;
                let (left, right) = sent.split_at(sent.len() / 2);
                open.push(part(&load, right.to_vec()));
                open.push(part(&load, left.to_vec()));
                continue;
            }
        };
        assert_eq!(fates.len(), sent.len());
        let mut again = Vec::new();
        for (number, fate) in sent.into_iter().zip(fates) {
            match fate {
                Fate::Delivered => tally.delivered += 1,
                Fate::Duplicate => tally.duplicates += 1,
                Fate::Refused { reason, .. } => {
                    tally
                        .refused
                        .push((reason.to_string(), first + number as usize));
                }
                Fate::Again { cause } => {
                    tally.cause = cause.to_string();
                    again.push(number);
                }
            }
        }
        if !again.is_empty() {
            tally.again += again.len();
            open.push(part(&load, again));
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
    panic!("never delivered: {tally:?}");
}
