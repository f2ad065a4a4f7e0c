//! Parses any text, including special tokens, as a reply of the model. The first byte selects the
//! format, the second one the options. The events must depend only on the tokens and not on how
//! they are grouped, and calls must be complete JSON unless the reply was cut.

#![cfg_attr(fuzzing, no_main)]

use std::sync::{Arc, LazyLock};

use kilotok_text::{Event, Format, Parse, ReasoningStart, Reply, ReplyOptions, Text, Tool};
use serde_json::{Value, json};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

const MIMO: &[u8] = include_bytes!("../../text/fixtures/mimo/tokenizer.json");
const HARMONY: &[u8] = include_bytes!("../../text/fixtures/harmony/tokenizer.json");
const FORMATS: [(&str, &[u8]); 5] = [
    ("mimo", MIMO),
    ("qwen3_coder", MIMO),
    ("hermes", MIMO),
    ("plain", MIMO),
    ("harmony", HARMONY),
];

static TEXTS: LazyLock<Vec<Arc<Text>>> = LazyLock::new(|| {
    let of = |(name, tokenizer): (&str, &[u8])| {
        let file = |name: &str| (name == "tokenizer.json").then(|| tokenizer.to_vec());
        let text = Text::from_files(&file).expect("a good tokenizer");
        let format = name.parse::<Format>().expect("a known format");
        Arc::new(text.with_format(format).expect("a format of text"))
    };
    FORMATS.map(of).into()
});

pub(crate) fn run(bytes: &[u8]) {
    let [format, how, rest @ ..] = bytes else { return };
    let Ok(said) = std::str::from_utf8(rest) else { return };
    let text = &TEXTS[usize::from(*format) % TEXTS.len()];
    let Ok(tokens) = text.encode(said) else { return };
    let cut = how & 8 != 0;
    let alone = read(text, *how, cut, &tokens, 1);
    let joined = read(text, *how, cut, &tokens, tokens.len().max(1));
    assert_eq!(alone, joined, "events depend on how tokens are grouped");
    if !cut {
        for arguments in alone.iter().filter_map(arguments) {
            assert!(serde_json::from_str::<Value>(&arguments).is_ok(), "{arguments:?}");
        }
    }
}

/// The joined events of a reply whose tokens arrive `at_a_time` at a time.
fn read(text: &Arc<Text>, how: u8, cut: bool, tokens: &[u32], at_a_time: usize) -> Vec<Event> {
    let options = ReplyOptions {
        parse: match how & 3 {
            0 => Parse::Nothing,
            1 => Parse::Reasoning,
            2 => Parse::ReasoningAndCalls,
            _ => Parse::ReasoningThenCalls,
        },
        tools: vec![tool()],
        reasoning: if how & 4 == 0 { ReasoningStart::Maybe } else { ReasoningStart::Begun },
        stop: if how & 0x10 == 0 { Vec::new() } else { vec!["stop".into()] },
        skip_special: true,
        parallel_calls: how & 0x20 == 0,
        ..ReplyOptions::default()
    };
    let mut reply = Reply::new(Arc::clone(text), options);
    let mut events = Vec::new();
    for step in tokens.chunks(at_a_time) {
        for token in step {
            reply.push(*token);
        }
        events.append(&mut reply.take());
    }
    if cut {
        reply.cut();
    } else {
        reply.finish();
    }
    events.append(&mut reply.take());
    join(events)
}

/// Joins adjacent events of the same kind, as a client does.
fn join(events: Vec<Event>) -> Vec<Event> {
    let mut joined: Vec<Event> = Vec::new();
    for event in events {
        match (joined.last_mut(), &event) {
            (Some(Event::Content(all)), Event::Content(more))
            | (Some(Event::Reasoning(all)), Event::Reasoning(more)) => all.push_str(more),
            (Some(Event::Arguments { index: of, text: all }), Event::Arguments { index, text })
                if of == index =>
            {
                all.push_str(text);
            }
            _ => joined.push(event),
        }
    }
    joined
}

fn arguments(event: &Event) -> Option<String> {
    match event {
        Event::Arguments { text, .. } => Some(text.clone()),
        _ => None,
    }
}

fn tool() -> Tool {
    let parameters = json!({"type": "object", "properties": {
        "x": {"type": "array", "items": {"type": "integer"}}, "s": {"type": "string"},
        "b": {"type": "boolean"}, "o": {"type": "object"}, "n": {"type": ["number", "null"]},
    }});
    Tool { name: "f".into(), parameters, ..Tool::default() }
}
