//! Patterns of JSON schemas: checks whether llguidance can follow a pattern, and defines patterns
//! for string formats for which llguidance has none or too costly a one.

use llguidance::derivre::RegexBuilder;
use llguidance::regex_to_lark;
use regex_syntax::hir::{Class, Hir, HirKind, Repetition};

use super::GrammarError;

/// Longest pattern; a mask may visit every state of its automaton.
const PATTERN_BYTES_MAX: usize = 4 << 10;

/// How a `format` is treated.
pub(super) enum FormatPattern {
    Pattern(String),
    /// The format has a meaning that cannot be enforced.
    Unsupported,
    /// JSON Schema does not define the format.
    No,
}

/// RFC 3339. Months have their number of days, and February 29 exists only in leap years. Seconds
/// end at 59: leap seconds are listed in tables that readers do not have.
const DATE: &str = concat!(
    "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])",
    "|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))",
    "|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
);
const TIME: &str = concat!(
    "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?",
    "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
);
/// RFC 3339, appendix A; N are digits.
const DURATION: &str = concat!(
    "P(NW|((NY(NM(ND)?)?|NM(ND)?|ND)(T(NH(NM(NS)?)?|NM(NS)?|NS))?",
    "|T(NH(NM(NS)?)?|NM(NS)?|NS)))"
);
const DURATION_DIGITS: &str = "[0-9]{1,9}";
/// RFC 1123.
const HOSTNAME: &str = concat!(
    "[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?",
    "(\\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*"
);
/// RFC 5321: the part before the host, without quotes.
const MAILBOX: &str = "[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]+(\\.[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]+)*";
const OCTET: &str = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
/// RFC 3986; G is a group of hexadecimal digits and L the last 32 bits.
const IPV6: &str = concat!(
    "((G:){6}L|::(G:){5}L|G?::(G:){4}L|((G:)?G)?::(G:){3}L|((G:){0,2}G)?::(G:){2}L",
    "|((G:){0,3}G)?::G:L|((G:){0,4}G)?::L|((G:){0,5}G)?::G|((G:){0,6}G)?::)"
);
const IPV6_GROUP: &str = "[0-9a-fA-F]{1,4}";
const UUID: &str = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}";
/// RFC 3986, where C is a character of a path, N one of a name, and I an address.
const URI: &str = concat!(
    "[a-zA-Z][a-zA-Z0-9+.-]*:",
    "(//((N|:)*@)?(\\[I\\]|N*)(:[0-9]*)?(/C*)*|/(C+(/C*)*)?|C+(/C*)*)?",
    "(\\?(C|[/?])*)?(#(C|[/?])*)?"
);
const URI_PATH: &str = "([a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})";
const URI_NAME: &str = "([a-zA-Z0-9._~!$&'()*+,;=-]|%[0-9a-fA-F]{2})";
const JSON_POINTER: &str = "(/([^/~]|~[01])*)*";

pub(super) fn of_format(format: &str) -> FormatPattern {
    let pattern = match format {
        "date" => DATE.to_owned(),
        "time" => TIME.to_owned(),
        "date-time" => format!("{DATE}T{TIME}"),
        "duration" => DURATION.replace('N', DURATION_DIGITS),
        "hostname" => HOSTNAME.to_owned(),
        "email" => format!("{MAILBOX}@{HOSTNAME}"),
        "ipv4" => ipv4(),
        "ipv6" => ipv6(),
        "uuid" => UUID.to_owned(),
        "uri" => URI.replace('C', URI_PATH).replace('N', URI_NAME).replace('I', &ipv6()),
        "json-pointer" => JSON_POINTER.to_owned(),
        "relative-json-pointer" => format!("(0|[1-9][0-9]{{0,3}})(#|{JSON_POINTER})"),
        "idn-email" | "idn-hostname" | "uri-reference" | "iri" | "iri-reference"
        | "uri-template" | "regex" => return FormatPattern::Unsupported,
        _ => return FormatPattern::No,
    };
    FormatPattern::Pattern(format!("^({pattern})$"))
}

fn ipv4() -> String {
    format!("({OCTET}\\.){{3}}{OCTET}")
}

fn ipv6() -> String {
    IPV6.replace('L', &format!("(G:G|{})", ipv4())).replace('G', IPV6_GROUP)
}

/// The pattern in llguidance's form; or the reason why it cannot be followed.
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

/// A pattern for text that does not contain `tag`, whose only `<` is its first character.
pub(super) fn without(tag: &str) -> String {
    // What may follow a beginning of the tag: nothing, another `<`, or a character that is not the
    // tag's next.
    let mut rest = String::new();
    for next in tag.chars().skip(1).collect::<Vec<_>>().into_iter().rev() {
        let longer = if rest.is_empty() { String::new() } else { format!("|{next}{rest}") };
        rest = format!("(?:[^<{next}][^<]*{longer})?");
    }
    format!("^[^<]*(?:<{rest})*$")
}

/// A user's pattern for white space between tokens of JSON, changed so that it does not match the
/// empty text; `None` if it matches nothing else.
pub(super) fn white_space(pattern: &str) -> Result<Option<String>, GrammarError> {
    let wrong = |what: &str| {
        GrammarError::Invalid(format!("the pattern of white space {pattern:?} {what}"))
    };
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(GrammarError::TooLarge(wrong("is too long").to_string()));
    }
    let hir = regex_syntax::parse(pattern).map_err(|error| wrong(&reason(&error.to_string())))?;
    if !is_white_space(&hir) {
        return Err(wrong("may match something else than spaces, tabs and line ends"));
    }
    Ok(not_empty(&hir).map(|hir| hir.to_string()))
}

/// The pattern without the empty text; `None` if nothing remains.
fn not_empty(hir: &Hir) -> Option<Hir> {
    let may_be_empty = |hir: &Hir| hir.properties().minimum_len() == Some(0);
    match hir.kind() {
        _ if !may_be_empty(hir) => Some(hir.clone()),
        HirKind::Repetition(repetition) => {
            let sub = Box::new(not_empty(&repetition.sub)?);
            let some = repetition.max != Some(0);
            let repetition = Repetition { min: 1, sub, ..repetition.clone() };
            some.then(|| Hir::repetition(repetition))
        }
        HirKind::Capture(capture) => not_empty(&capture.sub),
        HirKind::Alternation(options) => {
            let options: Vec<Hir> = options.iter().filter_map(not_empty).collect();
            (!options.is_empty()).then(|| Hir::alternation(options))
        }
        // All parts may be empty: one option per part, in which it is the first that is not empty.
        HirKind::Concat(parts) => {
            let options = parts.iter().enumerate().filter_map(|(index, part)| {
                let rest = parts[index + 1..].iter().cloned();
                Some(Hir::concat([not_empty(part)?].into_iter().chain(rest).collect()))
            });
            let options: Vec<Hir> = options.collect();
            (!options.is_empty()).then(|| Hir::alternation(options))
        }
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) | HirKind::Look(_) => None,
    }
}

fn is_white_space(hir: &Hir) -> bool {
    let white = |byte: u8| b" \n\r\t".contains(&byte);
    match hir.kind() {
        HirKind::Empty => true,
        HirKind::Literal(literal) => literal.0.iter().copied().all(white),
        HirKind::Class(Class::Unicode(class)) => class
            .iter()
            .all(|range| (range.start()..=range.end()).all(|c| u8::try_from(c).is_ok_and(white))),
        HirKind::Class(Class::Bytes(_)) | HirKind::Look(_) => false,
        HirKind::Repetition(repetition) => is_white_space(&repetition.sub),
        HirKind::Capture(capture) => is_white_space(&capture.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().all(is_white_space),
    }
}

/// Fails with a reason if a regular expression for the whole reply cannot be followed.
pub(super) fn check(regex: &str) -> Result<(), String> {
    let built = RegexBuilder::new().mk_regex(regex);
    built.map(drop).map_err(|error| reason(&error.to_string()))
}

/// The last line of the parser's message. The lines before it draw the position.
fn reason(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// Removes NUL, which no reply contains, from the pattern's classes. In llguidance 1.9 a class that
/// has all control characters also matches an escaped quote and backslash, even if it does not
/// contain them.
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
