//! Compare: the same pods, collected in each way there is, into the same sink on one machine.
//! Place: `workload` writes, `fleet` starts what collects, the receiver counts; `report` and `plot` show it.
//! Invariants: every process of a way is counted, and nothing else: neither who writes nor the sink; what it costs to
//! find the files is not in it; every line of every way is looked for at the sink.

mod fleet;
mod plot;
mod report;
pub(crate) mod socket;
mod workload;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde::Serialize;

use crate::load::Seen;
use crate::measure::{Memory, on_cpu, percentile, wakes};
use crate::receiver::{Received, serve};
use crate::{daemon, shim};
use fleet::{Fleet, Programs, Way};
use workload::Workload;

/// The same pods, collected as node, sidecar, hybrid and by unix socket.
#[derive(Debug, clap::Args)]
pub(crate) struct Compare {
    /// Ways to collect; several with commas
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "node,sidecar,hybrid,socket,rsyslog,fluentbit"
    )]
    ways: Vec<Way>,
    /// How many pods
    #[arg(long, default_value_t = 50)]
    pods: u16,
    /// Files of each
    #[arg(long, default_value_t = 2)]
    files: u16,
    /// Lines a second of each pod
    #[arg(long, default_value_t = 200)]
    rate: u64,
    /// Lengths of lines in turn, their ends included
    #[arg(long, value_delimiter = ',', default_value = "100,300,1000")]
    line_bytes: Vec<usize>,
    /// How long pods write at that rate, in seconds
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Pods that then write as fast as they can, while the others are quiet
    #[arg(long, default_value_t = 5)]
    busy: u16,
    /// How many lines those write together
    #[arg(long, default_value_t = 2_000_000)]
    full_lines: u64,
    /// The daemon's program; the one beside this unless given
    #[arg(long)]
    program: Option<PathBuf>,
    /// The shim's program; the static one beside this unless given
    #[arg(long)]
    shim: Option<PathBuf>,
    /// Where logs are written; they are removed
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Writes compare.md and compare.svg into this folder
    #[arg(long)]
    write: Option<PathBuf>,
    /// A JSON object per way instead of a table
    #[arg(long)]
    json: bool,
}

/// What one way has cost.
#[derive(Debug, Clone, Serialize)]
struct Cost {
    way: Way,
    /// Percent of one core, of all its processes, while all pods log steadily.
    steady_cpu_percent: f64,
    /// The same, of the processes in the pods alone.
    steady_pods_cpu_percent: f64,
    wakes_per_second: f64,
    /// From a line's writing to the sink.
    p50_ms: f64,
    p99_ms: f64,
    processes: usize,
    /// Proportional share of memory of all processes, after the steady phase and after full speed.
    pss_bytes: u64,
    full_pss_bytes: u64,
    /// What a pod's own process has of it after the steady phase, on average.
    pod_pss_bytes: u64,
    connections: usize,
    /// CPU seconds of all processes for each GB of log, while some pods write as fast as they can.
    full_cpu_seconds_per_gb: f64,
    full_wall_seconds: f64,
    lines: u64,
    lost: u64,
    repeated: u64,
}

/// What has come to the sink.
#[derive(Debug, Default)]
struct Arrivals {
    seen: Vec<Seen>,
    distinct: u64,
    /// Those whose delay counts.
    steady: Option<Vec<(u16, u64, Instant)>>,
}

type Shared = Arc<Mutex<Arrivals>>;

fn look<T>(arrivals: &Shared, at: impl FnOnce(&mut Arrivals) -> T) -> T {
    at(&mut arrivals.lock().unwrap_or_else(PoisonError::into_inner))
}

/// CPU time and wake-ups of some processes.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    cpu: f64,
    wakes: u64,
}

impl Spent {
    fn of(pids: &[u32]) -> anyhow::Result<Self> {
        let mut spent = Self::default();
        for pid in pids {
            spent.cpu += on_cpu(*pid)?.as_secs_f64();
            spent.wakes += wakes(*pid)?;
        }
        Ok(spent)
    }
}

impl Compare {
    /// Measures each way and shows them beside one another.
    ///
    /// # Errors
    /// When a process fails, or what it collected does not arrive.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        ensure!(
            self.pods > 0
                && self.files > 0
                && u32::from(self.pods) * u32::from(self.files) < 10_000,
            "there must be some files, and fewer than 10,000"
        );
        let programs = Programs {
            daemon: daemon::program(self.program.as_deref())?,
            shim: shim::program(self.shim.as_deref())?,
        };
        let (mut costs, mut missing) = (Vec::new(), Vec::new());
        for way in &self.ways {
            if let Some(why) = way.missing() {
                missing.push((*way, why));
                continue;
            }
            let dir = match &self.dir {
                Some(dir) => tempfile::tempdir_in(dir)?,
                None => tempfile::tempdir()?,
            };
            let cost = self.measure(*way, &programs, dir.path())?;
            if self.json {
                ringpilot::say::line(serde_json::to_string(&cost)?)?;
            }
            costs.push(cost);
        }
        let table = report::table(self, &costs, &missing)?;
        if !self.json {
            ringpilot::say::line(&table)?;
        }
        if let Some(folder) = &self.write {
            std::fs::create_dir_all(folder)?;
            std::fs::write(folder.join("compare.md"), &table)?;
            plot::write(&folder.join("compare.svg"), self, &costs)?;
        }
        Ok(())
    }

    fn measure(&self, way: Way, programs: &Programs, dir: &Path) -> anyhow::Result<Cost> {
        let mut workload =
            Workload::new(&dir.join("logs"), self.pods, self.files, &self.line_bytes)?;
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        let arrivals = Shared::default();
        look(&arrivals, |all| {
            all.seen
                .resize_with(usize::from(workload.sources()), Seen::default);
        });
        let received = Received::telling({
            let arrivals = Arc::clone(&arrivals);
            Box::new(move |source, sequence| {
                let now = Instant::now();
                look(&arrivals, |all| {
                    if let Some(seen) = all.seen.get_mut(usize::from(source)) {
                        let before = seen.distinct;
                        seen.note(sequence);
                        all.distinct += seen.distinct - before;
                    }
                    if let Some(steady) = &mut all.steady {
                        steady.push((source, sequence, now));
                    }
                });
            })
        });
        std::thread::spawn(move || serve(&listener, received));

        let fleet = Fleet::start(
            way,
            programs,
            &workload,
            (self.pods, self.files),
            (dir, port),
        )?;
        await_all(way, &arrivals, &workload, Duration::from_secs(120))?;
        // What they did to find the files, and to save that, is over.
        std::thread::sleep(Duration::from_secs(3));
        let (pids, in_pods) = (fleet.pids(), fleet.in_pods(way));

        look(&arrivals, |all| all.steady = Some(Vec::new()));
        let (before, pods_before, clock) =
            (Spent::of(&pids)?, Spent::of(&in_pods)?, Instant::now());
        workload.steady(self.rate, Duration::from_secs(self.seconds))?;
        let (after, pods_after, wall) = (
            Spent::of(&pids)?,
            Spent::of(&in_pods)?,
            clock.elapsed().as_secs_f64(),
        );
        let mut connections = open_connections(port)?;
        let (pss_bytes, pods_pss) = (pss(&pids)?, pss(&in_pods)?);
        await_all(way, &arrivals, &workload, Duration::from_secs(60))?;
        let steady = look(&arrivals, |all| all.steady.take()).unwrap_or_default();
        let mut delays: Vec<f64> = steady
            .iter()
            .filter_map(|(source, sequence, arrived)| {
                let written = workload.written_at(*source, *sequence)?;
                Some(arrived.saturating_duration_since(written).as_secs_f64() * 1e3)
            })
            .collect();
        delays.sort_by(f64::total_cmp);

        let (full_before, bytes, clock) = (Spent::of(&pids)?, workload.bytes(), Instant::now());
        workload.full(self.busy.min(self.pods), self.full_lines)?;
        await_all(way, &arrivals, &workload, Duration::from_secs(300))?;
        let full_wall_seconds = clock.elapsed().as_secs_f64();
        let full = Spent::of(&pids)?.cpu - full_before.cpu;
        let gigabytes = (workload.bytes() - bytes) as f64 / 1e9;
        connections = connections.max(open_connections(port)?);
        let full_pss_bytes = pss(&pids)?;
        drop(fleet);
        let (lost, repeated) = look(&arrivals, |all| {
            let sources = all.seen.iter().zip(0_u16..);
            let lost = sources.map(|(seen, source)| workload.lines_of(source) - seen.distinct);
            (lost.sum(), all.seen.iter().map(|seen| seen.repeated).sum())
        });
        Ok(Cost {
            way,
            steady_cpu_percent: 100.0 * (after.cpu - before.cpu) / wall,
            steady_pods_cpu_percent: 100.0 * (pods_after.cpu - pods_before.cpu) / wall,
            wakes_per_second: (after.wakes - before.wakes) as f64 / wall,
            p50_ms: percentile(&delays, 0.5).unwrap_or(f64::NAN),
            p99_ms: percentile(&delays, 0.99).unwrap_or(f64::NAN),
            processes: pids.len(),
            pss_bytes,
            full_pss_bytes,
            pod_pss_bytes: pods_pss / in_pods.len().max(1) as u64,
            connections,
            full_cpu_seconds_per_gb: if gigabytes > 0.0 {
                full / gigabytes
            } else {
                0.0
            },
            full_wall_seconds,
            lines: workload.lines(),
            lost,
            repeated,
        })
    }
}

/// Waits until every line has come, or nothing more does: what is missing then is counted, not waited for.
fn await_all(
    way: Way,
    arrivals: &Shared,
    workload: &Workload,
    at_most: Duration,
) -> anyhow::Result<()> {
    let (begun, mut last, mut changed) = (Instant::now(), 0, Instant::now());
    loop {
        let distinct = look(arrivals, |all| all.distinct);
        if distinct >= workload.lines() {
            return Ok(());
        }
        if distinct != last {
            (last, changed) = (distinct, Instant::now());
        }
        ensure!(
            distinct > 0 || begun.elapsed() < at_most,
            "{} collects nothing",
            way.name()
        );
        if begun.elapsed() >= at_most
            || (distinct > 0 && changed.elapsed() > Duration::from_secs(30))
        {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn pss(pids: &[u32]) -> anyhow::Result<u64> {
    let mut all = 0;
    for pid in pids {
        all += Memory::of(*pid)?.pss;
    }
    Ok(all)
}

/// Connections that stand at a port of this machine, by the kernel's table (proc(5): `net/tcp`).
fn open_connections(port: u16) -> anyhow::Result<usize> {
    const ESTABLISHED: &str = "01";
    let here = format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let is_open = |line: &&str| {
        let mut words = line.split_ascii_whitespace();
        let local = words.nth(1).unwrap_or_default();
        local.ends_with(&here) && words.nth(1) == Some(ESTABLISHED)
    };
    Ok(table.lines().filter(is_open).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_stands_is_counted_once() -> anyhow::Result<()> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        assert_eq!(open_connections(port)?, 0);
        let client = std::net::TcpStream::connect(("127.0.0.1", port))?;
        let (server, _) = listener.accept()?;
        assert_eq!(open_connections(port)?, 1);
        drop((client, server));
        Ok(())
    }
}
