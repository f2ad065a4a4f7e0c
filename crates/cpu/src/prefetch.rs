//! Prefetches memory before it is read. The processor itself prefetches what a loop reads next, but
//! not past the end of a page of 4 KiB, and not while the loop works on what it has.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Memory that is read soon. It is prefetched piece by piece: the processor would wait for a
/// prefetch of all of it at once.
pub(crate) struct Ahead<'a> {
    memory: &'a [u8],
    piece: usize,
}

impl<'a> Ahead<'a> {
    /// All of it is prefetched after `calls` calls of [`Ahead::ask`].
    #[inline(always)]
    pub(crate) fn new(memory: &'a [u8], calls: usize) -> Self {
        Self { memory, piece: memory.len().div_ceil(LINE).div_ceil(calls.max(1)) * LINE }
    }

    #[inline(always)]
    pub(crate) fn ask(&mut self) {
        let (now, later) = self.memory.split_at(self.piece.min(self.memory.len()));
        self.memory = later;
        prefetch(now);
    }
}

/// Prefetches all of it at once.
#[inline(always)]
pub(crate) fn prefetch(memory: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(sse) = pulp::core_arch::x86::Sse::try_new() {
        for line in memory.chunks(LINE) {
            sse._mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = memory;
}
