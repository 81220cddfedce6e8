//! The named backend: two POSIX segments of the `shared_memory` crate.
//! Place: behind `Backend::Posix`; Docker and standalone, one trust domain, where no descriptor can be handed over.
//! It can neither seal nor pass a descriptor, which is why memfd is the default; nothing else differs.
//! Invariants: the daemon makes both segments, reserves their memory (a full /dev/shm is an error here, not a SIGBUS
//! later), gives them to the shim's user, and then reads and writes them as files: whatever the shim does to its
//! segment, a `pread` fails where a mapping would kill. The names are gone when the ring is dropped.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use shared_memory::{Shmem, ShmemConf};

use super::consume::DaemonMemory;
use super::layout::{PAGE, capacity};
use super::mapping::Mapping;
use super::produce::ShimMemory;
use super::words::Words;
use super::{Made, Offer};

/// The names of a ring's segments, unlinked when dropped.
#[derive(Debug)]
pub(super) struct Names(Vec<PathBuf>);

impl Drop for Names {
    fn drop(&mut self) {
        for path in &self.0 {
            // Gone already is as good: the shim's user owns it and may have removed it.
            drop(std::fs::remove_file(path));
        }
    }
}

/// Makes a ring of `2^capacity_log2` bytes for the shim that runs as `owner` (uid, gid).
///
/// # Errors
/// As the kernel gives them; `StorageFull` where `/dev/shm` has no room.
pub fn make(capacity_log2: u8, generation: u64, owner: Option<(u32, u32)>) -> io::Result<Made> {
    let mut names = Names(Vec::with_capacity(2));
    let (data, data_name) = segment(PAGE as u64 + capacity(capacity_log2), owner, &mut names)?;
    let (control, control_name) = segment(PAGE as u64, owner, &mut names)?;
    let daemon = DaemonMemory::files(data, control, names);
    daemon.write_constants(generation);
    Ok(Made {
        daemon,
        offer: Offer::Posix {
            data: data_name,
            control: control_name,
        },
    })
}

/// Opens the shim's end.
///
/// # Errors
/// `InvalidData` where a segment is too short; else as the crate gives them.
pub fn open(data: &str, control: &str, capacity_log2: u8) -> io::Result<ShimMemory> {
    let length = PAGE as u64 + capacity(capacity_log2);
    let data = attach(data, length)?;
    let control = attach(control, PAGE as u64)?;
    Ok(ShimMemory::new(
        Words::new(Mapping::posix(data)),
        Words::new(Mapping::posix(control)),
    ))
}

fn segment(
    length: u64,
    owner: Option<(u32, u32)>,
    names: &mut Names,
) -> io::Result<(File, String)> {
    let size = usize::try_from(length).map_err(io::Error::other)?;
    let mut segment = ShmemConf::new()
        .size(size)
        .create()
        .map_err(io::Error::other)?;
    // The crate would unlink at drop, too; but the mapping is dropped here, and the name must stay.
    segment.set_owner(false);
    let name = segment.get_os_id().to_owned();
    let path = path_of(&name)?;
    names.0.push(path.clone());
    drop(segment);
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    nix::fcntl::fallocate(
        &file,
        nix::fcntl::FallocateFlags::empty(),
        0,
        i64::try_from(length).map_err(io::Error::other)?,
    )?;
    if let Some((user, group)) = owner {
        // Not ours to give where the daemon has no such right: the shim then runs as the same user, or says EACCES.
        let given = nix::unistd::fchown(&file, Some(user.into()), Some(group.into()));
        if given.is_err() && nix::unistd::geteuid().as_raw() != user {
            given?;
        }
    }
    Ok((file, name))
}

fn attach(name: &str, length: u64) -> io::Result<Shmem> {
    path_of(name)?;
    let segment = ShmemConf::new()
        .os_id(name)
        .open()
        .map_err(io::Error::other)?;
    if (segment.len() as u64) < length {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "shared memory is shorter than the ring it should hold",
        ));
    }
    Ok(segment)
}

/// Where Linux keeps a segment; a name with a slash or a dot first is none of ours.
fn path_of(name: &str) -> io::Result<PathBuf> {
    let bare = name.trim_start_matches('/');
    if bare.is_empty() || bare.contains('/') || bare.starts_with('.') {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    Ok(Path::new("/dev/shm").join(bare))
}
