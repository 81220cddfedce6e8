//! The running daemon, asked and told: what the commands say to it over the socket in `data_dir`.
//! Place: `explain`, `top`, `tap`, `reload` and `dead-letters` are its clients; `serve` is the daemon's end.
//! Invariants: only the socket's owner is let in; what the daemon answers is bounded; an order is refused in one line
//! of cause and one of cure.

pub mod letters;
pub mod reload;
pub mod serve;
pub mod tap;
pub mod top;

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::problem::Escaped;
use crate::say::Fault;
use crate::settings::Settings;

/// The socket's name in `data_dir`.
pub const SOCKET: &str = "control.sock";
/// Most bytes that an answer is read to: a hundred times what the fullest node says.
const ANSWER_BYTES: u64 = 512 * 1024 * 1024;
/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take for what it was ordered to do.
const LONG: Duration = Duration::from_secs(3_600);

/// Which daemon is meant.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Which {
    /// The daemon's configuration file
    #[arg(short, long, value_name = "FILE", conflicts_with = "data_dir")]
    pub config: Option<PathBuf>,
    /// The daemon's data_dir
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Why the daemon did not do what it was told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refused {
    /// What went wrong, in one line.
    pub cause: String,
    /// What to do, in one line.
    pub cure: String,
    /// The exit code of the command.
    pub exit: u8,
}

impl Which {
    /// Where the daemon keeps its things: as told, else as its configuration says.
    ///
    /// # Errors
    /// When the configuration that was named is wrong.
    pub fn data_dir(&self) -> Result<PathBuf, Fault> {
        if let Some(dir) = &self.data_dir {
            return Ok(dir.clone());
        }
        let env = |name: &str| std::env::var(name).ok();
        let loaded = Settings::load(self.config.as_deref(), &env);
        match (loaded, &self.config) {
            (Ok(settings), _) => Ok(settings.data_dir),
            (Err(problems), Some(_)) => Err(Fault::usage(
                problems
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                "mend it, or name the daemon's folder with `--data-dir`",
            )),
            // This shell's environment need not be the daemon's.
            (Err(_), None) => Ok("/var/lib/ringpilot".into()),
        }
    }

    /// Asks the daemon; what it answers.
    ///
    /// # Errors
    /// When none answers, or not in a form that is understood.
    pub fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, Fault> {
        let dir = self.data_dir()?;
        let told = ask(&dir.join(SOCKET), path).map_err(|error| nobody(&dir, &error))?;
        understand(&told)
    }

    /// Tells the daemon to do something; what came of it.
    ///
    /// # Errors
    /// When none answers, or it refuses.
    pub fn order<T: DeserializeOwned>(&self, path: &str) -> Result<T, Fault> {
        let dir = self.data_dir()?;
        let (status, told) = say(&dir.join(SOCKET), "POST", path, LONG)
            .and_then(whole)
            .map_err(|error| nobody(&dir, &error))?;
        if status == 200 {
            return understand(&told);
        }
        Err(match serde_json::from_slice::<Refused>(&told) {
            Ok(Refused { cause, cure, exit }) => Fault { cause, cure, exit },
            Err(_) => Fault::new(
                format!("the daemon answers with status {status}"),
                "use the `ringpilot` of the daemon's own version",
            ),
        })
    }
}

fn understand<T: DeserializeOwned>(told: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(told).map_err(|error| {
        Fault::new(
            format!("the daemon's answer is not understood: {error}"),
            "use the `ringpilot` of the daemon's own version",
        )
    })
}

fn nobody(dir: &Path, error: &io::Error) -> Fault {
    Fault::new(
        format!("no daemon answers in {}: {error}", dir.display()),
        "start it, run this as the daemon's user, or name its folder with `--data-dir` or `-c`",
    )
}

/// One question to the daemon; the body of its answer.
///
/// # Errors
/// When it is not there, is not let in, answers too late or with an error.
pub fn ask(socket: &Path, path: &str) -> io::Result<Vec<u8>> {
    match whole(say(socket, "GET", path, PATIENCE)?)? {
        (200, body) => Ok(body),
        (status, body) => Err(io::Error::other(format!(
            "it says {status}: {}",
            Escaped(String::from_utf8_lossy(&body).trim())
        ))),
    }
}

fn say(socket: &Path, method: &str, path: &str, patience: Duration) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer ends with the connection, and nothing comes in chunks.
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    )?;
    Ok(stream)
}

fn whole(stream: UnixStream) -> io::Result<(u16, Vec<u8>)> {
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer)?;
    let end = memchr::memmem::find(&answer, b"\r\n\r\n");
    let status = answer.split(|byte| *byte == b'\r').next();
    let status = String::from_utf8_lossy(status.unwrap_or_default()).into_owned();
    let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
    match (end, code) {
        (Some(end), Some(code)) => Ok((code, answer.split_off(end + 4))),
        _ => Err(io::Error::other(format!("it says `{}`", Escaped(&status)))),
    }
}

/// A word as part of a request's path or query.
fn quoted(word: &str) -> String {
    percent_encoding::utf8_percent_encode(word, percent_encoding::NON_ALPHANUMERIC).to_string()
}
