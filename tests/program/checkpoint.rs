//! Folders that can be served: a toy, and a tokenizer whose tokens are the 256 bytes and a few
//! special tokens.

use std::fs;
use std::path::Path;

use kilotok_testkit::Toy;
use kilotok_testkit::toy::Files;
use serde_json::{Map, Value, json};

const VOCAB_SIZE: u32 = 320;
const MARKS: [&str; 10] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    // Harmony's.
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|constrain|>",
    "<|return|>",
    "<|call|>",
];
const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n\
    {{ message.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Writes a folder to be served with dummy weights: the vocabulary size is the tokenizer's.
pub(crate) fn write(folder: &Path) {
    Toy::flash().write(folder, Files::One).unwrap();
    for file in ["config.json", "dflash/config.json"] {
        let path = folder.join(file);
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        if config.get("vocab_size").is_some() {
            config["vocab_size"] = VOCAB_SIZE.into();
        }
        fs::write(path, config.to_string()).unwrap();
    }
    write_text(folder);
}

/// Writes a toy of at least [`VOCAB_SIZE`] tokens with its weights.
pub(crate) fn write_toy(folder: &Path, toy: &Toy) {
    toy.write(folder, Files::Sharded(2)).unwrap();
    write_text(folder);
}

fn write_text(folder: &Path) {
    let special = (256..).zip(MARKS);
    let added: Vec<Value> = special
        .map(|(id, content)| {
            json!({
                "id": id, "content": content, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": { "type": "BPE", "vocab": bytes(), "merges": [] },
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({ "eos_token": "<|im_end|>", "chat_template": TEMPLATE });
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// A printable letter for each byte, as byte-level tokenizers have them.
fn bytes() -> Map<String, Value> {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256..;
    let letter = |byte: u32| {
        let code = if printable(byte) { byte } else { others.next().unwrap() };
        (char::from_u32(code).unwrap().to_string(), Value::from(byte))
    };
    (0..256).map(letter).collect()
}
