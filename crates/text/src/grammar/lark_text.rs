//! Rewrites a tool's own text grammar for its place in a call: before a closing tag, which must not
//! occur in the text, or within a JSON string, in which the text is escaped.

use std::collections::BTreeMap;
use std::fmt::Write;

use llguidance::regex_to_lark;
use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Repetition};

use super::{GrammarError, lark, parse_gbnf};
use crate::reply::value::escape;

/// The place of a text in a call.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// `padded`: a line end before the tag belongs to the tag.
    Before {
        tag: &'a str,
        padded: bool,
    },
    InJson,
}

/// Terminals of Lark's library that contain characters which JSON escapes.
const ESCAPED_IMPORTS: &[(&str, &str)] = &[
    ("ESCAPED_STRING", r#""([^"\\]|\\.)*""#),
    ("WS_INLINE", r"[ \t]+"),
    ("WS", r"[ \t\f\r\n]+"),
    ("CR", r"\r"),
    ("LF", r"\n"),
    ("NEWLINE", r"(\r?\n)+"),
    ("SH_COMMENT", r"#[^\n]*"),
    ("CPP_COMMENT", r"//[^\n]*"),
    ("C_COMMENT", r"/\*[^*]*\*+(?:[^/*][^*]*\*+)*/"),
    ("SQL_COMMENT", r"--[^\n]*"),
];

pub(super) fn rewrite<'a>(grammar: &'a str, place: Place<'a>) -> Result<String, GrammarError> {
    if parse_gbnf::has_definition(grammar) {
        return Err(invalid("it is GBNF, and a tool's grammar is Lark"));
    }
    let mut rewriter = Rewriter {
        place,
        out: String::new(),
        in_terminal: false,
        runs: runs(grammar, place),
        parts: BTreeMap::new(),
    };
    let mut rest = grammar;
    while let Some(next) = rest.chars().next() {
        let length = match next {
            '"' => rewriter.literal(rest)?,
            '/' if !rest.starts_with("//") => rewriter.regex(rest)?,
            '/' | '#' => rest.find('\n').unwrap_or(rest.len()),
            '%' => rewriter.directive(rest)?,
            '<' => return Err(invalid("it names a token, but it is about text")),
            '~' if rewriter.is_complement(rest) => {
                return Err(invalid("it uses `~`, which cannot be followed within a JSON string"));
            }
            'A'..='Z' if rewriter.begins_name() => rewriter.name(rest)?,
            _ => {
                rewriter.in_terminal = match next {
                    ':' => rewriter.defines_terminal(),
                    _ => rewriter.in_terminal,
                };
                rewriter.out.push(next);
                next.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    for (body, name) in rewriter.parts {
        let _ = write!(rewriter.out, "\n{name}: {body}");
    }
    Ok(rewriter.out)
}

/// The regular expression, if the whole grammar is only one.
pub(super) fn only_regex(grammar: &str) -> Option<String> {
    let body = grammar.trim().strip_prefix("start")?.trim_start().strip_prefix(':')?.trim_start();
    let length = body.starts_with('/').then(|| lark::quoted(body, '/'))?;
    let (regex, rest) = (body[1..length].strip_suffix('/')?, &body[length..]);
    let flags = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
    let (flags, count) = rest.split_at(flags);
    let flags = if flags.is_empty() { String::new() } else { format!("(?{flags})") };
    let regex = format!("{flags}(?:{})", regex.replace("\\/", "/"));
    matches!(count, "" | "+" | "*" | "?").then(|| format!("{regex}{count}"))
}

/// Terminals that match any number of characters of one class, with their expressions by name.
/// Within rules, these terminals are replaced by their expressions, see [`run`].
fn runs<'g>(grammar: &'g str, place: Place<'_>) -> BTreeMap<&'g str, &'g str> {
    let mut lines = grammar.lines().peekable();
    let mut runs = BTreeMap::new();
    while let Some(line) = lines.next() {
        let goes_on = lines.peek().is_some_and(|next| next.trim_start().starts_with('|'));
        let Some((name, body)) = line.split_once(':').filter(|_| !goes_on) else { continue };
        let (name, body) = (name.trim(), body.trim());
        if !name.starts_with(|c: char| c.is_ascii_uppercase()) || !body.starts_with('/') {
            continue;
        }
        let length = lark::quoted(body, '/');
        let flags = &body[length..];
        let pattern = body[1..length].strip_suffix('/').unwrap_or_default();
        if flags.chars().all(|c| c.is_ascii_lowercase())
            && parsed(&pattern.replace("\\/", "/"), flags)
                .is_ok_and(|hir| run(&hir, place).is_some())
        {
            runs.insert(name, body);
        }
    }
    runs
}

/// A regular expression of Lark.
fn parsed(pattern: &str, flags: &str) -> Result<Hir, GrammarError> {
    let mut parser = ParserBuilder::new()
        .case_insensitive(flags.contains('i'))
        .dot_matches_new_line(flags.contains('s'))
        .ignore_whitespace(flags.contains('x'))
        .build();
    parser.parse(pattern).map_err(|error| {
        let reason = error.to_string();
        invalid(reason.lines().last().unwrap_or_default())
    })
}

struct Rewriter<'a> {
    place: Place<'a>,
    out: String,
    /// Whether the definition at hand is a terminal's, not a rule's.
    in_terminal: bool,
    /// See [`runs`].
    runs: BTreeMap<&'a str, &'a str>,
    /// Names of the parts that replace regular expressions, by their definition.
    parts: BTreeMap<String, String>,
}

impl Rewriter<'_> {
    /// Takes a string, or a range of two strings; returns its length.
    fn literal(&mut self, rest: &str) -> Result<usize, GrammarError> {
        let length = lark::quoted(rest, '"');
        let text = unquoted(&rest[..length])?;
        let after = rest[length..].trim_start_matches([' ', '\t']);
        if let Some(other) = after.strip_prefix("..") {
            let other = other.trim_start_matches([' ', '\t']);
            let end = lark::quoted(other, '"');
            let class =
                format!("[{}-{}]", class_end(&text)?, class_end(&unquoted(&other[..end])?)?);
            self.expression(&class, "")?;
            return Ok(rest.len() - other.len() + end);
        }
        let ignores_case = rest[length..].starts_with('i');
        match self.place {
            Place::Before { tag, .. } if text.contains(tag) => {
                return Err(invalid(&format!("it has {tag:?}, with which a call ends its text")));
            }
            Place::Before { .. } => self.out.push_str(&rest[..length]),
            Place::InJson => {
                let escaped = escaped(&text);
                if ignores_case && escaped != text {
                    return Err(invalid("it ignores the case of what JSON escapes"));
                }
                self.out.push_str(&lark::literal(&escaped));
            }
        }
        if ignores_case {
            self.out.push('i');
        }
        Ok(length + usize::from(ignores_case))
    }

    fn regex(&mut self, rest: &str) -> Result<usize, GrammarError> {
        let length = lark::quoted(rest, '/');
        let flags = &rest[length..];
        let flags = &flags
            [..flags.len() - flags.trim_start_matches(|c: char| c.is_ascii_lowercase()).len()];
        let pattern = rest[1..length].strip_suffix('/').unwrap_or_default();
        self.expression(&pattern.replace("\\/", "/"), flags)?;
        Ok(length + flags.len())
    }

    /// Whether the next character begins a name.
    fn begins_name(&self) -> bool {
        !self.out.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.')
    }

    /// Takes a name. Within a rule, a terminal of `runs` is replaced by its expression. Returns the
    /// length.
    fn name(&mut self, rest: &str) -> Result<usize, GrammarError> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = rest.len() - rest.trim_start_matches(is_name).len();
        let (name, after) = rest.split_at(length);
        let is_defined = after.trim_start().starts_with([':', '.']);
        match self.runs.get(name).copied().filter(|_| !self.in_terminal && !is_defined) {
            Some(regex) => {
                self.regex(regex)?;
            }
            None => self.out.push_str(name),
        }
        Ok(length)
    }

    /// Writes the replacement of a regular expression.
    fn expression(&mut self, pattern: &str, flags: &str) -> Result<(), GrammarError> {
        let hir = parsed(pattern, flags)?;
        if let Some(rule) = run(&hir, self.place).filter(|_| !self.in_terminal) {
            self.part(rule, "text_part");
            return Ok(());
        }
        let body = match self.place {
            Place::Before { tag, .. } => {
                let tag = tag.replace('/', "\\/");
                format!("{} & ~/(?s:.*){tag}(?s:.*)/", slashed(&hir))
            }
            Place::InJson => slashed(&in_json(&hir)?),
        };
        self.part(body, "TEXT_PART");
        Ok(())
    }

    /// Writes the name of a part; the part is defined at the end.
    fn part(&mut self, body: String, kind: &str) {
        let next = self.parts.len();
        let name = self.parts.entry(body).or_insert_with(|| format!("{kind}_{next}"));
        self.out.push_str(name);
    }

    /// Whether the name before a colon is a terminal's.
    fn defines_terminal(&self) -> bool {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_.".contains(c);
        let before = self.out.trim_end();
        let name = &before[before.trim_end_matches(is_name).len()..];
        name.trim_start_matches('_').starts_with(|c: char| c.is_ascii_uppercase())
    }

    /// Takes the name of a directive, or a whole import; returns its length.
    fn directive(&mut self, rest: &str) -> Result<usize, GrammarError> {
        let line = rest.lines().next().unwrap_or_default();
        let word = line.split(|c: char| c.is_whitespace()).next().unwrap_or_default();
        match (word, self.place) {
            ("%ignore", _) => self.out.push_str(word),
            ("%import", Place::InJson) => {
                let of_library = line[word.len()..].trim().strip_prefix("common.");
                let (name, alias) = match of_library.map(|name| name.split_once("->")) {
                    Some(Some((name, alias))) => (name.trim(), alias.trim()),
                    Some(None) => (of_library.unwrap_or_default(), of_library.unwrap_or_default()),
                    None => return Err(invalid("it imports what is not of `common.`")),
                };
                match ESCAPED_IMPORTS.iter().find(|(known, _)| *known == name) {
                    Some((_, pattern)) => {
                        let _ = write!(self.out, "{alias}: ");
                        self.expression(pattern, "")?;
                    }
                    None => self.out.push_str(line),
                }
                return Ok(line.len());
            }
            ("%import", Place::Before { .. }) => {
                self.out.push_str(line);
                return Ok(line.len());
            }
            _ => return Err(invalid(&format!("it uses {word:?}, which a tool's text cannot"))),
        }
        Ok(word.len())
    }

    /// Whether a `~` is a complement and not a repetition.
    fn is_complement(&self, rest: &str) -> bool {
        let repeats = rest[1..].trim_start().starts_with(|c: char| c.is_ascii_digit());
        matches!(self.place, Place::InJson) && !repeats
    }
}

fn invalid(what: &str) -> GrammarError {
    GrammarError::Invalid(format!("the grammar of its text cannot be used: {what}"))
}

/// The text of a string of Lark.
fn unquoted(string: &str) -> Result<String, GrammarError> {
    let json = string.replace("\\x", "\\u00");
    serde_json::from_str(&json).map_err(|error| invalid(&format!("the string {string}: {error}")))
}

/// One end of a range, escaped for a class.
fn class_end(text: &str) -> Result<String, GrammarError> {
    let mut characters = text.chars();
    match (characters.next(), characters.next()) {
        (Some(only), None) => Ok(format!("\\x{{{:x}}}", u32::from(only))),
        _ => Err(invalid("the end of a range must be one character")),
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    text.chars().for_each(|character| escape(character, &mut out));
    out
}

fn slashed(hir: &Hir) -> String {
    format!("/{}/", regex_to_lark(&hir.to_string(), ""))
}

/// A pattern that matches the JSON escapes of the texts that `hir` matches.
fn in_json(hir: &Hir) -> Result<Hir, GrammarError> {
    let all = |parts: &[Hir]| parts.iter().map(in_json).collect::<Result<Vec<_>, _>>();
    Ok(match hir.kind() {
        HirKind::Empty => Hir::empty(),
        HirKind::Literal(literal) => match std::str::from_utf8(&literal.0) {
            Ok(text) => Hir::literal(escaped(text).into_bytes()),
            Err(_) => return Err(invalid("it matches what is no text")),
        },
        HirKind::Class(Class::Unicode(class)) => escaped_class(class),
        HirKind::Class(Class::Bytes(_)) => return Err(invalid("it matches what is no text")),
        HirKind::Look(_) => return Err(invalid("it has anchors, but all of a terminal matches")),
        HirKind::Repetition(repetition) => {
            let sub = Box::new(in_json(&repetition.sub)?);
            Hir::repetition(Repetition { sub, ..repetition.clone() })
        }
        HirKind::Capture(capture) => in_json(&capture.sub)?,
        HirKind::Concat(parts) => Hir::concat(all(parts)?),
        HirKind::Alternation(parts) => Hir::alternation(all(parts)?),
    })
}

fn escaped_class(class: &ClassUnicode) -> Hir {
    let (plain, escapes) = split(class);
    let plain = (!plain.ranges().is_empty()).then(|| Hir::class(Class::Unicode(plain)));
    Hir::alternation(plain.into_iter().chain(escapes).collect())
}

/// Splits a class into the characters that JSON leaves as they are, and the escapes of the others.
fn split(class: &ClassUnicode) -> (ClassUnicode, Vec<Hir>) {
    let of = |character| ClassUnicode::new([ClassUnicodeRange::new(character, character)]);
    let mut plain = class.clone();
    let mut escapes = Vec::new();
    for special in ('\0'..' ').chain(['"', '\\']) {
        let mut both = class.clone();
        both.intersect(&of(special));
        if !both.ranges().is_empty() {
            escapes.push(Hir::literal(escaped(&special.to_string()).into_bytes()));
            plain.difference(&of(special));
        }
    }
    (plain, escapes)
}

/// A rule for any number of characters of one class. A single lexeme would also consume the
/// beginning of what follows, a backslash or the closing tag, and fail there.
fn run(hir: &Hir, place: Place<'_>) -> Option<String> {
    match hir.kind() {
        HirKind::Capture(capture) => run(&capture.sub, place),
        HirKind::Repetition(Repetition { min: min @ 0..=1, max: None, sub, .. }) => {
            let HirKind::Class(Class::Unicode(class)) = sub.kind() else { return None };
            let (plain, others) = match place {
                Place::InJson => {
                    let (plain, escapes) = split(class);
                    (plain, Hir::alternation(escapes))
                }
                Place::Before { tag, padded } if padded && without(class, &['\n']) != *class => {
                    let line_end = Hir::literal(*b"\n");
                    let no_tag = no_tag(&without(class, &['\n']), tag);
                    let after = Hir::concat(vec![line_end.clone(), no_tag.clone()]);
                    let others = Hir::alternation(vec![no_tag, after, line_end]);
                    (without(class, &['<', '\n']), others)
                }
                Place::Before { tag, .. } => (without(class, &['<']), no_tag(class, tag)),
            };
            if plain.ranges().is_empty() || plain == *class {
                return None;
            }
            let sub = Box::new(Hir::class(Class::Unicode(plain)));
            let plain = Repetition { min: 1, max: None, greedy: true, sub };
            let count = if *min == 0 { '*' } else { '+' };
            Some(format!("({} | {}){count}", slashed(&Hir::repetition(plain)), slashed(&others)))
        }
        _ => None,
    }
}

/// A `<` and the characters after it, up to the first that cannot continue the tag. If `<` is
/// followed by further characters of the tag, another character must follow that is not the tag's
/// next.
fn no_tag(class: &ClassUnicode, tag: &str) -> Hir {
    let mut rest: Option<Hir> = None;
    for next in tag.chars().skip(1).collect::<Vec<_>>().into_iter().rev() {
        let other = Hir::class(Class::Unicode(without(class, &['<', next])));
        rest = Some(match rest {
            None => other,
            Some(rest) => {
                let rest = Hir::concat(vec![Hir::literal(next.to_string().into_bytes()), rest]);
                let sub = Box::new(Hir::alternation(vec![other, rest]));
                Hir::repetition(Repetition { min: 0, max: Some(1), greedy: true, sub })
            }
        });
    }
    Hir::concat([Hir::literal(*b"<")].into_iter().chain(rest).collect())
}

fn without(class: &ClassUnicode, characters: &[char]) -> ClassUnicode {
    let ranges = characters.iter().map(|&c| ClassUnicodeRange::new(c, c));
    let mut rest = class.clone();
    rest.difference(&ClassUnicode::new(ranges));
    rest
}
