//! Unknown fields of a request, and the known field that was probably meant.

use serde::de::{DeserializeOwned, Error, Visitor};
use serde::{Deserializer, forward_to_deserialize_any};

/// Most mistakes in a name: one letter wrong, missing or too many, or two letters exchanged. Only
/// longer names may have two mistakes.
const MISTAKES_MAX: usize = 2;
/// One mistake is allowed per this many letters of a name.
const MISTAKE_LETTERS: usize = 4;

/// The field of a request `T` whose name is closest to this one.
pub(super) fn nearest<T: DeserializeOwned>(name: &str) -> Option<&'static str> {
    let mistakes_max = MISTAKES_MAX.min(name.len() / MISTAKE_LETTERS);
    let known = fields::<T>().iter().map(|field| (strsim::osa_distance(name, field), *field));
    known.min().filter(|(mistakes, _)| *mistakes <= mistakes_max).map(|(_, field)| field)
}

/// The names of a type's fields.
fn fields<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut fields: &'static [&'static str] = &[];
    // Deserializing fails as soon as the names are recorded.
    let _ = T::deserialize(Names(&mut fields));
    fields
}

/// A deserializer that only records the field names of a struct.
struct Names<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Names<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        Err(Error::custom("there is no value"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Error::custom("there is no value"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::wire::ChatRequest;

    #[test]
    fn a_slip_of_the_pen_is_seen() {
        for (typed, meant) in [
            ("max_token", "max_tokens"),
            ("temprature", "temperature"),
            ("tempreature", "temperature"),
            ("top-p", "top_p"),
            ("ressponse_fromat", "response_format"),
        ] {
            assert_eq!(nearest::<ChatRequest>(typed), Some(meant), "{typed}");
        }
        for other in ["colour", "x", "", "max", "guidance", "think"] {
            assert_eq!(nearest::<ChatRequest>(other), None, "{other}");
        }
    }
}
