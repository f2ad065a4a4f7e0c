//! `strftime`, in English and UTC.

use jiff::Timestamp;
use jiff::fmt::strtime::{BrokenDownTime, Config};

/// Formats a time, given in seconds since 1970. Unknown directives stay as they are, as in Python.
/// Times beyond the year 9999 become its end.
pub(crate) fn format(format: &str, seconds: i64) -> String {
    let moment = BrokenDownTime::from(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX));
    let text = moment.to_string_with_config(&Config::new().lenient(true), format);
    text.unwrap_or_else(|_| format.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "Thursday 01 January 1970 day 001"),
            (951_782_400, "Tuesday 29 February 2000 day 060"),
            (1_795_132_800, "Friday 20 November 2026 day 324"),
            (4_107_542_399, "Sunday 28 February 2100 day 059"),
            (4_107_542_400, "Monday 01 March 2100 day 060"),
        ] {
            assert_eq!(format("%A %d %B %Y day %j", seconds), expected);
        }
    }

    #[test]
    fn hours_and_odd_directives() {
        assert_eq!(format("%H:%M:%S %I %p", 86_399), "23:59:59 11 PM");
        assert_eq!(format("%I %p %-d %-H %e", 0), "12 AM 1 0  1");
        assert_eq!(format("%b %a %y %F %T %% %! %", 0), "Jan Thu 70 1970-01-01 00:00:00 % %! %");
    }
}
