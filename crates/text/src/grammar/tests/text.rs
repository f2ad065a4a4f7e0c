//! Calls within free text: nothing is constrained before a call begins, and then the call is.

use std::sync::Arc;

use serde_json::json;

use super::{Dice, ENDS, Model, OTHER, allowed};
use crate::grammar::{Constraint, Grammar};
use crate::reply::events::Events;
use crate::reply::tagged::Tagged;
use crate::{Event, Format, ReasoningStart, TextGrammar, TokenId, Tool};

fn tools() -> Arc<[Tool]> {
    let parameters = json!({
        "type": "object",
        "properties": {
            "city": { "type": "string" },
            "unit": { "enum": ["c", "f"] },
            "days": { "type": "array", "items": { "type": "integer" } },
        },
        "required": ["city", "unit"],
        "additionalProperties": false,
    });
    let strict = Tool { name: "weather".to_owned(), parameters, strict: true, ..Tool::default() };
    let loose = Tool {
        name: "now".to_owned(),
        parameters: json!({ "type": "object", "properties": { "zone": { "type": "string" } } }),
        ..Tool::default()
    };
    [strict, loose].into()
}

fn text(model: &Model, format: Format, parallel: bool, reasoning: ReasoningStart) -> Grammar {
    let constraint = Constraint::TextWithCalls { tools: tools(), format, parallel };
    model.grammars.compile(&constraint, reasoning, &|| false).unwrap()
}

const FORMATS: [Format; 3] = [Format::Mimo, Format::Qwen3Coder, Format::Hermes];

const STRICT_XML: &str = "<tool_call>\n<function=weather>\n<parameter=city>Rome</parameter>\n\
    <parameter=unit>c</parameter>\n</function>\n</tool_call>";
const LOOSE_XML: &str = "<tool_call>\n<function=now>\n<parameter=any>thing</parameter>\n\
    </function></tool_call>";
const STRICT_JSON: &str = "<tool_call>\n{\"name\": \"weather\", \"arguments\": \
    {\"city\": \"Rome\", \"unit\": \"c\"}}\n</tool_call>";
const LOOSE_JSON: &str =
    "<tool_call>\n{\"name\":\"now\",\"arguments\":{\"any\": [1, }}</tool_call>";

fn calls(format: Format) -> (&'static str, &'static str) {
    match format {
        Format::Mimo => (STRICT_XML, LOOSE_XML),
        Format::Qwen3Coder => {
            let padded = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n\
                <parameter=unit>\nc\n</parameter>\n</function>\n</tool_call>";
            (padded, LOOSE_XML)
        }
        _ => (STRICT_JSON, LOOSE_JSON),
    }
}

#[test]
fn text_is_free_and_calls_follow_their_schemas() {
    for model in [Model::bytes(), Model::pieces(), Model::with(&[], false)] {
        for format in FORMATS {
            let (strict, loose) = calls(format);
            let grammar = text(&model, format, true, ReasoningStart::Never);
            let takes = |text: &str| model.takes(&grammar, text);
            assert!(takes(""));
            assert!(takes("Some <b>text</b>, \"<tool_call>\", and {\"name\": 1}."));
            assert!(takes(strict), "{format}");
            assert!(takes(loose), "{format}");
            assert!(takes(&format!("Yes. {loose}\n{strict} and {strict}{loose} <tool_call> x")));
            assert!(!takes(&strict.replace("Rome", "Rome</parameter>").replace("unit", "u")));
            assert!(!takes(&strict.replace("weather", "other")));
            assert!(!takes(&loose.replace("now", "later")));
            assert!(!takes(&format!("{loose} {}", strict.replace("city", "town"))));
            // The reply cannot end within a call.
            assert!(!takes(&strict[..strict.len() - 20]));
        }
    }
}

#[test]
fn calls_without_their_outer_tag_are_bound_too() {
    let model = Model::pieces();
    let bare = |text: &str| text.replace("<tool_call>\n", "").replace("\n</tool_call>", "");
    let grammar = text(&model, Format::Mimo, true, ReasoningStart::Never);
    assert!(model.takes(&grammar, &format!("{} more", bare(STRICT_XML))));
    assert!(!model.takes(&grammar, &bare(STRICT_XML).replace("unit", "u")));
    // The name is not a declared tool's, so this is text.
    assert!(model.takes(&grammar, &bare(STRICT_XML).replace("weather", "whether")));
}

#[test]
fn reasoning_is_free_and_may_end_in_a_call() {
    let model = Model::pieces();
    for start in [ReasoningStart::Begun, ReasoningStart::Maybe] {
        let grammar = text(&model, Format::Mimo, true, start);
        let think = if start == ReasoningStart::Maybe { "<think>" } else { "" };
        let takes = |text: &str| model.takes(&grammar, &format!("{think}{text}"));
        assert!(takes("It says `<function=weather>` there.</think>Done."));
        assert!(takes(&format!("So.</think>{STRICT_XML}")));
        assert!(takes(&format!("So. {STRICT_XML}")));
        assert!(!takes(&format!("So. {}", STRICT_XML.replace("unit", "u"))));
    }
    // The same holds for a reply that must be a call.
    let tools = tools().to_vec();
    let forced = Constraint::Calls { tools, format: Format::Mimo, parallel: true };
    let forced = model.grammars.compile(&forced, true, &|| false).unwrap();
    assert!(model.takes(&forced, &format!("So. {STRICT_XML}")));
    assert!(!model.takes(&forced, &format!("So. {}", STRICT_XML.replace("unit", "u"))));
}

#[test]
fn nothing_is_asked_of_the_matcher_before_a_call() {
    let model = Model::pieces();
    for format in FORMATS {
        let (strict, loose) = calls(format);
        let mut grammar = text(&model, format, true, ReasoningStart::Never);
        let words = model.encode("Well, if a < b then a list[\"x\"] is {\"y\": <b>} .");
        assert!(grammar.pass(&[], &words));
        for &token in &words {
            assert!(grammar.pass(&[token], &[]), "{:?}", model.text(&[token]));
            assert_eq!(grammar.masks(&[]).unwrap().masks, Vec::<Vec<u32>>::new());
        }
        // A draft that begins a call is judged by the matcher, and computing masks changes nothing.
        let call = model.encode(strict);
        assert!(!grammar.pass(&words, &call));
        let masks = grammar.masks(&[words, call].concat()).unwrap();
        assert_eq!(masks.masks.len(), masks.draft_count as usize + 1);
        // The arguments of a tool that is not strict are unconstrained again.
        let loose = model.encode(loose);
        let mut free = loose.iter().map(|&token| {
            let free = grammar.pass(&[token], &[]);
            if !free {
                grammar.accept(&[token]).unwrap();
            }
            free
        });
        let tail = free.by_ref().skip_while(|free| *free).skip_while(|free| !*free);
        assert!(tail.collect::<Vec<_>>().iter().all(|free| *free));
    }
}

#[test]
fn drafts_across_calls_are_masked_as_the_places_they_lead_to() {
    for model in [Model::bytes(), Model::pieces(), Model::with(&pieces_of_tags(), false)] {
        for format in FORMATS {
            let (strict, loose) = calls(format);
            let reply = model.encode(&format!("a <{strict}\n{strict}b{loose}{strict}<tool_c"));
            let mut grammar = text(&model, format, true, ReasoningStart::Never);
            let all = grammar.masks(&reply).unwrap();
            assert_eq!(all.draft_count as usize, reply.len());
            for (index, mask) in all.masks.iter().enumerate() {
                let end = (index + 4).min(reply.len());
                let ahead = grammar.masks(&reply[index..end]).unwrap();
                assert_eq!(ahead.draft_count as usize, end - index);
                // At the very first position everything is allowed.
                let here = grammar.masks(&[]).unwrap().masks.pop();
                assert_eq!(here.as_ref().unwrap_or(&all.masks[0]), mask, "{format} {index}");
                grammar.accept(&reply[index..(index + 1).min(reply.len())]).unwrap();
            }
        }
    }
}

fn pieces_of_tags() -> Vec<Vec<u8>> {
    let pieces =
        ["<tool", "_call", ">\n", ">{", ">x", "{\"", "{x", "=weather", "=we", "=x", ">\n<"];
    pieces.iter().map(|piece| piece.as_bytes().to_vec()).collect()
}

/// Random replies with many calls. Whatever the masks allow, the reader finds only declared
/// functions, and the arguments of a strict one are valid.
#[test]
fn no_reply_has_a_call_that_is_not_declared() {
    let pieces = [pieces_of_tags(), super::pieces()].concat();
    for (model, marks) in [(Model::with(&pieces, true), true), (Model::with(&pieces, false), false)]
    {
        for format in FORMATS {
            for seed in 0..8 {
                let mut dice = Dice::new(seed);
                let mut grammar = text(&model, format, true, ReasoningStart::Never);
                let (reply, whole) = wild(&model, &mut grammar, &mut dice, format, marks);
                let (mut calls, _) = read(&reply, format, tools());
                if !whole {
                    calls.pop();
                }
                for (name, arguments) in calls {
                    assert!(["weather", "now"].contains(&&*name), "{name} in {reply}");
                    if name == "weather" {
                        let value: serde_json::Value = serde_json::from_str(&arguments)
                            .unwrap_or_else(|error| panic!("{error}: {arguments} in {reply}"));
                        assert!(value["city"].is_string(), "{reply}");
                        assert!(value["unit"] == "c" || value["unit"] == "f", "{reply}");
                    }
                }
            }
        }
    }
}

/// Tokens that the mask allows, mostly of text that is a call or almost one.
fn wild(
    model: &Model,
    grammar: &mut Grammar,
    dice: &mut Dice,
    format: Format,
    marks: bool,
) -> (String, bool) {
    let (strict, loose) = calls(format);
    let hints = [
        strict,
        loose,
        "<tool_call>{\"name\": \"other\"",
        "<function=other>",
        "<function=weather>x",
    ];
    let mut tokens: Vec<TokenId> = Vec::new();
    let mut hint: Vec<TokenId> = Vec::new();
    for _ in 0..400 {
        if hint.is_empty() {
            hint = model.encode(dice.pick(&hints));
            if !marks && dice.below(2) == 0 {
                hint.truncate(1 + dice.below(hint.len() - 1));
            }
            hint.reverse();
        }
        let wanted = match dice.below(12) {
            0 => dice.below(model.words.len()) as TokenId,
            _ => hint.pop().unwrap(),
        };
        let masks = grammar.masks(&[]).unwrap().masks;
        let legal = |token: TokenId| masks.first().is_none_or(|mask| allowed(mask, token));
        let token = if legal(wanted) && !ENDS.contains(&wanted) {
            wanted
        } else {
            let all: Vec<TokenId> = (0..model.words.len() as TokenId)
                .filter(|token| legal(*token) && !ENDS.contains(token))
                .collect();
            dice.pick(&all)
        };
        grammar.accept(&[token]).unwrap();
        tokens.push(token);
    }
    // Of the special tokens, a reader sees only the tags.
    let shown = tokens.iter().filter(|token| **token != OTHER && !ENDS.contains(token));
    let whole = grammar.clone().accept(&ENDS[..1]).is_ok();
    (model.text(&shown.copied().collect::<Vec<_>>()), whole)
}

/// The calls that a reader of replies finds, and the text besides them.
pub(super) fn read(
    reply: &str,
    format: Format,
    tools: Arc<[Tool]>,
) -> (Vec<(String, String)>, String) {
    let mut reader = Tagged::new(format.style(), ReasoningStart::Never, Some(tools), true, false);
    let mut events = Events::default();
    reply.chars().for_each(|character| reader.push(character, &mut events));
    let (mut calls, mut content) = (Vec::new(), String::new());
    for event in events.take() {
        match event {
            Event::Call { name, .. } => calls.push((name, String::new())),
            Event::Arguments { text, .. } => calls.last_mut().unwrap().1 += &text,
            Event::Content(text) => content += &text,
            Event::Reasoning(_) => {}
        }
    }
    (calls, content)
}

/// The grammar of Codex's tool `apply_patch`.
const PATCH: &str = r#"start: begin_patch environment_id? hunk+ end_patch
begin_patch: "*** Begin Patch" LF
environment_id: "*** Environment ID: " filename LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"#;

fn call_of_patch(format: Format, input: &str) -> String {
    let padding = if format == Format::Qwen3Coder { "\n" } else { "" };
    match format {
        Format::Hermes => format!(
            "<tool_call>\n{{\"name\": \"apply_patch\", \"arguments\": {}}}\n</tool_call>",
            json!({ "input": input }).to_string().replacen("\":", "\": ", 1)
        ),
        _ => format!(
            "<tool_call>\n<function=apply_patch>\n<parameter=input>{padding}{input}{padding}\
             </parameter>\n</function>\n</tool_call>"
        ),
    }
}

#[test]
fn a_text_follows_its_own_grammar() {
    let model = Model::pieces();
    let patch = "*** Begin Patch\n*** Add File: a \"b\".py\n+print(\"\\n\")\n+\n\
        *** Update File: src/\u{e9}.rs\n*** Move to: x\n@@ fn f() {\n-\told\n+new <b>\n \n\
        *** End of File\n*** Delete File: z\n*** End Patch";
    let wrong = [
        "print()".to_owned(),
        patch.replace("*** Begin Patch\n", ""),
        patch.replace("+new", "new"),
        patch.replace("+new", "+</parameter>"),
        format!("{patch}\nmore"),
    ];
    for format in FORMATS {
        let grammar = Some(TextGrammar::Lark(PATCH.to_owned()));
        let tool = Tool::of_text("apply_patch".to_owned(), None, grammar);
        for grammar in [
            Constraint::TextWithCalls { tools: [tool.clone()].into(), format, parallel: true },
            Constraint::Calls { tools: vec![tool], format, parallel: true },
        ] {
            let grammar = model.compile(&grammar).unwrap();
            for right in [patch, &format!("{patch}\n")] {
                assert!(model.takes(&grammar, &call_of_patch(format, right)), "{format}");
            }
            for (number, wrong) in wrong.iter().enumerate() {
                let tag = number == 3 && format == Format::Hermes;
                assert_eq!(model.takes(&grammar, &call_of_patch(format, wrong)), tag, "{wrong}");
            }
        }
        let regex = TextGrammar::Regex("[a-c\"/]+\n|\\\\.".to_owned());
        let tool = Tool::of_text("apply_patch".to_owned(), None, Some(regex));
        let grammar = Constraint::TextWithCalls { tools: [tool].into(), format, parallel: true };
        let grammar = model.compile(&grammar).unwrap();
        for (text, right) in [("ab/\"\n", true), ("\\\"", true), ("ab", false), ("\\", false)] {
            assert_eq!(model.takes(&grammar, &call_of_patch(format, text)), right, "{text}");
        }
    }
}

#[test]
fn a_text_of_anything_ends_where_its_call_does() {
    /// The grammar of the tool with which Codex runs programs.
    const PROGRAM: &str = "start: pragma_source | plain_source\n\
        pragma_source: PRAGMA_LINE NEWLINE SOURCE\nplain_source: SOURCE\n\n\
        PRAGMA_LINE: /[ \\t]*\\/\\/ @exec:[^\\r\\n]*/\nNEWLINE: /\\r?\\n/\nSOURCE: /[\\s\\S]+/\n";
    let model = Model::pieces();
    for format in FORMATS {
        for lark in ["start: /(?s:.)+/", "start: \"a\" /(?s:.)+/", PROGRAM] {
            let tool = Tool::of_text(
                "apply_patch".to_owned(),
                None,
                Some(TextGrammar::Lark(lark.to_owned())),
            );
            let tools = [tool].into();
            let constraint = Constraint::TextWithCalls { tools, format, parallel: true };
            let grammar = model.compile(&constraint).unwrap();
            for text in ["a\n<</b></p></parameters<", "ab", "a// @exec: x\ny"] {
                let taken = model.takes(&grammar, &call_of_patch(format, text));
                assert!(taken, "{format} {lark} {text}");
            }
        }
    }
}

#[test]
fn a_grammar_of_text_that_cannot_be_followed_is_refused() {
    let model = Model::bytes();
    for (lark, what) in [
        ("start: \"a", "the string"),
        ("start: <think>", "names a token"),
        ("start: %json {}", "%json"),
        ("root ::= \"a\"", "GBNF"),
        ("start: A\nA: /a+/ & ~/aa/", "within a JSON string"),
        ("start: \"b\" /^a/", "anchors"),
    ] {
        let grammar = Some(TextGrammar::Lark(lark.to_owned()));
        let tool = Tool::of_text("f".to_owned(), None, grammar);
        let (tools, format) = ([tool].into(), Format::Hermes);
        let constraint = Constraint::TextWithCalls { tools, format, parallel: true };
        let error = model.compile(&constraint).err().unwrap().to_string();
        assert!(error.contains("tool \"f\"") && error.contains(what), "{error}");
    }
}
