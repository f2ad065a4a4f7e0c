//! Values that have a short and a long form: a text or a list of parts, a string or a list of
//! strings. Both forms are parsed directly, so that an error names its place.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::openapi::schema::{
    ArrayBuilder, ArrayItems, ObjectBuilder, OneOfBuilder, SchemaType, Type,
};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// One value, or a list of them.
#[derive(Clone, Debug, PartialEq)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

fn text_schema() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::Type(Type::String))
}

impl<T: ToSchema> PartialSchema for OneOrMany<T> {
    fn schema() -> RefOr<Schema> {
        let list = ArrayBuilder::new().items(ArrayItems::RefOrSchema(Box::new(T::schema())));
        OneOfBuilder::new().item(text_schema()).item(list).into()
    }
}

impl<T: ToSchema> ToSchema for OneOrMany<T> {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        T::schemas(schemas);
    }
}

impl<'de, T: Deserialize<'de> + From<String>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + From<String>> Visitor<'de> for Reader<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(OneOrMany(vec![text.to_owned().into()]))
            }
            fn visit_string<E: Error>(self, text: String) -> Result<Self::Value, E> {
                Ok(OneOrMany(vec![text.into()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(OneOrMany)
            }
        }
        deserializer.deserialize_any(Reader(PhantomData))
    }
}

/// A string or several.
pub type Strings = OneOrMany<String>;

/// A text, or parts of it.
pub type Content = OneOrMany<Part>;

/// A part of a message. The model reads text only: parts of other types are refused, or left out of
/// a tool's result.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, ToSchema)]
pub struct Part {
    /// `text`, or another API's name for it: `input_text`, `output_text` or `refusal`.
    #[serde(rename = "type")]
    pub kind: String,
    pub text: Option<String>,
    pub refusal: Option<String>,
}

impl From<String> for Part {
    fn from(text: String) -> Self {
        Self { kind: "text".into(), text: Some(text), refusal: None }
    }
}

/// A string, or an object.
#[derive(Clone, Debug, PartialEq)]
pub enum NameOr<T> {
    Name(String),
    Object(T),
}

impl<T: ToSchema> PartialSchema for NameOr<T> {
    fn schema() -> RefOr<Schema> {
        OneOfBuilder::new().item(text_schema()).item(T::schema()).into()
    }
}

impl<T: ToSchema> ToSchema for NameOr<T> {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        T::schemas(schemas);
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for NameOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = NameOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an object")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(NameOr::Name(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(NameOr::Object)
            }
        }
        deserializer.deserialize_any(Reader(PhantomData))
    }
}
