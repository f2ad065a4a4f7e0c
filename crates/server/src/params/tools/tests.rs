//! How the tools and tool choices of all three APIs are read.

use super::*;
use crate::chat::tools::tools as chat_tools;
use crate::messages::tools::tools as messages_tools;
use crate::responses::tools::tools as responses_tools;

fn chat(tools: &Value, choice: &Value) -> Result<Tools, ApiError> {
    let tools = serde_json::from_value(tools.clone()).unwrap();
    chat_tools(tools, serde_json::from_value(choice.clone()).unwrap(), None)
}

fn responses(tools: &Value, choice: &Value) -> Result<Tools, ApiError> {
    let tools = serde_json::from_value(tools.clone()).unwrap();
    responses_tools(tools, serde_json::from_value(choice.clone()).unwrap(), None)
}

fn messages(tools: &Value, choice: &Value) -> Result<Tools, ApiError> {
    let tools = serde_json::from_value(tools.clone()).unwrap();
    messages_tools(tools, serde_json::from_value(choice.clone()).unwrap())
}

fn names(tools: &[Tool]) -> Vec<&str> {
    tools.iter().map(|tool| tool.name.as_str()).collect()
}

fn three() -> Value {
    json!([
        {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "sub"}},
        {"type": "custom", "custom": {"name": "note"}},
    ])
}

#[test]
fn choices_fall_into_place() {
    let all = ["add", "sub", "note"];
    let allowed = |mode: &str, tools: Value| {
        let allowed = json!({"mode": mode, "tools": tools});
        json!({"type": "allowed_tools", "allowed_tools": allowed})
    };
    let sub = json!({"type": "function", "function": {"name": "sub"}});
    let note = json!({"type": "custom", "custom": {"name": "note"}});
    for (choice, usage, shown, callable) in [
        (json!(null), CallMode::Allowed, &all[..], &all[..]),
        (json!("auto"), CallMode::Allowed, &all, &all),
        (json!("none"), CallMode::Never, &[], &[]),
        (json!("required"), CallMode::Required, &all, &all),
        (sub.clone(), CallMode::Required, &all, &["sub"]),
        (note.clone(), CallMode::Required, &all, &["note"]),
        (allowed("auto", json!([note, sub])), CallMode::Allowed, &all, &["sub", "note"]),
        (allowed("required", json!([sub, {"type": "mcp"}])), CallMode::Required, &all, &["sub"]),
        (allowed("auto", json!([{"type": "web_search"}])), CallMode::Never, &[], &[]),
    ] {
        let tools = chat(&three(), &choice).unwrap();
        assert_eq!(tools.calls, usage, "{choice}");
        assert_eq!(names(&tools.shown()), shown, "{choice}");
        assert_eq!(names(&tools.callable()), callable, "{choice}");
        assert_eq!(tools.required().is_some(), usage == CallMode::Required, "{choice}");
    }
    assert!(!chat(&json!(null), &json!("auto")).unwrap().may_call());
    assert!(chat(&json!(null), &json!("none")).is_ok());
}

#[test]
fn senseless_choices_are_refused() {
    let allowed = |mode: &str, name: &str| {
        let tools = json!([{"type": "function", "function": {"name": name}}]);
        json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}})
    };
    for choice in [
        json!("some"),
        json!({"type": "custom", "custom": {"name": "add"}}),
        json!({"type": "function", "function": {"name": "mul"}}),
        json!({"type": "function"}),
        json!({"type": "web_search"}),
        allowed("auto", "mul"),
        allowed("any", "add"),
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}),
    ] {
        let error = chat(&three(), &choice).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("tool_choice"), "{choice}");
    }
    assert!(chat(&json!([]), &json!("required")).is_err());
}

#[test]
fn a_choice_of_what_is_left_out_says_why() {
    let hosted = json!([{"type": "web_search"}]);
    let versioned = json!([{"type": "web_search_20250305", "name": "web_search"}]);
    for error in [
        responses(&hosted, &json!("required")),
        responses(&hosted, &json!({"type": "web_search"})),
        messages(&versioned, &json!({"type": "any"})),
        messages(&versioned, &json!({"type": "tool", "name": "web_search"})),
    ] {
        let error = error.unwrap_err();
        assert_eq!(error.param.as_deref(), Some("tool_choice"));
        assert!(error.message.contains("web_search"), "{}", error.message);
        assert!(error.message.contains("vendor's service"), "{}", error.message);
    }
}

#[test]
fn tools_are_checked() {
    for (tool, param) in [
        (json!({"type": "function"}), "tools[0].function"),
        (json!({"type": "function", "function": {"name": "a b"}}), "tools[0].function.name"),
        (json!({"type": "function", "function": {"name": "<x>"}}), "tools[0].function.name"),
        (
            json!({"type": "function", "function": {"name": "a", "parameters": 3}}),
            "tools[0].function.parameters",
        ),
        (json!({"type": "custom"}), "tools[0].custom"),
        (json!({"type": "custom", "custom": {"name": ""}}), "tools[0].custom.name"),
    ] {
        let error = chat(&json!([tool]), &json!(null)).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param));
    }
}

#[test]
fn custom_tools_have_grammars() {
    let with = |format: Value| {
        let tool = json!({"type": "custom", "name": "note", "format": format});
        responses(&json!([tool]), &json!(null))
    };
    let input = |format: Value| with(format).unwrap().callable().remove(0).input;
    let lark = || Some(TextGrammar::Lark("start: \"a\"".into()));
    for (format, grammar) in [
        (json!(null), None),
        (json!({"type": "text"}), None),
        (json!({"type": "grammar", "syntax": "lark", "definition": "start: \"a\""}), lark()),
        (
            json!({"type": "grammar",
                   "grammar": {"syntax": "lark", "definition": "start: \"a\""}}),
            lark(),
        ),
        (
            json!({"type": "grammar", "syntax": "regex", "definition": "a"}),
            Some(TextGrammar::Regex("a".into())),
        ),
    ] {
        assert_eq!(input(format), kilotok_text::ToolInput::Text(grammar));
    }
    for (format, place) in [
        (json!({"type": "json"}), "type"),
        (json!({"type": "grammar", "syntax": "lark"}), "definition"),
        (json!({"type": "grammar", "syntax": "abnf", "definition": "a"}), "syntax"),
    ] {
        let error = with(format).unwrap_err();
        assert_eq!(error.param.unwrap(), format!("tools[0].format.{place}"));
    }
}

#[test]
fn namespaces_are_beginnings_of_names() {
    let function = |name: &str| json!({"type": "function", "name": name, "description": name});
    let tools = json!([
        {"type": "namespace", "name": "a", "description": "All a.", "tools": [
            {"type": "web_search"}, function("f"), function("g"), {"type": "custom", "name": "c"},
        ]},
        {"type": "namespace", "name": "b__", "tools": [function("f")]},
        function("f"),
        function("a__f"),
    ]);
    let all = responses(&tools, &json!("auto")).unwrap();
    let shown = all.shown();
    assert_eq!(names(&shown), ["a__f_", "a__g", "a__c", "b__f", "f", "a__f"]);
    assert_eq!(shown[0].description.as_deref(), Some("f\n\nAll tools of a: All a."));
    assert_eq!(shown[1].description.as_deref(), Some("g"));
    for (name, told) in [
        ("a__f_", (Some("a"), "f")),
        ("b__f", (Some("b__"), "f")),
        ("f", (None, "f")),
        ("a__f", (None, "a__f")),
    ] {
        let (namespace, told_name) = all.names.of_client(name);
        assert_eq!((namespace.as_deref(), told_name.as_str()), told);
        assert_eq!(all.names.of_model(namespace, told_name), name);
    }
    assert_eq!(all.names.of_model(Some("gone".into()), "f".into()), "gone__f");
    for (choice, name) in [
        (json!({"type": "function", "name": "f", "namespace": "a"}), "a__f_"),
        (json!({"type": "function", "name": "f"}), "f"),
        (json!({"type": "function", "name": "b__f"}), "b__f"),
        (json!({"type": "function", "name": "g"}), "a__g"),
        (json!({"type": "custom", "name": "c"}), "a__c"),
    ] {
        let allowed = json!({"type": "allowed_tools", "mode": "auto", "tools": [choice]});
        for choice in [&choice, &allowed] {
            let tools = responses(&tools, choice).unwrap();
            assert_eq!(names(&tools.callable()), [name]);
        }
    }
    let long = "n".repeat(200);
    let tools = json!([{"type": "namespace", "name": long, "tools": [function(&long)]}]);
    let error = responses(&tools, &json!(null)).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("tools[0].tools[0].name"));
}

#[test]
fn broken_arguments_of_the_past_break_nothing() {
    for (given, taken) in [
        (json!("{\"a\": 1}"), json!({"a": 1})),
        (json!({"a": 1}), json!({"a": 1})),
        (json!(""), json!({})),
        (json!("{\"a\": "), json!({"arguments": "{\"a\": "})),
        (json!("[1]"), json!({"arguments": "[1]"})),
    ] {
        assert_eq!(past_arguments(Some(given)), taken);
    }
    assert_eq!(past_arguments(None), json!({}));
}
