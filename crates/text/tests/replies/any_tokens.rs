//! The events of a reply do not depend on how its text is cut into tokens, nor on how often events
//! are taken, and arguments are valid JSON, whatever the model writes. Replies in the right format
//! are parsed as meant.

use std::fmt::Write as _;

use kilotok_text::{Event, Format, Parse, ReasoningStart, Reply, ReplyOptions, Tool};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value, json};

use crate::speaking::{SimulatedModel, joined, spelled};

const FORMATS: [Format; 4] = [Format::Mimo, Format::Qwen3Coder, Format::Hermes, Format::Plain];

/// Fragments from which replies are built, so that tags meet in every order.
const XML: [&str; 17] = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<function=f>",
    "<function=g>",
    "<function=",
    "</function>",
    "<parameter=s>",
    "<parameter=i>",
    "<parameter=o>",
    "<parameter=",
    "</parameter>",
    "<",
    "</",
    ">",
    "<tool_call>\n<function=f>\n<parameter=s>\nvalue\n</parameter>\n</function>\n</tool_call>",
];
const JSON: [&str; 24] = [
    "<tool_call>",
    "</tool_call>",
    "<tool_call>{",
    "<tool_call>{\"name\": \"",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\u00e9",
    "\\ud83d",
    "null",
    "7",
    "-1.5e3",
    "true",
    "\"name\": ",
    "\"f\"",
    "\"arguments\": {",
    "{\"arguments\": {\"i\": 1}, \"",
    "{\"name\": \"f\", \"arguments\": {\"s\": \"",
    "<tool_call>\n{\"name\": \"g\", \"arguments\": {\"a\": [1, {\"b\": \"c\"}]}}\n</tool_call>",
];
const PROSE: [&str; 9] = [
    "\n",
    "\n\n",
    " ",
    "  x ",
    "<tool",
    "prose é 世界 😀.",
    "\u{fffd}\u{e000}",
    "end",
    "<|im_end|>",
];

fn part(weights: [u32; 3]) -> impl Strategy<Value = &'static str> {
    prop_oneof![
        weights[0] => select(&XML[..]),
        weights[1] => select(&JSON[..]),
        weights[2] => select(&PROSE[..]),
    ]
}

fn parts() -> impl Strategy<Value = Vec<&'static str>> {
    let weights = select(vec![[1, 1, 1], [6, 1, 2], [1, 9, 1]]);
    weights.prop_flat_map(|weights| prop::collection::vec(part(weights), 0..24))
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn tools() -> Vec<Tool> {
    let properties = json!({
        "s": { "type": "string" },
        "i": { "type": "integer" },
        "o": { "type": ["object", "null"] },
        "m": { "type": ["string", "number", "null"] },
        "l": { "type": "array" },
        "b": { "type": "boolean" },
    });
    let parameters = json!({ "type": "object", "properties": properties });
    let named = |name: &str| Tool {
        name: name.to_owned(),
        parameters: parameters.clone(),
        ..Tool::default()
    };
    vec![named("f"), named("g")]
}

fn options() -> impl Strategy<Value = ReplyOptions> {
    let parse = select(vec![Parse::ReasoningThenCalls, Parse::Reasoning, Parse::Nothing]);
    let parse = prop_oneof![3 => Just(Parse::ReasoningAndCalls), 2 => parse];
    let reasoning =
        select(vec![ReasoningStart::Never, ReasoningStart::Maybe, ReasoningStart::Begun]);
    let stop = prop::collection::vec(part([1, 1, 1]), 0..3);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let stop = prop_oneof![2 => Just(Vec::new()), 1 => stop];
    (parse, reasoning, stop, flags).prop_map(|(parse, reasoning, stop, flags)| ReplyOptions {
        parse,
        tools: Vec::new(),
        reasoning,
        stop: stop.into_iter().map(str::to_owned).collect(),
        include_stop: flags.0,
        min_tokens: 0,
        skip_special: flags.1,
        parallel_calls: flags.2,
    })
}

/// The text in pieces that end at these places. Tags are in one piece unless they are cut.
fn pieces<'t>(text: &'t str, cuts: &[Index]) -> Vec<&'t [u8]> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
    ends.push(text.len());
    ends.sort_unstable();
    let mut start = 0;
    let pieces = ends.into_iter().map(|end| {
        let piece = &text.as_bytes()[start..end];
        start = end;
        piece
    });
    pieces.filter(|piece| !piece.is_empty()).collect()
}

/// Every call's arguments.
fn arguments(events: &[Event]) -> Vec<String> {
    let mut calls: Vec<String> = Vec::new();
    for event in events {
        match event {
            Event::Call { index, .. } => {
                assert_eq!(*index as usize, calls.len());
                calls.push(String::new());
            }
            Event::Arguments { index, text } => {
                assert_eq!(*index as usize + 1, calls.len());
                calls[*index as usize].push_str(text);
            }
            Event::Reasoning(_) | Event::Content(_) => {}
        }
    }
    calls
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn tokens_make_no_difference(
        parts in parts(),
        format in select(&FORMATS[..]),
        options in options(),
        cuts in prop::collection::vec(any::<Index>(), 0..40),
        takes in prop::collection::vec(any::<bool>(), 1..8),
    ) {
        let text = parts.concat();
        let options = ReplyOptions { tools: tools(), ..options };
        let pieces = pieces(&text, &cuts);
        let speaker = SimulatedModel::with_pieces(format, &pieces);
        let whole = speaker.events(options.clone(), &spelled(&text));
        prop_assert_eq!(&whole, &joined(whole.clone()));

        let tokens: Vec<_> = pieces.iter().map(|piece| speaker.piece(piece)).collect();
        prop_assert_eq!(speaker.text.decode(&tokens, false), &*text);
        let mut reply = Reply::new(speaker.text.clone(), options.clone());
        let mut events = Vec::new();
        for (token, take) in tokens.into_iter().zip(takes.iter().cycle()) {
            // A hidden special token is not the same as its letters.
            if speaker.text.is_special(token) {
                return Ok(());
            }
            reply.push(token);
            if *take {
                events.extend(reply.take());
            }
        }
        reply.finish();
        events.extend(reply.take());
        prop_assert_eq!(joined(events), whole.clone());
        for arguments in arguments(&whole) {
            let parsed: Result<Map<String, Value>, _> = serde_json::from_str(&arguments);
            prop_assert!(parsed.is_ok(), "{}", arguments);
        }

        if !parts.contains(&"<|im_end|>") {
            let marked = speaker.events(options, &speaker.marked(&text));
            prop_assert_eq!(marked, whole);
        }
    }
}

/// JSON values with a little nesting.
fn value() -> impl Strategy<Value = Value> {
    let text = "[a-z<>&/\"'\\\\ \n\té世😀]{0,12}";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e6..1e6).prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-z\"]{0,5}", inner), 0..4)
                .prop_map(|entries| Map::from_iter(entries).into()),
        ]
    })
}

/// Arguments that match the schema of the tools here.
fn fitting() -> impl Strategy<Value = Map<String, Value>> {
    let value = value();
    (prop::collection::vec(value, 6), prop::collection::vec(any::<bool>(), 6)).prop_map(
        |(values, present)| {
            let fits = |key: &str, value: &Value| match key {
                "s" => value.is_string(),
                "i" => value.is_i64(),
                "o" => value.is_object() || value.is_null(),
                "m" => value.is_number() || value.is_null(),
                "l" => value.is_array(),
                _ => value.is_boolean(),
            };
            let entries = ["s", "i", "o", "m", "l", "b"].into_iter().zip(values).zip(present);
            let entries = entries.filter(|((key, value), present)| *present && fits(key, value));
            entries.map(|((key, value), _)| (key.to_owned(), value)).collect()
        },
    )
}

/// A call in the right format.
fn written(format: Format, name: &str, arguments: &Map<String, Value>) -> String {
    if format == Format::Hermes {
        let call = json!({ "name": name, "arguments": arguments });
        return format!("<tool_call>\n{call}\n</tool_call>");
    }
    let line = if format == Format::Mimo { "" } else { "\n" };
    let mut call = format!("<tool_call>\n<function={name}>\n");
    for (key, value) in arguments {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        writeln!(call, "<parameter={key}>{line}{text}{line}</parameter>").unwrap();
    }
    call + "</function>\n</tool_call>"
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn calls_come_out_as_they_were_meant(
        format in select(&FORMATS[..3]),
        calls in prop::collection::vec((select(&["f", "g"][..]), fitting(), value()), 1..4),
        said in "[a-z .]{0,10}",
    ) {
        let mut text = said.clone();
        let mut expected = Vec::new();
        for (name, arguments, value) in calls {
            let mut arguments = arguments;
            if format == Format::Hermes {
                arguments.insert("any \"thing\"\n".to_owned(), value);
            }
            text.push('\n');
            text.push_str(&written(format, name, &arguments));
            expected.push(Value::from(arguments));
        }
        let options = ReplyOptions {
            parse: Parse::ReasoningAndCalls,
            tools: tools(),
            parallel_calls: true,
            ..ReplyOptions::default()
        };
        let speaker = SimulatedModel::of_bytes(format);
        let events = speaker.events(options, &speaker.marked(&text));
        let read = arguments(&events).into_iter().map(|a| serde_json::from_str(&a).unwrap());
        prop_assert_eq!(read.collect::<Vec<Value>>(), expected, "{}", text);
        let content = events.iter().filter_map(|event| match event {
            Event::Content(text) => Some(text.as_str()),
            _ => None,
        });
        let content: String = content.collect();
        prop_assert_eq!(content.trim(), said.trim());
    }
}
