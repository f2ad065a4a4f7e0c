//! Patterns of JSON schemas: whether llguidance can follow one, and the string formats as patterns
//! where it has none, or one that takes too much.

use llguidance::derivre::RegexBuilder;
use llguidance::regex_to_lark;

/// Longest pattern; every state of its automaton may be visited for a mask.
const PATTERN_BYTES_MAX: usize = 4 << 10;

/// What there is for a `format`.
pub(super) enum Known {
    /// llguidance has it right.
    Library,
    Pattern(&'static str),
    /// It has a meaning, which is not to be had.
    Unsupported,
    /// JSON Schema gives it no meaning.
    No,
}

/// Months have their days, February 29 of them in leap years. Seconds end at 59: leap seconds are
/// in tables that readers do not have.
macro_rules! date {
    () => {
        concat!(
            "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])",
            "|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))",
            "|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
        )
    };
}
macro_rules! time {
    () => {
        concat!(
            "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?",
            "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
        )
    };
}

const DATE: &str = concat!("^", date!(), "$");
const TIME: &str = concat!("^", time!(), "$");
const DATE_TIME: &str = concat!("^", date!(), "T", time!(), "$");
const JSON_POINTER: &str = "^(/([^/~]|~[01])*)*$";
const RELATIVE_POINTER: &str = "^(0|[1-9][0-9]{0,3})(#|(/([^/~]|~[01])*)*)$";

pub(super) fn of_format(format: &str) -> Known {
    match format {
        "date" => Known::Pattern(DATE),
        "time" => Known::Pattern(TIME),
        "date-time" => Known::Pattern(DATE_TIME),
        "json-pointer" => Known::Pattern(JSON_POINTER),
        "relative-json-pointer" => Known::Pattern(RELATIVE_POINTER),
        "duration" | "email" | "hostname" | "ipv4" | "ipv6" | "uuid" | "uri" => Known::Library,
        "idn-email" | "idn-hostname" | "uri-reference" | "iri" | "iri-reference"
        | "uri-template" | "regex" => Known::Unsupported,
        _ => Known::No,
    }
}

/// The pattern as llguidance is to read it; why not, if it cannot follow it.
pub(super) fn readable(pattern: &str) -> Result<String, String> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(format!("longer than {PATTERN_BYTES_MAX} bytes"));
    }
    let pattern = without_nul(pattern);
    let regex = regex_to_lark(&pattern, "dw");
    match RegexBuilder::new().mk_regex_for_serach(&regex) {
        Ok(_) => Ok(pattern),
        Err(error) => Err(reason(&error.to_string())),
    }
}

/// A pattern for text in which `tag` is not; only its first character is `<`.
pub(super) fn without(tag: &str) -> String {
    // What may come after a part of the tag: nothing, another tag, or what is not the tag's next.
    let mut rest = String::new();
    for next in tag.chars().skip(1).collect::<Vec<_>>().into_iter().rev() {
        let longer = if rest.is_empty() { String::new() } else { format!("|{next}{rest}") };
        rest = format!("(?:[^<{next}][^<]*{longer})?");
    }
    format!("^[^<]*(?:<{rest})*$")
}

/// Whether a regular expression that is all of a reply can be followed; why not, if not.
pub(super) fn check(regex: &str) -> Result<(), String> {
    let built = RegexBuilder::new().mk_regex(regex);
    built.map(drop).map_err(|error| reason(&error.to_string()))
}

/// The parser draws the place over several lines, and then says what is wrong.
fn reason(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// Takes NUL, which no reply has, out of the pattern's classes. llguidance 1.9 lets a class match
/// an escaped quote and backslash if it has all control characters, whether it has those or not.
fn without_nul(pattern: &str) -> String {
    let mut out = String::new();
    let mut in_class = false;
    let mut rest = pattern;
    while let Some(next) = rest.chars().next() {
        let mut length = next.len_utf8();
        match next {
            '\\' => length += rest[1..].chars().next().map_or(0, char::len_utf8),
            '[' if !in_class => {
                in_class = true;
                if rest.starts_with("[^") {
                    out.push_str("[^\\x00");
                    rest = &rest[2..];
                    continue;
                }
            }
            ']' => in_class = false,
            _ => {}
        }
        let nul = ["\\u0000-", "\\x00-", "\\u{0}-", "\0-"];
        if let Some(nul) = nul.iter().find(|nul| in_class && rest.starts_with(**nul)) {
            out.push_str("\\x01-");
            rest = &rest[nul.len()..];
            continue;
        }
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out
}
