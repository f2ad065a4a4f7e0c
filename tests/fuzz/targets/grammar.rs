//! Compiles any text as a grammar: as GBNF if it contains `::=`, else as Lark. It must compile or
//! be refused within its limits, and a compiled grammar must allow a first token or report that it
//! allows none.

#![cfg_attr(fuzzing, no_main)]

use std::sync::LazyLock;

use kilotok_text::{Constraint, Grammars, Text};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

static GRAMMARS: LazyLock<Grammars> = LazyLock::new(|| {
    let tokenizer = include_bytes!("../../text/fixtures/mimo/tokenizer.json");
    let file = |name: &str| (name == "tokenizer.json").then(|| tokenizer.to_vec());
    let text = Text::from_files(&file).expect("a good tokenizer");
    Grammars::new(&text, text.vocab_count() as u32, &[258]).expect("a good vocabulary")
});

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let constraint = Constraint::Lark(text.to_owned());
    if let Ok(mut grammar) = GRAMMARS.compile(&constraint, false, &|| false) {
        let _ = grammar.masks(&[]);
    }
}
