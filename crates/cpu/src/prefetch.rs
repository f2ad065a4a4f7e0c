//! Asks for memory before it is read. The processor guesses by itself what a loop reads next, but
//! not past the end of a page of 4 KiB, and not while the loop works on what it has.

/// Bytes that come from memory together.
const LINE: usize = 64;

/// Memory that is read soon. It is asked for bit by bit: what is asked for at once is waited for.
pub(crate) struct Ahead<'a> {
    memory: &'a [u8],
    piece: usize,
}

impl<'a> Ahead<'a> {
    /// All of it is asked for after so many calls of [`Ahead::ask`].
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

/// Asks for all of it at once.
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
