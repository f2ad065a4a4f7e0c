//! Lookahead in a GBNF grammar: which characters may come next, and which of them would extend a
//! lexeme. Lexemes are as long as possible, so one that can consume the characters that must follow
//! it would never end.

use std::collections::BTreeMap;

use super::parse_gbnf::{Class, Node, Sequence};

pub(super) type Rules = BTreeMap<String, Vec<Sequence>>;

/// A set of characters. All non-ASCII characters are one element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chars {
    ascii: u128,
    other: bool,
}

impl Chars {
    fn of(c: char) -> Self {
        let code = u32::from(c);
        if c.is_ascii() {
            Self { ascii: 1 << code, other: false }
        } else {
            Self { ascii: 0, other: true }
        }
    }

    fn of_class(class: &Class) -> Self {
        let inside = (0..128u8).map(char::from).filter(|c| {
            class.ranges.iter().any(|(first, last)| (first..=last).contains(&c)) != class.negated
        });
        let mut chars = inside.map(Self::of).fold(Self::default(), Self::or);
        chars.other = class.negated || class.ranges.iter().any(|(_, last)| !last.is_ascii());
        chars
    }

    pub(super) fn or(self, more: Self) -> Self {
        Self { ascii: self.ascii | more.ascii, other: self.other || more.other }
    }

    pub(super) fn meets(self, others: Self) -> bool {
        self.ascii & others.ascii != 0 || (self.other && others.other)
    }
}

/// The FIRST set of a piece of the grammar, and the characters that can extend a match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FirstSet {
    first: Chars,
    /// Characters that could extend a match to a longer one.
    more: Chars,
    /// Whether it matches the empty text.
    empty: bool,
}

impl FirstSet {
    const NOTHING: Self = Self {
        first: Chars { ascii: 0, other: false },
        more: Chars { ascii: 0, other: false },
        empty: true,
    };

    fn then(self, next: Self) -> Self {
        let mut both = Self { first: self.first, more: next.more, empty: self.empty && next.empty };
        if self.empty {
            both.first = both.first.or(next.first);
        }
        if next.empty {
            both.more = both.more.or(self.more).or(next.first);
        }
        both
    }

    fn either(self, other: Self) -> Self {
        let mut more = self.more.or(other.more);
        // One may begin like the other and continue.
        if self.first.meets(other.first) {
            more = more.or(self.more).or(other.more);
        }
        if self.empty || other.empty {
            more = more.or(self.first).or(other.first);
        }
        Self { first: self.first.or(other.first), more, empty: self.empty || other.empty }
    }

    /// Whether the piece would consume characters that come after it.
    pub(super) fn overlaps(self, after: Chars) -> bool {
        self.more.meets(after)
    }

    /// The characters that may come first in this piece followed by `after`.
    pub(super) fn before(self, after: Chars) -> Chars {
        if self.empty { self.first.or(after) } else { self.first }
    }
}

pub(super) struct Lookahead {
    facts: BTreeMap<String, FirstSet>,
    after: BTreeMap<String, Chars>,
}

impl Lookahead {
    /// Computes both sets as fixed points.
    pub(super) fn of(rules: &Rules, root: &str) -> Self {
        let facts = rules.keys().map(|name| (name.clone(), FirstSet::default())).collect();
        let mut ahead = Self { facts, after: BTreeMap::new() };
        loop {
            let next: BTreeMap<String, FirstSet> = rules
                .iter()
                .map(|(name, alternatives)| (name.clone(), ahead.alternatives(alternatives)))
                .collect();
            let done = next == ahead.facts;
            ahead.facts = next;
            if done {
                break;
            }
        }
        ahead.after.insert(root.to_owned(), Chars::default());
        loop {
            let before = ahead.after.clone();
            for (name, alternatives) in rules {
                let after = ahead.after(name);
                ahead.spread(alternatives, after);
            }
            if before == ahead.after {
                return ahead;
            }
        }
    }

    /// The characters that may come after a rule, wherever it is used.
    pub(super) fn after(&self, rule: &str) -> Chars {
        self.after.get(rule).copied().unwrap_or_default()
    }

    fn spread(&mut self, alternatives: &[Sequence], after: Chars) {
        for sequence in alternatives {
            let mut after = after;
            for node in sequence.iter().rev() {
                let inner = self.within(node, after);
                match node {
                    Node::Rule(name) => {
                        let known = self.after(name);
                        self.after.insert(name.clone(), known.or(inner));
                    }
                    Node::Group(alternatives) => self.spread(alternatives, inner),
                    Node::Repeat(node, _) => self.spread(&[vec![(**node).clone()]], inner),
                    Node::Literal(_) | Node::Class(_) | Node::Token(_) => {}
                }
                after = self.node(node).before(after);
            }
        }
    }

    /// The characters that may come after the content of a node.
    pub(super) fn within(&self, node: &Node, after: Chars) -> Chars {
        match node {
            Node::Repeat(inner, count) if count.max != Some(1) => after.or(self.node(inner).first),
            _ => after,
        }
    }

    fn alternatives(&self, alternatives: &[Sequence]) -> FirstSet {
        let each = alternatives.iter().map(|sequence| self.sequence(sequence));
        each.reduce(FirstSet::either).unwrap_or(FirstSet::NOTHING)
    }

    pub(super) fn sequence(&self, nodes: &[Node]) -> FirstSet {
        nodes.iter().map(|node| self.node(node)).fold(FirstSet::NOTHING, FirstSet::then)
    }

    pub(super) fn node(&self, node: &Node) -> FirstSet {
        match node {
            Node::Literal(text) => {
                let first = text.chars().next();
                let chars = first.map(Chars::of).unwrap_or_default();
                FirstSet { first: chars, more: Chars::default(), empty: first.is_none() }
            }
            Node::Class(class) => FirstSet { first: Chars::of_class(class), ..FirstSet::default() },
            // A token is not text, so it conflicts with none.
            Node::Token(_) => FirstSet::default(),
            Node::Rule(name) => self.facts.get(name).copied().unwrap_or_default(),
            Node::Group(alternatives) => self.alternatives(alternatives),
            Node::Repeat(node, count) => {
                let mut facts = self.node(node);
                if count.max != Some(count.min) {
                    facts.more = facts.more.or(facts.first);
                }
                facts.empty |= count.min == 0;
                facts
            }
        }
    }
}
