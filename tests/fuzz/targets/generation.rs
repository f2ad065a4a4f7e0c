//! Reads any bytes as a checkpoint's `generation_config.json`. Accepted values must be in the range
//! that requests have too, because they apply where a request sets none.

#![cfg_attr(fuzzing, no_main)]

use kilotok_text::Text;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

const TOKENIZER: &[u8] = include_bytes!("../../text/fixtures/mimo/tokenizer.json");

pub(crate) fn run(bytes: &[u8]) {
    let file = |name: &str| match name {
        "tokenizer.json" => Some(TOKENIZER.to_vec()),
        "generation_config.json" => Some(bytes.to_vec()),
        _ => None,
    };
    let Ok(text) = Text::from_files(&file) else { return };
    let defaults = text.defaults();
    let within = |value: Option<f32>, low: f32, high: f32| {
        assert!(value.is_none_or(|value| (low..=high).contains(&value)), "{defaults:?}");
    };
    within(defaults.temperature, 0.0, f32::MAX);
    within(defaults.top_p, 0.0, 1.0);
    within(defaults.min_p, 0.0, 1.0);
    within(defaults.repetition_penalty, f32::MIN_POSITIVE, f32::MAX);
}
