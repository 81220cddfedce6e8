//! What a process has cost: CPU time and memory, its own or another's.
//! Source: getrusage(2); proc(5): `stat`, `task/*/schedstat`, `smaps_rollup`, `status`.

use std::io;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::Serialize;

/// CPU time.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Cpu {
    /// In its own code, in seconds.
    pub(crate) user: f64,
    /// In the kernel for it, in seconds.
    pub(crate) system: f64,
}

impl Cpu {
    /// Of this process, all threads, to the microsecond.
    ///
    /// # Errors
    /// As the kernel gives them.
    pub(crate) fn of_self() -> io::Result<Self> {
        Self::used(UsageWho::RUSAGE_SELF)
    }

    /// Of this thread alone.
    ///
    /// # Errors
    /// As the kernel gives them.
    pub(crate) fn of_thread() -> io::Result<Self> {
        Self::used(UsageWho::RUSAGE_THREAD)
    }

    /// Of all children that have ended and been waited for.
    ///
    /// # Errors
    /// As the kernel gives them.
    pub(crate) fn of_children() -> io::Result<Self> {
        Self::used(UsageWho::RUSAGE_CHILDREN)
    }

    fn used(who: UsageWho) -> io::Result<Self> {
        let usage = getrusage(who)?;
        let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        Ok(Self {
            user: seconds(usage.user_time()),
            system: seconds(usage.system_time()),
        })
    }

    /// Of a process, all threads, those that have ended included; to 10 ms.
    ///
    /// # Errors
    /// When there is no such process.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        // USER_HZ, which is what user space is told whatever the kernel ticks by.
        const TICKS: f64 = 100.0;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in parentheses may hold anything, parentheses as well. utime and stime are words 14 and 15.
        let after_name = stat.rsplit_once(") ").map_or("", |(_, after)| after);
        let mut ticks = after_name.split(' ').skip(11).map(str::parse::<f64>);
        match (ticks.next(), ticks.next()) {
            (Some(Ok(user)), Some(Ok(system))) => Ok(Self {
                user: user / TICKS,
                system: system / TICKS,
            }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// User and system time together, in seconds.
    pub(crate) fn total(&self) -> f64 {
        self.user + self.system
    }
}

impl std::ops::Sub for Cpu {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        Self {
            user: self.user - before.user,
            system: self.system - before.system,
        }
    }
}

/// How long the living threads of a process have been on a CPU; to the nanosecond.
///
/// # Errors
/// When there is no such process.
pub(crate) fn on_cpu(pid: u32) -> io::Result<Duration> {
    let mut total = Duration::ZERO;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end at any moment.
        let schedstat = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let word = schedstat.split(' ').next().unwrap_or_default();
        total += Duration::from_nanos(word.parse().unwrap_or(0));
    }
    Ok(total)
}

/// How often the living threads of a process have gone to sleep by themselves: as often as they were woken.
///
/// # Errors
/// When there is no such process.
pub(crate) fn wakes(pid: u32) -> io::Result<u64> {
    let mut total = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end at any moment.
        let status = std::fs::read_to_string(task?.path().join("status")).unwrap_or_default();
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        total += line
            .and_then(|line| line.trim().parse().ok())
            .unwrap_or(0_u64);
    }
    Ok(total)
}

/// The value that a part of all (0 to 1) does not exceed; they must be in order.
pub(crate) fn percentile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * part) as usize).copied()
}

/// The middle of some values, 0 of none.
pub(crate) fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    percentile(&values, 0.5).unwrap_or(0.0)
}

/// Memory of a process in bytes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Memory {
    /// Resident.
    pub(crate) rss: u64,
    /// Resident, what it shares with others in parts.
    pub(crate) pss: u64,
}

impl Memory {
    /// Of a process now.
    ///
    /// # Errors
    /// When there is no such process, or it is another user's.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let bytes = |key: &str| {
            let line = smaps.lines().find_map(|line| line.strip_prefix(key))?;
            let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
            Some(kib * 1024)
        };
        let (rss, pss) = (bytes("Rss:"), bytes("Pss:"));
        let (rss, pss) = rss.zip(pss).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { rss, pss })
    }
}

/// The most a process has had resident so far, in bytes.
///
/// # Errors
/// When there is no such process.
pub(crate) fn peak_rss(pid: u32) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.ok_or(io::ErrorKind::InvalidData)? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_worked_has_cost_about_the_same_by_every_clock() -> io::Result<()> {
        let me = std::process::id();
        let before = Cpu::of_self()?;
        let mut state = 1_u64;
        while (Cpu::of_self()? - before).total() < 0.05 {
            state = std::hint::black_box(state.wrapping_mul(3));
        }
        let (own, proc) = (Cpu::of_self()?, Cpu::of(me)?);
        assert!(own.total() >= 0.05);
        // Other tests may run and end meanwhile.
        assert!((own.total() - proc.total()).abs() < 0.5, "{own:?} {proc:?}");
        assert!(on_cpu(me)? > Duration::from_millis(1));
        assert!(Cpu::of_thread()?.total() <= Cpu::of_self()?.total());
        Ok(())
    }

    #[test]
    fn who_sleeps_has_been_woken() -> io::Result<()> {
        let before = wakes(std::process::id())?;
        std::thread::sleep(Duration::from_millis(1));
        assert!(wakes(std::process::id())? > before);
        Ok(())
    }

    #[test]
    fn a_part_of_all_is_one_of_them() {
        let all: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&all, 0.5), Some(50.0));
        assert_eq!(percentile(&all, 0.99), Some(99.0));
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(middle(vec![3.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn memory_is_resident_and_shared_in_parts() -> io::Result<()> {
        let memory = Memory::of(std::process::id())?;
        assert!(
            memory.pss > 100_000 && memory.pss <= memory.rss,
            "{memory:?}"
        );
        assert!(peak_rss(std::process::id())? >= memory.rss / 2);
        Ok(())
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        let none = u32::MAX;
        assert!(Cpu::of(none).is_err() && Memory::of(none).is_err() && on_cpu(none).is_err());
    }
}
