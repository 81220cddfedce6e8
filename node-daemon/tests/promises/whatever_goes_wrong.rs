//! Whatever is wrong with a file, a disk or a configuration: it is told in a clear message, everything else goes on, and
//! what could be kept is kept. The real program, as a process.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, geteuid, mkfifo};

use crate::hanging_mount::HangingMount;

/// Longer than anything here takes; only a failing test waits for it.
const LONG: Duration = Duration::from_secs(60);

/// One node's folders: `logs` is followed, `out` is written.
struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        // Whoever the daemon runs as may get there.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("ours");
        for name in ["logs", "out", "data"] {
            fs::create_dir(dir.path().join(name)).expect("new");
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o777))
                .expect("ours");
        }
        let node = Self { dir };
        node.configure("");
        node
    }

    fn configure(&self, more: &str) {
        let root = self.dir.path().display();
        fs::write(
            self.path("config.yaml"),
            format!(
                "node_name: node\ndata_dir: {root}/data\nhttp: none\n\
                 discover: {{docker: false, cri: false, rings: false}}\n\
                 sources: [{{name: app, path: \"{root}/logs/*.log\"}}]\n\
                 outputs: {{files: {{type: file, path: \"{root}/out/{{target}}.ndjson\"}}}}\n{more}"
            ),
        )
        .expect("ours");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ringpilot(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringpilot"));
        command.stdin(Stdio::null());
        command
    }

    fn once(&self) -> Output {
        let config = self.path("config.yaml");
        let mut command = self.ringpilot();
        command.args(["run", "--once", "-c"]).arg(config);
        command.output().expect("the program is there")
    }

    /// Runs until [`Running::end`]; `script` gets the program's words as `"$@"` in a mount namespace of its own.
    fn run_in(&self, script: &str) -> Running {
        let log = File::create(self.path("log")).expect("ours");
        let child = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-e", "-c"])
            .args([script, "sh", env!("CARGO_BIN_EXE_ringpilot"), "run", "-c"])
            .arg(self.path("config.yaml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("unshare is part of every Linux");
        Running(child)
    }

    fn run(&self) -> Running {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("log"));
        let config = self.path("config.yaml");
        let mut command = self.ringpilot();
        command
            .args(["run", "-c"])
            .arg(config)
            .stdout(Stdio::null());
        command.stderr(log.expect("ours"));
        Running(command.spawn().expect("the program is there"))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Waits until the daemon's log says something.
    fn wait_for_log(&self, what: &str) {
        let said = || self.log().contains(what);
        assert!(wait_until(said), "no {what:?} in: {}", self.log());
    }
}

struct Running(Child);

impl Running {
    fn end(mut self) -> bool {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).expect("it runs");
        self.0.wait().expect("ours").success()
    }

    /// A path as the process sees it, in its own mounts.
    fn sees(&self, path: &Path) -> PathBuf {
        let inside = path.strip_prefix("/").expect("absolute");
        Path::new(&format!("/proc/{}/root", self.0.id())).join(inside)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn wait_until(is_done: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !is_done() {
        if begun.elapsed() > LONG {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

fn messages(out: &Path) -> Vec<String> {
    let text = fs::read_to_string(out).unwrap_or_default();
    let message = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line).expect("whole JSON records");
        record["message"].as_str().expect("a text").to_owned()
    };
    text.lines().map(message).collect()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

/// Says aloud that a promise was not proven on this machine.
#[expect(
    clippy::print_stderr,
    reason = "a test that proves nothing shall say so"
)]
fn not_tested(why: &str) {
    eprintln!("NOT TESTED: {why}");
}

#[test]
fn what_is_no_regular_file_is_told_and_stops_no_other() {
    let node = Node::new();
    let logs = node.path("logs");
    mkfifo(&logs.join("fifo.log"), Mode::S_IRWXU).expect("new");
    fs::create_dir(logs.join("dir.log")).expect("new");
    symlink("/nowhere", logs.join("dangling.log")).expect("new");
    symlink("/dev/zero", logs.join("endless.log")).expect("new");
    symlink("loop.log", logs.join("loop.log")).expect("new");
    fs::write(logs.join("app.log"), "fine\n").expect("new");
    let output = node.once();
    assert_eq!(messages(&node.path("out/app.ndjson")), ["fine"]);
    let told = told(&output);
    assert!(
        told.contains("`/dev/zero` is a device, not a regular file"),
        "{told}"
    );
    assert_eq!(output.status.code(), Some(1), "{told}");
}

#[test]
fn a_terabyte_of_holes_is_skipped_and_counted_and_what_follows_arrives() {
    let node = Node::new();
    let path = node.path("logs/app.log");
    let mut log = File::create(&path).expect("new");
    log.write_all(b"before\n").expect("room");
    let hole = 1 << 40;
    log.set_len(hole).expect("sparse files are possible");
    drop(log);
    let mut log = File::options().append(true).open(&path).expect("there");
    log.write_all(b"\nafter\n").expect("room");
    assert!(fs::metadata(&path).expect("there").blocks() < 10_000);
    let begun = Instant::now();
    let output = node.once();
    assert!(begun.elapsed() < LONG);
    let found = messages(&node.path("out/app.ndjson"));
    assert_eq!(
        found.first().map(String::as_str),
        Some("before"),
        "{}",
        told(&output)
    );
    assert_eq!(
        found.last().map(String::as_str),
        Some("after"),
        "{}",
        told(&output)
    );
    // What was read before the hole was noticed is at most one line of the longest.
    let zeros: usize = found.iter().map(|line| line.matches('\0').count()).sum();
    assert!(zeros <= 256 * 1024, "{zeros} zeros were taken for text");
}

#[test]
fn more_files_than_one_source_may_have_are_told_and_the_first_are_read() {
    let node = Node::new();
    let most = ringpilot_shared::follow::MOST_FILES_OF_HOST;
    for n in 0..most + 5 {
        fs::write(node.path(&format!("logs/{n:06}.log")), "x\n").expect("room");
    }
    let output = node.once();
    assert_eq!(messages(&node.path("out/app.ndjson")).len(), most);
    let told = told(&output);
    assert!(
        told.contains(&format!("more than {most} files match")),
        "{told}"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_file_that_the_daemon_may_not_read_is_told_and_read_once_it_may() {
    if !geteuid().is_root() {
        not_tested("whoever is not root cannot become another user");
        return;
    }
    let node = Node::new();
    let secret = node.path("logs/secret.log");
    fs::write(&secret, "hidden\n").expect("new");
    fs::write(node.path("logs/open.log"), "seen\n").expect("new");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("ours");
    // `target/` may lie where nobody else gets.
    let program = node.path("ringpilot");
    fs::copy(env!("CARGO_BIN_EXE_ringpilot"), &program).expect("room");
    let log = File::create(node.path("log")).expect("new");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command
        .arg(&program)
        .args(["run", "-c"])
        .arg(node.path("config.yaml"));
    let daemon = Running(
        command
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .expect("util-linux"),
    );
    let out = node.path("out/app.ndjson");
    assert!(wait_until(|| messages(&out) == ["seen"]), "{}", node.log());
    node.wait_for_log("secret.log");
    assert!(node.log().contains("ermission"), "{}", node.log());
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).expect("ours");
    assert!(wait_until(|| messages(&out).len() == 2), "{}", node.log());
    assert!(daemon.end());
}

#[test]
fn a_mount_that_hangs_is_told_and_stops_no_other_and_is_read_when_it_is_mended() {
    if !Path::new("/dev/fuse").exists() || !geteuid().is_root() {
        not_tested("a file system that hangs needs /dev/fuse, and root to mount it");
        return;
    }
    let node = Node::new();
    let mounted = node.path("mounted");
    fs::create_dir(&mounted).expect("new");
    let mount = HangingMount::at(&mounted).expect("root may mount");
    let root = node.path("");
    let root = root.display();
    fs::write(
        node.path("config.yaml"),
        format!(
            "node_name: node\ndata_dir: {root}/data\nhttp: none\n\
             discover: {{docker: false, cri: false, rings: false}}\n\
             sources:\n- {{name: app, path: \"{root}/logs/*.log\"}}\n- {{name: slow, path: \"{root}/mounted/*.log\"}}\n\
             outputs: {{files: {{type: file, path: \"{root}/out/{{target}}.ndjson\"}}}}\n"
        ),
    )
    .expect("ours");
    let mut log = File::create(node.path("logs/app.log")).expect("new");
    let daemon = node.run();
    assert!(wait_until(|| mount.hanging() > 0), "{}", node.log());
    node.wait_for_log("mend the mount");
    let out = node.path("out/app.ndjson");
    for n in 1..=5 {
        writeln!(log, "line {n}").expect("room");
        assert!(wait_until(|| messages(&out).len() == n), "{}", node.log());
    }
    mount.mend();
    let slow = node.path("out/slow.ndjson");
    assert!(
        wait_until(|| messages(&slow) == ["at last"]),
        "{}",
        node.log()
    );
    assert!(daemon.end(), "{}", node.log());
}

#[test]
fn a_second_daemon_on_the_same_data_dir_waits_and_says_for_whom() {
    let node = Node::new();
    fs::write(node.path("logs/app.log"), "one\n").expect("new");
    let first = node.run();
    let out = node.path("out/app.ndjson");
    assert!(wait_until(|| messages(&out) == ["one"]), "{}", node.log());
    let second = node.run();
    node.wait_for_log(&format!("{}", first.0.id()));
    let mut log = File::options()
        .append(true)
        .open(node.path("logs/app.log"))
        .expect("there");
    log.write_all(b"two\n").expect("room");
    assert!(
        wait_until(|| messages(&out) == ["one", "two"]),
        "{}",
        node.log()
    );
    assert!(first.end());
    log.write_all(b"three\n").expect("room");
    let all = ["one", "two", "three"];
    assert!(wait_until(|| messages(&out) == all), "{}", node.log());
    assert!(second.end());
}

#[test]
fn a_full_disk_under_the_output_is_told_and_nothing_is_lost_or_twice_when_there_is_room() {
    let node = Node::new();
    let lines: Vec<String> = (0..5_000)
        .map(|n| format!("line {n} {}", "x".repeat(100)))
        .collect();
    fs::write(node.path("logs/app.log"), lines.join("\n") + "\n").expect("room");
    let out = node.path("out");
    let daemon = node.run_in(&format!(
        "mount -t tmpfs -o size=4m none {0}; head -c 3900k /dev/zero > {0}/filler; exec \"$@\"",
        out.display()
    ));
    node.wait_for_log("No space left");
    let inside = daemon.sees(&out);
    let written = || messages_of_whole_lines(&inside.join("app.ndjson"));
    assert!(written().len() < lines.len());
    fs::remove_file(inside.join("filler")).expect("seen through the process");
    assert!(
        wait_until(|| written().len() >= lines.len()),
        "{}",
        node.log()
    );
    assert_eq!(written(), lines);
    assert!(daemon.end());
}

/// As [`messages`], but a last line may still be being written.
fn messages_of_whole_lines(out: &Path) -> Vec<String> {
    let text = fs::read_to_string(out).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let message = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line).expect("whole JSON records");
        record["message"].as_str().expect("a text").to_owned()
    };
    whole.lines().map(message).collect()
}

#[test]
fn a_data_dir_that_is_full_or_read_only_stops_no_delivery_and_is_told() {
    for how in [
        "mount -t tmpfs -o size=64k none DATA; head -c 1m /dev/zero > DATA/filler || true; exec \"$@\"",
        "mount --bind DATA DATA; mount -o remount,bind,ro DATA; exec \"$@\"",
    ] {
        let node = Node::new();
        fs::write(node.path("logs/app.log"), "one\ntwo\n").expect("room");
        let data = node.path("data");
        let daemon = node.run_in(&how.replace("DATA", &data.display().to_string()));
        let out = node.path("out/app.ndjson");
        assert!(
            wait_until(|| messages(&out) == ["one", "two"]),
            "{}",
            node.log()
        );
        node.wait_for_log("data_dir");
        assert!(daemon.end(), "{}", node.log());
    }
}

#[test]
fn a_wrong_configuration_is_refused_with_what_to_write_instead() {
    for (wrong, cure) in [
        ("soruces: []", "use `sources`"),
        ("memory_budget: lots", "memory_budget"),
        ("time_zone: Moon/Base", "time_zone"),
        ("max_line_bytes: 2MiB", "1MiB"),
        ("workers: many", "workers"),
    ] {
        let node = Node::new();
        node.configure(&format!("{wrong}\n"));
        let output = node.once();
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        let told = told(&output);
        assert!(told.contains(cure), "{wrong}: {told}");
        assert!(told.contains("do: "), "{wrong}: {told}");
    }
}
