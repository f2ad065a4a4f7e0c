//! Ctrl-C and SIGTERM for `serve`. Until it serves, the first ends the program: there is nothing to
//! lose. Then the first lets running requests finish, the second ends them, and the third ends the
//! program whatever it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tokio::sync::watch;

/// As shells say that a program was ended by Ctrl-C.
const EXIT_CODE: i32 = 130;
const SIGNALS_MAX: u32 = 3;

/// Counts signals.
#[derive(Clone)]
pub(crate) struct Signals {
    count: watch::Receiver<u32>,
    serving: Arc<AtomicBool>,
}

impl Signals {
    /// To be called once, before anything else listens.
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

    /// From now on there are requests that a signal must not cut off.
    pub(crate) fn serving(&self) {
        self.serving.store(true, Ordering::Relaxed);
    }

    /// Returns when so many signals came.
    pub(crate) async fn reach(mut self, count: u32) {
        if self.count.wait_for(|came| *came >= count).await.is_err() {
            // Nobody sends any more: there will be none.
            std::future::pending::<()>().await;
        }
    }
}
