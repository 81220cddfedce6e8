//! What changes in a watched directory wakes who waits, and whatever is missed is said to be missed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use ringpilot_shared::follow::View;
use ringpilot_shared::follow::wake::WatchLimit;
use ringpilot_shared::host::{Host, RealHost, Wakes, WatchId};

/// Longer than any event takes; only a failing test waits for it.
const LONG: Duration = Duration::from_secs(20);

fn wakes() -> Arc<dyn Wakes> {
    RealHost::new().wakes().unwrap()
}

fn here() -> View {
    View {
        host_root: "/".into(),
        is_host: true,
        ..View::default()
    }
}

/// What one call of `wait` tells of one watch; the directory itself is the empty name.
fn told(wakes: &dyn Wakes, watch: WatchId) -> BTreeSet<String> {
    let woken = wakes.wait(LONG);
    assert!(!woken.overflow);
    let mut all = woken.changed;
    all.extend(woken.written);
    all.into_iter()
        .filter(|(told, _)| *told == watch)
        .map(|(_, name)| name.unwrap_or_default().into_string().unwrap())
        .collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_name_that_is_made_written_renamed_or_removed_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let wakes = wakes();
    let watch = wakes.watch(&here(), folder.path()).unwrap();
    assert!(wakes.wait(Duration::ZERO).changed.is_empty());

    let mut log = File::create(at("a.log")).unwrap();
    assert_eq!(told(&*wakes, watch), set(&["a.log"]));
    for _ in 0..1000 {
        log.write_all(b"line\n").unwrap();
        log.flush().unwrap();
    }
    // What is only written to may wait for more; a name may not.
    let woken = wakes.wait(LONG);
    assert_eq!(woken.written, [(watch, Some("a.log".into()))].into());
    assert!(!woken.is_urgent());
    log.set_len(0).unwrap();
    assert_eq!(told(&*wakes, watch), set(&["a.log"]));
    fs::rename(at("a.log"), at("a.log.1")).unwrap();
    assert_eq!(told(&*wakes, watch), set(&["a.log", "a.log.1"]));
    // It is still written by its old handle, and after its name is gone.
    log.write_all(b"late\n").unwrap();
    assert_eq!(told(&*wakes, watch), set(&["a.log.1"]));
    fs::remove_file(at("a.log.1")).unwrap();
    assert_eq!(told(&*wakes, watch), set(&["a.log.1"]));
    fs::create_dir(at("sub")).unwrap();
    assert_eq!(told(&*wakes, watch), set(&["sub"]));
    wakes.unwatch(watch);
    File::create(at("b.log")).unwrap();
    assert_eq!(
        wakes.wait(Duration::ZERO),
        ringpilot_shared::host::Woken::default()
    );
}

#[test]
fn a_call_ends_the_present_wait_or_the_next() {
    let wakes = wakes();
    wakes.wake();
    wakes.wake();
    assert!(wakes.wait(LONG).called);
    assert!(!wakes.wait(Duration::ZERO).called);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wakes.wait(LONG));
        wakes.wake();
        assert!(waiting.join().unwrap().called);
    });
    assert!(begun.elapsed() < LONG);
    assert!(!wakes.wait(Duration::from_micros(1)).called);
}

#[test]
fn a_directory_that_two_containers_share_is_told_to_both_and_kept_until_the_last_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let wakes = wakes();
    let first = wakes.watch(&here(), folder.path()).unwrap();
    let second = wakes.watch(&here(), folder.path()).unwrap();
    assert_ne!(first, second);
    File::create(folder.path().join("a")).unwrap();
    assert_eq!(
        wakes.wait(LONG).changed,
        [(first, Some("a".into())), (second, Some("a".into()))].into()
    );
    wakes.unwatch(first);
    File::create(folder.path().join("b")).unwrap();
    assert_eq!(
        wakes.wait(LONG).changed,
        [(second, Some("b".into()))].into()
    );
}

#[test]
fn a_directory_that_is_removed_is_told_as_gone_and_one_that_is_moved_as_changed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    let wakes = wakes();
    let watch = wakes.watch(&here(), &at("dir")).unwrap();
    fs::rename(at("dir"), at("moved")).unwrap();
    assert_eq!(told(&*wakes, watch), set(&[""]));
    fs::remove_dir(at("moved")).unwrap();
    let woken = wakes.wait(LONG);
    assert_eq!(woken.gone, [watch]);
    wakes.unwatch(watch);
    let error = wakes.watch(&here(), &at("dir")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_file_behind_a_link_can_be_watched_itself() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("far")).unwrap();
    let mut log = File::create(at("far/real.log")).unwrap();
    symlink("far/real.log", at("link.log")).unwrap();
    let wakes = wakes();
    let watch = wakes.watch(&here(), &at("link.log")).unwrap();
    log.write_all(b"line\n").unwrap();
    assert_eq!(told(&*wakes, watch), set(&[""]));
}

#[test]
fn lost_events_are_said_to_be_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    File::create(&a).unwrap();
    let wakes = wakes();
    wakes.watch(&here(), folder.path()).unwrap();
    let queue: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    for _ in 0..queue.div_ceil(4) + 1 {
        fs::rename(&a, &b).unwrap();
        fs::rename(&b, &a).unwrap();
    }
    let woken = wakes.wait(LONG);
    assert!(woken.overflow);
    assert_eq!(woken.changed.len(), 2);
    fs::rename(&a, &b).unwrap();
    assert!(!wakes.wait(LONG).overflow);
}

struct Overlay(PathBuf);

impl Drop for Overlay {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap_or_default();
    }
}

/// A container writes in its merged tree, and the upper directory alone would tell of new names only.
#[test]
fn what_a_container_writes_in_its_own_file_system_wakes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for dir in ["lower/logs", "upper", "work", "merged"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    File::create(at("lower/logs/image.log")).unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("lower").display(),
        at("upper").display(),
        at("work").display()
    );
    let none = MsFlags::empty();
    if mount(
        Some("overlay"),
        &at("merged"),
        Some("overlay"),
        none,
        Some(options.as_str()),
    )
    .is_err()
    {
        return crate::not_tested("an overlay cannot be mounted here");
    }
    let overlay = Overlay(at("merged"));
    let view = View {
        host_root: "/".into(),
        roots: vec![at("upper"), at("merged")],
        ..View::default()
    };
    let wakes = wakes();
    let watch = wakes.watch(&view, Path::new("/logs")).unwrap();
    let mut log = File::create(at("merged/logs/a.log")).unwrap();
    assert!(told(&*wakes, watch).contains("a.log"));
    // Now that the directory has come to be in the upper one, that can be watched as well.
    let both = wakes.watch(&view, Path::new("/logs")).unwrap();
    wakes.unwatch(watch);
    wakes.wait(Duration::ZERO);
    log.write_all(b"line\n").unwrap();
    assert_eq!(told(&*wakes, both), set(&["a.log"]));
    File::create(at("merged/logs/b.log")).unwrap();
    assert_eq!(told(&*wakes, both), set(&["b.log"]));
    // The container ends: its merged tree goes, the upper directory stays and tells on.
    drop(log);
    drop(overlay);
    wakes.wait(Duration::ZERO);
    fs::write(at("upper/logs/a.log"), "changed").unwrap();
    assert!(told(&*wakes, both).contains("a.log"));
}

#[test]
fn the_limit_of_watches_is_told_with_its_cure() {
    let limited = Command::new("unshare")
        .args(["-U", "-r", "sh", "-c"])
        .arg("echo 3 > /proc/sys/user/max_inotify_watches && exec \"$0\" \"$@\"")
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_change_wakes::within_a_limit_of_three_watches",
            "--ignored",
        ])
        .output();
    let Ok(limited) = limited.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    else {
        return crate::not_tested("there is no `unshare`");
    };
    if !limited.contains("running 1 test") {
        return crate::not_tested("no user namespace can be made here");
    }
    assert!(limited.contains("1 passed"), "{limited}");
}

#[test]
#[ignore = "run by another, in a namespace with that limit"]
fn within_a_limit_of_three_watches() {
    let folder = tempfile::tempdir().unwrap();
    let dirs: Vec<_> = (0..4).map(|n| folder.path().join(n.to_string())).collect();
    let wakes = wakes();
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
    }
    let watches: Vec<_> = dirs[..3]
        .iter()
        .map(|dir| wakes.watch(&here(), dir).unwrap())
        .collect();
    let error = wakes.watch(&here(), &dirs[3]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    let limit = WatchLimit::of(&error).unwrap();
    assert!(
        error
            .to_string()
            .starts_with("the kernel's limit of inotify watches is reached")
    );
    assert!(limit.cure().contains("sysctl fs.inotify.max_user_watches="));
    // What is watched stays so, and one that leaves makes room.
    File::create(dirs[0].join("a")).unwrap();
    assert_eq!(wakes.wait(LONG).changed.len(), 1);
    wakes.unwatch(watches[0]);
    wakes.watch(&here(), &dirs[3]).unwrap();
}
