//! A progress bar in bytes with rate, and Ctrl-C to stop what it shows.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use kilotok_weights::Progress;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Work that is being shown and will see an interruption.
static SHOWN: AtomicUsize = AtomicUsize::new(0);

/// Shows one piece of work. The first Ctrl-C asks the work to stop, the second ends the program;
/// without work to stop the first one does.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new(what: &'static str) -> Self {
        // Fails only when a handler is set already, which is as good.
        let _ = ctrlc::set_handler(|| {
            let again = INTERRUPTED.swap(true, Ordering::Relaxed);
            if again || SHOWN.load(Ordering::Relaxed) == 0 {
                std::process::exit(130);
            }
        });
        SHOWN.fetch_add(1, Ordering::Relaxed);
        let bar = ProgressBar::no_length().with_message(what);
        let template = "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self(bar)
    }
}

impl Progress for Bar {
    fn begin(&self, total_bytes: u64) {
        self.0.set_length(total_bytes);
    }

    fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn cancelled(&self) -> bool {
        INTERRUPTED.load(Ordering::Relaxed)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        SHOWN.fetch_sub(1, Ordering::Relaxed);
    }
}
