//! Our own files on the real disk: the checkpoint, dead letters, the file output.
//! Place: what `Disk` means outside the simulation.
//! Invariants: behind the part of a path that the operator wrote, no link is followed and nothing but a regular file
//! is opened; a write that comes back short goes on where it stopped.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statvfs::statvfs;
use nix::sys::uio::{pwrite, pwritev};

use super::real::{RealHost, stat_of};
use super::{Disk, OwnFile, Space, Stat};
use crate::follow::open::held;

/// As many parts as one write takes (IOV_MAX).
const MOST_PARTS: usize = 1024;

/// How often a file may be made and removed by others while we open it.
const MOST_TRIES: usize = 8;

impl Disk for RealHost {
    fn open(
        &self,
        beneath: &Path,
        path: &Path,
        create: Option<u32>,
    ) -> io::Result<Arc<dyn OwnFile>> {
        let inner = path.strip_prefix(beneath).map_err(|_| {
            refused(format!(
                "`{}` does not lie beneath `{}`",
                path.display(),
                beneath.display()
            ))
        })?;
        let to_dir = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = open(beneath, to_dir, Mode::empty())?;
        let mut parts = inner.components().peekable();
        while let Some(part) = parts.next() {
            let Component::Normal(name) = part else {
                return Err(refused(format!("`{}` goes through `..`", path.display())));
            };
            if parts.peek().is_none() {
                return open_file(&dir, Path::new(name), path, create);
            }
            dir =
                openat(&dir, name, to_dir | OFlag::O_NOFOLLOW, Mode::empty()).map_err(|error| {
                    match error {
                        Errno::ELOOP | Errno::ENOTDIR => {
                            refused(format!("`{}` goes through a link", path.display()))
                        }
                        error => error.into(),
                    }
                })?;
        }
        Err(refused(format!("`{}` names no file", path.display())))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        std::fs::read_dir(dir)?
            .map(|entry| Ok(entry?.file_name()))
            .collect()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let space = statvfs(dir)?;
        // The counts' width differs from one C library to the other.
        #[allow(
            clippy::useless_conversion,
            clippy::unnecessary_cast,
            reason = "needed where they have 32 bits"
        )]
        let (free, total, unit) = (
            space.blocks_available() as u64,
            space.blocks() as u64,
            space.fragment_size() as u64,
        );
        Ok(Space {
            free: free.saturating_mul(unit),
            total: total.saturating_mul(unit),
        })
    }
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Looks before it opens: a FIFO or a device must not even be opened.
fn open_file(
    dir: &OwnedFd,
    name: &Path,
    path: &Path,
    create: Option<u32>,
) -> io::Result<Arc<dyn OwnFile>> {
    let read_write = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    for _ in 0..MOST_TRIES {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(dir, name, flags, Mode::empty()) {
            Ok(found) => {
                let stat = fstat(&found)?;
                if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
                    return Err(refused(format!(
                        "`{}` is not a regular file",
                        path.display()
                    )));
                }
                let fd = open(held(&found).as_path(), read_write, Mode::empty())?;
                return Ok(Arc::new(RealOwnFile(File::from(fd))));
            }
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let Some(mode) = create else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let flags = read_write | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        match openat(dir, name, flags, Mode::from_bits_truncate(mode)) {
            Ok(fd) => return Ok(Arc::new(RealOwnFile(File::from(fd)))),
            // Somebody else was faster: look what it is.
            Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        format!(
            "`{}` is made and removed by others all the time",
            path.display()
        ),
    ))
}

#[derive(Debug)]
struct RealOwnFile(File);

impl OwnFile for RealOwnFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, buffer, offset)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        write_all(parts, offset, |parts, offset| match parts {
            [one] => pwrite(self.0.as_fd(), one, offset),
            parts => pwritev(self.0.as_fd(), parts, offset),
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn stat(&self) -> io::Result<Stat> {
        stat_of(&self.0, false)
    }
}

/// Writes all parts in as many calls as it takes.
fn write_all(
    parts: &[IoSlice<'_>],
    mut offset: u64,
    mut write: impl FnMut(&[IoSlice<'_>], i64) -> nix::Result<usize>,
) -> io::Result<()> {
    let mut rest = parts;
    // How much of the first of them is written.
    let mut begun = 0;
    loop {
        while rest.first().is_some_and(|part| part.len() == begun) {
            rest = &rest[1..];
            begun = 0;
        }
        let Some(first) = rest.first() else {
            return Ok(());
        };
        let at = i64::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let written = if begun > 0 {
            write(&[IoSlice::new(&first[begun..])], at)
        } else {
            write(&rest[..rest.len().min(MOST_PARTS)], at)
        };
        let mut written = match written {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        offset += written as u64;
        while let Some(part) = rest.first()
            && written >= part.len() - begun
        {
            written -= part.len() - begun;
            rest = &rest[1..];
            begun = 0;
        }
        begun += written;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn our_own_file_is_made_written_cut_and_found_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let (host, dir) = (RealHost::new(), folder.path().join("a/b"));
        host.make_dir(&dir).expect("made");
        let path = dir.join("checkpoint");
        let missing = host.open(&dir, &path, None).expect_err("none yet");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let file = host.open(&dir, &path, Some(0o600)).expect("made");
        let many: Vec<_> = (0..3000_u32).map(u32::to_ne_bytes).collect();
        let parts: Vec<_> = many.iter().map(|part| IoSlice::new(part)).collect();
        file.write_at(&parts, 10).expect("written");
        file.write_at(&[IoSlice::new(b"head")], 0).expect("written");
        file.sync().expect("synced");
        host.sync_dir(&dir).expect("synced");
        let again = host
            .open(folder.path(), &path, Some(0o600))
            .expect("opened");
        assert_eq!(again.stat().expect("known").size, 12_010);
        let mut bytes = [0; 14];
        assert_eq!(again.read_at(&mut bytes, 0).expect("read"), 14);
        assert_eq!(&bytes, b"head\0\0\0\0\0\0\0\0\0\0");
        again.set_len(4).expect("cut");
        assert_eq!(again.read_at(&mut bytes, 4).expect("read"), 0);
        let mode = std::fs::metadata(&path).expect("there").permissions();
        assert_eq!(mode.mode() & 0o7777, 0o600);
        host.rename(&path, &dir.join("old")).expect("renamed");
        assert_eq!(host.names(&dir).expect("listed"), ["old"]);
        assert_eq!(again.stat().expect("known").links, 1);
        host.remove(&dir.join("old")).expect("removed");
        assert_eq!(again.stat().expect("known").links, 0);
        let space = host.space(&dir).expect("known");
        assert!(space.free <= space.total && space.total > 0);
    }

    #[test]
    fn nothing_is_written_through_a_link_or_to_what_is_no_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let host = RealHost::new();
        for dir in ["out/real", "secret"] {
            host.make_dir(&at(dir)).expect("made");
        }
        std::fs::write(at("secret/file"), "secret").expect("written");
        symlink(at("secret"), at("out/dir")).expect("linked");
        symlink(at("secret/file"), at("out/file")).expect("linked");
        symlink(at("secret/new"), at("out/dangling")).expect("linked");
        nix::unistd::mkfifo(&at("out/fifo"), Mode::S_IRWXU).expect("made");
        for path in [
            "out/dir/file",
            "out/dir/new",
            "out/file",
            "out/dangling",
            "out/fifo",
            "out/real",
            "out",
            "out/real/../../secret/file",
            "secret/file",
        ] {
            let error = host
                .open(&at("out"), &at(path), Some(0o644))
                .expect_err(path);
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}: {error}");
        }
        assert_eq!(host.names(&at("secret")).expect("listed"), ["file"]);
        // What the operator wrote may go through links.
        assert!(host.open(&at("out/dir"), &at("out/dir/file"), None).is_ok());
    }

    proptest! {
        #[test]
        fn a_short_write_goes_on_where_it_stopped(
            texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..30),
            chunk in 1_usize..50,
        ) {
            let parts: Vec<_> = texts.iter().map(|text| IoSlice::new(text)).collect();
            let mut file: Vec<u8> = Vec::new();
            let mut interrupted = false;
            write_all(&parts, 0, |parts, offset| {
                interrupted = !interrupted;
                if interrupted {
                    return Err(Errno::EINTR);
                }
                assert_eq!(offset as usize, file.len());
                let before = file.len();
                file.extend(parts.iter().flat_map(|part| part.iter()).take(chunk));
                Ok(file.len() - before)
            })
            .expect("written");
            prop_assert_eq!(file, texts.concat());
        }
    }
}
