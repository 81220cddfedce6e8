//! Independence: bursts of lines to an output that is well, alone and beside one that is down and one that is slow.
//! Invariants: a burst is written before it gets the name by which it is found, so that writing it costs no time that
//! is measured; alone is measured before and after, for machines drift.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::signal::Signal;

use super::{LINE_BYTES, LONG, MOST_RESIDENT, Outputs, gate, megabytes};
use crate::daemon::{self, Daemon};
use crate::load::Load;
use crate::measure;
use crate::receiver::Running;

/// Lines of a burst.
const BURST: u64 = 2_000_000;
/// Bursts alone, before and after.
const ALONE: u16 = 5;
/// From one burst to the next.
const EVERY: Duration = Duration::from_secs(8);
/// How long an output may take to catch up with what was written in all that time.
const CATCH_UP: Duration = Duration::from_secs(900);
/// What the slow output takes, in bytes per second.
const SLOW: u64 = 1_000_000;
/// Of its rate alone, what the output that is well must keep.
const LEAST: f64 = 0.95;

/// Bursts to one output, and what the daemon had resident.
struct Measured {
    seconds: Vec<f64>,
    peak_rss: u64,
}

impl Outputs {
    pub(super) fn independence(&self, dir: &Path) -> anyhow::Result<()> {
        let bursts = (self.seconds / EVERY.as_secs()).max(3) as u16;
        let before = self.alone(&dir.join("before"))?;
        let beside = self.beside(&dir.join("beside"), bursts)?;
        let after = self.alone(&dir.join("after"))?;
        let alone = median(before.seconds.iter().chain(&after.seconds));
        let among = median(beside.seconds.iter());
        let rate = |seconds: f64| BURST as f64 / seconds;
        ringpilot::say::line(format_args!(
            "independence: alone {:.0} lines/s (before {:.0}, after {:.0}), beside one that is down for {} s and one that \
             takes 1 MB/s {:.0}: {:.3} of it; resident at most {:.1} MB, alone {:.1} MB",
            rate(alone),
            rate(median(before.seconds.iter())),
            rate(median(after.seconds.iter())),
            u64::from(bursts) * EVERY.as_secs(),
            rate(among),
            alone / among,
            megabytes(beside.peak_rss),
            megabytes(before.peak_rss.max(after.peak_rss)),
        ))?;
        ensure!(
            alone / among >= LEAST,
            "the output that is well keeps less than {LEAST} of its rate alone"
        );
        ensure!(
            beside.peak_rss < MOST_RESIDENT,
            "the daemon had {} bytes resident",
            beside.peak_rss
        );
        Ok(())
    }

    fn alone(&self, dir: &Path) -> anyhow::Result<Measured> {
        let well = Running::start()?;
        let mut daemon = self.start(dir, &format!("outputs: {{well: {}}}\n", bulk(well.port)))?;
        let seconds = bursts(dir, &well, ALONE, Duration::ZERO)?;
        let peak_rss = measure::peak_rss(daemon.pid())?;
        daemon.end(Signal::SIGTERM)?;
        std::fs::remove_dir_all(dir)?;
        Ok(Measured { seconds, peak_rss })
    }

    fn beside(&self, dir: &Path, count: u16) -> anyhow::Result<Measured> {
        let (well, down, slow) = (Running::start()?, Running::start()?, Running::start()?);
        let before_down = gate(down.port, false, 0)?;
        let before_slow = gate(slow.port, true, SLOW)?;
        let mut daemon = self.start(
            dir,
            &format!(
                "outputs: {{well: {}, down: {}, slow: {}}}\n",
                bulk(well.port),
                bulk(before_down.port),
                bulk(before_slow.port),
            ),
        )?;
        let begun = Instant::now();
        let seconds = bursts(dir, &well, count, EVERY)?;
        let trickled = slow.tally()?;
        let took = begun.elapsed().as_secs_f64();
        ensure!(down.tally()?.records == 0, "nothing can have arrived there");
        ensure!(trickled.records > 0, "the slow output got nothing");
        ringpilot::say::line(format_args!(
            "independence: the slow output took {:.2} MB/s",
            megabytes(trickled.bytes) / took
        ))?;
        // Both get what is theirs as soon as they take it, from the files.
        let all = BURST * u64::from(count);
        before_down.open();
        before_slow.open();
        for (name, receiver) in [("down", &down), ("slow", &slow), ("well", &well)] {
            wait_for(receiver, all)?;
            let tally = receiver.tally()?;
            ensure!(
                tally.distinct == all && tally.repeated == 0 && tally.missing == 0,
                "{name}: {tally:?}"
            );
        }
        let peak_rss = measure::peak_rss(daemon.pid())?;
        daemon.end(Signal::SIGTERM)?;
        std::fs::remove_dir_all(dir)?;
        Ok(Measured { seconds, peak_rss })
    }

    fn start(&self, dir: &Path, outputs: &str) -> anyhow::Result<Daemon> {
        std::fs::create_dir_all(dir.join("logs"))?;
        let yaml = format!(
            "discover: {{docker: false, cri: false, rings: false}}\nbatch_wait: 50ms\n\
             sources: [{{name: bench, path: \"{}/logs/*.log\"}}]\n{outputs}",
            dir.display()
        );
        let mut daemon = Daemon::new(daemon::program(self.program.as_deref())?, dir, &yaml)?;
        daemon.start()?;
        daemon.wait_until(LONG, |_| true)?;
        Ok(daemon)
    }
}

fn bulk(port: u16) -> String {
    format!("{{type: elasticsearch, hosts: [\"http://127.0.0.1:{port}\"]}}")
}

/// Seconds that each burst takes, from its name to its last line's arrival.
fn bursts(dir: &Path, to: &Running, count: u16, every: Duration) -> anyhow::Result<Vec<f64>> {
    let mut seconds = Vec::new();
    for number in 0..count {
        let begun = Instant::now();
        let (new, named) = (dir.join("new"), dir.join(format!("logs/{number}.log")));
        let mut file = BufWriter::new(File::create(&new)?);
        Load::new(1, number, LINE_BYTES).write(&mut file, BURST)?;
        file.flush()?;
        drop(file);
        let clock = Instant::now();
        std::fs::rename(new, named)?;
        wait_for(to, BURST * u64::from(number + 1))?;
        seconds.push(clock.elapsed().as_secs_f64());
        std::thread::sleep(every.saturating_sub(begun.elapsed()));
    }
    Ok(seconds)
}

fn wait_for(receiver: &Running, lines: u64) -> anyhow::Result<()> {
    let begun = Instant::now();
    while receiver.tally()?.distinct < lines {
        ensure!(
            begun.elapsed() < CATCH_UP,
            "only this arrived: {:?}",
            receiver.tally()?
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The middle one; of an even number the upper.
fn median<'a>(of: impl Iterator<Item = &'a f64>) -> f64 {
    let mut sorted: Vec<f64> = of.copied().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
