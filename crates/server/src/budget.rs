//! The memory budget of all requests together: for their bodies while they arrive, and for the
//! values made from them until the engine has the prompt. Bytes are taken from the budget before
//! they are allocated.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::StatusCode;

use crate::error::ApiError;

/// A request that holds at most this many bytes is small, and may use the whole budget.
const SMALL_BYTES_MAX: usize = 256 << 10;
/// The budget divided by this is reserved for small requests.
const SMALL_SHARE: usize = 4;
/// Seconds after which a refused client may try again: bodies arrive and prompts are made within
/// seconds.
const RETRY_S: u64 = 1;

/// See the file's head.
pub(crate) struct Budget {
    max: usize,
    held: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, held: AtomicUsize::new(0) })
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// How full the budget may become when a request holds `bytes`.
    fn limit(&self, bytes: usize) -> usize {
        if bytes <= SMALL_BYTES_MAX { self.max } else { self.max - self.max / SMALL_SHARE }
    }

    /// The memory held by one request; it begins with none.
    pub(crate) fn hold(self: &Arc<Self>) -> HeldMemory {
        HeldMemory {
            budget: Arc::clone(self),
            bytes: AtomicUsize::new(0),
            work: AtomicUsize::new(0),
        }
    }
}

/// The memory that one request holds. Dropping it gives it back.
pub(crate) struct HeldMemory {
    budget: Arc<Budget>,
    bytes: AtomicUsize,
    work: AtomicUsize,
}

impl HeldMemory {
    /// Changes how many bytes the request holds. Nothing changes if the budget has too few left.
    pub(crate) fn set(&self, bytes: usize) -> Result<(), ApiError> {
        let before = self.bytes.load(Ordering::Relaxed);
        if bytes > before {
            self.check(bytes)?;
            let limit = self.budget.limit(bytes);
            let more = |held: usize| held.checked_add(bytes - before).filter(|held| *held <= limit);
            let taken = self.budget.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
            taken.map_err(|_| self.full())?;
        } else {
            self.budget.held.fetch_sub(before - bytes, Ordering::Relaxed);
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Fails if a request of `bytes` cannot be served: now, or ever.
    pub(crate) fn check(&self, bytes: usize) -> Result<(), ApiError> {
        let limit = self.budget.limit(bytes);
        if bytes > limit {
            let message = format!(
                "the request would take {} MiB of memory, at most {} MiB are possible; send less, \
                 or raise --request-memory",
                bytes.div_ceil(1 << 20),
                limit >> 20
            );
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        let others = self.budget.held() - self.bytes.load(Ordering::Relaxed);
        if others.saturating_add(bytes) > limit { Err(self.full()) } else { Ok(()) }
    }

    fn full(&self) -> ApiError {
        let message = format!(
            "other requests hold the {} MiB that --request-memory gives them; try again later",
            self.budget.max >> 20
        );
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message);
        ApiError { retry_after_s: Some(RETRY_S), ..error.with_code(MEMORY_FULL) }
    }

    /// Gives the memory back: once the prompt is made, the rest of the request is small.
    pub(crate) fn release(&self) {
        let bytes = self.bytes.swap(0, Ordering::Relaxed);
        self.budget.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The work of converting the request's body, in bytes of text that would take as long.
    pub(crate) fn work(&self) -> usize {
        self.work.load(Ordering::Relaxed)
    }

    pub(crate) fn set_work(&self, work: usize) {
        self.work.store(work, Ordering::Relaxed);
    }
}

/// The error code of a full budget.
pub(crate) const MEMORY_FULL: &str = "memory_full";

impl Drop for HeldMemory {
    fn drop(&mut self) {
        self.release();
    }
}

impl fmt::Debug for HeldMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_requests_are_let_in_beside_large_ones() {
        let budget = Budget::new(4 << 20);
        let (large, other) = (budget.hold(), budget.hold());
        large.set(2 << 20).unwrap();
        let error = other.set(2 << 20).unwrap_err();
        assert_eq!((error.status.as_u16(), error.retry_after_s), (503, Some(RETRY_S)));
        assert_eq!(other.check(2 << 20).unwrap_err(), error);
        // These fit into the last quarter, which large requests may not use.
        let small: Vec<_> = (0..8).map(|_| budget.hold()).collect();
        assert!(small.iter().all(|small| small.set(SMALL_BYTES_MAX).is_ok()));
        assert!(other.set(1).is_err(), "all is held");
        drop(small);
        large.set(1 << 20).unwrap();
        other.set(2 << 20).unwrap();
        assert_eq!(budget.held(), 3 << 20);
        large.release();
        drop(other);
        drop(large);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn what_never_fits_need_not_be_tried_again() {
        let error = Budget::new(4 << 20).hold().set(4 << 20).unwrap_err();
        assert_eq!((error.status.as_u16(), error.retry_after_s), (413, None));
    }
}
