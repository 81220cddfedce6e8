//! One daemon per `data_dir`.
//! Place: taken before the checkpoint is opened, held until the daemon ends; the kernel gives it back after any death.
//! Source: flock(2), which `std::fs::File::try_lock` is on Linux.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::problem::{Problem, of_operator};

/// The name of the file that is locked.
const NAME: &str = "lock";

/// The lock, until it is dropped.
#[derive(Debug)]
#[must_use = "it is unlocked when it is dropped"]
pub struct Lock {
    _file: File,
}

/// Why the lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum Held {
    /// Another daemon has it: wait and try again.
    #[error("`{}` is in use by another ringpilot{}", dir.display(), pid.map_or(String::new(), |pid| format!(" (process {pid})")))]
    ByAnother {
        /// The `data_dir`.
        dir: PathBuf,
        /// Its process id as it sees itself, which may be in another pid namespace.
        pid: Option<u32>,
    },
    /// There is nothing that could be locked: the daemon may go on without.
    #[error("`{}` cannot be locked: {error}", dir.display())]
    Cannot {
        /// The `data_dir`.
        dir: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl Held {
    /// The same in the operator's words.
    pub fn problem(&self) -> Problem {
        let (dir, cure) = match self {
            Self::ByAnother { dir, .. } => (
                dir,
                "stop the other one, or give this one its own `data_dir`; it starts by itself when the other ends",
            ),
            Self::Cannot { dir, .. } => (
                dir,
                "make `data_dir` a folder that the daemon may write; until then nothing keeps a second daemon away",
            ),
        };
        of_operator(
            "data_dir",
            dir.display().to_string(),
            self.to_string(),
            cure,
        )
    }
}

/// Locks `dir`, which is made if it is not there. Does not wait.
///
/// # Errors
/// When another daemon has it, or nothing in it can be locked.
pub fn lock(dir: &Path) -> Result<Lock, Held> {
    let cannot = |error| Held::Cannot {
        dir: dir.to_owned(),
        error,
    };
    // Where it cannot be made, opening it says so.
    drop(std::fs::create_dir_all(dir));
    let path = dir.join(NAME);
    // A read-only `data_dir` is locked as well: by a file that is there already, else by the folder itself.
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .or_else(|_| File::open(&path))
        .or_else(|_| File::open(dir))
        .map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => {
            // Only to tell the next one who has it.
            let noted = file
                .set_len(0)
                .and_then(|()| write!(file, "{}", std::process::id()));
            drop(noted);
            Ok(Lock { _file: file })
        }
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file.take(20).read_to_string(&mut text).ok();
            Err(Held::ByAnother {
                dir: dir.to_owned(),
                pid: pid.and_then(|_| text.trim().parse().ok()),
            })
        }
        Err(TryLockError::Error(error)) => Err(cannot(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_has_the_data_dir_and_gets_it_when_the_first_ends() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = dir.path().join("made/on/the/way");
        let first = lock(&dir).expect("nobody has it");
        let held = lock(&dir).expect_err("the first has it");
        let pid = std::process::id();
        assert!(
            matches!(held, Held::ByAnother { pid: Some(p), .. } if p == pid),
            "{held:?}"
        );
        assert!(
            held.problem()
                .to_string()
                .contains("another ringpilot (process")
        );
        drop(first);
        let _second = lock(&dir).expect("the first has ended");
    }

    #[test]
    fn what_cannot_be_locked_is_told_with_its_cure() {
        let held = lock(Path::new("/proc/nowhere")).expect_err("no such place");
        assert!(matches!(held, Held::Cannot { .. }));
        assert!(held.problem().cure.contains("`data_dir`"));
    }
}
