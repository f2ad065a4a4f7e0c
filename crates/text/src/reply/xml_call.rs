//! Converts arguments of a call from XML to JSON: `<parameter=key>value</parameter>`, up to
//! `</function>`.
//!
//! Values are verbatim, so a value may contain tags itself, and its closing tag may be missing.
//! `<parameter=` ends a value only if it names another parameter of the tool, and `</function>` and
//! `</tool_call>` only if nothing but markup follows.

use std::fmt::Write as _;

use serde_json::Value as Json;

use super::events::Events;
use super::schema::{self, Kinds};
use super::tagged::{NAME_MAX, Step};
use super::tags::Tag;
use super::value::{Value, escape};

#[derive(Clone)]
pub(super) struct XmlCall {
    /// JSON schema of the arguments; null if there is none.
    parameters: Json,
    padded: bool,
    /// Whether a grammar guarantees that a value ends with its own tag and not earlier.
    exact: bool,
    /// Keys that the call has had so far.
    keys: Vec<String>,
    part: Part,
}

#[derive(Clone)]
enum Part {
    /// Outside of parameters.
    Between,
    /// After `<parameter=`.
    Key(String),
    Value(Value),
    /// After `<parameter=` within a value.
    ValueKey(Value, String),
    /// After a tag within a value that may end the call: the tag and all text since.
    ValueTail(Value, String),
}

impl XmlCall {
    pub(super) fn new(parameters: Json, padded: bool, exact: bool) -> Self {
        Self { parameters, padded, exact, keys: Vec::new(), part: Part::Between }
    }

    pub(super) fn takes(&self, tag: Tag) -> bool {
        match self.part {
            Part::Between | Part::Key(_) => !matches!(tag, Tag::Think | Tag::EndThink),
            Part::ValueTail(..) => !matches!(tag, Tag::Think | Tag::EndThink),
            Part::Value(_) if self.exact => tag == Tag::EndParameter,
            Part::Value(_) | Part::ValueKey(..) => {
                matches!(tag, Tag::Parameter | Tag::EndParameter | Tag::EndFunction | Tag::EndCall)
            }
        }
    }

    pub(super) fn character(&mut self, character: char, events: &mut Events) {
        match std::mem::replace(&mut self.part, Part::Between) {
            // Text between parameters has no place in the JSON.
            Part::Between => {}
            Part::Key(mut key) => {
                if character == '>' {
                    self.begin_value(&key, events);
                } else if !matches!(character, '\n' | '<') && key.chars().count() < NAME_MAX {
                    key.push(character);
                    self.part = Part::Key(key);
                }
            }
            Part::Value(mut value) => {
                value.push(character, events);
                self.part = Part::Value(value);
            }
            Part::ValueKey(mut value, mut raw) => {
                raw.push(character);
                let key = raw.strip_prefix(Tag::Parameter.text()).unwrap_or_default();
                if character == '>' && self.is_other_key(&key[..key.len() - 1]) {
                    value.finish(events);
                    self.begin_value(&key[..key.len() - 1], events);
                } else if matches!(character, '>' | '\n' | '<') || key.chars().count() > NAME_MAX {
                    value.push_all(&raw, events);
                    self.part = Part::Value(value);
                } else {
                    self.part = Part::ValueKey(value, raw);
                }
            }
            Part::ValueTail(mut value, mut raw) => {
                raw.push(character);
                if matches!(character, ' ' | '\n' | '\t' | '\r') {
                    self.part = Part::ValueTail(value, raw);
                } else {
                    value.push_all(&raw, events);
                    self.part = Part::Value(value);
                }
            }
        }
    }

    pub(super) fn tag(&mut self, tag: Tag, events: &mut Events) -> Step {
        match std::mem::replace(&mut self.part, Part::Between) {
            Part::Between | Part::Key(_) => match tag {
                Tag::Parameter => self.part = Part::Key(String::new()),
                Tag::EndFunction => return self.over(None, events),
                Tag::EndCall | Tag::Call | Tag::Function => return self.over(Some(tag), events),
                Tag::EndParameter | Tag::Think | Tag::EndThink => {}
            },
            Part::Value(value) => return self.value_tag(value, tag, events),
            Part::ValueKey(mut value, raw) => {
                value.push_all(&raw, events);
                return self.value_tag(value, tag, events);
            }
            Part::ValueTail(mut value, raw) => match tag {
                Tag::EndCall | Tag::Call | Tag::Function => {
                    value.finish(events);
                    return self.over(Some(tag), events);
                }
                _ => {
                    value.push_all(&raw, events);
                    return self.value_tag(value, tag, events);
                }
            },
        }
        Step::Stay
    }

    fn value_tag(&mut self, mut value: Value, tag: Tag, events: &mut Events) -> Step {
        let raw = tag.text().to_owned();
        match tag {
            Tag::EndParameter => value.finish(events),
            Tag::Parameter => self.part = Part::ValueKey(value, raw),
            Tag::EndFunction | Tag::EndCall => self.part = Part::ValueTail(value, raw),
            Tag::Call | Tag::Function | Tag::Think | Tag::EndThink => {
                value.push_all(&raw, events);
                self.part = Part::Value(value);
            }
        }
        Step::Stay
    }

    /// Ends the call with the reply.
    pub(super) fn finish(&mut self, events: &mut Events) {
        match std::mem::replace(&mut self.part, Part::Between) {
            Part::Between | Part::Key(_) => {}
            Part::Value(mut value) | Part::ValueTail(mut value, _) => value.finish(events),
            Part::ValueKey(mut value, raw) => {
                value.push_all(&raw, events);
                value.finish(events);
            }
        }
        self.over(None, events);
    }

    fn over(&mut self, next: Option<Tag>, events: &mut Events) -> Step {
        events.arguments(if self.keys.is_empty() { "{}" } else { "}" });
        Step::Over(next)
    }

    fn begin_value(&mut self, key: &str, events: &mut Events) {
        let key = key.trim().trim_matches(['"', '\'']).to_owned();
        let mut opening = String::new();
        let before = if self.keys.is_empty() { "{" } else { ", " };
        let _ = write!(opening, "{before}\"");
        key.chars().for_each(|character| escape(character, &mut opening));
        opening.push_str("\": ");
        events.arguments(&opening);
        let kinds = schema::property(&self.parameters, &key).unwrap_or(Kinds::STRING | Kinds::NULL);
        self.keys.push(key);
        self.part = Part::Value(Value::new(kinds, self.padded));
    }

    /// Whether this may be the key of a parameter that the call has not had.
    fn is_other_key(&self, key: &str) -> bool {
        let known = schema::has_properties(&self.parameters);
        let fits = !known || schema::property(&self.parameters, key).is_some();
        let is_name =
            !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c));
        fits && is_name && !self.keys.iter().any(|had| had == key)
    }
}
