//! Strict reading of a JSON config: each field is named once and checked against its range. Fields
//! that the reader does not name are refused, as an unknown field may change the model. All
//! problems are collected into one error.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::json::Unambiguous;

/// A config that cannot be used, with every reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {}", problems.join("; "))]
pub struct ConfigError {
    pub file: String,
    pub problems: Vec<String>,
}

/// The fields of one JSON object.
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    prefix: String,
    named: BTreeSet<String>,
    pub(crate) problems: Vec<String>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(map: &'a Map<String, Value>, prefix: &str) -> Self {
        Self { map, prefix: prefix.to_owned(), named: BTreeSet::new(), problems: Vec::new() }
    }

    /// The field, unless it is absent or null.
    pub(crate) fn optional(&mut self, name: &str) -> Option<&'a Value> {
        self.named.insert(name.to_owned());
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn required(&mut self, name: &str) -> Option<&'a Value> {
        let value = self.optional(name);
        if value.is_none() {
            self.problem(name, "is missing");
        }
        value
    }

    pub(crate) fn problem(&mut self, name: &str, what: impl std::fmt::Display) {
        self.problems.push(format!("{}{name} {what}", self.prefix));
    }

    /// A size from 1 to `max`. On a problem it is 1, so that reading can continue.
    pub(crate) fn size(&mut self, name: &str, max: usize) -> usize {
        let Some(value) = self.required(name) else {
            return 1;
        };
        self.size_in(name, value, 1, max)
    }

    /// An id from 0 to `max`, exclusive.
    pub(crate) fn id(&mut self, name: &str, max: usize) -> usize {
        let Some(value) = self.required(name) else {
            return 0;
        };
        self.size_in(name, value, 0, max.saturating_sub(1))
    }

    fn size_in(&mut self, name: &str, value: &Value, min: usize, max: usize) -> usize {
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
        if let Some(n) = number.filter(|n| (min..=max).contains(n)) {
            return n;
        }
        self.problem(name, format_args!("is {}, not an integer from {min} to {max}", brief(value)));
        min
    }

    /// A list of integers from 0 to `max`, exclusive; a lone integer is a list of one.
    pub(crate) fn ids(&mut self, name: &str, max: usize) -> Vec<usize> {
        let Some(value) = self.required(name) else {
            return Vec::new();
        };
        let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        items.iter().map(|item| self.size_in(name, item, 0, max.saturating_sub(1))).collect()
    }

    /// A finite number within a range, ends included.
    pub(crate) fn number(&mut self, name: &str, min: f64, max: f64) -> f64 {
        let Some(value) = self.required(name) else {
            return min;
        };
        if let Some(n) = value.as_f64().filter(|n| (min..=max).contains(n)) {
            n
        } else {
            let what = format_args!("is {}, not a number from {min} to {max}", brief(value));
            self.problem(name, what);
            min
        }
    }

    pub(crate) fn bool(&mut self, name: &str) -> bool {
        let Some(value) = self.required(name) else {
            return false;
        };
        value.as_bool().unwrap_or_else(|| {
            self.problem(name, format_args!("is {}, not true or false", brief(value)));
            false
        })
    }

    /// One of the named values.
    pub(crate) fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Option<T> {
        let value = self.required(name)?;
        let chosen = choices.iter().find(|(text, _)| value.as_str() == Some(text));
        if chosen.is_none() {
            let names: Vec<_> = choices.iter().map(|(text, _)| *text).collect();
            let what = format!("is {}; kilotok knows {}", brief(value), names.join(", "));
            self.problem(name, what);
        }
        chosen.map(|(_, choice)| *choice)
    }

    /// Refuses any value but this one. Absence is refused too.
    pub(crate) fn must_be(&mut self, name: &str, wanted: &Value) {
        if let Some(value) = self.required(name)
            && !same(value, wanted)
        {
            self.problem(name, format_args!("is {}; kilotok knows only {wanted}", brief(value)));
        }
    }

    /// Like `must_be`, but the field may be absent or null.
    pub(crate) fn may_be(&mut self, name: &str, wanted: &Value) {
        if self.optional(name).is_some() {
            self.must_be(name, wanted);
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Option<&'a Map<String, Value>> {
        let value = self.optional(name)?;
        if value.as_object().is_none() {
            self.problem(name, format_args!("is {}, not an object", brief(value)));
        }
        value.as_object()
    }

    /// Fields that say nothing about the computation.
    pub(crate) fn ignore<S: AsRef<str>>(&mut self, names: &[S]) {
        self.named.extend(names.iter().map(|name| name.as_ref().to_owned()));
    }

    /// Refuses the fields that were not named, and returns all problems.
    pub(crate) fn finish(mut self) -> Vec<String> {
        let map = self.map;
        for (name, value) in map {
            if !self.named.contains(name) && !value.is_null() {
                let what = format_args!("= {} is a field kilotok does not know", brief(value));
                self.problem(name, what);
            }
        }
        // A field that several layers share is read, and may fail, more than once.
        let mut seen = BTreeSet::new();
        self.problems.retain(|problem| seen.insert(problem.clone()));
        self.problems
    }

    /// The same, for the fields of a whole config.
    ///
    /// # Errors
    /// All problems, if there are any.
    pub(crate) fn check(self) -> Result<(), Vec<String>> {
        let problems = self.finish();
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}

/// Parses the text of a config into its top-level object.
pub(crate) fn parse(file: &str, text: &str) -> Result<Map<String, Value>, ConfigError> {
    let fail = |problem: String| ConfigError { file: file.to_owned(), problems: vec![problem] };
    match serde_json::from_str(text) {
        Ok(Unambiguous(Value::Object(map))) => Ok(map),
        Ok(Unambiguous(other)) => Err(fail(format!("is {}, not an object", brief(&other)))),
        Err(error) => Err(fail(format!("is not JSON: {error}"))),
    }
}

/// Equality that does not tell 1 from 1.0.
fn same(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && a.as_f64() == b.as_f64())
}

/// A value cut to what fits a message.
fn brief(value: &Value) -> String {
    const SHOWN_MAX: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_MAX) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}
