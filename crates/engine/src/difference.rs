//! The first place in which two values differ, for messages. Floats are compared by their shortest
//! decimals, which differ when their bits do.

use std::fmt::{self, Write};

use serde::Serialize;
use serde_json::Value;

/// Where two values differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Such as `logprobs[0].top[2].token`.
    pub field: String,
    pub expected: String,
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, expected, found } = self;
        write!(f, "{field} is {found}, expected {expected}")
    }
}

/// Compares two values of a type whose text form is complete.
pub fn difference<T: Serialize>(expected: &T, found: &T) -> Option<Difference> {
    let value = |of| serde_json::to_value(of).expect("plans and outputs have a text form");
    let mut path = String::new();
    walk(&mut path, &value(expected), &value(found))
}

fn walk(path: &mut String, expected: &Value, found: &Value) -> Option<Difference> {
    let length = path.len();
    match (expected, found) {
        (Value::Object(a), Value::Object(b)) => {
            let only_found = b.keys().filter(|key| !a.contains_key(*key));
            for key in a.keys().chain(only_found) {
                let dot = if path.is_empty() { "" } else { "." };
                let _ = write!(path, "{dot}{key}");
                let absent = &Value::Null;
                let (a, b) = (a.get(key).unwrap_or(absent), b.get(key).unwrap_or(absent));
                let differs = walk(path, a, b);
                if differs.is_some() {
                    return differs;
                }
                path.truncate(length);
            }
            None
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                let _ = write!(path, "[{index}]");
                let differs = walk(path, a, b);
                if differs.is_some() {
                    return differs;
                }
                path.truncate(length);
            }
            None
        }
        _ => {
            let (expected, found) = (expected.to_string(), found.to_string());
            (expected != found).then(|| Difference { field: path.clone(), expected, found })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RowOutput, StepOutput, TokenLogprob, TokenLogprobs};

    fn output(logprob: f32) -> StepOutput {
        let chosen = TokenLogprob { token: 3, logprob };
        let logprobs = TokenLogprobs { chosen, rank: 0, top: vec![chosen, chosen] };
        let row = RowOutput { tokens: vec![3], logprobs: vec![logprobs], ..RowOutput::default() };
        StepOutput { rows: vec![RowOutput::default(), row] }
    }

    #[test]
    fn a_single_bit_shows() {
        assert_eq!(difference(&output(-1.0), &output(-1.0)), None);
        let found = difference(&output(-1.0), &output((-1.0f32).next_up())).unwrap();
        assert_eq!(found.field, "rows[1].logprobs[0].chosen.logprob");
        assert!(difference(&output(0.0), &output(-0.0)).is_some());
    }

    #[test]
    fn a_missing_field_shows() {
        let bare = RowOutput { tokens: vec![3], ..RowOutput::default() };
        let found = difference(&output(-1.0).rows[1], &bare).unwrap();
        assert_eq!((found.field.as_str(), found.found.as_str()), ("logprobs", "null"));
    }
}
