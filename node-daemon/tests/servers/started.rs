//! A real server that its script starts, and that can be killed in the middle and started again.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use ringpilot::ship::{Guarantee, Load, Output, Verdict};
use tokio::sync::Notify;

/// A running server with its data in a folder of its own. It ends when this is dropped, or this process is gone.
pub(crate) struct Started {
    script: &'static str,
    settings: Vec<String>,
    pub(crate) port: u16,
    data: tempfile::TempDir,
    running: Option<(String, Child)>,
}

fn script(name: &str) -> PathBuf {
    let scripts = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/e2e/servers");
    scripts.join(name)
}

impl Started {
    /// Starts `deploy/e2e/servers/SCRIPT start PORT SETTINGS…`, which uses `ports` ports from PORT on.
    pub(crate) fn new(script: &'static str, ports: u16, settings: &[&str]) -> Self {
        let mut server = Self {
            script,
            settings: settings.iter().map(|text| (*text).to_owned()).collect(),
            port: free_ports(ports),
            data: tempfile::tempdir().unwrap(),
            running: None,
        };
        server.start();
        server
    }

    /// Starts it again, with its data and at its port.
    pub(crate) fn start(&mut self) {
        let started = Command::new(script(self.script))
            .arg("start")
            .arg(self.port.to_string())
            .args(&self.settings)
            .env("DATA", self.data.path())
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{} cannot be run: {error}", self.script));
        let said = String::from_utf8_lossy(&started.stdout).into_owned();
        let pid = said.split_whitespace().nth(1).map(str::to_owned);
        let (true, Some(pid)) = (started.status.success(), pid) else {
            panic!(
                "{} did not start:\n{}",
                self.script,
                String::from_utf8_lossy(&started.stderr)
            );
        };
        // It outlives its script. This ends it when our end of the pipe is closed, by us or with us.
        let watch = Command::new("sh")
            .args(["-c", "cat >/dev/null; KILL=1 exec \"$0\" stop \"$1\""])
            .arg(script(self.script))
            .arg(&pid)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        self.running = Some((pid, watch));
    }

    /// Ends it at once, as a power cut would.
    pub(crate) fn kill(&mut self) {
        if let Some((_, mut watch)) = self.running.take() {
            drop(watch.stdin.take());
            watch.wait().unwrap();
        }
    }

    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }

    /// Lines of a file of its data, each read as JSON.
    pub(crate) fn lines(&self, name: &str) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.data().join(name)).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}")))
            .collect()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The first of so many ports in a row that nobody listens at now.
fn free_ports(count: u16) -> u16 {
    loop {
        let first = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let rest = (1..count).map(|n| {
            let port = port.checked_add(n)?;
            std::net::TcpListener::bind(("127.0.0.1", port)).ok()
        });
        if rest.collect::<Option<Vec<_>>>().is_some() {
            return port;
        }
    }
}

/// An output whose attempts are counted, so that something can happen in the middle of them.
#[derive(Debug)]
pub(crate) struct Counted<'output> {
    pub(crate) output: &'output dyn Output,
    attempts: AtomicUsize,
    made: Notify,
}

impl<'output> Counted<'output> {
    pub(crate) fn new(output: &'output dyn Output) -> Self {
        Self {
            output,
            attempts: AtomicUsize::new(0),
            made: Notify::new(),
        }
    }

    /// Waits until so many attempts were begun.
    pub(crate) async fn reached(&self, attempts: usize) {
        while self.attempts.load(Ordering::SeqCst) < attempts {
            self.made.notified().await;
        }
    }
}

impl Output for Counted<'_> {
    fn guarantee(&self) -> Guarantee {
        self.output.guarantee()
    }
    fn ordered(&self) -> bool {
        self.output.ordered()
    }
    fn attempt<'a>(&'a self, load: &'a Load) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        self.made.notify_one();
        self.output.attempt(load)
    }
    fn probe(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        self.output.probe()
    }
}

/// Says what was measured, beside the promises that were kept.
#[expect(clippy::print_stdout, reason = "a measurement is made to be read")]
pub(crate) fn say(what: std::fmt::Arguments<'_>) {
    println!("{what}");
}
