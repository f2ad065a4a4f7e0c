//! Prompts, tokens and decoded text equal those of transformers for the same files. The fixtures
//! and the script that writes them are in `tests/text/`.

use std::fs;
use std::time::{Duration, UNIX_EPOCH};

use kilotok_text::{Conversation, Format, Message, TextError, TokenId, Tool, ToolCall, Wanted};
use serde_json::{Map, Value};

use crate::{fixture, open, with_files};

const MODELS: [(&str, Format); 3] =
    [("mimo", Format::Mimo), ("qwen3_coder", Format::Qwen3Coder), ("hermes", Format::Hermes)];

fn read(path: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(path)).unwrap()).unwrap()
}

fn tokens(hexadecimal: &Value) -> Vec<TokenId> {
    let digits = hexadecimal.as_str().unwrap();
    let starts = (0..digits.len()).step_by(3);
    starts.map(|at| TokenId::from_str_radix(&digits[at..at + 3], 16).unwrap()).collect()
}

fn text_of(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn message(value: &Value) -> Message {
    let calls = value["tool_calls"].as_array().into_iter().flatten();
    let tool_calls = calls.map(|call| ToolCall {
        id: text_of(&call["id"]).unwrap(),
        name: text_of(&call["function"]["name"]).unwrap(),
        arguments: call["function"]["arguments"].clone(),
    });
    Message {
        role: text_of(&value["role"]).unwrap(),
        content: text_of(&value["content"]).unwrap(),
        reasoning: text_of(&value["reasoning_content"]),
        tool_calls: tool_calls.collect(),
        tool_call_id: text_of(&value["tool_call_id"]),
        name: text_of(&value["name"]),
    }
}

fn tool(value: &Value) -> Tool {
    let function = &value["function"];
    Tool {
        name: text_of(&function["name"]).unwrap(),
        description: text_of(&function["description"]),
        parameters: function["parameters"].clone(),
        ..Tool::default()
    }
}

fn conversation(value: &Value, now: u64) -> Conversation {
    let mut variables = value[1].as_object().unwrap().clone();
    let tools = variables.remove("tools").unwrap_or_default();
    let mut flag = |name| variables.remove(name) == Some(true.into());
    Conversation {
        messages: value[0].as_array().unwrap().iter().map(message).collect(),
        tools: tools.as_array().into_iter().flatten().map(tool).collect(),
        add_generation_prompt: flag("add_generation_prompt"),
        continue_final_message: flag("continue_final_message"),
        variables,
        now: Some(UNIX_EPOCH + Duration::from_secs(now)),
    }
}

/// In this fixture a user writes special tokens, which transformers treats as such.
const FORGED: &str = "markup_in_text";

#[test]
fn prompts_and_tokens_are_those_of_transformers() {
    let table = read("conversations.json");
    let now = table["now"].as_u64().unwrap();
    for (model, format) in MODELS {
        let text = open(model);
        assert_eq!(text.format(), format);
        let expected = &read(&format!("{model}/expected.json"))["conversations"];
        for (name, value) in table["conversations"].as_object().unwrap() {
            let (rendered, expected) = (text.render(&conversation(value, now)), &expected[name]);
            match (rendered, expected["prompt"].as_str()) {
                (Ok(rendered), Some(prompt)) => {
                    assert_eq!(rendered.prompt, prompt, "{model}, {name}");
                    let encoded = text.encode_rendered(&rendered, &Wanted::default()).unwrap();
                    let theirs = tokens(&expected["tokens"]);
                    if name == FORGED {
                        assert_eq!(text.encode(prompt).unwrap(), theirs, "{model}");
                        assert_ne!(encoded, theirs, "{model}");
                    } else {
                        assert_eq!(encoded, theirs, "{model}, {name}");
                    }
                }
                (Err(TextError::Template(reason)), None) => {
                    let error = expected["error"].as_str().unwrap();
                    let same = reason == error || reason.contains("continue_final_message");
                    assert!(same, "{model}, {name}: {reason:?} instead of {error:?}");
                }
                (result, _) => panic!("{model}, {name}: {result:?} instead of {expected}"),
            }
        }
    }
}

#[test]
fn texts_become_the_same_tokens() {
    for (model, _) in MODELS {
        let text = open(model);
        for row in read(&format!("{model}/expected.json"))["texts"].as_array().unwrap() {
            let source = row[0].as_str().unwrap();
            assert_eq!(text.encode(source).unwrap(), tokens(&row[1]), "{model}, {source:?}");
            assert_eq!(text.encode_plain(source).unwrap(), tokens(&row[2]), "{model}, {source:?}");
        }
    }
}

#[test]
fn tokens_become_the_same_texts() {
    for (model, _) in MODELS {
        let text = open(model);
        for row in read(&format!("{model}/expected.json"))["decodes"].as_array().unwrap() {
            let tokens = tokens(&row[0]);
            assert_eq!(text.decode(&tokens, false), row[1], "{model}, {tokens:?}");
            assert_eq!(text.decode(&tokens, true), row[2], "{model}, {tokens:?}");
        }
    }
}

/// Templates that minijinja renders differently, without a remedy. All of this is rare in
/// templates.
const DIFFERENT: [&str; 11] = [
    // Floats with an exponent inside a list, and characters that Python escapes in one.
    "{{ floats }}",
    "{{ floats | string }}",
    "{{ ['\\u200b'] }}",
    "{{ spaced.split(none, 1) }}",
    "{{ lines.splitlines(true) }}",
    // minijinja has no `%` operator for strings, no unary plus, and no toy functions.
    "{{ '%s is %s' % ('a', 1) }}",
    "{{ '%.2f' % 1.005 }}",
    "{{ -number }}{{ +number }}{{ number|abs }}{{ not yes }}",
    "{{ lipsum is defined }}{{ cycler is defined }}",
    // Part of inheritance, which chat templates do not use: there is only one file.
    "{% block a %}in{% endblock %}",
    // Python refuses it.
    "{% for x in nothing %}a{% endfor %}",
];

/// The output of each template, or `None` if it is refused.
fn render_alone(template: &str, variables: &Map<String, Value>, now: u64) -> Option<String> {
    let text = with_files(&[("chat_template.jinja", template)]).ok()?;
    let conversation = Conversation {
        variables: variables.clone(),
        now: Some(UNIX_EPOCH + Duration::from_secs(now)),
        ..Conversation::default()
    };
    text.render(&conversation).ok().map(|rendered| rendered.prompt)
}

#[test]
fn jinja_is_pythons() {
    let fixture = read("jinja.json");
    let variables = fixture["variables"].as_object().unwrap();
    let now = fixture["now"].as_u64().unwrap();
    let mut differences = Vec::new();
    for row in fixture["table"].as_array().unwrap() {
        let template = row[0].as_str().unwrap();
        let ours = render_alone(template, variables, now);
        let equal = ours.as_deref() == row[1].as_str();
        if equal == DIFFERENT.contains(&template) {
            differences.push(format!("{template}\n  ours   {ours:?}\n  python {}", row[1]));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
