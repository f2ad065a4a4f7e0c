//! Tool calls in each model's format, with arguments that follow their schemas.

use jsonschema::Validator;
use serde_json::{Value, json};

use super::{CALL, Dice, END_CALL, END_THINK, ENDS, Model, listed, walk};
use crate::grammar::{Constraint, GrammarError};
use crate::{Format, Tool};

fn tools() -> Vec<Tool> {
    let weather = json!({
        "type": "object",
        "properties": {
            "city": { "type": "string" },
            "days": { "type": "integer", "minimum": 1, "maximum": 14 },
            "unit": { "enum": ["celsius", "fahrenheit"] },
            "where": { "$ref": "#/$defs/place" },
            "flags": { "type": "array", "items": { "type": "boolean" } },
            "limit": { "type": ["integer", "null"], "minimum": 0, "maximum": 9 },
        },
        "required": ["city", "where"],
        "additionalProperties": false,
        "$defs": { "place": {
            "type": "object",
            "properties": { "name": { "type": "string" }, "inner": { "$ref": "#/$defs/place" } },
            "required": ["name"],
            "additionalProperties": false,
        } },
    });
    let tool = |name: &str, parameters: Value| Tool {
        name: name.to_owned(),
        parameters,
        strict: true,
        ..Tool::default()
    };
    vec![tool("get_weather", weather), tool("now", Value::Null), tool("get_time", json!({}))]
}

fn calls(format: Format, parallel: bool) -> Constraint {
    Constraint::Calls { tools: tools(), format, parallel }
}

const MIMO: &str = "<tool_call>\n<function=get_weather>\n\
    <parameter=city>S\u{e3}o <b>\n</param</parameter>\n\
    <parameter=days>3</parameter>\n<parameter=unit>celsius</parameter>\n\
    <parameter=where>{\"name\": \"\"}</parameter>\n</function>\n</tool_call>";
const CODER: &str = "<tool_call>\n<function=get_weather>\n\
    <parameter=city>\n\nS\u{e3}o\n\n</parameter>\n\
    <parameter=where>\n{\n  \"name\": \"x\",\n  \"inner\": {\"name\": \"\"}\n}\n</parameter>\n\
    </function>\n</tool_call>";
const HERMES: &str = "<tool_call>\n{\"name\": \"get_weather\", \
    \"arguments\": {\"city\": \"Bern\", \"unit\": \"celsius\", \"where\": {\"name\": \"x\"}}}\n\
    </tool_call>";

#[test]
fn calls_are_written_as_the_model_writes_them() {
    for model in [Model::bytes(), Model::pieces(), Model::with(&super::pieces(), false)] {
        for (format, call, between) in [
            (Format::Mimo, MIMO, ""),
            (Format::Qwen3Coder, CODER, "\n"),
            (Format::Hermes, HERMES, "\n"),
        ] {
            let one = model.compile(&calls(format, false)).unwrap();
            let many = model.compile(&calls(format, true)).unwrap();
            let twice = format!("{call}{between}{call}");
            assert!(model.takes(&one, call) && model.takes(&many, call), "{format:?}: {call}");
            assert!(!model.takes(&one, &twice), "{format:?}");
            assert!(model.takes(&many, &twice), "{format:?}");
            // Only one of them is without what would be replaced.
            let odd = if format == Format::Hermes { " " } else { "" };
            for bad in [
                String::new(),
                "Sure! ".to_owned() + call,
                format!("{call} "),
                call.replace("get_weather", "get_wether"),
                call.replace("celsius", "kelvin")
                    + if format == Format::Qwen3Coder { "x" } else { "" },
                call.replace("city", "town"),
                call.replace("{\"name\": \"\"", "{\"name\": \"</parameter>\"") + odd,
                call.replace("name\": \"", "name\": 5\""),
                call.replace("</tool_call>", ""),
            ] {
                assert!(!model.takes(&one, &bad), "{format:?}: {bad}");
            }
        }
    }
}

#[test]
fn after_the_calls_only_the_end_is_left() {
    let model = Model::pieces();
    for (format, call) in
        [(Format::Mimo, MIMO), (Format::Qwen3Coder, CODER), (Format::Hermes, HERMES)]
    {
        let mut grammar = model.compile(&calls(format, false)).unwrap();
        assert_eq!(listed(&grammar.masks(&[]).unwrap().masks[0]), [CALL]);
        let tokens = model.encode(call);
        assert_eq!(tokens.last(), Some(&END_CALL));
        let masks = grammar.masks(&tokens).unwrap();
        assert_eq!(masks.draft_count as usize, tokens.len());
        assert_eq!(listed(masks.masks.last().unwrap()), ENDS);
        // The grammar accepts markup only as its token, never spelled out.
        let spelled: Vec<u32> = b"<tool_call>".iter().map(|&byte| u32::from(byte)).collect();
        assert_eq!(grammar.masks(&spelled).unwrap().draft_count, 0);
        let mut grammar = model.grammars.compile(&calls(format, false), true, &|| false).unwrap();
        let thought = [model.encode("hm <tool_call>"), vec![END_THINK], tokens].concat();
        assert_eq!(grammar.masks(&thought).unwrap().draft_count as usize, thought.len());
        grammar.accept(&thought).unwrap();
        assert_eq!(listed(&grammar.masks(&[]).unwrap().masks[0]), ENDS);
    }
}

/// A reader of replies finds the same calls.
#[test]
fn random_calls_follow_their_schemas() {
    let tools = tools();
    let oracles: Vec<Validator> = tools
        .iter()
        .map(|tool| match &tool.parameters {
            Value::Null => jsonschema::validator_for(&json!({ "type": "object" })).unwrap(),
            schema => jsonschema::validator_for(schema).unwrap(),
        })
        .collect();
    for model in [Model::pieces(), Model::with(&super::pieces(), false)] {
        for format in [Format::Mimo, Format::Qwen3Coder, Format::Hermes] {
            let grammar = model.compile(&calls(format, true)).unwrap();
            for seed in 0..15 {
                let mut dice = Dice::new(seed + 77);
                let reply = walk(&model, &mut grammar.clone(), &mut dice, 120);
                let text = model.text(&reply);
                let found = read(format, &text);
                assert!(!found.is_empty());
                let (heard, content) = super::text::read(&text, format, tools.clone().into());
                let parsed = |arguments: String| serde_json::from_str(&arguments).unwrap();
                let heard = heard.into_iter().map(|(name, arguments)| (name, parsed(arguments)));
                assert_eq!(heard.collect::<Vec<_>>(), found, "{format:?}: {text}");
                assert_eq!(content.trim(), "", "{format:?}: {text}");
                for (name, arguments) in found {
                    let which = tools.iter().position(|tool| tool.name == name).unwrap();
                    let valid = oracles[which].is_valid(&arguments);
                    assert!(valid, "{format:?}: {name} {arguments} in {text}");
                }
            }
        }
    }
}

/// Parses calls with as little code as possible.
fn read(format: Format, text: &str) -> Vec<(String, Value)> {
    let texts = ["city", "unit"];
    let mut rest = text;
    let mut found = Vec::new();
    if format == Format::Hermes {
        // A string may contain the closing tag.
        while let Some(json) = rest.trim_start_matches('\n').strip_prefix("<tool_call>\n") {
            let mut values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
            let call = values.next().unwrap().unwrap();
            rest = json[values.byte_offset()..].strip_prefix("\n</tool_call>").unwrap();
            found.push((call["name"].as_str().unwrap().to_owned(), call["arguments"].clone()));
        }
        assert_eq!(rest, "");
        return found;
    }
    let pad = if format == Format::Qwen3Coder { "\n" } else { "" };
    while let Some(call) = rest.trim_start_matches('\n').strip_prefix("<tool_call>\n<function=") {
        let (name, mut inner) = call.split_once(">\n").unwrap();
        let mut arguments = serde_json::Map::new();
        while let Some(parameter) = inner.strip_prefix("<parameter=") {
            let (key, value) = parameter.split_once('>').unwrap();
            let (value, after) = if texts.contains(&key) {
                let (value, after) = value.split_once("</parameter>").unwrap();
                let value = value.strip_prefix(pad).unwrap().strip_suffix(pad).unwrap();
                (Value::from(value), after)
            } else if ["days", "limit"].contains(&key) {
                let (value, after) = value.split_once("</parameter>").unwrap();
                (value.trim().parse().unwrap(), after)
            } else {
                let mut values = serde_json::Deserializer::from_str(value).into_iter::<Value>();
                let json = values.next().unwrap().unwrap();
                let after = value[values.byte_offset()..].trim_start();
                (json, after.strip_prefix("</parameter>").unwrap())
            };
            inner = after.strip_prefix('\n').unwrap();
            arguments.insert(key.to_owned(), value);
        }
        rest = inner.strip_prefix("</function>\n</tool_call>").unwrap();
        found.push((name.to_owned(), arguments.into()));
    }
    assert_eq!(rest, "");
    found
}

fn one_argument(schema: &Value, strict: bool) -> Tool {
    let parameters = json!({
        "type": "object",
        "properties": { "x": schema },
        "required": ["x"],
        "additionalProperties": false,
    });
    Tool { name: "f".to_owned(), parameters, strict, ..Tool::default() }
}

/// Schemas of an argument that is written verbatim, with texts that match and texts that do not.
/// Random texts would hardly match, except where only the length counts.
fn texts() -> Vec<(Value, Vec<&'static str>, Vec<&'static str>)> {
    let text = |schema: Value| {
        let mut whole = json!({ "type": "string" });
        whole.as_object_mut().unwrap().extend(schema.as_object().unwrap().clone());
        whole
    };
    vec![
        (text(json!({ "pattern": "^[a-c]{2}/x$" })), vec!["ab/x"], vec!["abc/x", "ab/", ""]),
        (
            text(json!({ "pattern": "b\\d", "maxLength": 9 })),
            vec!["b1", "a\n<b0\n"],
            vec!["ab", "b\u{661}"],
        ),
        (
            text(json!({ "pattern": "^a|b$|^(c|d$)", "maxLength": 5 })),
            vec!["a-", "-b", "c-", "-a\nb", "d"],
            vec!["da"],
        ),
        (
            text(json!({ "minLength": 2, "maxLength": 3 })),
            vec!["\u{e3}\u{e3}", "<<<"],
            vec!["a", "abcd"],
        ),
        (
            text(json!({ "pattern": "(^a|b)c(d$|)", "maxLength": 5 })),
            vec!["acd", "xbc", "bcx"],
            vec!["xac", "bd"],
        ),
        (text(json!({ "pattern": "^$" })), vec![""], vec!["a"]),
        (text(json!({ "maxLength": 1 })), vec!["", "\u{1f600}"], vec!["ab"]),
        (text(json!({ "format": "date" })), vec!["2024-02-29"], vec!["2023-02-29", "today"]),
        (
            text(json!({ "format": "email", "pattern": "\\.ch$", "maxLength": 9 })),
            vec!["a.b@c.ch"],
            vec!["a.b@c.de", "a@@c.ch", "aaaa@bb.ch"],
        ),
        (
            text(json!({ "allOf": [{ "pattern": "a" }, { "pattern": "b" }], "maxLength": 4 })),
            vec!["ba", "a b"],
            vec!["a", "b"],
        ),
        (
            json!({ "anyOf": [{ "type": "string", "format": "uuid" }, { "type": "null" }] }),
            vec!["123e4567-e89b-12d3-a456-426614174000", "null"],
            vec!["nul", "123e4567"],
        ),
        (
            json!({ "type": ["string", "integer", "boolean"], "pattern": "^v", "maxLength": 3 }),
            vec!["v1", "-10", "true"],
            vec!["01", "1.5", "True", "v123"],
        ),
        (
            json!({ "anyOf": [{ "enum": ["a b", "c"] }, { "type": "number" }, { "const": null }] }),
            vec!["a b", "c", "1.5e3", "null"],
            vec!["a", "d", "none"],
        ),
        (json!({ "enum": ["</parameter>", "a"] }), vec!["a"], vec!["b"]),
    ]
}

#[test]
fn arguments_written_as_text_follow_their_schemas() {
    let model = Model::pieces();
    for (schema, yes, no) in texts() {
        let oracle = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        let is_valid = |text: &str| {
            let other = serde_json::from_str(text).is_ok_and(|value| oracle.is_valid(&value));
            other || oracle.is_valid(&text.into())
        };
        assert!(yes.iter().all(|text| is_valid(text)), "{schema}");
        assert!(!no.iter().any(|text| is_valid(text)), "{schema}");
        for (format, pad) in [(Format::Mimo, ""), (Format::Qwen3Coder, "\n")] {
            let tools = vec![one_argument(&schema, true)];
            let grammar = model.compile(&Constraint::Calls { tools, format, parallel: false });
            let grammar = grammar.unwrap();
            let open = format!("<tool_call>\n<function=f>\n<parameter=x>{pad}");
            let close = format!("{pad}</parameter>\n</function>\n</tool_call>");
            let takes = |text: &str| model.takes(&grammar, &format!("{open}{text}{close}"));
            for text in &yes {
                assert!(takes(text), "{format:?} {schema}: {text:?}");
            }
            for text in &no {
                assert!(!takes(text), "{format:?} {schema}: {text:?}");
            }
            for seed in 0..20 {
                let reply = walk(&model, &mut grammar.clone(), &mut Dice::new(seed + 5), 40);
                let reply = model.text(&reply);
                let text = reply.strip_prefix(&open).and_then(|rest| rest.strip_suffix(&close));
                assert!(is_valid(text.unwrap()), "{format:?} {schema}: {reply}");
            }
        }
    }
}

#[test]
fn what_arguments_written_as_text_cannot_follow_is_said() {
    let model = Model::pieces();
    for (schema, what) in [
        (json!({ "enum": ["</parameter>"] }), "a list without a value that can be written"),
        (json!({ "type": ["string", "array"], "maxLength": 3 }), "arrays beside such strings"),
        (
            json!({ "anyOf": [{ "type": "string", "format": "date" }, { "type": "object" }] }),
            "objects beside such strings",
        ),
    ] {
        let compile = |strict: bool| {
            let tools = vec![one_argument(&schema, strict)];
            model.compile(&Constraint::Calls { tools, format: Format::Mimo, parallel: false })
        };
        let refused = compile(true).err().unwrap().to_string();
        for said in ["tool \"f\": ", what, "#/properties/x", "do without `strict`"] {
            assert!(refused.contains(said), "{refused}");
        }
        let warned = compile(false).unwrap();
        assert!(warned.warnings()[0].contains(what), "{:?}", warned.warnings());
    }
}

#[test]
fn calls_that_cannot_be_are_refused() {
    let model = Model::bytes();
    let error = |tools: Vec<Tool>, format: Format| {
        model
            .compile(&Constraint::Calls { tools, format, parallel: true })
            .err()
            .unwrap()
            .to_string()
    };
    let named = |name: &str, parameters: Value| {
        vec![Tool { name: name.to_owned(), parameters, strict: true, ..Tool::default() }]
    };
    assert!(error(Vec::new(), Format::Mimo).contains("no tools"));
    assert!(error(tools(), Format::Plain).contains("no format for tool calls"));
    assert!(error(named("a>b", Value::Null), Format::Mimo).contains("\"a>b\" cannot be written"));
    let text = error(named("f", json!({ "properties": { "x": { "not": {} } } })), Format::Hermes);
    assert!(text.contains("tool \"f\"") && text.contains("#/properties/x/not"), "{text}");
    let many = vec![named("f", Value::Null).remove(0); 600];
    assert!(matches!(
        model.compile(&Constraint::Calls { tools: many, format: Format::Mimo, parallel: true }),
        Err(GrammarError::TooLarge(_))
    ));
}

#[test]
fn tools_with_open_arguments_take_any() {
    let model = Model::pieces();
    let tool = |parameters: Value| Tool { name: "f".to_owned(), parameters, ..Tool::default() };
    let open = tool(json!({ "type": "object", "additionalProperties": true }));
    let either = tool(json!({ "anyOf": [
        { "properties": { "a": { "type": "integer" } }, "required": ["a"] },
        { "properties": { "b": { "anyOf": [{ "type": "string" }, { "type": "null" }] } } },
    ] }));
    let call = |inner: &str| format!("<tool_call>\n<function=f>\n{inner}</function>\n</tool_call>");
    for (tool, yes, no) in [
        (
            open,
            "<parameter=any>x</parameter>\n<parameter=y></parameter>\n",
            "<parameter=>x</parameter>\n",
        ),
        (
            either,
            "<parameter=a>1</parameter>\n<parameter=b>text</parameter>\n",
            "<parameter=a>x</parameter>\n",
        ),
    ] {
        let constraint =
            Constraint::Calls { tools: vec![tool], format: Format::Mimo, parallel: false };
        let grammar = model.compile(&constraint).unwrap();
        assert!(model.takes(&grammar, &call(yes)), "{yes}");
        assert!(model.takes(&grammar, &call("")));
        assert!(!model.takes(&grammar, &call(no)), "{no}");
    }
}

#[test]
fn a_reply_of_a_shape_may_be_calls_instead() {
    let schema = json!({
        "type": "object",
        "properties": { "name": { "type": "string" }, "n": { "type": "integer" } },
        "required": ["name"],
        "additionalProperties": false,
    });
    let shapes = [
        (super::json(schema), "{\"name\": \"<function=now>\", \"n\": 1}", "{\"n\": 1}"),
        (Constraint::Regex("[a-z{<]{3,9}".to_owned()), "a<{z", "a<{z0"),
        (Constraint::Lark("start: \"yes\" | CALL\nCALL: /c+/".to_owned()), "cc", "no"),
        (Constraint::Lark("root ::= \"yes\" | call\ncall ::= \"c\"+".to_owned()), "yes", "no"),
        (Constraint::Choice(vec!["<".to_owned(), "{}".to_owned()]), "{}", ""),
    ];
    for model in [Model::pieces(), Model::with(&super::pieces(), false)] {
        for (shape, yes, no) in &shapes {
            for (format, call) in
                [(Format::Mimo, MIMO), (Format::Qwen3Coder, CODER), (Format::Hermes, HERMES)]
            {
                let shape = Box::new(shape.clone());
                let either =
                    Constraint::ShapeOrCalls { shape, tools: tools(), format, parallel: false };
                let grammar = model.compile(&either).unwrap();
                assert!(model.takes(&grammar, call), "{format:?}: {either:?}");
                assert!(model.takes(&grammar, yes), "{format:?}: {either:?}");
                let text = model.text(&model.encode(yes));
                for bad in [(*no).to_owned(), text + call, format!("{call}{yes}")] {
                    assert!(!model.takes(&grammar, &bad), "{format:?}: {bad} {either:?}");
                }
            }
        }
    }
    // A user's grammar cannot refer to the grammar for calls.
    let curious = Constraint::Lark("start: \"a\" | @calls".to_owned());
    let error = Model::bytes().compile(&curious).err().unwrap().to_string();
    assert!(error.contains("refers to another"), "{error}");
    let plain = Constraint::ShapeOrCalls {
        shape: Box::new(Constraint::JsonObject),
        tools: tools(),
        format: Format::Plain,
        parallel: true,
    };
    let grammar = Model::bytes().compile(&plain).unwrap();
    assert!(Model::bytes().takes(&grammar, "{}"));
}

#[test]
fn either_half_of_a_walk_is_whole() {
    let model = Model::pieces();
    let shape = json!({ "type": "object", "properties": { "x": { "type": "boolean" } },
        "required": ["x"], "additionalProperties": false });
    let oracle = jsonschema::validator_for(&shape).unwrap();
    for format in [Format::Mimo, Format::Qwen3Coder, Format::Hermes] {
        let constraint = Constraint::ShapeOrCalls {
            shape: Box::new(super::json(shape.clone())),
            tools: tools(),
            format,
            parallel: true,
        };
        let grammar = model.compile(&constraint).unwrap();
        let (mut shaped, mut called) = (0, 0);
        for seed in 0..40 {
            let reply = walk(&model, &mut grammar.clone(), &mut Dice::new(seed), 60);
            let text = model.text(&reply);
            if text.starts_with("<tool_call>") {
                assert!(!read(format, &text).is_empty());
                called += 1;
            } else {
                assert!(oracle.is_valid(&serde_json::from_str(&text).unwrap()), "{text}");
                shaped += 1;
            }
        }
        assert!(shaped > 0 && called > 0, "{shaped} and {called}");
    }
}
