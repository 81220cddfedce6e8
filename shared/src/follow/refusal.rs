//! Why a path leads to nothing that is read, in the words of who declared it.
//! Place: what the walk (`open`) ends with; the real `Host` hands it on within an `io::Error`.
//! Invariants: every one says where the walk stopped, as the container names it, and what stood there; where somebody
//! can do something, it says what.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

use super::open::MOST_LINKS;

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
