//! Our own walk from a path, as a container names it, to the file that the container would open.
//! Place: under the real `Host`; everything that is followed, listed or watched is found here.
//! Invariants: one component at a time, relative to a directory that is held open, never following a link in the
//! kernel: so nobody can swap a directory for a link between a check and its use. A link's text is walked in the
//! container's view, an absolute one from the container's root; `..` is the level that was come from, never the kernel's.
//! A host path (a root, a mount's source, an operator's own) stays beneath `host_root`. Only a regular file that is
//! not the kernel's own is opened, through the very descriptor that was judged. What a container's user could not
//! read, its links cannot make us read. Needs nothing newer than Linux 4.18 and a `/proc`.
//!
//! A path that lies beneath a mount goes there at once: where only the upper directory of an overlay is at hand, the
//! directories above a mount point need not exist. Runtimes follow links in a mount's destination when they mount it;
//! we compare it as it is written, and the real mount tree is found through `/proc/PID/root`, where that is a root.
//! Source of the overlay's ways: Documentation/filesystems/overlayfs.rst (whiteouts, upperdir).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::fstatfs;

use super::hang::{Prone, is_named, upper_of_root};
use super::{Mount, View};

/// As many links as the kernel follows in one path.
pub const MOST_LINKS: usize = 40;

/// A process's mount table is read up to this.
const MOST_MOUNTINFO: u64 = 4 * 1024 * 1024;

/// Why a path leads to nothing that is read. `at` is where the walk stopped.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Relative paths mean nothing here.
    #[error("`{}` is not an absolute path", at.display())]
    NotAbsolute {
        /// The path.
        at: PathBuf,
    },
    /// Nothing is there; it may come.
    #[error("`{}` is not there", at.display())]
    NotFound {
        /// The first part of the path that is missing.
        at: PathBuf,
    },
    /// Nothing is known of the file system that it would be in.
    #[error("`{}` lies in no volume, and the container's own file system cannot be seen", at.display())]
    NoRoot {
        /// The path.
        at: PathBuf,
    },
    /// Something else than a regular file stands there.
    #[error("`{}` is {what}, not a regular file", at.display())]
    NotRegular {
        /// The path of it.
        at: PathBuf,
        /// What it is.
        what: What,
    },
    /// The path means the container's standard output or error, which is no file.
    #[error("`{}` is the container's {stream}, not a file", at.display())]
    Standard {
        /// The link, or the path itself.
        at: PathBuf,
        /// Which.
        stream: Stream,
    },
    /// Something that is no directory stands where one is needed.
    #[error("`{}` is not a directory", at.display())]
    NotADirectory {
        /// The path of it.
        at: PathBuf,
    },
    /// Links lead in a circle, or nearly.
    #[error("`{}` runs through more than {MOST_LINKS} links", at.display())]
    TooManyLinks {
        /// The link that was too much.
        at: PathBuf,
    },
    /// A link leads to what its owner may not read.
    #[error("`{}` may not be read by user {owner}, whose link leads there", at.display())]
    NotTheirs {
        /// What it leads to.
        at: PathBuf,
        /// The link's owner.
        owner: u32,
    },
    /// The host's path of a volume, which lies in another volume of the same container, leads out of that.
    #[error("`{}`, where the host has the volume, leads out of another volume of the container", at.display())]
    Escapes {
        /// The link, on the host.
        at: PathBuf,
    },
    /// The kernel does not let us.
    #[error("no permission for `{}`", at.display())]
    NotPermitted {
        /// The path of it.
        at: PathBuf,
    },
    /// The walk enters a mount that may hang, and was not told that it may.
    #[error("`{}` is a network or user-space mount", at.display())]
    MayHang {
        /// The mount point.
        at: PathBuf,
        /// Its device.
        device: u64,
    },
    /// Anything else.
    #[error("`{}`: {source}", at.display())]
    Io {
        /// The path of it.
        at: PathBuf,
        /// As the kernel says.
        source: io::Error,
    },
}

/// What stands where a regular file should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character or block device.
    Device,
    /// A file that the kernel makes up, as in /proc: reading it is no reading of a log.
    Kernel,
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Directory => "a directory",
            Self::Fifo => "a FIFO",
            Self::Socket => "a socket",
            Self::Device => "a device",
            Self::Kernel => "one of the kernel's own files",
        })
    }
}

/// A standard stream of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Out => "stdout",
            Self::Err => "stderr",
        })
    }
}

impl OpenError {
    /// The one within an error of the real [`Host`](crate::host::Host).
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// What the user can do; `None` where waiting is all.
    #[must_use]
    pub fn cure(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotAbsolute { .. } => "write the path from `/` on",
            Self::NotFound { .. } | Self::MayHang { .. } | Self::Io { .. } => return None,
            Self::NoRoot { .. } => {
                "mount a volume there, or let the daemon see the host's processes (hostPID) and /proc"
            }
            Self::NotRegular {
                what: What::Directory,
                ..
            } => "name the files in it, such as `/logs/*.log`",
            Self::NotRegular { .. } => "write the log to a regular file, or to stdout",
            Self::Standard { .. } => "declare `NAME=stdout` instead of the path",
            Self::NotADirectory { .. } => "correct the path",
            Self::TooManyLinks { .. } => "name the file that the links lead to",
            Self::NotTheirs { .. } => {
                "let the link's owner read the file, or name the file itself instead of the link"
            }
            Self::Escapes { .. } => "mount the volume by its real path",
            Self::NotPermitted { .. } => {
                "let the daemon run as root with CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE"
            }
        })
    }

    /// Whether another root of the container may have what this one has not.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::NoRoot { .. })
    }

    pub(crate) fn at(at: impl Into<PathBuf>, error: Errno) -> Self {
        let at = at.into();
        match error {
            // A process that ended meanwhile took its root along.
            Errno::ENOENT | Errno::ESRCH => Self::NotFound { at },
            Errno::ENOTDIR => Self::NotADirectory { at },
            Errno::EACCES | Errno::EPERM => Self::NotPermitted { at },
            error => Self::Io {
                at,
                source: error.into(),
            },
        }
    }
}

impl From<OpenError> for io::Error {
    fn from(error: OpenError) -> Self {
        let kind = match &error {
            OpenError::NotFound { .. } | OpenError::NoRoot { .. } => io::ErrorKind::NotFound,
            OpenError::NotADirectory { .. } => io::ErrorKind::NotADirectory,
            OpenError::NotTheirs { .. }
            | OpenError::NotPermitted { .. }
            | OpenError::Escapes { .. } => io::ErrorKind::PermissionDenied,
            OpenError::MayHang { .. } => io::ErrorKind::Unsupported,
            OpenError::Io { source, .. } => source.kind(),
            OpenError::NotAbsolute { .. }
            | OpenError::NotRegular { .. }
            | OpenError::Standard { .. }
            | OpenError::TooManyLinks { .. } => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}

/// What a walk may enter.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// The mounts of this process that may hang.
    pub prone: Arc<Prone>,
    /// Those of them that this walk may enter, because it runs where it may be stuck.
    pub entered: Vec<u64>,
}

/// Where a walk ended: held open, but not for reading.
#[derive(Debug)]
pub struct Place {
    /// Opened with O_PATH.
    pub fd: OwnedFd,
    /// What it was when it was reached.
    pub stat: FileStat,
    /// Its path in the container, without links.
    pub path: PathBuf,
}

/// Opens the regular file that `path` names in `view`, in the first root that has it.
///
/// # Errors
/// What stands there instead, or why the walk ended.
pub fn file(view: &View, path: &Path, limits: &Limits) -> Result<File, OpenError> {
    let place = first_place(view, path, Goal::File, limits)?;
    let what = match SFlag::from_bits_truncate(place.stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG if is_kernels(&place.fd) => What::Kernel,
        SFlag::S_IFREG => {
            // The descriptor itself is opened anew: what was judged is what is read. O_NONBLOCK for leases.
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
            return match again(|| open(held(&place.fd).as_path(), flags, Mode::empty())) {
                Ok(fd) => Ok(File::from(fd)),
                Err(error) => Err(OpenError::at(path, error)),
            };
        }
        SFlag::S_IFDIR => What::Directory,
        SFlag::S_IFIFO => What::Fifo,
        SFlag::S_IFSOCK => What::Socket,
        _ => What::Device,
    };
    Err(OpenError::NotRegular {
        at: place.path,
        what,
    })
}

/// The directory that `path` names in `view`: one place for each root that has it, the best first.
///
/// # Errors
/// Why the walk ended in every root; a root that is missing is no error while another has it.
pub fn directories(view: &View, path: &Path, limits: &Limits) -> Result<Vec<Place>, OpenError> {
    all_places(view, path, Goal::Directory, limits)
}

/// What `path` names in `view`, directory or file, in each root that has it.
///
/// # Errors
/// As [`directories`].
pub fn places(view: &View, path: &Path, limits: &Limits) -> Result<Vec<Place>, OpenError> {
    all_places(view, path, Goal::Any, limits)
}

/// The path under which the kernel opens exactly what a descriptor stands for.
#[must_use]
pub fn held(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// What a mount of the container's is.
///
/// # Errors
/// As its host path gives them.
pub(crate) fn mount_stat(
    view: &View,
    mount: &Mount,
    limits: &Limits,
) -> Result<FileStat, OpenError> {
    let ground = Walk::new(view, Goal::Any, limits).mount(mount)?;
    fstat(&ground.fd).map_err(|error| OpenError::at(&mount.host, error))
}

fn first_place(view: &View, path: &Path, goal: Goal, limits: &Limits) -> Result<Place, OpenError> {
    let mut missing = None;
    for root in candidates(view) {
        let mut walk = Walk::new(view, goal, limits);
        match walk.whole(root, path) {
            Err(error) if error.is_missing() && walk.asked_root => {
                missing.get_or_insert(error);
            }
            result => return result,
        }
    }
    Err(missing.unwrap_or(OpenError::NotFound { at: path.into() }))
}

fn all_places(
    view: &View,
    path: &Path,
    goal: Goal,
    limits: &Limits,
) -> Result<Vec<Place>, OpenError> {
    let mut places: Vec<Place> = Vec::new();
    let mut failed = None;
    for root in candidates(view) {
        let mut walk = Walk::new(view, goal, limits);
        match walk.whole(root, path) {
            Ok(place) => {
                let is_new = |other: &Place| {
                    (other.stat.st_dev, other.stat.st_ino) != (place.stat.st_dev, place.stat.st_ino)
                };
                if places.iter().all(is_new) {
                    places.push(place);
                }
            }
            // It must run where it may be stuck: then all roots are walked there.
            Err(error @ OpenError::MayHang { .. }) => return Err(error),
            Err(error) => {
                failed.get_or_insert(error);
            }
        }
        if !walk.asked_root {
            break;
        }
    }
    match failed {
        Some(error) if places.is_empty() => Err(error),
        _ => Ok(places),
    }
}

/// The roots to try; at least one try, for what lies in a mount.
fn candidates(view: &View) -> impl Iterator<Item = Option<&Path>> {
    let none = view.is_host || view.roots.is_empty();
    let roots = if none { &[] } else { view.roots.as_slice() };
    roots
        .iter()
        .map(|root| Some(root.as_path()))
        .chain(none.then_some(None))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    File,
    Directory,
    Any,
}

#[derive(Debug)]
enum Step {
    Root,
    Up,
    Down(OsString),
}

/// A level of the path that is walked: in a container some may not be opened, because a mount lies beneath them.
struct Level {
    name: OsString,
    ground: Option<Ground>,
}

/// An opened part of the path.
struct Ground {
    fd: OwnedFd,
    /// Where it is in the tree of `table`; empty while that has nothing that may hang.
    real: PathBuf,
    /// Whose mount table tells what may hang here: an index into `Walk::tables`.
    table: usize,
}

/// Who made a link that was followed, other than root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    uid: u32,
    gid: u32,
}

const SEARCH: u32 = 1;
const READ: u32 = 4;

impl Owner {
    /// Whether the mode lets the owner. Its other groups are not known.
    fn may(self, stat: &FileStat, want: u32) -> bool {
        let shift = match (stat.st_uid == self.uid, stat.st_gid == self.gid) {
            (true, _) => 6,
            (false, true) => 3,
            (false, false) => 0,
        };
        (stat.st_mode >> shift) & want == want
    }
}

struct Walk<'a> {
    view: &'a View,
    goal: Goal,
    entered: &'a [u64],
    tables: Vec<Arc<Prone>>,
    links: usize,
    owners: Vec<Owner>,
    /// Whether the result depends on the container's root.
    asked_root: bool,
}

impl<'a> Walk<'a> {
    fn new(view: &'a View, goal: Goal, limits: &'a Limits) -> Self {
        Self {
            view,
            goal,
            entered: &limits.entered,
            tables: vec![Arc::clone(&limits.prone)],
            links: 0,
            owners: Vec::new(),
            asked_root: false,
        }
    }

    fn whole(&mut self, root: Option<&Path>, path: &Path) -> Result<Place, OpenError> {
        if !path.is_absolute() {
            return Err(OpenError::NotAbsolute { at: path.into() });
        }
        refuse_standard(path, path)?;
        let (ground, path) = if self.view.is_host {
            let top = self.host_root()?;
            self.on_host(top, path, Fence::Open)?
        } else {
            self.in_container(root, path)?
        };
        let stat = fstat(&ground.fd).map_err(|error| OpenError::at(&path, error))?;
        self.let_owners(&stat, READ, &path)?;
        if self.goal == Goal::Directory && !is(&stat, SFlag::S_IFDIR) {
            return Err(OpenError::NotADirectory { at: path });
        }
        Ok(Place {
            fd: ground.fd,
            stat,
            path,
        })
    }

    /// A path in the container, over its mounts and one of its roots.
    fn in_container(
        &mut self,
        root: Option<&Path>,
        path: &Path,
    ) -> Result<(Ground, PathBuf), OpenError> {
        let mut stack = vec![Level {
            name: OsString::new(),
            ground: None,
        }];
        let mut ahead = Vec::new();
        push_steps(&mut ahead, path);
        loop {
            let name = match ahead.pop() {
                Some(Step::Root) => {
                    stack.truncate(1);
                    continue;
                }
                Some(Step::Up) => {
                    // Above the root is the root.
                    if stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                Some(Step::Down(name)) => Some(name),
                None => None,
            };
            let reached = stack.iter().rposition(|level| level.ground.is_some());
            if let Some(name) = &name
                && let Some((mount, depth)) = self.mount_ahead(&stack, name, &ahead, reached)
            {
                ahead.push(Step::Down(name.clone()));
                while stack.len() > depth + 1 {
                    ahead.extend(stack.pop().map(|level| Step::Down(level.name)));
                }
                while stack.len() <= depth {
                    let Some(Step::Down(name)) = ahead.pop() else {
                        break;
                    };
                    stack.push(Level { name, ground: None });
                }
                let ground = self.mount(mount)?;
                if !self.owners.is_empty() && !ahead.is_empty() {
                    self.let_owners_search(&ground.fd, &path_of(&stack))?;
                }
                if let Some(level) = stack.last_mut() {
                    level.ground = Some(ground);
                }
                continue;
            }
            // Levels that were passed on the way to a mount are opened when something else is sought in them.
            if reached != Some(stack.len() - 1) {
                ahead.extend(name.map(Step::Down));
                let reached = match reached {
                    Some(reached) => reached,
                    None => {
                        stack[0].ground = Some(self.root(root, path)?);
                        0
                    }
                };
                while stack.len() > reached + 1 {
                    ahead.extend(stack.pop().map(|level| Step::Down(level.name)));
                }
                continue;
            }
            let Some(Level {
                ground: Some(ground),
                ..
            }) = stack.last()
            else {
                continue;
            };
            let Some(name) = name else {
                let at = path_of(&stack);
                return match stack.pop().and_then(|level| level.ground) {
                    Some(ground) => Ok((ground, at)),
                    None => Err(OpenError::NotFound { at }),
                };
            };
            let here = path_of(&stack).join(&name);
            match self.look(ground, &name, &here, !ahead.is_empty())? {
                Node::Ground(ground) => {
                    if !self.owners.is_empty() && !ahead.is_empty() {
                        self.let_owners_search(&ground.fd, &here)?;
                    }
                    stack.push(Level {
                        name,
                        ground: Some(ground),
                    });
                }
                Node::Link(target, owner) => {
                    self.count_link(&here)?;
                    if ahead.is_empty() {
                        refuse_standard(&path_of(&stack).join(&target), &here)?;
                    }
                    if owner.uid != 0 && !self.owners.contains(&owner) {
                        self.owners.push(owner);
                    }
                    push_steps(&mut ahead, Path::new(&target));
                }
            }
        }
    }

    /// The mount that lies deepest on the way ahead, deeper than where we stand, and its depth.
    fn mount_ahead(
        &self,
        stack: &[Level],
        name: &OsStr,
        ahead: &[Step],
        reached: Option<usize>,
    ) -> Option<(&'a Mount, usize)> {
        let mut best = None;
        let mut deepest = reached.unwrap_or(0);
        for mount in &self.view.mounts {
            let depth = mount.container.components().skip(1).count();
            if depth <= deepest {
                continue;
            }
            let mut way = stack[1..]
                .iter()
                .map(|level| level.name.as_os_str())
                .chain([name])
                .chain(ahead.iter().rev().map_while(|step| match step {
                    Step::Down(name) => Some(name.as_os_str()),
                    _ => None,
                }));
            let lies_ahead = mount.container.is_absolute()
                && mount
                    .container
                    .components()
                    .skip(1)
                    .all(|part| way.next() == Some(part.as_os_str()));
            if lies_ahead {
                deepest = depth;
                best = Some((mount, depth));
            }
        }
        best
    }

    /// The container's root.
    fn root(&mut self, root: Option<&Path>, path: &Path) -> Result<Ground, OpenError> {
        self.asked_root = true;
        let root = root.ok_or_else(|| OpenError::NoRoot { at: path.into() })?;
        let top = self.host_root()?;
        Ok(self.on_host(top, root, Fence::Open)?.0)
    }

    /// Where a mount comes from. A volume within another volume of the same container is reached without leaving
    /// that: who can write to the outer one could else make the inner one mean any directory of the host.
    fn mount(&mut self, mount: &Mount) -> Result<Ground, OpenError> {
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
    fn host_root(&self) -> Result<Ground, OpenError> {
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
    fn on_host(
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
                    let at = path_of(&stack);
                    let here = at.join(&name);
                    let Some(ground) = stack.last().and_then(|level| level.ground.as_ref()) else {
                        return Err(OpenError::NotFound { at });
                    };
                    let more = !ahead.is_empty();
                    match self.look(ground, &name, &here, more)? {
                        Node::Ground(ground) => stack.push(Level {
                            name,
                            ground: Some(ground),
                        }),
                        Node::Link(..) if name == "root" && is_proc(&ground.fd) => {
                            let ground = self.process_root(ground, &here)?;
                            stack.push(Level {
                                name,
                                ground: Some(ground),
                            });
                            floor = stack.len() - 1;
                        }
                        Node::Link(target, _) => {
                            self.count_link(&here)?;
                            if self.view.is_host && !more {
                                refuse_standard(&at.join(&target), &here)?;
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

    /// What a name stands for, without following it.
    fn look(&self, dir: &Ground, name: &OsStr, here: &Path, more: bool) -> Result<Node, OpenError> {
        let prone = &self.tables[dir.table];
        let mut real = PathBuf::new();
        if !prone.is_empty() {
            real = dir.real.join(name);
            if let Some(device) = prone.at(&real) {
                self.enter(device, here)?;
            }
        }
        let ground = |fd| {
            Node::Ground(Ground {
                fd,
                real,
                table: dir.table,
            })
        };
        let fail = |error| OpenError::at(here, error);
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // With O_DIRECTORY an automount is mounted; and most names on the way are directories.
        if more || self.goal == Goal::Directory {
            let flags = flags | OFlag::O_DIRECTORY;
            match again(|| openat(&dir.fd, name, flags, Mode::empty())) {
                Ok(fd) => return Ok(ground(fd)),
                Err(Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(error) => return Err(fail(error)),
            }
        }
        let fd = again(|| openat(&dir.fd, name, flags, Mode::empty())).map_err(fail)?;
        let stat = fstat(&fd).map_err(fail)?;
        if is(&stat, SFlag::S_IFLNK) {
            let target = readlinkat(&fd, "").map_err(fail)?;
            let owner = Owner {
                uid: stat.st_uid,
                gid: stat.st_gid,
            };
            return Ok(Node::Link(target, owner));
        }
        if is(&stat, SFlag::S_IFCHR) && stat.st_rdev == 0 {
            // An overlay's upper directory says so that the name was deleted.
            return Err(fail(Errno::ENOENT));
        }
        if more && !is(&stat, SFlag::S_IFDIR) {
            return Err(fail(Errno::ENOTDIR));
        }
        Ok(ground(fd))
    }

    fn enter(&self, device: u64, at: &Path) -> Result<(), OpenError> {
        if self.entered.contains(&device) {
            return Ok(());
        }
        Err(OpenError::MayHang {
            at: at.into(),
            device,
        })
    }

    fn count_link(&mut self, at: &Path) -> Result<(), OpenError> {
        self.links += 1;
        if self.links > MOST_LINKS {
            return Err(OpenError::TooManyLinks { at: at.into() });
        }
        Ok(())
    }

    fn let_owners_search(&self, dir: &OwnedFd, at: &Path) -> Result<(), OpenError> {
        let stat = fstat(dir).map_err(|error| OpenError::at(at, error))?;
        self.let_owners(&stat, SEARCH, at)
    }

    /// Lets no link lead where its owner could not go: a container's ordinary user would else read what is only
    /// its root's by making a link to it where we look.
    fn let_owners(&self, stat: &FileStat, want: u32, at: &Path) -> Result<(), OpenError> {
        let Some(owner) = self.owners.iter().find(|owner| !owner.may(stat, want)) else {
            return Ok(());
        };
        // In a user namespace the container's root is another number: the owner of its root directory.
        let is_root = self.view.roots.iter().any(|root| {
            let mut walk = Walk {
                tables: vec![Arc::clone(&self.tables[0])],
                owners: Vec::new(),
                ..*self
            };
            let stat = walk
                .root(Some(root), root)
                .and_then(|ground| fstat(&ground.fd).map_err(|error| OpenError::at(root, error)));
            stat.is_ok_and(|stat| stat.st_uid == owner.uid)
        });
        if is_root {
            return Ok(());
        }
        Err(OpenError::NotTheirs {
            at: at.into(),
            owner: owner.uid,
        })
    }
}

/// Whether a host path may leave what it begins at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fence {
    Open,
    Closed,
}

enum Node {
    Ground(Ground),
    Link(OsString, Owner),
}

/// Puts a path's parts on the stack of steps, the first on top.
fn push_steps(ahead: &mut Vec<Step>, path: &Path) {
    let from = ahead.len();
    ahead.extend(path.components().filter_map(|part| match part {
        Component::RootDir => Some(Step::Root),
        Component::ParentDir => Some(Step::Up),
        Component::Normal(name) => Some(Step::Down(name.to_owned())),
        Component::CurDir | Component::Prefix(_) => None,
    }));
    ahead[from..].reverse();
}

fn path_of(stack: &[Level]) -> PathBuf {
    let mut path = PathBuf::from("/");
    path.extend(stack[1..].iter().map(|level| &level.name));
    path
}

/// Refuses a path that means a standard stream or nothing, however it is written; `..` counts by its letters here.
fn refuse_standard(path: &Path, at: &Path) -> Result<(), OpenError> {
    let mut plain = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            _ => {}
        }
    }
    let stream = match plain.as_os_str().as_bytes() {
        b"/dev/stdout" | b"/dev/fd/1" | b"/dev/console" | b"/dev/tty" => Stream::Out,
        b"/dev/stderr" | b"/dev/fd/2" => Stream::Err,
        b"/dev/null" => {
            return Err(OpenError::NotRegular {
                at: at.into(),
                what: What::Device,
            });
        }
        bytes => {
            // `/proc/self/fd/1`, `/proc/1/fd/1`, `/proc/thread-self/fd/2`.
            let mut parts = bytes.split(|byte| *byte == b'/').skip(1);
            let parts = [
                parts.next(),
                parts.next(),
                parts.next(),
                parts.next(),
                parts.next(),
            ];
            match parts {
                [Some(b"proc"), Some(_), Some(b"fd"), Some(b"1"), None] => Stream::Out,
                [Some(b"proc"), Some(_), Some(b"fd"), Some(b"2"), None] => Stream::Err,
                _ => return Ok(()),
            }
        }
    };
    Err(OpenError::Standard {
        at: at.into(),
        stream,
    })
}

fn is(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

fn is_same(a: &OwnedFd, b: &OwnedFd) -> nix::Result<bool> {
    let (a, b) = (fstat(a)?, fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

/// Calls again what a signal broke off.
fn again<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

const PROC: u64 = 0x9FA0;

fn is_proc(fd: &OwnedFd) -> bool {
    file_system(fd) == Some(PROC)
}

/// The file system's number as statfs(2) lists them.
pub(crate) fn file_system(fd: &impl std::os::fd::AsFd) -> Option<u64> {
    // The type's sign and width differ from one C library to the other; the numbers have 32 bits.
    let number = fstatfs(fd).ok()?.filesystem_type().0 as u64;
    Some(number & 0xFFFF_FFFF)
}

/// Whether a file is one that the kernel makes up: to read it may block, have effects, or tell us what the container
/// is not told, since /proc answers by who asks.
fn is_kernels(fd: &OwnedFd) -> bool {
    matches!(
        file_system(fd),
        Some(
            PROC | 0x6265_6572 // sysfs
                | 0x6462_6720 // debugfs
                | 0x7472_6163 // tracefs
                | 0x0027_E0EB // cgroup
                | 0x6367_7270 // cgroup2
                | 0x7363_6673 // securityfs
                | 0xF97C_FF8C // selinuxfs
                | 0x4341_5D53 // smackfs
                | 0xCAFE_4A11 // bpf
                | 0x6265_6570 // configfs
                | 0xDE5E_81E4 // efivarfs
                | 0x0765_5821 // resctrl
                | 0x1980_0202 // mqueue
                | 0x6E73_6673 // nsfs
        )
    )
}
