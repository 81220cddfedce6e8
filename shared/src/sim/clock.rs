//! Time turned by hand: one clock that only goes on, one that people set, and the boot they belong to.
//! Place: within **sim**; the machine's clock, and what its file systems stamp.
//! Invariants: monotonic time never goes back, over a reboot neither; a boot id never comes twice.

use std::time::Duration;

use super::rng::mix;

/// Where every simulation begins: 2026-03-01 23:59:30 UTC, half a minute before a midnight.
const START_WALL_NS: i64 = 1_772_409_570_000_000_000;

/// Monotonic and wall time, and the boot.
#[derive(Debug)]
pub(super) struct Clock {
    seed: u64,
    now: Duration,
    wall_ns: i64,
    boots: u64,
    /// How coarse the times are that a file system writes down: the kernel takes them at its tick.
    pub(super) tick_ns: i64,
}

/// The times at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// Monotonic.
    pub(super) now: Duration,
    /// What a file system stamps: the wall's last tick.
    pub(super) stamp_ns: i64,
}

impl Clock {
    pub(super) fn new(seed: u64, tick: Duration) -> Self {
        Self {
            seed,
            now: Duration::from_secs(1),
            wall_ns: START_WALL_NS,
            boots: 0,
            tick_ns: nanos(tick).max(1),
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.now
    }

    pub(super) fn wall_ns(&self) -> i64 {
        self.wall_ns
    }

    pub(super) fn boot_id(&self) -> u128 {
        let high = mix(self.seed ^ self.boots.rotate_left(32));
        (u128::from(high) << 64) | u128::from(mix(high ^ self.boots)) | 1
    }

    pub(super) fn moment(&self) -> Moment {
        Moment {
            now: self.now,
            stamp_ns: self.wall_ns - self.wall_ns.rem_euclid(self.tick_ns),
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.wall_ns = self.wall_ns.saturating_add(nanos(time));
    }

    pub(super) fn jump(&mut self, by_ns: i64) {
        self.wall_ns = self.wall_ns.saturating_add(by_ns);
    }

    pub(super) fn boot_again(&mut self) {
        self.boots += 1;
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_of_the_wall_leaves_monotonic_time_alone() {
        let mut clock = Clock::new(1, Duration::from_millis(4));
        let (now, wall) = (clock.now(), clock.wall_ns());
        clock.jump(-3_600_000_000_000);
        clock.pass(Duration::from_millis(5));
        assert_eq!(clock.now() - now, Duration::from_millis(5));
        assert_eq!(clock.wall_ns() - wall, -3_600_000_000_000 + 5_000_000);
        assert_eq!(clock.moment().stamp_ns % 4_000_000, 0);
    }

    #[test]
    fn each_boot_has_an_id_of_its_own() {
        let mut clock = Clock::new(1, Duration::ZERO);
        let first = clock.boot_id();
        assert_eq!(first, clock.boot_id());
        clock.boot_again();
        assert_ne!(first, clock.boot_id());
    }
}
