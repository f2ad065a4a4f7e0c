//! Ctrl-C and SIGTERM for `serve`. Before serving, the first signal ends the program, because there
//! is nothing to lose. While serving, the first signal lets running requests finish, the second
//! ends them, and the third ends the program at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tokio::sync::watch;

/// The exit code that shells report for a program ended by Ctrl-C.
const EXIT_CODE: i32 = 130;
const SIGNALS_MAX: u32 = 3;

/// Counts signals.
#[derive(Clone)]
pub(crate) struct Signals {
    count: watch::Receiver<u32>,
    serving: Arc<AtomicBool>,
}

impl Signals {
    /// Must be called once, before other code listens for signals.
    pub(crate) fn listen() -> Result<Self> {
        let (sender, count) = watch::channel(0);
        let serving = Arc::new(AtomicBool::new(false));
        let heard = Arc::clone(&serving);
        ctrlc::set_handler(move || {
            sender.send_modify(|count| *count += 1);
            if !heard.load(Ordering::Relaxed) || *sender.borrow() >= SIGNALS_MAX {
                std::process::exit(EXIT_CODE);
            }
        })
        .context("listening for Ctrl-C")?;
        Ok(Self { count, serving })
    }

    /// Called when serving begins: from now on a signal must not cut off requests.
    pub(crate) fn serving(&self) {
        self.serving.store(true, Ordering::Relaxed);
    }

    /// Waits for this many signals.
    pub(crate) async fn reach(mut self, count: u32) {
        if self.count.wait_for(|came| *came >= count).await.is_err() {
            // The sender is gone, so no further signals will be counted.
            std::future::pending::<()>().await;
        }
    }
}
