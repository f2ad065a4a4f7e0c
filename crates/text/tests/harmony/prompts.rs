//! Rendering of conversations, and detection of the format from the checkpoint's files.

use std::fs;
use std::time::{Duration, UNIX_EPOCH};

use kilotok_text::{
    Conversation, Format, Keep, Message, ReasoningStart, Rendered, Text, TextError, TokenId,
    ToolCall, Wanted,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{CALL, RETURN, SPECIAL, TABLE, TEXT, cases, folder, text_of, tokens, tool};

fn message(value: &Value) -> Message {
    let calls = value["tool_calls"].as_array().into_iter().flatten();
    let tool_calls = calls.map(|call| ToolCall {
        id: text_of(&call["id"]).unwrap(),
        name: text_of(&call["name"]).unwrap(),
        arguments: call["arguments"].clone(),
    });
    Message {
        role: text_of(&value["role"]).unwrap(),
        content: text_of(&value["content"]).unwrap(),
        reasoning: text_of(&value["reasoning"]),
        tool_calls: tool_calls.collect(),
        tool_call_id: text_of(&value["tool_call_id"]),
        name: text_of(&value["name"]),
    }
}

fn conversation(value: &Value) -> Conversation {
    Conversation {
        messages: value["messages"].as_array().unwrap().iter().map(message).collect(),
        tools: value["tools"].as_array().into_iter().flatten().map(tool).collect(),
        variables: value["variables"].as_object().cloned().unwrap_or_default(),
        add_generation_prompt: true,
        continue_final_message: false,
        now: Some(UNIX_EPOCH + Duration::from_secs(TABLE["now"].as_u64().unwrap())),
    }
}
fn encoded(rendered: &Rendered) -> Vec<TokenId> {
    TEXT.encode_rendered(rendered, &Wanted::default()).unwrap()
}

#[test]
fn the_checkpoint_is_recognised() {
    assert_eq!(TEXT.format(), Format::Harmony);
    assert_eq!(TEXT.vocab_count(), 200_019);
    assert_eq!(TEXT.token_id("<|start|>"), Some(200_006));
    assert!(SPECIAL.into_iter().all(|id| TEXT.is_special(id)));
    assert_eq!(TEXT.defaults().end_tokens, [199_999, RETURN, CALL]);
    // No model type, but a template that writes channels.
    let template = "<|start|>assistant<|channel|>analysis<|message|>";
    let files = |name: &str| match name {
        "chat_template.jinja" => Some(template.as_bytes().to_vec()),
        "config.json" => None,
        name => fs::read(folder().join(name)).ok(),
    };
    assert_eq!(Text::from_files(&files).unwrap().format(), Format::Harmony);
    // The format needs its tokens in the vocabulary, whatever the config says.
    let config = |name: &str| match name {
        "tokenizer.json" => fs::read(folder().join("../mimo/tokenizer.json")).ok(),
        name => fs::read(folder().join(name)).ok().filter(|_| name == "config.json"),
    };
    let config = |name: &str| {
        // The end token is not in that vocabulary.
        config(name).map(|file| {
            let text = String::from_utf8(file).unwrap();
            text.replace("200002", "258").into_bytes()
        })
    };
    let text = Text::from_files(&config).unwrap();
    assert_eq!(text.format(), Format::Plain);
    let refusal = text.with_format(Format::Harmony).err().unwrap().to_string();
    assert!(refusal.contains("<|start|>"), "{refusal}");
}

#[test]
fn prompts_are_those_of_the_package() {
    for (name, value) in TABLE["conversations"].as_object().unwrap() {
        let rendered = TEXT.render(&conversation(value)).unwrap();
        let theirs = tokens(&value["tokens"]);
        assert_eq!(rendered.prompt, TEXT.decode(&theirs, false), "{name}");
        assert_eq!(encoded(&rendered), theirs, "{name}");
        assert_eq!(rendered.reasoning, ReasoningStart::Maybe, "{name}");
    }
}

#[test]
fn parts_of_a_prompt_can_be_asked_for() {
    let rendered = TEXT.render(&conversation(&TABLE["conversations"]["tools"])).unwrap();
    let whole = encoded(&rendered);
    for token_max in [0, 1, 2, 50, whole.len() - 1, whole.len(), whole.len() + 1] {
        let of = |keep| {
            let wanted = Wanted { token_max, keep, ..Wanted::default() };
            TEXT.encode_rendered(&rendered, &wanted)
        };
        let count = token_max.min(whole.len());
        assert_eq!(of(Keep::First).unwrap(), whole[..count]);
        assert_eq!(of(Keep::Last).unwrap(), whole[whole.len() - count..]);
        match of(Keep::All) {
            Ok(tokens) => assert_eq!(tokens, whole),
            Err(TextError::TooLong { token_max: told }) => {
                assert_eq!(told, token_max);
                assert!(token_max < whole.len());
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn long_texts_have_the_same_tokens_in_pieces() {
    let words = "Some words, 1234 of them.\nAnd 世界 more; ".repeat(30_000);
    let given = json!({ "messages": [{ "role": "user", "content": words }] });
    let whole = encoded(&TEXT.render(&conversation(&given)).unwrap());
    assert_eq!(TEXT.decode(&whole, false).matches("1234 of them").count(), 30_000);
    assert_eq!(whole.iter().filter(|id| SPECIAL.contains(id)).count(), 7);
}

#[test]
fn the_last_message_can_be_gone_on_with() {
    let of = |last: Value| {
        let given = json!({ "messages": [{ "role": "user", "content": "Hi" }, last] });
        let mut conversation = conversation(&given);
        conversation.add_generation_prompt = false;
        conversation.continue_final_message = true;
        TEXT.render(&conversation)
    };
    for (last, end, start) in [
        (
            json!({ "role": "assistant", "content": "So" }),
            "<|end|><|start|>assistant<|channel|>final<|message|>So",
            ReasoningStart::Never,
        ),
        (
            json!({ "role": "assistant", "content": "", "reasoning": "Hm" }),
            "<|end|><|start|>assistant<|channel|>analysis<|message|>Hm",
            ReasoningStart::Begun,
        ),
        (
            json!({ "role": "assistant", "content": "So", "reasoning": "Hm" }),
            "<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>So",
            ReasoningStart::Never,
        ),
    ] {
        let rendered = of(last).unwrap();
        assert!(rendered.prompt.ends_with(end), "{}", rendered.prompt);
        assert_eq!(rendered.reasoning, start);
    }
    let refusal = of(json!({ "role": "user", "content": "So" })).unwrap_err();
    assert!(matches!(refusal, TextError::Template(_)), "{refusal}");
}

#[test]
fn levels_of_effort_are_the_models_three() {
    let prompt = |variables: Value| {
        let given = json!({ "messages": [], "variables": variables });
        TEXT.render(&conversation(&given)).map(|rendered| rendered.prompt)
    };
    for (variables, level) in [
        (json!({}), "medium"),
        (json!({ "reasoning_effort": null }), "medium"),
        (json!({ "reasoning_effort": "minimal" }), "low"),
        (json!({ "reasoning_effort": "none", "enable_thinking": false }), "low"),
        (json!({ "reasoning_effort": "high", "enable_thinking": false }), "high"),
        (json!({ "reasoning_effort": "xhigh" }), "high"),
        (json!({ "enable_thinking": false }), "low"),
        (json!({ "enable_thinking": true }), "medium"),
    ] {
        let prompt = prompt(variables.clone()).unwrap();
        assert!(prompt.contains(&format!("\n\nReasoning: {level}\n\n")), "{variables}");
    }
    let refusal = prompt(json!({ "reasoning_effort": 3 })).unwrap_err().to_string();
    assert!(refusal.contains("low, medium or high"), "{refusal}");
}

#[test]
fn what_cannot_be_rendered_is_refused() {
    for (message, reason) in [
        (json!({ "role": "tool", "content": "2", "tool_call_id": "1" }), "answers no call"),
        (json!({ "role": "critic", "content": "no" }), "\"critic\""),
    ] {
        let refusal = TEXT.render(&conversation(&json!({ "messages": [message] }))).unwrap_err();
        assert!(refusal.to_string().contains(reason), "{refusal}");
    }
}

#[test]
fn deep_types_are_any() {
    let deep = (0..100).fold(
        json!({ "type": "string" }),
        |inner, _| json!({ "type": "object", "properties": { "x": inner } }),
    );
    let given = json!({ "messages": [], "tools": [{ "name": "f", "parameters": deep }] });
    let prompt = TEXT.render(&conversation(&given)).unwrap().prompt;
    assert!(prompt.contains("x?: any,\n") && prompt.len() < 8000, "{}", prompt.len());
}

#[test]
fn alternatives_of_a_schema_are_one_type() {
    let parameters = json!({ "type": "object", "properties": {
        "x": { "anyOf": [{ "type": "string" }, { "type": ["integer", "null"] }] },
    } });
    let given = json!({ "messages": [], "tools": [{ "name": "f", "parameters": parameters }] });
    let prompt = TEXT.render(&conversation(&given)).unwrap().prompt;
    assert!(prompt.contains("type f = (_: {\nx?: string | number | null,\n}) => any;"), "{prompt}");
}

/// Text that a user may write, including the format's own tokens.
fn user_text() -> impl Strategy<Value = String> {
    let words =
        ["<|start|>", "<|end|>", "<|mess", "age|>", "<|channel|>", "assistant", "to=x", "é世 "];
    prop::collection::vec(prop::sample::select(words.to_vec()), 0..12)
        .prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn no_text_of_a_conversation_becomes_a_special_token(
        texts in prop::collection::vec(user_text(), 8),
    ) {
        let [system, user, name, reasoning, said, called, argument, result] = &texts[..] else {
            unreachable!("there are eight")
        };
        let given = json!({
            "messages": [
                { "role": "system", "content": system },
                { "role": "user", "content": user, "name": name },
                { "role": "assistant", "content": said, "reasoning": reasoning, "tool_calls": [
                    { "id": "1", "name": called, "arguments": { argument: argument } },
                ] },
                { "role": "tool", "content": result, "tool_call_id": "1" },
            ],
            "tools": [{ "name": called, "description": user, "parameters": { "type": "object",
                "properties": { argument: { "type": "string", "description": said } } } }],
            "variables": { "model_identity": system },
        });
        let rendered = TEXT.render(&conversation(&given)).unwrap();
        let tokens = encoded(&rendered);
        prop_assert_eq!(TEXT.decode(&tokens, false), rendered.prompt);
        let special = tokens.iter().filter(|id| SPECIAL.contains(id)).count();
        // Three tokens for each message; a channel each; for the call also the type; and the last
        // start.
        let parts = [reasoning, said].iter().filter(|text| !text.is_empty()).count();
        prop_assert_eq!(special, 3 * 3 + 4 * parts + 5 + 4 + 1);
    }
}
