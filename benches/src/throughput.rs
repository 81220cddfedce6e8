//! Throughput: what the daemon costs for the same work as the floor, as a process of its own from its start to its end.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::ensure;
use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;

use crate::daemon;
use crate::load::Load;
use crate::receiver::Running;

/// What the daemon costs: `ringpilot run --once` over a file in the page cache.
#[derive(Debug, clap::Args)]
pub(crate) struct Throughput {
    /// Where the records go; several with commas
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "null,file,bulk"
    )]
    to: Vec<To>,
    /// How lines are read
    #[arg(long, value_enum, default_value = "none")]
    format: Format,
    /// How many lines
    #[arg(long, default_value_t = 5_000_000)]
    lines: u64,
    /// Length of a line, its end included
    #[arg(long, default_value_t = 200)]
    line_bytes: usize,
    /// To how many outputs of this kind, each of which gets every line; several with commas
    #[arg(long, value_delimiter = ',', default_value = "1")]
    outputs: Vec<u16>,
    /// How often each is run; the least and the median are shown
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// The program; the one beside this unless given
    #[arg(long)]
    program: Option<PathBuf>,
    /// Where files are written; they are removed
    #[arg(long)]
    dir: Option<PathBuf>,
    /// One JSON object per place instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum To {
    /// The null output.
    Null,
    /// The file output.
    File,
    /// An Elasticsearch's bulk endpoint on loopback.
    Bulk,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    /// As text.
    None,
    /// nginx's combined form.
    Nginx,
    /// The same by a regular expression.
    Regexp,
}

#[derive(Debug, Serialize)]
struct Cost {
    scenario: &'static str,
    to: To,
    format: Format,
    lines: u64,
    outputs: u16,
    /// Least first.
    cpu_seconds: Vec<f64>,
    wall_seconds: Vec<f64>,
    lines_per_cpu_second: f64,
    peak_rss_bytes: u64,
}

impl Throughput {
    /// Runs every place.
    ///
    /// # Errors
    /// When the daemon fails, or has not delivered every line.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => std::env::current_exe()?.with_file_name("ringpilot"),
        };
        ensure!(
            program.exists(),
            "{} is not there; do: build it with `cargo build --release`",
            program.display()
        );
        let dir = match &self.dir {
            Some(dir) => tempfile::tempdir_in(dir)?,
            None => tempfile::tempdir()?,
        };
        let input = dir.path().join("lines.log");
        self.write_input(&input)?;
        if !self.json {
            ringpilot::say::line(
                "to    outputs    lines   CPU s (least, median)   wall s   lines/CPU s   peak RSS",
            )?;
        }
        let kinds = self.to.iter();
        for (to, outputs) in kinds.flat_map(|to| self.outputs.iter().map(move |n| (to, *n))) {
            let cost = self.measure(&program, *to, outputs, &input, dir.path())?;
            if self.json {
                ringpilot::say::line(serde_json::to_string(&cost)?)?;
                continue;
            }
            let name = format!("{to:?}").to_lowercase();
            let middle = cost.cpu_seconds.len() / 2;
            ringpilot::say::line(format_args!(
                "{name:<5} {:>7} {:>8} {:>10.2} {:>10.2} {:>8.2} {:>13.0} {:>7.1}MB",
                cost.outputs,
                cost.lines,
                cost.cpu_seconds[0],
                cost.cpu_seconds[middle],
                cost.wall_seconds[middle],
                cost.lines_per_cpu_second,
                cost.peak_rss_bytes as f64 / 1e6,
            ))?;
        }
        Ok(())
    }

    fn write_input(&self, input: &Path) -> anyhow::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(input)?);
        if self.format == Format::None {
            Load::new(1, 0, self.line_bytes).write(&mut file, self.lines)?;
        } else {
            for n in 0..self.lines {
                writeln!(
                    file,
                    "10.{}.{}.{} - - [24/Nov/2026:11:30:{:02} +0000] \"GET /item/{n}?from=home HTTP/1.1\" 200 {} \
                     \"https://example.org/shop\" \"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\"",
                    n >> 16 & 255,
                    n >> 8 & 255,
                    n & 255,
                    n % 60,
                    300 + n % 9_000,
                )?;
            }
        }
        Ok(file.flush()?)
    }

    fn measure(
        &self,
        program: &Path,
        to: To,
        outputs: u16,
        input: &Path,
        dir: &Path,
    ) -> anyhow::Result<Cost> {
        let mut cost = Cost {
            scenario: "throughput",
            to,
            format: self.format,
            lines: self.lines,
            outputs,
            cpu_seconds: Vec::new(),
            wall_seconds: Vec::new(),
            lines_per_cpu_second: 0.0,
            peak_rss_bytes: 0,
        };
        for _ in 0..self.runs.max(1) {
            let receivers: Vec<Running> = match to {
                To::Bulk => (0..outputs)
                    .map(|_| Running::start())
                    .collect::<Result<_, _>>()?,
                _ => Vec::new(),
            };
            let config = self.config(to, outputs, input, dir, &receivers)?;
            let clock = Instant::now();
            let (report, cpu) = daemon::once(program, &config)?;
            cost.wall_seconds.push(clock.elapsed().as_secs_f64());
            cost.cpu_seconds.push(cpu);
            let rss = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
            cost.peak_rss_bytes = u64::try_from(rss).unwrap_or(0) * 1024;
            for output in 0..usize::from(outputs) {
                let records = report[output]["ledger"]["d"]["records"].as_u64();
                ensure!(
                    records == Some(self.lines),
                    "{records:?} of {} lines were delivered",
                    self.lines
                );
            }
            for receiver in &receivers {
                let tally = receiver.tally()?;
                ensure!(
                    tally.records == self.lines && tally.repeated == 0,
                    "this arrived: {tally:?}"
                );
            }
            std::fs::remove_dir_all(dir.join("data"))?;
        }
        cost.cpu_seconds.sort_by(f64::total_cmp);
        cost.wall_seconds.sort_by(f64::total_cmp);
        let middle = cost.cpu_seconds[cost.cpu_seconds.len() / 2];
        cost.lines_per_cpu_second = self.lines as f64 / middle.max(1e-6);
        Ok(cost)
    }

    fn config(
        &self,
        to: To,
        outputs: u16,
        input: &Path,
        dir: &Path,
        receivers: &[Running],
    ) -> anyhow::Result<PathBuf> {
        let mut all = String::new();
        for output in 0..usize::from(outputs) {
            let settings = match (to, receivers.get(output)) {
                (To::File, _) => {
                    let written = dir.join(format!("records-{output}.ndjson"));
                    if written.exists() {
                        std::fs::remove_file(&written)?;
                    }
                    format!("{{type: file, path: {}}}", written.display())
                }
                (To::Bulk, Some(receiver)) => format!(
                    "{{type: elasticsearch, hosts: [\"http://127.0.0.1:{}\"]}}",
                    receiver.port
                ),
                _ => "{type: \"null\"}".to_owned(),
            };
            writeln!(all, "  out-{output}: {settings}")?;
        }
        let format = match self.format {
            Format::None => "none".to_owned(),
            Format::Nginx => "nginx".to_owned(),
            Format::Regexp => {
                "regexp, pattern: '^(?<remote>[^ ]*) [^ ]* (?<user>[^ ]*) \\[(?<time>[^\\]]*)\\] \
                \"(?<method>\\S+) (?<path>[^\"]*) \\S*\" (?<code>[^ ]*) (?<size>[^ ]*)', \
                time_format: '%d/%b/%Y:%H:%M:%S %z'"
                    .to_owned()
            }
        };
        let config = dir.join("config.yaml");
        std::fs::write(
            &config,
            format!(
                "node_name: bench\ndata_dir: {}\nhttp: none\n\
                 discover: {{docker: false, cri: false, rings: false}}\n\
                 sources:\n  - name: bench\n    path: {}\n    format: {format}\n\
                 \x20   tags: {{a: one, b: two, c: three, d: four, e: five}}\n\
                 outputs:\n{all}",
                dir.join("data").display(),
                input.display(),
            )
            .replace("format: regexp, pattern: ", "format: regexp\n    pattern: ")
            .replace(", time_format: ", "\n    time_format: "),
        )?;
        Ok(config)
    }
}
