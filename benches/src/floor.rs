//! The floor: what the work costs one thread that reads lines, writes JSON records with nine tags and hands them on,
//! with no framework at all. Nothing here is the daemon's code: it is what the daemon is measured by.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use memchr::{memchr, memmem};
use serde::Serialize;

use crate::load::Load;
use crate::measure::{Cpu, Memory, on_cpu};
use crate::receiver::Running;

/// What the work costs one thread with no framework at all.
#[derive(Debug, clap::Args)]
pub(crate) struct Floor {
    /// Where the records go; several with commas
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "null,file,bulk"
    )]
    to: Vec<To>,
    /// How many lines
    #[arg(long, default_value_t = 5_000_000)]
    lines: u64,
    /// Length of a line, its end included
    #[arg(long, default_value_t = 200)]
    line_bytes: usize,
    /// Lines to read instead of new ones
    #[arg(long, conflicts_with_all = ["lines", "line_bytes"])]
    input: Option<PathBuf>,
    /// Where files are written; they are removed
    #[arg(long)]
    dir: Option<PathBuf>,
    /// One JSON object per run instead of a table
    #[arg(long)]
    json: bool,
}

/// Where records go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum To {
    /// Nowhere.
    Null,
    /// A file.
    File,
    /// An Elasticsearch's bulk endpoint on loopback, each item's answer read.
    Bulk,
}

/// What one run has cost.
#[derive(Debug, Serialize)]
struct Cost {
    scenario: &'static str,
    to: To,
    lines: u64,
    read_bytes: u64,
    written_bytes: u64,
    cpu_seconds: f64,
    cpu: Cpu,
    wall_seconds: f64,
    lines_per_cpu_second: f64,
    memory: Memory,
    /// The receiver's own, which is not in `cpu_seconds`.
    receiver: Option<ReceiverCost>,
}

#[derive(Debug, Serialize)]
struct ReceiverCost {
    cpu: Cpu,
    on_cpu_seconds: f64,
}

impl Floor {
    /// Runs it once for each place, and says what it cost.
    ///
    /// # Errors
    /// When a file or the receiver fails, or what arrived is not what was read.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let dir = match &self.dir {
            Some(dir) => tempfile::tempdir_in(dir)?,
            None => tempfile::tempdir()?,
        };
        let input = match &self.input {
            Some(input) => input.clone(),
            None => {
                let input = dir.path().join("lines.log");
                let mut file = File::create(&input)?;
                Load::new(1, 0, self.line_bytes).write(&mut file, self.lines)?;
                input
            }
        };
        if !self.json {
            ringpilot::say::line(
                "to       lines     read   written    CPU s (user + system)   wall s   lines/CPU s    RSS",
            )?;
        }
        for to in &self.to {
            let cost = run(*to, &input, dir.path())?;
            if self.json {
                ringpilot::say::line(serde_json::to_string(&cost)?)?;
                continue;
            }
            let name = format!("{to:?}").to_lowercase();
            ringpilot::say::line(format_args!(
                "{name:<5} {:>8} {:>6.2}GB {:>7.2}GB {:>8.2} ({:>5.2} + {:>5.2}) {:>8.2} {:>13.0} {:>4.1}MB",
                cost.lines,
                cost.read_bytes as f64 / 1e9,
                cost.written_bytes as f64 / 1e9,
                cost.cpu_seconds,
                cost.cpu.user,
                cost.cpu.system,
                cost.wall_seconds,
                cost.lines_per_cpu_second,
                cost.memory.rss as f64 / 1e6,
            ))?;
        }
        Ok(())
    }
}

/// Bytes read at once, and bytes of records handed on at once.
const READ_BYTES: usize = 256 * 1024;
const HAND_ON_BYTES: usize = 1024 * 1024;

fn run(to: To, input: &Path, dir: &Path) -> anyhow::Result<Cost> {
    let written = dir.join("records.ndjson");
    let receiver = match to {
        To::Bulk => Some(Running::start()?),
        _ => None,
    };
    let mut place = match (to, &receiver) {
        (To::File, _) => Place::File(File::create(&written)?),
        (To::Bulk, Some(receiver)) => Place::Bulk(Bulk::connect(receiver.port)?),
        _ => Place::Null,
    };
    let (clock, before) = (Instant::now(), Cpu::of_self()?);
    let counted = work(input, &mut place)?;
    let (cpu, wall_seconds) = (Cpu::of_self()? - before, clock.elapsed().as_secs_f64());
    drop(place);
    let receiver = match receiver {
        Some(receiver) => {
            let tally = receiver.tally()?;
            ensure!(
                tally.records == counted.lines && tally.repeated == 0 && tally.missing == 0,
                "{} lines were sent, but this arrived: {tally:?}",
                counted.lines
            );
            Some(ReceiverCost {
                cpu: Cpu::of(receiver.pid())?,
                on_cpu_seconds: on_cpu(receiver.pid())?.as_secs_f64(),
            })
        }
        None => None,
    };
    if to == To::File {
        let length = std::fs::metadata(&written)?.len();
        ensure!(
            length == counted.written,
            "the file holds {length} bytes, not {}",
            counted.written
        );
        std::fs::remove_file(&written)?;
    }
    Ok(Cost {
        scenario: "floor",
        to,
        lines: counted.lines,
        read_bytes: counted.read,
        written_bytes: counted.written,
        cpu_seconds: cpu.total(),
        cpu,
        wall_seconds,
        lines_per_cpu_second: counted.lines as f64 / cpu.total().max(1e-6),
        memory: Memory::of(std::process::id())?,
        receiver,
    })
}

#[derive(Debug, Default)]
struct Counted {
    lines: u64,
    read: u64,
    written: u64,
}

/// Reads, splits, writes records, hands them on.
fn work(input: &Path, place: &mut Place) -> anyhow::Result<Counted> {
    let mut file = File::open(input).with_context(|| format!("cannot read {}", input.display()))?;
    let mut counted = Counted::default();
    let mut buffer = vec![0; READ_BYTES];
    let mut out = Vec::with_capacity(HAND_ON_BYTES + 64 * 1024);
    let (mut filled, mut records) = (0, 0);
    loop {
        if filled == buffer.len() {
            buffer.resize(2 * filled, 0);
        }
        let read = file.read(&mut buffer[filled..])?;
        counted.read += read as u64;
        filled += read;
        let mut start = 0;
        while let Some(length) = memchr(b'\n', &buffer[start..filled]) {
            if matches!(place, Place::Bulk(_)) {
                action(&mut out, counted.lines);
            }
            record(&mut out, &buffer[start..start + length]);
            start += length + 1;
            counted.lines += 1;
            records += 1;
            if out.len() >= HAND_ON_BYTES {
                counted.written += out.len() as u64;
                place.take(&mut out, records)?;
                records = 0;
            }
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
        if read == 0 {
            break;
        }
    }
    ensure!(filled == 0, "the last line has no end");
    counted.written += out.len() as u64;
    place.take(&mut out, records)?;
    Ok(counted)
}

/// What every record has besides its message; the time is that of a read, which costs nothing per record.
const TIME: &[u8] = b"{\"@timestamp\":\"2026-11-24T11:30:25.123456789Z\",\"message\":\"";
const TAGS: &[u8] = b"\",\"stream\":\"stdout\",\"docker_container\":\"web\",\"k8s_pod\":\"web-7d4f9c6b5d-x2k8p\",\
    \"k8s_pod_namespace\":\"shop\",\"k8s_container_name\":\"nginx\",\"k8s_node_name\":\"node-1\",\"index\":\"access\",\
    \"topic\":\"access\",\"host\":\"node-1\",\"env\":\"prod\"}\n";

/// A record of a line, as long as a real one.
pub(crate) fn record(out: &mut Vec<u8>, line: &[u8]) {
    out.extend_from_slice(TIME);
    let odd = |byte: &u8| *byte < b' ' || *byte == b'"' || *byte == b'\\';
    if line.iter().fold(false, |any, byte| any | odd(byte)) {
        for byte in line {
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
                byte if odd(byte) => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
                byte => out.push(*byte),
            }
        }
    } else {
        out.extend_from_slice(line);
    }
    out.extend_from_slice(TAGS);
}

/// An id as long as a real one, by the line's number.
pub(crate) fn action(out: &mut Vec<u8>, line: u64) {
    let mut id = [b'0'; 30];
    let mut rest = line;
    for digit in id.iter_mut().rev().take(20) {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(b"{\"create\":{\"_id\":\"");
    out.extend_from_slice(&id);
    out.extend_from_slice(b"\"}}\n");
}

#[derive(Debug)]
enum Place {
    Null,
    File(File),
    Bulk(Bulk),
}

impl Place {
    /// Takes records and leaves the buffer empty.
    fn take(&mut self, out: &mut Vec<u8>, records: usize) -> anyhow::Result<()> {
        match self {
            _ if records == 0 => {}
            Self::Null => {
                black_box(&out);
            }
            Self::File(file) => file.write_all(out)?,
            Self::Bulk(bulk) => bulk.send(out, records)?,
        }
        out.clear();
        Ok(())
    }
}

/// One connection, one request at a time.
#[derive(Debug)]
pub(crate) struct Bulk {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Bulk {
    pub(crate) fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        let answer = Vec::new();
        Ok(Self { stream, answer })
    }

    pub(crate) fn send(&mut self, body: &[u8], records: usize) -> anyhow::Result<()> {
        write!(
            self.stream,
            "POST /access/_bulk?filter_path=errors,items.*.status,items.*.error HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/x-ndjson\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )?;
        self.stream.write_all(body)?;
        let body = self.read()?;
        let created = memmem::find_iter(&self.answer[body..], b"\"status\":201").count();
        ensure!(
            created == records,
            "of {records} records {created} were taken"
        );
        Ok(())
    }

    /// Reads an answer; where its body starts.
    fn read(&mut self) -> anyhow::Result<usize> {
        self.answer.clear();
        let mut whole = None;
        while whole.is_none_or(|(_, end)| self.answer.len() < end) {
            let before = self.answer.len();
            self.answer.resize(before + 64 * 1024, 0);
            let read = self.stream.read(&mut self.answer[before..])?;
            self.answer.truncate(before + read);
            ensure!(read > 0, "the receiver has gone");
            if whole.is_none()
                && let Some(end) = memmem::find(&self.answer, b"\r\n\r\n")
            {
                let head = String::from_utf8_lossy(&self.answer[..end]);
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "));
                let length: usize = length.context("an answer without length")?.parse()?;
                whole = Some((end + 4, end + 4 + length));
            }
        }
        Ok(whole.map_or(0, |(start, _)| start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_becomes_one_record_whatever_is_in_it() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (input, output) = (dir.path().join("in"), dir.path().join("out"));
        let long = "x".repeat(2 * READ_BYTES);
        let lines = ["a \"b\" \\ \t\u{1}", "", &long, "last"];
        std::fs::write(&input, lines.join("\n") + "\n")?;
        let counted = work(&input, &mut Place::File(File::create(&output)?))?;
        assert_eq!(counted.lines, 4);
        let written = std::fs::read_to_string(&output)?;
        assert_eq!(written.len() as u64, counted.written);
        for (record, line) in written.lines().zip(lines) {
            let record: serde_json::Value = serde_json::from_str(record)?;
            assert_eq!(record["message"], line);
            assert_eq!(record["k8s_pod_namespace"], "shop");
        }
        Ok(())
    }

    #[test]
    fn a_file_that_ends_within_a_line_is_told() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("in"), "no end")?;
        assert!(work(&dir.path().join("in"), &mut Place::Null).is_err());
        Ok(())
    }
}
