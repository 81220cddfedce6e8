//! Faults: lines are written to files and by containers while the daemon is killed, or while its files are rotated
//! under it; then every line is counted in what the file output wrote.
//! Invariants: a writer rotates between two of its own lines, so that what it has written is known exactly; a line is
//! counted by its number, whatever stands around it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use serde::Serialize;

use crate::daemon::{self, Daemon, is_delivered};
use crate::elasticsearch;
use crate::load::{Load, Numbers, Seen};
use crate::rotate::{Log, ROTATIONS, Rotation};

/// Kills the daemon, or rotates its files under it, and counts every line.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Faults {
    /// What happens
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "kills,rotations"
    )]
    pub(crate) case: Vec<Case>,
    /// How often the daemon is killed, with `kills`
    #[arg(long, default_value_t = 100)]
    pub(crate) kills: u32,
    /// How long files are rotated, in seconds, with `rotations`
    #[arg(long, default_value_t = 60)]
    pub(crate) seconds: u64,
    /// How many files are written
    #[arg(long, default_value_t = 20)]
    pub(crate) files: u16,
    /// Bytes per second that all files and containers together get
    #[arg(long, default_value_t = 20_000_000)]
    pub(crate) rate: u64,
    /// How many containers write to their stdout, with `kills`; live and are removed, with `lives`
    #[arg(long, default_value_t = 0)]
    pub(crate) containers: u16,
    /// The Docker Engine's socket; it must have the image `box`, whose entry point is `/bin/sh -c` of a busybox
    #[arg(long, required_if_eq("case", "lives"))]
    pub(crate) docker: Option<PathBuf>,
    /// Longest time between two kills, in milliseconds
    #[arg(long, default_value_t = 1_500)]
    pub(crate) pause: u64,
    /// An Elasticsearch or OpenSearch that gets the lines instead of files, such as http://127.0.0.1:9200
    #[arg(long)]
    pub(crate) server: Option<String>,
    /// Another order of kills
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// The program; the one beside this unless given
    #[arg(long)]
    pub(crate) program: Option<PathBuf>,
    /// One JSON object per case instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Case {
    /// The daemon is killed at random moments; files rotate by rename.
    Kills,
    /// The daemon stays; files rotate every 300 ms by rename, copy and truncate, delete and create, symlink swap.
    Rotations,
    /// Nothing but writes, for as long as files are rotated with `rotations`: what happens to the server is another's.
    Steady,
    /// The daemon stays; files that all begin with the same 2,000 bytes are copied and truncated every 300 ms.
    Heads,
    /// The daemon stays; containers live 100 ms to 3 s and are removed at once.
    Lives,
}

/// What a case came to.
#[derive(Debug, Serialize)]
pub(crate) struct Counted {
    case: Case,
    /// Lines that were written.
    pub(crate) written: u64,
    /// Of these, lines that arrived.
    pub(crate) arrived: u64,
    /// Lines that arrived once more.
    pub(crate) repeated: u64,
    /// Lines that the daemon says are lost.
    pub(crate) lost: u64,
    /// How often the daemon was killed.
    pub(crate) kills: u32,
    /// How often a file was rotated.
    pub(crate) rotations: u64,
    seconds: f64,
}

const LINE_BYTES: usize = 200;
/// Rotated files that stay.
const KEEP: u64 = 10;
/// The same before a server, which may fall behind for minutes: what a killed daemon no longer holds must have a name.
const KEEP_FOR_SERVER: u64 = 40;
/// How long nothing may move until what has not arrived counts as missing.
const PATIENCE: Duration = Duration::from_secs(120);
/// Lines that every file begins with, with `heads`.
const HEAD_LINES: u64 = 10;
/// Stands for these lines: they have no number.
const HEADS: u16 = u16::MAX;
/// How often a writer writes.
const TICK: Duration = Duration::from_millis(20);
/// How often a file is rotated, with `rotations`.
const ROTATE_EVERY: Duration = Duration::from_millis(300);
/// Files of containers have numbers from here.
const FILE_IN_CONTAINER: u16 = 5_000;
/// Containers' stdout has numbers from here.
const CONTAINER: u16 = 1_000;
/// Lines that a container writes that lives a moment.
const LINES_OF_A_LIFE: u64 = 50;

impl Faults {
    /// Runs every case.
    ///
    /// # Errors
    /// When a line is missing or twice, or the daemon ends by itself. What was written is kept then.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        if !self.json {
            ringpilot::say::line(
                "case         written      arrived   twice    lost   kills   rotations   seconds",
            )?;
        }
        for case in &self.case {
            let dir = tempfile::Builder::new()
                .prefix("ringpilot-faults.")
                .tempdir()?;
            // What went wrong is looked at afterwards.
            let kept = |error: anyhow::Error, dir: tempfile::TempDir| {
                error.context(format!("kept: {}", dir.keep().display()))
            };
            let counted = match self.measure(*case, dir.path()) {
                Ok(counted) => counted,
                Err(error) => return Err(kept(error, dir)),
            };
            if self.json {
                ringpilot::say::line(serde_json::to_string(&counted)?)?;
            } else {
                let name = format!("{:?}", counted.case).to_lowercase();
                ringpilot::say::line(format_args!(
                    "{name:<9} {:>10} {:>12} {:>7} {:>7} {:>7} {:>11} {:>9.1}",
                    counted.written,
                    counted.arrived,
                    counted.repeated,
                    counted.lost,
                    counted.kills,
                    counted.rotations,
                    counted.seconds,
                ))?;
            }
            if counted.arrived != counted.written || counted.repeated != 0 || counted.lost != 0 {
                let error = anyhow::anyhow!(
                    "{} lines are missing, of which the daemon counts {} as lost; {} are twice",
                    counted.written.saturating_sub(counted.arrived),
                    counted.lost,
                    counted.repeated
                );
                return Err(kept(error, dir));
            }
        }
        Ok(())
    }

    /// Runs one case beneath `dir`.
    pub(crate) fn measure(&self, case: Case, dir: &Path) -> anyhow::Result<Counted> {
        let logs = dir.join("logs");
        std::fs::create_dir_all(&logs)?;
        std::fs::create_dir_all(dir.join("out"))?;
        let docker = match &self.docker {
            Some(socket) => format!("{{socket: {}}}", socket.display()),
            None => "false".to_owned(),
        };
        let output = match &self.server {
            Some(url) => format!(
                "{{type: elasticsearch, hosts: [\"{url}\"], index: \"{}-{{date}}\"}}",
                index(case)
            ),
            None => format!(
                "{{type: file, path: \"{}/out/{{target}}.ndjson\"}}",
                dir.display()
            ),
        };
        let yaml = format!(
            "discover: {{docker: {docker}, cri: false, rings: false}}\n\
             sources: [{{name: fault, path: \"{}/*/app.log\"}}]\n\
             outputs: {{to: {output}}}\n",
            logs.display(),
        );
        let mut daemon = Daemon::new(daemon::program(self.program.as_deref())?, dir, &yaml)?;
        daemon.start()?;
        daemon.wait_until(Duration::from_secs(30), |_| true)?;

        let begun = Instant::now();
        let stop = AtomicBool::new(false);
        let mut kills = 0;
        let mut written = BTreeMap::new();
        let mut rotations = 0;
        std::thread::scope(|scope| -> anyhow::Result<()> {
            let (stop, logs) = (&stop, &logs);
            let files = if case == Case::Lives { 0 } else { self.files };
            let containers = match case {
                Case::Rotations | Case::Heads => 0,
                _ => self.containers,
            };
            let rate = self.rate / u64::from(files + containers).max(1);
            let writers: Vec<_> = (0..files)
                .map(|file| scope.spawn(move || self.write(case, file, rate, logs, stop)))
                .collect();
            // They stop whatever happens to the daemon.
            let happened = match case {
                Case::Kills => self.kill_often(&mut daemon, containers, rate, &mut written),
                Case::Rotations | Case::Heads | Case::Steady => self
                    .start_writers(containers, rate, self.seconds, &mut written)
                    .and_then(|running| {
                        std::thread::sleep(Duration::from_secs(self.seconds));
                        wait_for(running)
                    })
                    .map(|()| 0),
                Case::Lives => self.live_and_end(&mut written).map(|()| 0),
            };
            stop.store(true, Ordering::Relaxed);
            for (file, writer) in (0_u16..).zip(writers) {
                let (lines, rotated) = writer.join().expect("a writer panicked")?;
                written.insert(file, lines);
                rotations += rotated;
                if case == Case::Heads {
                    *written.entry(HEADS).or_default() += HEAD_LINES * (rotated + 1);
                }
            }
            kills = happened?;
            Ok(())
        })?;
        let all = written.values().sum();
        let lost = self.settle(case, dir, &daemon, &written)?;
        daemon.end(Signal::SIGTERM)?;
        let (arrived, repeated) = self.count(case, dir, &written)?;
        Ok(Counted {
            case,
            written: all,
            arrived,
            repeated,
            lost,
            kills,
            rotations,
            seconds: begun.elapsed().as_secs_f64(),
        })
    }

    /// Waits until everything has arrived or is counted as lost, or nothing has moved for two minutes; the lines lost.
    fn settle(
        &self,
        case: Case,
        dir: &Path,
        daemon: &Daemon,
        written: &BTreeMap<u16, u64>,
    ) -> anyhow::Result<u64> {
        let all: u64 = written.values().sum();
        // It may have been started again only just now.
        daemon.wait_until(PATIENCE, |_| true)?;
        let (mut before, mut moved) = (0, Instant::now());
        loop {
            let status = daemon.status()?;
            let account = &status["ledger"]["to"];
            let lines = |of: &str| account[of]["lines"].as_u64().unwrap_or_default();
            let (delivered, lost) = (lines("delivered"), lines("lost"));
            // What was written last is seen at once, but not at the same instant.
            std::thread::sleep(Duration::from_secs(1));
            if is_delivered(&status) && self.count(case, dir, written)?.0 + lost >= all {
                return Ok(lost);
            }
            if delivered != before {
                (before, moved) = (delivered, Instant::now());
            }
            if moved.elapsed() > PATIENCE {
                return Ok(lost);
            }
        }
    }

    /// Writes one file until `stop`; how many lines, and how often it was rotated.
    fn write(
        &self,
        case: Case,
        file: u16,
        rate: u64,
        logs: &Path,
        stop: &AtomicBool,
    ) -> anyhow::Result<(u64, u64)> {
        let dir = logs.join(file.to_string());
        std::fs::create_dir(&dir)?;
        let rotation = match case {
            Case::Rotations => ROTATIONS[usize::from(file) % ROTATIONS.len()],
            Case::Heads => Rotation::CopyTruncate,
            _ => Rotation::Rename,
        };
        let keep = if self.server.is_some() {
            KEEP_FOR_SERVER
        } else {
            KEEP
        };
        let mut log = Log::new(&dir, rotation, keep)?;
        let head = if case == Case::Heads {
            head()
        } else {
            Vec::new()
        };
        log.file.write_all(&head)?;
        let load = Load::new(self.seed, file, LINE_BYTES);
        let begun = Instant::now();
        let (mut lines, mut block, mut rotated_at) = (0, Vec::new(), begun);
        while !stop.load(Ordering::Relaxed) {
            let due = (begun.elapsed().as_secs_f64() * rate as f64) as u64 / LINE_BYTES as u64;
            block.clear();
            while lines < due {
                load.line(&mut block, lines);
                lines += 1;
            }
            log.file.write_all(&block)?;
            // By time in both cases; with kills seldom enough that what is kept outlasts a start.
            let every = match (case, &self.server) {
                (Case::Rotations | Case::Heads, _) => ROTATE_EVERY,
                (_, None) => 4 * ROTATE_EVERY,
                // A server falls behind, and what a killed daemon no longer holds must still have a name.
                (_, Some(_)) => 20 * ROTATE_EVERY,
            };
            if rotated_at.elapsed() >= every {
                log.rotate()?;
                log.file.write_all(&head)?;
                rotated_at = Instant::now();
            }
            std::thread::sleep(TICK);
        }
        Ok((lines, log.rotations))
    }

    /// Starts containers that write for about `seconds`.
    fn start_writers(
        &self,
        containers: u16,
        rate: u64,
        seconds: u64,
        written: &mut BTreeMap<u16, u64>,
    ) -> anyhow::Result<Vec<Child>> {
        let lines = rate / LINE_BYTES as u64 * seconds;
        let mut running = Vec::new();
        for container in 0..containers {
            let source = CONTAINER + container;
            let script = writes(source, lines, rate / LINE_BYTES as u64, "/dev/stdout");
            let child = self
                .docker()?
                .args([
                    "run",
                    "--rm",
                    "--network",
                    "none",
                    "--log-opt",
                    "max-size=2m",
                ])
                .args(["--log-opt", "max-file=20", "-e", "aliyun_logs_busy=stdout"])
                .args(["box", &script])
                .stdout(Stdio::null())
                .spawn()?;
            running.push(child);
            written.insert(source, lines);
        }
        Ok(running)
    }

    /// Kills and starts the daemon, while containers write too.
    fn kill_often(
        &self,
        daemon: &mut Daemon,
        containers: u16,
        rate: u64,
        written: &mut BTreeMap<u16, u64>,
    ) -> anyhow::Result<u32> {
        // About as long as the kills take.
        let running = self.start_writers(containers, rate, u64::from(self.kills), written)?;
        let mut state = self.seed;
        for _ in 0..self.kills {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            // A start alone takes some of it, so that kills fall into starts as well.
            std::thread::sleep(Duration::from_millis(
                20 + (state >> 33) % self.pause.max(1),
            ));
            daemon.end(Signal::SIGKILL)?;
            daemon.start()?;
        }
        wait_for(running)?;
        Ok(self.kills)
    }

    /// Starts containers that live a moment and are removed at once, four at a time.
    fn live_and_end(&self, written: &mut BTreeMap<u16, u64>) -> anyhow::Result<()> {
        for container in 0..self.containers {
            written.insert(CONTAINER + container, LINES_OF_A_LIFE);
            written.insert(FILE_IN_CONTAINER + container, LINES_OF_A_LIFE);
        }
        let next = std::sync::atomic::AtomicU16::new(0);
        std::thread::scope(|scope| {
            let live = || -> anyhow::Result<()> {
                loop {
                    let container = next.fetch_add(1, Ordering::Relaxed);
                    if container >= self.containers {
                        return Ok(());
                    }
                    let millis = 100 + u64::from(container) * 7_919 % 2_900;
                    let script = format!(
                        "{}; {}; usleep {}",
                        writes(CONTAINER + container, LINES_OF_A_LIFE, 0, "/dev/stdout"),
                        writes(
                            FILE_IN_CONTAINER + container,
                            LINES_OF_A_LIFE,
                            0,
                            "/tmp/l.log"
                        ),
                        millis * 1_000
                    );
                    let status = self
                        .docker()?
                        .args(["run", "--rm", "--network", "none"])
                        .args(["-e", "aliyun_logs_life=stdout"])
                        .args(["-e", "aliyun_logs_lifefile=/tmp/l.log", "box", &script])
                        .stdout(Stdio::null())
                        .status()?;
                    ensure!(status.success(), "a container failed");
                }
            };
            let lives: Vec<_> = (0..4).map(|_| scope.spawn(live)).collect();
            lives
                .into_iter()
                .try_for_each(|life| life.join().expect("a life panicked"))
        })
    }

    /// How many of the lines written have arrived, and how many once more.
    fn count(
        &self,
        case: Case,
        dir: &Path,
        written: &BTreeMap<u16, u64>,
    ) -> anyhow::Result<(u64, u64)> {
        let mut arrived = Arrived::new(written);
        match &self.server {
            Some(url) => {
                let indices = format!("{}-*", index(case));
                elasticsearch::each_message(url, &indices, |text| arrived.note(text))?;
            }
            None => {
                let mut line = Vec::new();
                for entry in std::fs::read_dir(dir.join("out"))? {
                    let mut file = BufReader::with_capacity(1 << 20, File::open(entry?.path())?);
                    loop {
                        line.clear();
                        if file.read_until(b'\n', &mut line)? == 0 {
                            break;
                        }
                        arrived.note(&line)?;
                    }
                }
            }
        }
        Ok(arrived.sums())
    }

    fn docker(&self) -> anyhow::Result<Command> {
        let socket = self.docker.as_ref().context(
            "containers need a Docker Engine; do: say its socket with --docker, or use deploy/e2e/faults",
        )?;
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        Ok(command)
    }
}

/// What an Elasticsearch's indices begin with.
fn index(case: Case) -> String {
    format!("fault-{case:?}").to_lowercase()
}

/// What every file begins with: longer than what a file is known again by.
fn head() -> Vec<u8> {
    let line = format!("{:=<width$}\n", "head ", width = LINE_BYTES - 1);
    line.repeat(HEAD_LINES as usize).into_bytes()
}

/// Waits for containers to end.
fn wait_for(running: Vec<Child>) -> anyhow::Result<()> {
    for mut child in running {
        ensure!(child.wait()?.success(), "a container failed");
    }
    Ok(())
}

/// A script of busybox that writes numbered lines, at most `per_second` of them unless that is 0.
fn writes(source: u16, lines: u64, per_second: u64, to: &str) -> String {
    let pace = match per_second {
        0 => String::new(),
        _ => format!(
            "if (i % {} == 0) {{ fflush(); system(\"usleep 50000\") }};",
            (per_second / 20).max(1)
        ),
    };
    format!(
        "busybox awk 'BEGIN {{ pad = sprintf(\"%150s\", \"\"); gsub(/ /, \"x\", pad); for (i = 0; i < {lines}; i++) {{ \
         printf \"seq=%012d src={source:04} %s\\n\", i, pad; {pace} }} }}' > {to}"
    )
}

/// What has arrived of what was written.
struct Arrived<'written> {
    written: &'written BTreeMap<u16, u64>,
    numbers: Numbers,
    seen: BTreeMap<u16, Seen>,
    /// Lines of the same head.
    heads: u64,
}

impl<'written> Arrived<'written> {
    fn new(written: &'written BTreeMap<u16, u64>) -> Self {
        Self {
            written,
            numbers: Numbers::default(),
            seen: BTreeMap::new(),
            heads: 0,
        }
    }

    /// Notes a record. An error where nobody has written it.
    fn note(&mut self, record: &[u8]) -> anyhow::Result<()> {
        if memchr::memmem::find(record, b"head ====").is_some() {
            self.heads += 1;
            return Ok(());
        }
        let (source, sequence) = self
            .numbers
            .of(record)
            .with_context(|| format!("no line of ours: {}", String::from_utf8_lossy(record)))?;
        let lines = self.written.get(&source).copied().unwrap_or_default();
        ensure!(
            sequence < lines,
            "source {source} has no line {sequence}, only {lines}"
        );
        self.seen.entry(source).or_default().note(sequence);
        Ok(())
    }

    /// How many lines, and how many came once more.
    fn sums(&self) -> (u64, u64) {
        let sum = |of: &dyn Fn(&Seen) -> u64| self.seen.values().map(of).sum::<u64>();
        // Nobody can tell which of them came twice, only how many.
        let heads = self.written.get(&HEADS).copied().unwrap_or_default();
        (
            sum(&|seen| seen.distinct) + self.heads.min(heads),
            sum(&|seen| seen.repeated) + self.heads.saturating_sub(heads),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(case: Case) -> anyhow::Result<()> {
        let faults = Faults {
            case: vec![case],
            kills: 4,
            seconds: 3,
            files: 8,
            rate: 4_000_000,
            containers: 0,
            docker: None,
            pause: 1_500,
            server: None,
            seed: 1,
            program: None,
            json: true,
        };
        let dir = tempfile::tempdir()?;
        let counted = faults.measure(case, dir.path())?;
        assert!(counted.written > 10_000, "{counted:?}");
        assert!(counted.rotations >= 8, "{counted:?}");
        assert_eq!(counted.arrived, counted.written, "{counted:?}");
        assert_eq!(counted.repeated, 0, "{counted:?}");
        Ok(())
    }

    #[test]
    fn a_daemon_that_is_killed_loses_and_repeats_no_line_of_files_that_rotate() -> anyhow::Result<()>
    {
        short(Case::Kills)
    }

    #[test]
    fn each_way_of_rotation_loses_and_repeats_no_line_under_a_daemon_that_stays()
    -> anyhow::Result<()> {
        short(Case::Rotations)
    }
}
