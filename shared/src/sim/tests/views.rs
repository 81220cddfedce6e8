//! What the daemon sees of the machine: through a container's view, through faults, and by its ears.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::follow::{Mount, View};
use crate::host::{Disk, EntryKind, Host};
use crate::sim::{Fault, FileSystem, Machine, Op, Settings};

fn on_the_host() -> View {
    View {
        is_host: true,
        ..View::default()
    }
}

fn container(roots: &[&str], mounts: &[(&str, &str)]) -> View {
    View {
        roots: roots.iter().map(PathBuf::from).collect(),
        mounts: mounts
            .iter()
            .map(|(container, host)| Mount {
                container: PathBuf::from(container),
                host: PathBuf::from(host),
            })
            .collect(),
        ..View::default()
    }
}

fn read(machine: &Machine, view: &View, path: &str) -> io::Result<String> {
    let file = machine.open_log(view, Path::new(path))?;
    let mut bytes = vec![0; 100];
    let length = file.read_at(&mut bytes, 0)?;
    bytes.truncate(length);
    String::from_utf8(bytes).map_err(io::Error::other)
}

fn list(machine: &Machine, view: &View, dir: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    machine.list(view, Path::new(dir), &mut |name, _, _| {
        names.push(name.to_string_lossy().into_owned());
        ControlFlow::Continue(())
    })?;
    names.sort();
    Ok(names)
}

fn of(result: io::Result<String>) -> Result<String, io::ErrorKind> {
    result.map_err(|error| error.kind())
}

#[test]
fn a_container_sees_its_mounts_and_its_roots_and_nothing_else() {
    let machine = Machine::new(1);
    let write = |path: &str| {
        let dir = Path::new(path).parent().expect("absolute");
        machine.make_dir(dir).expect("nothing fails");
        machine
            .append(path, path.as_bytes())
            .expect("nothing fails");
    };
    for path in [
        "/up/etc/app.log",
        "/merged/etc/app.log",
        "/merged/etc/base.log",
        "/vol/a.log",
        "/vol/deep/b.log",
        "/nested/c.log",
        "/secret.log",
        "/single.log",
    ] {
        write(path);
    }
    machine
        .symlink("/etc/app.log", "/vol/to_root")
        .expect("new");
    machine
        .symlink("../../../secret.log", "/vol/out")
        .expect("new");
    machine
        .symlink("/logs/deep", "/up/etc/to_mount")
        .expect("new");
    machine.symlink("loop", "/vol/loop").expect("new");
    machine.make_fifo("/vol/fifo").expect("new");
    let view = container(
        &["/up", "/merged"],
        &[
            ("/logs/nested", "/nested"),
            ("/logs", "/vol"),
            ("/opt/one.log", "/single.log"),
        ],
    );
    let seen = |path| of(read(&machine, &view, path));
    assert_eq!(seen("/etc/app.log").as_deref(), Ok("/up/etc/app.log"));
    assert_eq!(seen("/etc/base.log").as_deref(), Ok("/merged/etc/base.log"));
    assert_eq!(seen("/logs/a.log").as_deref(), Ok("/vol/a.log"));
    assert_eq!(seen("/logs/nested/c.log").as_deref(), Ok("/nested/c.log"));
    assert_eq!(seen("/logs/nested/../a.log").as_deref(), Ok("/vol/a.log"));
    assert_eq!(seen("/logs/to_root").as_deref(), Ok("/up/etc/app.log"));
    assert_eq!(
        seen("/etc/to_mount/b.log").as_deref(),
        Ok("/vol/deep/b.log")
    );
    assert_eq!(seen("/opt/one.log").as_deref(), Ok("/single.log"));
    assert_eq!(seen("/logs/out"), Err(io::ErrorKind::NotFound));
    assert_eq!(seen("/logs/loop"), Err(io::ErrorKind::InvalidInput));
    assert_eq!(seen("/logs/fifo"), Err(io::ErrorKind::InvalidInput));
    assert_eq!(seen("/logs/deep"), Err(io::ErrorKind::InvalidInput));
    assert_eq!(seen("logs/a.log"), Err(io::ErrorKind::InvalidInput));
    assert_eq!(seen("/opt/one.log/x"), Err(io::ErrorKind::NotADirectory));
    assert_eq!(
        list(&machine, &view, "/etc").expect("it is there"),
        ["app.log", "base.log", "to_mount"]
    );
    assert_eq!(
        list(&machine, &view, "/").expect("it is there"),
        ["etc", "logs", "opt"]
    );
    assert_eq!(
        list(&machine, &view, "/logs").expect("it is there"),
        ["a.log", "deep", "fifo", "loop", "nested", "out", "to_root"]
    );
    // Nothing is known of the container but its volumes.
    let rootless = container(&[], &[("/logs/nested", "/nested"), ("/logs", "/vol")]);
    assert_eq!(
        of(read(&machine, &rootless, "/logs/a.log")).as_deref(),
        Ok("/vol/a.log")
    );
    let root = of(read(&machine, &rootless, "/etc/app.log"));
    assert_eq!(root, Err(io::ErrorKind::NotFound));
    assert_eq!(
        list(&machine, &rootless, "/").expect("its mounts"),
        ["logs"]
    );
}

#[test]
fn a_folder_of_any_size_is_listed_while_others_change_it() {
    let machine = Machine::new(1);
    machine.make_dir("/many").expect("new");
    for n in 0..1_000 {
        machine.create(format!("/many/{n}")).expect("new");
    }
    let mut told = 0;
    machine
        .list(&on_the_host(), Path::new("/many"), &mut |name, kind, _| {
            assert_eq!(kind, EntryKind::File);
            // The listing must not be in the way of what its hearer does.
            machine
                .delete(Path::new("/many").join(name))
                .expect("it is there");
            told += 1;
            ControlFlow::Continue(())
        })
        .expect("it is there");
    assert_eq!(told, 1_000);
    for n in 0..300 {
        machine.create(format!("/many/{n}")).expect("new");
    }
    let mut told = 0;
    machine
        .list(&on_the_host(), Path::new("/many"), &mut |_, _, _| {
            told += 1;
            if told < 200 {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })
        .expect("it is there");
    assert_eq!(told, 200);
}

#[test]
fn what_cannot_be_read_gives_its_error_and_nothing_more() {
    let machine = Machine::with(
        1,
        Settings {
            short_reads: 0.5,
            ..Settings::default()
        },
    );
    machine.make_dir("/logs/sub").expect("new");
    machine.append("/logs/a", &[b'a'; 100]).expect("new");
    machine.forbid("/logs/sub", true).expect("it is there");
    machine.set_bad("/logs/a", 40..50).expect("it is there");
    let (host, mut buffer) = (on_the_host(), [0; 100]);
    let file = machine
        .open_log(&host, Path::new("/logs/a"))
        .expect("it is there");
    let mut at = 0;
    while at < 40 {
        let length = file.read_at(&mut buffer, at).expect("before the bad part");
        assert!(length > 0);
        at += length as u64;
    }
    assert_eq!(at, 40);
    let error = file.read_at(&mut buffer, 49).expect_err("the bad part");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(file.read_at(&mut buffer, 50).expect("behind it") > 0);
    let denied = list(&machine, &host, "/logs/sub").expect_err("forbidden");
    assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
    machine.forbid("/logs/a", true).expect("it is there");
    let denied = of(read(&machine, &host, "/logs/a"));
    assert_eq!(denied, Err(io::ErrorKind::PermissionDenied));
    machine.forbid("/logs/a", false).expect("it is there");
    machine.fail(
        Fault::new(&[Op::List], "/logs", libc::EIO)
            .after(1)
            .times(2),
    );
    let listed: Vec<bool> = (0..4)
        .map(|_| list(&machine, &host, "/logs").is_ok())
        .collect();
    assert_eq!(listed, [true, false, false, true]);
}

#[test]
fn a_full_disk_takes_what_fits_and_all_again_once_there_is_room() {
    let machine = Machine::new(1);
    let small = FileSystem {
        total_bytes: 10 * 4096,
        may_hang: true,
        ..FileSystem::default()
    };
    machine.mount("/data", small).expect("new");
    let path = Path::new("/data/f");
    let file = Disk::open(&machine, Path::new("/data"), path, Some(0o640)).expect("new");
    assert_eq!(machine.mode(path).expect("made"), 0o640);
    assert!(file.stat().expect("open").may_hang);
    let write = |at, length| file.write_at(&[io::IoSlice::new(&vec![b'x'; length])], at);
    write(0, 9 * 4096).expect("it fits");
    let full = write(9 * 4096, 5_000).expect_err("one block is left");
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    assert_eq!(file.stat().expect("open").size, 10 * 4096);
    assert_eq!(machine.space(path).expect("there").free, 0);
    write(100, 500).expect("that is occupied already");
    machine
        .append("/data/other", b"x")
        .expect_err("nor may others");
    file.set_len(4096).expect("a cut needs no room");
    assert_eq!(machine.space(path).expect("there").free, 9 * 4096);
    machine.append("/data/other", &[0; 9_000]).expect("it fits");
    assert_eq!(machine.space(path).expect("there").free, 6 * 4096);
    machine.delete("/data/other").expect("there");
    machine.set_free("/data", 100 * 4096).expect("there");
    write(4096, 90 * 4096).expect("it fits");
    let read_only = machine.fail(Fault::read_only("/data"));
    let refused = write(0, 1).expect_err("read-only");
    assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
    Disk::remove(&machine, path).expect_err("read-only");
    machine.heal(read_only);
    write(0, 1).expect("healed");
}

#[test]
fn our_own_files_are_never_found_through_a_link() {
    let machine = Machine::new(1);
    machine.make_dir("/real/out").expect("new");
    machine.symlink("/real", "/data").expect("new");
    machine.symlink("/etc", "/real/link").expect("new");
    machine.make_dir("/etc").expect("new");
    machine.make_fifo("/real/fifo").expect("new");
    let open = |path: &str| {
        Disk::open(&machine, Path::new("/data"), Path::new(path), Some(0o600))
            .map(drop)
            .map_err(|error| error.kind())
    };
    assert_eq!(open("/data/out/file"), Ok(()));
    assert_eq!(open("/data/missing/file"), Err(io::ErrorKind::NotFound));
    for refused in [
        "/data/link",
        "/data/link/file",
        "/data/out/../x",
        "/data/out",
        "/data/fifo",
        "/data/fifo/file",
        "/data",
        "/elsewhere",
    ] {
        assert_eq!(open(refused), Err(io::ErrorKind::InvalidInput), "{refused}");
    }
    assert!(machine.kind("/real/out/file").is_some());
}

#[test]
fn a_change_is_told_once_and_only_to_who_watches() {
    let machine = Machine::new(1);
    machine.make_dir("/logs").expect("new");
    machine.make_dir("/other").expect("new");
    let ears = machine.wakes().expect("nothing fails");
    let watch = ears
        .watch(&on_the_host(), Path::new("/logs"))
        .expect("there");
    let wait = || ears.wait(Duration::from_secs(1));
    assert_eq!(wait(), crate::host::Woken::default());
    machine.append("/logs/a", b"1").expect("nothing fails");
    machine.append("/logs/a", b"2").expect("nothing fails");
    machine.append("/other/a", b"2").expect("nothing fails");
    let woken = wait();
    let a = (watch, Some("a".into()));
    assert_eq!(
        (woken.changed.contains(&a), woken.written.contains(&a)),
        (true, true)
    );
    assert_eq!((woken.changed.len(), woken.written.len()), (1, 1));
    assert_eq!(wait(), crate::host::Woken::default());
    let mut writer = machine.writer("/logs/a").expect("there");
    machine.rename("/logs/a", "/logs/b").expect("there");
    let both = [(watch, Some("a".into())), (watch, Some("b".into()))];
    assert_eq!(wait().changed, both.into());
    writer.write(b"3").expect("open");
    assert_eq!(wait().written, [(watch, Some("b".into()))].into());
    ears.wake();
    assert!(wait().called);
    machine.lose_wakes(1.0);
    machine.append("/logs/b", b"4").expect("nothing fails");
    machine.lose_wakes(0.0);
    assert_eq!(wait(), crate::host::Woken::default());
    machine.append("/logs/b", b"4").expect("nothing fails");
    machine.overflow_wakes();
    let woken = wait();
    assert!(woken.overflow && woken.changed.is_empty());
    machine.limit_watches(1);
    let full = ears
        .watch(&on_the_host(), Path::new("/other"))
        .expect_err("one");
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    machine.delete_tree("/logs").expect("there");
    assert_eq!(wait().gone, [watch]);
    machine.limit_watches(9);
    let watch = ears
        .watch(&on_the_host(), Path::new("/other"))
        .expect("there");
    ears.unwatch(watch);
    machine.append("/other/a", b"5").expect("nothing fails");
    assert_eq!(wait(), crate::host::Woken::default());
    machine.kill();
    ears.watch(&on_the_host(), Path::new("/other"))
        .expect_err("dead");
}
