//! Output of commands: results on standard output, remarks on standard error.

use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;
use std::time::Duration;
use std::{fmt, process, thread};

use crate::buffered_output::BufferedOutput;

/// Prints a line, formatted like `format!`.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::output::lines(format_args!("{}\n", format_args!($($text)*)))
    };
}
pub(crate) use say;

/// Prints a line on standard error, formatted like `format!`. A failure is ignored, whereas
/// `eprintln!` would panic.
macro_rules! aside {
    ($($text:tt)*) => {{
        let line = format!("{}\n", format_args!($($text)*));
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    }};
}

/// Time to write the last lines when a program ends.
const LAST_WAIT_MAX: Duration = Duration::from_secs(1);

/// The buffered output of a server, which must not wait for its reader.
static OUTPUT: OnceLock<BufferedOutput> = OnceLock::new();

/// Buffers all further output; what is not read is dropped.
pub(crate) fn detach() -> io::Result<()> {
    let output = BufferedOutput::start("kilotok-say", io::stdout(), |_| {})?;
    let _ = OUTPUT.set(output);
    Ok(())
}

/// Waits until the buffered output is written, if it is read.
pub(crate) fn flush() {
    if let Some(output) = OUTPUT.get() {
        output.flush(LAST_WAIT_MAX);
    }
}

/// Prints a line on standard error before the program ends, without waiting for long if it is not
/// read.
pub(crate) fn final_line(line: String) {
    let (written, done) = sync_channel(1);
    let write = move || {
        let _ = io::stderr().write_all(line.as_bytes());
        let _ = written.send(());
    };
    if thread::Builder::new().spawn(write).is_ok() {
        let _ = done.recv_timeout(LAST_WAIT_MAX);
    }
}

/// Shows progress to people who wait. If there is a log, it becomes a line of the log, because a
/// reader of JSON logs can parse nothing else.
pub(crate) fn progress_line(line: &str) {
    if tracing::dispatcher::has_been_set() {
        tracing::info!("{line}");
    } else {
        aside!("{line}");
    }
}

/// Prints complete lines. If the reader has closed the pipe, as `head` does, the command continues
/// without output. Any other failure to write ends the command.
pub(crate) fn lines(text: fmt::Arguments<'_>) {
    if let Some(output) = OUTPUT.get() {
        let _ = output.clone().write_all(text.to_string().as_bytes());
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
