//! Grammars over a checkpoint's own tokenizer.

use kilotok_text::{Constraint, Grammars, TokenId};

use crate::open;

/// The engine's vocabulary is larger than the tokenizer's.
const VOCAB: u32 = 512;

/// The model's tokenizer has pieces of text, and marks some of its markup as special.
const MODEL: &str = "hermes";

#[test]
fn markup_is_in_no_string_whatever_the_checkpoint_calls_it() {
    let text = open(MODEL);
    let token = |name: &str| text.token_id(name).unwrap();
    let grammars = Grammars::new(&text, VOCAB, &[token("<|im_end|>")]).unwrap();
    let mut grammar = grammars.compile(&Constraint::JsonObject, false, &|| false).unwrap();
    grammar.accept(&text.encode("{\"a\": \"").unwrap()).unwrap();
    let mask = grammar.masks(&[]).unwrap().masks.remove(0);
    assert_eq!(mask.len(), 16);
    let allowed = |token: TokenId| mask[token as usize / 32] >> (token % 32) & 1 == 1;
    for special in ["<|im_end|>", "<|im_start|>", "<|endoftext|>"] {
        assert!(text.is_special(token(special)) && !allowed(token(special)), "{special}");
    }
    for plain in ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>"] {
        assert!(!text.is_special(token(plain)) && !allowed(token(plain)), "{plain}");
    }
    assert!(allowed(token("content")));
    assert!((text.vocab_count() as TokenId..VOCAB).all(|token| !allowed(token)));
    grammar.accept(&text.encode("<b>\"}").unwrap()).unwrap();
    grammar.accept(&[token("<|im_end|>")]).unwrap();
}

#[test]
fn ends_that_the_tokenizer_does_not_have_are_refused() {
    let text = open(MODEL);
    assert!(Grammars::new(&text, VOCAB, &[]).is_err());
    assert!(Grammars::new(&text, VOCAB, &[VOCAB - 1]).is_err());
}
