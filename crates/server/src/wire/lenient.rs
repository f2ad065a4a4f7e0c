//! Lenient integers and plain errors. 1.0 and 1e3 are accepted as integers, as in JSON Schema, and
//! errors name JSON's arrays and objects, not Rust's types. This is a layer around a deserializer,
//! so it applies to every field of every request.

use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserializer, forward_to_deserialize_any};

/// The integer that a float equals, if an i64 can hold it.
pub(crate) fn integer(number: f64) -> Option<i64> {
    let whole = number.fract() == 0.0 && number >= i64::MIN as f64 && number < i64::MAX as f64;
    whole.then_some(number as i64)
}

/// Wraps a deserializer, a visitor, a seed, or the access to a list or an object.
pub(crate) struct Lenient<T>(pub(crate) T);

/// A visitor of integers from `least` to `most`.
struct Integer<V> {
    visitor: V,
    least: i64,
    most: u64,
}

macro_rules! integers {
    ($($name:ident($type:ty))*) => {
        $(
            fn $name<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
                let (least, most) = (<$type>::MIN as i64, <$type>::MAX as u64);
                self.0.$name(Integer { visitor, least, most })
            }
        )*
    };
}

macro_rules! kinds {
    ($($name:ident($kind:ident))*) => {
        $(
            fn $name<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
                self.0.deserialize_any($kind(visitor))
            }
        )*
    };
}

macro_rules! as_they_are {
    ($($name:ident($type:ty))*) => {
        $(
            fn $name<E: Error>(self, value: $type) -> Result<V::Value, E> {
                self.0.$name(value)
            }
        )*
    };
}

/// A visitor of one kind of value; other kinds are errors that name it.
macro_rules! one_kind {
    ($kind:ident, $wanted:literal, $($methods:tt)*) => {
        struct $kind<V>(V);

        impl<'de, V: Visitor<'de>> Visitor<'de> for $kind<V> {
            type Value = V::Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($wanted)
            }

            $($methods)*
        }
    };
}

one_kind! { Flag, "true or false", as_they_are! { visit_bool(bool) } }

one_kind! { Number, "a number", as_they_are! { visit_i64(i64) visit_u64(u64) visit_f64(f64) } }

one_kind! { List, "an array",
    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Lenient(list))
    }
}

// Serde would also read a struct from an array of its fields.
one_kind! { Object, "an object",
    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Lenient(object))
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Lenient<D> {
    type Error = D::Error;

    integers! {
        deserialize_i8(i8) deserialize_i16(i16) deserialize_i32(i32) deserialize_i64(i64)
        deserialize_u8(u8) deserialize_u16(u16) deserialize_u32(u32) deserialize_u64(u64)
    }

    kinds! {
        deserialize_bool(Flag) deserialize_f32(Number) deserialize_f64(Number)
        deserialize_seq(List) deserialize_map(Object)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(Lenient(visitor))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_option(Lenient(visitor))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_newtype_struct(name, Lenient(visitor))
    }

    /// No request has enum variants with contents.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_ignored_any(visitor)
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Integer<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The limits of an i64 would say nothing about the field.
        if self.least == i64::MIN {
            return f.write_str("an integer");
        }
        write!(f, "an integer from {} to {}", self.least, self.most)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<V::Value, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) if number < self.least => {
                Err(E::invalid_value(Unexpected::Signed(number), &self))
            }
            Err(_) => self.visitor.visit_i64(number),
        }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<V::Value, E> {
        if number > self.most {
            return Err(E::invalid_value(Unexpected::Unsigned(number), &self));
        }
        self.visitor.visit_u64(number)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<V::Value, E> {
        match integer(number) {
            Some(integer) => self.visit_i64(integer),
            None => Err(E::invalid_type(Unexpected::Float(number), &self)),
        }
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Lenient<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    as_they_are! {
        visit_bool(bool) visit_i64(i64) visit_u64(u64) visit_f64(f64)
        visit_str(&str) visit_borrowed_str(&'de str) visit_string(String)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(Lenient(value))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(Lenient(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Lenient(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Lenient(object))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Lenient<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Lenient(seed))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Lenient<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(Lenient(seed))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Lenient<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Lenient(value))
    }
}
