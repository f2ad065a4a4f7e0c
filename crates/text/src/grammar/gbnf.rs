//! Translates GBNF, the EBNF of llama.cpp and `XGrammar`, to Lark. GBNF is defined over characters,
//! Lark over lexemes that are as long as possible. Every non-recursive part becomes one lexeme,
//! unless it would consume characters that must come after it. If the two languages can still
//! differ, for example because two lexemes begin alike, the translation matches fewer texts, never
//! others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::lookahead::{Chars, Lookahead, Rules};
use super::parse_gbnf::{self, Class, Count, Node, Sequence};
use super::{GrammarError, lark};

/// Names of the start rule; GBNF's own comes first.
const ROOTS: &[&str] = &["root", "start"];

/// Whether a grammar is GBNF. Lark has no `::=`.
pub(super) fn is_gbnf(text: &str) -> bool {
    parse_gbnf::has_definition(text)
}

pub(super) fn to_lark(text: &str) -> Result<String, GrammarError> {
    let rules = parse_gbnf::parse(text)?;
    let Some(root) = ROOTS.iter().find(|name| rules.contains_key(**name)) else {
        return Err(GrammarError::Invalid("the grammar has no rule `root`".to_owned()));
    };
    for (name, alternatives) in &rules {
        for other in references(alternatives) {
            if !rules.contains_key(other) {
                let text =
                    format!("the grammar's rule {name:?} uses {other:?}, which is not there");
                return Err(GrammarError::Invalid(text));
            }
        }
    }
    let ahead = Lookahead::of(&rules, root);
    let mut split = BTreeSet::new();
    loop {
        let mut writer = Writer::new(&rules, &ahead, &split);
        let lark = writer.grammar(root);
        if writer.greedy.is_empty() {
            return Ok(lark);
        }
        split.append(&mut writer.greedy);
    }
}

/// Rules that can be lexemes: they are not recursive, name no token, and are not in `split`.
fn lexemes(rules: &Rules, split: &BTreeSet<String>) -> BTreeSet<String> {
    let mut lexemes = BTreeSet::new();
    loop {
        let more: Vec<&String> = rules
            .iter()
            .filter(|(name, alternatives)| {
                let known = lexemes.contains(*name) || split.contains(*name);
                !known && is_lexeme(alternatives, &lexemes)
            })
            .map(|(name, _)| name)
            .collect();
        if more.is_empty() {
            return lexemes;
        }
        lexemes.extend(more.into_iter().cloned());
    }
}

fn is_lexeme(alternatives: &[Sequence], lexemes: &BTreeSet<String>) -> bool {
    alternatives.iter().flatten().all(|node| is_regular(node, lexemes))
}

fn is_regular(node: &Node, lexemes: &BTreeSet<String>) -> bool {
    match node {
        Node::Literal(_) | Node::Class(_) => true,
        Node::Token(_) => false,
        Node::Rule(name) => lexemes.contains(name),
        Node::Group(alternatives) => is_lexeme(alternatives, lexemes),
        Node::Repeat(node, _) => is_regular(node, lexemes),
    }
}

fn references(alternatives: &[Sequence]) -> Vec<&str> {
    fn go<'a>(node: &'a Node, out: &mut Vec<&'a str>) {
        match node {
            Node::Literal(_) | Node::Class(_) | Node::Token(_) => {}
            Node::Rule(name) => out.push(name),
            Node::Group(alternatives) => {
                alternatives.iter().flatten().for_each(|node| go(node, out));
            }
            Node::Repeat(node, _) => go(node, out),
        }
    }
    let mut out = Vec::new();
    alternatives.iter().flatten().for_each(|node| go(node, &mut out));
    out
}

struct Writer<'a> {
    rules: &'a Rules,
    ahead: &'a Lookahead,
    lexemes: BTreeSet<String>,
    /// Rules get new names, because in Lark the case of a name has a meaning.
    numbers: BTreeMap<&'a str, usize>,
    /// Number of lexemes made of adjacent parts of a rule.
    extra: usize,
    /// Rules that, as lexemes, would consume characters that must come after them.
    greedy: BTreeSet<String>,
}

impl<'a> Writer<'a> {
    fn new(rules: &'a Rules, ahead: &'a Lookahead, split: &BTreeSet<String>) -> Self {
        let lexemes = lexemes(rules, split);
        let numbers = rules.keys().enumerate().map(|(number, name)| (name.as_str(), number));
        let numbers = numbers.collect();
        Self { rules, ahead, lexemes, numbers, extra: 0, greedy: BTreeSet::new() }
    }

    fn grammar(&mut self, root: &str) -> String {
        let mut out = format!("start: {}\n", self.name(root));
        for (name, alternatives) in self.rules {
            let body = if self.lexemes.contains(name) {
                self.lexeme(alternatives)
            } else {
                self.rule(alternatives, self.ahead.after(name), &mut out)
            };
            let name = self.name(name);
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name}: {body}");
        }
        out
    }

    fn name(&self, rule: &str) -> String {
        let letter = if self.lexemes.contains(rule) { 'T' } else { 'r' };
        format!("{letter}{}", letters(self.numbers[rule], letter == 'T'))
    }

    fn lexeme(&self, alternatives: &[Sequence]) -> String {
        let alternatives = alternatives.iter().map(|sequence| {
            let parts: Vec<String> = sequence.iter().map(|node| self.regular(node)).collect();
            if parts.is_empty() { "\"\"".to_owned() } else { parts.join(" ") }
        });
        alternatives.collect::<Vec<_>>().join(" | ")
    }

    fn regular(&self, node: &Node) -> String {
        match node {
            Node::Literal(text) => lark::literal(text),
            Node::Class(class) => regex(class),
            Node::Rule(name) => self.name(name),
            Node::Token(token) => token.clone(),
            Node::Group(alternatives) => format!("({})", self.lexeme(alternatives)),
            Node::Repeat(node, count) => repeat(&self.regular(node), *count),
        }
    }

    /// A rule that is not a lexeme. Adjacent parts become one lexeme if that changes nothing.
    /// `after` is the set of characters that may come after the rule.
    fn rule(&mut self, alternatives: &[Sequence], after: Chars, out: &mut String) -> String {
        let mut texts = Vec::new();
        for sequence in alternatives {
            let mut parts = Vec::new();
            let mut rest = &sequence[..];
            while !rest.is_empty() {
                let run = rest.iter().take_while(|node| is_regular(node, &self.lexemes)).count();
                let behind = self.ahead.sequence(&rest[run..]).before(after);
                if run > 1 && !self.ahead.sequence(&rest[..run]).overlaps(behind) {
                    parts.push(self.run(&rest[..run], out));
                    rest = &rest[run..];
                } else {
                    let behind = self.ahead.sequence(&rest[1..]).before(after);
                    parts.push(self.single(&rest[0], behind, out));
                    rest = &rest[1..];
                }
            }
            texts.push(if parts.is_empty() { "\"\"".to_owned() } else { parts.join(" ") });
        }
        texts.join(" | ")
    }

    fn run(&mut self, nodes: &[Node], out: &mut String) -> String {
        let parts: Vec<String> = nodes.iter().map(|node| self.regular(node)).collect();
        let name = format!("X{}", letters(self.extra, true));
        self.extra += 1;
        let _ = writeln!(out, "{name}: {}", parts.join(" "));
        name
    }

    fn single(&mut self, node: &Node, after: Chars, out: &mut String) -> String {
        let regular = is_regular(node, &self.lexemes);
        let greedy = regular && self.ahead.node(node).overlaps(after);
        match node {
            Node::Rule(name) if greedy => {
                self.greedy.insert(name.clone());
                self.name(name)
            }
            Node::Group(_) | Node::Repeat(..) if regular && !greedy => {
                self.run(std::slice::from_ref(node), out)
            }
            Node::Group(alternatives) => format!("({})", self.rule(alternatives, after, out)),
            Node::Repeat(inner, count) => {
                let after = self.ahead.within(node, after);
                let inner = self.rule(&[vec![(**inner).clone()]], after, out);
                repeat(&format!("({inner})"), *count)
            }
            _ => self.regular(node),
        }
    }
}

/// A character class as a regular expression of Lark.
fn regex(class: &Class) -> String {
    if class.negated && class.ranges.is_empty() {
        return "/(?s:.)/".to_owned();
    }
    let mut out = String::from(if class.negated { "/[^" } else { "/[" });
    for (first, last) in &class.ranges {
        let _ = write!(out, "\\x{{{:x}}}-\\x{{{:x}}}", u32::from(*first), u32::from(*last));
    }
    out + "]/"
}

fn repeat(inner: &str, count: Count) -> String {
    match (count.min, count.max) {
        (_, Some(0)) => "\"\"".to_owned(),
        (0, None) => format!("{inner}*"),
        (1, None) => format!("{inner}+"),
        (0, Some(1)) => format!("{inner}?"),
        (min, None) => format!("{inner}{{{min},}}"),
        (min, Some(max)) => format!("{inner}{{{min},{max}}}"),
    }
}

/// A number written in letters: digits would join those of a repetition.
fn letters(mut number: usize, upper: bool) -> String {
    let mut out = String::new();
    loop {
        let first = if upper { b'A' } else { b'a' };
        out.push(char::from(first + (number % 26) as u8));
        number /= 26;
        if number == 0 {
            return out;
        }
    }
}
