//! The file output's promises: each record exactly once, whatever happens and whenever.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use ringpilot_shared::follow::StreamKey;

use super::*;
use crate::batch::{Batch, Chunk, Hold, Mark};
use crate::checkpoint::test_disk::TestDisk;
use crate::checkpoint::{Checkpoint, FlowKey, Loaded, SavedFlow};

/// A load of records as encoded, in chunks of two.
pub(crate) fn load_of(target: &str, records: &[&str]) -> Load {
    let budget = Arc::new(AtomicUsize::new(0));
    let chunks: Vec<Arc<Chunk>> = records
        .chunks(2)
        .map(|records| {
            let bytes = records.concat().into_bytes();
            let mut encoded_end = 0;
            let marks = records.iter().map(|record| {
                encoded_end += u32::try_from(record.len()).expect("short");
                Mark {
                    encoded_end,
                    source_bytes: 0,
                    lines: 1,
                    start: 0,
                }
            });
            Arc::new(Chunk {
                total: crate::ledger::Tally::default(),
                records: marks.collect(),
                day: 0,
                source_hash: 0,
                generation: 0,
                hold: Hold::new(&budget, bytes.len()),
                bytes: bytes.into(),
            })
        })
        .collect();
    Load {
        batch: Arc::new(Batch {
            id: 0,
            target: target.into(),
            day: 0,
            spans: Vec::new(),
            records: records.len(),
            bytes: chunks.iter().map(|chunk| chunk.bytes.len()).sum(),
            chunks,
        }),
        records: None,
        after: Arc::new([]),
    }
}

const FLOW: &str = "app";

fn settings(yaml: &str) -> OutputSettings {
    OutputSettings {
        name: "archive".to_owned(),
        ..OutputSettings::of(
            "file",
            serde_yaml_ng::from_str(yaml).expect("the test's own YAML"),
        )
    }
}

/// One flow's load: these records, after which it stands at `offset`.
fn load_at(target: &str, records: &[&str], offset: u64) -> Load {
    let key = FlowKey {
        stream: StreamKey {
            id: 1,
            generation: 0,
        },
        declaration: FLOW.into(),
        output: "archive".into(),
    };
    let at = SavedFlow {
        offset,
        ..SavedFlow::default()
    };
    Load {
        after: Arc::new([(key, at)]),
        ..load_of(target, records)
    }
}

struct Node {
    disk: TestDisk,
    checkpoint: Arc<Checkpoint>,
    output: FileOutput,
    loaded: Loaded,
    problems: Vec<Problem>,
}

impl Node {
    fn start(disk: &TestDisk, boot: u128, yaml: &str) -> Self {
        let mut files = OwnFiles::new(disk.arc());
        let opened = Checkpoint::open(disk.arc(), Path::new("/data"), "node", boot, &mut files);
        let checkpoint = Arc::new(opened.checkpoint);
        let (journal, clock) = (Arc::clone(&checkpoint), disk.clone());
        let known = &opened.loaded.files;
        let wall_ns = Arc::new(move || clock.now_ns());
        let output = FileOutput::new(&settings(yaml), disk.arc(), journal, known, wall_ns);
        Self {
            disk: disk.clone(),
            checkpoint,
            output: output.expect("good settings"),
            loaded: opened.loaded,
            problems: opened.problems,
        }
    }

    fn write(&self, target: &str, records: &[&str], offset: u64) -> Result<(), String> {
        match self.output.write(&load_at(target, records, offset)) {
            Verdict::All(Fate::Delivered) => Ok(()),
            Verdict::Failed { cause } => Err(cause.to_string()),
            other => panic!("{other:?}"),
        }
    }

    /// Where the flow stood when this node started.
    fn offset(&self) -> u64 {
        self.loaded
            .flows
            .values()
            .next()
            .map_or(0, |flow| flow.offset)
    }

    fn text(&self, path: &str) -> String {
        String::from_utf8(self.disk.bytes(path).unwrap_or_default()).expect("text")
    }

    fn paths(&self) -> Vec<String> {
        let paths = self
            .disk
            .paths()
            .into_iter()
            .filter(|path| path.starts_with("/logs"));
        paths.map(|path| path.display().to_string()).collect()
    }
}

const PLAIN: &str = "{path: '/logs/{target}.log', codec: raw}";

#[test]
fn a_full_disk_leaves_whole_records_and_is_told_with_its_cure() {
    let disk = TestDisk::default();
    let node = Node::start(&disk, 1, PLAIN);
    node.write("web", &["one\n"], 10).expect("room");
    disk.set_room(Some(600));
    let long = format!("{}\n", "x".repeat(700));
    let cause = node
        .write("web", &["two\n", &long], 20)
        .expect_err("no room");
    assert_eq!(
        cause,
        "`/logs/web.log` cannot be written: no storage space; do: free space there; nothing is lost meanwhile"
    );
    assert_eq!(node.text("/logs/web.log"), "one\n");
    disk.set_room(None);
    node.write("web", &["two\n"], 20).expect("room again");
    assert_eq!(node.text("/logs/web.log"), "one\ntwo\n");
    // The one that failed is not taken for done. The checkpoint's disk was full, too.
    Output::sync(&node.output).expect("room again");
    assert_eq!(Node::start(&disk.after_kill(), 1, PLAIN).offset(), 20);
}

#[test]
fn a_write_that_failed_is_not_taken_for_done_when_someone_else_reaches_its_length() {
    let disk = TestDisk::default();
    let node = Node::start(&disk, 1, PLAIN);
    node.write("web", &["one\n"], 10).expect("room");
    disk.set_room(Some(400));
    let long = format!("{}\n", "x".repeat(500));
    node.write("web", &[&long], 30).expect_err("no room");
    disk.set_room(None);
    disk.put(
        "/logs/web.log",
        format!("one\n{}\n", "y".repeat(600)).as_bytes(),
    );
    node.write("web", &["two\n"], 20).expect("room again");
    Output::sync(&node.output).expect("good");
    node.checkpoint.sync().expect("good");
    assert_eq!(Node::start(&disk.after_kill(), 1, PLAIN).offset(), 20);
}

#[test]
fn only_the_records_still_open_are_written() {
    let disk = TestDisk::default();
    let node = Node::start(&disk, 1, PLAIN);
    let mut load = load_at(
        "web",
        &["0\n", "1\n", "2\n", "3\n", "4\n", "5\n", "6\n"],
        10,
    );
    load.records = Some(Arc::new([1, 2, 3, 6]));
    assert_eq!(parts(&load).len(), 3, "as few parts as they lie in");
    assert_eq!(node.output.write(&load), Verdict::All(Fate::Delivered));
    load.records = Some(Arc::new([]));
    assert_eq!(node.output.write(&load), Verdict::All(Fate::Delivered));
    assert_eq!(node.text("/logs/web.log"), "1\n2\n3\n6\n");
}

#[test]
fn while_the_checkpoint_cannot_be_written_delivery_goes_on_and_a_restart_loses_nothing() {
    for boot in [1, 2] {
        let disk = TestDisk::default();
        let node = Node::start(&disk, 1, PLAIN);
        node.write("web", &["one\n"], 10).expect("good");
        Output::sync(&node.output).expect("good");
        node.checkpoint.sync().expect("good");
        disk.set_read_only("/data", true);
        node.write("web", &["two\n"], 20).expect("delivery goes on");
        assert_eq!(node.paths(), ["/logs/.web.log.unnoted", "/logs/web.log"]);
        Output::sync(&node.output).expect("the file itself is synced");
        let crashed = match boot {
            1 => disk.after_kill(),
            _ => disk.after_power_loss(1),
        };
        let after = Node::start(&crashed, boot, PLAIN);
        assert_eq!(after.text("/logs/web.log"), "one\ntwo\n", "it is not cut");
        assert_eq!(after.offset(), 10);
        after.write("web", &["two\n"], 20).expect("it comes again");
        // Once it can be written again, the file counts again.
        crashed.set_read_only("/data", false);
        Output::sync(&after.output).expect("good");
        assert_eq!(after.paths(), ["/logs/web.log"]);
        let crashed = crashed.after_power_loss(2);
        let after = Node::start(&crashed, boot + 1, PLAIN);
        assert_eq!((after.offset(), after.problems), (20, vec![]));
    }
}

#[test]
fn a_read_only_data_dir_from_the_first_start_stops_nothing() {
    let disk = TestDisk::default();
    disk.set_read_only("/data", true);
    let yaml = "{path: '/logs/{target}.log', codec: raw, rotate_size: 8B, rotate_keep: 2}";
    let node = Node::start(&disk, 1, yaml);
    for (n, record) in ["one\n", "two\n", "three\n", "four\n", "five\n"]
        .iter()
        .enumerate()
    {
        node.write("web", &[record], 10 * n as u64)
            .expect("delivery goes on");
        Output::sync(&node.output).expect("good");
    }
    assert_eq!(node.text("/logs/web.log.2"), "three\n");
    assert_eq!(node.text("/logs/web.log.1"), "four\n");
    assert_eq!(node.text("/logs/web.log"), "five\n");
}

#[test]
fn where_neither_checkpoint_nor_folder_can_be_written_records_wait() {
    let disk = TestDisk::default();
    let node = Node::start(&disk, 1, PLAIN);
    node.write("web", &["one\n"], 10).expect("good");
    disk.set_read_only("/data", true);
    disk.set_read_only("/logs", true);
    let cause = node
        .write("web", &["two\n"], 20)
        .expect_err("nothing can be noted");
    assert!(
        cause.starts_with("`/logs/web.log` cannot be written without the checkpoint"),
        "{cause}"
    );
    assert_eq!(node.text("/logs/web.log"), "one\n");
}

#[test]
fn what_a_failed_sync_may_have_lost_is_written_again() {
    let disk = TestDisk::default();
    let node = Node::start(&disk, 1, PLAIN);
    node.write("web", &["one\n"], 10).expect("good");
    disk.set_forgetful("/logs", true);
    let error = Output::sync(&node.output).expect_err("the disk forgets");
    assert!(
        error
            .to_string()
            .starts_with("`/logs/web.log` cannot be made durable"),
        "{error}"
    );
    let cause = node
        .write("web", &["two\n"], 20)
        .expect_err("nothing is added to it");
    assert!(cause.contains("made durable"), "{cause}");
    // A crash now: it is there, but nobody relies on it.
    let crashed = disk.after_kill();
    crashed.set_forgetful("/logs", false);
    let crashed = Node::start(&crashed, 1, PLAIN);
    assert_eq!((crashed.offset(), crashed.problems.len()), (0, 1));
    disk.set_forgetful("/logs", false);
    node.write("web", &["two\n"], 20).expect("good again");
    Output::sync(&node.output).expect("good again");
    let after = Node::start(&disk.after_power_loss(1), 2, PLAIN);
    assert_eq!((after.offset(), after.problems.len()), (20, 0));
    assert_eq!(after.text("/logs/web.log"), "one\ntwo\n");
    assert_eq!(after.paths(), ["/logs/web.log"]);
}

#[test]
fn what_others_do_to_the_file_is_respected_and_loses_nothing() {
    let disk = TestDisk::default();
    let node = Node::start(&disk, 1, PLAIN);
    node.write("web", &["one\n"], 10).expect("good");
    // Someone writes behind our records, without a line end.
    disk.put("/logs/web.log", b"one\nhis own");
    node.write("web", &["two\n"], 20).expect("good");
    assert_eq!(node.text("/logs/web.log"), "one\nhis own\ntwo\n");
    // Someone empties it.
    disk.put("/logs/web.log", b"");
    node.write("web", &["three\n"], 30).expect("good");
    assert_eq!(node.text("/logs/web.log"), "three\n");
    // Someone rotates it.
    disk.take("/logs/web.log", Some(Path::new("/logs/web.log-1")));
    node.write("web", &["four\n"], 40).expect("good");
    Output::sync(&node.output).expect("good");
    node.write("web", &["five\n"], 50).expect("good");
    assert_eq!(node.text("/logs/web.log-1"), "three\nfour\n");
    assert_eq!(node.text("/logs/web.log"), "five\n");
    // Someone deletes it.
    disk.take("/logs/web.log", None);
    node.write("web", &["six\n"], 60).expect("good");
    assert_eq!(node.text("/logs/web.log"), "six\n");
    let after = Node::start(&disk.after_kill(), 1, PLAIN);
    assert_eq!((after.offset(), after.problems.len()), (60, 0));
    assert_eq!(after.text("/logs/web.log"), "six\n");
}

#[test]
fn a_file_written_to_while_the_daemon_was_down_is_not_cut_and_that_is_told() {
    let disk = TestDisk::default();
    let node = Node::start(&disk, 1, PLAIN);
    node.write("web", &["one\n"], 10).expect("good");
    Output::sync(&node.output).expect("good");
    node.write("web", &["two\n"], 20).expect("good");
    disk.put("/logs/web.log", b"one\ntwo\nhis own\n");
    let after = Node::start(&disk.after_kill(), 1, PLAIN);
    assert_eq!(after.text("/logs/web.log"), "one\ntwo\nhis own\n");
    assert_eq!(after.offset(), 10);
    insta::assert_snapshot!(
        after.problems[0],
        @"outputs.archive.path=/logs/web.log: the end of this file is left as it is, and its last records may come twice: someone else wrote to it; do: nothing; to find them, look for equal records near its end"
    );
}

#[test]
fn an_old_checkpoint_that_is_put_back_cuts_nothing() {
    let disk = TestDisk::default();
    let node = Node::start(&disk, 1, PLAIN);
    node.write("web", &["one\n"], 10).expect("good");
    Output::sync(&node.output).expect("good");
    node.checkpoint.sync().expect("good");
    let old = disk.bytes("/data/checkpoint-1.log").expect("it is there");
    for n in 2..100 {
        disk.pass(60);
        node.write("web", &["more\n"], n * 10).expect("good");
        Output::sync(&node.output).expect("good");
    }
    let disk = disk.after_kill();
    disk.paths()
        .iter()
        .filter(|path| path.starts_with("/data"))
        .for_each(|path| disk.take(path, None));
    disk.put("/data/checkpoint-1.log", &old);
    let after = Node::start(&disk, 2, PLAIN);
    assert_eq!(after.text("/logs/web.log").lines().count(), 99);
    assert_eq!(
        after.offset(),
        10,
        "all of it is read again: better twice than never"
    );
}

#[test]
fn files_are_rotated_by_size_kept_by_number_and_compressed() {
    let disk = TestDisk::default();
    let yaml = "{path: /logs/all.log, codec: raw, rotate_size: 10B, rotate_keep: 3, permissions: '0640', \
                compress: true}";
    let node = Node::start(&disk, 1, yaml);
    for n in 0..12 {
        node.write("web", &[&format!("line {n:02}\n")], 10 + n)
            .expect("good");
        while n % 2 == 0 && node.output.tidy() {}
    }
    while node.output.tidy() {}
    assert_eq!(
        node.paths(),
        [
            "/logs/all.log",
            "/logs/all.log.1.gz",
            "/logs/all.log.2.gz",
            "/logs/all.log.3.gz"
        ]
    );
    assert_eq!(
        (disk.mode("/logs/all.log"), disk.mode("/logs/all.log.1.gz")),
        (0o640, 0o640)
    );
    assert_eq!(node.text("/logs/all.log"), "line 11\n");
    for (n, line) in [(1, "line 10\n"), (2, "line 09\n"), (3, "line 08\n")] {
        let bytes = disk
            .bytes(format!("/logs/all.log.{n}.gz"))
            .expect("it is there");
        let text = io::read_to_string(flate2::read::GzDecoder::new(&bytes[..])).expect("whole");
        assert_eq!(text, line);
    }
    // A batch is never divided.
    node.write(
        "web",
        &["a long record that fills more than a file\n", "b\n"],
        100,
    )
    .expect("good");
    assert_eq!(node.text("/logs/all.log").lines().count(), 2);
    assert_eq!(node.output.largest_batch(), Some(10));
}

#[test]
fn more_targets_than_may_be_open_are_written_all_the_same() {
    let disk = TestDisk::default();
    let node = Node::start(&disk, 1, PLAIN);
    for round in 1..=2 {
        for n in 0..KNOWN_FILES + 100 {
            node.write(&format!("t{n}"), &["line\n"], (round * 10_000 + n) as u64)
                .expect("good");
            assert!(disk.handles() < OPEN_FILES + 10, "{} open", disk.handles());
        }
    }
    Output::sync(&node.output).expect("good");
    assert!(
        (0..KNOWN_FILES + 100).all(|n| node.text(&format!("/logs/t{n}.log")) == "line\nline\n")
    );
    node.checkpoint.sync().expect("good");
    let after = Node::start(&disk.after_power_loss(1), 2, PLAIN);
    assert_eq!(after.problems, []);
    assert!(
        after.loaded.files.len() <= KNOWN_FILES,
        "{}",
        after.loaded.files.len()
    );
    assert_eq!(after.offset(), (20_000 + KNOWN_FILES + 99) as u64);
}

#[test]
fn a_target_cannot_leave_the_folder() {
    let disk = TestDisk::default();
    let node = Node::start(&disk, 1, PLAIN);
    for target in ["../etc/x", "a/b", "."] {
        let verdict = node.output.write(&load_of(target, &["x\n"]));
        assert!(
            matches!(verdict, Verdict::All(Fate::Refused { .. })),
            "{target}: {verdict:?}"
        );
    }
    assert_eq!(node.paths(), [""; 0]);
}

#[test]
fn wrong_settings_are_told_with_their_cures_and_log_pilots_are_good() {
    let told = |yaml: &str| {
        let output = FileOutput::new(
            &settings(yaml),
            TestDisk::default().arc(),
            Arc::new(NoJournal),
            &[],
            Arc::new(|| 0),
        );
        let problems = output.err().unwrap_or_default();
        problems
            .iter()
            .map(|problem| format!("{problem}\n"))
            .collect::<String>()
    };
    insta::assert_snapshot!(
        [
            told("{}"),
            told("{path: /x, codec: csv}"),
            told("{path: x, rotate_keep: 3}"),
            told("{path: '/x/{index}', compress: true}"),
            told("{path: '/x/{target}', rotate_size: 1MiB}"),
            told("{path: /x, rotate_size: 1MiB, rotate_keep: 0}"),
        ]
        .concat(),
        @r"
    outputs.archive.path: it is required and not there; do: add `path:` there
    outputs.archive.codec=csv: `csv` is none of its values; do: use one of: json, raw
    outputs.archive.path=x: it is no absolute path; do: begin it with `/`, such as `/data/{target}.ndjson`
    outputs.archive.rotate_keep=3: no file is ever rotated here; do: add `rotate_size: 100MiB`, or leave this out
    outputs.archive.path=/x/{index}: `{index}` stands for nothing here; do: use `{target}` and `{date}`, or leave the braces out
    outputs.archive.compress=true: no file is ever rotated here; do: add `rotate_size: 100MiB`, or leave this out
    outputs.archive.path=/x/{target}: a rotated file of one target could have the name of another target's file; do: end the file name in an extension, such as `{target}.ndjson`
    outputs.archive.rotate_keep=0: records would be deleted when a file is rotated; do: write at least 1
    "
    );
    assert_eq!(
        told("{path: '/x/{target}', rotate_size: 0, rotate_keep: 7, compress: true}"),
        ""
    );
    let env = |name: &str| match name {
        "FILEBEAT_OUTPUT" => Some("file".to_owned()),
        "FILE_PATH" => Some("/logs".to_owned()),
        "FILE_COMPRESS" => Some("gzip".to_owned()),
        _ => None,
    };
    let from_log_pilot = crate::settings::Settings::from_environment(&env).expect("good variables");
    let output = FileOutput::new(
        &from_log_pilot.outputs[0],
        TestDisk::default().arc(),
        Arc::new(NoJournal),
        &[],
        Arc::new(|| 0),
    )
    .expect("good settings");
    let rotate = output.inner.common.rotate.expect("log-pilot's defaults");
    assert_eq!(
        (rotate.size, rotate.keep, rotate.compress),
        (10_240 * 1024, 7, true)
    );
    assert_eq!(output.codec(), Codec::Json);
}

#[derive(Debug)]
struct NoJournal;

impl Journal for NoJournal {
    fn append(&self, _: &[Entry]) -> io::Result<()> {
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn in_the_daemon_it_writes_on_threads_that_may_wait_and_compresses_behind() {
    let disk = TestDisk::default();
    let yaml = "{path: /logs/all.log, codec: raw, rotate_size: 10B, compress: true}";
    let node = Node::start(&disk, 1, yaml);
    for n in 0..3 {
        let load = load_at("web", &["line one\n"], n);
        assert_eq!(
            node.output.attempt(&load).await,
            Verdict::All(Fate::Delivered)
        );
    }
    while node.output.inner.compressing.load(Ordering::Acquire) {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        node.paths(),
        ["/logs/all.log", "/logs/all.log.1.gz", "/logs/all.log.2.gz"]
    );
    assert_eq!(node.output.probe().await, Ok(()));
    disk.set_read_only("/logs", true);
    let cause = node.output.probe().await.expect_err("read-only");
    assert!(
        cause.starts_with("`/logs` cannot be written to: read-only"),
        "{cause}"
    );
}
