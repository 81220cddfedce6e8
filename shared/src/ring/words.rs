//! Unsafe: the few words that both ends share, as atomics on a mapped page.
//! Place: on `mapping`, under `doorbell`'s two protocols.
//! What safe code would cost: a system call per look at `head` (2 % of a core for 200 idle rings against 0.01 %).
//! Invariants: every access is atomic and aligned, because the other process may write at any time; nothing read
//! here is believed by this module. A page mapped read-only is only ever loaded from, `Relaxed` or `Acquire`.
#![expect(
    unsafe_code,
    reason = "atomics on memory that another process writes cannot be borrowed from safe Rust"
)]

use std::sync::atomic::{AtomicU32, AtomicU64};

use super::mapping::Mapping;

/// One mapped page of shared words.
#[derive(Debug)]
pub struct Words {
    mapping: Mapping,
}

impl Words {
    /// The words of `mapping`.
    #[must_use]
    pub fn new(mapping: Mapping) -> Self {
        Self { mapping }
    }

    /// The mapping under the words, for the producer's data area.
    pub(super) fn mapping_mut(&mut self) -> &mut Mapping {
        &mut self.mapping
    }

    /// Whether words may be stored, too.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.mapping.is_writable()
    }

    /// The 64-bit word at `at`.
    ///
    /// # Panics
    /// Where `at` is no aligned place in the page: offsets are constants of `layout`, asserted at compile time.
    pub(super) fn u64(&self, at: usize) -> &AtomicU64 {
        let address = self
            .mapping
            .address(at, 8)
            .expect("layout's words lie in their page");
        // SAFETY: `address` checked that all 8 bytes are mapped and 8-aligned (pages are); they stay mapped while
        // `self` is borrowed; every access to this place, here and in the other process, is atomic or the kernel's.
        unsafe { AtomicU64::from_ptr(address.cast()) }
    }

    /// The 32-bit word at `at`.
    ///
    /// # Panics
    /// As `u64`.
    pub(super) fn u32(&self, at: usize) -> &AtomicU32 {
        let address = self
            .mapping
            .address(at, 4)
            .expect("layout's words lie in their page");
        // SAFETY: as in `u64`, with 4 bytes.
        unsafe { AtomicU32::from_ptr(address.cast()) }
    }
}
