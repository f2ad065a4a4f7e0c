//! Fields that other servers have and this one does not implement. Their default value is ignored;
//! any other value is refused by name, instead of being ignored silently.

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// A field that is not implemented. It holds no value: a value that is not the default is refused,
/// and the error quotes the field's comment, which says what to send instead.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unsupported;

/// The text of the error of a refused field; [`super::type_error`] looks for it.
pub(crate) const NOT_IMPLEMENTED: &str = "is not implemented by this server";

/// Whether a value is the default of its field, in any spelling.
pub(crate) fn asks_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(asked) => !asked,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let asks_nothing = asks_nothing(&Value::deserialize(deserializer)?);
        if asks_nothing { Ok(Self) } else { Err(D::Error::custom(format!("it {NOT_IMPLEMENTED}"))) }
    }
}

impl PartialSchema for Unsupported {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::Type(Type::Null))
            .description(Some("Not implemented: refused unless absent, null, false, 0 or empty."))
            .into()
    }
}

impl ToSchema for Unsupported {}

/// A count that may only be 1, such as `best_of`.
#[derive(Clone, Copy, Debug, Default)]
pub struct One;

impl<'de> Deserialize<'de> for One {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Null => Ok(Self),
            Value::Number(number) if number.as_f64() == Some(1.0) => Ok(Self),
            other => Err(D::Error::custom(format!("{other} {NOT_IMPLEMENTED} (only 1 is)"))),
        }
    }
}

impl PartialSchema for One {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::Type(Type::Integer))
            .enum_values(Some([1]))
            .description(Some("Only 1 is implemented."))
            .into()
    }
}

impl ToSchema for One {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_no_part_of_what_is_said() {
        let error = serde_json::from_str::<One>("3").unwrap_err().to_string();
        assert!(error.starts_with("3 is not implemented by this server (only 1 is)"), "{error}");
    }
}
