//! Reads any bytes as a checkpoint's `tokenizer.json`. If it is accepted, encoding and decoding any
//! text must not panic, and every token of the result must exist.

#![cfg_attr(fuzzing, no_main)]

use kilotok_text::Text;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

const TEXTS: [&str; 4] =
    ["", "Hello, world! 1234", "  \n\t é 世界 👩‍👩‍👧 \u{0}", "<|im_start|>user<|im_end|>"];

pub(crate) fn run(bytes: &[u8]) {
    let file = |name: &str| (name == "tokenizer.json").then(|| bytes.to_vec());
    let Ok(text) = Text::from_files(&file) else { return };
    for plain in TEXTS {
        for tokens in [text.encode(plain), text.encode_plain(plain)].into_iter().flatten() {
            assert!(tokens.iter().all(|token| (*token as usize) < text.vocab_count()));
            let _ = text.decode(&tokens, false);
        }
    }
}
