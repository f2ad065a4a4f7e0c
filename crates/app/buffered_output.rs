//! Buffered standard output and standard error of a server. They may be pipes that are never
//! read, and a server must not wait for that. Lines therefore go into a bounded buffer, which a
//! thread writes out; lines for which there is no room are dropped and counted.

use std::io::{self, Write};
use std::mem::take;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use kilotok_generation::Metrics;

/// Room for thousands of lines: the output while a terminal or a disk is slow for a moment.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// See the module's documentation.
#[derive(Clone, Default)]
pub(crate) struct BufferedOutput(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    metrics: OnceLock<Arc<Metrics>>,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Lines that were dropped since the last report.
    lost: u64,
    /// Whether bytes are being written.
    writing: bool,
}

impl BufferedOutput {
    /// Once lines get through again, `told` is called with the number of dropped lines.
    pub(crate) fn start(
        name: &str,
        to: impl Write + Send + 'static,
        told: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let output = Self::default();
        let shared = Arc::clone(&output.0);
        thread::Builder::new().name(name.into()).spawn(move || shared.write_all(to, told))?;
        Ok(output)
    }

    /// Counts dropped lines in these metrics too.
    pub(crate) fn count(&self, metrics: Arc<Metrics>) {
        metrics.log_lines_lost(self.0.state().lost);
        let _ = self.0.metrics.set(metrics);
    }

    /// Waits until everything is written, but at most this long.
    pub(crate) fn flush(&self, wait_max: Duration) {
        let busy = |state: &mut State| state.writing || !state.waiting.is_empty();
        drop(self.0.changed.wait_timeout_while(self.0.state(), wait_max, busy));
    }
}

/// Each call writes one or more whole lines.
impl Write for BufferedOutput {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state();
        if state.waiting.len() + lines.len() <= WAITING_BYTES_MAX {
            state.waiting.extend_from_slice(lines);
            self.0.changed.notify_all();
        } else {
            state.lost += 1;
            self.0.lost(1);
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self, count: u64) {
        if let Some(metrics) = self.metrics.get() {
            metrics.log_lines_lost(count);
        }
    }

    fn write_all(&self, mut to: impl Write, told: impl Fn(u64)) {
        loop {
            let idle = |state: &mut State| state.waiting.is_empty();
            let waited = self.changed.wait_while(self.state(), idle);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner);
            let lines = take(&mut state.waiting);
            state.writing = true;
            drop(state);
            // There is no other place to report the failure.
            if to.write_all(&lines).and_then(|()| to.flush()).is_err() {
                self.lost(lines.split(|byte| *byte == b'\n').count() as u64 - 1);
            }
            let mut state = self.state();
            state.writing = false;
            let lost = take(&mut state.lost);
            drop(state);
            self.changed.notify_all();
            if lost > 0 {
                told(lost);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    /// A writer that waits for the test's permission.
    struct Slow(Receiver<()>, SyncSender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            self.1.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_stops_nothing_and_hears_what_it_missed() {
        let ((go, may), (wrote, written)) = (sync_channel(9), sync_channel(9));
        let (told, tells) = sync_channel(9);
        let tell = move |lost| told.send(lost).unwrap();
        let mut output = BufferedOutput::start("test", Slow(may, wrote), tell).unwrap();
        output.write_all(b"first\n").unwrap();
        // The line is being written, and the write is stuck.
        while !output.0.state().writing {
            thread::yield_now();
        }
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        for _ in 0..2000 {
            output.write_all(&line).unwrap();
        }
        output.flush(Duration::ZERO);
        assert_eq!(output.0.state().waiting.len(), WAITING_BYTES_MAX);
        go.send(()).unwrap();
        assert_eq!(written.recv_timeout(LONG).unwrap(), b"first\n");
        assert_eq!(tells.recv_timeout(LONG).unwrap(), 2000 - 1024);
        go.send(()).unwrap();
        assert_eq!(written.recv_timeout(LONG).unwrap().len(), WAITING_BYTES_MAX);
        output.flush(LONG);
        assert!(output.0.state().waiting.is_empty());
    }
}
