//! Find the file output's files again after a restart, under their names or the ones they were rotated to.
//! Place: within **ship::file**; handed to `Checkpoint::open`, which knows how long they should be.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringpilot_shared::host::{Disk, OwnFile, Stat};

use super::paths::{parse_rotated, unnoted};
use super::slot::folder;
use crate::checkpoint::durable::{sync_names, sync_way_to};
use crate::checkpoint::{FileMark, Files, Look};

/// The files of every file output.
#[derive(Debug)]
pub struct OwnFiles {
    disk: Arc<dyn Disk>,
    found: HashMap<(PathBuf, u64), Arc<dyn OwnFile>>,
}

impl OwnFiles {
    /// Looks on this disk.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            found: HashMap::new(),
        }
    }

    /// Opens what is called `name` beside `mark`'s path, if it is that file. Its own folder is trusted as far as its
    /// path goes: only the very file that was written is ever touched.
    fn open(&self, mark: &FileMark, path: &Path) -> io::Result<Option<(Arc<dyn OwnFile>, Stat)>> {
        let file = match self.disk.open(folder(path), path, None) {
            Ok(file) => file,
            // No file of ours is a link, a folder or a device.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::NotADirectory
                        | io::ErrorKind::InvalidInput
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let stat = file.stat()?;
        let same = (stat.inode, stat.birth_ns) == (mark.inode, mark.birth_ns);
        Ok(same.then_some((file, stat)))
    }

    fn find(&self, mark: &FileMark) -> io::Result<Option<(Arc<dyn OwnFile>, Stat)>> {
        if let Some(found) = self.open(mark, &mark.path)? {
            return Ok(Some(found));
        }
        let names = match self.disk.names(folder(&mark.path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let own = mark.path.file_name().unwrap_or_default();
        for name in names {
            if let Some((_, false)) = parse_rotated(own, &name)
                && let Some(found) = self.open(mark, &mark.path.with_file_name(&name))?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn is_unnoted(&self, mark: &FileMark) -> bool {
        let sign = unnoted(&mark.path);
        match self.disk.open(folder(&sign), &sign, None) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }
}

impl Files for OwnFiles {
    fn look(&mut self, mark: &FileMark) -> Look {
        match self.find(mark) {
            Ok(Some((file, stat))) => {
                self.found.insert((mark.path.clone(), mark.inode), file);
                Look::Here {
                    length: stat.size,
                    modified_ns: stat.modified_ns,
                    unnoted: self.is_unnoted(mark),
                }
            }
            Ok(None) => Look::Gone,
            Err(error) => Look::Unknown(error),
        }
    }

    fn settle(&mut self, mark: &FileMark, length: u64) -> io::Result<()> {
        let key = (mark.path.clone(), mark.inode);
        let file = self.found.remove(&key).ok_or(io::ErrorKind::NotFound)?;
        if file.stat()?.size > length {
            file.set_len(length)?;
        }
        file.sync()?;
        // A former run may have been killed before it did so.
        sync_names(&*self.disk, folder(&mark.path))?;
        sync_way_to(&*self.disk, folder(&mark.path))
    }
}
