//! Tokenizer and chat template for models with dummy weights, which often have only a config: every
//! byte is a token, and each of the other tokens reads as its number.

use serde_json::{Map, Value, json};

/// Tokens that are one byte each.
const BYTES: usize = 256;

/// A chat template that names the roles and has no markup that only a trained model would know.
pub(crate) const TEMPLATE: &str = "{% for message in messages %}{{ message.role }}: \
    {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

/// A `tokenizer.json` with this many tokens.
pub(crate) fn tokenizer(vocab_size: usize) -> Value {
    let bytes = (0..BYTES.min(vocab_size)).zip(letters());
    let numbers = (BYTES..vocab_size).map(|token| (token, format!("Ġ{token}")));
    let vocab: Map<String, Value> =
        bytes.chain(numbers).map(|(token, text)| (text, token.into())).collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level, "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
}

/// The letter that stands for each byte in byte-level tokenizers.
fn letters() -> impl Iterator<Item = String> {
    let mut others = 256..;
    (0..=u8::MAX).map(move |byte| {
        let prints = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if prints { byte.into() } else { others.next().unwrap_or_default() };
        char::from_u32(code).map(String::from).unwrap_or_default()
    })
}
