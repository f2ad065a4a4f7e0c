//! Which `multipleOf` llguidance can enforce. Its lexer has a state per remainder; if other rules
//! apply to the number too, it visits all of them, whatever that costs. It also calculates in 32
//! bits.

use serde_json::{Map, Value};

/// Most remainders: a mask may take 0.2 s until all have been visited once. With 60,000, compiling
/// neither ends nor stays within any memory.
pub(super) const DIGITS_MAX: u64 = 4096;
/// Most digits after the decimal point: 9 times the power of ten must fit into 32 bits.
pub(super) const PLACES_MAX: u32 = 8;

/// A multiple as llguidance represents it: an integer, and how many of its digits come after the
/// decimal point.
#[derive(Clone, Copy)]
struct Multiple {
    digits: u64,
    places: u32,
}

impl Multiple {
    fn of(value: f64) -> Option<Self> {
        let (mut scaled, mut places) = (value, 0);
        // This ends, because large floats have no fraction.
        while scaled.fract() != 0.0 {
            scaled *= 10.0;
            places += 1;
        }
        // A cast of a float saturates at the limits of the integer.
        let mut digits = scaled as u64;
        while places > 0 && digits.is_multiple_of(10) {
            digits /= 10;
            places -= 1;
        }
        Some(Self { digits, places }).filter(|one| one.fits())
    }

    fn fits(self) -> bool {
        self.digits <= DIGITS_MAX && self.places <= PLACES_MAX
    }
}

pub(super) fn is_countable(multiple: f64) -> bool {
    Multiple::of(multiple).is_some()
}

/// Whether all multiples of this number are integers.
pub(super) fn is_whole(multiple: f64) -> bool {
    Multiple::of(multiple).is_some_and(|one| one.places == 0)
}

/// How many remainders the lexer has states for; 0 if this multiple cannot be enforced.
pub(super) fn remainder_count(multiple: f64) -> u64 {
    Multiple::of(multiple).map_or(0, |one| one.digits)
}

/// Whether a number that must be a multiple of all of them can be enforced.
pub(super) fn go_together(multiples: &[f64]) -> bool {
    let known: Vec<Multiple> = multiples.iter().copied().filter_map(Multiple::of).collect();
    let places = known.iter().map(|one| one.places).max().unwrap_or_default();
    let all = known.iter().try_fold(1, |all, one| {
        let digits = one.digits * 10_u64.pow(places - one.places);
        let all = all / common(all, digits) * digits;
        (all <= DIGITS_MAX).then_some(all)
    });
    all.is_some()
}

/// The greatest common divisor.
fn common(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common(b, a % b) }
}

/// Whether a value in the schema may have to match several schemas at the same time.
pub(super) fn has_joins(schema: &Value, is_note: fn(&str) -> bool) -> bool {
    match schema {
        Value::Object(keywords) => {
            parts(keywords, is_note) > 1 || keywords.values().any(|value| has_joins(value, is_note))
        }
        Value::Array(items) => items.iter().any(|item| has_joins(item, is_note)),
        _ => false,
    }
}

fn parts(keywords: &Map<String, Value>, is_note: fn(&str) -> bool) -> usize {
    let own = |key: &str| !["allOf", "anyOf", "oneOf", "$ref"].contains(&key) && !is_note(key);
    let single = ["anyOf", "oneOf", "$ref"].iter().filter(|key| keywords.contains_key(**key));
    let listed = keywords.get("allOf").and_then(Value::as_array).map_or(0, Vec::len);
    single.count() + listed + usize::from(keywords.keys().any(|key| own(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiples_are_countable_up_to_the_limits() {
        for good in [0.01, 0.5, 3.0, 1e-8, 4096.0, 0.25, 40.96] {
            assert!(is_countable(good), "{good}");
        }
        for bad in [4097.0, 65_537.0, 1e-9, 1e-300, 1e300, 4_294_967_295.0, 1.23456] {
            assert!(!is_countable(bad), "{bad}");
        }
    }

    #[test]
    fn multiples_together_are_their_common_one() {
        for good in [&[2.0, 3.0][..], &[0.01, 0.5, 5.0], &[64.0, 4096.0], &[100.0, 0.1], &[]] {
            assert!(go_together(good), "{good:?}");
        }
        for bad in [&[65.0, 64.0][..], &[4096.0, 3.0], &[1e-8, 1.0]] {
            assert!(!go_together(bad), "{bad:?}");
        }
    }
}
