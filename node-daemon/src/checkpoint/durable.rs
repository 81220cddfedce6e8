//! Make names survive a power loss: of new files, and of the folders that were made for them.
//! Place: the checkpoint and the file output, which both make files that must not vanish.
//! Source: fsync(2): syncing a file says nothing of the folder that names it.

use std::io;
use std::path::Path;

use ringpilot_shared::host::Disk;

/// Makes the names in a folder durable, where its file system knows how.
///
/// # Errors
/// As the disk gives them.
pub(crate) fn sync_names(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    match disk.sync_dir(dir) {
        // Some network file systems sync no folder; theirs are as durable as the server makes them.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Makes the names of a folder and of all above it durable, whoever made them and when.
///
/// # Errors
/// As the disk gives them; where we may not write, we have made nothing.
pub(crate) fn sync_way_to(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    for above in dir.ancestors().skip(1) {
        match sync_names(disk, above) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) => {}
            other => other?,
        }
    }
    Ok(())
}
