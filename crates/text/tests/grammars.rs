//! Grammars over a checkpoint's own tokenizer, and parsing of replies that follow them.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use std::sync::Arc;

use jsonschema::Validator;
use kilotok_text::{
    Constraint, Event, Format, Grammar, Grammars, Parse, ReasoningStart, Reply, ReplyOptions, Text,
    TokenId, Tool,
};
use serde_json::{Map, Value, json};

/// The engine's vocabulary is larger than the tokenizer's.
const VOCAB: u32 = 320;
/// Tokens that a checkpoint adds, and whether it marks them as special.
const ADDED: [(&str, bool); 7] = [
    ("<|im_end|>", true),
    ("<|im_start|>", true),
    ("<think>", false),
    ("</think>", false),
    ("<tool_call>", false),
    ("</tool_call>", false),
    ("<|fim_prefix|>", false),
];

/// A byte-level tokenizer with a few merges.
fn text(format: Format) -> Text {
    let name = |byte: u8| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        0..=0x20 => char::from_u32(0x100 + u32::from(byte)).unwrap(),
        0x7f..=0xa0 => char::from_u32(0x121 + u32::from(byte) - 0x7f).unwrap(),
        0xad => '\u{143}',
    };
    let mut vocab: Map<String, Value> =
        (0..=255).map(|byte| (name(byte).to_string(), byte.into())).collect();
    let merges = [("<", "/"), ("\"", ":"), ("{", "\""), ("p", "a"), ("r", "a"), ("pa", "ra")];
    for (one, two) in merges {
        let next = vocab.len();
        vocab.insert(format!("{one}{two}"), next.into());
    }
    let added: Vec<Value> = (vocab.len()..)
        .zip(ADDED)
        .map(|(id, (content, special))| {
            json!({ "id": id, "content": content, "special": special, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false })
        })
        .collect();
    let merges: Vec<String> = merges.iter().map(|(one, two)| format!("{one} {two}")).collect();
    let level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
    });
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
        "ignore_merges": false, "vocab": vocab, "merges": merges,
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": added, "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": model,
    });
    let file = tokenizer.to_string().into_bytes();
    let read = |name: &str| (name == "tokenizer.json").then(|| file.clone());
    Text::from_files(&read).unwrap().with_format(format).unwrap()
}

fn end(text: &Text) -> TokenId {
    text.token_id("<|im_end|>").unwrap()
}

fn grammars(text: &Text) -> Grammars {
    Grammars::new(text, VOCAB, &[end(text)]).unwrap()
}

fn allowed(text: &Text, grammar: &mut Grammar) -> Vec<TokenId> {
    let Some(mask) = grammar.masks(&[]).unwrap().masks.pop() else {
        // Every token is allowed: write a short thought.
        return vec![TokenId::from(b'a'), text.token_id("</think>").unwrap()];
    };
    assert_eq!(mask.len(), 10);
    (0..VOCAB).filter(|&token| mask[token as usize / 32] >> (token % 32) & 1 == 1).collect()
}

#[test]
fn markup_is_in_no_string_whatever_the_checkpoint_calls_it() {
    let text = text(Format::Mimo);
    let grammars = grammars(&text);
    let mut grammar = grammars.compile(&Constraint::JsonObject, false, &|| false).unwrap();
    grammar.accept(&text.encode("{\"a\": \"").unwrap()).unwrap();
    let allowed = allowed(&text, &mut grammar);
    for (name, _) in ADDED {
        assert!(!allowed.contains(&text.token_id(name).unwrap()), "{name}");
    }
    assert!(allowed.contains(&text.token_id("para").unwrap()));
    assert!(allowed.iter().all(|&token| (token as usize) < text.vocab_count()));
    grammar.accept(&text.encode("<b>\"}").unwrap()).unwrap();
    grammar.accept(&[end(&text)]).unwrap();
}

#[test]
fn ends_that_the_tokenizer_does_not_have_are_refused() {
    let text = text(Format::Mimo);
    assert!(Grammars::new(&text, VOCAB, &[]).is_err());
    assert!(Grammars::new(&text, VOCAB, &[VOCAB - 1]).is_err());
}

fn tools() -> Vec<Tool> {
    let deep = json!({
        "type": "object",
        "properties": { "x": { "type": "string" }, "y": { "type": "boolean" } },
        "required": ["x"],
        "additionalProperties": false,
    });
    let line = json!({ "type": "integer", "minimum": 0, "maximum": 99 });
    let parameters = json!({
        "type": "object",
        "properties": {
            "path": { "type": "string" },
            "lines": { "type": "array", "items": line },
            "mode": { "enum": ["read", "write"] },
            "deep": deep,
            "limit": { "type": ["integer", "null"], "minimum": 0, "maximum": 9 },
        },
        "required": ["path", "deep"],
        "additionalProperties": false,
    });
    let tool = |name: &str, parameters: Value| Tool {
        name: name.to_owned(),
        parameters,
        strict: true,
        ..Tool::default()
    };
    vec![tool("open", parameters), tool("stop", Value::Null)]
}

/// Random tokens that the masks allow; after a while, preferably ones that close something.
fn walk(text: &Text, grammar: &mut Grammar, seed: u64) -> Vec<TokenId> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = |end: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % end
    };
    let closing = "\n</parameter>";
    let mut reply: Vec<TokenId> = Vec::new();
    loop {
        assert!(reply.len() < 20_000, "no end: {}", text.decode(&reply, false));
        let all = allowed(text, grammar);
        let mut token = all[below(all.len())];
        if reply.len() > 60 {
            let said = text.decode(&reply[reply.len().saturating_sub(20)..], false);
            let begun = (1..closing.len()).rev().find(|&length| {
                said.ends_with(&closing[..length])
                    || (length > 1 && said.ends_with(&closing[1..length]))
            });
            let next = closing.as_bytes()[begun.unwrap_or_else(|| below(2))];
            let quotes = [TokenId::from(b'"'), TokenId::from(b'}'), TokenId::from(b']')];
            let wanted = [end(text), TokenId::from(next), quotes[below(3)]];
            let wanted = wanted.iter().copied().find(|token| all.contains(token) && below(5) > 0);
            token = wanted.unwrap_or(token);
        }
        grammar.accept(&[token]).unwrap();
        if token == end(text) {
            return reply;
        }
        reply.push(token);
    }
}

#[test]
fn calls_that_a_grammar_allows_are_read_as_calls_that_follow_the_schema() {
    let tools = tools();
    let schema = |tool: &Tool| match &tool.parameters {
        Value::Null => json!({ "type": "object" }),
        schema => schema.clone(),
    };
    let oracles: Vec<Validator> =
        tools.iter().map(|tool| jsonschema::validator_for(&schema(tool)).unwrap()).collect();
    for format in [Format::Mimo, Format::Qwen3Coder, Format::Hermes] {
        let text = Arc::new(text(format));
        let constraint = Constraint::Calls { tools: tools.clone(), format, parallel: true };
        let grammar =
            grammars(&text).compile(&constraint, ReasoningStart::Maybe, &|| false).unwrap();
        for seed in 1..40 {
            let tokens = walk(&text, &mut grammar.clone(), seed);
            let said = text.decode(&tokens, false);
            let options = ReplyOptions {
                parse: Parse::ReasoningAndCalls,
                tools: tools.clone(),
                reasoning: ReasoningStart::Maybe,
                parallel_calls: true,
                ..ReplyOptions::default()
            };
            let mut reply = Reply::new(Arc::clone(&text), options);
            for &token in &tokens {
                assert_eq!(reply.push(token), None, "{said}");
            }
            reply.finish();
            let mut calls: Vec<(String, String)> = Vec::new();
            for event in reply.take() {
                match event {
                    Event::Call { name, .. } => calls.push((name, String::new())),
                    Event::Arguments { text, .. } => calls.last_mut().unwrap().1.push_str(&text),
                    Event::Reasoning(_) => {}
                    Event::Content(content) => panic!("{content:?} in {said}"),
                }
            }
            assert!(!calls.is_empty(), "{said}");
            for (name, arguments) in calls {
                let which = tools.iter().position(|tool| tool.name == name).unwrap();
                let value: Value = serde_json::from_str(&arguments).unwrap();
                assert!(oracles[which].is_valid(&value), "{format}: {arguments} of {said}");
            }
        }
    }
}
