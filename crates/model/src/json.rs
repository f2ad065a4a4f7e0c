//! Strict JSON: a key may occur only once in an object, since readers differ in which occurrence
//! they take. Headers and indices of checkpoints are read with it too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// An object with keys that are not known beforehand.
#[derive(Debug)]
pub struct Object<T>(pub BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        entries(map, |_, map| map.next_value().map(Some)).map(Object)
    }
}

/// Reads an object's entries. `value` reads the value of a key, and may leave it out.
pub fn entries<'de, A: MapAccess<'de>, T>(
    mut map: A,
    value: impl Fn(&str, &mut A) -> Result<Option<T>, A::Error>,
) -> Result<BTreeMap<String, T>, A::Error> {
    let mut keys = BTreeSet::new();
    let mut entries = BTreeMap::new();
    while let Some(key) = map.next_key::<String>()? {
        let value = value(&key, &mut map)
            .map_err(|error| A::Error::custom(format_args!("{key}: {error}")))?;
        if !keys.insert(key.clone()) {
            return Err(A::Error::custom(format_args!("{key} stands twice")));
        }
        if let Some(value) = value {
            entries.insert(key, value);
        }
    }
    Ok(entries)
}

/// Any value.
pub(crate) struct Unambiguous(pub(crate) Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor).map(Self)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Unambiguous(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        let entries =
            entries(map, |_, map| map.next_value().map(|Unambiguous(value)| Some(value)))?;
        Ok(Value::Object(entries.into_iter().collect()))
    }
}
