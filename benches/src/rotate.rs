//! A log that is rotated, in every way that logs are.
//! Invariants: it is rotated between two writes of its writer, so that what each file holds is known exactly.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rotation {
    Rename,
    CopyTruncate,
    Recreate,
    SymlinkSwap,
}

pub(crate) const ROTATIONS: [Rotation; 4] = [
    Rotation::Rename,
    Rotation::CopyTruncate,
    Rotation::Recreate,
    Rotation::SymlinkSwap,
];

/// A log that is rotated.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    rotation: Rotation,
    /// What is written now.
    pub(crate) file: File,
    /// How often it was rotated.
    pub(crate) rotations: u64,
    /// Rotated files that stay.
    keep: u64,
}

impl Log {
    /// `dir/app.log`, of which `keep` older ones stay.
    ///
    /// # Errors
    /// As the file system gives them.
    pub(crate) fn new(dir: &Path, rotation: Rotation, keep: u64) -> std::io::Result<Self> {
        let path = dir.join("app.log");
        let file = if rotation == Rotation::SymlinkSwap {
            let target = dir.join("life.0");
            symlink(&target, &path)?;
            File::create(target)?
        } else {
            File::options().create(true).append(true).open(&path)?
        };
        Ok(Self {
            path,
            rotation,
            file,
            rotations: 0,
            keep,
        })
    }

    /// A rotated form's name: higher is older, as logrotate has it.
    fn older(&self, number: u64) -> PathBuf {
        self.path.with_extension(format!("log.{number}"))
    }

    fn shift(&self) {
        for number in (1..=self.keep).rev() {
            // There may be none yet.
            drop(std::fs::rename(self.older(number), self.older(number + 1)));
        }
        drop(std::fs::remove_file(self.older(self.keep + 1)));
    }

    /// Goes on in another file, or in the same from its beginning.
    ///
    /// # Errors
    /// As the file system gives them.
    pub(crate) fn rotate(&mut self) -> std::io::Result<()> {
        self.rotations += 1;
        let create = || File::options().create(true).append(true).open(&self.path);
        match self.rotation {
            Rotation::Rename => {
                self.shift();
                std::fs::rename(&self.path, self.older(1))?;
                self.file = create()?;
            }
            Rotation::CopyTruncate => {
                self.shift();
                std::fs::copy(&self.path, self.older(1))?;
                self.file.set_len(0)?;
            }
            Rotation::Recreate => {
                std::fs::remove_file(&self.path)?;
                self.file = create()?;
            }
            Rotation::SymlinkSwap => {
                let life = |number: u64| self.path.with_file_name(format!("life.{number}"));
                self.file = File::create(life(self.rotations))?;
                let swap = self.path.with_file_name("swap");
                symlink(life(self.rotations), &swap)?;
                std::fs::rename(swap, &self.path)?;
                if let Some(old) = self.rotations.checked_sub(self.keep) {
                    std::fs::remove_file(life(old))?;
                }
            }
        }
        Ok(())
    }
}
