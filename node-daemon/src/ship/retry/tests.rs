use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::batch::{Hold, Mark};
use crate::ship::Guarantee;

/// Its verdicts are the tests' own.
#[derive(Debug)]
struct Silent;

impl Output for Silent {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }
    fn ordered(&self) -> bool {
        false
    }
    fn attempt<'a>(&'a self, _: &'a Load) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(async { Verdict::All(Fate::Delivered) })
    }
    fn probe(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async { Ok(()) })
    }
}

fn shipper() -> Shipper {
    let settings = OutputSettings::of("null", serde_yaml_ng::Value::Null);
    Shipper::new(&settings, Duration::ZERO, Arc::new(Silent), 1 << 20, 7)
}

/// A chunk of so many records of 100 bytes.
fn chunk(records: u32) -> Arc<Chunk> {
    let bytes = vec![b'x'; 100 * records as usize];
    let marks = (1..=records).map(|n| Mark {
        encoded_end: 100 * n,
        source_bytes: 100,
        lines: 1,
        start: u64::from(n) * 100,
    });
    Arc::new(Chunk {
        total: Tally::default(),
        hold: Hold::new(&Arc::new(AtomicUsize::new(0)), bytes.len()),
        bytes: bytes.into(),
        records: marks.collect(),
        day: 0,
        source_hash: 7,
        generation: 0,
    })
}

/// The server's word: the first record of a load is wrong, the others are taken.
fn first_is_wrong(load: &Load) -> Verdict {
    let mut fates = vec![Fate::Delivered; load.len()];
    fates[0] = Fate::Refused {
        reason: "mapper_parsing_exception".into(),
        detail: "no number".into(),
    };
    Verdict::Each(fates)
}

#[test]
fn refused_records_whose_letters_cannot_be_written_are_told_of_and_wait_longer_each_time() {
    let (mut shipper, target): (_, Arc<str>) = (shipper(), "web".into());
    let cause: Arc<str> = "no space left".into();
    let span = SpanOf { source: 1, span: 1 };
    shipper.push(&target, &[chunk(10)], span, Duration::ZERO);
    let mut now = Duration::from_secs(1);
    let mut pauses = Vec::new();
    for round in 0..6 {
        let attempt = shipper.next(now).expect("it is its turn");
        // What was taken is not sent again.
        assert_eq!(attempt.load.len(), if round == 0 { 10 } else { 1 });
        let finished = shipper.finish(attempt.number, first_is_wrong(&attempt.load), now);
        assert_eq!(finished.refused.len(), 1);
        let finished = shipper.refuse_again(&finished.refused, now, &cause);
        assert!(finished.dropped.is_empty());
        assert_eq!(shipper.counts.trouble.as_ref(), Some(&cause));
        assert_eq!(shipper.counts.last_trouble.as_ref(), Some(&cause));
        assert_eq!(shipper.trouble_of("web").as_ref(), Some(&cause));
        assert!(!shipper.is_empty());
        pauses.push(shipper.targets[&target].pause.last);
        now = shipper.wakes_at().expect("it tries again").max(now);
    }
    assert!(pauses.is_sorted_by(|a, b| a < b), "{pauses:?}");

    let attempt = shipper.next(now).expect("it is its turn");
    let finished = shipper.finish(attempt.number, first_is_wrong(&attempt.load), now);
    shipper.letters_kept(&finished.refused, now);
    assert_eq!(shipper.counts.trouble, None);
    assert_eq!(shipper.trouble_of("web"), None);
    assert!(shipper.is_empty());
    assert_eq!(shipper.held, 0);
}

#[test]
fn a_target_whose_letters_cannot_be_written_leaves_the_others_their_memory() {
    let mut shipper = shipper();
    let names: Vec<Arc<str>> = (0..8).map(|n| format!("wrong-{n}").into()).collect();
    let now = Duration::from_secs(1);
    for (name, source) in names.iter().zip(1..) {
        for span in 1..=20 {
            if shipper.has_room(name) {
                shipper.push(name, &[chunk(200)], SpanOf { source, span }, now);
            }
        }
    }
    let mut dropped = 0;
    while let Some(attempt) = shipper.next(now) {
        let finished = shipper.finish(attempt.number, first_is_wrong(&attempt.load), now);
        let finished = shipper.refuse_again(&finished.refused, now, &"full".into());
        dropped += finished.dropped.len();
    }
    assert!(dropped > 0);
    assert!(
        shipper.has_room("another"),
        "{} of {}",
        shipper.held,
        shipper.share
    );
}
