//! The node's socket: messages whole or not at all, and descriptors with the first.
//! Place: under the shim's link and the daemon's rings; `handshake` says what the bytes mean.
//! Invariants: SOCK_SEQPACKET keeps messages apart; nothing blocks; whoever receives without asking for descriptors is
//! never given any (the kernel drops them), so a pod cannot fill the daemon's table; a longer message than is allowed
//! shows as one (MSG_TRUNC) and is refused.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, socket, sockopt,
};

use super::MESSAGE_LIMIT;
use crate::ring::mapping::adopt;

/// Descriptors that may come with one message.
const MOST_DESCRIPTORS: usize = 3;

fn endpoint() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        flags,
        None,
    )?)
}

/// Runs `with` on an address for `path`: by its folder's descriptor, so that a path may be longer than the 108 bytes
/// of an address and no link in its last part is followed.
fn addressed<T>(path: &Path, with: impl FnOnce(&UnixAddr) -> io::Result<T>) -> io::Result<T> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    let flags =
        nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
    let dir = nix::fcntl::open(dir, flags, nix::sys::stat::Mode::empty())?;
    let short = Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name);
    with(&UnixAddr::new(&short)?)
}

/// Listens at `path`, in place of whatever has that name.
///
/// # Errors
/// As the kernel gives them.
pub fn listen_at(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = endpoint()?;
    addressed(path, |address| Ok(bind(listener.as_raw_fd(), address)?))?;
    open_to(path, mode)?;
    listen(&listener, Backlog::new(8)?)?;
    Ok(listener)
}

/// Sets a socket's mode. Whoever may write its folder may have put a link in its place: what is changed is looked at
/// first, by its descriptor, and is a socket or nothing.
fn open_to(path: &Path, mode: u32) -> io::Result<()> {
    use nix::sys::stat::{Mode, SFlag, fstat};
    let flags =
        nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_CLOEXEC;
    let node = nix::fcntl::open(path, flags, Mode::empty())?;
    let kind = SFlag::from_bits_truncate(fstat(&node)?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFSOCK {
        return Err(io::Error::from(io::ErrorKind::AlreadyExists));
    }
    let itself = Path::new("/proc/self/fd").join(node.as_raw_fd().to_string());
    std::fs::set_permissions(itself, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

/// The next peer that waits at a listening socket, if any.
///
/// # Errors
/// As the kernel gives them.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    match accept4(listener.as_raw_fd(), flags) {
        Ok(fd) => Ok(Some(adopt(fd))),
        Err(nix::Error::EAGAIN | nix::Error::EINTR | nix::Error::ECONNABORTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Connects to the socket at `path`.
///
/// # Errors
/// `NotFound` and `ConnectionRefused` where nobody listens; else as the kernel gives them.
pub fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let end = endpoint()?;
    addressed(path, |address| Ok(connect(end.as_raw_fd(), address)?))?;
    Ok(end)
}

/// The user and group that the other end runs as.
///
/// # Errors
/// As the kernel gives them.
pub fn peer(end: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let credentials = getsockopt(&end, sockopt::PeerCredentials)?;
    Ok((credentials.uid(), credentials.gid()))
}

/// Sends one message, with descriptors; false where the other end does not take more now.
///
/// # Errors
/// As the kernel gives them (`BrokenPipe`: the other end is gone).
pub fn send(end: BorrowedFd<'_>, message: &[u8], descriptors: &[RawFd]) -> io::Result<bool> {
    let parts = [IoSlice::new(message)];
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    match sendmsg::<()>(end.as_raw_fd(), &parts, control, flags, None) {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EINTR | nix::Error::ENOBUFS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What a receive gave.
#[derive(Debug)]
pub enum Received {
    /// A message of so many bytes, at the start of the buffer.
    Message(usize),
    /// One that is longer than a message may be.
    TooLong,
    /// Nothing is there now.
    Nothing,
    /// The other end is gone.
    Closed,
}

/// Receives one message into `buffer`. Descriptors come into `descriptors` where that is given, and are dropped by the
/// kernel where not.
///
/// # Errors
/// As the kernel gives them.
pub fn receive(
    end: BorrowedFd<'_>,
    buffer: &mut [u8; MESSAGE_LIMIT],
    descriptors: Option<&mut Vec<OwnedFd>>,
) -> io::Result<Received> {
    let mut parts = [IoSliceMut::new(&mut buffer[..])];
    let mut space = descriptors
        .is_some()
        .then(|| nix::cmsg_space!([RawFd; MOST_DESCRIPTORS]));
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let received = match recvmsg::<()>(end.as_raw_fd(), &mut parts, space.as_deref_mut(), flags) {
        Ok(received) => received,
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(Received::Nothing),
        Err(nix::Error::ECONNRESET) => return Ok(Received::Closed),
        Err(error) => return Err(error.into()),
    };
    let (bytes, flags) = (received.bytes, received.flags);
    if let Some(descriptors) = descriptors {
        for control in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                descriptors.extend(fds.into_iter().map(adopt));
            }
        }
    }
    Ok(match bytes {
        _ if flags.contains(MsgFlags::MSG_TRUNC) => Received::TooLong,
        // Nobody sends an empty message: it is the end.
        0 => Received::Closed,
        n => Received::Message(n),
    })
}
