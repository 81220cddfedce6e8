//! The id of a record: the same for a replay, another for anything else at the same place.
//! Place: within **batch**; an Elasticsearch answers a replay's id with 409, and nothing is there twice.
//! Invariants: 22 bytes big-endian, so that ids of one file sort by their place in it; 30 characters of base64url
//! (RFC 4648, section 5) without padding. The text does not sort as the bytes do, but neighbours share a prefix, which
//! is what an index of ids compresses.

use std::hash::Hasher;

use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};

use super::escape;

/// Where a record is from, and what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecordId {
    /// Of the source; made once and kept in the checkpoint.
    pub source_hash: u64,
    /// The stream's generation.
    pub generation: u16,
    /// Where it starts in its file, or [`start_by_time`]; the low 48 bits count.
    pub start: u64,
    /// By [`end_and_bytes`] or [`end_and_pieces`]; the low 48 bits count.
    pub end_and_bytes: u64,
}

/// A number's low 48 bits.
const LOW_48: u64 = (1 << 48) - 1;

/// What tells two records at one place from each other: a 48-bit hash (XXH3) of where it ends and of the bytes of the
/// source that became the record, as they were read.
#[must_use]
pub fn end_and_bytes(end: u64, source: &[u8]) -> u64 {
    end_and_hash(end, xxh3_64(source))
}

/// As [`end_and_bytes`] for bytes that do not lie together: it hashes them as if they did.
#[must_use]
pub fn end_and_pieces<'a>(end: u64, pieces: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hasher = Xxh3::new();
    for piece in pieces {
        hasher.update(piece);
    }
    end_and_hash(end, hasher.finish())
}

/// A seed for all the bytes would cost as much as a line: above 240 bytes XXH3 derives its secret from it each time.
fn end_and_hash(end: u64, hash: u64) -> u64 {
    xxh3_64_with_seed(&hash.to_be_bytes(), end) & LOW_48
}

/// The `start` of a record whose position is a time: a 48-bit hash of that time (nanoseconds since 1970) and of how
/// many lines of the same time came before it.
#[must_use]
pub fn start_by_time(time_ns: i64, ordinal: u64) -> u64 {
    xxh3_64_with_seed(&time_ns.to_be_bytes(), ordinal) & LOW_48
}

impl RecordId {
    /// Characters of [`RecordId::text`].
    pub const LENGTH: usize = 30;

    /// The id itself.
    #[must_use]
    pub fn bytes(&self) -> [u8; 22] {
        let mut bytes = [0; 22];
        let (low_start, low_hash) = (self.start.to_be_bytes(), self.end_and_bytes.to_be_bytes());
        bytes[..8].copy_from_slice(&self.source_hash.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.generation.to_be_bytes());
        bytes[10..16].copy_from_slice(&low_start[2..]);
        bytes[16..].copy_from_slice(&low_hash[2..]);
        bytes
    }

    /// The id as it is sent.
    #[must_use]
    pub fn text(&self) -> [u8; Self::LENGTH] {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let bytes = self.bytes();
        let mut text = [0; Self::LENGTH];
        let (threes, _) = bytes.as_chunks::<3>();
        let (fours, _) = text.as_chunks_mut::<4>();
        // As many threes as fours, 7; a mask keeps each digit below 64.
        for ([a, b, c], four) in threes.iter().zip(fours) {
            let bits = u32::from_be_bytes([0, *a, *b, *c]);
            *four = [18, 12, 6, 0].map(|shift| DIGITS[(bits >> shift & 63) as usize]);
        }
        let last = bytes[21];
        text[28] = DIGITS[usize::from(last >> 2)];
        text[29] = DIGITS[usize::from(last << 4 & 63)];
        text
    }
}

/// Appends the line that stands before a record in an Elasticsearch bulk request, line end included. `index` where it
/// is not that of the whole request.
pub fn write_action(out: &mut Vec<u8>, id: &RecordId, index: Option<&str>) {
    out.extend_from_slice(b"{\"create\":{\"_id\":\"");
    out.extend_from_slice(&id.text());
    if let Some(index) = index {
        out.extend_from_slice(b"\",\"_index\":\"");
        escape::escape(out, index.as_bytes());
    }
    out.extend_from_slice(b"\"}}\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;

    fn id(start: u64) -> RecordId {
        RecordId {
            source_hash: 0x0123_4567_89ab_cdef,
            generation: 0xfedc,
            start,
            end_and_bytes: end_and_bytes(start + 7, b"a line\n"),
        }
    }

    #[test]
    fn an_id_is_laid_out_in_the_order_source_generation_start_and_hash() {
        let id = RecordId {
            source_hash: 0x0102_0304_0506_0708,
            generation: 0x090a,
            // What is above 48 bits does not count.
            start: 0xffff_0b0c_0d0e_0f10,
            end_and_bytes: 0xffff_1112_1314_1516,
        };
        let ascending: Vec<u8> = (1..=22).collect();
        assert_eq!(id.bytes().as_slice(), ascending);
        assert_eq!(&id.text(), b"AQIDBAUGBwgJCgsMDQ4PEBESExQVFg");
    }

    #[test]
    fn other_bytes_or_another_end_at_the_same_place_make_another_id() {
        assert_eq!(
            end_and_bytes(9, b"one two"),
            end_and_pieces(9, [&b"one "[..], b"two"])
        );
        let long = [7; 700];
        assert_eq!(end_and_bytes(9, &long), end_and_pieces(9, long.chunks(33)));
        assert_ne!(end_and_bytes(9, b"one two"), end_and_bytes(9, b"one twO"));
        assert_ne!(end_and_bytes(9, b"one two"), end_and_bytes(10, b"one two"));
        assert_ne!(start_by_time(5, 0), start_by_time(5, 1));
        assert!(start_by_time(i64::MIN, u64::MAX) <= LOW_48);
    }

    #[test]
    fn the_action_line_is_json_that_names_the_id_and_its_index_if_it_has_one() {
        let mut out = Vec::new();
        write_action(&mut out, &id(4), None);
        write_action(&mut out, &id(4), Some("web-2026.11.24"));
        let text = String::from_utf8(id(4).text().to_vec()).expect("ASCII");
        assert_eq!(
            String::from_utf8(out).expect("ASCII"),
            format!(
                "{{\"create\":{{\"_id\":\"{text}\"}}}}\n\
                 {{\"create\":{{\"_id\":\"{text}\",\"_index\":\"web-2026.11.24\"}}}}\n"
            )
        );
    }

    proptest! {
        #[test]
        fn ids_of_one_file_sort_by_their_place_and_their_text_is_plain_base64(
            a in 0..=LOW_48 - 7,
            b in 0..=LOW_48 - 7,
        ) {
            let (a, b) = (id(a), id(b));
            if a.start != b.start {
                prop_assert_eq!(a.bytes().cmp(&b.bytes()), a.start.cmp(&b.start));
            }
            prop_assert_eq!(a.text().to_vec(), URL_SAFE_NO_PAD.encode(a.bytes()).into_bytes());
        }

        #[test]
        fn neighbours_in_a_file_share_a_prefix(start in 0..LOW_48 - 70_000, step in 1u64..65_536) {
            // Source, generation and the start but its last 3 bytes: 13 bytes, and a carry may reach into them.
            let (a, b) = (id(start).text(), id(start + step).text());
            if start >> 24 == (start + step) >> 24 {
                prop_assert_eq!(&a[..17], &b[..17]);
            }
        }
    }
}
