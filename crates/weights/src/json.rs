//! JSON objects in which every key stands once. A second entry of the same name would quietly
//! replace the first, and readers differ in which one counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// An object with keys that are not known beforehand.
#[derive(Debug)]
pub(crate) struct Object<T>(pub(crate) BTreeMap<String, T>);

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
pub(crate) fn entries<'de, A: MapAccess<'de>, T>(
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
