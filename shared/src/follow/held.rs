//! Handles kept until what they hold is read and acknowledged, within quotas.
//! Place: within **follow**; asked at every look.
//! Invariants: the oldest is given up first; what has a name is nobody's burden and is never given up; whoever is
//! over its own quota loses its own files, whatever the node has left.

use std::collections::HashMap;
use std::sync::Arc;

use super::StreamKey;

/// Bytes of renamed and deleted files held on a node.
pub const NODE_PINNED_BYTES: u64 = 4 << 30;
/// The same for one container, unless the policy says otherwise.
pub const OWNER_PINNED_BYTES: u64 = 1 << 30;

/// One file that nobody names any more and that is not read to its end.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its stream.
    pub stream: StreamKey,
    /// Whose it is.
    pub owner: Arc<str>,
    /// What it occupies on disk (st_blocks).
    pub bytes: u64,
    /// What its owner may hold.
    pub quota: u64,
    /// When it was last written, nanoseconds since 1970.
    pub modified_ns: i64,
}

/// Which of these are to be given up, so that every owner and the node are within their quotas.
#[must_use]
pub fn shed(mut held: Vec<Held>, node_bytes: u64) -> Vec<StreamKey> {
    held.sort_by_key(|one| (one.modified_ns, one.stream));
    let mut by_owner: HashMap<Arc<str>, u64> = HashMap::new();
    let mut all = 0;
    for one in &held {
        *by_owner.entry(Arc::clone(&one.owner)).or_default() += one.bytes;
        all += one.bytes;
    }
    let mut given_up = Vec::new();
    for one in held {
        let mine = by_owner.entry(Arc::clone(&one.owner)).or_default();
        if *mine > one.quota || all > node_bytes {
            *mine -= one.bytes;
            all -= one.bytes;
            given_up.push(one.stream);
        }
    }
    given_up
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(id: u64, owner: &str, bytes: u64, modified_ns: i64) -> Held {
        Held {
            stream: StreamKey { id, generation: 0 },
            owner: owner.into(),
            bytes,
            quota: 100,
            modified_ns,
        }
    }

    fn ids(given_up: Vec<StreamKey>) -> Vec<u64> {
        given_up.into_iter().map(|key| key.id).collect()
    }

    #[test]
    fn who_is_over_its_quota_loses_its_own_oldest_files_and_no_others() {
        let all = vec![
            held(1, "a", 60, 3),
            held(2, "a", 60, 1),
            held(3, "b", 90, 0),
        ];
        assert_eq!(ids(shed(all, 1_000)), [2]);
    }

    #[test]
    fn a_full_node_gives_up_the_oldest_of_all() {
        let all = vec![
            held(1, "a", 60, 3),
            held(2, "b", 60, 1),
            held(3, "c", 60, 2),
        ];
        assert_eq!(ids(shed(all, 120)), [2]);
    }

    #[test]
    fn where_nothing_may_be_held_all_of_it_goes_and_nothing_else_does() {
        let full = Held {
            quota: 0,
            ..held(1, "a", 60, 3)
        };
        assert_eq!(ids(shed(vec![full, held(2, "a", 30, 1)], 1_000)), [1]);
    }

    #[test]
    fn what_is_within_every_quota_is_kept() {
        assert!(shed(vec![held(1, "a", 100, 0)], 100).is_empty());
    }
}
