//! Memory: everything in flight within the budget, whatever the outputs, the sources and the length of lines.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::signal::Signal;

use super::{LONG, MOST_RESIDENT, Outputs, gate, megabytes};
use crate::daemon::{self, Daemon};
use crate::load::Load;
use crate::measure;
use crate::receiver::Running;

/// Files, their bytes and the length of their lines.
const FILES: [(u16, u64, usize); 3] = [
    (200, 2 << 20, 200),
    (20, 8 << 20, 200 << 10),
    (20, 16 << 20, (1 << 20) - 1),
];
/// All that may be in flight.
const BUDGET: u64 = 32 << 20;

impl Outputs {
    pub(super) fn memory(&self, dir: &Path) -> anyhow::Result<()> {
        let (well, slow, lines) = (Running::start()?, Running::start()?, Running::start()?);
        let down = gate(1, false, 0)?;
        let narrow = gate(slow.port, true, 1_000_000)?;
        std::fs::create_dir_all(dir.join("logs"))?;
        let host = format!("127.0.0.1:{}", down.port);
        let yaml = format!(
            "discover: {{docker: false, cri: false, rings: false}}\nmemory_budget: {BUDGET}\nmax_line_bytes: 1MiB\n\
             sources: [{{name: bench, path: \"{dir}/logs/*.log\"}}]\n\
             outputs:\n  es: {{type: elasticsearch, hosts: [\"http://127.0.0.1:{well}\"]}}\n\
             \x20 es-slow: {{type: elasticsearch, hosts: [\"http://127.0.0.1:{slow}\"]}}\n\
             \x20 es-down: {{type: elasticsearch, hosts: [\"http://{host}\"]}}\n\
             \x20 http: {{type: http, url: \"http://127.0.0.1:{lines}/in\"}}\n\
             \x20 file: {{type: file, path: {dir}/out.ndjson}}\n\
             \x20 kafka: {{type: kafka, brokers: [\"{host}\"]}}\n\
             \x20 logstash: {{type: logstash, hosts: [\"{host}\"]}}\n\
             \x20 redis: {{type: redis, host: 127.0.0.1, port: {port}}}\n\
             \x20 syslog: {{type: syslog, host: 127.0.0.1, port: {port}, protocol: tcp}}\n\
             \x20 nowhere: {{type: \"null\"}}\n",
            dir = dir.display(),
            port = down.port,
            well = well.port,
            slow = narrow.port,
            lines = lines.port,
        );
        let mut daemon = Daemon::new(daemon::program(self.program.as_deref())?, dir, &yaml)?;
        daemon.start()?;
        daemon.wait_until(LONG, |_| true)?;
        let idle = measure::peak_rss(daemon.pid())?;

        let (mut number, mut written) = (0, 0);
        for (files, bytes, line_bytes) in FILES {
            for _ in 0..files {
                let path = dir.join(format!("logs/{number}.log"));
                let mut file = BufWriter::new(File::create(path)?);
                let count = bytes / line_bytes as u64;
                Load::new(1, number, line_bytes).write(&mut file, count)?;
                file.flush()?;
                number += 1;
                written += count;
            }
        }
        let (begun, mut held) = (Instant::now(), 0);
        let mut rest = ["es", "http", "file", "nowhere"].to_vec();
        while begun.elapsed() < Duration::from_secs(self.seconds) || !rest.is_empty() {
            ensure!(begun.elapsed() < LONG, "{rest:?} did not get everything");
            let status = daemon.status()?;
            held = held.max(status["held_bytes"].as_u64().unwrap_or_default());
            rest.retain(|name| status["ledger"][name]["delivered"]["lines"] != written);
            std::thread::sleep(Duration::from_millis(50));
        }
        let peak = measure::peak_rss(daemon.pid())?;
        daemon.end(Signal::SIGTERM)?;
        for receiver in [&well, &lines] {
            let tally = receiver.tally()?;
            ensure!(
                tally.distinct == written && tally.repeated == 0,
                "this arrived: {tally:?}"
            );
        }
        ringpilot::say::line(format_args!(
            "memory: 10 outputs, 6 of them down or slow, {number} files, lines of 200 bytes to 1 MiB: in flight at most \
             {:.1} MB of {:.1}, resident at most {:.1} MB (bar {:.1}), {:.1} MB before the first line",
            megabytes(held),
            megabytes(BUDGET),
            megabytes(peak),
            megabytes(MOST_RESIDENT),
            megabytes(idle),
        ))?;
        ensure!(held <= BUDGET, "{held} bytes were in flight");
        Ok(())
    }
}
