//! A progress bar in bytes, with the rate; Ctrl-C stops the work. If the output is not a terminal
//! but, for example, a log, it prints a line when the work begins and another when it ends.

use std::io::{IsTerminal, stderr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use kilotok_weights::Progress;

use crate::output::progress_line;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The number of running pieces of work that check for Ctrl-C.
static SHOWN: AtomicUsize = AtomicUsize::new(0);

/// Shows one piece of work. The first Ctrl-C asks the work to stop, the second ends the program; if
/// no work is running, the first one ends it.
pub(crate) struct WorkProgress {
    what: &'static str,
    shown: ProgressBar,
    in_lines: bool,
}

impl WorkProgress {
    pub(crate) fn new(what: &'static str) -> Self {
        // This only fails if a handler is already set, which is the same one.
        let _ = ctrlc::set_handler(|| {
            let again = INTERRUPTED.swap(true, Ordering::Relaxed);
            if again || SHOWN.load(Ordering::Relaxed) == 0 {
                std::process::exit(130);
            }
        });
        SHOWN.fetch_add(1, Ordering::Relaxed);
        let shown = ProgressBar::no_length().with_message(what);
        let template = "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            shown.set_style(style.progress_chars("=> "));
        }
        Self { what, shown, in_lines: !stderr().is_terminal() }
    }
}

impl Progress for WorkProgress {
    fn begin(&self, total_bytes: u64) {
        self.shown.reset_elapsed();
        self.shown.set_length(total_bytes);
        if self.in_lines {
            progress_line(&format!("{} {}", self.what, HumanBytes(total_bytes)));
        }
    }

    fn advance(&self, bytes: u64) {
        self.shown.inc(bytes);
    }

    fn cancelled(&self) -> bool {
        INTERRUPTED.load(Ordering::Relaxed)
    }
}

impl Drop for WorkProgress {
    fn drop(&mut self) {
        // Without a length, the work never began.
        if let Some(total) = self.shown.length().filter(|_| self.in_lines) {
            let (done, time) = (self.shown.position(), self.shown.elapsed());
            progress_line(&last_line(self.what, done, total, time));
        }
        self.shown.finish_and_clear();
        SHOWN.fetch_sub(1, Ordering::Relaxed);
    }
}

fn last_line(what: &str, done: u64, total: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let rate = HumanBytes((done as f64 / seconds.max(1e-3)) as u64);
    let stopped = if done < total {
        format!("stopped after {} of ", HumanBytes(done))
    } else {
        String::new()
    };
    format!("{what}: {stopped}{} in {seconds:.1} s, {rate}/s", HumanBytes(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_says_how_much_how_long_and_how_fast() {
        let line = |done: u64, total: u64, seconds| {
            last_line("loading", done << 20, total << 20, Duration::from_secs(seconds))
        };
        assert_eq!(line(3, 3, 2), "loading: 3.00 MiB in 2.0 s, 1.50 MiB/s");
        let stopped = "loading: stopped after 1.00 MiB of 3.00 MiB in 2.0 s, 512.00 KiB/s";
        assert_eq!(line(1, 3, 2), stopped);
        assert_eq!(line(0, 0, 0), "loading: 0 B in 0.0 s, 0 B/s");
    }
}
