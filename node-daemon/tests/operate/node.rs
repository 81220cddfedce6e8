//! One daemon as a process, with a folder of its own.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The program.
pub(crate) fn ringpilot() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpilot"));
    command
        .env_clear()
        .env("RINGPILOT_LOG", "ringpilot=debug,info");
    command
}

/// A daemon and its folder; both go when it is dropped.
pub(crate) struct Node {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Node {
    /// A folder without a daemon.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["logs", "out", "more"] {
            std::fs::create_dir(dir.path().join(name)).expect("a folder");
        }
        Self { dir, daemon: None }
    }

    /// A path in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the configuration; `DIR` in it is the folder.
    pub(crate) fn configure(&self, yaml: &str) {
        let head = "node_name: n\ndata_dir: DIR/data\nhttp: none\nbatch_wait: 20ms\n\
                    discover: {docker: false, cri: false, rings: false}\n";
        let dir = self.dir.path().display().to_string();
        let text = format!("{head}{yaml}").replace("DIR", &dir);
        std::fs::write(self.path("new.yaml"), text).expect("a write");
        std::fs::rename(self.path("new.yaml"), self.path("c.yaml")).expect("a rename");
    }

    /// Starts the daemon and waits until it can be asked.
    pub(crate) fn start(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .expect("a log");
        let daemon = ringpilot()
            .args(["run", "-c"])
            .arg(self.path("c.yaml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the program");
        self.daemon = Some(daemon);
        self.until("the daemon can be asked", || {
            self.say(&["top", "--json"]).status.success()
        });
    }

    /// Tells the daemon to end, and waits until it has.
    pub(crate) fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            signal(&daemon, "TERM");
            assert!(daemon.wait().expect("its end").success(), "{}", self.log());
        }
    }

    /// SIGHUP.
    pub(crate) fn hang_up(&self) {
        signal(self.daemon.as_ref().expect("a daemon"), "HUP");
    }

    /// Runs a command that speaks to the daemon.
    pub(crate) fn say(&self, words: &[&str]) -> Output {
        let mut command = ringpilot();
        command.args(words).arg("--data-dir").arg(self.path("data"));
        command.output().expect("the program")
    }

    /// The same, which must work; what it printed.
    pub(crate) fn told(&self, words: &[&str]) -> String {
        let output = self.say(words);
        let (out, error) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success(),
            "{words:?}: {out}{error}{}",
            self.log()
        );
        out
    }

    /// `/api/status`.
    pub(crate) fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.told(&["top", "--json"])).expect("JSON")
    }

    /// Waits until something is so.
    pub(crate) fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !is_so() {
            assert!(
                Instant::now() < until,
                "not in time: {what}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The daemon's own log.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Appends lines to a log.
    pub(crate) fn write(&self, name: &str, lines: impl IntoIterator<Item = String>) {
        let path = self.path("logs").join(name);
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("a log");
        let text: String = lines.into_iter().map(|line| line + "\n").collect();
        file.write_all(text.as_bytes()).expect("a write");
    }

    /// The messages in an output's file, and how often each is there.
    pub(crate) fn messages(&self, file: &str) -> BTreeMap<String, usize> {
        let mut all = BTreeMap::new();
        for line in std::fs::read_to_string(self.path(file))
            .unwrap_or_default()
            .lines()
        {
            let record: serde_json::Value = serde_json::from_str(line).expect("a whole record");
            let message = record["message"].as_str().expect("a message").to_owned();
            *all.entry(message).or_default() += 1;
        }
        all
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }
}

fn signal(daemon: &Child, name: &str) {
    let id = daemon.id().to_string();
    let sent = Command::new("kill")
        .args(["-s", name, &id])
        .status()
        .expect("kill");
    assert!(sent.success());
}

/// Bytes as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `line-0` and so on.
pub(crate) fn lines(numbers: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    numbers.map(|n| format!("line-{n:06}"))
}

/// That each of these lines is there once.
pub(crate) fn assert_each_once(found: &BTreeMap<String, usize>, numbers: std::ops::Range<usize>) {
    let missing: Vec<String> = lines(numbers.clone())
        .filter(|line| !found.contains_key(line))
        .take(5)
        .collect();
    let twice: Vec<&String> = found
        .iter()
        .filter(|(_, n)| **n > 1)
        .map(|(line, _)| line)
        .take(5)
        .collect();
    assert!(
        missing.is_empty() && twice.is_empty(),
        "missing {missing:?}, twice {twice:?}"
    );
    assert_eq!(found.len(), numbers.len());
}
