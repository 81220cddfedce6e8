//! The daemon as a process, as scenarios start, kill, ask and end it.
//! Invariants: it ends with its handle, by SIGKILL where nothing gentler was asked for.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::measure::Cpu;
use crate::receiver::body;

/// How to start it.
#[derive(Debug)]
pub(crate) struct Daemon {
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    port: u16,
    child: Option<Child>,
}

/// Lets the daemon read everything to its end once: its report, and what it cost in CPU seconds.
///
/// # Errors
/// When it cannot be started, or does not end well.
pub(crate) fn once(program: &Path, config: &Path) -> anyhow::Result<(serde_json::Value, f64)> {
    let before = Cpu::of_children()?;
    let done = Command::new(program)
        .args(["run", "--once", "--json", "-c"])
        .arg(config)
        .stderr(Stdio::null())
        .output()
        .context("the daemon cannot be started")?;
    let cost = Cpu::of_children()? - before;
    ensure!(
        done.status.success(),
        "the daemon ended with {}",
        done.status
    );
    Ok((serde_json::from_slice(&done.stdout)?, cost.total()))
}

/// The program that was built beside this one, unless another is asked for.
///
/// # Errors
/// When it is not there.
pub(crate) fn program(asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    // Tests run one folder deeper.
    let folder = own.parent().unwrap_or(&own);
    let beside = [
        own.with_file_name("ringpilot"),
        folder.with_file_name("ringpilot"),
    ];
    let found = match asked {
        Some(asked) => Some(asked.to_owned()),
        None => beside.iter().find(|path| path.exists()).cloned(),
    };
    let program = found.unwrap_or_else(|| beside[0].clone());
    ensure!(
        program.exists(),
        "{} is not there; do: build it with `cargo build --release -p ringpilot`",
        program.display()
    );
    Ok(program)
}

impl Daemon {
    /// With a configuration written to `dir`; `yaml` holds all but `data_dir` and `http`. It is not started yet.
    ///
    /// # Errors
    /// As the file system gives them.
    pub(crate) fn new(program: PathBuf, dir: &Path, yaml: &str) -> anyhow::Result<Self> {
        // Free now; nobody else on this machine is likely to take it at once.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let config = dir.join("config.yaml");
        std::fs::write(
            &config,
            format!(
                "node_name: bench\ndata_dir: {}\nhttp: 127.0.0.1:{port}\n{yaml}",
                dir.join("data").display()
            ),
        )?;
        Ok(Self {
            program,
            config,
            log: dir.join("log"),
            port,
            child: None,
        })
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child = Command::new(&self.program)
            .args(["run", "-c"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("the daemon cannot be started")?;
        self.child = Some(child);
        Ok(())
    }

    /// Its process, or 0.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Sends a signal and waits for its end.
    ///
    /// # Errors
    /// When it had ended before, by itself.
    pub(crate) fn end(&mut self, signal: Signal) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        if let Some(status) = child.try_wait()? {
            bail!(
                "the daemon ended by itself with {status}; see {}",
                self.log.display()
            );
        }
        kill(Pid::from_raw(child.id().cast_signed()), signal)?;
        child.wait()?;
        Ok(())
    }

    /// What `/api/status` says.
    ///
    /// # Errors
    /// When it does not answer, or not in JSON.
    pub(crate) fn status(&self) -> anyhow::Result<serde_json::Value> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let ask = format!(
            "GET /api/status HTTP/1.1\r\nhost: 127.0.0.1:{}\r\nconnection: close\r\n\r\n",
            self.port
        );
        stream.write_all(ask.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let body = body(&answer).context("the daemon's answer is no HTTP")?;
        Ok(serde_json::from_slice(body)?)
    }

    /// Waits until it answers and `is_done` says so of its status.
    ///
    /// # Errors
    /// When that takes longer than `at_most`.
    pub(crate) fn wait_until(
        &self,
        at_most: Duration,
        is_done: impl Fn(&serde_json::Value) -> bool,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let status = self.status();
            if status.as_ref().is_ok_and(&is_done) {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < at_most,
                "not done after {} s; it says {}; see {}",
                at_most.as_secs(),
                status.map_or_else(
                    |error| error.to_string(),
                    |status| status["ledger"].to_string()
                ),
                self.log.display()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended; nothing more is wanted of it.
        drop(self.end(Signal::SIGKILL));
    }
}

/// Whether every source is read and acknowledged to its end.
pub(crate) fn is_delivered(status: &serde_json::Value) -> bool {
    let sources = status["sources"].as_array();
    let flows = |source: &serde_json::Value| source["flows"].as_array().cloned();
    sources.is_some_and(|sources| {
        sources
            .iter()
            .filter_map(flows)
            .flatten()
            .all(|flow| flow["lag_bytes"].as_u64() == Some(0))
    })
}
