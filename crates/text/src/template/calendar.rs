//! `strftime`, as far as templates go, in English and UTC.

const SECONDS_OF_DAY: i64 = 86_400;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// From the weekday of the first of January 1970 on.
const WEEKDAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

struct Moment {
    year: i64,
    /// From 0.
    month: usize,
    day: i64,
    day_of_year: i64,
    weekday: usize,
    /// Within the day.
    second: i64,
}

/// A moment, given in seconds since 1970, as `format` asks. Directives without a meaning here stay
/// as they are.
pub(super) fn format(format: &str, seconds: i64) -> String {
    let moment = Moment::at(seconds);
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut directive = characters.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = characters.next();
        }
        let Some(directive) = directive else {
            out.push('%');
            break;
        };
        match moment.field(directive) {
            Some(text) if unpadded => {
                let digits = text.trim_start_matches('0');
                out.push_str(if digits.is_empty() { "0" } else { digits });
            }
            Some(text) => out.push_str(&text),
            None => out.extend(['%', directive]),
        }
    }
    out
}

impl Moment {
    fn at(seconds: i64) -> Self {
        let days = seconds.div_euclid(SECONDS_OF_DAY);
        let (mut year, mut day_of_year) = (1970, days);
        // Far years take whole cycles of the calendar at once.
        year += day_of_year.div_euclid(146_097) * 400;
        day_of_year = day_of_year.rem_euclid(146_097);
        while day_of_year >= days_of_year(year) {
            day_of_year -= days_of_year(year);
            year += 1;
        }
        let (mut month, mut day) = (0, day_of_year);
        while day >= days_of_month(year, month) {
            day -= days_of_month(year, month);
            month += 1;
        }
        let weekday = days.rem_euclid(7) as usize;
        let second = seconds.rem_euclid(SECONDS_OF_DAY);
        Self { year, month, day: day + 1, day_of_year: day_of_year + 1, weekday, second }
    }

    fn field(&self, directive: char) -> Option<String> {
        let (hour, minute, second) = (self.second / 3600, self.second / 60 % 60, self.second % 60);
        let (month, weekday) = (MONTHS[self.month], WEEKDAYS[self.weekday]);
        let (month_number, day) = (self.month + 1, self.day);
        Some(match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{month_number:02}"),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'j' => format!("{:03}", self.day_of_year),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'F' => format!("{:04}-{month_number:02}-{day:02}", self.year),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of_year(year: i64) -> i64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_of_month(year: i64, month: usize) -> i64 {
    match month {
        1 if is_leap(year) => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
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
        assert_eq!(format("%b %a %y %F %T %% %Q %", 0), "Jan Thu 70 1970-01-01 00:00:00 % %Q %");
    }
}
