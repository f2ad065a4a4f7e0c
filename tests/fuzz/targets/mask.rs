//! Any bytes as a file of `torch.save`; also any bytes as the pickle of a sound archive, whose
//! checksums random bytes would never meet.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
#[expect(dead_code, reason = "made for the tests of malformed masks")]
#[path = "../../malformed/torch.rs"]
mod torch;

use kilotok_weights::parse_mask;

#[cfg(not(fuzzing))]
use crate::torch;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

pub(crate) fn run(bytes: &[u8]) {
    check(bytes);
    check(&torch::zip(&torch::entries(bytes, &torch::embedding())));
}

fn check(file: &[u8]) {
    if let Ok(mask) = parse_mask(file) {
        assert!(mask.bytes.len() <= file.len());
        assert!(mask.bytes.len().is_multiple_of(mask.dtype.bytes()));
    }
}
