//! Parses GBNF into rules. Accepts everything that llama.cpp and `XGrammar` document; other
//! extensions, such as lookahead, are refused with their position.

use std::collections::BTreeMap;

use super::GrammarError;

/// Deepest nesting of groups; each level takes a little stack.
const DEPTH_MAX: usize = 24;
/// Most rules; llama.cpp's largest example has fifty.
const RULES_MAX: usize = 4096;
/// Largest number of repetitions. No reply would get beyond it.
const COUNT_MAX: u32 = 100_000;

pub(super) type Sequence = Vec<Node>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Literal(String),
    Class(Class),
    Rule(String),
    /// A token by its name or number, written as in Lark.
    Token(String),
    Group(Vec<Sequence>),
    Repeat(Box<Node>, Count),
}

/// The characters in some ranges, or, if negated, all other characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) negated: bool,
    pub(super) ranges: Vec<(char, char)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) min: u32,
    pub(super) max: Option<u32>,
}

/// Whether `::=` occurs anywhere outside strings, expressions and comments.
pub(super) fn has_definition(text: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim_start();
        let name = line.find(|c| !is_name(c)).unwrap_or(line.len());
        name > 0 && line[name..].trim_start().starts_with("::=")
    })
}

pub(super) fn parse(text: &str) -> Result<BTreeMap<String, Vec<Sequence>>, GrammarError> {
    let mut parser = Parser { text, at: 0, depth: 0 };
    let mut rules = BTreeMap::new();
    parser.space();
    while parser.at < text.len() {
        let name = parser.name();
        if name.is_empty() {
            return Err(parser.wrong("expected the name of a rule"));
        }
        parser.space();
        if !parser.eat("::=") {
            return Err(parser.wrong("expected `::=`"));
        }
        let alternatives = parser.alternatives()?;
        if rules.insert(name.to_owned(), alternatives).is_some() {
            return Err(parser.wrong(&format!("a second rule {name:?}")));
        }
        if rules.len() > RULES_MAX {
            return Err(GrammarError::TooLarge(format!("more than {RULES_MAX} rules")));
        }
    }
    Ok(rules)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn eat(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        if found {
            self.at += text.len();
        }
        found
    }

    /// Skips white space and comments.
    fn space(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with('#') {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn name(&mut self) -> &'a str {
        let rest = self.rest();
        let name = &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())];
        self.at += name.len();
        name
    }

    /// Whether a rule begins here, which ends the rule before.
    fn at_rule(&self) -> bool {
        let mut ahead = Parser { text: self.text, at: self.at, depth: 0 };
        let named = !ahead.name().is_empty();
        ahead.space();
        named && ahead.rest().starts_with("::=")
    }

    fn alternatives(&mut self) -> Result<Vec<Sequence>, GrammarError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let text = format!("the grammar has more than {DEPTH_MAX} groups within each other");
            return Err(GrammarError::TooLarge(text));
        }
        let mut alternatives = vec![Vec::new()];
        loop {
            self.space();
            let last = alternatives.len() - 1;
            match self.peek() {
                None => break,
                Some(')') if self.depth > 1 => break,
                Some('|') => {
                    self.at += 1;
                    alternatives.push(Vec::new());
                }
                Some(_) if self.at_rule() => break,
                Some(_) => {
                    let node = self.node()?;
                    alternatives[last].push(node);
                }
            }
        }
        self.depth -= 1;
        Ok(alternatives)
    }

    fn node(&mut self) -> Result<Node, GrammarError> {
        let mut node = self.atom()?;
        loop {
            self.space();
            let count = match self.peek() {
                Some('*') => Count { min: 0, max: None },
                Some('+') => Count { min: 1, max: None },
                Some('?') => Count { min: 0, max: Some(1) },
                Some('{') => self.count()?,
                _ => return Ok(node),
            };
            self.at += 1;
            node = Node::Repeat(Box::new(node), count);
        }
    }

    fn atom(&mut self) -> Result<Node, GrammarError> {
        match self.peek() {
            Some(quote @ ('"' | '\'')) => self.literal(quote),
            Some('[') => self.class(),
            Some('.') => {
                self.at += 1;
                Ok(Node::Class(Class { negated: true, ranges: Vec::new() }))
            }
            Some('<') => self.token(),
            Some('(') => {
                self.at += 1;
                if self.peek() == Some('=') {
                    return Err(self.wrong("look-ahead `(= ..)` is not supported"));
                }
                let alternatives = self.alternatives()?;
                if !self.eat(")") {
                    return Err(self.wrong("expected `)`"));
                }
                Ok(Node::Group(alternatives))
            }
            Some(c) if is_name(c) => Ok(Node::Rule(self.name().to_owned())),
            _ => Err(self.wrong("expected a rule, a string, a class or a group")),
        }
    }

    fn literal(&mut self, quote: char) -> Result<Node, GrammarError> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.next() {
                None | Some('\n') => return Err(self.wrong("the string does not end")),
                Some('\\') => text.push(self.escape()?),
                Some(c) if c == quote => break,
                Some(c) => text.push(c),
            }
        }
        // XGrammar's marker for ignoring case.
        if self.peek() == Some('i') && !self.rest()[1..].starts_with(is_name) {
            return Err(self.wrong("strings without regard to case are not supported"));
        }
        Ok(Node::Literal(text))
    }

    fn class(&mut self) -> Result<Node, GrammarError> {
        self.at += 1;
        let mut class = Class { negated: self.eat("^"), ranges: Vec::new() };
        while !self.eat("]") {
            let first = self.member()?;
            let mut last = first;
            if self.rest().starts_with('-') && !self.rest().starts_with("-]") {
                self.at += 1;
                last = self.member()?;
            }
            if last < first {
                return Err(self.wrong("the range is empty"));
            }
            class.ranges.push((first, last));
        }
        if class.ranges.is_empty() {
            return Err(self.wrong("the class is empty"));
        }
        Ok(Node::Class(class))
    }

    fn member(&mut self) -> Result<char, GrammarError> {
        match self.next() {
            None | Some('\n') => Err(self.wrong("the class does not end")),
            Some('\\') => self.escape(),
            Some(c) => Ok(c),
        }
    }

    fn escape(&mut self) -> Result<char, GrammarError> {
        let digits = match self.next() {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some(c) if c.is_ascii_punctuation() => return Ok(c),
            _ => return Err(self.wrong("unknown escape")),
        };
        let code = self.rest().get(..digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let Some(c) = code.and_then(char::from_u32) else {
            return Err(self.wrong(&format!("expected {digits} hexadecimal digits of a character")));
        };
        self.at += digits;
        Ok(c)
    }

    /// `<[123]>` or `<name>`.
    fn token(&mut self) -> Result<Node, GrammarError> {
        let end = self.rest().find('>').map(|end| &self.rest()[..=end]);
        let Some(token) = end.filter(|token| !token.contains(char::is_whitespace)) else {
            return Err(self.wrong("expected a token, such as `<think>` or `<[123]>`"));
        };
        self.at += token.len();
        Ok(Node::Token(token.to_owned()))
    }

    /// `{2}`, `{2,}`, `{,3}` or `{2,3}`; stops at the closing brace.
    fn count(&mut self) -> Result<Count, GrammarError> {
        let inner = self.rest().find('}').map(|end| &self.rest()[1..end]);
        let number = |text: &str| text.trim().parse::<u32>().ok();
        let count = inner.and_then(|inner| match inner.split_once(',') {
            None => number(inner).map(|n| Count { min: n, max: Some(n) }),
            Some((min, max)) => {
                let min = if min.trim().is_empty() { Some(0) } else { number(min) };
                let max = if max.trim().is_empty() { Some(None) } else { number(max).map(Some) };
                min.zip(max).map(|(min, max)| Count { min, max })
            }
        });
        let count = count.filter(|count| count.max.is_none_or(|max| max >= count.min));
        let (Some(count), Some(inner)) = (count, inner) else {
            return Err(self.wrong("expected a number of repetitions, such as `{2,3}`"));
        };
        if count.min.max(count.max.unwrap_or(0)) > COUNT_MAX {
            let text = format!("more than {COUNT_MAX} repetitions in the grammar");
            return Err(GrammarError::TooLarge(text));
        }
        self.at += 1 + inner.len();
        Ok(count)
    }

    fn wrong(&self, what: &str) -> GrammarError {
        let before = &self.text[..self.at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        GrammarError::Invalid(format!(
            "the grammar is wrong at line {line}, column {column}: {what}"
        ))
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}
