//! Ring: what the way from a pod to the daemon costs by itself, beside a unix socket, with the bar of each figure.
//! Place: real shims and, where its own wake-ups are measured, the real daemon; `node` plays a daemon that only drains,
//! so that the ring's cost is not hidden in parsing and shipping.
//! Invariants: CPU time is the kernel's own count of that process or thread; ring and socket take turns in one run.

mod node;
mod socket;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use memchr::memchr_iter;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;

use crate::daemon::{self, Daemon};
use crate::load::Load;
use crate::measure::{Cpu, Memory, middle, on_cpu, percentile};
use crate::pod::Talk;
use crate::shim::{self, Shim};

/// What the ring costs by itself, beside a unix socket.
#[derive(Debug, clap::Args)]
pub(crate) struct Ring {
    /// Bytes that go through at peak, in MB
    #[arg(long, default_value_t = 1_000)]
    megabytes: u64,
    /// Length of a line, its end included
    #[arg(long, default_value_t = 200)]
    line_bytes: usize,
    /// How often the peak is measured; the middle counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Rings that idle
    #[arg(long, default_value_t = 200)]
    idle_rings: u16,
    /// For how many seconds they do
    #[arg(long, default_value_t = 60)]
    idle_seconds: u64,
    /// For how many seconds delays are measured, each of the two
    #[arg(long, default_value_t = 20)]
    delay_seconds: u64,
    /// The daemon's program; the one beside this unless given
    #[arg(long)]
    program: Option<PathBuf>,
    /// The shim's program; the static one beside this unless given
    #[arg(long)]
    shim: Option<PathBuf>,
    /// Where files are written; they are removed
    #[arg(long)]
    dir: Option<PathBuf>,
    /// A JSON object per figure instead of a table
    #[arg(long)]
    json: bool,
}

/// What one way cost at peak.
#[derive(Debug, Clone, Copy)]
struct Peak {
    /// CPU seconds of the sending end.
    shim: f64,
    /// CPU seconds of the end that drains and splits.
    daemon: f64,
    wall: f64,
    bytes: u64,
    lines: u64,
}

impl Peak {
    fn gigabytes(&self) -> f64 {
        self.bytes as f64 / 1e9
    }
}

/// Where a figure has to be.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Bar {
    AtMost(f64),
    AtLeast(f64),
    /// For comparison only.
    None,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Figure {
    what: &'static str,
    unit: &'static str,
    ring: f64,
    /// The same by unix stream.
    socket: Option<f64>,
    bar: Bar,
    met: Option<bool>,
}

impl Figure {
    fn new(what: &'static str, unit: &'static str, ring: f64, bar: Bar) -> Self {
        let met = match bar {
            Bar::AtMost(most) => Some(ring <= most),
            Bar::AtLeast(least) => Some(ring >= least),
            Bar::None => None,
        };
        Self {
            what,
            unit,
            ring,
            socket: None,
            bar,
            met,
        }
    }

    fn beside(mut self, socket: f64) -> Self {
        self.socket = Some(socket);
        self
    }
}

impl Ring {
    /// Measures everything and shows it.
    ///
    /// # Errors
    /// When a shim or the daemon fails, or not every line arrives.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let daemon = daemon::program(self.program.as_deref())?;
        let shim = shim::program(self.shim.as_deref())?;
        let dir = match &self.dir {
            Some(dir) => tempfile::tempdir_in(dir)?,
            None => tempfile::tempdir()?,
        };
        raise_file_limit()?;
        let mut figures = Vec::new();
        self.peaks(&shim, dir.path(), &mut figures)?;
        self.whole(&daemon, &shim, dir.path(), &mut figures)?;
        self.idle(&daemon, dir.path(), &mut figures)?;
        self.copied(&daemon, dir.path(), &mut figures)?;
        self.published(&shim, dir.path(), &mut figures)?;
        let disk = std::fs::metadata(&shim)?.len() as f64 / 1e3;
        figures.push(Figure::new("shim on disk", "KB", disk, Bar::AtMost(600.0)));
        self.show(&figures)
    }

    fn show(&self, figures: &[Figure]) -> anyhow::Result<()> {
        if self.json {
            for figure in figures {
                ringpilot::say::line(serde_json::to_string(figure)?)?;
            }
            return Ok(());
        }
        ringpilot::say::line("| figure | ring | unix socket | bar | |\n|---|---|---|---|---|")?;
        for figure in figures {
            let number = |value: f64| format!("{} {}", digits(value), figure.unit);
            let socket = figure.socket.map(number).unwrap_or_default();
            let (bar, verdict) = match (figure.bar, figure.met) {
                (Bar::AtMost(most), met) => (format!("≤ {most}"), met),
                (Bar::AtLeast(least), met) => (format!("≥ {least}"), met),
                (Bar::None, _) => (String::new(), None),
            };
            let verdict = match verdict {
                Some(true) => "met",
                Some(false) => "missed",
                None => "",
            };
            ringpilot::say::line(format_args!(
                "| {} | {} | {socket} | {bar} | {verdict} |",
                figure.what,
                number(figure.ring),
            ))?;
        }
        Ok(())
    }

    fn lines(&self) -> u64 {
        self.megabytes * 1_000_000 / self.line_bytes.max(Load::SHORTEST) as u64
    }

    /// As fast as it goes: a real shim into a node that only drains, and the socket, in turns.
    fn peaks(&self, program: &Path, dir: &Path, to: &mut Vec<Figure>) -> anyhow::Result<()> {
        let file = dir.join("peak.log");
        let mut written = std::fs::File::create(&file)?;
        Load::new(1, 0, self.line_bytes).write(&mut written, self.lines())?;
        let (mut ring, mut by_socket) = (Vec::new(), Vec::new());
        let mut memory = Vec::new();
        for round in 0..self.rounds.max(1) {
            let (peak, resident) = ring_peak(program, &file, &dir.join(format!("s{round}")))?;
            ring.push(peak);
            memory.push(resident.rss as f64);
            by_socket.push(socket::peak(&file)?);
        }
        std::fs::remove_file(&file)?;
        for peak in ring.iter().chain(&by_socket) {
            ensure!(
                peak.lines == self.lines(),
                "not every line arrived: {peak:?}"
            );
        }
        let mut add = |what, unit, bar, of: &dyn Fn(&Peak) -> f64| {
            let of_all = |all: &[Peak]| middle(all.iter().map(of).collect());
            to.push(Figure::new(what, unit, of_all(&ring), bar).beside(of_all(&by_socket)));
        };
        let per_gigabyte = |seconds: f64, peak: &Peak| seconds / peak.gigabytes();
        add(
            "shim and drain at peak, lines split and attributed",
            "CPU s/GB",
            Bar::AtMost(0.40),
            &|peak| per_gigabyte(peak.shim + peak.daemon, peak),
        );
        add("of it the shim", "CPU s/GB", Bar::None, &|peak| {
            per_gigabyte(peak.shim, peak)
        });
        add(
            "of it the daemon's end",
            "CPU s/GB",
            Bar::AtMost(0.15),
            &|peak| per_gigabyte(peak.daemon, peak),
        );
        add("through one ring", "GB/s", Bar::AtLeast(3.0), &|peak| {
            peak.gigabytes() / peak.wall
        });
        add("the same", "M lines/s", Bar::AtLeast(15.0), &|peak| {
            peak.lines as f64 / 1e6 / peak.wall
        });
        let resident = middle(memory) / 1e6;
        to.push(Figure::new(
            "shim resident, its whole ring touched",
            "MB",
            resident,
            Bar::AtMost(1.2),
        ));
        Ok(())
    }

    /// The whole daemon, to `null`: the same file by a shim and by itself.
    fn whole(
        &self,
        program: &Path,
        shim: &Path,
        dir: &Path,
        to: &mut Vec<Figure>,
    ) -> anyhow::Result<()> {
        let mut seconds = [Vec::new(), Vec::new()];
        for round in 0..self.rounds.clamp(1, 3) {
            for (way, seconds) in seconds.iter_mut().enumerate() {
                let dir = dir.join(format!("whole-{way}-{round}"));
                let (logs, rings) = (dir.join("logs"), dir.join("rings"));
                std::fs::create_dir_all(&logs)?;
                std::fs::create_dir_all(rings.join("pod"))?;
                let pattern = logs.join("*.log").display().to_string();
                let sources = match way {
                    0 => format!("{}sources: []\n", with_rings(&rings)),
                    _ => format!(
                        "discover: {{docker: false, cri: false, rings: false}}\n\
                         sources: [{{name: peak, path: \"{pattern}\"}}]\n"
                    ),
                };
                let yaml = format!("{sources}outputs: {{o: {{type: \"null\"}}}}\n");
                let mut daemon = Daemon::new(program.to_owned(), &dir, &yaml)?;
                daemon.start()?;
                daemon.wait_until(Duration::from_secs(20), |_| true)?;
                let shim = match way {
                    0 => Some(Shim::start(shim, &rings.join("pod/s"), "peak", &pattern)?),
                    _ => None,
                };
                std::thread::sleep(Duration::from_secs(1));
                let hidden = dir.join("hidden");
                let mut file = std::fs::File::create(&hidden)?;
                Load::new(1, 0, self.line_bytes).write(&mut file, self.lines())?;
                let length = file.metadata()?.len();
                let mut pids = vec![daemon.pid()];
                pids.extend(shim.as_ref().map(Shim::pid));
                let cpu = |pids: &[u32]| -> anyhow::Result<f64> {
                    let mut all = Duration::ZERO;
                    for pid in pids {
                        all += on_cpu(*pid)?;
                    }
                    Ok(all.as_secs_f64())
                };
                let before = cpu(&pids)?;
                std::fs::rename(&hidden, logs.join("a.log"))?;
                daemon.wait_until(Duration::from_secs(120), |status| {
                    status["ledger"]["o"]["delivered"]["bytes"].as_u64() == Some(length)
                })?;
                seconds.push((cpu(&pids)? - before) / (length as f64 / 1e9));
                std::fs::remove_dir_all(&logs)?;
            }
        }
        let [ring, file] = seconds.map(middle);
        to.push(Figure::new(
            "shim and the whole daemon, to `null`",
            "CPU s/GB",
            ring,
            Bar::None,
        ));
        to.push(Figure::new(
            "the whole daemon, which reads the file itself",
            "CPU s/GB",
            file,
            Bar::None,
        ));
        Ok(())
    }

    /// Many rings that nobody writes to, at the real daemon, and the same daemon without any.
    fn idle(&self, program: &Path, dir: &Path, to: &mut Vec<Figure>) -> anyhow::Result<()> {
        let mut shares = Vec::new();
        for n in [0, self.idle_rings] {
            let dir = dir.join(format!("idle-{n}"));
            let rings = dir.join("rings");
            std::fs::create_dir_all(&rings)?;
            let yaml = format!("{}outputs: {{o: {{type: \"null\"}}}}\n", with_rings(&rings));
            let mut daemon = Daemon::new(program.to_owned(), &dir, &yaml)?;
            daemon.start()?;
            daemon.wait_until(Duration::from_secs(20), |_| true)?;
            let mut pods = Vec::new();
            for pod in 0..n {
                let dir = rings.join(format!("pod-{pod}"));
                std::fs::create_dir(&dir)?;
                pods.push(Talk::connect(&dir.join("s"))?.begin(&[("a", "/logs/*.log")])?);
            }
            // What it did to welcome them is over.
            std::thread::sleep(Duration::from_secs(5));
            let (before, begun) = (on_cpu(daemon.pid())?, Instant::now());
            std::thread::sleep(Duration::from_secs(self.idle_seconds));
            let cpu = on_cpu(daemon.pid())? - before;
            shares.push(100.0 * cpu.as_secs_f64() / begun.elapsed().as_secs_f64());
        }
        let [without, with] = shares[..] else {
            return Ok(());
        };
        to.push(Figure::new(
            "idle rings, what they add to an idle daemon",
            "% of a core",
            (with - without).max(0.0),
            Bar::AtMost(0.05),
        ));
        to.push(Figure::new(
            "an idle daemon with them",
            "% of a core",
            with,
            Bar::None,
        ));
        Ok(())
    }

    /// From a pod's publish to the real daemon's copy: busy and asleep in turns.
    fn copied(&self, program: &Path, dir: &Path, to: &mut Vec<Figure>) -> anyhow::Result<()> {
        let dir = dir.join("copied");
        let rings = dir.join("rings");
        std::fs::create_dir_all(rings.join("pod"))?;
        let yaml = format!("{}outputs: {{o: {{type: \"null\"}}}}\n", with_rings(&rings));
        let mut daemon = Daemon::new(program.to_owned(), &dir, &yaml)?;
        daemon.start()?;
        let mut pod = Talk::connect(&rings.join("pod/s"))?.begin(&[("a", "/logs/*.log")])?;
        let load = Load::new(1, 0, self.line_bytes);
        pod.sees(pod.want, 7, self.line_bytes as u64, "/logs/a.log");
        let mut lane = pod.lane()?;
        let mut delays = Vec::new();
        let (mut block, begun, mut sequence) = (Vec::new(), Instant::now(), 0_u64);
        while begun.elapsed() < Duration::from_secs(self.delay_seconds) {
            block.clear();
            load.line(&mut block, sequence);
            sequence += 1;
            let published = Instant::now();
            ensure!(pod.publish(&mut lane, &block)?, "one line fills the ring");
            while pod.producer.used()? > 0 {
                ensure!(
                    published.elapsed() < Duration::from_secs(5),
                    "the daemon takes nothing"
                );
                std::thread::sleep(Duration::from_micros(50));
            }
            delays.push(published.elapsed().as_secs_f64() * 1e3);
            while pod.talk.hear(&mut Vec::new())?.is_some() {}
            // Each fiftieth time it has fallen asleep.
            let pause_ms = if sequence % 50 == 0 {
                1_500
            } else {
                1 + sequence * 7 % 43
            };
            std::thread::sleep(Duration::from_millis(pause_ms));
        }
        add_delays(
            to,
            delays,
            ["publish to the daemon's copy, p50", "p99"],
            30.0,
        )
    }

    /// From a write to a file to its bytes' publication by a real shim.
    fn published(&self, program: &Path, dir: &Path, to: &mut Vec<Figure>) -> anyhow::Result<()> {
        let dir = dir.join("published");
        std::fs::create_dir(&dir)?;
        let path = dir.join("a.log");
        let load = Load::new(1, 0, self.line_bytes);
        let mut file = std::fs::File::create(&path)?;
        let (mut block, mut sequence) = (Vec::new(), 0_u64);
        load.line(&mut block, sequence);
        file.write_all(&block)?;
        let listener = node::listen(&dir.join("s"))?;
        let _shim = Shim::start(program, &dir.join("s"), "a", &path.display().to_string())?;
        let mut node = node::Node::meet(&listener, &path.display().to_string())?;
        let (mut delays, mut waiting) = (Vec::new(), std::collections::VecDeque::new());
        let (mut end, begun) = (block.len() as u64, Instant::now());
        let (mut next, mut taken) = (begun + Duration::from_secs(1), 0);
        while begun.elapsed() < Duration::from_secs(1 + self.delay_seconds) {
            node.hear()?;
            taken += node.drain(|_, _, _| {})?.bytes;
            let now = Instant::now();
            while waiting.front().is_some_and(|(end, _)| *end <= taken)
                && let Some((_, written)) = waiting.pop_front()
            {
                delays.push(now.duration_since(written).as_secs_f64() * 1e3);
            }
            if now >= next {
                sequence += 1;
                block.clear();
                load.line(&mut block, sequence);
                file.write_all(&block)?;
                end += block.len() as u64;
                waiting.push_back((end, Instant::now()));
                // At every phase of the shim's gathering.
                next = now + Duration::from_millis(3 + sequence * 13 % 61);
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        add_delays(to, delays, ["write to publish, p50", "p99"], 150.0)
    }
}

fn add_delays(
    to: &mut Vec<Figure>,
    mut delays: Vec<f64>,
    what: [&'static str; 2],
    most_ms: f64,
) -> anyhow::Result<()> {
    delays.sort_by(f64::total_cmp);
    let [half, late] = [0.5, 0.99].map(|part| percentile(&delays, part));
    let (half, late) = half.zip(late).context("nothing has arrived")?;
    to.push(Figure::new(what[0], "ms", half, Bar::None));
    to.push(Figure::new(what[1], "ms", late, Bar::AtMost(most_ms)));
    Ok(())
}

/// A file through a real shim, drained, judged, attributed and split; and what the shim holds then.
fn ring_peak(program: &Path, file: &Path, at: &Path) -> anyhow::Result<(Peak, Memory)> {
    let listener = node::listen(at)?;
    let pattern = file.display().to_string();
    let shim = Shim::start(program, at, "peak", &pattern)?;
    let mut node = node::Node::meet(&listener, &pattern)?;
    let length = std::fs::metadata(file)?.len();
    let (before, own, clock) = (on_cpu(shim.pid())?, Cpu::of_thread()?, Instant::now());
    let (mut bytes, mut lines) = (0, 0);
    node.hear()?;
    while bytes < length {
        let took = node.drain(|_, _, payload| {
            lines += memchr_iter(b'\n', payload).count() as u64;
        })?;
        bytes += took.bytes;
        if bytes < length {
            node.sleep(took)?;
        }
        ensure!(
            clock.elapsed() < Duration::from_secs(60),
            "{bytes} of {length} bytes came within a minute"
        );
    }
    let wall = clock.elapsed().as_secs_f64();
    let peak = Peak {
        shim: (on_cpu(shim.pid())? - before).as_secs_f64(),
        daemon: (Cpu::of_thread()? - own).total(),
        wall,
        bytes,
        lines,
    };
    Ok((peak, Memory::of(shim.pid())?))
}

/// Settings of a daemon that has rings and nothing else.
fn with_rings(rings: &Path) -> String {
    format!(
        "host_root: /\ndiscover: {{docker: false, cri: false, rings: {{dir: {}, memory: memfd}}}}\n",
        rings.display()
    )
}

/// Each pod that is played has five descriptors.
fn raise_file_limit() -> anyhow::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

/// Three digits that say something.
fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_at_its_bar_has_met_it() {
        let met = |bar| Figure::new("", "", 3.0, bar).met;
        assert_eq!(met(Bar::AtMost(3.0)), Some(true));
        assert_eq!(met(Bar::AtMost(2.9)), Some(false));
        assert_eq!(met(Bar::AtLeast(3.0)), Some(true));
        assert_eq!(met(Bar::AtLeast(3.1)), Some(false));
        assert_eq!(met(Bar::None), None);
    }

    #[test]
    fn what_goes_through_the_rival_is_all_of_it() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("a.log");
        Load::new(1, 0, 100).write(&mut std::fs::File::create(&file)?, 5_000)?;
        let peak = socket::peak(&file)?;
        assert_eq!((peak.bytes, peak.lines), (500_000, 5_000));
        Ok(())
    }
}
