//! A move from another agent sends nothing again and skips nothing.

use std::os::unix::fs::MetadataExt;
use std::process::Output;

use crate::node::{Node, assert_each_once, lines, ringpilot, text};

const CONFIGURATION: &str = "sources:\n  - {name: app, path: 'DIR/logs/app*'}\n\
                             outputs:\n  files: {type: file, path: 'DIR/out/{target}.ndjson'}\n";

/// Two logs of which another agent has read the first 40 and 60 lines, one of them renamed since.
fn node() -> (Node, Vec<(String, u64, u64)>) {
    let node = Node::new();
    node.configure(CONFIGURATION);
    node.write("app-a.log", lines(0..100));
    node.write("app-b.log", lines(100..200));
    let noted = [("app-a.log", 40_u64), ("app-b.log", 60)].map(|(name, read)| {
        let path = node.path("logs").join(name);
        let inode = path.metadata().expect("a file").ino();
        (path.display().to_string(), inode, read * 12)
    });
    let renamed = node.path("logs").join("app-b.log.1");
    std::fs::rename(node.path("logs").join("app-b.log"), renamed).expect("a rename");
    (node, noted.to_vec())
}

fn import(node: &Node, from: &str, registry: &str, words: &[&str]) -> Output {
    let mut command = ringpilot();
    command
        .args(["import", "--from", from])
        .args(words)
        .arg("-c")
        .arg(node.path("c.yaml"));
    command
        .arg(node.path(registry))
        .output()
        .expect("the program")
}

/// The daemon goes on: the rest of both, and what comes later, each line once.
fn goes_on(node: &Node, output: &Output) {
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{error}");
    assert!(out.contains("2 of 2 positions are taken over"), "{out}");
    let once = || {
        let mut command = ringpilot();
        let done = command
            .args(["run", "--once", "-c"])
            .arg(node.path("c.yaml"))
            .output()
            .expect("the program");
        assert!(
            done.status.success(),
            "{}{}",
            text(&done.stdout),
            text(&done.stderr)
        );
    };
    once();
    let expected = lines(40..100).chain(lines(160..200));
    assert!(node.messages("out/app.ndjson").keys().cloned().eq(expected));
    node.write("app-a.log", lines(200..210));
    once();
    let mut all = node.messages("out/app.ndjson");
    // What the other agent has delivered.
    all.extend(lines(0..40).chain(lines(100..160)).map(|line| (line, 1)));
    assert_each_once(&all, 0..210);
}

#[test]
fn filebeat_6s_registry_as_log_pilot_has_it() {
    let (node, noted) = node();
    let states: Vec<_> = noted
        .iter()
        .map(|(path, inode, offset)| {
            serde_json::json!({"source": format!("/host{path}"), "offset": offset, "ttl": -1, "type": "log",
                "timestamp": "2024-02-29T10:00:00Z", "FileStateOS": {"inode": inode, "device": 2049}})
        })
        .collect();
    std::fs::write(
        node.path("registry"),
        serde_json::to_string(&states).expect("JSON"),
    )
    .expect("a write");
    goes_on(&node, &import(&node, "log-pilot", "registry", &[]));
}

#[test]
fn filebeat_7s_log_and_checkpoint() {
    let (node, noted) = node();
    let store = node.path("registry/filebeat");
    std::fs::create_dir_all(&store).expect("a folder");
    let state = |(path, inode, offset): &(String, u64, u64)| {
        let key = format!("filebeat::logs::native::{inode}-2049");
        let value = serde_json::json!({"source": path, "offset": offset, "ttl": -1, "type": "log",
            "identifier_name": "native", "FileStateOS": {"inode": inode, "device": 2049}});
        (key, value)
    };
    let (key, mut old) = state(&noted[0]);
    old["_key"] = key.into();
    old["offset"] = 0.into();
    std::fs::write(
        store.join("5.json"),
        serde_json::to_string(&[old]).expect("JSON"),
    )
    .expect("a write");
    std::fs::write(
        store.join("active.dat"),
        "/var/lib/filebeat/registry/filebeat/5.json",
    )
    .expect("a write");
    let log: String = noted
        .iter()
        .enumerate()
        .map(|(n, one)| {
            let (key, value) = state(one);
            let entry = serde_json::json!({"k": key, "v": value});
            format!("{{\"op\":\"set\",\"id\":{}}}\n{entry}\n", n + 6)
        })
        .collect();
    std::fs::write(store.join("log.json"), log).expect("a write");
    goes_on(&node, &import(&node, "filebeat", "registry", &[]));
}

#[test]
fn fluentds_pos_files_and_a_position_within_a_line() {
    let (node, noted) = node();
    let text: String = noted
        .iter()
        // In the middle of the next line: that line was not sent.
        .map(|(path, inode, offset)| format!("/host{path}\t{:016x}\t{inode:016x}\n", offset + 5))
        .collect();
    std::fs::write(node.path("app.pos"), text).expect("a write");
    goes_on(
        &node,
        &import(&node, "fluentd", "app.pos", &["--path-prefix", "/host"]),
    );
}

#[test]
fn fluent_bits_database() {
    let (node, noted) = node();
    let database = rusqlite::Connection::open(node.path("tail.db")).expect("a database");
    database
        .execute_batch(
            "CREATE TABLE in_tail_files (id INTEGER PRIMARY KEY, name TEXT NOT NULL, offset INTEGER, inode INTEGER, \
             created INTEGER, rotated INTEGER DEFAULT 0);",
        )
        .expect("a table");
    for (path, inode, offset) in &noted {
        let values = (
            path,
            i64::try_from(*offset).expect("small"),
            i64::try_from(*inode).expect("small"),
        );
        database
            .execute(
                "INSERT INTO in_tail_files (name, offset, inode, created) VALUES (?1, ?2, ?3, 1)",
                values,
            )
            .expect("a row");
    }
    drop(database);
    goes_on(&node, &import(&node, "fluent-bit", "tail.db", &[]));
}

#[test]
fn it_refuses_beside_a_daemon_and_tells_of_each_file_it_leaves_alone() {
    let (mut node, mut noted) = node();
    noted[0].2 = 1 << 40;
    noted[1].1 = 1;
    let text_of: String = noted
        .iter()
        .map(|(path, inode, offset)| format!("{path}\t{offset:016x}\t{inode:016x}\n"))
        .collect();
    std::fs::write(node.path("app.pos"), text_of).expect("a write");
    node.start();
    let refused = import(&node, "fluentd", "app.pos", &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("stop the daemon"),
        "{}",
        text(&refused.stderr)
    );
    node.stop();
    std::fs::remove_dir_all(node.path("data")).expect("a folder");
    let none = import(&node, "fluentd", "app.pos", &[]);
    assert_eq!(none.status.code(), Some(1));
    let told = text(&none.stdout);
    assert!(
        told.contains("it was truncated") && told.contains("it cannot be opened"),
        "{told}"
    );
}
