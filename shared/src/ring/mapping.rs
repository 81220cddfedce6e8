//! Unsafe: memory that another process sees, and descriptors as the kernel hands them over.
//! Place: under `words`, `memfd`, `posix_shm` and `socket`.
//! What safe code would cost: without `Mapping` every word is a system call of 0.2 us or more and log bytes are
//! copied twice (+0.1 CPU-s/GB); without `adopt` no descriptor that arrives on a socket could be owned.
//! Invariants: a `Mapping` stays mapped at one place for as long as it lives, and is at least `len` bytes long; no
//! `&[u8]` over memory that another process may write is ever made.
#![expect(
    unsafe_code,
    reason = "shared memory and received descriptors have no safe interface; each block argues why it holds"
)]

/// Memory shared with another process, mapped until this is dropped.
pub struct Mapping {
    start: *mut u8,
    len: usize,
    writable: bool,
    _owner: Owner,
}

enum Owner {
    Memfd(#[expect(dead_code, reason = "held so that the memory stays mapped")] memmap2::MmapRaw),
    Posix(
        #[expect(dead_code, reason = "held so that the memory stays mapped")]
        Box<shared_memory::Shmem>,
    ),
}

// SAFETY: the memory belongs to no thread: it is reached only by atomics (`words`) and, in the producer's end
// alone, through `&mut self`; both owners unmap by address and length, which any thread may do.
unsafe impl Send for Mapping {}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapping")
            .field("len", &self.len)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

impl Mapping {
    /// The first `len` bytes of `file`, read and write.
    ///
    /// # Errors
    /// As mmap gives them; `InvalidData` when the file is shorter than `len`.
    pub fn writable(file: &std::fs::File, len: usize) -> std::io::Result<Self> {
        long_enough(file, len)?;
        let raw = memmap2::MmapOptions::new().len(len).map_raw(file)?;
        Ok(Self {
            start: raw.as_mut_ptr(),
            len: raw.len(),
            writable: true,
            _owner: Owner::Memfd(raw),
        })
    }

    /// The first `len` bytes of `file`, read only.
    ///
    /// # Errors
    /// As mmap gives them; `InvalidData` when the file is shorter than `len`.
    pub fn readable(file: &std::fs::File, len: usize) -> std::io::Result<Self> {
        long_enough(file, len)?;
        let raw = memmap2::MmapOptions::new()
            .len(len)
            .map_raw_read_only(file)?;
        Ok(Self {
            start: raw.as_mut_ptr(),
            len: raw.len(),
            writable: false,
            _owner: Owner::Memfd(raw),
        })
    }

    /// A segment of the `shared_memory` crate, read and write.
    pub(super) fn posix(segment: shared_memory::Shmem) -> Self {
        Self {
            start: segment.as_ptr(),
            len: segment.len(),
            writable: true,
            _owner: Owner::Posix(Box::new(segment)),
        }
    }

    /// Bytes mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped; a mapping of no bytes cannot be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it is writable.
    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    /// `at` bytes into it, as an address for `words`; nothing where `bytes` from there on are not all inside or not
    /// aligned to `bytes`.
    pub(super) fn address(&self, at: usize, bytes: usize) -> Option<*mut u8> {
        let inside = at.checked_add(bytes)? <= self.len && at.is_multiple_of(bytes);
        inside.then(|| self.start.wrapping_add(at))
    }

    /// `range` as bytes to fill: the producer's way of reading a file into the ring without a copy.
    ///
    /// Only the producer's end calls this, on its data area: the daemon neither maps nor writes that area (it
    /// `pread`s), and whoever else in the pod could write it could as well write the shim's own memory.
    pub(super) fn data_mut(&mut self, range: std::ops::Range<usize>) -> Option<&mut [u8]> {
        let inside = range.start <= range.end && range.end <= self.len && self.writable;
        if !inside {
            return None;
        }
        let start = self.start.wrapping_add(range.start);
        // SAFETY: `range` lies in the mapping (checked above), which outlives the slice by `&mut self`; u8 needs no
        // alignment and shared memory is always initialised. Exclusive: `&mut self` here, and by protocol no other
        // process maps this area for writing, as argued above.
        Some(unsafe { std::slice::from_raw_parts_mut(start, range.len()) })
    }
}

/// Owns a descriptor that the kernel has just made for this process: by `accept4`, or out of a received message.
pub(crate) fn adopt(fd: std::os::fd::RawFd) -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd as _;
    // SAFETY: both callers (`wire::socket`) pass what a successful system call returned a moment ago as a new
    // descriptor of this process, each once, so it is open and nobody else closes it.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) }
}

fn long_enough(file: &std::fs::File, len: usize) -> std::io::Result<()> {
    // A sealed memfd cannot shrink afterwards; for any other file a later truncation is its owner's SIGBUS.
    if len == 0 || file.metadata()?.len() < len as u64 {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "shared memory is shorter than the ring it should hold",
        ));
    }
    Ok(())
}
