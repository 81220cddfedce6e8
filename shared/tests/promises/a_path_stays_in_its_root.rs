//! Whatever links a container makes, the daemon reads only what the container itself could.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::{Mode, SFlag, mknod};
use ringpilot_shared::follow::open::{MOST_LINKS, OpenError, Stream, What};
use ringpilot_shared::follow::{Mount, View};
use ringpilot_shared::host::{EntryKind, Host, RealHost};

/// A host in a folder, seen as the daemon sees its host at `/host`, with one container on it.
struct Node {
    folder: tempfile::TempDir,
    host: RealHost,
    view: View,
}

const UPPER: &str = "/var/lib/docker/7/diff";
const MERGED: &str = "/var/lib/docker/7/merged";
const VOLUME: &str = "/srv/logs";

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let view = View {
            host_root: folder.path().to_owned(),
            roots: vec![UPPER.into(), MERGED.into()],
            mounts: vec![mount("/logs", VOLUME)],
            is_host: false,
        };
        let node = Self {
            folder,
            host: RealHost::new(),
            view,
        };
        for dir in [UPPER, MERGED, VOLUME] {
            fs::create_dir_all(node.at(dir)).unwrap();
        }
        node.write("/etc/shadow", "the host's secret");
        node
    }

    /// Where the host's path really is.
    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, to: &str, path: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    }

    fn read(&self, path: &str) -> io::Result<String> {
        read(&self.host, &self.view, path)
    }

    /// What was wrong, and its cause as the user reads it.
    fn refusal(&self, path: &str) -> (OpenError, io::ErrorKind) {
        let error = self.host.open_log(&self.view, Path::new(path)).unwrap_err();
        let kind = error.kind();
        (*error.into_inner().unwrap().downcast().unwrap(), kind)
    }

    fn names(&self, dir: &str) -> io::Result<Vec<(String, EntryKind)>> {
        let mut names = Vec::new();
        self.host
            .list(&self.view, Path::new(dir), &mut |name, kind, _| {
                names.push((name.to_str().unwrap().to_owned(), kind));
                ControlFlow::Continue(())
            })?;
        names.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(names)
    }
}

fn mount(container: &str, host: &str) -> Mount {
    Mount {
        container: container.into(),
        host: host.into(),
    }
}

fn read(host: &RealHost, view: &View, path: &str) -> io::Result<String> {
    let file = host.open_log(view, Path::new(path))?;
    let mut bytes = vec![0; 1000];
    let len = file.read_at(&mut bytes, 0)?;
    bytes.truncate(len);
    Ok(String::from_utf8(bytes).unwrap())
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn a_link_out_of_a_volume_leads_into_the_container_not_the_host() {
    let node = Node::new();
    node.link("/etc/shadow", "/srv/logs/absolute.log");
    node.link("../../../../../../etc/shadow", "/srv/logs/relative.log");
    node.link("/", "/srv/logs/root");
    let links = [
        "/logs/absolute.log",
        "/logs/relative.log",
        "/logs/root/etc/shadow",
        "/logs/root/../../etc/../etc/shadow",
        "/../../etc/shadow",
    ];
    for path in links {
        assert_eq!(
            node.read(path).unwrap_err().kind(),
            io::ErrorKind::NotFound,
            "{path}"
        );
    }
    node.write("/var/lib/docker/7/diff/etc/shadow", "the container's own");
    for path in links {
        assert_eq!(node.read(path).unwrap(), "the container's own", "{path}");
    }
}

#[test]
fn a_link_in_the_root_leads_through_volumes_as_in_the_container() {
    let mut node = Node::new();
    node.view
        .mounts
        .push(mount("/var/log/deep/down", "/srv/deep"));
    node.write("/srv/deep/a.log", "deep");
    node.write("/srv/logs/a.log", "volume");
    node.link("/logs/a.log", "/var/lib/docker/7/diff/app/a.log");
    node.link("../../var/log/deep/down", "/var/lib/docker/7/diff/app/dir");
    node.link("../../../../logs/a.log", "/srv/deep/across.log");
    node.link("../beside.log", "/srv/deep/beside.log");
    node.write("/var/lib/docker/7/diff/var/log/deep/beside.log", "beside");
    assert_eq!(node.read("/app/a.log").unwrap(), "volume");
    assert_eq!(node.read("/app/dir/a.log").unwrap(), "deep");
    assert_eq!(node.read("/app/dir/across.log").unwrap(), "volume");
    // Up from a mount is where it is mounted, not where it comes from.
    assert_eq!(
        node.read("/var/log/deep/down/beside.log").unwrap(),
        "beside"
    );
    assert_eq!(
        node.read("/var/log/deep/down/../beside.log").unwrap(),
        "beside"
    );
}

#[test]
fn a_volume_is_found_where_only_the_upper_directory_is_known_and_has_nothing_above_it() {
    let mut node = Node::new();
    node.view.mounts = vec![
        mount("/var/log/app", "/srv/app"),
        mount("/var/log", "/srv/log"),
        mount("/var/one.log", "/srv/one.log"),
    ];
    node.write("/srv/app/a.log", "inner");
    node.write("/srv/log/b.log", "outer");
    node.write("/srv/one.log", "one file");
    node.write("/var/lib/docker/7/diff/var/c.log", "root");
    assert_eq!(node.read("/var/log/app/a.log").unwrap(), "inner");
    assert_eq!(node.read("/var/log/app/../b.log").unwrap(), "outer");
    assert_eq!(node.read("/var/log/app/../../c.log").unwrap(), "root");
    assert_eq!(node.read("/var/one.log").unwrap(), "one file");
    assert_eq!(
        node.read("/var/one.log/more").unwrap_err().kind(),
        io::ErrorKind::NotADirectory
    );
    let (error, kind) = node.refusal("/var/log/app/none.log");
    assert_eq!(kind, io::ErrorKind::NotFound);
    assert_eq!(error.to_string(), "`/var/log/app/none.log` is not there");
}

#[test]
fn what_only_the_image_has_is_found_in_the_second_root_and_what_was_deleted_is_not() {
    let node = Node::new();
    node.write("/var/lib/docker/7/diff/data/a.log", "upper");
    node.write("/var/lib/docker/7/merged/data/a.log", "merged");
    node.write("/var/lib/docker/7/merged/data/b.log", "image");
    node.link("/data/a.log", "/var/lib/docker/7/merged/logs.d/link.log");
    assert_eq!(node.read("/data/a.log").unwrap(), "upper");
    assert_eq!(node.read("/data/b.log").unwrap(), "image");
    assert_eq!(node.read("/logs.d/link.log").unwrap(), "merged");
    assert_eq!(
        node.names("/data").unwrap(),
        [
            ("a.log".to_owned(), EntryKind::File),
            ("b.log".to_owned(), EntryKind::File)
        ]
    );
    if is_root() {
        // An overlay's way to say that it was deleted.
        mknod(
            &node.at("/var/lib/docker/7/diff/data/gone.log"),
            SFlag::S_IFCHR,
            Mode::empty(),
            0,
        )
        .unwrap();
        assert_eq!(
            node.read("/data/gone.log").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}

#[test]
fn a_host_path_with_links_stays_beneath_the_host_root() {
    let mut node = Node::new();
    node.link("/data/docker", "/var/lib/engine");
    node.link("../../../../../data", "/data/docker/up");
    node.write("/data/docker/volumes/v/a.log", "moved");
    node.view.mounts = vec![
        mount("/logs", "/var/lib/engine/volumes/v"),
        mount("/up", "/var/lib/engine/up/docker/volumes/v"),
    ];
    assert_eq!(node.read("/logs/a.log").unwrap(), "moved");
    assert_eq!(node.read("/up/a.log").unwrap(), "moved");
}

#[test]
fn a_volume_within_a_volume_cannot_be_turned_into_the_hosts_etc() {
    let mut node = Node::new();
    node.view.mounts = vec![mount("/all", "/srv/a"), mount("/inner", "/srv/a/b")];
    node.write("/srv/a/releases/5/a.log", "release");
    node.link("releases/5", "/srv/a/b");
    assert_eq!(node.read("/inner/a.log").unwrap(), "release");
    for target in ["/etc", "../../etc", "/srv/../etc"] {
        fs::remove_file(node.at("/srv/a/b")).unwrap();
        node.link(target, "/srv/a/b");
        let (error, kind) = node.refusal("/inner/shadow");
        assert!(
            matches!(error, OpenError::Escapes { .. }),
            "{target}: {error}"
        );
        assert_eq!(kind, io::ErrorKind::PermissionDenied);
    }
}

#[test]
fn forty_links_are_followed_and_circles_are_told() {
    let node = Node::new();
    node.write("/srv/logs/0", "the end");
    for n in 1..=MOST_LINKS + 1 {
        node.link(&(n - 1).to_string(), &format!("/srv/logs/{n}"));
    }
    assert_eq!(node.read("/logs/40").unwrap(), "the end");
    node.link("circle", "/srv/logs/circle");
    node.link("/logs/b/x", "/srv/logs/a");
    node.link("/logs/a/x", "/srv/logs/b");
    for path in ["/logs/41", "/logs/circle", "/logs/a", "/logs/b/c"] {
        let (error, kind) = node.refusal(path);
        assert!(
            matches!(error, OpenError::TooManyLinks { .. }),
            "{path}: {error}"
        );
        assert_eq!(kind, io::ErrorKind::InvalidInput);
    }
}

#[test]
fn nothing_but_a_regular_file_is_opened_and_each_is_called_by_its_name() {
    let mut node = Node::new();
    nix::unistd::mkfifo(&node.at("/srv/logs/fifo"), Mode::S_IRWXU).unwrap();
    let _socket = UnixListener::bind(node.at("/srv/logs/socket")).unwrap();
    fs::create_dir(node.at("/srv/logs/dir")).unwrap();
    node.link("dir/../fifo", "/srv/logs/link");
    let mut cases = vec![
        (
            "/logs/fifo",
            What::Fifo,
            "`/logs/fifo` is a FIFO, not a regular file",
        ),
        (
            "/logs/link",
            What::Fifo,
            "`/logs/fifo` is a FIFO, not a regular file",
        ),
        (
            "/logs/socket",
            What::Socket,
            "`/logs/socket` is a socket, not a regular file",
        ),
        (
            "/logs/dir",
            What::Directory,
            "`/logs/dir` is a directory, not a regular file",
        ),
        (
            "/logs",
            What::Directory,
            "`/logs` is a directory, not a regular file",
        ),
        (
            "/dev/null",
            What::Device,
            "`/dev/null` is a device, not a regular file",
        ),
    ];
    if is_root() {
        let zero = nix::sys::stat::makedev(1, 5);
        mknod(
            &node.at("/srv/logs/zero"),
            SFlag::S_IFCHR,
            Mode::S_IRWXU,
            zero,
        )
        .unwrap();
        cases.push((
            "/logs/zero",
            What::Device,
            "`/logs/zero` is a device, not a regular file",
        ));
    }
    for (path, wanted, text) in cases {
        let (error, kind) = node.refusal(path);
        assert_eq!(error.to_string(), text);
        assert_eq!(kind, io::ErrorKind::InvalidInput);
        assert!(error.cure().is_some());
        assert!(matches!(error, OpenError::NotRegular { what, .. } if what == wanted));
    }
    // A volume that shows the host's /proc: its files answer to who asks, and would answer us more.
    node.view.host_root = "/".into();
    node.view.mounts = vec![mount("/proc-of-host", "/proc")];
    for path in [
        "/proc-of-host/self/environ",
        "/proc-of-host/self/../self/maps",
    ] {
        let (error, _) = node.refusal(path);
        assert!(
            matches!(
                error,
                OpenError::NotRegular {
                    what: What::Kernel,
                    ..
                }
            ),
            "{error}"
        );
    }
    let (error, _) = node.refusal("/proc-of-host/self/root/etc/passwd");
    assert!(matches!(error, OpenError::NotFound { .. }), "{error}");
}

#[test]
fn a_link_to_stdout_is_told_as_such_with_its_cure() {
    let node = Node::new();
    node.link("/dev/stdout", "/srv/logs/access.log");
    node.link("../dev/../dev/stderr", "/srv/logs/error.log");
    node.link("/proc/self/fd/1", "/srv/logs/proc.log");
    node.link("/proc/1/fd/2", "/srv/logs/first.log");
    node.link("access.log", "/srv/logs/twice.log");
    for (path, at, wanted) in [
        ("/logs/access.log", "/logs/access.log", Stream::Out),
        ("/logs/error.log", "/logs/error.log", Stream::Err),
        ("/logs/proc.log", "/logs/proc.log", Stream::Out),
        ("/logs/first.log", "/logs/first.log", Stream::Err),
        ("/logs/twice.log", "/logs/access.log", Stream::Out),
        ("/dev/stdout", "/dev/stdout", Stream::Out),
    ] {
        let (error, _) = node.refusal(path);
        assert_eq!(
            error.to_string(),
            format!("`{at}` is the container's {wanted}, not a file")
        );
        assert_eq!(
            error.cure(),
            Some("declare `NAME=stdout` instead of the path")
        );
        assert!(matches!(error, OpenError::Standard { stream, .. } if stream == wanted));
    }
    // Others have files of that name.
    node.write("/srv/logs/stdout", "a file");
    assert_eq!(node.read("/logs/stdout").unwrap(), "a file");
}

#[test]
fn a_container_of_whose_root_nothing_is_known_has_its_volumes() {
    let mut node = Node::new();
    node.view.roots.clear();
    node.view.mounts = vec![
        mount("/logs/deep/a", VOLUME),
        mount("/logs/b.log", "/srv/one.log"),
    ];
    node.write("/srv/logs/a.log", "volume");
    node.write("/srv/one.log", "one file");
    node.link("/etc/shadow", "/srv/logs/out.log");
    assert_eq!(node.read("/logs/deep/a/a.log").unwrap(), "volume");
    for path in ["/logs/deep/a/out.log", "/etc/shadow", "/logs/c.log", "/"] {
        let (error, kind) = node.refusal(path);
        assert!(matches!(error, OpenError::NoRoot { .. }), "{path}: {error}");
        assert_eq!(kind, io::ErrorKind::NotFound);
    }
    assert_eq!(
        node.refusal("/etc/shadow").0.to_string(),
        "`/etc/shadow` lies in no volume, and the container's own file system cannot be seen"
    );
    assert_eq!(
        node.names("/logs").unwrap(),
        [
            ("b.log".to_owned(), EntryKind::File),
            ("deep".to_owned(), EntryKind::Directory)
        ]
    );
    assert_eq!(node.names("/logs/deep/a").unwrap().len(), 2);
    assert!(node.names("/etc").is_err());
}

#[test]
fn a_directory_shows_its_names_and_the_mounts_in_it_whatever_lies_beneath() {
    let mut node = Node::new();
    node.view.mounts.push(mount("/logs/sub", "/srv/sub"));
    node.view.mounts.push(mount("/logs/one", "/srv/one"));
    node.view
        .mounts
        .push(mount("/logs/missing", "/srv/missing"));
    node.write("/srv/logs/sub", "a placeholder");
    node.write("/srv/logs/a.log", "a");
    node.write("/srv/sub/b.log", "b");
    node.write("/srv/one", "1");
    node.link("a.log", "/srv/logs/link");
    nix::unistd::mkfifo(&node.at("/srv/logs/fifo"), Mode::S_IRWXU).unwrap();
    let wanted = [
        ("a.log", EntryKind::File),
        ("fifo", EntryKind::Other),
        ("link", EntryKind::Link),
        ("one", EntryKind::File),
        ("sub", EntryKind::Directory),
    ];
    assert_eq!(
        node.names("/logs").unwrap(),
        wanted.map(|(name, kind)| (name.to_owned(), kind))
    );
    assert_eq!(
        node.names("/logs/a.log").unwrap_err().kind(),
        io::ErrorKind::NotADirectory
    );
    assert_eq!(
        node.names("/logs/none").unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
    let mut first = None;
    node.host
        .list(&node.view, Path::new("/logs"), &mut |name, _, _| {
            assert_eq!(
                first.replace(name.to_owned()),
                None::<OsString>,
                "it did not end"
            );
            ControlFlow::Break(())
        })
        .unwrap();
    assert!(first.is_some());
}

#[test]
fn the_operators_own_paths_follow_links_beneath_the_host_root() {
    let mut node = Node::new();
    node.view = View {
        host_root: node.folder.path().to_owned(),
        is_host: true,
        ..View::default()
    };
    node.link("/etc/shadow", "/srv/logs/absolute.log");
    node.link("../../../../../etc/shadow", "/srv/logs/relative.log");
    node.link("/proc/self/fd/1", "/srv/logs/stdout.log");
    for path in [
        "/srv/logs/absolute.log",
        "/srv/logs/relative.log",
        "/etc/shadow",
    ] {
        assert_eq!(node.read(path).unwrap(), "the host's secret", "{path}");
    }
    assert!(matches!(
        node.refusal("/srv/logs").0,
        OpenError::NotRegular { .. }
    ));
    assert!(matches!(
        node.refusal("/srv/logs/stdout.log").0,
        OpenError::Standard { .. }
    ));
    assert!(matches!(
        node.refusal("srv").0,
        OpenError::NotAbsolute { .. }
    ));
}

/// A container's ordinary user must not learn by a link what is its root's alone.
#[test]
fn a_users_link_leads_only_where_that_user_may_read() {
    if !is_root() {
        return crate::not_tested("it needs root");
    }
    let node = Node::new();
    let secret = "/var/lib/docker/7/diff/run/secrets/token";
    node.write(secret, "root's");
    node.link("/run/secrets/token", "/srv/logs/a.log");
    node.link("/run/secrets", "/srv/logs/dir");
    let mode = |path: &str, mode| {
        fs::set_permissions(node.at(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(secret, 0o600);
    // The container's root may link to what it likes.
    assert_eq!(node.read("/logs/a.log").unwrap(), "root's");
    lchown(node.at("/srv/logs/a.log"), Some(1000), Some(1000)).unwrap();
    lchown(node.at("/srv/logs/dir"), Some(1000), Some(1000)).unwrap();
    for path in ["/logs/a.log", "/logs/dir/token"] {
        let (error, kind) = node.refusal(path);
        assert_eq!(kind, io::ErrorKind::PermissionDenied);
        assert_eq!(
            error.to_string(),
            "`/run/secrets/token` may not be read by user 1000, whose link leads there"
        );
    }
    mode(secret, 0o644);
    assert_eq!(node.read("/logs/a.log").unwrap(), "root's");
    mode("/var/lib/docker/7/diff/run/secrets", 0o700);
    assert!(matches!(
        node.refusal("/logs/a.log").0,
        OpenError::NotTheirs { owner: 1000, .. }
    ));
    mode("/var/lib/docker/7/diff/run/secrets", 0o755);
    mode(secret, 0o600);
    lchown(node.at(secret), Some(1000), None).unwrap();
    assert_eq!(node.read("/logs/a.log").unwrap(), "root's");
    // In a user namespace the container's root is the one whom its root directory belongs to.
    lchown(node.at(secret), Some(100_033), None).unwrap();
    lchown(node.at(UPPER), Some(1000), None).unwrap();
    assert_eq!(node.read("/logs/a.log").unwrap(), "root's");
}

/// A directory becomes a link and a directory again while it is walked.
#[test]
fn a_directory_that_is_swapped_for_a_link_while_we_walk_never_gives_the_secret() {
    let node = Node::new();
    let secret = "/etc/logs/a.log";
    node.write(secret, "the host's secret");
    node.write("/srv/logs/dir/logs/a.log", "the container's");
    let (dir, aside) = (node.at("/srv/logs/dir"), node.at("/srv/logs/aside"));
    let ways = [
        node.at("/etc").to_str().unwrap().to_owned(),
        "/etc".to_owned(),
        "../../etc".to_owned(),
        "/".to_owned(),
    ];
    let done = AtomicBool::new(false);
    let mut read = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for way in ways.iter().cycle() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                fs::rename(&dir, &aside).unwrap();
                symlink(way, &dir).unwrap();
                std::thread::yield_now();
                fs::remove_file(&dir).unwrap();
                fs::rename(&aside, &dir).unwrap();
                std::thread::yield_now();
            }
        });
        for path in ["/logs/dir/logs/a.log", "/logs/dir/../dir/logs/a.log"]
            .into_iter()
            .cycle()
            .take(10_000)
        {
            match node.read(path) {
                Ok(text) => {
                    assert_eq!(text, "the container's");
                    read += 1;
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}"),
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(read > 0, "the race was always lost, so nothing was proven");
}

/// A process in an overlay of its own, as a container's first one.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        self.0.wait().map(drop).unwrap_or_default();
    }
}

#[test]
fn the_root_of_a_process_is_entered_only_while_it_is_the_containers() {
    if !is_root() {
        return crate::not_tested("it needs root");
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    for dir in ["lower/usr", "lower/etc", "upper", "work", "merged"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    for name in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), at("lower").join(name)).unwrap();
    }
    fs::write(at("lower/etc/passwd"), "the image's").unwrap();
    symlink("/etc/passwd", at("upper/link.log")).unwrap();
    symlink("/../../proc/1/root/etc/passwd", at("upper/out.log")).unwrap();
    let script = "mount -t overlay overlay -o lowerdir=lower,upperdir=$PWD/upper,workdir=work merged \
        && mount --bind /usr merged/usr && touch ready && exec chroot merged sleep 60";
    let child = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut process = Process(child);
    let root = format!("/proc/{}/root", process.0.id());
    // Until it has changed its root.
    while fs::read_link(&root).is_ok_and(|root| root != at("merged")) {
        if process.0.try_wait().unwrap().is_some() {
            return crate::not_tested("an overlay cannot be mounted here");
        }
        std::thread::yield_now();
    }
    let host = RealHost::new();
    let view = |roots: &[&Path]| View {
        host_root: "/".into(),
        roots: roots.iter().map(PathBuf::from).collect(),
        ..View::default()
    };
    let upper = at("upper");
    let ours = view(&[&upper, Path::new(&root)]);
    assert_eq!(read(&host, &ours, "/link.log").unwrap(), "the image's");
    assert_eq!(read(&host, &ours, "/etc/passwd").unwrap(), "the image's");
    assert!(read(&host, &ours, "/out.log").is_err());
    assert_eq!(
        read(&host, &view(&[Path::new(&root)]), "/etc/passwd").unwrap(),
        "the image's"
    );
    // The number is another process's by now: it has another upper directory, or the host's root.
    let other = at("work");
    for stale in [
        view(&[&other, Path::new(&root)]),
        view(&[&upper, Path::new("/proc/self/root")]),
        view(&[Path::new("/proc/self/root")]),
    ] {
        let error = host.open_log(&stale, Path::new("/etc/passwd")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{stale:?}: {error}");
    }
    drop(process);
    assert_eq!(
        read(&host, &ours, "/etc/passwd").unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
}

#[test]
fn a_file_tells_what_it_is_and_where_it_has_holes() {
    let node = Node::new();
    let file = fs::File::create(node.at("/srv/logs/sparse.log")).unwrap();
    file.set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"end", (1 << 20) - 3).unwrap();
    let log = node
        .host
        .open_log(&node.view, Path::new("/logs/sparse.log"))
        .unwrap();
    let stat = log.stat().unwrap();
    assert_eq!((stat.size, stat.links, stat.may_hang), (1 << 20, 1, false));
    assert!(stat.disk_bytes < stat.size);
    assert!(stat.modified_ns > 0 && node.host.wall_ns() > 0 && node.host.boot_id() > 0);
    let data = log.next_data(0).unwrap().unwrap();
    assert!(data > 0 && data < 1 << 20);
    assert_eq!(log.next_data(1 << 20).unwrap(), None);
    fs::remove_file(node.at("/srv/logs/sparse.log")).unwrap();
    assert_eq!(log.stat().unwrap().links, 0);
    let mut inode = 0;
    node.write("/srv/logs/b.log", "b");
    node.host
        .list(
            &node.view,
            Path::new("/logs"),
            &mut |name: &OsStr, _, number| {
                assert_eq!(name, "b.log");
                inode = number;
                ControlFlow::Continue(())
            },
        )
        .unwrap();
    let log = node
        .host
        .open_log(&node.view, Path::new("/logs/b.log"))
        .unwrap();
    assert_eq!(log.stat().unwrap().inode, inode);
}
