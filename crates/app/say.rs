//! What commands say on standard output, which is what they are called for, and beside it.

use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;
use std::time::Duration;
use std::{fmt, process, thread};

use crate::outlet::Outlet;

/// A line, in the form of `format!`.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::say::lines(format_args!("{}\n", format_args!($($text)*)))
    };
}
pub(crate) use say;

/// A line on standard error, in the form of `format!`. If it is lost there is nobody to tell, and
/// `eprintln!` would panic.
macro_rules! aside {
    ($($text:tt)*) => {{
        let line = format!("{}\n", format_args!($($text)*));
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    }};
}

/// How long a program that ends waits for its last lines to be written.
const LAST_WAIT_MAX: Duration = Duration::from_secs(1);

/// Where a server says what it says, once it must not wait for that.
static OUTLET: OnceLock<Outlet> = OnceLock::new();

/// From now on what is said is lost if it is not read.
pub(crate) fn detach() -> io::Result<()> {
    let outlet = Outlet::start("kilotok-say", io::stdout(), |_| {})?;
    let _ = OUTLET.set(outlet);
    Ok(())
}

/// Has what was said written, if it is read.
pub(crate) fn flush() {
    if let Some(outlet) = OUTLET.get() {
        outlet.flush(LAST_WAIT_MAX);
    }
}

/// A line on standard error before the program ends, which it does even if nothing reads it.
pub(crate) fn last_word(line: String) {
    let (written, done) = sync_channel(1);
    let write = move || {
        let _ = io::stderr().write_all(line.as_bytes());
        let _ = written.send(());
    };
    if thread::Builder::new().spawn(write).is_ok() {
        let _ = done.recv_timeout(LAST_WAIT_MAX);
    }
}

/// How work goes on, for whoever waits. Where there is a log it is a line of it: who reads that as
/// JSON can read nothing else.
pub(crate) fn news(line: &str) {
    if tracing::dispatcher::has_been_set() {
        tracing::info!("{line}");
    } else {
        aside!("{line}");
    }
}

/// Whole lines. Who reads them may have seen enough and left, like `head`; what else the command
/// is to do is done anyway. Lines that get lost in another way end it.
pub(crate) fn lines(text: fmt::Arguments<'_>) {
    if let Some(outlet) = OUTLET.get() {
        let _ = outlet.clone().write_all(text.to_string().as_bytes());
        return;
    }
    if let Err(error) = write(&mut io::stdout(), text) {
        aside!("error: standard output: {error}");
        process::exit(1);
    }
}

fn write(to: &mut impl Write, text: fmt::Arguments<'_>) -> io::Result<()> {
    match to.write_fmt(text) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_may_leave_but_nothing_else_may_be_lost() {
        let mut pipe = Broken(ErrorKind::BrokenPipe);
        write(&mut pipe, format_args!("{}", 1)).unwrap();
        let mut disk = Broken(ErrorKind::StorageFull);
        let error = write(&mut disk, format_args!("{}", 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }
}
