//! The types of a tool's parameter according to its JSON schema, as far as converting text to JSON
//! needs them. Values are not validated.

use std::ops::BitOr;

use serde_json::{Map, Value};

/// Most references and alternatives that are followed inwards.
const DEPTH_MAX: usize = 8;

/// A set of kinds of JSON values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kinds(u8);

impl Kinds {
    const NONE: Self = Self(0);
    pub(super) const STRING: Self = Self(1);
    pub(super) const INTEGER: Self = Self(2);
    /// Numbers that need not be integers.
    pub(super) const NUMBER: Self = Self(4);
    pub(super) const BOOLEAN: Self = Self(8);
    pub(super) const OBJECT: Self = Self(16);
    pub(super) const ARRAY: Self = Self(32);
    pub(super) const NULL: Self = Self(64);
    /// The kinds if a schema leaves them open. Text that looks like a number may well be meant as
    /// text, but text that looks like an object hardly is.
    const OPEN: Self = Self(1 + 16 + 32 + 64);

    pub(super) fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Number(number) if number.is_f64() => Self::NUMBER,
            Value::Number(_) => Self::INTEGER,
            Value::String(_) => Self::STRING,
            Value::Array(_) => Self::ARRAY,
            Value::Object(_) => Self::OBJECT,
        }
    }

    /// The kind for a type's name in a schema, or for a name that tools use instead.
    fn of_name(name: &str) -> Self {
        const NAMES: [(&str, Kinds); 18] = [
            ("str", Kinds::STRING),
            ("text", Kinds::STRING),
            ("char", Kinds::STRING),
            ("enum", Kinds::STRING),
            ("date", Kinds::STRING),
            ("int", Kinds::INTEGER),
            ("uint", Kinds::INTEGER),
            ("long", Kinds::INTEGER),
            ("num", Kinds::NUMBER),
            ("float", Kinds::NUMBER),
            ("double", Kinds::NUMBER),
            ("bool", Kinds::BOOLEAN),
            ("obj", Kinds::OBJECT),
            ("dict", Kinds::OBJECT),
            ("arr", Kinds::ARRAY),
            ("list", Kinds::ARRAY),
            ("null", Kinds::NULL),
            ("none", Kinds::NULL),
        ];
        let name = name.to_ascii_lowercase();
        let named = NAMES.iter().find(|(start, _)| name.starts_with(start));
        named.map_or(Self::OPEN, |(_, kinds)| *kinds)
    }
}

impl BitOr for Kinds {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The kinds of the property `key` of the object that `schema` describes; `None` if the schema does
/// not name the property.
pub(super) fn property(schema: &Value, key: &str) -> Option<Kinds> {
    let property = properties(schema)?.get(key)?;
    Some(kinds(property, schema, DEPTH_MAX))
}

/// The name of an object's only property, if the property may be a string.
pub(super) fn only_text(schema: &Value) -> Option<&str> {
    let properties = properties(schema)?;
    let (name, _) = properties.iter().next().filter(|_| properties.len() == 1)?;
    property(schema, name)?.has(Kinds::STRING).then_some(name)
}

pub(super) fn has_properties(schema: &Value) -> bool {
    properties(schema).is_some_and(|properties| !properties.is_empty())
}

fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    let target = schema["$ref"].as_str().and_then(|path| follow(path, schema)).unwrap_or(schema);
    target["properties"].as_object()
}

fn follow<'s>(path: &str, root: &'s Value) -> Option<&'s Value> {
    root.pointer(path.strip_prefix('#')?)
}

fn kinds(schema: &Value, root: &Value, depth: usize) -> Kinds {
    let Some(depth) = depth.checked_sub(1) else { return Kinds::OPEN };
    let nullable = if schema["nullable"] == true { Kinds::NULL } else { Kinds::NONE };
    if let Some(target) = schema["$ref"].as_str().and_then(|path| follow(path, root)) {
        return kinds(target, root, depth) | nullable;
    }
    let union = |kinds: &mut dyn Iterator<Item = Kinds>| kinds.fold(Kinds::NONE, Kinds::bitor);
    let found = match (&schema["type"], &schema["enum"], schema.get("const")) {
        (Value::String(name), ..) => Kinds::of_name(name),
        (Value::Array(names), ..) => {
            union(&mut names.iter().filter_map(Value::as_str).map(Kinds::of_name))
        }
        (_, Value::Array(values), _) => union(&mut values.iter().map(Kinds::of_value)),
        (_, _, Some(value)) => Kinds::of_value(value),
        _ => {
            let alternatives = ["anyOf", "oneOf"].iter().filter_map(|key| schema[key].as_array());
            union(&mut alternatives.flatten().map(|inner| kinds(inner, root, depth)))
        }
    };
    if !found.is_empty() {
        return found | nullable;
    }
    // The first member of `allOf` that says anything about the type.
    let all = schema["allOf"].as_array().into_iter().flatten();
    let mut all = all.map(|inner| kinds(inner, root, depth));
    if let Some(found) = all.find(|found| *found != Kinds::OPEN) {
        return found | nullable;
    }
    match (schema.get("properties"), schema.get("items")) {
        (Some(_), _) => Kinds::OBJECT | nullable,
        (_, Some(_)) => Kinds::ARRAY | nullable,
        _ => Kinds::OPEN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kinds_are_found_wherever_a_schema_says_them() {
        let schema = json!({
            "$defs": { "place": { "type": "object" }, "loop": { "$ref": "#/$defs/loop" } },
            "properties": {
                "a": { "type": "string" }, "b": { "type": ["integer", "null"] },
                "c": { "anyOf": [{ "type": "number" }, { "$ref": "#/$defs/place" }] },
                "d": { "enum": ["x", 1, null] }, "e": { "const": 1.5 },
                "f": { "allOf": [{ "description": "" }, { "type": "boolean" }] },
                "g": { "items": {} }, "h": { "properties": {} }, "i": {}, "j": true,
                "k": { "$ref": "#/$defs/loop" }, "l": { "type": "int64", "nullable": true },
                "m": { "type": "dict" }, "n": { "oneOf": [{ "type": "array" }] },
            },
        });
        let expected = [
            ("a", Kinds::STRING),
            ("b", Kinds::INTEGER | Kinds::NULL),
            ("c", Kinds::NUMBER | Kinds::OBJECT),
            ("d", Kinds::STRING | Kinds::INTEGER | Kinds::NULL),
            ("e", Kinds::NUMBER),
            ("f", Kinds::BOOLEAN),
            ("g", Kinds::ARRAY),
            ("h", Kinds::OBJECT),
            ("i", Kinds::OPEN),
            ("j", Kinds::OPEN),
            ("k", Kinds::OPEN),
            ("l", Kinds::INTEGER | Kinds::NULL),
            ("m", Kinds::OBJECT),
            ("n", Kinds::ARRAY),
        ];
        for (key, kinds) in expected {
            assert_eq!(property(&schema, key), Some(kinds), "{key}");
        }
        assert_eq!(property(&schema, "z"), None);
        assert_eq!(property(&json!(null), "z"), None);
        let indirect = json!({ "$ref": "#/$defs/t", "$defs": { "t": schema } });
        assert_eq!(property(&indirect, "a"), Some(Kinds::STRING));
    }
}
