//! What commands say on standard output, which is what they are called for, and beside it.

use std::io::{self, ErrorKind, Write};
use std::{fmt, process};

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
pub(crate) use aside;

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
