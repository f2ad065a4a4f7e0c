//! Whether JSON schemas exclude each other, as the members of a tagged union do. `false` may also
//! mean that it is unknown: only simple cases are checked.

use serde_json::{Map, Value};

/// Most comparisons; a union of a hundred tagged objects needs ten thousand.
const COMPARISONS_MAX: u32 = 100_000;
/// Deepest nesting of references, choices and properties.
const DEPTH_MAX: u32 = 12;

const TYPES: &[&str] = &["null", "boolean", "object", "array", "number", "string"];

pub(super) struct Disjoint<'a> {
    /// The whole schema, which references point into.
    whole: &'a Value,
    left: u32,
}

impl<'a> Disjoint<'a> {
    pub(super) fn new(whole: &'a Value) -> Self {
        Self { whole, left: COMPARISONS_MAX }
    }

    /// Whether no document matches two of the schemas.
    pub(super) fn all(mut self, schemas: &'a [Value]) -> bool {
        let mut pairs = (0..schemas.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
        pairs.all(|(i, j)| self.pair(&schemas[i], &schemas[j], 0))
    }

    fn pair(&mut self, a: &'a Value, b: &'a Value, depth: u32) -> bool {
        if self.left == 0 || depth > DEPTH_MAX {
            return false;
        }
        self.left -= 1;
        let (a, b) = (self.resolved(a), self.resolved(b));
        if a == &Value::Bool(false) || b == &Value::Bool(false) {
            return true;
        }
        let (Value::Object(a_keys), Value::Object(b_keys)) = (a, b) else { return false };
        let kinds: Vec<&str> = TYPES
            .iter()
            .filter(|kind| may_be(a_keys, kind) && may_be(b_keys, kind))
            .copied()
            .collect();
        if kinds.is_empty() || values_differ(a_keys, b_keys) {
            return true;
        }
        let mut parts = |keys: &'a Map<String, Value>, other| {
            let mut options =
                ["anyOf", "oneOf"].iter().filter_map(|name| keys.get(*name)?.as_array());
            let chosen = options.any(|list| list.iter().all(|a| self.pair(a, other, depth + 1)));
            let members = keys.get("allOf").and_then(Value::as_array);
            chosen
                || members.is_some_and(|list| list.iter().any(|a| self.pair(a, other, depth + 1)))
        };
        parts(a_keys, b)
            || parts(b_keys, a)
            || (kinds == ["object"] && self.properties_differ(a_keys, b_keys, depth))
    }

    /// Whether there is a property that one of them requires and whose value cannot match both.
    fn properties_differ(
        &mut self,
        a: &'a Map<String, Value>,
        b: &'a Map<String, Value>,
        depth: u32,
    ) -> bool {
        let required = [a, b].into_iter().filter_map(|keys| keys.get("required")?.as_array());
        let mut names = required.flatten().filter_map(Value::as_str);
        names.any(|name| {
            let of = |keys: &'a Map<String, Value>| keys.get("properties")?.get(name);
            of(a).zip(of(b)).is_some_and(|(a, b)| self.pair(a, b, depth + 1))
        })
    }

    /// The schema at the end of the references. Keywords beside a reference only narrow it down.
    fn resolved(&self, mut schema: &'a Value) -> &'a Value {
        for _ in 0..DEPTH_MAX {
            let reference = schema.get("$ref").and_then(Value::as_str);
            let pointer = reference.and_then(|reference| reference.strip_prefix('#'));
            let Some(target) = pointer.and_then(|pointer| self.whole.pointer(pointer)) else {
                break;
            };
            schema = target;
        }
        schema
    }
}

/// Whether a document of this type may match, judged by types and listed values.
fn may_be(keys: &Map<String, Value>, kind: &str) -> bool {
    let named = |name: &Value| name == kind || (kind == "number" && name == "integer");
    let by_type = match keys.get("type") {
        Some(Value::Array(names)) => names.iter().any(named),
        Some(name) => named(name),
        None => true,
    };
    by_type && values(keys).is_none_or(|values| values.iter().any(|value| kind_of(value) == kind))
}

fn values_differ(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    values(a).zip(values(b)).is_some_and(|(a, b)| {
        a.iter().all(|a| b.iter().all(|b| kind_of(a) != kind_of(b) || !same(a, b)))
    })
}

/// The only values that match, if they are listed.
fn values(keys: &Map<String, Value>) -> Option<&[Value]> {
    let list = keys.get("enum").and_then(Value::as_array).map(Vec::as_slice);
    keys.get("const").map(std::slice::from_ref).or(list)
}

/// Whether two values are equal, or too complex to compare.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(_), Value::Array(_)) | (Value::Object(_), Value::Object(_)) => true,
        _ => a == b,
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::Number(_) => "number",
        Value::String(_) => "string",
    }
}
