//! Quiet: what the daemon costs where little happens: many files that nobody writes, and some that are written slowly,
//! with the delay from a line's writing to its arrival.
//! Invariants: CPU time is the daemon's alone, by the kernel's own count in nanoseconds; what it cost to find the files
//! is not in it.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::signal::Signal;
use serde::Serialize;

use crate::daemon::{self, Daemon, is_delivered};
use crate::load::Load;
use crate::measure::{Memory, on_cpu, percentile};
use crate::receiver::{Received, serve};

/// What the daemon costs where little happens, and how late a line arrives.
#[derive(Debug, clap::Args)]
pub(crate) struct Quiet {
    /// How many files are followed
    #[arg(long, default_value_t = 5_000)]
    files: u16,
    /// Lines a second that each of them gets
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// How long is measured, in seconds
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Length of a line, its end included
    #[arg(long, default_value_t = 200)]
    line_bytes: usize,
    /// The program; the one beside this unless given
    #[arg(long)]
    program: Option<PathBuf>,
    /// A JSON object instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Default, Serialize)]
struct Cost {
    files: u16,
    lines: u64,
    /// Percent of one core.
    cpu_percent: f64,
    rss_bytes: u64,
    /// From a line's writing to its arrival.
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    most_ms: Option<f64>,
}

/// How often lines are written.
const TICK: Duration = Duration::from_millis(10);

impl Quiet {
    /// Measures and shows it.
    ///
    /// # Errors
    /// When the daemon fails, or a line has not arrived within a minute.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let cost = self.measure(dir.path())?;
        if self.json {
            return Ok(ringpilot::say::line(serde_json::to_string(&cost)?)?);
        }
        let ms = |of: Option<f64>| of.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}"));
        ringpilot::say::line(
            "files     lines   CPU % of a core      RSS   p50 ms   p99 ms   most ms",
        )?;
        Ok(ringpilot::say::line(format_args!(
            "{:>5} {:>9} {:>17.2} {:>7.1}M {:>8} {:>8} {:>9}",
            cost.files,
            cost.lines,
            cost.cpu_percent,
            cost.rss_bytes as f64 / 1e6,
            ms(cost.p50_ms),
            ms(cost.p99_ms),
            ms(cost.most_ms),
        ))?)
    }

    fn measure(&self, dir: &Path) -> anyhow::Result<Cost> {
        let logs = dir.join("logs");
        std::fs::create_dir(&logs)?;
        let mut block = Vec::new();
        for file in 0..self.files {
            block.clear();
            Load::new(1, file, self.line_bytes).line(&mut block, 0);
            std::fs::write(logs.join(format!("{file}.log")), &block)?;
        }
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let received = Received::telling({
            let arrivals = Arc::clone(&arrivals);
            Box::new(move |source, sequence| {
                let now = Instant::now();
                let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
                arrivals.push((source, sequence, now));
            })
        });
        std::thread::spawn(move || serve(&listener, received));
        let yaml = format!(
            "discover: {{docker: false, cri: false, rings: false}}\n\
             sources: [{{name: quiet, path: \"{}/*.log\"}}]\n\
             outputs: {{es: {{type: elasticsearch, hosts: [\"http://127.0.0.1:{port}\"]}}}}\n",
            logs.display(),
        );
        let mut daemon = Daemon::new(daemon::program(self.program.as_deref())?, dir, &yaml)?;
        daemon.start()?;
        let of_all = usize::from(self.files);
        daemon.wait_until(Duration::from_secs(120), |status| {
            is_delivered(status)
                && status["sources"]
                    .as_array()
                    .is_some_and(|all| all.len() == of_all)
        })?;
        // What it did to find and save them all is over.
        std::thread::sleep(Duration::from_secs(3));
        arrivals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();

        let (before, begun) = (on_cpu(daemon.pid())?, Instant::now());
        let mut written = Vec::new();
        if self.rate == 0 {
            std::thread::sleep(Duration::from_secs(self.seconds));
        } else {
            let mut files = Vec::new();
            for file in 0..self.files {
                let path = logs.join(format!("{file}.log"));
                files.push((
                    Load::new(1, file, self.line_bytes),
                    File::options().append(true).open(path)?,
                ));
            }
            written = self.write(&mut files, begun)?;
        }
        let (cpu, wall) = (on_cpu(daemon.pid())? - before, begun.elapsed());
        let rss_bytes = Memory::of(daemon.pid())?.rss;
        let lines = written.len() as u64;
        let deadline = Instant::now() + Duration::from_secs(60);
        let all_arrived = || {
            arrivals
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .len() as u64
                >= lines
        };
        while !all_arrived() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon.end(Signal::SIGTERM)?;
        let arrivals =
            std::mem::take(&mut *arrivals.lock().unwrap_or_else(PoisonError::into_inner));
        ensure!(
            arrivals.len() as u64 == lines,
            "{} of {lines} lines arrived",
            arrivals.len()
        );
        let at: std::collections::HashMap<_, _> = written.into_iter().collect();
        let mut delays: Vec<f64> = arrivals
            .into_iter()
            .filter_map(|(source, sequence, arrived)| {
                let written = at.get(&(source, sequence))?;
                Some(arrived.duration_since(*written).as_secs_f64() * 1e3)
            })
            .collect();
        delays.sort_by(f64::total_cmp);
        let part = |part: f64| percentile(&delays, part);
        Ok(Cost {
            files: self.files,
            lines,
            cpu_percent: 100.0 * cpu.as_secs_f64() / wall.as_secs_f64(),
            rss_bytes,
            p50_ms: part(0.5),
            p99_ms: part(0.99),
            most_ms: part(1.0),
        })
    }

    /// Writes to all files in turn; which line when.
    fn write(
        &self,
        files: &mut [(Load, File)],
        begun: Instant,
    ) -> anyhow::Result<Vec<((u16, u64), Instant)>> {
        let mut written = Vec::new();
        let mut block = Vec::new();
        let mut next = 1;
        let of_all = files.len() as u64;
        // Files take turns, so that they are not all written at the same instant.
        while begun.elapsed() < Duration::from_secs(self.seconds) {
            let due = (begun.elapsed().as_secs_f64() * (self.rate * of_all) as f64) as u64;
            while next <= due {
                let file = next % of_all;
                let sequence = next / of_all + 1;
                let (load, to) = &mut files[file as usize];
                block.clear();
                load.line(&mut block, sequence);
                to.write_all(&block)?;
                written.push(((file as u16, sequence), Instant::now()));
                next += 1;
            }
            std::thread::sleep(TICK);
        }
        Ok(written)
    }
}
