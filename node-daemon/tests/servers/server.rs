//! A real server, started by its script and ended with this process.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to answer for the first time; it may be fetched first.
const PATIENCE: Duration = Duration::from_secs(300);

/// A running server. It ends when its standard input does: when this is dropped, or this process is gone.
pub(crate) struct Server {
    /// Where it answers.
    pub(crate) port: u16,
    process: Child,
}

impl Server {
    /// Starts `deploy/e2e/servers/SCRIPT run VERSION PORT ARGUMENTS…`, and waits until `ready` says so of the port.
    pub(crate) fn start(
        script: &str,
        version: &str,
        port: u16,
        arguments: &[&str],
        variables: &[(&str, &str)],
        ready: impl Fn(u16) -> bool,
    ) -> Self {
        let scripts = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/e2e/servers");
        let mut process = Command::new(scripts.join(script))
            .args(["run", version, &port.to_string()])
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{script} cannot be run: {error}"));
        let start = Instant::now();
        while !ready(port) {
            if process.try_wait().unwrap().is_some() || start.elapsed() > PATIENCE {
                drop(process.stdin.take());
                let mut said = String::new();
                process
                    .stderr
                    .take()
                    .unwrap()
                    .read_to_string(&mut said)
                    .unwrap();
                panic!("{script} {version} did not start:\n{said}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Self { port, process }
    }

    /// Ends it at once, as a crash would: the process that its script named in the file `pid` of this folder.
    pub(crate) fn kill(mut self, data: &Path) {
        let pid = std::fs::read_to_string(data.join("pid")).unwrap();
        let killed = Command::new("kill").args(["-KILL", pid.trim()]).status();
        assert!(killed.unwrap().success());
        self.process.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.wait().ok();
    }
}

/// A port nobody listens at now.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Whether a GET of this path is answered with 200.
pub(crate) fn answers(port: u16, path: &str) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )?;
        let mut said = [0; 12];
        stream.read_exact(&mut said)?;
        Ok::<_, std::io::Error>(said)
    };
    ask().is_ok_and(|said| said.ends_with(b" 200"))
}
