//! What the shim is told: its arguments, and the variables that declare its pod's logs.
//! Place: read once, before the loop.
//! Invariant: nothing here is judged but its form: what a declaration means is the daemon's to say.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use ringpilot_shared::ring::layout;

/// Where the pod's socket is mounted.
pub const SOCKET: &str = "/run/ringpilot/s";

/// How long the shim may go on after SIGTERM.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);

/// What `--help` says.
pub const HELP: &str = "\
Reads a pod's log files into a shared-memory ring for the node's Ringpilot.

Usage: ringpilot-shim [OPTIONS] [NAME=GLOB ...]

  NAME=GLOB               follow these files as the declaration NAME; without any, the
                          variables `PREFIX_logs_NAME=GLOB` and their attributes
                          (`PREFIX_logs_NAME_format=json`, ...) are taken
  --socket PATH           the node's socket          [/run/ringpilot/s]
  --drain-timeout TIME    after SIGTERM, e.g. 25s    [25s]
  --health                exit 0 while the shim of this container is connected
  --help, --version

Exit code: 0 all was handed over; 1 not all (stderr says how many bytes); 2 wrong usage.
Example: ringpilot-shim 'access=/logs/*.log'
";

/// What the shim runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The node's socket.
    pub socket: PathBuf,
    /// How long it may go on after it was told to end.
    pub drain_timeout: Duration,
    /// Variables to declare, in order.
    pub declared: Vec<(Vec<u8>, Vec<u8>)>,
    /// Size of the ring's data area, as a power of two.
    pub capacity_log2: u8,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            socket: SOCKET.into(),
            drain_timeout: DRAIN_TIMEOUT,
            declared: Vec::new(),
            capacity_log2: layout::CAPACITY_LOG2_DEFAULT,
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Be a shim.
    Run(Settings),
    /// Say whether one runs here.
    Health,
    /// Print this.
    Say(&'static str),
}

/// Reads arguments and environment.
///
/// # Errors
/// A line of cause and one of cure.
pub(crate) fn read(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Task, String> {
    let mut settings = Settings::default();
    let mut arguments = arguments.into_iter();
    let mut named = Vec::new();
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_bytes();
        let (flag, mut inline) = match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) if bytes.starts_with(b"--") => {
                (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..])))
            }
            _ => (bytes, None),
        };
        let mut value = || {
            inline
                .take()
                .map(OsStr::to_owned)
                .or_else(|| arguments.next())
                .ok_or_else(|| format!("{} needs a value", show(flag)))
        };
        match flag {
            b"--health" => return Ok(Task::Health),
            b"--help" | b"-h" => return Ok(Task::Say(HELP)),
            b"--version" | b"-V" => {
                return Ok(Task::Say(concat!(
                    "ringpilot-shim ",
                    env!("CARGO_PKG_VERSION"),
                    "\n"
                )));
            }
            b"--socket" => settings.socket = value()?.into(),
            b"--drain-timeout" => {
                let text = value()?;
                settings.drain_timeout = duration(text.as_bytes()).ok_or_else(|| {
                    format!(
                        "`{}` is no time\nwrite for example `--drain-timeout 25s`",
                        show(text.as_bytes())
                    )
                })?;
            }
            _ if flag.starts_with(b"-") => {
                return Err(format!(
                    "no option is called `{}`\n`ringpilot-shim --help` tells which there are",
                    show(flag)
                ));
            }
            _ => match bytes.iter().position(|byte| *byte == b'=') {
                Some(at) if at > 0 => named.push((bytes[..at].to_vec(), bytes[at + 1..].to_vec())),
                _ => {
                    return Err(format!(
                        "`{}` is not NAME=GLOB\nwrite for example `access=/logs/*.log`",
                        show(bytes)
                    ));
                }
            },
        }
    }
    let variables = environment
        .into_iter()
        .map(|(name, value)| (name.into_vec(), value.into_vec()));
    settings.declared = if named.is_empty() {
        variables.filter(|(name, _)| is_declaration(name)).collect()
    } else {
        // Attributes of what was named may still come as variables.
        let attributes: Vec<_> = variables
            .filter(|(name, _)| is_declaration(name))
            .filter(|(name, _)| {
                named.iter().any(|(declared, _)| {
                    let mut of = b"_logs_".to_vec();
                    of.extend_from_slice(declared);
                    of.push(b'_');
                    name.windows(of.len()).any(|part| part == of)
                })
            })
            .collect();
        named.into_iter().chain(attributes).collect()
    };
    Ok(Task::Run(settings))
}

/// Whether a variable looks like a declaration, under whatever prefix: the daemon knows which prefixes count.
fn is_declaration(name: &[u8]) -> bool {
    name.windows(6)
        .position(|part| part == b"_logs_")
        .is_some_and(|at| at > 0 && at + 6 < name.len())
}

fn duration(text: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(text).ok()?;
    let (number, unit_ms) = match text {
        text if text.ends_with("ms") => (&text[..text.len() - 2], 1),
        text if text.ends_with('s') => (&text[..text.len() - 1], 1_000),
        text if text.ends_with('m') => (&text[..text.len() - 1], 60_000),
        text => (text, 1_000),
    };
    let number: u64 = number.parse().ok()?;
    Some(Duration::from_millis(number.checked_mul(unit_ms)?))
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected shall stop there"
)]
mod tests {
    use super::*;

    fn read_of(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Task, String> {
        read(
            arguments.iter().map(OsString::from),
            environment
                .iter()
                .map(|(name, value)| (OsString::from(name), OsString::from(value))),
        )
    }

    fn declared(task: Task) -> Vec<(String, String)> {
        let Task::Run(settings) = task else {
            panic!("not a run: {task:?}")
        };
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        settings
            .declared
            .into_iter()
            .map(|(name, value)| (text(name), text(value)))
            .collect()
    }

    #[test]
    fn without_arguments_the_variables_of_log_pilot_count() {
        let environment = [
            ("aliyun_logs_access", "/logs/a.log"),
            ("aliyun_logs_access_format", "json"),
            ("PATH", "/bin"),
            ("_logs_x", "no prefix"),
        ];
        let told = declared(read_of(&[], &environment).unwrap());
        let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["aliyun_logs_access", "aliyun_logs_access_format"]);
    }

    #[test]
    fn what_is_named_by_argument_keeps_its_attributes_and_no_others() {
        let environment = [
            ("aliyun_logs_access_format", "nginx"),
            ("aliyun_logs_other", "/x"),
        ];
        let told = declared(read_of(&["access=/logs/*.log"], &environment).unwrap());
        let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["access", "aliyun_logs_access_format"]);
    }

    #[test]
    fn options_take_their_value_in_either_form() {
        let task = read_of(&["--socket=/s", "--drain-timeout", "1500ms"], &[]).unwrap();
        let wanted = Settings {
            socket: "/s".into(),
            drain_timeout: Duration::from_millis(1500),
            ..Settings::default()
        };
        assert_eq!(task, Task::Run(wanted));
    }

    #[test]
    fn what_is_wrong_says_what_to_write() {
        for wrong in [
            &["--sokcet", "/s"][..],
            &["access"],
            &["--drain-timeout", "soon"],
        ] {
            let told = read_of(wrong, &[]).unwrap_err();
            assert!(told.lines().count() == 2, "{told}");
        }
    }
}
