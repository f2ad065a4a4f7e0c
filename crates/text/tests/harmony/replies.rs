//! Parsing of any reply that a model may write.

use std::sync::Arc;

use kilotok_text::{Event, Parse, ReasoningStart, Reply, ReplyOptions, Stopped, TokenId};
use proptest::prelude::*;
use serde_json::{Map, Value};

use crate::{
    CALL, CALLED, END, RETURN, SPECIAL, TABLE, TEXT, cases, events, options, reply_tokens, short,
    text_of, tokens,
};

fn meant(messages: &[Value]) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::new();
    for message in messages {
        let text = text_of(&message["text"]).unwrap();
        let name = message["recipient"].as_str().and_then(|name| name.strip_prefix("functions."));
        let kind = match (name, message["channel"].as_str()) {
            (Some(name), _) => name,
            (None, Some("analysis")) => "R",
            (None, _) => "C",
        };
        match out.last_mut() {
            Some((last, before)) if last == kind && name.is_none() => {
                before.push_str("\n\n");
                before.push_str(&text);
            }
            _ => out.push((kind.to_owned(), text)),
        }
    }
    out
}

fn without_spaces(text: &str) -> String {
    serde_json::from_str(text).map_or_else(|_| text.to_owned(), |json: Value| json.to_string())
}

#[test]
fn replies_are_read_as_the_package_reads_them_or_as_they_were_meant() {
    for (name, row) in TABLE["replies"].as_object().unwrap() {
        let expected = match row["events"].as_array() {
            Some(events) => {
                let pair =
                    |event: &Value| (text_of(&event[0]).unwrap(), text_of(&event[1]).unwrap());
                events.iter().map(pair).collect()
            }
            None => meant(row["messages"].as_array().unwrap()),
        };
        let mut read = short(&events(options(), &tokens(&row["tokens"])));
        let mut expected: Vec<_> = expected;
        for (_, text) in read.iter_mut().chain(&mut expected) {
            *text = without_spaces(text);
        }
        assert_eq!(read, expected, "{name}");
    }
}

#[test]
fn a_reply_that_is_cut_has_no_whole_call() {
    let read = |text: &str| {
        let mut reply = Reply::new(Arc::clone(&TEXT), options());
        for token in reply_tokens(text) {
            drop(reply.push(token));
        }
        reply.cut();
        short(&reply.take())
    };
    let of = |kind: &str, text: &str| vec![(kind.to_owned(), text.to_owned())];
    assert_eq!(read(&format!("{CALLED}{{\"days\": 2")), of("get_weather", "{\"days\": "));
    assert_eq!(read("<|channel|>commentary to=functions.now"), []);
    assert_eq!(read("<|channel|>final<|message|>Hi"), of("C", "Hi"));
}

#[test]
fn one_call_may_be_all() {
    let one = ReplyOptions { parallel_calls: false, ..options() };
    let mut reply = Reply::new(Arc::clone(&TEXT), one);
    for token in reply_tokens(&format!("{CALLED}{{}}")) {
        assert_eq!(reply.push(token), None);
    }
    assert_eq!(reply.push(CALL), Some(Stopped::Calls));
}

#[test]
fn stop_strings_are_looked_for_in_messages_alone() {
    let read = |stop: &str, text: &str| {
        let stop = vec![stop.to_owned()];
        let mut reply = Reply::new(Arc::clone(&TEXT), ReplyOptions { stop, ..options() });
        let stopped = reply_tokens(text).into_iter().find_map(|token| reply.push(token));
        reply.finish();
        (stopped.is_some(), short(&reply.take()).pop().map(|(_, text)| text).unwrap_or_default())
    };
    let answer = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final\
                  <|message|>Hi there<|return|>";
    assert_eq!(read("final", answer), (false, "Hi there".to_owned()));
    assert_eq!(read("analysis", answer), (false, "Hi there".to_owned()));
    assert_eq!(read("there", answer), (true, "Hi ".to_owned()));
    // The texts of two messages are not joined.
    assert_eq!(read("HmHi", answer), (false, "Hi there".to_owned()));
    assert_eq!(read("Hm", answer), (true, String::new()));
}

#[test]
fn a_header_without_an_end_is_text_before_long() {
    let words = "Hi there ".repeat(2000);
    let mut reply = Reply::new(Arc::clone(&TEXT), options());
    for token in reply_tokens(&format!("<|channel|>final {words}")) {
        drop(reply.push(token));
    }
    let early = short(&reply.take());
    assert!(early[0].1.len() > words.len() - 100, "{}", early[0].1.len());
    reply.finish();
    let rest: String = short(&reply.take()).into_iter().map(|(_, text)| text).collect();
    assert_eq!(format!("{}{rest}", early[0].1), words);
}

#[test]
fn only_what_is_asked_for_is_recognised() {
    let read = |parse, skip_special, text: &str| {
        let options = ReplyOptions { parse, skip_special, ..options() };
        short(&events(options, &reply_tokens(text)))
    };
    let call = format!("{CALLED}{{}}<|call|>");
    let content = |text: &str| vec![("C".to_owned(), text.to_owned())];
    assert_eq!(read(Parse::Reasoning, true, &call), content("{}"));
    assert_eq!(read(Parse::Nothing, false, &call), content(&call));
    assert_eq!(read(Parse::Nothing, true, "<|channel|>final<|message|>Hi"), content("finalHi"));
}

fn any_token() -> impl Strategy<Value = TokenId> {
    let known: Vec<TokenId> = (0..200_019)
        .filter(|&id| TEXT.token_bytes(id).is_some() && !SPECIAL.contains(&id))
        .collect();
    let words =
        reply_tokens("assistantanalysiscommentaryfinal to=functions.get_weatherjson{\"days\"");
    prop_oneof![
        4 => prop::sample::select(vec![200_003, 200_005, 200_006, END, 200_008, CALL, RETURN]),
        3 => prop::sample::select(words),
        3 => prop::sample::select(known),
        1 => prop::sample::select(vec![199_999, 200_000, 200_018, 200_019, 1 << 21]),
    ]
}

fn start() -> impl Strategy<Value = ReasoningStart> {
    let starts = [ReasoningStart::Maybe, ReasoningStart::Begun, ReasoningStart::Never];
    prop::sample::select(starts.to_vec())
}

proptest! {
    #![proptest_config(cases(2000))]

    /// Any tokens can be parsed, calls are complete, and the events do not depend on when they are
    /// taken.
    #[test]
    fn any_tokens_are_a_reply(
        tokens in prop::collection::vec(any_token(), 0..60),
        takes in prop::collection::vec(any::<bool>(), 1..8),
        start in start(),
        skip_special in any::<bool>(),
    ) {
        let options = ReplyOptions { reasoning: start, skip_special, ..options() };
        let whole = short(&events(options.clone(), &tokens));
        let mut reply = Reply::new(Arc::clone(&TEXT), options);
        let (mut calls, mut text) = (Vec::<String>::new(), [String::new(), String::new()]);
        let mut read = |events: Vec<Event>| for event in events {
            match event {
                Event::Reasoning(more) => text[0].push_str(&more),
                Event::Content(more) => text[1].push_str(&more),
                Event::Call { .. } => calls.push(String::new()),
                Event::Arguments { text, .. } => calls.last_mut().unwrap().push_str(&text),
            }
        };
        for (token, take) in tokens.iter().zip(takes.iter().cycle()) {
            reply.push(*token);
            if *take {
                read(reply.take());
            }
        }
        reply.finish();
        read(reply.take());
        let of = |kind: &str| -> String {
            whole.iter().filter(|(each, _)| each == kind).map(|(_, text)| text.as_str()).collect()
        };
        prop_assert_eq!(&text[0], &of("R"));
        prop_assert_eq!(&text[1], &of("C"));
        let theirs = whole.iter().filter(|(kind, _)| !["R", "C"].contains(&kind.as_str()));
        let theirs: Vec<String> = theirs.map(|(_, text)| text.clone()).collect();
        prop_assert_eq!(&calls, &theirs);
        for arguments in calls {
            let object: Result<Map<String, Value>, _> = serde_json::from_str(&arguments);
            prop_assert!(object.is_ok(), "{}", arguments);
        }
    }
}
