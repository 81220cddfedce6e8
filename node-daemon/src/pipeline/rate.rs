//! How fast a container may be read: one bucket of bytes for each container and output, filled by time.
//! Place: asked by **turn** before a slice is picked, charged when it is committed.
//! Invariants: an output that catches up takes nothing from another; over time no more than the rate is read, and what
//! is dropped above it is in the ledger as lost(rate), to the byte.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::follow::Spec;
use crate::policy::Limits;
use crate::problem::Problem;
use crate::settings::{OnExcess, show_size};

/// Buckets known at a time; full ones are forgotten beyond it.
const MANY: usize = 4096;
/// What was above its rate is told for so long.
const TOLD_FOR: Duration = Duration::from_secs(60);

/// Every bucket.
#[derive(Debug, Default)]
pub(super) struct Rates {
    buckets: HashMap<(Arc<str>, usize), Bucket>,
    exceeded: BTreeMap<Arc<str>, (Duration, Problem)>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Bytes that may be read; below 0 what was read too much.
    bytes: i64,
    at: Duration,
    rate: u64,
}

impl Bucket {
    /// Its bytes at a later time: at most what one second brings.
    fn bytes_at(&self, now: Duration) -> i64 {
        let most = i64::try_from(self.rate).unwrap_or(i64::MAX);
        let since = now.saturating_sub(self.at).as_secs_f64();
        self.bytes
            .saturating_add((self.rate as f64 * since) as i64)
            .min(most)
    }
}

impl Rates {
    /// When a container may be read again for an output; `None`: now.
    pub(super) fn wait(
        &self,
        limits: Limits,
        owner: &Arc<str>,
        output: usize,
        now: Duration,
    ) -> Option<Duration> {
        let rate = limits.rate?;
        if limits.on_excess == OnExcess::Drop {
            return None;
        }
        let bucket = self.buckets.get(&(Arc::clone(owner), output))?;
        let bytes = Bucket { rate, ..*bucket }.bytes_at(now);
        (bytes <= 0).then(|| now + Duration::from_secs_f64((1 - bytes) as f64 / rate.max(1) as f64))
    }

    /// Counts bytes that were read; whether they are to be dropped instead, because the rate is reached.
    pub(super) fn charge(
        &mut self,
        limits: Limits,
        owner: &Arc<str>,
        output: usize,
        bytes: u64,
        now: Duration,
    ) -> bool {
        let Some(rate) = limits.rate else {
            return false;
        };
        if self.buckets.len() > MANY {
            self.buckets.retain(|_, bucket| {
                bucket.bytes_at(now) < i64::try_from(bucket.rate).unwrap_or(i64::MAX)
            });
        }
        let key = (Arc::clone(owner), output);
        let bucket = self.buckets.entry(key).or_insert(Bucket {
            bytes: i64::try_from(rate).unwrap_or(i64::MAX),
            at: now,
            rate,
        });
        bucket.rate = rate;
        bucket.bytes = bucket.bytes_at(now);
        bucket.at = now;
        if bucket.bytes <= 0 && limits.on_excess == OnExcess::Drop {
            return true;
        }
        bucket.bytes -= i64::try_from(bytes).unwrap_or(i64::MAX);
        false
    }

    /// Takes note that a container is held back.
    pub(super) fn note(&mut self, spec: &Spec, now: Duration) {
        let Some(rate) = spec.limits.rate else {
            return;
        };
        if let Some((at, _)) = self.exceeded.get_mut(&spec.owner) {
            *at = now;
            return;
        }
        let what = match spec.limits.on_excess {
            OnExcess::Wait => "what is above it is read later",
            OnExcess::Drop => "what is above it is dropped, and counted as lost",
        };
        let problem = Problem {
            container: spec.who.clone(),
            key: "policy.rate".to_owned(),
            value: format!("{}/s", show_size(rate)),
            reason: format!("it logs faster than the node's policy lets it be read: {what}"),
            cure: "log less, or ask the operator for a higher `rate`".to_owned(),
        };
        self.exceeded
            .insert(Arc::clone(&spec.owner), (now, problem));
    }

    /// Who was held back of late, in its owner's words.
    pub(super) fn told(&mut self, now: Duration) -> Vec<Problem> {
        self.exceeded.retain(|_, (at, _)| now < *at + TOLD_FOR);
        self.exceeded
            .values()
            .map(|(_, problem)| problem.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 1_000;

    fn limits(on_excess: OnExcess) -> Limits {
        Limits {
            rate: Some(RATE),
            on_excess,
            pinned_bytes: 0,
        }
    }

    /// Reads slices as fast as it may for ten seconds; how many bytes were read, and how many dropped.
    fn read(on_excess: OnExcess, slice: u64) -> (u64, u64) {
        let (mut rates, owner) = (Rates::default(), Arc::from("a"));
        let (limits, end) = (limits(on_excess), Duration::from_secs(10));
        let (mut now, mut read, mut dropped) = (Duration::from_secs(1), 0, 0);
        let begun = now;
        while now < begun + end {
            match rates.wait(limits, &owner, 0, now) {
                Some(due) => now = due,
                None if rates.charge(limits, &owner, 0, slice, now) => dropped += slice,
                None => read += slice,
            }
            // Without a limit a slice takes a millisecond.
            now += Duration::from_millis(1);
        }
        (read, dropped)
    }

    #[test]
    fn over_time_a_container_is_read_at_its_rate_whatever_the_size_of_a_slice() {
        for slice in [10, 400, 5_000] {
            for on_excess in [OnExcess::Wait, OnExcess::Drop] {
                let (read, dropped) = read(on_excess, slice);
                // What one second brings may come at once, and the last slice is read whole.
                assert!(read >= 9 * RATE, "{slice} {on_excess:?}: {read}");
                assert!(read <= 11 * RATE + slice, "{slice} {on_excess:?}: {read}");
                assert_eq!(dropped > 0, on_excess == OnExcess::Drop, "{slice}");
            }
        }
    }

    #[test]
    fn neither_another_output_nor_another_container_is_held_back() {
        let mut rates = Rates::default();
        let (a, b): (Arc<str>, Arc<str>) = (Arc::from("a"), Arc::from("b"));
        let (limits, now) = (limits(OnExcess::Wait), Duration::from_secs(1));
        rates.charge(limits, &a, 0, 5_000, now);
        assert!(
            rates
                .wait(limits, &a, 0, now)
                .is_some_and(|due| due > now + Duration::from_secs(4))
        );
        assert_eq!(rates.wait(limits, &a, 1, now), None);
        assert_eq!(rates.wait(limits, &b, 0, now), None);
    }
}
