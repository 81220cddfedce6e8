//! `--health`: a name in the abstract socket space that stands while the shim is connected.
//! Place: held by the loop; asked by another process of the same container.
//! Invariants: no file is made; the name holds the mount namespace's number, so that containers which share a network
//! (a pod's) are told apart.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::fs::MetadataExt;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};

fn address() -> Option<UnixAddr> {
    // Of the link itself its target says the namespace; stat follows it.
    let namespace = std::fs::metadata("/proc/self/ns/mnt").ok()?.st_ino();
    UnixAddr::new_abstract(format!("ringpilot-shim-{namespace}").as_bytes()).ok()
}

fn end() -> Option<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()
}

/// Stands until it is dropped; nothing where another shim of this container has it.
pub(crate) fn stand() -> Option<OwnedFd> {
    let end = end()?;
    bind(end.as_raw_fd(), &address()?).ok()?;
    listen(&end, Backlog::new(1).ok()?).ok()?;
    Some(end)
}

/// Whether a shim of this container is connected.
pub(crate) fn is_alive() -> bool {
    let asked = || {
        let end = end()?;
        Some(connect(end.as_raw_fd(), &address()?))
    };
    // Nobody accepts: a full queue says as much as a place in it.
    matches!(asked(), Some(Ok(()) | Err(nix::Error::EAGAIN)))
}
