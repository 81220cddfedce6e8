//! `ringpilot demo`: the main job on this machine with nothing installed.
//! Place: a command; workloads that really write logs, and the real daemon, in one process.
//! Invariant: exit code 0 means that every line that was written was delivered, and that the ledger closes.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringpilot_shared::host::{Host, RealHost};

use crate::cli::said;
use crate::daemon::Daemon;
use crate::discover::{Mount, Pod, Runtime, State, Stdout, Workload};
use crate::ledger::{Ledger, Lost, Tally};
use crate::pipeline::Pipeline;
use crate::say::{self, Fault};
use crate::settings::Settings;

/// See it work: workloads write logs, and every line is accounted for.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code: 0 only if every line was delivered and the ledger closes.\n\n\
                  Example:\n  ringpilot demo --seconds 5 --lines-per-second 20000"
)]
pub struct Args {
    /// How long the workloads write
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Lines a second of each workload
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    lines_per_second: u64,
    /// Where logs, records and the checkpoint go; a new temporary folder unless given
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print one JSON object at the end, and nothing before
    #[arg(long)]
    json: bool,
}

/// What came of it, for scripts.
#[derive(Debug, serde::Serialize)]
struct Told<'ledger> {
    written_lines: u64,
    delivered: Tally,
    dead_lettered: Tally,
    filtered: Tally,
    lost: &'ledger BTreeMap<Lost, Tally>,
    in_flight_bytes: u64,
    closes: bool,
    dir: &'ledger Path,
}

/// A workload that writes: how many lines it has written so far.
#[derive(Debug)]
struct Writer {
    name: &'static str,
    what: &'static str,
    lines: Arc<AtomicU64>,
}

/// Runs the command.
///
/// # Errors
/// When the folder cannot be used, or the machine refuses a thread.
pub fn run(args: &Args) -> Result<ExitCode, Fault> {
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => std::env::temp_dir().join(format!("ringpilot-demo-{:08x}", rand::random::<u32>())),
    };
    let unusable = |error: std::io::Error| {
        Fault::new(
            format!("{} cannot be used: {error}", dir.display()),
            "name a folder that may be written with `--dir`",
        )
    };
    for folder in ["web", "service", "vault", "rings/vault", "records"] {
        std::fs::create_dir_all(dir.join(folder)).map_err(unusable)?;
    }
    crate::run::log_to_stderr();
    let settings = settings(&dir)?;
    let host = Arc::new(RealHost::new());
    let mut opened = crate::run::open(settings, Arc::clone(&host), false)?;
    opened.parts.workloads = vec![web(&dir), service(&dir)];
    let before = opened.before;
    let daemon = Daemon::start(opened.parts).map_err(|why| Fault::new(why, "see the log"))?;
    let pipeline = Arc::clone(&daemon.pipeline);
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    let mut writers = Vec::new();
    type Line = fn(u64, i64) -> String;
    let shim = shim(&dir)?;
    let kinds: [(&str, &str, PathBuf, Line); 3] = [
        (
            "web",
            "an nginx access file",
            dir.join("web/access.log"),
            access_line,
        ),
        (
            "service",
            "JSON on stdout, as containerd writes it",
            dir.join("service/0.log"),
            cri_line,
        ),
        (
            "vault",
            "a file that only its shim can read, over the ring",
            dir.join("vault/audit.log"),
            audit_line,
        ),
    ];
    for (name, what, path, line) in kinds {
        let lines = Arc::new(AtomicU64::new(0));
        let (counted, stop, host) = (Arc::clone(&lines), Arc::clone(&stop), Arc::clone(&host));
        let rate = args.lines_per_second;
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || write(&path, line, rate, &counted, &stop, &*host))
            .map_err(unusable)?;
        threads.push(thread);
        writers.push(Writer { name, what, lines });
    }
    let started = host.now();
    let ends = started + Duration::from_secs(args.seconds);
    let mut screen = (!args.json).then(Screen::new);
    while host.now() < ends {
        std::thread::park_timeout(Duration::from_millis(250));
        if let Some(screen) = &mut screen {
            screen.show(&pipeline, &writers, host.now() - started)?;
        }
    }
    stop.store(true, Ordering::Release);
    let mut written_all = true;
    for thread in threads {
        written_all &= matches!(thread.join(), Ok(Ok(())));
    }
    let written: u64 = writers
        .iter()
        .map(|writer| writer.lines.load(Ordering::Acquire))
        .sum();
    // What was written last is on its way still.
    let patience = host.now() + Duration::from_secs(30);
    while host.now() < patience {
        let delivered = pipeline.look(|view| view.ledger(0).0.delivered.records);
        if delivered >= written + before[0].delivered.records {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    if let Some(screen) = &mut screen {
        screen.show(&pipeline, &writers, host.now() - started)?;
    }
    written_all &= end(shim);
    let clean = daemon.stop(Duration::from_secs(10), &*host);
    let (ledger, in_flight) = pipeline.look(|view| view.ledger(0));
    let ledger = ledger.since(&before[0]);
    let unbalanced = pipeline.look(|view| view.unbalanced());
    if args.json {
        let told = Told {
            written_lines: written,
            delivered: ledger.delivered,
            dead_lettered: ledger.dead_lettered,
            filtered: ledger.filtered,
            lost: &ledger.lost,
            in_flight_bytes: in_flight,
            closes: unbalanced.is_none(),
            dir: &dir,
        };
        said(say::line(serde_json::json!(told)))?;
    } else {
        tell(&ledger, in_flight, written, &dir)?;
    }
    if let Some(what) = unbalanced.as_ref().filter(|_| !args.json) {
        said(say::line(format_args!("the ledger does NOT close: {what}")))?;
    }
    let good = written_all
        && clean
        && unbalanced.is_none()
        && in_flight == 0
        && ledger.lost.is_empty()
        && ledger.delivered.records == written;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn settings(dir: &Path) -> Result<Settings, Fault> {
    let at = |name: &str| dir.join(name).display().to_string();
    let quoted = |text: String| serde_json::Value::from(text).to_string();
    let yaml = format!(
        "node_name: demo\ndata_dir: {}\nhttp: none\nhost_root: /\n\
         discover: {{docker: false, cri: false, rings: {{dir: {}}}}}\n\
         outputs: {{records: {{type: file, path: {}}}}}\n",
        quoted(at("data")),
        quoted(at("rings")),
        quoted(at("records/{target}.ndjson")),
    );
    Settings::from_yaml(&yaml, &|_| None).map_err(|problems| {
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Fault::usage(told.join("; "), "name another folder with `--dir`")
    })
}

fn workload(name: &str, environment: &[(&str, &str)]) -> Workload {
    Workload {
        runtime: Runtime::Cri,
        id: format!("demo-{name}"),
        name: name.to_owned(),
        labels: Default::default(),
        annotations: Default::default(),
        environment: environment
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        mounts: Vec::new(),
        stdout: Stdout::None("this workload writes files".to_owned()),
        roots: Vec::new(),
        pid: 0,
        created_ns: 0,
        state: State::Running,
        pod: Some(Pod {
            name: format!("{name}-0"),
            namespace: "demo".to_owned(),
            uid: String::new(),
            container: name.to_owned(),
        }),
    }
}

/// nginx, with its access log on a volume.
fn web(dir: &Path) -> Workload {
    let said = [
        ("aliyun_logs_access", "/logs/access.log"),
        ("aliyun_logs_access_format", "nginx"),
        ("aliyun_logs_access_tags", "tier=front"),
    ];
    Workload {
        mounts: vec![Mount {
            container: "/logs".into(),
            host: dir.join("web"),
        }],
        ..workload("web", &said)
    }
}

/// A service that logs JSON to its stdout.
fn service(dir: &Path) -> Workload {
    let said = [
        ("aliyun_logs_orders", "stdout"),
        ("aliyun_logs_orders_format", "json"),
    ];
    Workload {
        stdout: Stdout::Cri(dir.join("service/0.log")),
        ..workload("service", &said)
    }
}

/// The shim of a restricted pod: this program, as `ringpilot-shim` would run beside the workload. The folder of its
/// socket is who it is.
fn shim(dir: &Path) -> Result<Child, Fault> {
    let refused = |error: std::io::Error| {
        Fault::new(
            format!("the shim cannot be started: {error}"),
            "let this program run itself",
        )
    };
    Command::new(std::env::current_exe().map_err(refused)?)
        .arg("shim")
        .arg("--socket")
        .arg(dir.join("rings/vault/s"))
        .arg(format!("audit={}", dir.join("vault/*.log").display()))
        .env("aliyun_logs_audit_format", "json")
        .env("aliyun_logs_audit_tags", "tier=restricted")
        .spawn()
        .map_err(refused)
}

/// Ends the shim as a pod's end would; whether it says that everything was handed over.
fn end(mut shim: Child) -> bool {
    let pid = i32::try_from(shim.id()).map(Pid::from_raw);
    let told = pid.is_ok_and(|pid| kill(pid, Signal::SIGTERM).is_ok());
    told && shim.wait().is_ok_and(|status| status.success())
}

fn audit_line(n: u64, _now_ns: i64) -> String {
    format!(
        "{{\"audit\":{n},\"who\":\"operator-{}\",\"did\":\"open\"}}\n",
        n % 7
    )
}

fn access_line(n: u64, now_ns: i64) -> String {
    let at = jiff::Timestamp::from_nanosecond(i128::from(now_ns)).unwrap_or_default();
    format!(
        "10.0.{}.{} - - [{}] \"GET /item/{n} HTTP/1.1\" 200 {} \"-\" \"demo/1.0\"\n",
        n / 250 % 250,
        n % 250,
        at.strftime("%d/%b/%Y:%H:%M:%S +0000"),
        300 + n % 700,
    )
}

fn cri_line(n: u64, now_ns: i64) -> String {
    let at = jiff::Timestamp::from_nanosecond(i128::from(now_ns)).unwrap_or_default();
    let text = format!("{{\"order\":{n},\"level\":\"info\",\"text\":\"taken\"}}");
    // A long line comes in parts, as the runtime cuts it.
    if n.is_multiple_of(100) {
        let (a, b) = text.split_at(12);
        return format!("{at} stdout P {a}\n{at} stdout F {b}\n");
    }
    format!("{at} stdout F {text}\n")
}

/// Writes lines at a rate; a file that is no runtime's is rotated by rename every two seconds, as logrotate would.
fn write(
    path: &Path,
    line: fn(u64, i64) -> String,
    rate: u64,
    counted: &AtomicU64,
    stop: &AtomicBool,
    host: &dyn Host,
) -> std::io::Result<()> {
    let open = || {
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
    };
    let mut file = std::io::BufWriter::with_capacity(64 * 1024, open()?);
    let started = host.now();
    let mut rotated = started;
    let mut n = 0;
    let mut turn = 0;
    while !stop.load(Ordering::Acquire) {
        let now = host.now();
        let due =
            u64::try_from((now - started).as_micros()).unwrap_or(u64::MAX) / 1_000 * rate / 1_000;
        while n < due {
            file.write_all(line(n, host.wall_ns()).as_bytes())?;
            n += 1;
        }
        file.flush()?;
        counted.store(n, Ordering::Release);
        if path.extension().is_some_and(|kind| kind == "log")
            && !path.ends_with("0.log")
            && now >= rotated + Duration::from_secs(2)
        {
            rotated = now;
            turn += 1;
            std::fs::rename(path, path.with_extension(format!("log.{turn}")))?;
            file = std::io::BufWriter::with_capacity(64 * 1024, open()?);
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    Ok(())
}

/// The live table: redrawn in place on a terminal, a line now and then elsewhere.
struct Screen {
    is_terminal: bool,
    drawn: usize,
    told_at: Duration,
}

impl Screen {
    fn new() -> Self {
        Self {
            is_terminal: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
            drawn: 0,
            told_at: Duration::ZERO,
        }
    }

    fn show(&mut self, pipeline: &Pipeline, writers: &[Writer], at: Duration) -> Result<(), Fault> {
        if !self.is_terminal && at < self.told_at + Duration::from_secs(2) {
            return Ok(());
        }
        self.told_at = at;
        let (ledger, in_flight) = pipeline.look(|view| view.ledger(0));
        let mut lines = vec![format!(
            "{:8} {:>12} {:>14} {:>14} {:>10}   {:.1} s",
            "",
            "lines",
            "delivered",
            "in flight B",
            "lost B",
            at.as_secs_f64()
        )];
        for writer in writers {
            lines.push(format!(
                "{:8} {:>12}   {}",
                writer.name,
                writer.lines.load(Ordering::Acquire),
                writer.what
            ));
        }
        lines.push(format!(
            "{:8} {:>12} {:>14} {:>14} {:>10}",
            "daemon",
            "",
            ledger.delivered.records,
            in_flight,
            ledger.lost_total().bytes
        ));
        if self.is_terminal && self.drawn > 0 {
            said(say::line(format_args!("\x1b[{}A", self.drawn + 1)))?;
        }
        for line in &lines {
            let end = if self.is_terminal { "\x1b[K" } else { "" };
            said(say::line(format_args!("{line}{end}")))?;
        }
        self.drawn = lines.len();
        Ok(())
    }
}

fn tell(ledger: &Ledger, in_flight: u64, written: u64, dir: &Path) -> Result<(), Fault> {
    said(say::line(format_args!(
        "\nlines written      {written:>12}\nrecords delivered  {:>12}\n\n\
         source bytes read  {:>12}\n= delivered        {:>12}\n+ dead-lettered    {:>12}\n+ filtered         {:>12}\n\
         + lost             {:>12}\n+ in flight        {in_flight:>12}\n",
        ledger.delivered.records,
        ledger.accounted() + in_flight,
        ledger.delivered.bytes,
        ledger.dead_lettered.bytes,
        ledger.filtered.bytes,
        ledger.lost_total().bytes,
    )))?;
    for target in ["access", "orders", "audit"] {
        let path = dir.join("records").join(format!("{target}.ndjson"));
        let first = std::fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.lines().next().map(str::to_owned));
        if let Some(first) = first {
            said(say::line(format_args!("{}\n  {first}", path.display())))?;
        }
    }
    said(say::line(format_args!(
        "\nlogs, records and the checkpoint: {}",
        dir.display()
    )))
}
