//! As much of Rust's syntax as the checks need: which text is code, comment or string, and where
//! functions begin and end.

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Function<'a> {
    pub(super) name: &'a str,
    /// The line of the `fn`.
    pub(super) line: usize,
    /// Number of lines from `fn` to the closing brace.
    pub(super) line_count: usize,
}

pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c| !is_word(c)).filter(|word| !word.is_empty())
}

/// Number of lines with more than comments.
pub(super) fn code_lines(text: &str) -> usize {
    let masked = mask(text);
    masked.lines().filter(|line| !line.trim().is_empty()).count()
}

/// All functions of a masked text, including nested ones.
pub(super) fn functions(masked: &str) -> Vec<Function<'_>> {
    let starts = masked.match_indices("fn ").filter_map(|(start, keyword)| {
        if masked[..start].ends_with(is_word) {
            return None;
        }
        let rest = &masked[start + keyword.len()..];
        let name = rest.split(|c| !is_word(c)).next()?;
        let length = body_end(rest).filter(|_| !name.is_empty())?;
        Some(Function {
            name,
            line: masked[..start].matches('\n').count() + 1,
            line_count: rest[..length].matches('\n').count() + 1,
        })
    });
    starts.collect()
}

/// Where the function whose signature starts `text` ends; `None` without a body.
fn body_end(text: &str) -> Option<usize> {
    let mut depth = 0;
    let open = text.find(|c| {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            _ => {}
        }
        depth == 0 && matches!(c, '{' | ';')
    })?;
    let mut depth = 0;
    let length = text[open..].find(|c| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        depth == 0
    })?;
    text[open..].starts_with('{').then_some(open + length)
}

/// The text without comments and without the contents of strings and characters, so that every
/// remaining brace and word is code. Lines keep their numbers.
pub(super) fn mask(text: &str) -> String {
    let mut scan = Scan { rest: text, out: String::with_capacity(text.len()) };
    while let Some(c) = scan.rest.chars().next() {
        let raw = scan.raw_string();
        match c {
            '/' if scan.rest.starts_with("//") => {
                scan.hide(scan.rest.find('\n').unwrap_or(scan.rest.len()), ' ');
            }
            '/' if scan.rest.starts_with("/*") => scan.hide(comment_length(scan.rest), ' '),
            '"' => scan.hide(quoted_length(scan.rest, '"'), '_'),
            '\'' if is_char(scan.rest) => scan.hide(quoted_length(scan.rest, '\''), '_'),
            _ if raw.is_some() => scan.hide(raw.unwrap_or_default(), '_'),
            _ => scan.keep(c),
        }
    }
    scan.out
}

struct Scan<'a> {
    rest: &'a str,
    out: String,
}

impl Scan<'_> {
    fn keep(&mut self, c: char) {
        self.out.push(c);
        self.rest = &self.rest[c.len_utf8()..];
    }

    fn hide(&mut self, length: usize, fill: char) {
        let (hidden, rest) = self.rest.split_at(length);
        let struck = hidden.chars().map(|c| if c == '\n' { c } else { fill });
        self.out.extend(struck);
        self.rest = rest;
    }

    /// Length of the raw string that starts here.
    fn raw_string(&self) -> Option<usize> {
        if self.out.ends_with(is_word) {
            return None;
        }
        let prefix = ["r", "br", "cr"];
        let prefix = prefix.iter().find(|prefix| self.rest.starts_with(**prefix))?;
        let inner = self.rest[prefix.len()..].trim_start_matches('#');
        let hashes = self.rest.len() - prefix.len() - inner.len();
        let close = format!("\"{}", "#".repeat(hashes));
        let length = inner.strip_prefix('"')?.find(&close)?;
        Some(prefix.len() + hashes + 1 + length + close.len())
    }
}

fn comment_length(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += c.len_utf8();
        }
    }
    at
}

/// Length of a string or character with both its quotes.
fn quoted_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    let inner = text[1..].find(|c| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    inner.map_or(text.len(), |inner| inner + 2)
}

/// Whether the quote that starts `text` opens a character and not a lifetime.
fn is_char(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    chars.next() == Some('\\') || chars.next() == Some('\'')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_left() {
        assert_eq!(mask("a // {\nb"), "a     \nb");
        assert_eq!(mask("a /* { /* } */ { */ b"), "a                   b");
        assert_eq!(mask(r#"a "{\"}" b"#), "a ______ b");
        assert_eq!(mask("r\"\\\" {"), "____ {");
        assert_eq!(mask("br#\"a\"{\"# }"), "_________ }");
        assert_eq!(mask(r"'{' '\'' b'\\' 'é' &'a str"), "___ ____ b____ ___ &'a str");
        assert_eq!(mask("\"one\ntwo\"{"), "____\n____{");
        assert_eq!(mask("r#type {"), "r#type {");
    }

    #[test]
    fn functions_end_at_their_brace() {
        let text = "fn a(x: [u8; 2]) {\n  if x { \"}\"; }\n}\ntrait T {\n  fn b();\n  \
                    fn c() {\n    fn d() {}\n  }\n}\nlet e: fn(u8) = '}';\n";
        let found = functions(&mask(text)).len();
        assert_eq!(found, 3);
        let masked = mask(text);
        let spans = functions(&masked);
        let spans: Vec<_> = spans.iter().map(|f| (f.name, f.line, f.line_count)).collect();
        assert_eq!(spans, [("a", 1, 3), ("c", 6, 3), ("d", 7, 1)]);
    }

    #[test]
    fn comments_are_no_code() {
        assert_eq!(code_lines("//! Doc.\n\nfn f() {\n    // why\n    g(); // how\n}\n"), 3);
    }
}
