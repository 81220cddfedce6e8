//! The same tree on a real file system and on the simulated one, seen through the same view by both hosts.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use crate::follow::{Mount, View};
use crate::host::{EntryKind, Host, RealHost};
use crate::sim::Machine;

#[derive(Debug, Clone)]
enum Thing {
    File(&'static str),
    Directory(&'static str),
    Link(&'static str, &'static str),
}

const PLACES: &[&str] = &[
    "up/a",
    "up/d",
    "up/d/a",
    "up/logs",
    "up/logs/a",
    "merged/a",
    "merged/b",
    "merged/d",
    "merged/d/b",
    "merged/logs",
    "merged/logs/c",
    "vol/a",
    "vol/d",
    "vol/d/a",
    "vol/in",
    "other/a",
    "other/d",
    "file",
];
const TARGETS: &[&str] = &[
    "/a",
    "/d",
    "/d/a",
    "/logs",
    "/logs/in/a",
    "a",
    "d",
    "../a",
    "../d/b",
    "../../file",
    "..",
    "/",
    "missing",
    "/logs/d/../a",
    "in/../d",
];
const SEEN: &[&str] = &[
    "/",
    "/a",
    "/b",
    "/d",
    "/d/a",
    "/d/b",
    "/d/../a",
    "/logs",
    "/logs/a",
    "/logs/c",
    "/logs/d",
    "/logs/d/a",
    "/logs/in",
    "/logs/in/a",
    "/logs/in/../a",
    "/logs/../a",
    "/one",
    "/one/x",
    "/d/d/a",
    "/a/a",
    "/logs/in/d/a",
    "relative",
    "/up/d/a",
    "/vol",
    "/vol/in/a",
    "/merged/logs/c",
];

fn thing() -> impl Strategy<Value = Thing> {
    let place = || prop::sample::select(PLACES);
    prop_oneof![
        2 => place().prop_map(Thing::File),
        2 => place().prop_map(Thing::Directory),
        2 => (place(), prop::sample::select(TARGETS)).prop_map(|(at, to)| Thing::Link(at, to)),
    ]
}

fn view(root: &Path, roots: usize, mounts: u8, is_host: bool) -> View {
    let all = [("/logs/in", "/other"), ("/logs", "/vol"), ("/one", "/file")];
    let chosen = (0..).zip(all).filter(|(bit, _)| mounts & (1 << bit) != 0);
    View {
        // Where the real host has what the simulated one has in its root: nothing leads out of it.
        host_root: root.to_path_buf(),
        roots: ["/up", "/merged"][..roots]
            .iter()
            .map(PathBuf::from)
            .collect(),
        mounts: chosen
            .map(|(_, (container, host))| Mount {
                container: PathBuf::from(container),
                host: PathBuf::from(host),
            })
            .collect(),
        is_host,
    }
}

fn content(host: &dyn Host, view: &View, path: &Path) -> Result<String, io::ErrorKind> {
    let read = || {
        let mut bytes = vec![0; 200];
        let length = host.open_log(view, path)?.read_at(&mut bytes, 0)?;
        bytes.truncate(length);
        String::from_utf8(bytes).map_err(io::Error::other)
    };
    read().map_err(|error: io::Error| error.kind())
}

type Names = Vec<(String, EntryKind)>;

fn names(host: &dyn Host, view: &View, path: &Path) -> Result<Names, io::ErrorKind> {
    let mut names = Vec::new();
    host.list(view, path, &mut |name, kind, _| {
        names.push((name.to_string_lossy().into_owned(), kind));
        ControlFlow::Continue(())
    })
    .map_err(|error| error.kind())?;
    names.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(names)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn a_view_shows_what_it_shows_on_the_real_host(
        things in prop::collection::vec(thing(), 0..20),
        roots in 0..3_usize,
        mounts in 0..8_u8,
        is_host in prop::bool::weighted(0.1),
    ) {
        let dir = tempfile::tempdir()?;
        let root = dir.path().canonicalize()?;
        let (real, machine) = (RealHost::new(), Machine::new(1));
        for name in ["up", "merged", "vol", "other"] {
            fs::create_dir(root.join(name))?;
            machine.make_dir(Path::new("/").join(name))?;
        }
        let top = Path::new("/");
        for thing in &things {
            // Only where real directories lead: the kernel would follow a link out of the root.
            let (Thing::File(at) | Thing::Directory(at) | Thing::Link(at, _)) = *thing;
            let parent = root.join(at).parent().map(Path::to_path_buf).unwrap_or_default();
            if parent.canonicalize().ok() != Some(parent) {
                continue;
            }
            // What the real disk refuses is not there on either.
            match *thing {
                Thing::File(at) if fs::symlink_metadata(root.join(at)).is_err() => {
                    if fs::write(root.join(at), at).is_ok() {
                        machine.append(top.join(at), at.as_bytes())?;
                    }
                }
                Thing::Directory(at) => {
                    if fs::create_dir(root.join(at)).is_ok() {
                        machine.make_dir(top.join(at))?;
                    }
                }
                Thing::Link(at, to) => {
                    if symlink(to, root.join(at)).is_ok() {
                        machine.symlink(to, top.join(at))?;
                    }
                }
                Thing::File(_) => {}
            }
        }
        let view = view(&root, roots, mounts, is_host);
        for path in SEEN {
            let path = Path::new(path);
            prop_assert_eq!(
                content(&machine, &view, path),
                content(&real, &view, path),
                "{} in {:?}", path.display(), view
            );
            prop_assert_eq!(
                names(&machine, &view, path),
                names(&real, &view, path),
                "names in {} in {:?}", path.display(), view
            );
        }
    }
}
