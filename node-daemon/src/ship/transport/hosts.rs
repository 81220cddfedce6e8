//! Which of several servers is asked next.
//! Invariants: round robin over those that are well; one that failed rests, twice as long each time, by full jitter, so
//! that the daemons of a cluster do not come back at once; if all rest, the one that has rested longest is asked, for
//! when to try again is the retry's to say, not ours.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::Url;
use tokio::time::Instant;

use crate::settings::RetrySettings;

/// Servers that are as good as each other.
#[derive(Debug)]
pub struct Hosts {
    hosts: Vec<(Url, Mutex<Health>)>,
    turn: AtomicUsize,
    retry: RetrySettings,
}

#[derive(Debug, Default)]
struct Health {
    /// Failures since it last answered.
    failures: u32,
    rests_until: Option<Instant>,
}

impl Hosts {
    /// These servers, by URL; at least one.
    pub fn new(urls: Vec<Url>, retry: RetrySettings) -> Self {
        Self {
            hosts: urls
                .into_iter()
                .map(|url| (url, Mutex::default()))
                .collect(),
            // Daemons that start together do not all begin with the first.
            turn: AtomicUsize::new(rand::random_range(0..1024)),
            retry,
        }
    }

    /// Their URLs, in the order given.
    pub fn urls(&self) -> impl Iterator<Item = &Url> {
        self.hosts.iter().map(|(url, _)| url)
    }

    /// The number and URL of the one to ask now; `None` only if there are none.
    pub fn pick(&self) -> Option<(usize, &Url)> {
        if let [(url, _)] = self.hosts.as_slice() {
            return Some((0, url));
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let count = self.hosts.len();
        let in_turn = (0..count).map(|n| turn.wrapping_add(n) % count);
        // `min_by_key` takes the first of equals: of those that do not rest, the one whose turn it is.
        let number = in_turn.min_by_key(|n| {
            let rests_until = self.hosts[*n].1.lock().rests_until;
            rests_until.filter(|until| *until > now)
        })?;
        Some((number, &self.hosts[number].0))
    }

    /// It answered: it is well.
    pub fn answered(&self, number: usize) {
        if let Some((_, health)) = self.hosts.get(number) {
            *health.lock() = Health::default();
        }
    }

    /// It failed: it rests.
    pub fn failed(&self, number: usize) {
        let Some((_, health)) = self.hosts.get(number) else {
            return;
        };
        let mut health = health.lock();
        let most = self
            .retry
            .min_backoff
            .saturating_mul(1 << health.failures.min(20))
            .min(self.retry.max_backoff);
        health.failures = health.failures.saturating_add(1);
        let rest = most.mul_f64(rand::random_range(0.0..=1.0));
        health.rests_until = Some(Instant::now() + rest.max(Duration::from_millis(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(count: usize) -> Hosts {
        let url = |n| Url::parse(&format!("http://h{n}/")).expect("a URL");
        Hosts::new((0..count).map(url).collect(), RetrySettings::default())
    }

    fn picks(hosts: &Hosts, count: usize) -> Vec<usize> {
        let picks = (0..count).map(|_| hosts.pick().expect("a host").0);
        let mut picks: Vec<usize> = picks.collect();
        picks.sort_unstable();
        picks
    }

    #[tokio::test(start_paused = true)]
    async fn each_server_has_its_turn_and_one_that_fails_rests() {
        let hosts = hosts(3);
        assert_eq!(picks(&hosts, 6), [0, 0, 1, 1, 2, 2]);
        hosts.failed(1);
        assert!(!picks(&hosts, 6).contains(&1));
        tokio::time::advance(RetrySettings::default().min_backoff * 2).await;
        assert_eq!(picks(&hosts, 3), [0, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn if_all_rest_the_one_whose_rest_ends_first_is_asked() {
        let hosts = hosts(2);
        hosts.failed(0);
        for _ in 0..20 {
            hosts.failed(1);
        }
        hosts.hosts[1].1.lock().rests_until = Some(Instant::now() + Duration::from_secs(30));
        assert_eq!(picks(&hosts, 4), [0, 0, 0, 0]);
        hosts.answered(1);
        assert_eq!(picks(&hosts, 4), [1, 1, 1, 1]);
    }

    #[test]
    fn a_single_server_is_always_asked() {
        let hosts = hosts(1);
        hosts.failed(0);
        assert_eq!(picks(&hosts, 2), [0, 0]);
        assert!(
            Hosts::new(Vec::new(), RetrySettings::default())
                .pick()
                .is_none()
        );
    }
}
