//! Where things are in the ring's memory; offsets and sizes are fixed within a major version.
//! Place: both ends. All little endian.
//!
//! ```text
//! data     page 0:  0 magic  8 version  12 log2 capacity  16 generation │ 64 head  72 !head
//!                   128 epoch  136 heartbeat  144 wanted │ 4096… frames, a power of two
//! control  page 0:  0 magic  8 version  16 generation │ 64 released  72 !released │ 128 armed
//! ```
//! Producer and consumer words lie on cache lines of their own. `head` and `released` stand there twice, the second
//! time inverted: where a word is moved by a system call instead of an atomic it may tear, and the pair shows it.

/// Bytes before the data area, and of the control memory.
pub const PAGE: usize = 4096;

/// `RPRING01`, in both memories.
pub const MAGIC: u64 = u64::from_le_bytes(*b"RPRING01");

/// Smallest data area, as a power of two.
pub const CAPACITY_LOG2_MIN: u8 = 16;

/// Largest data area, as a power of two.
pub const CAPACITY_LOG2_MAX: u8 = 22;

/// 256 KiB: within 8 % of the speed of 1 MiB.
pub const CAPACITY_LOG2_DEFAULT: u8 = 18;

/// Longest frame; also at most half of the data area.
pub const FRAME_LIMIT: usize = 128 * 1024;

/// Data page: `u64`.
pub const MAGIC_AT: usize = 0;
/// Both pages: `u32`.
pub const VERSION_AT: usize = 8;
/// Data page: `u32`, informational.
pub const CAPACITY_LOG2_AT: usize = 12;
/// Both pages: `u64`, informational.
pub const GENERATION_AT: usize = 16;
/// Data page: `u64`, where the next frame will start; only grows.
pub const HEAD_AT: usize = 64;
/// Data page: `u64`, `!head`.
pub const HEAD_INVERTED_AT: usize = 72;
/// Data page: `u64`, the shim's epoch.
pub const EPOCH_AT: usize = 128;
/// Data page: `u64`, counts the shim's turns; status only.
pub const HEARTBEAT_AT: usize = 136;
/// Data page: `u32`, odd while the shim waits for space; each waiting is a new number.
pub const WANTED_AT: usize = 144;
/// Control page: `u64`, everything below may be overwritten; only grows.
pub const RELEASED_AT: usize = 64;
/// Control page: `u64`, `!released`.
pub const RELEASED_INVERTED_AT: usize = 72;
/// Control page: `u32`, odd while the daemon sleeps; each arming is a new number, so that a producer that cannot
/// write it rings once per arming.
pub const ARMED_AT: usize = 128;

/// Bytes of a data area.
#[must_use]
pub const fn capacity(log2: u8) -> u64 {
    1 << log2
}

/// Longest frame in a ring of this capacity.
#[must_use]
pub const fn frame_limit(capacity: u64) -> usize {
    let half = capacity / 2;
    if half < FRAME_LIMIT as u64 {
        half as usize
    } else {
        FRAME_LIMIT
    }
}

const _: () = {
    assert!(
        HEAD_AT / 64 != EPOCH_AT / 64,
        "head has a cache line of its own"
    );
    assert!(RELEASED_AT / 64 != ARMED_AT / 64, "released has one, too");
    assert!(
        HEAD_INVERTED_AT == HEAD_AT + 8 && RELEASED_INVERTED_AT == RELEASED_AT + 8,
        "one read gets both"
    );
    assert!(
        WANTED_AT + 4 <= PAGE && ARMED_AT + 4 <= PAGE,
        "words lie in their page"
    );
    assert!(
        HEAD_AT.is_multiple_of(8) && RELEASED_AT.is_multiple_of(8) && EPOCH_AT.is_multiple_of(8)
    );
    assert!(WANTED_AT.is_multiple_of(4) && ARMED_AT.is_multiple_of(4));
    assert!(capacity(CAPACITY_LOG2_MIN).is_multiple_of(PAGE as u64));
    assert!(FRAME_LIMIT.is_multiple_of(super::super::wire::frame::ALIGN));
    assert!(crate::wire::frame::METADATA_LIMIT < FRAME_LIMIT);
};
