//! Checks that numbers lie in a range. An error names the field, the value and the range.

use std::fmt::Display;

use crate::error::ApiError;

/// The value, if it is in the range, both ends included.
pub(crate) fn within<T: Copy + PartialOrd + Display>(
    name: &str,
    value: Option<T>,
    low: T,
    high: T,
) -> Result<Option<T>, ApiError> {
    match value {
        Some(value) if value < low || value > high => {
            Err(outside(name, &value, &format!("between {low} and {high}")))
        }
        value => Ok(value),
    }
}

/// Checks a count that must fit into 32 bits. `high == i64::MAX` means no other upper limit.
pub(crate) fn count(
    name: &str,
    value: Option<i64>,
    low: i64,
    high: i64,
) -> Result<Option<u32>, ApiError> {
    match value {
        // The error of a value that is too small need not mention 32 bits.
        Some(value) if value < low && high == i64::MAX => {
            Err(outside(name, &value, &format!("at least {low}")))
        }
        value => {
            let high = high.min(i64::from(u32::MAX));
            Ok(within(name, value, low, high)?.map(|value| value as u32))
        }
    }
}

pub(crate) fn outside(name: &str, value: &impl Display, range: &str) -> ApiError {
    ApiError::bad(name, format!("{name}: {value} is out of range, it must be {range}"))
}

/// Checks the length of a list.
pub(crate) fn at_most<T>(name: &str, list: &[T], max: usize) -> Result<(), ApiError> {
    if list.len() <= max {
        return Ok(());
    }
    let message = format!("{name}: {} entries, at most {max} are possible", list.len());
    Err(ApiError::bad(name, message))
}
