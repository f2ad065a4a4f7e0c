//! Examples of parsed replies: reasoning, answers and calls in every format, well formed and not,
//! and where a reply ends.

use kilotok_text::{Event, Format, Parse, ReasoningStart, Reply, ReplyOptions, Stopped, Tool};
use serde_json::json;

use crate::speaking::{SimulatedModel, joined, spelled};

/// A tool with parameters of every type.
fn tools() -> Vec<Tool> {
    let parameters = json!({
        "type": "object",
        "properties": {
            "s": { "type": "string" },
            "i": { "type": "integer" },
            "x": { "type": "number" },
            "b": { "type": "boolean" },
            "o": { "type": "object" },
            "l": { "type": "array" },
            "m": { "anyOf": [{ "type": "string" }, { "type": "null" }] },
        },
    });
    let name = "f".to_owned();
    vec![
        Tool { name, parameters, ..Tool::default() },
        Tool { name: "now".to_owned(), ..Tool::default() },
    ]
}

fn options(reasoning: ReasoningStart) -> ReplyOptions {
    ReplyOptions {
        parse: Parse::ReasoningAndCalls,
        tools: tools(),
        reasoning,
        skip_special: true,
        parallel_calls: true,
        ..ReplyOptions::default()
    }
}

/// Events in short form: `R:` reasoning, `C:` content, `name(arguments)` a call.
fn short(events: &[Event]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for event in events {
        match event {
            Event::Reasoning(text) => out.push(format!("R:{text}")),
            Event::Content(text) => out.push(format!("C:{text}")),
            Event::Call { name, .. } => out.push(format!("{name}()")),
            Event::Arguments { text, .. } => {
                let call = out.last_mut().unwrap();
                call.insert_str(call.len() - 1, text);
            }
        }
    }
    out
}

fn read(format: Format, reasoning: ReasoningStart, reply: &str) -> Vec<String> {
    let speaker = SimulatedModel::of_bytes(format);
    short(&speaker.events(options(reasoning), &spelled(reply)))
}

#[track_caller]
fn check(format: Format, reasoning: ReasoningStart, table: &[(&str, &[&str])]) {
    for (reply, expected) in table {
        assert_eq!(read(format, reasoning, reply), *expected, "{reply:?}");
    }
}

#[test]
fn reasoning_is_told_from_the_answer() {
    use ReasoningStart::{Begun, Maybe, Never};
    let cases: &[(ReasoningStart, &str, &[&str])] = &[
        (Maybe, "<think>a</think>b", &["R:a", "C:b"]),
        (Maybe, "b", &["C:b"]),
        (Maybe, " \n<think>a</think>b", &["R:a", "C:b"]),
        (Maybe, "b <think>a</think>", &["C:b <think>a</think>"]),
        (Maybe, "<think></think>b", &["C:b"]),
        (Maybe, "<think>a", &["R:a"]),
        (Maybe, "<thin", &["C:<thin"]),
        (Begun, "a</think>b", &["R:a", "C:b"]),
        (Begun, "<think>a</think>b", &["R:a", "C:b"]),
        (Begun, "a <think> b</think>c", &["R:a <think> b", "C:c"]),
        (Begun, "a</think></think>b</think>", &["R:a", "C:b</think>"]),
        (Begun, "a</thin", &["R:a</thin"]),
        (Never, "<think>a</think>", &["C:<think>a</think>"]),
        (Never, "</think>b", &["C:b"]),
    ];
    for format in [Format::Mimo, Format::Hermes, Format::Qwen3Coder] {
        for (start, reply, expected) in cases {
            assert_eq!(read(format, *start, reply), *expected, "{format} {start:?} {reply:?}");
        }
    }
}

#[test]
fn whitespace_is_markup_where_the_format_says_so() {
    let start = ReasoningStart::Maybe;
    let reply = "<think>\n a \n\n</think>\n\n b\n\n c\n";
    check(Format::Mimo, start, &[(reply, &["R:\n a \n\n", "C:\n\n b\n\n c\n"])]);
    check(Format::Hermes, start, &[(reply, &["R: a ", "C: b\n\n c\n"])]);
    let reply = "Look:\n\n<tool_call>\n<function=now>\n</function>\n</tool_call>\n";
    check(Format::Mimo, start, &[(reply, &["C:Look:\n\n", "now({})"])]);
    check(Format::Qwen3Coder, start, &[(reply, &["C:Look:", "now({})"])]);
}

#[test]
fn a_call_of_a_tool_that_takes_text_brings_the_text() {
    let xml = "<tool_call>\n<function=patch>\n<parameter=input>*** \"a\"\n\u{e9}</parameter>\n\
               </function>\n</tool_call>";
    let json = r#"<tool_call>
{"name": "patch", "arguments": {"input": "*** \"a\"\n\u00e9"}}
</tool_call>"#;
    for (format, reply) in [(Format::Mimo, xml), (Format::Hermes, json)] {
        let tools = vec![Tool::of_text("patch".to_owned(), None, None)];
        let options = ReplyOptions { tools, ..options(ReasoningStart::Never) };
        let events = SimulatedModel::of_bytes(format).events(options, &spelled(reply));
        let call = Event::Call { index: 0, name: "patch".to_owned(), takes_text: true };
        let text = Event::Arguments { index: 0, text: "*** \"a\"\n\u{e9}".to_owned() };
        assert_eq!(events, [call, text], "{format}");
    }
}

#[test]
fn xml_calls_become_json_by_the_schema() {
    check(
        Format::Mimo,
        ReasoningStart::Maybe,
        &[
            (
                "<think>t</think><tool_call>\n<function=f>\n<parameter=s>a \"b\"\n&lt;\
             </parameter>\n<parameter=i>7</parameter>\n<parameter=b>True</parameter>\n\
             </function>\n</tool_call>",
                &["R:t", "f({\"s\": \"a \\\"b\\\"\\n&lt;\", \"i\": 7, \"b\": true})"],
            ),
            (
                "<tool_call>\n<function=f>\n<parameter=o>{\"a\": [1]}</parameter>\n<parameter=l>[]\
             </parameter>\n<parameter=x>1e3</parameter>\n</function>\n</tool_call>",
                &["f({\"o\": {\"a\": [1]}, \"l\": [], \"x\": 1e3})"],
            ),
            (
                "<tool_call>\n<function=f>\n<parameter=m>null</parameter>\n<parameter=s>null\
             </parameter>\n<parameter=new>null</parameter>\n</function>\n</tool_call>",
                &["f({\"m\": null, \"s\": \"null\", \"new\": null})"],
            ),
            (
                "a<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call>\n\
             <function=f>\n<parameter=s></parameter>\n</function>\n</tool_call>",
                &["C:a", "now({})", "f({\"s\": \"\"})"],
            ),
        ],
    );
    check(
        Format::Qwen3Coder,
        ReasoningStart::Never,
        &[(
            "<tool_call>\n<function=f>\n<parameter=s>\n\n a\n\n</parameter>\n<parameter=i>\n3\n\
         </parameter>\n</function>\n</tool_call>",
            &["f({\"s\": \"\\n a\\n\", \"i\": 3})"],
        )],
    );
}

#[test]
fn what_is_missing_in_xml_is_made_up_for() {
    check(
        Format::Mimo,
        ReasoningStart::Maybe,
        &[
            // `</parameter>`
            (
                "<tool_call><function=f><parameter=i>7<parameter=s>a</function></tool_call>",
                &["f({\"i\": 7, \"s\": \"a\"})"],
            ),
            // `</function>`
            (
                "<tool_call><function=f><parameter=s>a</parameter></tool_call> b",
                &["f({\"s\": \"a\"})", "C:b"],
            ),
            // `</tool_call>`
            (
                "<tool_call><function=now></function><tool_call><function=now></function>",
                &["now({})", "now({})"],
            ),
            // `<tool_call>`
            ("a <function=now></function></tool_call> b", &["C:a ", "now({})", "C: b"]),
            // All that was to come
            ("<tool_call><function=f><parameter=s>a\nb", &["f({\"s\": \"a\\nb\"})"]),
            ("<tool_call><function=f><parameter=o>{\"a\"", &["f({\"o\": \"{\\\"a\\\"\"})"]),
            ("<tool_call><function=f><parameter=i", &["f({})"]),
            ("<tool_call><function=f><parameter=i>1</parameter", &["f({\"i\": \"1</parameter\"})"]),
        ],
    );
    check(
        Format::Mimo,
        ReasoningStart::Begun,
        &[
            ("t<tool_call><function=now></function></tool_call>", &["R:t", "now({})"]),
            ("say <tool_call> or so</think>b", &["R:say <tool_call> or so", "C:b"]),
            ("a <tool_call></think>b", &["R:a <tool_call>", "C:b"]),
            ("a <function=now></function></think>b", &["R:a <function=now></function>", "C:b"]),
        ],
    );
}

#[test]
fn values_may_contain_markup() {
    check(
        Format::Mimo,
        ReasoningStart::Never,
        &[
            (
                "<tool_call><function=f><parameter=s><parameter=q>1</function>x</tool_call>\
             </parameter></function></tool_call>",
                &["f({\"s\": \"<parameter=q>1</function>x</tool_call>\"})"],
            ),
            (
                "<tool_call><function=f><parameter=s><think></think><tool_call><function=now>\
             </parameter></function></tool_call>",
                &["f({\"s\": \"<think></think><tool_call><function=now>\"})"],
            ),
            // If the tool has no schema, any name may be another parameter.
            (
                "<tool_call><function=now><parameter=a>x<parameter=b>y<parameter=if c>\
                 </parameter></function></tool_call>",
                &["now({\"a\": \"x\", \"b\": \"y<parameter=if c>\"})"],
            ),
            // A declared parameter that the call has already had is text.
            (
                "<tool_call><function=f><parameter=s>a<parameter=s>b</parameter></function>\
             </tool_call>",
                &["f({\"s\": \"a<parameter=s>b\"})"],
            ),
        ],
    );
    check(
        Format::Hermes,
        ReasoningStart::Never,
        &[(
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": \"<tool_call></tool_call>x\"}}\
         </tool_call>",
            &["f({\"s\": \"<tool_call></tool_call>x\"})"],
        )],
    );
}

#[test]
fn json_calls_are_read() {
    let start = ReasoningStart::Maybe;
    check(
        Format::Hermes,
        start,
        &[
            (
                "<think>\nt\n</think>\n\na\n<tool_call>\n{\"name\": \"f\", \"arguments\": \
             {\"s\":\"\\u00e9\\n\",\"l\":[1,{}]}}\n</tool_call>\n<tool_call>\n{\"name\":\"now\",\
             \"arguments\":{}}\n</tool_call>",
                &["R:t", "C:a", "f({\"s\": \"é\\n\", \"l\": [1, {}]})", "now({})"],
            ),
            (
                "<tool_call>{\"id\": [1], \"arguments\": {\"i\": 1}, \"name\": \"f\", \"z\": 2}\
             </tool_call>",
                &["f({\"i\": 1})"],
            ),
            ("<tool_call>{\"name\": \"now\"}</tool_call>", &["now({})"]),
            ("<tool_call>{\"name\": \"now\", \"arguments\": null}</tool_call>", &["now({})"]),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"i\\\": 1}\"}</tool_call>",
                &["f({\"i\": 1})"],
            ),
            (
                "<tool_call>{\"name\": \"f\", \"parameters\": {\"s\": \"a\nb\\d\", \"b\": True,}}}\
             </tool_call>",
                &["f({\"s\": \"a\\nb\\\\d\", \"b\": true})"],
            ),
            (
                "<tool_call>{\"name\": \"now\"}\n{\"name\": \"f\"}</tool_call>.",
                &["now({})", "f({})", "C:."],
            ),
        ],
    );
}

#[test]
fn broken_json_is_closed() {
    check(
        Format::Hermes,
        ReasoningStart::Never,
        &[
            ("<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": \"a", &["f({\"s\": \"a\"})"]),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": \"a\", \"i\"",
                &["f({\"s\": \"a\"})"],
            ),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"l\": [1, tr",
                &["f({\"l\": [1, true]})"],
            ),
            ("<tool_call>{\"name\": \"f\", \"arguments\": {\"l\": [1, 2.", &["f({\"l\": [1, 2]})"]),
            ("<tool_call>{\"name\": \"f\", \"arguments\": {\"l\": [-", &["f({\"l\": [null]})"]),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": \"say \"hi\"\", \"i\": 1}}\n\
             </tool_call>b",
                &["f({\"s\": \"say \"})", "C:b"],
            ),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": \"a\"</tool_call><tool_call>\
             {\"name\": \"now\"}</tool_call>",
                &["f({\"s\": \"a\"})", "now({})"],
            ),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": \"a</tool_call>\n",
                &["f({\"s\": \"a\"})"],
            ),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": \"\\ud83d",
                &["f({\"s\": \"\u{fffd}\"})"],
            ),
        ],
    );
}

#[test]
fn what_is_no_call_is_text() {
    check(
        Format::Hermes,
        ReasoningStart::Never,
        &[
            ("a <tool_call> b", &["C:a <tool_call> b"]),
            ("<tool_call>\n", &["C:<tool_call>\n"]),
            (
                "<tool_call>\n{\"a\": \"<tool_call>\"}\n</tool_call>",
                &["C:<tool_call>\n{\"a\": \"<tool_call>\"}\n</tool_call>"],
            ),
            ("<tool_call>{'name'}", &["C:<tool_call>{'name'}"]),
            ("<tool_call>{\"name\": \"\"}", &["C:<tool_call>{\"name\": \"\"}"]),
            ("<tool_call><function=a b>", &["C:<tool_call><function=a b>"]),
            ("<tool_call><function=now", &["C:<tool_call><function=now"]),
            ("<function=unknown>", &["C:<function=unknown>"]),
            ("<tool_call>[1]<tool_call>{\"name\": \"now\"}", &["C:<tool_call>[1]", "now({})"]),
            ("<tool_call><tool_call>\n{\"name\": \"now\"}</tool_call>", &["now({})"]),
            ("a < b <= c <tool", &["C:a < b <= c <tool"]),
            (
                "<tool_call>{\"name\": \"f</tool_call>\n<tool_call>{\"name\": \"now\"}",
                &["C:<tool_call>{\"name\": \"f</tool_call>", "now({})"],
            ),
        ],
    );
    check(
        Format::Plain,
        ReasoningStart::Never,
        &[("<think>a</think><tool_call>", &["C:<think>a</think><tool_call>"])],
    );
}

#[test]
fn only_what_is_asked_for_is_looked_for() {
    let reply = "<think>a</think><tool_call><function=now></function></tool_call>";
    let speaker = SimulatedModel::of_bytes(Format::Mimo);
    let read = |parse| {
        let options = ReplyOptions { parse, ..options(ReasoningStart::Maybe) };
        short(&speaker.events(options, &spelled(reply)))
    };
    assert_eq!(read(Parse::Nothing), [format!("C:{reply}")]);
    let answer = reply.strip_prefix("<think>a</think>").unwrap();
    assert_eq!(read(Parse::Reasoning), ["R:a".to_owned(), format!("C:{answer}")]);
}

#[test]
fn an_answer_that_has_begun_may_speak_of_calls() {
    let speaker = SimulatedModel::of_bytes(Format::Mimo);
    let read = |reply: &str| {
        let parse = Parse::ReasoningThenCalls;
        let options = ReplyOptions { parse, ..options(ReasoningStart::Maybe) };
        short(&speaker.events(options, &spelled(reply)))
    };
    let call = "<tool_call>\n<function=now>\n</function>\n</tool_call>";
    let said = format!("{{\"x\": \"{call} <function=now>\"}}");
    assert_eq!(read(&format!("<think>a</think>{said}")), ["R:a".to_owned(), format!("C:{said}")]);
    assert_eq!(read(&format!("<think>a</think>{call}{call}")), ["R:a", "now({})", "now({})"]);
    assert_eq!(read(&format!("\n{call}")), ["now({})"]);
}

#[test]
fn the_only_call_ends_the_reply() {
    let speaker = SimulatedModel::of_bytes(Format::Mimo);
    let call = "<tool_call>\n<function=now>\n</function>\n</tool_call>";
    let tokens = spelled(&format!("a{call}{call}b"));
    let options = ReplyOptions { parallel_calls: false, ..options(ReasoningStart::Never) };
    let mut reply = Reply::new(speaker.text.clone(), options);
    let stops: Vec<_> = tokens.iter().map(|&token| reply.push(token)).collect();
    reply.finish();
    let at = stops.iter().position(Option::is_some).unwrap();
    assert_eq!(at + 1, 1 + call.len());
    assert_eq!(stops[at], Some(Stopped::Calls));
    assert!(stops[at + 1..].iter().all(Option::is_none));
    assert_eq!(short(&joined(reply.take())), ["C:a", "now({})"]);
    assert_eq!(reply.call_count(), 1);
}

#[test]
fn a_call_that_is_cut_off_stays_as_far_as_it_came() {
    let xml = "<tool_call>\n<function=f>\n";
    for (format, begun, arguments) in [
        (Format::Mimo, xml.to_owned(), None),
        (Format::Mimo, format!("{xml}<parameter=s>the b"), Some("{\"s\": \"the b")),
        (Format::Mimo, format!("{xml}<parameter=s>the b</para"), Some("{\"s\": \"the b")),
        (Format::Mimo, format!("{xml}<parameter=i>12"), Some("{\"i\": ")),
        (Format::Mimo, format!("{xml}<parameter=i>12</parameter>\n"), Some("{\"i\": 12")),
        (
            Format::Hermes,
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"s\": \"the b".to_owned(),
            Some("{\"s\": \"the b"),
        ),
    ] {
        let speaker = SimulatedModel::of_bytes(format);
        let mut reply = Reply::new(speaker.text.clone(), options(ReasoningStart::Never));
        for token in spelled(&begun) {
            assert_eq!(reply.push(token), None);
        }
        reply.cut();
        let said = arguments.map(|text| Event::Arguments { index: 0, text: text.to_owned() });
        let call = Event::Call { index: 0, name: "f".to_owned(), takes_text: false };
        assert_eq!(joined(reply.take()), [vec![call], said.into_iter().collect()].concat());
    }
}

#[test]
fn stop_strings_end_the_reply() {
    let speaker = SimulatedModel::of_bytes(Format::Mimo);
    let read = |include_stop, min_tokens| {
        let stop = vec!["end".to_owned(), "the end".to_owned(), String::new()];
        let options =
            ReplyOptions { stop, include_stop, min_tokens, ..options(ReasoningStart::Never) };
        let mut reply = Reply::new(speaker.text.clone(), options);
        let tokens = spelled("at the end, the end.");
        let stop = tokens.iter().position(|&token| reply.push(token).is_some());
        reply.finish();
        (stop, short(&reply.take()))
    };
    assert_eq!(read(false, 0), (Some(9), vec!["C:at ".to_owned()]));
    assert_eq!(read(true, 9), (Some(9), vec!["C:at the end".to_owned()]));
    assert_eq!(read(false, 10), (Some(18), vec!["C:at the end, ".to_owned()]));
    assert_eq!(read(false, 99), (None, vec!["C:at the end, the end.".to_owned()]));
}

#[test]
fn text_is_held_back_no_longer_than_it_must() {
    let speaker = SimulatedModel::of_bytes(Format::Mimo);
    let stop = vec!["xyz".to_owned()];
    let mut reply =
        Reply::new(speaker.text.clone(), ReplyOptions { stop, ..options(ReasoningStart::Never) });
    let mut seen = Vec::new();
    for token in spelled("axxyé<t>") {
        reply.push(token);
        seen.push(short(&reply.take()).concat());
    }
    assert_eq!(seen, ["C:a", "", "C:x", "", "", "C:xyé", "", "", "C:<t>"]);
    let call = "<tool_call>\n<function=f>\n<parameter=s>ab";
    let tokens = spelled(call);
    let mut reply = Reply::new(speaker.text.clone(), options(ReasoningStart::Never));
    let mut events = Vec::new();
    for token in tokens {
        reply.push(token);
        events.extend(reply.take());
    }
    let arguments = |text: &str| Event::Arguments { index: 0, text: text.to_owned() };
    let call = Event::Call { index: 0, name: "f".to_owned(), takes_text: false };
    let expected = [call, arguments("{\"s\": "), arguments("\"a"), arguments("b")];
    assert_eq!(events, expected);
}

#[test]
fn special_tokens_are_hidden_but_not_from_the_reader() {
    let speaker = SimulatedModel::of_bytes(Format::Mimo);
    let end = speaker.text.token_id("<|im_end|>").unwrap();
    let mut tokens = speaker.marked("<think>a</think>b");
    tokens.insert(2, end);
    tokens.push(end);
    let shown = ReplyOptions { skip_special: false, ..options(ReasoningStart::Maybe) };
    assert_eq!(short(&speaker.events(shown, &tokens)), ["R:a<|im_end|>", "C:b<|im_end|>"]);
    let hidden = options(ReasoningStart::Maybe);
    assert_eq!(short(&speaker.events(hidden.clone(), &tokens)), ["R:a", "C:b"]);
    let special = SimulatedModel::of_special_tags(Format::Mimo);
    assert!(special.text.is_special(special.text.token_id("<think>").unwrap()));
    assert_eq!(short(&special.events(hidden.clone(), &tokens)), ["R:a", "C:b"]);
    let nothing = ReplyOptions { parse: Parse::Nothing, ..hidden };
    assert_eq!(short(&special.events(nothing, &tokens)), ["C:ab"]);
}

#[test]
fn reasoning_tokens_are_counted_up_to_the_closing_tag() {
    let speaker = SimulatedModel::of_bytes(Format::Mimo);
    for (start, reply, expected) in [
        (ReasoningStart::Maybe, "<think>abc</think>de", 4),
        (ReasoningStart::Begun, "abc</think>de", 4),
        (ReasoningStart::Begun, "abc", 3),
        (ReasoningStart::Maybe, "abc", 0),
    ] {
        let mut read = Reply::new(speaker.text.clone(), options(start));
        for token in speaker.marked(reply) {
            read.push(token);
        }
        assert_eq!(read.reasoning_count(), expected, "{reply}");
    }
}
