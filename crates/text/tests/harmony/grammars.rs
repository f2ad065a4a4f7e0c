//! Constrained replies: headers are always complete, and calls and answers follow their grammars.

use std::sync::LazyLock;

use kilotok_text::{Constraint, Format, Grammar, Grammars, ReasoningStart, TokenId, Tool};
use serde_json::{Value, json};

use crate::{CALL, CALLED, END, RETURN, TEXT, events, options, reply_tokens, short, tools};

const CHANNEL: TokenId = 200_005;
const START: TokenId = 200_006;

static GRAMMARS: LazyLock<Grammars> = LazyLock::new(|| {
    let end_tokens = &TEXT.defaults().end_tokens;
    Grammars::new(&TEXT, TEXT.vocab_count() as u32, end_tokens).unwrap()
});

fn compile(constraint: &Constraint, start: ReasoningStart) -> Grammar {
    GRAMMARS.compile(constraint, start, &|| false).unwrap()
}

fn strict_tools() -> Vec<Tool> {
    tools().into_iter().map(|tool| Tool { strict: tool.name == "get_weather", ..tool }).collect()
}

fn calls() -> Constraint {
    Constraint::Calls { tools: tools(), format: Format::Harmony, parallel: true }
}

fn with_calls() -> Constraint {
    let tools = strict_tools().into();
    Constraint::TextWithCalls { tools, format: Format::Harmony, parallel: true }
}

fn shape() -> Constraint {
    let schema = json!({ "type": "object", "properties": { "days": { "type": "integer" } },
                         "required": ["days"], "additionalProperties": false });
    Constraint::JsonSchema { schema, strict: true }
}

fn shape_or_calls() -> Constraint {
    let (shape, format) = (Box::new(shape()), Format::Harmony);
    Constraint::ShapeOrCalls { shape, tools: tools(), format, parallel: true }
}

/// Whether the grammar accepts the whole reply, including its end token.
fn takes(grammar: &Grammar, reply: &str) -> bool {
    grammar.clone().accept(&reply_tokens(reply)).is_ok()
}

/// The tokens that may come next; `None` if all may.
fn next(grammar: &mut Grammar) -> Option<Vec<TokenId>> {
    let masks = grammar.masks(&[]).unwrap().masks;
    let mask = masks.first()?;
    let allowed = |token: &TokenId| mask[*token as usize / 32] >> (token % 32) & 1 == 1;
    Some((0..mask.len() as TokenId * 32).filter(allowed).collect())
}

fn after(constraint: &Constraint, start: ReasoningStart, reply: &str) -> Option<Vec<TokenId>> {
    let mut grammar = compile(constraint, start);
    grammar.accept(&reply_tokens(reply)).unwrap();
    next(&mut grammar)
}

const ANALYSIS: &str = "<|channel|>analysis<|message|>Hm.<|end|>";
const GOES_ON: &str = "<|start|>assistant";
const WEATHER: &str = "{\"location\": \"Bern\"}";

#[test]
fn replies_are_taken_as_the_constraint_says() {
    let answer = |text: &str| format!("<|channel|>final<|message|>{text}<|return|>");
    let call = format!("{CALLED}{WEATHER}<|call|>");
    let bad_call = format!("{CALLED}{{\"city\": \"Bern\"}}<|call|>");
    let loose = "<|channel|>commentary to=functions.now<|message|>whatever<|call|>";
    let preamble = format!("<|channel|>commentary<|message|>Wait.<|end|>{GOES_ON}{call}");
    let after_role =
        format!(" to=functions.get_weather<|channel|>commentary json<|message|>{WEATHER}<|call|>");
    let unknown = "<|channel|>commentary to=functions.code<|message|>{}<|call|>";
    let days = answer("{\"days\": 2}");
    for (name, constraint, taken) in [
        ("calls", calls(), [false, false, true, false, false, false, true]),
        ("text", with_calls(), [true, true, true, false, true, true, true]),
        ("shape", shape(), [false, true, false, false, false, false, false]),
        ("either", shape_or_calls(), [false, true, true, false, false, false, true]),
    ] {
        let grammar = compile(&constraint, ReasoningStart::Maybe);
        let replies = [&answer("Hi"), &days, &call, &bad_call, loose, &preamble, &after_role];
        for (reply, taken) in replies.into_iter().zip(taken) {
            assert_eq!(takes(&grammar, reply), taken, "{name}: {reply}");
            let later = format!("{ANALYSIS}{GOES_ON}{reply}");
            assert_eq!(takes(&grammar, &later), taken, "{name}: {later}");
        }
        for wrong in [unknown, "Hi<|return|>", "<|message|>Hi<|return|>", "<|channel|>final Hi"] {
            assert!(!takes(&grammar, wrong), "{name}: {wrong}");
        }
    }
}

#[test]
fn the_mask_begins_with_a_header_and_leaves_reasoning_free() {
    let maybe = ReasoningStart::Maybe;
    for constraint in [calls(), with_calls(), shape(), shape_or_calls()] {
        let of = |reply: &str| after(&constraint, maybe, reply);
        let first = of("").unwrap();
        assert!(first.contains(&CHANNEL) && !first.contains(&RETURN) && !first.contains(&END));
        assert_eq!(of("<|channel|>analysis<|message|>"), None);
        assert_eq!(of("<|channel|>analysis<|message|>Any text"), None);
        let later = of(ANALYSIS).unwrap();
        assert!(later.contains(&START) && later.contains(&CHANNEL) && !later.contains(&RETURN));
    }
    let channels = after(&shape(), maybe, "<|channel|>").unwrap();
    let names = channels.iter().map(|&token| TEXT.token_text(token));
    assert!(names.clone().any(|name| name == "final"));
    assert!(!names.clone().any(|name| name == "commentary"));
}

#[test]
fn after_what_was_asked_for_only_the_end_is_left() {
    let ends = &TEXT.defaults().end_tokens;
    let answer = "<|channel|>final<|message|>{\"days\": 2}";
    assert_eq!(after(&shape(), ReasoningStart::Maybe, answer).as_ref(), Some(ends));
    let call = format!("{CALLED}{WEATHER}");
    for constraint in [calls(), with_calls()] {
        assert_eq!(after(&constraint, ReasoningStart::Maybe, &call).as_ref(), Some(ends));
    }
}

#[test]
fn a_prompt_may_end_within_a_message() {
    let json = reply_tokens("{\"days\": 2}");
    let mut grammar = compile(&shape(), ReasoningStart::Never);
    assert!(!next(&mut grammar).unwrap().contains(&CHANNEL));
    grammar.accept(&json).unwrap();
    // Within reasoning, everything is allowed up to its end.
    assert_eq!(after(&shape(), ReasoningStart::Begun, "so"), None);
    assert!(after(&shape(), ReasoningStart::Begun, "so<|end|>").unwrap().contains(&START));
    assert_eq!(after(&with_calls(), ReasoningStart::Never, "so"), None);
    assert!(after(&calls(), ReasoningStart::Never, "").unwrap().contains(&CHANNEL));
}

#[test]
fn drafts_are_judged_message_by_message() {
    let reply = reply_tokens(&format!("{ANALYSIS}{GOES_ON}{CALLED}{WEATHER}"));
    for constraint in [calls(), with_calls(), shape_or_calls()] {
        let mut grammar = compile(&constraint, ReasoningStart::Maybe);
        let masks = grammar.masks(&reply).unwrap();
        assert_eq!(masks.draft_count as usize, reply.len());
        let wrong = [&reply[..reply.len() - 1], &[RETURN, CALL]].concat();
        let legal = grammar.masks(&wrong).unwrap().draft_count as usize;
        assert_eq!(legal, reply.len() - 1);
        // The drafts have not changed the state.
        for &token in &reply {
            if !grammar.pass(&[token], &[]) {
                grammar.accept(&[token]).unwrap();
            }
        }
        assert_eq!(next(&mut grammar).as_ref(), Some(&TEXT.defaults().end_tokens));
    }
}

/// xorshift64*.
fn random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
}

/// A random reply that the masks allow; where everything is allowed, a few words and the end of the
/// message.
fn walk(grammar: &mut Grammar, state: &mut u64) -> Vec<TokenId> {
    let ends = &TEXT.defaults().end_tokens;
    let closing = reply_tokens("}\"]");
    let mut reply = Vec::new();
    while reply.len() < 400 {
        let token = match next(grammar) {
            None if random(state).is_multiple_of(4) => END,
            None => reply_tokens("Hm so")[(random(state) % 2) as usize],
            Some(allowed) => {
                let end = allowed.iter().find(|token| ends.contains(token));
                let hurry = reply.len() > 60;
                let close = allowed.iter().find(|token| hurry && closing.contains(token));
                let any = &allowed[(random(state) % allowed.len() as u64) as usize];
                *end.or(close).unwrap_or(any)
            }
        };
        grammar.accept(&[token]).unwrap();
        if ends.contains(&token) {
            return reply;
        }
        reply.push(token);
    }
    Vec::new()
}

#[test]
fn random_replies_are_read_as_what_was_asked_for() {
    let mut state = 7;
    let mut ended = [0, 0];
    for _ in 0..60 {
        for (index, constraint) in [calls(), shape()].into_iter().enumerate() {
            let reply = walk(&mut compile(&constraint, ReasoningStart::Maybe), &mut state);
            if reply.is_empty() {
                continue;
            }
            ended[index] += 1;
            let read = short(&events(options(), &reply));
            let said: Vec<_> = read.into_iter().filter(|(kind, _)| kind != "R").collect();
            let text = TEXT.decode(&reply, false);
            let [(kind, json)] = said.as_slice() else { panic!("{said:?} of {text}") };
            let json: Value = serde_json::from_str(json).unwrap();
            assert!(json.is_object(), "{text}");
            assert_eq!(kind == "C", index == 1, "{text}");
            assert!(index == 0 || json["days"].is_number(), "{text}");
        }
    }
    assert!(ended.iter().all(|&count| count > 10), "{ended:?}");
}
