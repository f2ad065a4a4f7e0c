//! Writes random cases of choosing tokens with this crate's answers, for the GPU to be compared
//! with: `cargo run --release -p kilotok-sampling --example device_cases -- FILE [FACTOR]`. The
//! reader is `kernels/harness/sample.cu`, which says how the file is laid out.
//!
//! Logits and masks are named by formulas of Philox, so that a row of a large vocabulary takes a
//! few words.

mod case;
mod rows;

use std::error::Error;
use std::{env, fs};

use case::{Words, write_case};
use rows::Random;

const MAGIC: u32 = 0x6b74_6b31;

/// Sizes of vocabularies, and how many cases of each.
const GROUPS: &[(u32, u32)] = &[
    (1, 40),
    (2, 60),
    (3, 100),
    (31, 150),
    (32, 150),
    (33, 300),
    (128, 300),
    (257, 300),
    (1000, 400),
    (4099, 300),
    (32_000, 80),
    (152_576, 60),
];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (path, percent) = match &arguments[..] {
        [path] => (path, 100),
        [path, percent] => (path, percent.parse()?),
        _ => return Err("usage: device_cases FILE [PERCENT]".into()),
    };
    let mut words = Words::default();
    words.extend([MAGIC, GROUPS.len() as u32]);
    for &(vocab, count) in GROUPS {
        let count = (count * percent).div_ceil(100);
        words.extend([vocab, count]);
        for index in 0..count {
            let mut random = Random::new(u64::from(vocab) << 32 | u64::from(index));
            write_case(&mut words, vocab, &mut random);
        }
    }
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    fs::write(path, bytes)?;
    Ok(())
}
