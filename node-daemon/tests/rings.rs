//! The ring end to end: real shims and a real daemon as processes, on both kinds of memory, killed and abused.
//! `RINGPILOT_KILL_ROUNDS` makes the kill test long.
#![expect(
    clippy::unwrap_used,
    reason = "a test says what went wrong by where it stopped"
)]

use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringpilot_shared::follow::{Identity, StreamKey};
use ringpilot_shared::host::Stat;
use ringpilot_shared::ring::memfd;
use ringpilot_shared::ring::produce::Producer;
use ringpilot_shared::wire::frame::BatchMetadata;
use ringpilot_shared::wire::handshake::{ToDaemon, ToShim};
use ringpilot_shared::wire::socket::{self, Received};
use ringpilot_shared::wire::{MESSAGE_LIMIT, SCHEMA, VERSION};

const BACKENDS: [&str; 2] = ["memfd", "posix"];
const PATIENCE: Duration = Duration::from_secs(40);

/// A node: one daemon over a folder of its own.
struct Node {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
    memory: &'static str,
    outputs: String,
}

impl Node {
    fn new(memory: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out/{target}.ndjson");
        let outputs = format!("o: {{type: file, path: '{}', codec: raw}}", out.display());
        Self::with(memory, dir, outputs)
    }

    fn with(memory: &'static str, dir: tempfile::TempDir, outputs: String) -> Self {
        for folder in ["rings", "out"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let mut node = Self {
            dir,
            daemon: None,
            memory,
            outputs,
        };
        node.start();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&mut self) {
        let at = |name: &str| self.path(name).display().to_string();
        let settings = format!(
            "node_name: node\ndata_dir: {}\nhttp: none\nhost_root: /\nbatch_wait: 50ms\n\
             discover: {{docker: false, cri: false, rings: {{dir: {}, memory: {}}}}}\noutputs: {{{}}}\n",
            at("data"),
            at("rings"),
            self.memory,
            self.outputs,
        );
        let file = self.path("settings.yaml");
        std::fs::write(&file, settings).unwrap();
        let daemon = Command::new(env!("CARGO_BIN_EXE_ringpilot"))
            .args(["run", "-c"])
            .arg(&file)
            .stderr(
                std::fs::File::options()
                    .create(true)
                    .append(true)
                    .open(self.path("log"))
                    .unwrap(),
            )
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
    }

    fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    /// A pod's folder, which is who it is.
    fn pod(&self, name: &str) -> PathBuf {
        let dir = self.path("rings").join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::create_dir_all(self.path(name)).unwrap();
        dir.join("s")
    }

    fn shim(&self, pod: &str) -> Child {
        let socket = self.pod(pod);
        Command::new(env!("CARGO_BIN_EXE_ringpilot"))
            .args(["shim", "--drain-timeout", "20s", "--socket"])
            .arg(socket)
            .arg(format!("{pod}={}/*.log", self.path(pod).display()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// `/api/status`, by the control socket.
    fn status(&self) -> serde_json::Value {
        use std::io::Read as _;
        let mut end =
            std::os::unix::net::UnixStream::connect(self.path("data/control.sock")).unwrap();
        end.write_all(b"GET /api/status HTTP/1.0\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        end.read_to_string(&mut answer).unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        serde_json::from_str(body).unwrap()
    }

    fn delivered(&self, target: &str) -> Vec<String> {
        let text = std::fs::read(self.path("out").join(format!("{target}.ndjson")));
        let text = String::from_utf8(text.unwrap_or_default()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until exactly these lines were delivered, each at least once.
    fn await_lines(&self, target: &str, wanted: &[String]) -> Vec<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let lines = self.delivered(target);
            let mut unique = lines.clone();
            unique.sort();
            unique.dedup();
            let mut sorted = wanted.to_vec();
            sorted.sort();
            if unique == sorted {
                return lines;
            }
            if Instant::now() > until {
                let missing = sorted
                    .iter()
                    .filter(|line| unique.binary_search(line).is_err());
                let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
                panic!(
                    "{target}: {} lines of {} came; missing {:?}; log:\n{log}",
                    unique.len(),
                    sorted.len(),
                    missing.take(3).collect::<Vec<_>>()
                );
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            // It is this test's own, and may be gone already.
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }
}

fn lines(pod: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range
        .map(|n| format!("{pod} line {n:08} {}", "x".repeat(n % 97)))
        .collect()
}

fn append(path: &Path, lines: &[String]) {
    let mut file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    file.write_all((lines.join("\n") + "\n").as_bytes())
        .unwrap();
}

fn end(mut shim: Child) -> i32 {
    kill(
        Pid::from_raw(i32::try_from(shim.id()).unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    shim.wait().unwrap().code().unwrap_or(-1)
}

#[test]
fn what_only_a_shim_can_read_arrives_once_in_order_and_the_shim_ends_when_it_has() {
    for memory in BACKENDS {
        let node = Node::new(memory);
        let shim = node.shim("web");
        let log = node.path("web").join("a.log");
        append(&log, &lines("web", 0..20_000));
        node.await_lines("web", &lines("web", 0..20_000));
        // Rotated, truncated by copy, and deleted, as logs are.
        std::fs::rename(&log, node.path("web").join("a.log.1")).unwrap();
        append(&log, &lines("web", 20_000..30_000));
        node.await_lines("web", &lines("web", 0..30_000));
        std::fs::copy(&log, node.path("web").join("a.log.2")).unwrap();
        std::fs::File::options()
            .write(true)
            .open(&log)
            .unwrap()
            .set_len(0)
            .unwrap();
        append(&log, &lines("web", 30_000..31_000));
        append(&log, &lines("web", 31_000..32_000));
        assert_eq!(end(shim), 0, "{memory}: everything was handed over");
        let got = node.await_lines("web", &lines("web", 0..32_000));
        assert_eq!(got.len(), 32_000, "{memory}: none twice");
    }
}

#[test]
fn a_shim_or_a_daemon_that_is_killed_costs_no_line() {
    let rounds: usize = std::env::var("RINGPILOT_KILL_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(4);
    for memory in BACKENDS {
        let mut node = Node::new(memory);
        let mut shim = node.shim("web");
        let log = node.path("web").join("a.log");
        // What is rotated away before anybody has seen it is nobody's to deliver.
        append(&log, &lines("web", 0..1));
        node.await_lines("web", &lines("web", 0..1));
        let mut written = 1;
        for round in 0..rounds {
            append(&log, &lines("web", written..written + 5_000));
            written += 5_000;
            // Somewhere in the middle of it.
            std::thread::park_timeout(Duration::from_millis(40 + (round as u64 * 37) % 160));
            if round % 2 == 0 {
                shim.kill().unwrap();
                shim.wait().unwrap();
                shim = node.shim("web");
            } else {
                node.kill();
                node.start();
            }
            if round % 3 == 1 {
                std::fs::rename(&log, node.path("web").join(format!("a.log.{round}"))).unwrap();
            }
        }
        let got = node.await_lines("web", &lines("web", 0..written));
        assert_eq!(
            got.len(),
            written,
            "{memory}: the file output has none twice"
        );
        assert_eq!(end(shim), 0);
    }
}

#[test]
fn an_output_that_is_down_has_a_lane_of_its_own_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out/{target}.ndjson");
    let down = dir.path().join("down/{target}.ndjson");
    // A file where the folder should be: every write of this output fails until it is gone.
    std::fs::write(dir.path().join("down"), "").unwrap();
    let outputs = format!(
        "o: {{type: file, path: '{}', codec: raw}}, late: {{type: file, path: '{}', codec: raw}}",
        out.display(),
        down.display()
    );
    let node = Node::with("memfd", dir, outputs);
    let shim = node.shim("web");
    let log = node.path("web").join("a.log");
    // More than the window of a flow and what a ring's windows may hold.
    let wanted = lines("web", 0..300_000);
    for part in wanted.chunks(50_000) {
        append(&log, part);
    }
    node.await_lines("web", &wanted);
    std::fs::remove_file(node.path("down")).unwrap();
    std::fs::create_dir(node.path("down")).unwrap();
    let until = Instant::now() + PATIENCE;
    let late = node.path("down").join("web.ndjson");
    loop {
        let text = std::fs::read_to_string(&late).unwrap_or_default();
        if text.lines().count() >= wanted.len() {
            assert!(
                text.lines().eq(wanted.iter().map(String::as_str)),
                "in order, each once"
            );
            break;
        }
        assert!(
            Instant::now() < until,
            "{} lines; {}",
            text.lines().count(),
            std::fs::read_to_string(node.path("log")).unwrap_or_default()
        );
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert_eq!(end(shim), 0);
}

/// A pod that speaks the protocol, and then does not.
struct Hostile {
    socket: OwnedFd,
}

impl Hostile {
    fn connect(path: &Path) -> Option<Self> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Ok(socket) = socket::connect_to(path) {
                return Some(Self { socket });
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        None
    }

    fn say(&self, bytes: &[u8]) -> bool {
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            match socket::send(self.socket.as_fd(), bytes, &[]) {
                Ok(true) => return true,
                Ok(false) => std::thread::park_timeout(Duration::from_millis(1)),
                Err(_) => return false,
            }
        }
        false
    }

    fn hear(&self, descriptors: &mut Vec<OwnedFd>) -> Option<ToShim> {
        let until = Instant::now() + Duration::from_secs(5);
        let mut buffer = [0; MESSAGE_LIMIT];
        while Instant::now() < until {
            match socket::receive(self.socket.as_fd(), &mut buffer, Some(descriptors)) {
                Ok(Received::Message(length)) => return ToShim::read(&buffer[..length]).ok(),
                Ok(Received::Nothing) => std::thread::park_timeout(Duration::from_millis(1)),
                _ => return None,
            }
        }
        None
    }

    /// Goes so far as a real shim would; the ring, its memory, and the number of the want.
    fn begin(&self) -> Option<(Producer, std::fs::File, u64)> {
        let hello = ToDaemon::Hello {
            oldest: VERSION,
            newest: VERSION,
            schema: SCHEMA,
            epoch: 1,
            capacity_log2: 18,
        };
        self.say(&hello.write()?);
        let mut descriptors = Vec::new();
        let Some(ToShim::Welcome { capacity_log2, .. }) = self.hear(&mut descriptors) else {
            return None;
        };
        let mut descriptors = descriptors.into_iter();
        let (data, control) = (descriptors.next()?, descriptors.next()?);
        let again = std::fs::File::from(data.try_clone().ok()?);
        let memory = memfd::open(data, control, capacity_log2).ok()?;
        let declare = ToDaemon::Declare {
            name: b"evil".to_vec(),
            value: b"/evil/*.log".to_vec(),
            more: false,
        };
        self.say(&declare.write()?);
        self.say(&ToDaemon::Ready {}.write()?);
        let mut want = 0;
        loop {
            match self.hear(&mut Vec::new())? {
                ToShim::Follow { want: told, .. } => want = told,
                ToShim::Start {} => break,
                _ => {}
            }
        }
        Some((Producer::new(memory, capacity_log2, 1), again, want))
    }

    fn seen(&self, want: u64, id: u64) -> bool {
        let stat = Stat {
            device: 1,
            inode: id,
            birth_ns: Some(1),
            size: 1 << 40,
            disk_bytes: 0,
            links: 1,
            modified_ns: 0,
            may_hang: true,
        };
        let seen = ToDaemon::Seen {
            want,
            stream: StreamKey { id, generation: 0 },
            stat,
            identity: Identity::of(&stat, 1),
            after: None,
            known: false,
            existed: false,
            finished: false,
            path: "/evil/x.log".into(),
        };
        seen.write().is_some_and(|bytes| self.say(&bytes))
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Each way to abuse a ring, by a pod of its own, so that no pause hides the next.
#[test]
fn a_hostile_pod_harms_only_itself() {
    use std::os::unix::fs::FileExt;
    let node = Node::new("memfd");
    let good = node.shim("good");
    let log = node.path("good").join("a.log");
    append(&log, &lines("good", 0..1_000));
    node.await_lines("good", &lines("good", 0..1_000));
    let daemon = node.daemon.as_ref().unwrap().id();
    let before = resident_kib(daemon);
    type Abuse = fn(&Hostile, Producer, std::fs::File, u64);
    let head_at = ringpilot_shared::ring::layout::HEAD_AT as u64;
    assert_eq!(head_at, 64);
    let abuses: [Abuse; 8] = [
        // Heads that jump: far ahead, back, and to where no frame can start.
        |_, _, data, _| data.write_all_at(&u64::MAX.to_le_bytes(), 64).unwrap(),
        |_, _, data, _| data.write_all_at(&33_u64.to_le_bytes(), 64).unwrap(),
        // A head over bytes that are no frames, and garbage that looks like some.
        |_, _, data, _| {
            data.write_all_at(&[0xa5; 65_536], 4096).unwrap();
            data.write_all_at(&4096_u64.to_le_bytes(), 64).unwrap();
        },
        // The memory is cut (it cannot be) and punched (it can).
        |_, _, data, _| {
            assert!(data.set_len(0).is_err(), "sealed");
            let flags = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
                | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
            nix::fcntl::fallocate(&data, flags, 0, 4096 + 262_144).unwrap();
        },
        // A lane that was never given, in a frame that is whole.
        |_, mut producer, _, _| {
            let mut metadata = BatchMetadata {
                offset: 0,
                size: 5,
                read_ns: 0,
                file: 1,
                generation: 0,
                lines: Vec::new(),
            };
            let mut slot = producer.slot(5).unwrap().unwrap();
            slot.payload()[..5].copy_from_slice(b"evil\n");
            let _ring = slot.publish(5, 77, &mut metadata);
        },
        // Ten thousand files of 1 TiB.
        |pod, _, _, want| {
            for id in 0..10_000 {
                if !pod.seen(want, id) {
                    break;
                }
            }
        },
        // Messages that are none, and wants that are another's.
        |pod, _, _, want| {
            pod.seen(want + 1_000, 1);
            pod.say(&[0xff; 100]);
        },
        // A flood of what is allowed.
        |pod, _, _, _| {
            let message = ToDaemon::Looked {}.write().unwrap();
            for _ in 0..20_000 {
                if !pod.say(&message) {
                    break;
                }
            }
        },
    ];
    let mut pods = Vec::new();
    for (n, abuse) in abuses.into_iter().enumerate() {
        let path = node.pod(&format!("evil-{n}"));
        let pod = Hostile::connect(&path).unwrap();
        let (producer, data, want) = pod.begin().unwrap_or_else(|| {
            panic!(
                "{n}: {}",
                std::fs::read_to_string(node.path("log")).unwrap_or_default()
            )
        });
        abuse(&pod, producer, data, want);
        pods.push(pod);
        // The other pod's lines come meanwhile.
        let (from, to) = (1_000 * (n + 1), 1_000 * (n + 2));
        append(&log, &lines("good", from..to));
        node.await_lines("good", &lines("good", 0..to));
    }
    assert!(
        node.delivered("evil").is_empty(),
        "nothing false was delivered"
    );
    let after = resident_kib(daemon);
    assert!(after < before + 32 * 1024, "from {before} to {after} KiB");
    assert_eq!(end(good), 0);
}

#[test]
fn a_pod_that_goes_loses_what_its_shim_could_not_hand_over_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("down"), "").unwrap();
    let down = dir.path().join("down/{target}.ndjson");
    let outputs = format!(
        "late: {{type: file, path: '{}', codec: raw}}",
        down.display()
    );
    let node = Node::with("memfd", dir, outputs);
    let socket = node.pod("web");
    let log = node.path("web").join("a.log");
    // Beyond what a flow's window and the ring's windows take.
    append(&log, &lines("web", 0..200_000));
    let shim = Command::new(env!("CARGO_BIN_EXE_ringpilot"))
        .args(["shim", "--drain-timeout", "1500ms", "--socket"])
        .arg(socket)
        .arg(format!("web={}/*.log", node.path("web").display()))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::park_timeout(Duration::from_millis(800));
    kill(
        Pid::from_raw(i32::try_from(shim.id()).unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    let ended = shim.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("not yet acknowledged"), "{said}");
    // Its folder goes with it. What had come is delivered when the output is well; then the sum closes.
    std::fs::remove_dir_all(node.path("rings/web")).unwrap();
    std::fs::remove_file(node.path("down")).unwrap();
    std::fs::create_dir(node.path("down")).unwrap();
    let written = std::fs::metadata(&log).unwrap().len();
    let until = Instant::now() + PATIENCE;
    loop {
        let status = node.status();
        let account = &status["ledger"]["late"];
        let (delivered, lost) = (
            account["delivered"]["bytes"].as_u64().unwrap(),
            account["lost_by_reason"]["drain"]["bytes"]
                .as_u64()
                .unwrap_or(0),
        );
        if delivered + lost == written {
            assert!(account["closes"].as_bool().unwrap());
            break;
        }
        assert!(
            Instant::now() < until,
            "{delivered} + {lost} of {written}: {status}"
        );
        std::thread::park_timeout(Duration::from_millis(100));
    }
}
