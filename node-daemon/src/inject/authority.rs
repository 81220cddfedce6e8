//! Let the kubelet call: its plugin watcher names, as the `:authority` of its requests, the socket's path with each `/` as
//! `%2F`. No HTTP/2 library of ours takes that as a host: the stream is reset before anybody sees it.
//! Place: between a socket and the gRPC server of [`super::csi`].
//! Invariants: nothing but the value of `:authority` is changed, and no length: HPACK's state is the same on both sides but
//! for that one value, which nobody reads. What is no frame ends the connection.
//! Source: RFC 9113 (frames), RFC 7541 (HPACK); Kubernetes `pkg/kubelet/pluginmanager/operationexecutor`, `dial`.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;

/// `PRI * HTTP/2.0...`
const PREFACE: usize = 24;
/// Length, type, flags, stream.
const HEAD: usize = 9;
/// A frame's payload at most: what a server that says nothing else accepts.
const MOST: usize = 16 * 1024;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;

/// The same connection, with a host that is one.
#[must_use]
pub(super) fn plain(stream: UnixStream) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(4 * MOST);
    let (mut from, mut to) = stream.into_split();
    let (mut answers, mut questions) = tokio::io::split(theirs);
    // Each ends with its side of the connection; what is broken there is told by the side that reads.
    tokio::spawn(async move {
        drop(relay(&mut from, &mut questions).await);
        drop(questions.shutdown().await);
    });
    tokio::spawn(async move {
        drop(tokio::io::copy(&mut answers, &mut to).await);
        drop(to.shutdown().await);
    });
    ours
}

async fn relay(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
) -> io::Result<()> {
    let mut frame = vec![0; PREFACE];
    from.read_exact(&mut frame).await?;
    to.write_all(&frame).await?;
    loop {
        frame.resize(HEAD, 0);
        from.read_exact(&mut frame).await?;
        let length =
            usize::from(frame[0]) << 16 | usize::from(frame[1]) << 8 | usize::from(frame[2]);
        if length > MOST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        frame.resize(HEAD + length, 0);
        from.read_exact(&mut frame[HEAD..]).await?;
        if frame[3] == HEADERS {
            let flags = frame[4];
            name_a_host(flags, &mut frame[HEAD..]).ok_or(io::ErrorKind::InvalidData)?;
        }
        to.write_all(&frame).await?;
    }
}

/// Puts letters where the authority is written, as many as there are bytes. None: it is no HEADERS frame.
fn name_a_host(flags: u8, payload: &mut [u8]) -> Option<()> {
    let padding = match flags & PADDED {
        0 => None,
        _ => Some(usize::from(*payload.first()?)),
    };
    let mut at = usize::from(padding.is_some());
    if flags & PRIORITY != 0 {
        at += 5;
    }
    let end = payload.len().checked_sub(padding.unwrap_or_default())?;
    let block = payload.get_mut(at..end)?;
    at = 0;
    while at < block.len() {
        // How many bits of the first byte are the name's number, and whether a value follows.
        let (bits, is_literal) = match block[at] {
            first if first & 0x80 != 0 => (7, false),
            first if first & 0x40 != 0 => (6, true),
            first if first & 0x20 != 0 => (5, false),
            _ => (4, true),
        };
        let name = number(block, &mut at, bits)?;
        if !is_literal {
            continue;
        }
        if name == 0 {
            let length = number(block, &mut at, 7)?;
            at = at.checked_add(length)?;
        }
        let value = at;
        let length = number(block, &mut at, 7)?;
        let text = block.get_mut(at..at.checked_add(length)?)?;
        at += length;
        if name == AUTHORITY {
            text.fill(b'k');
            // As it is written, not by Huffman's code.
            block[value] &= 0x7f;
        }
    }
    Some(())
}

/// HPACK's integer in the lower `bits` of the byte at `at` and what follows it.
fn number(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let most = (1_usize << bits) - 1;
    let mut value = usize::from(*block.get(*at)?) & most;
    *at += 1;
    if value < most {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(*block.get(*at)?);
        *at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `:method POST`, `:scheme http`, `:path /a`, `:authority` as given, `te: trailers` by name.
    fn block(authority: &[u8]) -> Vec<u8> {
        let mut block = vec![0x83, 0x86, 0x44, 2, b'/', b'a', 0x41];
        match authority.len() {
            short @ 0..127 => block.push(u8::try_from(short).unwrap_or_default()),
            long => block.extend([127, u8::try_from(long - 127).unwrap_or_default()]),
        }
        block.extend(authority);
        block.extend([0x40, 2, b't', b'e', 1, b'x']);
        block
    }

    #[test]
    fn a_path_for_a_host_becomes_a_host_and_nothing_else_changes() {
        for authority in [
            "%2Fvar%2Flib%2Fkubelet%2Fx.sock".to_owned(),
            "%2F".repeat(60),
        ] {
            let mut told = block(authority.as_bytes());
            assert!(name_a_host(0, &mut told).is_some());
            assert_eq!(told, block(&vec![b'k'; authority.len()]));
        }
        // Huffman's mark goes with the code.
        let mut coded = vec![0x41, 0x83, 0x9d, 0x29, 0xad];
        assert!(name_a_host(0, &mut coded).is_some());
        assert_eq!(coded, [0x41, 3, b'k', b'k', b'k']);
        // With padding and priority.
        let mut padded = [&[2, 0, 0, 0, 0, 9][..], &block(b"%2F"), &[0, 0]].concat();
        assert!(name_a_host(PADDED | PRIORITY, &mut padded).is_some());
        assert_eq!(padded[6..padded.len() - 2], block(b"kkk"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_read_beyond_a_frame(flags: u8, mut payload: Vec<u8>) {
            let before = payload.len();
            let _told = name_a_host(flags, &mut payload);
            proptest::prop_assert_eq!(payload.len(), before);
        }
    }
}
