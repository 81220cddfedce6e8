//! What stays after a death and after a power loss, and what may not.

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::follow::View;
use crate::host::{Disk, EntryKind, Host, OwnFile};
use crate::sim::{
    Fault, FileSystem, InodeNumbers, Machine, Op, PowerLoss, Rng, Settings, Survival,
};

const DIR: &str = "/data";

fn machine(seed: u64) -> Machine {
    let machine = Machine::new(seed);
    machine
        .make_dir(DIR)
        .expect("a fresh machine takes a directory");
    machine.reboot();
    machine
}

fn open(machine: &Machine, path: &str) -> io::Result<Arc<dyn OwnFile>> {
    Disk::open(machine, Path::new(DIR), Path::new(path), Some(0o600))
}

fn write(file: &dyn OwnFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
    file.write_at(&[IoSlice::new(bytes)], offset)
}

fn on_the_host() -> View {
    View {
        is_host: true,
        ..View::default()
    }
}

const LOSSES: [PowerLoss; 3] = [
    PowerLoss {
        writes: Survival::AnyOrder,
        names: Survival::AnyOrder,
        workloads: None,
    },
    PowerLoss {
        writes: Survival::InOrder,
        names: Survival::InOrder,
        workloads: Some(Survival::InOrder),
    },
    PowerLoss {
        writes: Survival::AnyOrder,
        names: Survival::InOrder,
        workloads: Some(Survival::AnyOrder),
    },
];

/// Replaces a file by the book: beside it, synced, renamed, the directory synced.
fn replace(machine: &Machine, bytes: &[u8]) -> io::Result<()> {
    let beside = open(machine, "/data/state.new")?;
    beside.set_len(0)?;
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    beside.write_at(&[IoSlice::new(head), IoSlice::new(tail)], 0)?;
    beside.sync()?;
    Disk::rename(
        machine,
        Path::new("/data/state.new"),
        Path::new("/data/state"),
    )?;
    machine.sync_dir(Path::new(DIR))
}

#[test]
fn a_file_replaced_by_the_book_is_old_or_new_after_a_crash_anywhere() {
    let (old, new) = (vec![b'o'; 3_000], vec![b'n'; 5_000]);
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let machine = machine(seed);
        replace(&machine, &old).expect("nothing fails yet");
        let steps = machine.own_ops();
        machine.crash_at(steps + rng.below(8));
        let done = replace(&machine, &new);
        assert_eq!(done.is_err(), machine.has_crashed());
        if rng.chance(0.3) {
            machine.kill();
            let content = machine.content("/data/state").expect("it is there");
            assert!(content == old || content == new, "seed {seed}");
        }
        let loss = *rng.pick(&LOSSES);
        machine.power_loss(&mut rng, loss);
        let content = machine.content("/data/state").expect("it is there");
        assert!(content == old || content == new, "seed {seed} {loss:?}");
        assert!(done.is_err() || content == new, "seed {seed} {loss:?}");
    }
}

#[test]
fn each_sync_that_is_left_out_is_missed_by_some_power_loss() {
    // Without the file's sync, without the directory's: content that is neither, a name that is gone.
    let (mut torn, mut gone) = (0, 0);
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let machine = machine(seed);
        let file = open(&machine, "/data/a").expect("nothing fails");
        write(&*file, 0, &[b'a'; 2_000]).expect("nothing fails");
        machine.sync_dir(Path::new(DIR)).expect("nothing fails");
        let file = open(&machine, "/data/b").expect("nothing fails");
        write(&*file, 0, b"whole").expect("nothing fails");
        file.sync().expect("nothing fails");
        machine.power_loss(&mut rng, PowerLoss::default());
        let a = machine.content("/data/a").expect("its name was synced");
        torn += u32::from(!a.is_empty() && a != [b'a'; 2_000]);
        match machine.content("/data/b") {
            Ok(b) => assert_eq!(b, b"whole"),
            Err(_) => gone += 1,
        }
    }
    assert!(torn > 20 && gone > 20, "{torn} {gone}");
}

#[test]
fn what_was_synced_stays_whatever_is_done_after() {
    for seed in 0..400 {
        let mut rng = Rng::new(seed);
        let machine = machine(seed);
        let file = open(&machine, "/data/f").expect("nothing fails");
        machine.sync_dir(Path::new(DIR)).expect("nothing fails");
        let mut model = Vec::new();
        for _ in 0..rng.below(6) {
            let (at, length) = (rng.below(9_000), 1 + rng.index(6_000));
            let bytes = rng.bytes(length);
            write(&*file, at, &bytes).expect("nothing fails");
            let start = usize::try_from(at).expect("small");
            model.resize(model.len().max(start + length), 0);
            model[start..start + length].copy_from_slice(&bytes);
            if rng.chance(0.3) {
                let length = rng.index(9_000);
                file.set_len(length as u64).expect("nothing fails");
                model.resize(length, 0);
            }
        }
        file.sync().expect("nothing fails");
        let synced = model.len();
        // From here on only behind what was synced.
        for _ in 0..rng.below(6) {
            let (at, length) = (rng.below(3_000), 1 + rng.index(3_000));
            let bytes = vec![0xEE; length];
            write(&*file, synced as u64 + at, &bytes).expect("nothing fails");
            if rng.chance(0.3) {
                let length = synced as u64 + rng.below(4_000);
                file.set_len(length).expect("nothing fails");
            }
        }
        let loss = *rng.pick(&LOSSES);
        machine.power_loss(&mut rng, loss);
        let left = machine.content("/data/f").expect("its name was synced");
        assert_eq!(left[..synced], model, "seed {seed} {loss:?}");
        assert!(left[synced..].iter().all(|byte| [0, 0xEE].contains(byte)));
        // And it is safe from then on.
        machine.power_loss(&mut rng, loss);
        assert_eq!(machine.content("/data/f").expect("it is there"), left);
    }
}

#[test]
fn a_failed_sync_is_not_made_good_by_a_later_one() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..100 {
        let machine = machine(seed);
        let file = open(&machine, "/data/f").expect("nothing fails");
        machine.sync_dir(Path::new(DIR)).expect("nothing fails");
        write(&*file, 0, b"before").expect("nothing fails");
        machine.fail(Fault::new(&[Op::Sync], DIR, libc::EIO).once());
        let failed = file.sync().expect_err("as told");
        assert_eq!(failed.raw_os_error(), Some(libc::EIO));
        write(&*file, 6, b" after").expect("nothing fails");
        file.sync().expect("only once");
        assert_eq!(
            machine.content("/data/f").expect("it is there"),
            b"before after"
        );
        machine.power_loss(&mut Rng::new(seed), PowerLoss::default());
        let left = machine.content("/data/f").expect("its name was synced");
        assert_eq!(&left[6..], b" after", "seed {seed}");
        match &left[..6] {
            b"before" => kept += 1,
            _ => lost += 1,
        }
    }
    assert!(lost > 10 && kept > 10, "{lost} {kept}");
}

#[test]
fn a_death_takes_what_was_open_and_nothing_that_was_written() {
    let machine = machine(1);
    machine
        .append("/logs.txt", b"line\n")
        .expect("nothing fails");
    let log = machine
        .open_log(&on_the_host(), Path::new("/logs.txt"))
        .expect("it is there");
    let own = open(&machine, "/data/f").expect("nothing fails");
    write(&*own, 0, b"unsynced").expect("nothing fails");
    let inode = log.stat().expect("it is open").inode;
    machine.delete("/logs.txt").expect("it is there");
    machine.create("/other").expect("nothing fails");
    assert_ne!(
        machine.stat("/other").expect("made").inode,
        inode,
        "still open"
    );
    machine.kill();
    assert_eq!(
        machine.content("/data/f").expect("it is there"),
        b"unsynced"
    );
    log.stat().expect_err("its process is gone");
    write(&*own, 0, b"no").expect_err("its process is gone");
    machine.create("/another").expect("nothing fails");
    assert_eq!(
        machine.stat("/another").expect("made").inode,
        inode,
        "free again"
    );
}

#[test]
fn a_crash_tears_the_write_it_comes_in_and_stops_all_after_it() {
    let mut lengths = HashSet::new();
    for seed in 0..50 {
        let machine = machine(seed);
        let file = open(&machine, "/data/f").expect("nothing fails");
        machine.crash_at(machine.own_ops() + 1);
        write(&*file, 0, b"first").expect("one more");
        let error = write(&*file, 5, &[b'x'; 1_000]).expect_err("it crashes");
        assert_eq!(error.kind(), io::ErrorKind::Other);
        write(&*file, 5, b"more").expect_err("it has crashed");
        let mut buffer = [0; 10];
        file.read_at(&mut buffer, 0).expect_err("it has crashed");
        machine.names(DIR).expect("others go on");
        machine.kill();
        let content = machine.content("/data/f").expect("it is there");
        assert!(content.starts_with(b"first"));
        lengths.insert(content.len());
        let file = open(&machine, "/data/f").expect("alive again");
        write(&*file, 0, b"again").expect("alive again");
    }
    assert!(lengths.len() > 20 && lengths.iter().all(|length| *length < 1_005));
}

#[test]
fn a_workloads_log_loses_its_unsynced_tail_only_where_that_is_asked_for() {
    let (mut shorter, mut renamed_back) = (0, 0);
    for seed in 0..200 {
        let mut rng = Rng::new(seed);
        let machine = machine(seed);
        machine
            .append("/app.log", &[b'a'; 500])
            .expect("nothing fails");
        machine.pass(Duration::from_secs(31));
        machine
            .append("/app.log", &[b'b'; 500])
            .expect("nothing fails");
        machine
            .rename("/app.log", "/app.log.1")
            .expect("it is there");
        machine.power_loss(&mut rng, PowerLoss::default());
        assert_eq!(machine.content("/app.log.1").expect("kept").len(), 1_000);

        machine
            .append("/app.log.1", &[b'c'; 500])
            .expect("nothing fails");
        machine
            .rename("/app.log.1", "/app.log.2")
            .expect("it is there");
        let loss = *rng.pick(&LOSSES[1..]);
        machine.power_loss(&mut rng, loss);
        let content = match machine.content("/app.log.2") {
            Ok(content) => content,
            Err(_) => {
                renamed_back += 1;
                machine.content("/app.log.1").expect("one of both")
            }
        };
        assert_eq!(content[..500], [b'a'; 500]);
        assert_eq!(content[500..1_000], [b'b'; 500]);
        shorter += u32::from(content.len() < 1_500);
    }
    assert!(
        shorter > 20 && renamed_back > 20,
        "{shorter} {renamed_back}"
    );
}

fn all_names(machine: &Machine, dir: &Path, into: &mut Vec<PathBuf>) {
    for name in machine.names(dir).expect("it is a directory") {
        let path = dir.join(name);
        if machine.kind(&path) == Some(EntryKind::Directory) {
            all_names(machine, &path, into);
        }
        into.push(path);
    }
}

/// Names and inode numbers go through any history and any power loss without two files in one inode.
#[test]
fn no_power_loss_makes_two_files_of_one_inode() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let root = FileSystem {
            inode_numbers: *rng.pick(&[InodeNumbers::LowestFree, InodeNumbers::LastFreed]),
            ..FileSystem::default()
        };
        let machine = Machine::with(
            seed,
            Settings {
                root,
                ..Settings::default()
            },
        );
        let paths = ["/a", "/b", "/c", "/d/a", "/d/b", "/e/d/a", "/e"];
        for round in 0..3 {
            for _ in 0..40 {
                let (from, to) = (*rng.pick(&paths), *rng.pick(&paths));
                // Many of these must fail; what succeeds is enough.
                let _done = match rng.below(8) {
                    0 => machine.create(from),
                    1 => machine.append(from, from.as_bytes()),
                    2 => machine.delete(from),
                    3 => machine.link(from, to),
                    4 => machine.make_dir("/d"),
                    5 => machine.make_dir("/e"),
                    6 => machine
                        .rename("/d", "/e/d")
                        .or_else(|_| machine.rename("/e/d", "/d")),
                    _ if rng.chance(0.5) => Disk::rename(&machine, Path::new(from), Path::new(to)),
                    _ => machine.rename(from, to),
                };
                if rng.chance(0.05) {
                    machine.sync_dir(Path::new("/")).expect("it is there");
                }
            }
            let loss = PowerLoss {
                workloads: Some(*rng.pick(&[Survival::InOrder, Survival::AnyOrder])),
                ..*rng.pick(&LOSSES)
            };
            machine.power_loss(&mut rng, loss);
            let mut names = Vec::new();
            all_names(&machine, Path::new("/"), &mut names);
            let mut links = 0_i64;
            let mut inodes = HashSet::new();
            for path in names {
                let is_file = machine.kind(&path) == Some(EntryKind::File);
                let stat = machine.stat(&path).expect("it is named");
                links += i64::from(is_file);
                if inodes.insert(stat.inode) {
                    links -= if is_file { stat.links.cast_signed() } else { 0 };
                } else {
                    assert!(is_file && stat.links > 1, "seed {seed}");
                }
            }
            assert_eq!(links, 0, "each name is one link, seed {seed}");
            let fresh = format!("/fresh{round}");
            machine.create(&fresh).expect("the name is free");
            let inode = machine.stat(&fresh).expect("made").inode;
            assert!(inodes.insert(inode), "seed {seed}");
        }
    }
}

#[test]
fn a_reboot_changes_the_boot_and_the_numbers_of_devices_and_nothing_else() {
    let machine = machine(3);
    machine
        .mount(
            "/mnt",
            FileSystem {
                has_birth_times: false,
                ..FileSystem::default()
            },
        )
        .expect("a fresh directory");
    machine.append("/a", b"1").expect("nothing fails");
    machine.append("/mnt/a", b"2").expect("nothing fails");
    let crosses = machine
        .rename("/a", "/mnt/b")
        .expect_err("another file system");
    assert_eq!(crosses.kind(), io::ErrorKind::CrossesDevices);
    let mut writer = machine.writer("/a").expect("it is there");
    let (boot, now) = (machine.boot_id(), machine.now());
    let before = [machine.stat("/a"), machine.stat("/mnt/a")].map(|stat| stat.expect("there"));
    assert_ne!(before[0].device, before[1].device);
    assert_eq!(
        (before[0].birth_ns.is_some(), before[1].birth_ns),
        (true, None)
    );
    let mut devices = HashSet::new();
    for _ in 0..10 {
        machine.reboot();
        let after = [machine.stat("/a"), machine.stat("/mnt/a")].map(|stat| stat.expect("there"));
        for (before, after) in before.iter().zip(&after) {
            devices.insert(after.device);
            assert_eq!(after.birth_ns, before.birth_ns);
            assert_eq!((after.inode, after.size), (before.inode, before.size));
        }
        assert_ne!(after[0].device, after[1].device);
    }
    assert!(devices.len() > 1, "numbers change hands");
    writer
        .write(b"more")
        .expect_err("it was open before the reboot");
    assert_ne!(machine.boot_id(), boot);
    assert!(machine.now() >= now);
}
