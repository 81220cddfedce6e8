//! The sealed backend: two memfds that the daemon makes and hands over the socket.
//! Place: behind `Backend::Memfd`; the default wherever the kernel can seal (Linux 5.1).
//! Invariants: neither can change its size (SHRINK, GROW), so a mapped page never vanishes; the control memory is
//! sealed FUTURE_WRITE after the daemon has mapped it, so the pod can only read it; no seal can be added later. The
//! daemon touches nothing of the data but page 0: who fills it pays for it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::consume::DaemonMemory;
use super::layout::{PAGE, capacity};
use super::mapping::Mapping;
use super::produce::ShimMemory;
use super::words::Words;
use super::{Made, Offer};

/// Makes a ring of `2^capacity_log2` bytes.
///
/// # Errors
/// As the kernel gives them; `EINVAL` from the seal before Linux 5.1.
pub fn make(capacity_log2: u8, generation: u64) -> io::Result<Made> {
    let data = memory(c"ringpilot-data", PAGE as u64 + capacity(capacity_log2))?;
    seal(
        &data,
        SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL,
    )?;
    let control = memory(c"ringpilot-control", PAGE as u64)?;
    let control_words = Words::new(Mapping::writable(&control, PAGE)?);
    seal(
        &control,
        SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_FUTURE_WRITE
            | SealFlag::F_SEAL_SEAL,
    )?;
    // Page 0 is mapped read-only: a pod that punches it makes the daemon pay one page, and fails V2.
    let head_words = Words::new(Mapping::readable(&data, PAGE)?);
    let offer = Offer::Memfd {
        data: OwnedFd::from(data.try_clone()?),
        control: OwnedFd::from(control),
    };
    let daemon = DaemonMemory::mapped(data, head_words, control_words);
    daemon.write_constants(generation);
    Ok(Made { daemon, offer })
}

/// Opens the shim's end of a handed-over ring.
///
/// # Errors
/// As mmap gives them; `InvalidData` where the memory is too short.
pub fn open(data: OwnedFd, control: OwnedFd, capacity_log2: u8) -> io::Result<ShimMemory> {
    let length =
        usize::try_from(PAGE as u64 + capacity(capacity_log2)).map_err(io::Error::other)?;
    let data = Words::new(Mapping::writable(&File::from(data), length)?);
    let control = Words::new(Mapping::readable(&File::from(control), PAGE)?);
    Ok(ShimMemory::new(data, control))
}

fn memory(name: &std::ffi::CStr, length: u64) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Linux 6.3 wants to be told that nobody executes it; older kernels do not know the flag.
    let file = memfd_create(name, flags | MFdFlags::from_bits_retain(MFD_NOEXEC_SEAL))
        .or_else(|_| memfd_create(name, flags))
        .map(File::from)?;
    file.set_len(length)?;
    Ok(file)
}

const MFD_NOEXEC_SEAL: nix::libc::c_uint = 8;

fn seal(file: &File, seals: SealFlag) -> io::Result<()> {
    fcntl(file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(())
}
