//! The cost of compiling a JSON schema, estimated before it is compiled. Some schemas cost
//! llguidance quadratic time, and one kind exponential time without spending fuel.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::GrammarError;
use super::multiples::remainder_count;

/// Most JSON values in the schemas of a request; OpenAI takes 5,000 properties.
const VALUES_MAX: usize = 20_000;
/// Deepest nesting of values: two for each level of objects, of which OpenAI allows ten.
const DEPTH_MAX: usize = 80;
/// Most bytes of all strings and keys together. Most of them are descriptions.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// Most alternatives, times the values beside them: each alternative may be combined with all other
/// values.
const PRODUCT_MAX: usize = 20_000_000;
/// Most properties of one object. Compiling compares each pair.
const PROPERTIES_MAX: usize = 2000;
/// Most patterns for names. They are checked for names that match two of them.
const NAME_PATTERNS_MAX: usize = 32;
/// Most patterns that one string must match: each one more may double the work.
const PATTERNS_MAX: usize = 8;
/// Most remainders of all multiples together. Compiling visits each without spending fuel: 0.01 ms.
const REMAINDERS_MAX: u64 = 65_536;
/// Longest chain of references.
pub(super) const HOPS_MAX: usize = 80;
/// Most schemas that are visited in search of patterns, following references.
const STEPS_MAX: usize = 500_000;

pub(super) fn check<'a>(schemas: impl IntoIterator<Item = &'a Value>) -> Result<(), GrammarError> {
    let mut size = Size::default();
    for schema in schemas {
        size.add(schema, 1).map_err(|what| {
            GrammarError::TooLarge(format!("the JSON schema is too large: {what}"))
        })?;
        let mut patterns = Patterns { whole: schema, left: STEPS_MAX };
        if !patterns.all_few(schema) {
            return Err(GrammarError::TooLarge(format!(
                "the JSON schema is too complex: at most {PATTERNS_MAX} patterns and formats can \
                 apply to one string, and schemas that refer to each other without end cannot be \
                 combined"
            )));
        }
    }
    Ok(())
}

#[derive(Default)]
struct Size {
    values: usize,
    /// Members of all lists of alternatives together.
    alternatives: usize,
    bytes: usize,
    /// As text, so that equal ones are counted once.
    multiples: BTreeSet<String>,
    remainders: u64,
}

impl Size {
    /// Adds up the size. Fails with the limit that is exceeded.
    fn add(&mut self, value: &Value, depth: usize) -> Result<(), String> {
        self.values += 1;
        match value {
            Value::String(text) => self.bytes += text.len(),
            Value::Array(items) => {
                for item in items {
                    self.add(item, depth + 1)?;
                }
            }
            Value::Object(entries) => {
                for (key, value) in entries {
                    self.bytes += key.len();
                    self.count(key, value)?;
                    self.add(value, depth + 1)?;
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        let others = self.values.saturating_sub(self.alternatives);
        if self.values > VALUES_MAX {
            Err(format!("more than {VALUES_MAX} values"))
        } else if self.bytes > TEXT_BYTES_MAX {
            Err(format!("more than {TEXT_BYTES_MAX} bytes of text"))
        } else if depth > DEPTH_MAX {
            Err(format!("nested more than {DEPTH_MAX} deep"))
        } else if self.alternatives * others > PRODUCT_MAX {
            Err("too many alternatives for its size".to_owned())
        } else {
            Ok(())
        }
    }

    fn count(&mut self, key: &str, value: &Value) -> Result<(), String> {
        if key == "multipleOf" && self.multiples.insert(value.to_string()) {
            self.remainders += value.as_f64().map_or(0, remainder_count);
        }
        if self.remainders > REMAINDERS_MAX {
            return Err("too many digits in all values of `multipleOf`".to_owned());
        }
        let length = value.as_array().map(Vec::len).or(value.as_object().map(Map::len));
        let length = length.unwrap_or(0);
        let most = match key {
            "properties" => PROPERTIES_MAX,
            "patternProperties" => NAME_PATTERNS_MAX,
            "enum" | "anyOf" | "oneOf" if value.is_array() => {
                self.alternatives += length;
                return Ok(());
            }
            _ => return Ok(()),
        };
        if length > most {
            return Err(format!("{length} entries of `{key}`, at most {most}"));
        }
        Ok(())
    }
}

struct Patterns<'a> {
    whole: &'a Value,
    left: usize,
}

impl<'a> Patterns<'a> {
    /// Whether no string in any part of the schema must match too many patterns.
    fn all_few(&mut self, schema: &'a Value) -> bool {
        let few = self.most(schema, 0).is_some_and(|count| count <= PATTERNS_MAX);
        few && match schema {
            Value::Object(entries) => entries.values().all(|value| self.all_few(value)),
            Value::Array(items) => items.iter().all(|item| self.all_few(item)),
            _ => true,
        }
    }

    /// How many patterns one string may have to match; `None` if that is unknown.
    fn most(&mut self, schema: &'a Value, depth: usize) -> Option<usize> {
        let Value::Object(keys) = schema else { return Some(0) };
        self.left = self.left.checked_sub(1)?;
        if depth > HOPS_MAX {
            return None;
        }
        let own = ["pattern", "format"].iter().filter(|name| keys.contains_key(**name)).count();
        let mut count = own;
        let members = |name: &str| keys.get(name).and_then(Value::as_array).into_iter().flatten();
        for member in members("allOf") {
            count += self.most(member, depth + 1)?;
        }
        for name in ["anyOf", "oneOf"] {
            let mut most = 0;
            for member in members(name) {
                most = most.max(self.most(member, depth + 1)?);
            }
            count += most;
        }
        let reference = keys.get("$ref").and_then(Value::as_str);
        let pointer = reference.and_then(|text| text.strip_prefix('#'));
        if let Some(target) = pointer.and_then(|pointer| self.whole.pointer(pointer)) {
            count += self.most(target, depth + 1)?;
        }
        Some(count)
    }
}
