//! The node's socket: whatever bytes come, they are one whole message or none.

use proptest::prelude::*;
use ringpilot_shared::follow::{Identity, StreamKey};
use ringpilot_shared::host::Stat;
use ringpilot_shared::wire::handshake::{CopySeen, MessageError, ToDaemon, ToShim};
use ringpilot_shared::wire::socket::{self, Received};
use ringpilot_shared::wire::{MESSAGE_LIMIT, STRING_LIMIT};
use std::os::fd::{AsFd, AsRawFd};

fn key() -> impl Strategy<Value = StreamKey> {
    any::<(u64, u16)>().prop_map(|(id, generation)| StreamKey { id, generation })
}

fn identity() -> impl Strategy<Value = Identity> {
    any::<(u64, Option<i64>, u64, u128, u32, u64)>().prop_map(
        |(inode, birth_ns, device, boot, head_len, head)| Identity {
            inode,
            birth_ns,
            device,
            boot,
            head_len,
            head,
        },
    )
}

fn stat() -> impl Strategy<Value = Stat> {
    any::<(u64, u64, Option<i64>, u64, u64, u64, i64, bool)>().prop_map(
        |(device, inode, birth_ns, size, disk_bytes, links, modified_ns, may_hang)| Stat {
            device,
            inode,
            birth_ns,
            size,
            disk_bytes,
            links,
            modified_ns,
            may_hang,
        },
    )
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..=STRING_LIMIT)
}

fn path() -> impl Strategy<Value = std::path::PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    bytes().prop_map(|bytes| std::ffi::OsString::from_vec(bytes).into())
}

fn to_daemon() -> impl Strategy<Value = ToDaemon> {
    prop_oneof![
        (any::<(u16, u16, u64, u64, u8)>()).prop_map(
            |(oldest, newest, schema, epoch, capacity_log2)| ToDaemon::Hello {
                oldest,
                newest,
                schema,
                epoch,
                capacity_log2
            }
        ),
        (
            any::<u64>(),
            key(),
            stat(),
            identity(),
            prop::option::of(key()),
            any::<[bool; 3]>(),
            path()
        )
            .prop_map(
                |(want, stream, stat, identity, after, [known, existed, finished], path)| {
                    ToDaemon::Seen {
                        want,
                        stream,
                        stat,
                        identity,
                        after,
                        known,
                        existed,
                        finished,
                        path,
                    }
                }
            ),
        (
            key(),
            key(),
            identity(),
            prop::option::of((path(), identity())),
            any::<u64>()
        )
            .prop_map(|(old, new, identity, copy, size)| ToDaemon::Truncated {
                old,
                new,
                identity,
                copy: copy.map(|(path, identity)| CopySeen {
                    path,
                    identity,
                    size,
                    modified_ns: 7
                }),
                size,
                modified_ns: -7,
            }),
        any::<u64>().prop_map(|unread| ToDaemon::Bye { unread }),
    ]
}

proptest! {
    #[test]
    fn what_a_shim_says_is_what_the_daemon_hears(message in to_daemon()) {
        let bytes = message.write().expect("every path that can be told fits, a copy's beside it");
        prop_assert!(bytes.len() <= MESSAGE_LIMIT);
        prop_assert_eq!(ToDaemon::read(&bytes), Ok(message));
    }

    #[test]
    fn a_message_that_is_cut_or_has_more_is_refused(message in to_daemon(), cut in any::<prop::sample::Index>()) {
        let mut bytes = message.write().expect("it fits");
        let whole = bytes.len();
        let cut = cut.index(whole);
        prop_assert!(ToDaemon::read(&bytes[..cut]).is_err());
        bytes.push(0);
        prop_assert!(ToDaemon::read(&bytes).is_err());
    }

    #[test]
    fn no_bytes_harm_either_end(bytes in prop::collection::vec(any::<u8>(), 0..1100), kind in 0_u8..120) {
        let mut named = bytes.clone();
        if let Some(first) = named.first_mut() {
            *first = kind;
        }
        for bytes in [&bytes, &named] {
            if let Ok(message) = ToDaemon::read(bytes) {
                prop_assert_eq!(message.write(), Some(bytes.clone()), "one form for each message");
            }
            if let Ok(message) = ToShim::read(bytes) {
                prop_assert_eq!(message.write(), Some(bytes.clone()));
            }
        }
    }
}

#[test]
fn a_string_that_is_too_long_is_not_told() {
    let too_long = ToDaemon::Declare {
        name: vec![b'x'; STRING_LIMIT + 1],
        value: Vec::new(),
        more: false,
    };
    assert_eq!(too_long.write(), None);
    assert_eq!(ToDaemon::read(&[99]), Err(MessageError::Kind(99)));
}

#[test]
fn messages_keep_apart_and_descriptors_come_only_to_who_asks() {
    let dir = tempfile::tempdir().unwrap();
    // Longer than a socket's address may be.
    let deep = dir.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let path = deep.join("s");
    let listener = socket::listen_at(&path, 0o666).unwrap();
    assert!(socket::accept(listener.as_fd()).unwrap().is_none());
    let shim = socket::connect_to(&path).unwrap();
    let daemon = socket::accept(listener.as_fd()).unwrap().unwrap();
    assert!(socket::peer(daemon.as_fd()).is_ok());
    let mut buffer = [0; MESSAGE_LIMIT];
    assert!(matches!(
        socket::receive(daemon.as_fd(), &mut buffer, None).unwrap(),
        Received::Nothing
    ));
    let fd = shim.as_raw_fd();
    assert!(socket::send(shim.as_fd(), b"one", &[fd, fd]).unwrap());
    assert!(socket::send(shim.as_fd(), &[7; MESSAGE_LIMIT + 1], &[]).unwrap());
    assert!(matches!(
        socket::receive(daemon.as_fd(), &mut buffer, None).unwrap(),
        Received::Message(3)
    ));
    assert!(matches!(
        socket::receive(daemon.as_fd(), &mut buffer, None).unwrap(),
        Received::TooLong
    ));
    assert!(socket::send(daemon.as_fd(), b"ring", &[daemon.as_raw_fd()]).unwrap());
    let mut descriptors = Vec::new();
    assert!(matches!(
        socket::receive(shim.as_fd(), &mut buffer, Some(&mut descriptors)).unwrap(),
        Received::Message(4)
    ));
    assert_eq!(descriptors.len(), 1);
}
