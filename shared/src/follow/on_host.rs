//! The walk over the host's own paths: a container's root, a mount's source, what an operator names.
//! Place: part of `open`; the container's walk begins and goes on where these end.
//! Invariants: nothing above `host_root` is ever reached, an absolute link begins there; a volume within another volume
//! of the same container does not leave that one; the root of a process is entered only while it is the container's,
//! and from there on it is the top.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fstat};

use super::Mount;
use super::mounts::{Prone, is_named, upper_of_root};
use super::open::{
    Ground, Level, Node, OpenError, PROC, Step, Walk, again, file_system, path_of, push_steps,
    refuse_standard,
};

/// A process's mount table is read up to this.
const MOST_MOUNTINFO: u64 = 4 * 1024 * 1024;

/// Whether a host path may leave what it begins at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fence {
    Open,
    Closed,
}

impl Walk<'_> {
    /// Where a mount comes from. A volume within another volume of the same container is reached without leaving
    /// that: who can write to the outer one could else make the inner one mean any directory of the host.
    pub(super) fn mount(&mut self, mount: &Mount) -> Result<Ground, OpenError> {
        let outer = self
            .view
            .mounts
            .iter()
            .map(|other| other.host.as_path())
            .filter(|outer| *outer != mount.host && *outer != Path::new("/"))
            .filter_map(|outer| Some((outer, mount.host.strip_prefix(outer).ok()?)))
            .max_by_key(|(_, inner)| inner.as_os_str().len());
        let top = self.host_root()?;
        match outer {
            None => Ok(self.on_host(top, &mount.host, Fence::Open)?.0),
            Some((outer, inner)) => {
                let base = self.on_host(top, outer, Fence::Open)?.0;
                match self.on_host(base, inner, Fence::Closed) {
                    Ok((ground, _)) => Ok(ground),
                    Err(OpenError::Escapes { .. }) => Err(OpenError::Escapes {
                        at: mount.host.clone(),
                    }),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Where the host is seen.
    pub(super) fn host_root(&self) -> Result<Ground, OpenError> {
        let path = if self.view.host_root == Path::new("") {
            Path::new("/")
        } else {
            &self.view.host_root
        };
        let mut real = PathBuf::new();
        if !self.tables[0].is_empty() {
            real = path.canonicalize().map_err(|source| OpenError::Io {
                at: path.into(),
                source,
            })?;
            if let Some(device) = self.tables[0].above(&real) {
                self.enter(device, &real)?;
            }
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = again(|| open(path, flags, Mode::empty()))
            .map_err(|error| OpenError::at(path, error))?;
        Ok(Ground { fd, real, table: 0 })
    }

    /// A path on the host, from `base` on: above that nothing is ever reached.
    pub(super) fn on_host(
        &mut self,
        base: Ground,
        path: &Path,
        fence: Fence,
    ) -> Result<(Ground, PathBuf), OpenError> {
        let mut stack = vec![Level {
            name: OsString::new(),
            ground: Some(base),
        }];
        // A process's root is entered like a container's: its links begin there.
        let mut floor = 0;
        let mut ahead = Vec::new();
        push_steps(&mut ahead, path);
        loop {
            let leaves = match ahead.pop() {
                None => break,
                Some(Step::Root) => {
                    stack.truncate(floor + 1);
                    true
                }
                Some(Step::Up) if stack.len() > floor + 1 => {
                    stack.pop();
                    false
                }
                Some(Step::Up) => true,
                Some(Step::Down(name)) => {
                    let here = || path_of(&stack).join(&name);
                    let Some(ground) = stack.last().and_then(|level| level.ground.as_ref()) else {
                        return Err(OpenError::NotFound { at: here() });
                    };
                    let more = !ahead.is_empty();
                    match self.look(ground, &name, &here, more)? {
                        Node::Ground(ground) => stack.push(Level {
                            name,
                            ground: Some(ground),
                        }),
                        Node::Link(..) if name == "root" && is_proc(&ground.fd) => {
                            let ground = self.process_root(ground, &here())?;
                            stack.push(Level {
                                name,
                                ground: Some(ground),
                            });
                            floor = stack.len() - 1;
                        }
                        Node::Link(target, _) => {
                            self.count_link(&here())?;
                            if self.view.is_host && !more {
                                refuse_standard(&path_of(&stack).join(&target), &here())?;
                            }
                            push_steps(&mut ahead, Path::new(&target));
                        }
                    }
                    false
                }
            };
            if leaves && fence == Fence::Closed {
                return Err(OpenError::Escapes { at: path.into() });
            }
        }
        let at = path_of(&stack);
        match stack.pop().and_then(|level| level.ground) {
            Some(ground) => Ok((ground, at)),
            None => Err(OpenError::NotFound { at }),
        }
    }

    /// The root of a process, from its directory in /proc, which stays this process's whatever becomes of its number.
    ///
    /// The number itself may already be another process's: a container's links would then be walked in that one's
    /// root, the host's perhaps. So where the container's upper directory is known, it must be what is mounted there.
    fn process_root(&mut self, process: &Ground, here: &Path) -> Result<Ground, OpenError> {
        let fail = |error| OpenError::at(here, error);
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let table = openat(&process.fd, "mountinfo", flags, Mode::empty()).map_err(fail)?;
        let mut text = Vec::new();
        File::from(table)
            .take(MOST_MOUNTINFO)
            .read_to_end(&mut text)
            .map_err(|source| OpenError::Io {
                at: here.into(),
                source,
            })?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = openat(&process.fd, "root", flags, Mode::empty()).map_err(fail)?;
        if !self.view.is_host {
            let mut known = self
                .view
                .roots
                .iter()
                .filter(|root| !root.starts_with("/proc"));
            let is_ours = if known.clone().next().is_none() {
                !is_same(&fd, &self.host_root()?.fd).map_err(fail)?
            } else {
                upper_of_root(&text)
                    .is_some_and(|mounted| known.any(|root| is_named(root, &mounted)))
            };
            if !is_ours {
                return Err(OpenError::NotFound { at: here.into() });
            }
        }
        let prone = Prone::parse(&text);
        let real = if prone.is_empty() {
            PathBuf::new()
        } else {
            PathBuf::from("/")
        };
        if let Some(device) = prone.at(&real) {
            self.enter(device, here)?;
        }
        self.tables.push(Arc::new(prone));
        Ok(Ground {
            fd,
            real,
            table: self.tables.len() - 1,
        })
    }
}

fn is_proc(fd: &OwnedFd) -> bool {
    file_system(fd) == Some(PROC)
}

fn is_same(a: &OwnedFd, b: &OwnedFd) -> nix::Result<bool> {
    let (a, b) = (fstat(a)?, fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}
