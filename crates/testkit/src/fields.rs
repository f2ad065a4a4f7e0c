//! JSON objects that differ from another one in a few fields.

use serde_json::Value;

/// The object with these fields besides its own; where both have a field, the new one counts.
///
/// # Panics
/// If one of the two is no object.
pub fn with_fields(mut object: Value, fields: &Value) -> Value {
    let (Some(all), Some(fields)) = (object.as_object_mut(), fields.as_object()) else {
        panic!("{object} and {fields} must be objects");
    };
    all.extend(fields.clone());
    object
}
