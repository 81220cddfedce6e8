//! `ringpilot import`: takes over how far another agent has read, so that a move sends nothing again and skips nothing.
//! Place: a command, run once before the daemon's first start; it writes streams and positions into the checkpoint.
//! Invariants: it never runs beside a daemon; a file is taken over only where its inode is the one that was noted; a
//! position within a line goes back to that line's start; what is doubtful is read from the start, as any new file is.
//!
//! A position that is taken over is of no declaration yet: it is kept as that of the flow `*` to the output `*`, and each
//! source that is made of the stream for the first time begins there, for every output.

mod filebeat;
mod fluent_bit;
mod fluentd;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use ringpilot_shared::follow::identity::{read_range, tail_at};
use ringpilot_shared::follow::{Identity, StreamKey, View};
use ringpilot_shared::host::{Host, LogFile, RealHost};
use serde::Serialize;

use crate::checkpoint::{
    Checkpoint, Entry, FlowKey, Journal, LockHeld, SavedFlow, SavedStream, lock,
};
use crate::cli::said;
use crate::daemon::host_root;
use crate::problem::Escaped;
use crate::say::{self, Fault};
use crate::settings::Settings;
use crate::ship::file::OwnFiles;

/// The declaration and the output of a position that was taken over.
pub const ANY: &str = "*";
/// The longest line whose start is looked for.
const LINE_BYTES: u64 = 1 << 20;

/// Whose positions are taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Agent {
    // With its Filebeat or its Fluentd.
    LogPilot,
    Filebeat,
    Fluentd,
    FluentBit,
}

/// Take over how far another agent has read; stop it first, start the daemon after.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code: 0 done, 1 nothing could be taken over, or a daemon runs.\n\nExample:\n  \
                  ringpilot import --from log-pilot -c ringpilot.yaml /var/lib/filebeat/registry\n  \
                  ringpilot import --from fluentd --path-prefix /host /pilot/pos"
)]
pub struct Args {
    /// Whose
    #[arg(long, value_enum, value_name = "AGENT")]
    from: Agent,
    /// Where the agent saw the host, taken off its paths [log-pilot: /host]
    #[arg(long, value_name = "DIR")]
    path_prefix: Option<PathBuf>,
    /// Its registry: a file or folder
    registry: PathBuf,
    /// The daemon's configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The daemon's data_dir, if not the configuration's
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One file as an agent noted it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Noted {
    path: PathBuf,
    inode: u64,
    offset: u64,
}

/// What became of one noted position.
#[derive(Debug, Serialize)]
struct Taken {
    path: PathBuf,
    /// Where reading goes on; none where the file is left alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// Why it is not taken over.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read, a daemon runs, or nothing can be written.
pub fn run(args: &Args) -> Result<ExitCode, Fault> {
    let env = |name: &str| std::env::var(name).ok();
    let mut settings = Settings::load(args.config.as_deref(), &env).map_err(|problems| {
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Fault::usage(told.join("; "), "`ringpilot check` tells all that is wrong")
    })?;
    if let Some(dir) = &args.data_dir {
        settings.data_dir.clone_from(dir);
    }
    let noted = read(args)?;
    let held = match lock(&settings.data_dir) {
        Ok(held) => held,
        Err(held @ LockHeld::ByAnother { .. }) => {
            let cure = "stop the daemon, import, then start it again";
            return Err(Fault::new(held.to_string(), cure));
        }
        Err(held) => return Err(Fault::new(held.to_string(), held.problem().cure)),
    };
    let taken = take_over(&settings, &noted)?;
    drop(held);
    let good = taken.iter().filter(|one| one.offset.is_some()).count();
    if args.json {
        said(say::json(&taken))?;
    } else {
        for one in &taken {
            let path = one.path.display().to_string();
            let path = Escaped(&path);
            match (&one.skipped, one.offset) {
                (Some(why), _) => said(say::line(format_args!("{path}: left alone: {why}")))?,
                (None, offset) => said(say::line(format_args!(
                    "{path}: goes on at byte {} of {}",
                    offset.unwrap_or_default(),
                    one.size.unwrap_or_default()
                )))?,
            }
        }
        said(say::line(format_args!(
            "{good} of {} positions are taken over",
            taken.len()
        )))?;
    }
    Ok(ExitCode::from(u8::from(good == 0 && !taken.is_empty())))
}

/// What the agent noted, with its paths as the host has them; of a file that is there twice, the last.
fn read(args: &Args) -> Result<Vec<Noted>, Fault> {
    let path = &args.registry;
    let noted = match args.from {
        Agent::Filebeat => filebeat::read(path),
        Agent::Fluentd => fluentd::read(path),
        Agent::FluentBit => fluent_bit::read(path),
        Agent::LogPilot if fluentd::is_pos(path) => fluentd::read(path),
        Agent::LogPilot => filebeat::read(path),
    };
    let noted = noted.map_err(|why| {
        Fault::new(
            format!("the registry {} cannot be read: {why}", path.display()),
            "name the agent's registry: Filebeat's file or folder `registry`, Fluentd's pos file or a folder of \
             them, Fluent Bit's database",
        )
    })?;
    let default = (args.from == Agent::LogPilot).then(|| PathBuf::from("/host"));
    let prefix = args.path_prefix.clone().or(default);
    let mut all: BTreeMap<(PathBuf, u64), Noted> = BTreeMap::new();
    for mut one in noted {
        if let Some(rest) = prefix
            .as_ref()
            .and_then(|prefix| one.path.strip_prefix(prefix).ok())
        {
            one.path = Path::new("/").join(rest);
        }
        all.insert((one.path.clone(), one.inode), one);
    }
    Ok(all.into_values().collect())
}

/// Writes streams and positions into the checkpoint.
fn take_over(settings: &Settings, noted: &[Noted]) -> Result<Vec<Taken>, Fault> {
    let host = Arc::new(RealHost::new());
    let boot = host.boot_id();
    let mut files = OwnFiles::new(Arc::clone(&host) as _);
    let opened = Checkpoint::open(
        Arc::clone(&host) as _,
        &settings.data_dir,
        &settings.node_name,
        boot,
        &mut files,
    );
    let view = View {
        host_root: host_root(settings),
        is_host: true,
        ..View::default()
    };
    let mut entries = Vec::new();
    let mut taken = Vec::new();
    for one in noted {
        let is_known = |file: &dyn LogFile| {
            let stat = file.stat().ok();
            let mut streams = opened.loaded.streams.values();
            stat.is_some_and(|stat| streams.any(|known| known.identity.same_node(&stat, boot)))
        };
        let made = find(&*host, &view, one).and_then(|(path, file)| {
            if is_known(&*file) {
                return Err("it is known already, and goes on where it stands".to_owned());
            }
            stream(&*host, boot, one, path, &*file).map_err(|error| error.to_string())?
        });
        match made {
            Ok((stream, flow, size)) => {
                taken.push(Taken {
                    path: stream.path.clone(),
                    offset: Some(flow.offset),
                    size: Some(size),
                    skipped: None,
                });
                let key = FlowKey {
                    stream: stream.key,
                    declaration: ANY.into(),
                    output: ANY.into(),
                };
                entries.push(Entry::Stream(stream));
                entries.push(Entry::Flow(key, flow));
            }
            Err(why) => taken.push(Taken {
                path: one.path.clone(),
                offset: None,
                size: None,
                skipped: Some(why),
            }),
        }
    }
    let journal = &opened.checkpoint;
    let written = journal.append(&entries).and_then(|()| journal.sync());
    written.map_err(|error| {
        Fault::new(
            format!(
                "positions cannot be written to {}: {error}",
                settings.data_dir.display()
            ),
            "make room, or run this as the daemon's user",
        )
    })?;
    Ok(taken)
}

/// The file of a noted position: under its name, or under another in the same folder.
fn find(
    host: &dyn Host,
    view: &View,
    noted: &Noted,
) -> Result<(PathBuf, Arc<dyn LogFile>), String> {
    let is_it = |file: &Arc<dyn LogFile>| file.stat().is_ok_and(|stat| stat.inode == noted.inode);
    let open = |path: &Path| host.open_log(view, path);
    let first = open(&noted.path);
    if let Ok(file) = &first
        && is_it(file)
    {
        return Ok((noted.path.clone(), Arc::clone(file)));
    }
    let dir = noted.path.parent().unwrap_or(Path::new("/"));
    let mut other = None;
    let listed = host.list(view, dir, &mut |name, _, inode| {
        if inode == noted.inode {
            let path = dir.join(name);
            other = open(&path).ok().filter(is_it).map(|file| (path, file));
        }
        match other {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        }
    });
    match (other, first, listed) {
        (Some(found), ..) => Ok(found),
        (None, Ok(_), _) => {
            Err("another file has its name now, and it is nowhere in its folder".to_owned())
        }
        (None, Err(error), _) => Err(format!("it cannot be opened: {error}")),
    }
}

type Made = (SavedStream, SavedFlow, u64);

fn stream(
    host: &dyn Host,
    boot: u128,
    noted: &Noted,
    path: PathBuf,
    file: &dyn LogFile,
) -> std::io::Result<Result<Made, String>> {
    let stat = file.stat()?;
    if noted.offset > stat.size {
        return Ok(Err(format!(
            "it has {} bytes, and {} were read: it was truncated, and is read from its start",
            stat.size, noted.offset
        )));
    }
    let offset = line_start(file, noted.offset)?;
    let Some(tail) = tail_at(file, offset)? else {
        return Ok(Err("it changed just now; import again".to_owned()));
    };
    let mut identity = Identity::of(&stat, boot);
    identity.grow(file, offset)?;
    let stream = SavedStream {
        key: StreamKey {
            id: rand::random(),
            generation: 0,
        },
        identity,
        owner: String::new(),
        path,
        modified_ns: stat.modified_ns,
        accounted_ns: None,
        successor: None,
        seen_ns: host.wall_ns(),
    };
    let flow = SavedFlow {
        offset,
        tail,
        start: offset,
        sent: offset,
        ..SavedFlow::default()
    };
    Ok(Ok((stream, flow, stat.size)))
}

/// The start of the line that `offset` is in.
fn line_start(file: &dyn LogFile, offset: u64) -> std::io::Result<u64> {
    let from = offset.saturating_sub(LINE_BYTES);
    let before = read_range(file, from, offset)?;
    match memchr::memrchr(b'\n', &before) {
        Some(at) => Ok(from + at as u64 + 1),
        None if from == 0 => Ok(0),
        // A line of more than that is cut anyway.
        None => Ok(offset),
    }
}
