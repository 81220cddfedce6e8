//! Over the quota: an output is down while files are deleted unread, more of them than may be held.
//! Invariants: its door is shut from the start, so that what was deleted is what is held or given up; a file is given
//! up whole, so the excess is exact to one file.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use super::{LINE_BYTES, LONG, Outputs, gate, megabytes};
use crate::daemon::{self, Daemon, is_delivered};
use crate::elasticsearch;
use crate::load::{Load, Numbers, Seen};
use crate::receiver::Running;
use crate::rotate::{Log, Rotation};

/// What may be held, in bytes.
const QUOTA: u64 = 16 << 20;
/// Lines of a file before it is deleted.
const LINES: u64 = 5_000;
/// Files that are deleted, of each log: 80 MB in all.
const FILES: u64 = 20;
const LOGS: u16 = 4;
/// All that the daemon may have in memory, a half of it for each output.
const BUDGET: u64 = 4 << 20;
const INDEX: &str = "quota";

impl Outputs {
    pub(super) fn quota(&self, dir: &Path) -> anyhow::Result<()> {
        let receiver = Running::start()?;
        let port = match &self.server {
            None => receiver.port,
            Some(url) => {
                let port = url.trim_end_matches('/').rsplit_once(':');
                port.context("the server's URL names no port")?.1.parse()?
            }
        };
        let door = gate(port, false, 0)?;
        std::fs::create_dir_all(dir.join("logs"))?;
        let yaml = format!(
            "discover: {{docker: false, cri: false, rings: false}}\nmemory_budget: {BUDGET}\n\
             policy: {{default: {{pinned_bytes: {QUOTA}}}}}\n\
             sources: [{{name: bench, path: \"{0}/logs/*/app.log\"}}]\n\
             outputs:\n  down: {{type: elasticsearch, hosts: [\"http://127.0.0.1:{1}\"], index: {INDEX}, retry: {{max_backoff: 1s}}}}\n\
             \x20 well: {{type: file, path: {0}/well.ndjson}}\n",
            dir.display(),
            door.port,
        );
        let mut daemon = Daemon::new(daemon::program(self.program.as_deref())?, dir, &yaml)?;
        daemon.start()?;
        daemon.wait_until(LONG, |_| true)?;

        let begun = Instant::now();
        let (written, deleted) = self.write(dir)?;
        let bytes = written * LINE_BYTES as u64;
        // The sweep that gives up what is over the quota comes every few seconds.
        let lost = |status: &serde_json::Value, output: &str| {
            let lost = &status["ledger"][output]["lost_by_reason"];
            lost["quota"]["bytes"].as_u64().unwrap_or_default()
        };
        daemon.wait_until(LONG, |status| {
            let lines = &status["ledger"]["well"]["delivered"]["lines"];
            // What is unread of a file is lost once what was read of it is settled.
            let in_flight = status["ledger"]["down"]["in_flight"]["bytes"].as_u64();
            lines.as_u64() == Some(written)
                && lost(status, "down") + in_flight.unwrap_or_default() + QUOTA >= deleted
        })?;
        std::thread::sleep(Duration::from_secs(12).saturating_sub(begun.elapsed()));

        door.open();
        daemon.wait_until(LONG, is_delivered)?;
        let status = daemon.status()?;
        let over = lost(&status, "down");
        daemon.end(Signal::SIGTERM)?;
        let (arrived, repeated) = self.arrived(&receiver)?;
        let account = &status["ledger"]["down"];
        ringpilot::say::line(format_args!(
            "quota: {written} lines written, {:.1} MB of them in files deleted unread, {:.1} MB may be held; arrived \
             {arrived} (twice {repeated}), lost by quota {} bytes, {} lines; the other output lost {}",
            megabytes(deleted),
            megabytes(QUOTA),
            over,
            over / LINE_BYTES as u64,
            status["ledger"]["well"]["lost"]["bytes"],
        ))?;
        let file = LINES * LINE_BYTES as u64;
        // Of each file that is given up, what was in memory already may be delivered still.
        let least = (deleted - QUOTA).saturating_sub(BUDGET / 2);
        ensure!(
            (least..=deleted - QUOTA + file).contains(&over),
            "{over} bytes are lost, where {least} to {} are over the quota",
            deleted - QUOTA + file
        );
        ensure!(
            account["lost"]["bytes"] == account["lost_by_reason"]["quota"]["bytes"],
            "lost for another reason: {account}"
        );
        ensure!(
            arrived * LINE_BYTES as u64 + over == bytes && repeated == 0,
            "{bytes} bytes written, {} arrived, {over} lost",
            arrived * LINE_BYTES as u64
        );
        ensure!(
            status["ledger"]["well"]["lost"]["bytes"] == 0 && account["closes"] == true,
            "{}",
            status["ledger"]
        );
        Ok(())
    }

    /// Writes every log, each of whose files is deleted when it is full; lines written and bytes deleted.
    fn write(&self, dir: &Path) -> anyhow::Result<(u64, u64)> {
        let mut logs = Vec::new();
        for number in 0..LOGS {
            let folder = dir.join(format!("logs/{number}"));
            std::fs::create_dir(&folder)?;
            logs.push((
                Log::new(&folder, Rotation::Recreate, 0)?,
                Load::new(1, number, LINE_BYTES),
            ));
        }
        let (mut block, mut deleted) = (Vec::new(), 0);
        for life in 0..=FILES {
            for (log, load) in &mut logs {
                block.clear();
                (life * LINES..(life + 1) * LINES).for_each(|line| load.line(&mut block, line));
                log.file.write_all(&block)?;
            }
            // Long enough to be found and opened; the output that is well reads it, too.
            std::thread::sleep(Duration::from_millis(250));
            if life < FILES {
                for (log, _) in &mut logs {
                    deleted += LINES * LINE_BYTES as u64;
                    log.rotate()?;
                }
            }
        }
        Ok((LINES * (FILES + 1) * u64::from(LOGS), deleted))
    }

    /// Lines that arrived, and how many of them once more.
    fn arrived(&self, receiver: &Running) -> anyhow::Result<(u64, u64)> {
        let Some(url) = &self.server else {
            let tally = receiver.tally()?;
            return Ok((tally.distinct, tally.repeated));
        };
        let (numbers, mut seen) = (Numbers::default(), BTreeMap::<u16, Seen>::new());
        elasticsearch::each_message(url, INDEX, |text| {
            let (log, line) = numbers.of(text).context("no line of ours")?;
            seen.entry(log).or_default().note(line);
            Ok(())
        })?;
        let sum = |of: &dyn Fn(&Seen) -> u64| seen.values().map(of).sum();
        Ok((sum(&|seen| seen.distinct), sum(&|seen| seen.repeated)))
    }
}
