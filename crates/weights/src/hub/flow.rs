//! The control flow of a pull: cancelling, trying again, giving up.

use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use super::HubError;
use crate::Progress;

/// Pauses before the next try after a try that brought no bytes. The first pause is zero: most
/// often the hub has only closed an idle connection.
pub(super) const PAUSES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];

/// State that the threads of a pull share: the caller's progress and the first error.
pub(super) struct Flow<'a> {
    progress: &'a dyn Progress,
    failed: OnceLock<HubError>,
}

impl<'a> Flow<'a> {
    pub(super) fn new(progress: &'a dyn Progress) -> Self {
        Self { progress, failed: OnceLock::new() }
    }

    pub(super) fn begin(&self, total_bytes: u64) {
        self.progress.begin(total_bytes);
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.progress.advance(bytes);
    }

    /// Ends the other threads with an error. Only the first error counts, since it causes the later
    /// ones.
    pub(super) fn fail(&self, error: HubError) {
        let _ = self.failed.set(error);
    }

    /// The outcome, once the threads are done.
    pub(super) fn end(&mut self) -> Result<(), HubError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Ends a thread when the caller, or another thread's error, ends the pull.
    pub(super) fn check(&self) -> Result<(), HubError> {
        if self.progress.cancelled() || self.failed.get().is_some() {
            return Err(HubError::Cancelled);
        }
        Ok(())
    }

    fn pause(&self, pause: Duration) -> Result<(), HubError> {
        const SLICE: Duration = Duration::from_millis(100);
        for _ in 0..pause.as_millis() / SLICE.as_millis() {
            self.check()?;
            thread::sleep(SLICE);
        }
        self.check()
    }
}

/// The reason why a try ended without a result.
pub(super) enum Failure {
    Final(HubError),
    /// Worth another try. `gained` if this one brought bytes.
    Passing {
        error: HubError,
        gained: bool,
    },
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

/// Tries until there is a result or a final error, or until more tries in a row than there are
/// pauses have brought no bytes.
pub(super) fn persist<T>(
    pauses: &[Duration],
    flow: &Flow,
    mut attempt: impl FnMut() -> Result<T, Failure>,
) -> Result<T, HubError> {
    let mut left = pauses.iter();
    loop {
        flow.check()?;
        let error = match attempt() {
            Ok(value) => return Ok(value),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing { error, gained }) => {
                if gained {
                    left = pauses.iter();
                }
                error
            }
        };
        flow.pause(*left.next().ok_or(error)?)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Silent;

    impl Progress for Silent {
        fn begin(&self, _: u64) {}
        fn advance(&self, _: u64) {}
        fn cancelled(&self) -> bool {
            false
        }
    }

    fn broken(gained: bool) -> Failure {
        let error = HubError::Interrupted { file: "f".into(), got: 1, size: 2 };
        Failure::Passing { error, gained }
    }

    #[test]
    fn fruitless_tries_are_bounded_and_fruitful_ones_start_the_count_again() {
        let flow = Flow::new(&Silent);
        let pauses = [Duration::ZERO; 3];
        let mut tries = 0;
        let ended: Result<(), _> = persist(&pauses, &flow, || {
            tries += 1;
            Err(broken(tries == 3))
        });
        assert!(matches!(ended, Err(HubError::Interrupted { .. })));
        assert_eq!(tries, 6, "two fruitless, one fruitful whose retry is the first of three");
    }

    #[test]
    fn a_final_error_is_not_tried_again() {
        let flow = Flow::new(&Silent);
        let mut tries = 0;
        let ended: Result<(), _> = persist(&PAUSES, &flow, || {
            tries += 1;
            Err(HubError::Token.into())
        });
        assert!(matches!(ended, Err(HubError::Token)));
        assert_eq!(tries, 1);
    }

    #[test]
    fn one_error_ends_every_thread() {
        let flow = Flow::new(&Silent);
        let _ = flow.failed.set(HubError::Token);
        let ended: Result<(), _> = persist(&PAUSES, &flow, || Err(broken(true)));
        assert!(matches!(ended, Err(HubError::Cancelled)));
    }
}
