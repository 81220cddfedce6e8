//! The same operations on a real file system and on the simulated one: same errors, names, contents, links, holes.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};
use proptest::prelude::*;

use crate::follow::View;
use crate::host::{EntryKind, Host, LogFile};
use crate::sim::{Machine, Writer};

#[derive(Debug, Clone)]
enum Op {
    Create(&'static str),
    Append(&'static str, usize, u8),
    WriteAt(&'static str, u64, usize, u8),
    Truncate(&'static str, u64),
    Punch(&'static str, u64, u64),
    Rename(&'static str, &'static str),
    Link(&'static str, &'static str),
    Copy(&'static str, &'static str),
    Delete(&'static str),
    Symlink(&'static str, &'static str),
    ReplaceSymlink(&'static str, &'static str),
    MakeDir(&'static str),
    DeleteDir(&'static str),
    OpenReader(&'static str, usize),
    OpenWriter(&'static str, usize, bool),
    WriteOpen(usize, usize, u8),
}

const PATHS: &[&str] = &["a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "b/c"];
const TARGETS: &[&str] = &[
    "a", "c", "d", "d/a", "../a", "..", "e/../a", "missing", "/ROOT/b", ".",
];

fn op() -> impl Strategy<Value = Op> {
    let path = || prop::sample::select(PATHS);
    let target = || prop::sample::select(TARGETS);
    let at = || prop_oneof![0..300_u64, 4090..4100_u64, 0..30_000_u64];
    let length = || prop_oneof![1..50_usize, 4000..9000_usize];
    let byte = || 1..=255_u8;
    prop_oneof![
        2 => path().prop_map(Op::Create),
        4 => (path(), length(), byte()).prop_map(|(p, n, b)| Op::Append(p, n, b)),
        2 => (path(), at(), length(), byte()).prop_map(|(p, at, n, b)| Op::WriteAt(p, at, n, b)),
        2 => (path(), at()).prop_map(|(p, at)| Op::Truncate(p, at)),
        1 => (path(), at(), 1..20_000_u64).prop_map(|(p, at, n)| Op::Punch(p, at, n)),
        4 => (path(), path()).prop_map(|(a, b)| Op::Rename(a, b)),
        2 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        2 => (path(), path()).prop_map(|(a, b)| Op::Copy(a, b)),
        2 => path().prop_map(Op::Delete),
        2 => (target(), path()).prop_map(|(t, p)| Op::Symlink(t, p)),
        1 => (target(), path()).prop_map(|(t, p)| Op::ReplaceSymlink(t, p)),
        3 => path().prop_map(Op::MakeDir),
        1 => path().prop_map(Op::DeleteDir),
        2 => (path(), 0..2_usize).prop_map(|(p, i)| Op::OpenReader(p, i)),
        2 => (path(), 0..2_usize, any::<bool>()).prop_map(|(p, i, end)| Op::OpenWriter(p, i, end)),
        3 => (0..2_usize, length(), byte()).prop_map(|(i, n, b)| Op::WriteOpen(i, n, b)),
    ]
}

/// Both disks, and what is open on them.
struct Both {
    top: PathBuf,
    root: PathBuf,
    machine: Machine,
    readers: [Option<(File, Arc<dyn LogFile>)>; 2],
    writers: [Option<(File, Writer)>; 2],
}

impl Both {
    fn on(&mut self, op: &Op) -> (io::Result<()>, io::Result<()>) {
        let (root, machine) = (&self.root, &self.machine);
        let at = |path: &str| root.join(path);
        let target = |target: &str| match target.strip_prefix("/ROOT/") {
            Some(path) => root.join(path),
            None => PathBuf::from(target),
        };
        match *op {
            Op::Create(path) => (
                File::create_new(at(path)).map(drop),
                machine.create(at(path)),
            ),
            Op::Append(path, length, byte) => (
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(at(path))
                    .and_then(|mut file| file.write_all(&vec![byte; length])),
                machine.append(at(path), &vec![byte; length]),
            ),
            Op::WriteAt(path, offset, length, byte) => (
                open_to_write(&at(path))
                    .and_then(|file| file.write_all_at(&vec![byte; length], offset)),
                machine.write_at(at(path), offset, &vec![byte; length]),
            ),
            Op::Truncate(path, length) => (
                open_to_write(&at(path)).and_then(|file| file.set_len(length)),
                machine.truncate(at(path), length),
            ),
            Op::Punch(path, offset, length) => (
                open_to_write(&at(path)).and_then(|file| punch(&file, offset, length)),
                machine.punch(at(path), offset..offset + length),
            ),
            Op::Rename(from, to) => (
                fs::rename(at(from), at(to)),
                machine.rename(at(from), at(to)),
            ),
            Op::Link(file, name) => (
                fs::hard_link(at(file), at(name)),
                machine.link(at(file), at(name)),
            ),
            Op::Copy(from, to) => (copy(&at(from), &at(to)), machine.copy(at(from), at(to))),
            Op::Delete(path) => (fs::remove_file(at(path)), machine.delete(at(path))),
            Op::Symlink(to, path) => (
                symlink(target(to), at(path)),
                machine.symlink(target(to), at(path)),
            ),
            Op::ReplaceSymlink(to, path) => {
                let beside = at(&format!("{path}.new"));
                if beside.is_symlink() {
                    fs::remove_file(&beside).expect("it is there");
                }
                let real = symlink(target(to), &beside).and_then(|()| fs::rename(beside, at(path)));
                (real, machine.replace_symlink(target(to), at(path)))
            }
            Op::MakeDir(path) => (fs::create_dir_all(at(path)), machine.make_dir(at(path))),
            Op::DeleteDir(path) => (fs::remove_dir(at(path)), machine.delete_dir(at(path))),
            Op::OpenReader(path, slot) => {
                let view = View {
                    is_host: true,
                    ..View::default()
                };
                let opened = machine.open_log(&view, &at(path));
                let real = File::open(at(path));
                match (real, opened) {
                    (Ok(real), Ok(ours)) => {
                        self.readers[slot] = Some((real, ours));
                        (Ok(()), Ok(()))
                    }
                    // Nothing but a regular file is a log.
                    (Ok(real), Err(error)) if real.metadata().is_ok_and(|is| is.is_dir()) => {
                        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
                        (Ok(()), Ok(()))
                    }
                    (Err(real), Err(ours)) if real.raw_os_error() == Some(libc::ELOOP) => {
                        assert_eq!(ours.kind(), io::ErrorKind::InvalidInput);
                        (Ok(()), Ok(()))
                    }
                    (real, ours) => (real.map(drop), ours.map(drop)),
                }
            }
            Op::OpenWriter(path, slot, at_end) => {
                let real = OpenOptions::new()
                    .write(true)
                    .append(at_end)
                    .create(true)
                    .open(at(path))
                    .and_then(|mut file| file.seek(SeekFrom::End(0)).map(|_| file));
                match (real, machine.writer(at(path))) {
                    (Ok(real), Ok(mut ours)) => {
                        if !at_end {
                            ours = ours.keeping_its_position();
                        }
                        self.writers[slot] = Some((real, ours));
                        (Ok(()), Ok(()))
                    }
                    (real, ours) => (real.map(drop), ours.map(drop)),
                }
            }
            Op::WriteOpen(slot, length, byte) => match &mut self.writers[slot] {
                Some((real, ours)) => {
                    let bytes = vec![byte; length];
                    (real.write_all(&bytes), ours.write(&bytes))
                }
                None => (Ok(()), Ok(())),
            },
        }
    }
}

fn open_to_write(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (offset, length) = (offset.cast_signed(), length.cast_signed());
    Ok(fallocate(file, how, offset, length)?)
}

fn next_data(file: &File, offset: u64) -> Option<u64> {
    let found = lseek64(file, offset.cast_signed(), Whence::SeekData).ok()?;
    u64::try_from(found).ok()
}

/// Copies as `cp` does, holes as holes.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    if source.metadata()?.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    let target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(to)?;
    if source.metadata()?.ino() == target.metadata()?.ino() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    target.set_len(0)?;
    let mut at = 0;
    while let Some(data) = next_data(&source, at) {
        let hole = lseek64(&source, data.cast_signed(), Whence::SeekHole)?;
        let hole = u64::try_from(hole).map_err(io::Error::other)?;
        let mut bytes = vec![0; usize::try_from(hole - data).map_err(io::Error::other)?];
        source.read_exact_at(&mut bytes, data)?;
        target.write_all_at(&bytes, data)?;
        at = hole;
    }
    target.set_len(source.metadata()?.len())
}

/// What two disks must have in common under one name.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Directory,
    Link(PathBuf),
    File {
        bytes: Vec<u8>,
        links: u64,
        data_at: Vec<Option<u64>>,
    },
}

const PROBES: &[u64] = &[0, 1, 4096, 8192, 12_288, 20_480, 28_672];

/// All that is there, and the inode of each.
type Tree = Vec<(PathBuf, Seen, u64)>;

fn real_tree(dir: &Path, into: &mut Tree) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (path, is) = (entry.path(), entry.metadata()?);
        let seen = if is.is_dir() {
            Seen::Directory
        } else if is.is_symlink() {
            Seen::Link(fs::read_link(&path)?)
        } else {
            let file = File::open(&path)?;
            Seen::File {
                bytes: fs::read(&path)?,
                links: is.nlink(),
                data_at: PROBES.iter().map(|at| next_data(&file, *at)).collect(),
            }
        };
        into.push((path.clone(), seen, is.ino()));
        if is.is_dir() {
            real_tree(&path, into)?;
        }
    }
    Ok(())
}

fn simulated_tree(machine: &Machine, dir: &Path, into: &mut Tree) -> io::Result<()> {
    let view = View {
        is_host: true,
        ..View::default()
    };
    let mut names: Vec<OsString> = Vec::new();
    let mut entries = Vec::new();
    machine.list(&view, dir, &mut |name, kind, inode| {
        entries.push((name.to_os_string(), kind, inode));
        ControlFlow::Continue(())
    })?;
    for (name, kind, inode) in entries {
        let path = dir.join(&name);
        let seen = match kind {
            EntryKind::Directory => Seen::Directory,
            EntryKind::Link => Seen::Link(machine.read_link(&path)?),
            _ => {
                let file = machine.open_log(&view, &path)?;
                let probe = |at: &u64| file.next_data(*at);
                Seen::File {
                    bytes: machine.content(&path)?,
                    links: file.stat()?.links,
                    data_at: PROBES.iter().map(probe).collect::<io::Result<_>>()?,
                }
            }
        };
        into.push((path.clone(), seen, inode));
        names.push(name);
        if kind == EntryKind::Directory {
            simulated_tree(machine, &path, into)?;
        }
    }
    assert_eq!(machine.names(dir)?, names);
    Ok(())
}

fn assert_same(both: &Both) -> io::Result<()> {
    let (mut real, mut simulated) = (Vec::new(), Vec::new());
    real_tree(&both.top, &mut real)?;
    simulated_tree(&both.machine, &both.top, &mut simulated)?;
    real.sort_by(|a, b| a.0.cmp(&b.0));
    simulated.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(real.len(), simulated.len(), "{real:?} {simulated:?}");
    // Where two names are one file here, they are one file there.
    let (mut to, mut from) = (HashMap::new(), HashMap::new());
    for (real, simulated) in real.iter().zip(&simulated) {
        assert_eq!((&real.0, &real.1), (&simulated.0, &simulated.1));
        assert_eq!(*to.entry(real.2).or_insert(simulated.2), simulated.2);
        assert_eq!(*from.entry(simulated.2).or_insert(real.2), real.2);
    }
    for (real, ours) in both.readers.iter().flatten() {
        let mut bytes = Vec::new();
        let mut real = real;
        real.rewind()?;
        real.read_to_end(&mut bytes)?;
        let mut seen = vec![0; bytes.len() + 10];
        let length = ours.read_at(&mut seen, 0)?;
        seen.truncate(length);
        assert_eq!(bytes, seen);
        let (is, stat) = (real.metadata()?, ours.stat()?);
        assert_eq!((is.len(), is.nlink()), (stat.size, stat.links));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn every_operation_does_what_it_does_on_a_real_disk(ops in prop::collection::vec(op(), 1..40)) {
        let dir = tempfile::tempdir()?;
        // So deep that links lead out of it at most into what is compared.
        let root = dir.path().join("x/y/z/v/w");
        fs::create_dir_all(&root)?;
        let mut both = Both {
            top: dir.path().to_path_buf(),
            root: root.clone(),
            machine: Machine::new(7),
            readers: [None, None],
            writers: [None, None],
        };
        both.machine.make_dir(&root)?;
        for op in &ops {
            let (real, simulated) = both.on(op);
            prop_assert_eq!(
                real.as_ref().map_err(io::Error::raw_os_error).err(),
                simulated.as_ref().map_err(io::Error::raw_os_error).err(),
                "{:?} {:?}", real, simulated
            );
            assert_same(&both)?;
        }
    }
}
