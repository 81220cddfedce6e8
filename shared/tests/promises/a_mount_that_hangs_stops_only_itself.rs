//! A network or user-space mount that does not answer costs its own logs, and nobody else's.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use ringpilot_shared::follow::{Mount, View};
use ringpilot_shared::host::{Host, RealHost};

use crate::hanging_mount::{HangingMount, LOOKUP, READ, TEXT};

const DEADLINE: Duration = Duration::from_millis(200);

/// A container whose `/far` is on that mount and whose `/near` is a folder.
fn view(far: &Path, near: &Path) -> View {
    let mount = |container: &str, host: &Path| Mount {
        container: container.into(),
        host: host.into(),
    };
    View {
        host_root: "/".into(),
        mounts: vec![mount("/near", near), mount("/far", far)],
        ..View::default()
    }
}

fn list(host: &RealHost, view: &View, dir: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    host.list(view, Path::new(dir), &mut |name, _, _| {
        names.push(name.to_string_lossy().into_owned());
        ControlFlow::Continue(())
    })?;
    Ok(names)
}

fn mounts() -> Option<(HangingMount, HangingMount)> {
    let mounts = HangingMount::new().zip(HangingMount::new());
    if mounts.is_none() {
        crate::not_tested("nothing can be mounted here: it needs /dev/fuse and root");
    }
    mounts
}

#[test]
fn a_read_that_hangs_is_given_up_once_and_then_refused_until_the_mount_answers() {
    let Some((far, other)) = mounts() else { return };
    let near = tempfile::tempdir().unwrap();
    std::fs::write(near.path().join("app.log"), "near").unwrap();
    let host = RealHost::with_deadline(DEADLINE);
    let view = view(far.path(), near.path());
    let other_view = View {
        mounts: vec![Mount {
            container: "/far".into(),
            host: other.path().into(),
        }],
        ..view.clone()
    };
    let path = Path::new("/far/app.log");
    let log = host.open_log(&view, path).unwrap();
    let fine = host.open_log(&other_view, path).unwrap();
    let mut buffer = [0; 100];
    let len = log.read_at(&mut buffer, 2).unwrap();
    assert_eq!(&buffer[..len], &TEXT[2..]);
    let stat = log.stat().unwrap();
    assert!(stat.may_hang && stat.size == TEXT.len() as u64);
    assert_eq!(list(&host, &view, "/far").unwrap(), ["app.log"]);

    far.hold(READ);
    let begun = Instant::now();
    let error = log.read_at(&mut buffer, 0).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    assert!(begun.elapsed() >= DEADLINE);
    let begun = Instant::now();
    for _ in 0..100 {
        for error in [
            log.read_at(&mut buffer, 0).unwrap_err(),
            log.stat().unwrap_err(),
            host.open_log(&view, path).unwrap_err(),
            list(&host, &view, "/far").unwrap_err(),
        ] {
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        }
        // The others go on.
        assert_eq!(fine.read_at(&mut buffer, 0).unwrap(), TEXT.len());
        assert_eq!(list(&host, &view, "/near").unwrap(), ["app.log"]);
        host.open_log(&view, Path::new("/near/app.log")).unwrap();
    }
    assert!(begun.elapsed() < DEADLINE * 20, "each waited anew");
    assert_eq!(far.held(), 1, "more than one thread is stuck");
    // Closing asks the server, too: it must not be done here.
    drop(log);
    far.release();
    let log = loop {
        match host.open_log(&view, path) {
            Ok(log) => break log,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}"),
        }
        std::thread::yield_now();
    };
    assert_eq!(log.read_at(&mut buffer, 0).unwrap(), TEXT.len());
}

#[test]
fn a_walk_into_a_mount_that_hangs_is_given_up_and_a_link_out_of_it_still_leads_into_the_container()
{
    let Some((far, other)) = mounts() else { return };
    let near = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/far/app.log", near.path().join("link.log")).unwrap();
    let host = RealHost::with_deadline(DEADLINE);
    let mut view = view(far.path(), near.path());
    view.mounts.push(Mount {
        container: "/other".into(),
        host: other.path().into(),
    });
    assert!(host.open_log(&view, Path::new("/near/link.log")).is_ok());
    far.hold(LOOKUP);
    for path in ["/near/link.log", "/far/app.log", "/far/none.log"] {
        let error = host.open_log(&view, Path::new(path)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{path}: {error}");
    }
    assert!(host.open_log(&view, Path::new("/other/app.log")).is_ok());
    // Nothing is watched there: the sweep looks, in the mount's own thread.
    let error = host
        .wakes()
        .unwrap()
        .watch(&view, Path::new("/far"))
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
    far.release();
    let found = loop {
        match host.open_log(&view, Path::new("/far/none.log")) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => std::thread::yield_now(),
            found => break found.map(drop),
        }
    };
    assert_eq!(found.unwrap_err().kind(), io::ErrorKind::NotFound);
}
