//! The checkpoint's promises: it never refuses a start, keeps what is good, and says what is not.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringpilot_shared::follow::{Identity, StreamKey};
use ringpilot_shared::host::Disk;

use super::test_disk::{Dice, TestDisk};
use super::*;
use crate::ledger::{Ledger, Lost, Tally};

const DIR: &str = "/data";

fn open_in(disk: &TestDisk, boot: u128) -> Opened {
    Checkpoint::open(disk.arc(), Path::new(DIR), "node", boot, &mut NoFiles)
}

fn key(id: u64) -> StreamKey {
    StreamKey { id, generation: 3 }
}

fn flow_key(id: u64, output: &str) -> FlowKey {
    FlowKey {
        stream: key(id),
        declaration: "access".into(),
        output: output.into(),
    }
}

fn at(offset: u64) -> SavedFlow {
    SavedFlow {
        offset,
        sent: offset,
        ..SavedFlow::default()
    }
}

fn stream(id: u64) -> SavedStream {
    SavedStream {
        key: key(id),
        identity: Identity {
            inode: id,
            birth_ns: id.is_multiple_of(2).then_some(-1),
            device: u64::MAX,
            boot: u128::MAX - u128::from(id),
            head_len: 7,
            head: u64::MAX,
        },
        owner: "c0ffee \"\u{2028}\n".to_owned(),
        path: PathBuf::from("/var/log/app.log"),
        modified_ns: i64::MIN,
        accounted_ns: Some(i64::MAX),
        successor: Some(key(id + 1)),
        seen_ns: 5,
    }
}

fn full_flow() -> SavedFlow {
    let tally = Tally {
        bytes: 7,
        lines: 2,
        records: 1,
    };
    SavedFlow {
        offset: u64::MAX,
        tail: 1,
        held: vec![SavedHeld {
            from: 1,
            to: 2,
            earlier: Some(key(9)),
        }],
        start: 3,
        brought_from: Some(key(9)),
        brought: 4,
        handed: 5,
        sent: u64::MAX,
        done: true,
        unread: 8,
        ledger: Ledger {
            delivered: tally,
            duplicates: 6,
            lost: BTreeMap::from([(Lost::Quota, tally)]),
            ..Ledger::default()
        },
    }
}

fn write(path: &str, inode: u64, from: u64, length: u64, flows: &[(u64, u64)]) -> Entry {
    Entry::Write(SavedWrite {
        output: "archive".into(),
        path: path.into(),
        inode,
        birth_ns: Some(1),
        from,
        length,
        flows: flows
            .iter()
            .map(|(id, offset)| (flow_key(*id, "archive"), at(*offset)))
            .collect(),
    })
}

fn synced(path: &str, inode: u64, length: u64) -> Entry {
    Entry::Synced {
        output: "archive".into(),
        path: path.into(),
        inode,
        birth_ns: Some(1),
        length,
        at_ns: 0,
    }
}

/// The segments' names.
fn segments(disk: &TestDisk) -> Vec<PathBuf> {
    disk.paths()
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
        .collect()
}

fn offsets(loaded: &Loaded) -> BTreeMap<u64, u64> {
    loaded
        .flows
        .iter()
        .map(|(key, flow)| (key.stream.id, flow.offset))
        .collect()
}

#[test]
fn everything_that_was_appended_is_there_again_whatever_it_is_made_of() {
    let disk = TestDisk::default();
    let opened = open_in(&disk, 1);
    assert!(opened.loaded.fresh && opened.problems.is_empty());
    let mut odd = stream(2);
    odd.path = Path::new(std::ffi::OsStr::from_bytes(b"/logs/\xff\n.log")).to_owned();
    let source = SavedSource {
        cuts: Vec::new(),
        stream: key(1),
        declaration: "access".into(),
        source_hash: u64::MAX,
        days: vec![(0, -1), (77, i32::MAX)],
    };
    let entries = [
        Entry::Stream(stream(1)),
        Entry::Stream(odd.clone()),
        Entry::Stream(stream(3)),
        Entry::Source(source.clone()),
        Entry::Flow(flow_key(1, "es"), full_flow()),
        Entry::Flow(flow_key(3, "es"), at(9)),
        Entry::Forget(key(3)),
        Entry::Outputs(vec!["es".into()], i64::MAX),
        write("/out/a", 5, 0, 10, &[(2, 50)]),
        synced("/out/a", 5, 10),
    ];
    opened.checkpoint.append(&entries).expect("a good disk");
    opened.checkpoint.sync().expect("a good disk");
    drop(opened);
    // Once as appended, once as written anew.
    for (boot, before) in [(1, 1), (2, 1), (2, 2)] {
        let Opened {
            loaded, problems, ..
        } = open_in(&disk, boot);
        assert_eq!(problems, []);
        assert_eq!(loaded.streams.len(), 2);
        assert_eq!(loaded.streams[&key(1)], stream(1));
        assert_eq!(loaded.streams[&key(2)], odd);
        assert_eq!(loaded.sources, std::slice::from_ref(&source));
        assert_eq!(loaded.flows.len(), 2);
        assert_eq!(loaded.flows[&flow_key(1, "es")], full_flow());
        assert_eq!(loaded.flows[&flow_key(2, "archive")], at(50));
        assert_eq!(loaded.outputs["es"], i64::MAX);
        assert!(!loaded.fresh && !loaded.torn_only);
        assert_eq!(loaded.boot, Some(before));
        assert_eq!(segments(&disk).len(), 1);
    }
}

/// A checkpoint with a state per step, and how long its segment was after each.
fn by_steps(disk: &TestDisk) -> Vec<(usize, BTreeMap<u64, u64>)> {
    let Opened { checkpoint, .. } = open_in(disk, 1);
    let segment = segments(disk)[0].clone();
    let mut states = vec![(
        disk.bytes(&segment).expect("it is there").len(),
        BTreeMap::new(),
    )];
    let mut state = BTreeMap::new();
    for n in 1..=12 {
        state.insert(n % 4, n * 10);
        checkpoint
            .append(&[Entry::Flow(flow_key(n % 4, "es"), at(n * 10))])
            .expect("a good disk");
        states.push((
            disk.bytes(&segment).expect("it is there").len(),
            state.clone(),
        ));
        if n % 3 == 0 {
            checkpoint.sync().expect("a good disk");
        }
    }
    assert_eq!(segments(disk), [segment], "it is not yet written anew");
    states
}

#[test]
fn a_checkpoint_cut_at_any_byte_starts_with_what_was_whole_before() {
    let disk = TestDisk::default();
    let states = by_steps(&disk);
    let segment = segments(&disk)[0].clone();
    let whole = disk.bytes(&segment).expect("it is there");
    for cut in 0..whole.len() {
        for boot in [1, 2] {
            let disk = disk.after_kill();
            disk.put(&segment, &whole[..cut]);
            let Opened {
                loaded, problems, ..
            } = open_in(&disk, boot);
            let (first, _) = states[0];
            let expected = states.iter().rev().find(|(length, _)| *length <= cut);
            assert_eq!(
                offsets(&loaded),
                expected.map(|(_, state)| state.clone()).unwrap_or_default(),
                "cut at {cut}"
            );
            // The first part is synced before it has a name: a crash cannot take it away.
            assert_eq!(
                problems.is_empty(),
                cut >= first,
                "cut at {cut}: {problems:?}"
            );
            let between = !states.iter().any(|(length, _)| *length == cut);
            let clean = whole[..cut].ends_with(b"\n");
            assert_eq!(
                loaded.torn_only,
                cut >= first && between && !clean,
                "cut at {cut}"
            );
            // And it is whole again.
            let again = open_in(&disk.after_kill(), boot);
            assert_eq!(
                (again.problems, offsets(&again.loaded)),
                (vec![], offsets(&loaded))
            );
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_costs_at_most_the_line_it_is_in() {
    let disk = TestDisk::default();
    by_steps(&disk);
    let segment = segments(&disk)[0].clone();
    let whole = disk.bytes(&segment).expect("it is there");
    // Every line's end, and the entry that it is.
    let (mut ends, mut entry) = (Vec::new(), 0);
    for line in whole.split_inclusive(|byte| *byte == b'\n') {
        let is_entry = line[9..].starts_with(b"{\"Flow\"");
        entry += u64::from(is_entry);
        let end = ends.last().map_or(0, |(end, _)| *end) + line.len();
        ends.push((end, is_entry.then_some(entry)));
    }
    for byte in 0..whole.len() {
        let disk = disk.after_kill();
        let mut flipped = whole.clone();
        flipped[byte] ^= 1 << (byte % 8);
        disk.put(&segment, &flipped);
        let Opened {
            loaded, problems, ..
        } = open_in(&disk, 1);
        // In the same boot nothing written may be bad, but the last line may lack its end.
        let at_the_end = byte + 1 == whole.len();
        assert_eq!(problems.is_empty(), at_the_end, "byte {byte}");
        assert_eq!(loaded.torn_only, at_the_end, "byte {byte}");
        // A line without its end takes the next one along.
        let hit = ends.partition_point(|(end, _)| *end <= byte);
        let last_hit = if whole[byte] == b'\n' { hit + 1 } else { hit };
        let hit: Vec<u64> = (hit..=last_hit)
            .filter_map(|line| ends.get(line)?.1)
            .collect();
        for flow in 0..4 {
            let good = (1..=12).rev().find(|n| n % 4 == flow && !hit.contains(n));
            let found = offsets(&loaded).get(&flow).copied();
            assert_eq!(found, good.map(|n| n * 10), "byte {byte}");
        }
    }
}

#[test]
fn after_a_power_loss_nothing_behind_a_hole_counts_but_damage_before_it_is_told() {
    let disk = TestDisk::default();
    let Opened { checkpoint, .. } = open_in(&disk, 1);
    let segment = segments(&disk)[0].clone();
    let append = |id, offset| {
        let entry = Entry::Flow(flow_key(id, "es"), at(offset));
        checkpoint.append(&[entry]).expect("a good disk");
        disk.bytes(&segment).expect("it is there").len()
    };
    let a = append(1, 10);
    checkpoint.sync().expect("a good disk");
    let b = append(2, 20);
    let c = append(3, 30);
    append(4, 40);
    let whole = disk.bytes(&segment).expect("it is there");
    let with_hole = |from: usize, to: usize| {
        let disk = disk.after_kill();
        let mut bytes = whole.clone();
        bytes[from..to].fill(0);
        disk.put(&segment, &bytes);
        disk
    };
    // A page of the unsynced end is missing: what is behind it may never have been true together.
    let opened = open_in(&with_hole(b, c), 2);
    assert_eq!((opened.problems.len(), opened.loaded.torn_only), (0, true));
    assert_eq!(offsets(&opened.loaded), BTreeMap::from([(1, 10), (2, 20)]));
    // What had been synced cannot be missing.
    let opened = open_in(&with_hole(a - 9, a - 5), 2);
    assert_eq!((opened.problems.len(), opened.loaded.torn_only), (1, false));
    assert_eq!(
        offsets(&opened.loaded),
        BTreeMap::from([(2, 20), (3, 30), (4, 40)])
    );
    // Nor anything in the same boot; a hole has no line end, so it takes the next line along.
    let opened = open_in(&with_hole(b, c), 1);
    assert_eq!((opened.problems.len(), opened.loaded.torn_only), (1, false));
    assert_eq!(offsets(&opened.loaded), BTreeMap::from([(1, 10), (2, 20)]));
    let opened = open_in(&with_hole(b, c - 1), 1);
    assert_eq!(
        offsets(&opened.loaded),
        BTreeMap::from([(1, 10), (2, 20), (4, 40)])
    );
}

#[test]
fn a_full_disk_forgets_nothing_and_says_so_until_there_is_room() {
    let disk = TestDisk::default();
    let Opened { checkpoint, .. } = open_in(&disk, 1);
    let entry = |id, offset| [Entry::Flow(flow_key(id, "es"), at(offset))];
    checkpoint.append(&entry(1, 10)).expect("room");
    checkpoint.sync().expect("room");
    disk.set_room(Some(20));
    let error = checkpoint.append(&entry(2, 20)).expect_err("no room");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    checkpoint.append(&entry(1, 30)).expect_err("no room");
    checkpoint.sync().expect_err("no room");
    let told = checkpoint.failing().expect("a problem").to_string();
    assert!(
        told.contains("positions cannot be saved: no storage space"),
        "{told}"
    );
    assert!(told.contains("free space where `data_dir` is"), "{told}");
    // A crash now: what was saved before.
    let crashed = open_in(&disk.after_kill(), 1);
    assert_eq!(offsets(&crashed.loaded), BTreeMap::from([(1, 10)]));
    assert_eq!(crashed.problems.len(), 1, "it cannot write here either");
    // Room again: one sync writes all of it.
    disk.set_room(None);
    checkpoint.sync().expect("room");
    assert_eq!(checkpoint.failing(), None);
    checkpoint.append(&entry(3, 40)).expect("room");
    let opened = open_in(&disk.after_kill(), 1);
    assert_eq!(opened.problems, []);
    assert_eq!(
        offsets(&opened.loaded),
        BTreeMap::from([(1, 30), (2, 20), (3, 40)])
    );
}

#[test]
fn a_read_only_data_dir_refuses_no_start_and_is_used_once_it_can_be() {
    let disk = TestDisk::default();
    open_in(&disk, 1)
        .checkpoint
        .append(&[Entry::Flow(flow_key(1, "es"), at(10))])
        .expect("good");
    disk.set_read_only(DIR, true);
    let opened = open_in(&disk, 1);
    assert_eq!(offsets(&opened.loaded), BTreeMap::from([(1, 10)]));
    assert!(
        opened.problems[0]
            .to_string()
            .contains("let the daemon write `data_dir`")
    );
    let checkpoint = opened.checkpoint;
    checkpoint
        .append(&[Entry::Flow(flow_key(1, "es"), at(20))])
        .expect_err("read-only");
    checkpoint.sync().expect_err("read-only");
    disk.set_read_only(DIR, false);
    checkpoint.sync().expect("good again");
    assert_eq!(
        offsets(&open_in(&disk.after_power_loss(1), 2).loaded),
        BTreeMap::from([(1, 20)])
    );
    // And without any before.
    let disk = TestDisk::default();
    disk.set_read_only(DIR, true);
    let opened = open_in(&disk, 1);
    assert!(
        opened.loaded.fresh && opened.problems.len() == 1,
        "{:?}",
        opened.problems
    );
}

#[test]
fn after_a_sync_that_failed_everything_is_written_anew() {
    let disk = TestDisk::default();
    let Opened { checkpoint, .. } = open_in(&disk, 1);
    checkpoint
        .append(&[Entry::Flow(flow_key(1, "es"), at(10))])
        .expect("good");
    disk.set_forgetful(DIR, true);
    checkpoint.sync().expect_err("the disk forgets");
    disk.set_forgetful(DIR, false);
    checkpoint.sync().expect("good again");
    let disk = disk.after_power_loss(3);
    assert_eq!(
        offsets(&open_in(&disk, 2).loaded),
        BTreeMap::from([(1, 10)])
    );
}

#[test]
fn a_later_releases_checkpoint_is_used_as_far_as_it_is_known_and_kept_aside() {
    let disk = TestDisk::default();
    drop(open_in(&disk, 1));
    let segment = segments(&disk)[0].clone();
    let line = |json: &str| format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes()));
    let entry = serde_json::to_string(&Entry::Flow(flow_key(1, "es"), at(10))).expect("JSON");
    let text = [
        line("{\"format\":2,\"node\":\"node\",\"more\":[]}"),
        line("{\"Poem\":[1,2]}"),
        line(&entry),
        line("\"Whole\""),
    ];
    disk.put(&segment, text.concat().as_bytes());
    let opened = open_in(&disk, 1);
    assert_eq!(offsets(&opened.loaded), BTreeMap::from([(1, 10)]));
    insta::assert_snapshot!(
        opened.problems[0],
        @"data_dir=/data/checkpoint-1.log: it was written by a later release (format 2; this one knows 1); do: go back to that release if logs come twice; its file is kept as checkpoint.kept"
    );
    assert_eq!(
        disk.bytes("/data/checkpoint.kept"),
        Some(text.concat().into_bytes())
    );
    assert_eq!(open_in(&disk, 1).problems, []);
}

#[test]
fn what_is_wrong_is_told_in_one_line_each() {
    let disk = TestDisk::default();
    by_steps(&disk);
    let segment = segments(&disk)[0].clone();
    let whole = disk.bytes(&segment).expect("it is there");
    let told = |bytes: &[u8], node: &str| {
        let disk = disk.after_kill();
        disk.put(&segment, bytes);
        let opened = Checkpoint::open(disk.arc(), Path::new(DIR), node, 1, &mut NoFiles);
        let problems: Vec<String> = opened.problems.iter().map(ToString::to_string).collect();
        problems.join("\n")
    };
    let mut bad = whole.clone();
    bad[whole.len() / 2] = b'?';
    insta::assert_snapshot!(
        [told(b"", "node"), told(&whole[..60], "node"), told(&bad, "node"), told(&whole, "other")].join("\n"),
        @r"
    data_dir=/data/checkpoint-1.log: saved positions are damaged: its first line is missing; do: nothing: what is good is used, the rest is read again and may come twice; check the disk if it happens again
    data_dir=/data/checkpoint-1.log: saved positions are damaged: one of its lines is bad; do: nothing: what is good is used, the rest is read again and may come twice; check the disk if it happens again
    data_dir=/data/checkpoint-1.log: saved positions are damaged: one of its lines is bad; do: nothing: what is good is used, the rest is read again and may come twice; check the disk if it happens again
    data_dir=/data/checkpoint-1.log: saved positions are those of node `node`; do: nothing if the node was renamed; if its disk was copied, empty `data_dir`
    "
    );
}

#[test]
fn it_stays_short_however_long_it_runs() {
    let disk = TestDisk::default();
    let Opened { checkpoint, .. } = open_in(&disk, 1);
    let mut longest = 0;
    for n in 0..3_000 {
        let entry = Entry::Flow(flow_key(n % 5, "es"), at(n));
        checkpoint.append(&[entry]).expect("a good disk");
        checkpoint.sync().expect("a good disk");
        longest = longest.max(checkpoint.bytes());
        assert_eq!(segments(&disk).len(), 1);
    }
    assert!(longest < 5 << 10, "{longest}");
    let opened = open_in(&disk, 1);
    assert_eq!(
        offsets(&opened.loaded),
        (0..5).map(|id| (id, 2_995 + id)).collect()
    );
}

/// What is written anew is whole or not there, and an older segment goes only when it is.
#[test]
fn a_crash_at_any_moment_leaves_what_was_synced_and_nothing_that_never_was() {
    let run = |disk: &TestDisk| {
        let Opened { checkpoint, .. } = open_in(disk, 1);
        let mut saved = 0;
        for n in 1..=60 {
            let entry = Entry::Flow(flow_key(1, "es"), at(n));
            if checkpoint.append(&[entry]).is_ok() && n % 3 == 0 && checkpoint.sync().is_ok() {
                saved = n;
            }
        }
        saved
    };
    let disk = TestDisk::default();
    run(&disk);
    let operations = disk.operations();
    for operation in 0..operations {
        for way in 0..4 {
            let disk = TestDisk::default();
            disk.crash_at(operation, way);
            let saved = run(&disk);
            let (disk, boot) = match way {
                0 => (disk.after_kill(), 1),
                _ => (disk.after_power_loss(operation * 5 + way), 2),
            };
            let opened = open_in(&disk, boot);
            assert_eq!(opened.problems, [], "at {operation}, way {way}");
            let found = offsets(&opened.loaded).get(&1).copied().unwrap_or(0);
            assert!(
                (saved..=60).contains(&found),
                "at {operation}, way {way}: {found} of {saved}"
            );
        }
    }
}

#[test]
fn a_position_never_goes_back_though_entries_overtake_each_other() {
    let disk = TestDisk::default();
    let Opened { checkpoint, .. } = open_in(&disk, 1);
    let held = SavedFlow {
        held: vec![SavedHeld {
            from: 90,
            to: 100,
            earlier: None,
        }],
        ..at(100)
    };
    let mut closed = at(100);
    closed.ledger.delivered.bytes = 10;
    let key = flow_key(1, "archive");
    let write = Entry::Write(SavedWrite {
        output: "archive".into(),
        path: "/out/a".into(),
        inode: 5,
        birth_ns: Some(1),
        from: 0,
        length: 10,
        flows: vec![(key.clone(), closed.clone())],
    });
    let entries = [write, synced("/out/a", 5, 10)];
    checkpoint.append(&entries).expect("a good disk");
    checkpoint.sync().expect("a good disk");
    // The cursor was taken before the group was closed, and is appended after it was written and synced.
    let late = Entry::Flow(key.clone(), held);
    checkpoint.append(&[late]).expect("a good disk");
    let opened = open_in(&disk, 1);
    assert_eq!(opened.loaded.flows[&key], closed);
}

/// Files as a test says they are.
#[derive(Debug, Default)]
struct Told {
    lengths: BTreeMap<PathBuf, u64>,
    settled: BTreeMap<PathBuf, u64>,
    unnoted: bool,
    modified_ns: i64,
}

impl Files for Told {
    fn look(&mut self, file: &FileMark) -> Look {
        match self.lengths.get(&file.path) {
            Some(length) => Look::Here {
                length: *length,
                modified_ns: self.modified_ns,
                unnoted: self.unnoted,
            },
            None => Look::Gone,
        }
    }
    fn settle(&mut self, file: &FileMark, length: u64) -> io::Result<()> {
        self.settled.insert(file.path.clone(), length);
        Ok(())
    }
}

/// Appends, is killed, and starts again in `boot` with files of these lengths. The flows, what the files were cut to,
/// and what was told.
fn restarted(
    entries: &[Entry],
    boot: u128,
    lengths: &[(&str, u64)],
    change: impl Fn(&mut Told),
) -> (BTreeMap<u64, u64>, Vec<(String, u64)>, usize) {
    let disk = TestDisk::default();
    let Opened { checkpoint, .. } = open_in(&disk, 1);
    checkpoint.append(entries).expect("a good disk");
    // Also where it was written anew in between.
    let rewritten = TestDisk::default();
    let again = open_in(&rewritten, 1).checkpoint;
    rewritten.set_room(Some(0));
    again.append(entries).expect_err("no room");
    rewritten.set_room(None);
    again.sync().expect("room");
    let results = [disk, rewritten].map(|disk| {
        let mut told = Told {
            lengths: lengths
                .iter()
                .map(|(path, length)| (path.into(), *length))
                .collect(),
            ..Told::default()
        };
        change(&mut told);
        let opened = Checkpoint::open(disk.arc(), Path::new(DIR), "node", boot, &mut told);
        let settled = told
            .settled
            .iter()
            .map(|(path, to)| (path.display().to_string(), *to));
        (
            offsets(&opened.loaded),
            settled.collect(),
            opened.problems.len(),
        )
    });
    assert_eq!(results[0], results[1], "the same, however it was written");
    let [result, _] = results;
    result
}

#[test]
fn a_transaction_counts_only_with_all_earlier_ones_of_its_flows() {
    let entries = [
        write("/a", 1, 0, 0, &[]),
        write("/b", 2, 0, 0, &[]),
        synced("/a", 1, 0),
        synced("/b", 2, 0),
        write("/a", 1, 0, 10, &[(1, 100)]),
        write("/b", 2, 0, 10, &[(1, 200), (2, 50)]),
        write("/b", 2, 10, 20, &[(2, 60)]),
    ];
    let plain = |_: &mut Told| {};
    // All of it is there.
    let (flows, cut, told) = restarted(&entries, 1, &[("/a", 10), ("/b", 20)], plain);
    assert_eq!((flows, told), (BTreeMap::from([(1, 200), (2, 60)]), 0));
    assert_eq!(cut, [("/a".to_owned(), 10), ("/b".to_owned(), 20)]);
    // /a lost its write: what flow 1 wrote to /b afterwards goes, and all behind it.
    let (flows, cut, told) = restarted(&entries, 1, &[("/a", 7), ("/b", 20)], plain);
    assert_eq!((flows, told), (BTreeMap::new(), 0));
    assert_eq!(cut, [("/a".to_owned(), 0), ("/b".to_owned(), 0)]);
    // After a reboot, with only /b marked synced, the same.
    let mut marked = entries.to_vec();
    marked.push(synced("/b", 2, 20));
    let (flows, cut, told) = restarted(&marked, 2, &[("/a", 10), ("/b", 20)], plain);
    assert_eq!((flows, told), (BTreeMap::new(), 0));
    assert_eq!(cut, [("/a".to_owned(), 0), ("/b".to_owned(), 0)]);
    marked.push(synced("/a", 1, 10));
    let (flows, cut, told) = restarted(&marked, 2, &[("/a", 10), ("/b", 25)], plain);
    assert_eq!((flows, told), (BTreeMap::from([(1, 200), (2, 60)]), 0));
    assert_eq!(cut, [("/b".to_owned(), 20)]);
}

#[test]
fn a_write_that_failed_is_not_taken_for_done_when_others_reach_its_length() {
    let entries = [
        write("/a", 1, 0, 0, &[]),
        synced("/a", 1, 0),
        // Failed, and was cut off.
        write("/a", 1, 0, 100, &[(1, 100)]),
        write("/a", 1, 0, 60, &[(2, 60)]),
        write("/a", 1, 60, 120, &[(2, 120)]),
    ];
    let (flows, _, told) = restarted(&entries, 1, &[("/a", 120)], |_| {});
    assert_eq!((flows, told), (BTreeMap::from([(2, 120)]), 0));
}

#[test]
fn a_file_that_may_be_someone_elses_is_not_cut() {
    let entries = [
        write("/a", 1, 0, 50, &[(1, 50)]),
        synced("/a", 1, 50),
        write("/a", 1, 50, 60, &[(1, 60)]),
    ];
    let synced_only = BTreeMap::from([(1, 50)]);
    // Longer than anything that was to be written.
    let (flows, cut, told) = restarted(&entries, 1, &[("/a", 61)], |_| {});
    assert_eq!(
        (&flows, cut, told),
        (&synced_only, vec![("/a".to_owned(), 61)], 1)
    );
    // Written while the checkpoint could not be.
    let (flows, cut, told) = restarted(&entries, 2, &[("/a", 60)], |told| told.unnoted = true);
    assert_eq!(
        (&flows, cut, told),
        (&synced_only, vec![("/a".to_owned(), 60)], 1)
    );
    // Written long after this checkpoint: an old one was put back.
    let hour = |told: &mut Told| told.modified_ns = 3_600_000_000_000;
    let (flows, cut, told) = restarted(&entries, 2, &[("/a", 60)], hour);
    assert_eq!(
        (&flows, cut, told),
        (&synced_only, vec![("/a".to_owned(), 60)], 1)
    );
    // Gone: nothing is there twice, and nothing to say.
    let (flows, cut, told) = restarted(&entries, 1, &[], |_| {});
    assert_eq!((&flows, cut, told), (&synced_only, vec![], 0));
    // Emptied by its owner: it stays so, and what was synced does not come again.
    let (flows, cut, told) = restarted(&entries, 1, &[("/a", 0)], |_| {});
    assert_eq!(
        (&flows, cut, told),
        (&synced_only, vec![("/a".to_owned(), 0)], 0)
    );
}

#[test]
fn a_file_is_cut_by_what_its_latest_output_knows() {
    let renamed = |entry: Entry| match entry {
        Entry::Write(write) => Entry::Write(SavedWrite {
            output: "renamed".into(),
            ..write
        }),
        Entry::Synced {
            path,
            inode,
            birth_ns,
            length,
            at_ns,
            ..
        } => Entry::Synced {
            output: "renamed".into(),
            path,
            inode,
            birth_ns,
            length,
            at_ns,
        },
        other => other,
    };
    let entries = [
        write("/a", 1, 0, 50, &[(1, 50)]),
        synced("/a", 1, 50),
        renamed(write("/a", 1, 50, 60, &[(2, 10)])),
        renamed(synced("/a", 1, 60)),
    ];
    let (flows, cut, told) = restarted(&entries, 2, &[("/a", 70)], |_| {});
    assert_eq!((flows, told), (BTreeMap::from([(1, 50), (2, 10)]), 0));
    assert_eq!(cut, [("/a".to_owned(), 60)]);
}

/// Snapshots and entries mean the same: any entries, once folded and once written anew in between.
#[test]
fn what_is_written_anew_means_the_same_as_what_was_appended() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let (plain, often) = (TestDisk::default(), TestDisk::default());
        let a = open_in(&plain, 1).checkpoint;
        let mut b = open_in(&often, 1).checkpoint;
        let mut lengths = [0_u64; 3];
        let mut offset = [0_u64; 4];
        for _ in 0..40 {
            let file = usize::try_from(dice.roll(3)).expect("small");
            let path = ["/a", "/b", "/c"][file];
            let flow = dice.roll(4);
            let entry = match dice.roll(10) {
                0 => Entry::Forget(key(flow)),
                1 => Entry::Flow(flow_key(flow, "archive"), at(dice.roll(200))),
                2 => Entry::Left {
                    output: "archive".into(),
                    path: path.into(),
                },
                3 | 4 => synced(path, 1, lengths[file] - dice.roll(lengths[file].min(9) + 1)),
                _ => {
                    let from = lengths[file] - dice.roll(lengths[file].min(4) + 1);
                    lengths[file] = from + dice.roll(9);
                    let moved = &mut offset[usize::try_from(flow).expect("small")];
                    *moved += dice.roll(9);
                    write(path, 1, from, lengths[file], &[(flow, *moved)])
                }
            };
            a.append(std::slice::from_ref(&entry)).expect("a good disk");
            b.append(std::slice::from_ref(&entry)).expect("a good disk");
            if dice.roll(5) == 0 {
                // Fails once, and so is written anew.
                often.set_forgetful(DIR, true);
                b.sync().expect_err("the disk forgets");
                often.set_forgetful(DIR, false);
                b.sync().expect("good again");
            }
        }
        let boot = 1 + u128::from(dice.roll(2));
        let there: Vec<(&str, u64)> = ["/a", "/b", "/c"].into_iter().zip(lengths).collect();
        let open = |disk: &TestDisk| {
            let mut told = Told {
                lengths: there
                    .iter()
                    .map(|(path, length)| (path.into(), *length))
                    .collect(),
                ..Told::default()
            };
            let opened = Checkpoint::open(disk.arc(), Path::new(DIR), "node", boot, &mut told);
            let mut files = opened.loaded.files.clone();
            files.iter_mut().for_each(|file| file.at_ns = 0);
            (
                offsets(&opened.loaded),
                told.settled,
                files,
                opened.problems.len(),
            )
        };
        assert_eq!(open(&plain), open(&often), "seed {seed}");
        b = open_in(&often, boot).checkpoint;
        drop(b);
    }
}

#[test]
fn a_sync_with_nothing_new_asks_nothing_of_the_disk() {
    let disk = TestDisk::default();
    let Opened { checkpoint, .. } = open_in(&disk, 1);
    checkpoint.append(&[Entry::Boot(1)]).expect("a good disk");
    checkpoint.sync().expect("a good disk");
    let before = disk.operations();
    checkpoint.sync().expect("a good disk");
    assert_eq!(disk.operations(), before);
}

#[test]
fn many_threads_may_append_and_sync_at_once() {
    let disk = TestDisk::default();
    let checkpoint = Arc::new(open_in(&disk, 1).checkpoint);
    std::thread::scope(|scope| {
        for id in 0..4 {
            let checkpoint = &checkpoint;
            scope.spawn(move || {
                for n in 1..=100 {
                    checkpoint
                        .append(&[Entry::Flow(flow_key(id, "es"), at(n))])
                        .expect("good");
                    checkpoint.sync().expect("good");
                }
            });
        }
    });
    let opened = open_in(&disk.after_power_loss(1), 2);
    assert_eq!(
        offsets(&opened.loaded),
        (0..4).map(|id| (id, 100)).collect()
    );
}

#[test]
fn a_data_dir_that_cannot_be_listed_is_told_and_refuses_no_start() {
    /// Lists nothing and opens nothing.
    #[derive(Debug)]
    struct Locked;
    impl Disk for Locked {
        fn open(
            &self,
            _: &Path,
            _: &Path,
            _: Option<u32>,
        ) -> io::Result<Arc<dyn ringpilot_shared::host::OwnFile>> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
        fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
        fn remove(&self, _: &Path) -> io::Result<()> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
        fn make_dir(&self, _: &Path) -> io::Result<()> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
        fn names(&self, _: &Path) -> io::Result<Vec<std::ffi::OsString>> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
        fn sync_dir(&self, _: &Path) -> io::Result<()> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
        fn space(&self, _: &Path) -> io::Result<ringpilot_shared::host::Space> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
    let opened = Checkpoint::open(Arc::new(Locked), Path::new(DIR), "node", 1, &mut NoFiles);
    assert!(!opened.loaded.fresh, "nobody knows");
    let told: Vec<String> = opened.problems.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(told.join("\n"), @r"
    data_dir=/data: saved positions cannot be read: permission denied; do: let the daemon read and write `data_dir`; until then logs are read again from their start
    data_dir=/data: positions cannot be saved: permission denied; do: let the daemon write `data_dir`; until then a restart reads logs again
    ");
}
