//! Regular expressions, Lark, GBNF, choices, and JSON without a schema.

use serde_json::{Value, json};

use super::{Dice, ENDS, Model, listed, walk};
use crate::grammar::{Constraint, GrammarError, gbnf};

fn lark(text: &str) -> Constraint {
    Constraint::Lark(text.to_owned())
}

fn check(model: &Model, constraint: &Constraint, yes: &[&str], no: &[&str]) {
    let grammar =
        model.compile(constraint).unwrap_or_else(|error| panic!("{constraint:?}: {error}"));
    for text in yes {
        assert!(model.takes(&grammar, text), "{constraint:?} should take {text:?}");
    }
    for text in no {
        assert!(!model.takes(&grammar, text), "{constraint:?} should not take {text:?}");
    }
}

fn message(model: &Model, constraint: &Constraint) -> String {
    match model.compile(constraint) {
        Err(GrammarError::Invalid(text)) => text,
        other => panic!("{constraint:?}: {:?}", other.map(|_| "compiled")),
    }
}

#[test]
fn json_objects_are_objects() {
    let model = Model::pieces();
    let yes =
        ["{}", "{ }", "{\"a\":1}", "{\"a\": [1, 2.5e3, null, {\"b\": \"c\\n\"}], \"d\": false}"];
    let no = ["", "[]", "1", "{", "{}}", "{\"a\":}", "{a:1}", "{\"a\":01}", "{\"a\":\"\n\"}"];
    check(&model, &Constraint::JsonObject, &yes, &no);
    let grammar = model.compile(&Constraint::JsonObject).unwrap();
    for seed in 0..30 {
        let reply = walk(&model, &mut grammar.clone(), &mut Dice::new(seed), 80);
        let text = model.text(&reply);
        let document: Value = serde_json::from_str(&text).unwrap();
        assert!(document.is_object(), "{text}");
    }
    // White space is bounded, so that a reply cannot consist of white space forever.
    assert!(!model.takes(&grammar, &format!("{{{}}}", " ".repeat(100))));
}

#[test]
fn regular_expressions_match_the_whole_reply() {
    let model = Model::pieces();
    let regex = |text: &str| Constraint::Regex(text.to_owned());
    check(
        &model,
        &regex("[0-9]{3}-[0-9]{4}"),
        &["555-1234"],
        &["555-123", "x555-1234", "555-12345"],
    );
    check(&model, &regex("^(yes|no)$"), &["yes", "no"], &["yesno", ""]);
    check(&model, &regex("a/b\n\"\\w+\""), &["a/b\n\"\u{e9}x\""], &["a/b \"x\""]);
    check(&model, &regex("(?i)abc|.{2}"), &["aBc", "\u{4e16}\u{1f44b}"], &["\n\n", "abcd"]);
    check(&model, &regex(""), &[""], &["a"]);
    for (bad, what) in [("a(", "unclosed group"), ("(?=a)b", "look-around"), ("[z-a]", "range")] {
        let text = message(&model, &regex(bad));
        assert!(text.contains(what), "{text}");
    }
    assert!(matches!(model.compile(&regex(&"a".repeat(20_000))), Err(GrammarError::TooLarge(_))));
}

#[test]
fn choices_are_taken_as_they_are() {
    let model = Model::pieces();
    let choice =
        |texts: &[&str]| Constraint::Choice(texts.iter().map(|&text| text.to_owned()).collect());
    let odd = ["positive", "pos", "a \"quoted\"\n\\ \u{1f44b}\u{7f}\u{1}", "/x/", "</think>"];
    check(&model, &choice(&odd), &odd[..4], &["", "positiv", "neutral", "positive "]);
    check(&model, &choice(&["", "a"]), &["", "a"], &["aa"]);
    assert!(message(&model, &choice(&[])).contains("at least one"));
    // A choice is text, even if it looks like markup.
    let mut grammar = model.compile(&choice(&["</think>"])).unwrap();
    let text: Vec<u32> = b"</think>".iter().map(|&byte| u32::from(byte)).collect();
    grammar.accept(&text).unwrap();
    assert_eq!(listed(&grammar.masks(&[]).unwrap().masks[0]), ENDS);
}

#[test]
fn lark_is_taken_as_llguidance_has_it() {
    let model = Model::pieces();
    let sum = lark(
        "start: sum\nsum: product | sum \"+\" product\nproduct: atom | product \"*\" atom\n\
         atom: NUMBER | \"(\" sum \")\"\nNUMBER: /[0-9]+/\n%ignore /[ ]+/",
    );
    check(&model, &sum, &["1", "1 + 2*(3+4)", "((7))"], &["", "1+", "(1", "1 2", "a"]);
    let thought = lark("start: <think> /[a-z ]*/ </think> %json {\"type\": \"boolean\"}");
    check(&model, &thought, &["<think>hm hm</think>true"], &["true", "<think></think>1"]);
    // The embedded schema is prepared like any other.
    let text = message(&model, &lark("start: %json {\"not\": {\"type\": \"null\"}}"));
    assert!(text.contains("`not` at #/not"), "{text}");
    let date = lark("start: \"on \" %json {\"format\": \"date\", \"type\": \"string\"} \".\"");
    check(&model, &date, &["on \"2024-02-29\"."], &["on \"2023-02-29\".", "on ."]);
    for (bad, what) in [
        ("begin: \"a\"", "no start rule"),
        ("start: nowhere", "nowhere"),
        ("start: \"a", "lexer error"),
        ("start: a\na[max_tokens=5]: /x/", "max_tokens"),
        ("start: a\na[temperature=0.5]: /x/", "temperature"),
        ("start: <|nobody|>", "nobody"),
        ("start: %json {", "without JSON"),
    ] {
        let text = message(&model, &lark(bad));
        assert!(text.contains(what), "{bad}: {text}");
    }
}

const ARITHMETIC: &str = r#"
# As in the examples of llama.cpp.
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"#;

const JSON: &str = r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

ws ::= | " " | "\n" [ \t]{0,20}
"#;

#[test]
fn gbnf_becomes_lark() {
    let model = Model::pieces();
    check(
        &model,
        &lark(ARITHMETIC),
        &["1=1\n", "x1 +2*(y)= 3\n", "a=b\nc=d\n"],
        &["", "1=1", "1==1\n", "A=1\n", "(1=1\n"],
    );
    check(
        &model,
        &lark(JSON),
        &["{}", "{\"a\": [1, -2.5e3, \"x\\u00e9\\n\"], \"b\":{}}", "{ \"\u{1f44b}\":null}"],
        &["", "[]", "{\"a\"}", "{\"a\":01}", "{\"a\": \"\t\"}"],
    );
    let sql = "root ::= select_statement\nselect_statement ::= \"SELECT \" column (\", \" column)? \
               \" from \" table\ncolumn ::= \"col_1\" | 'col_2'\ntable ::= \"table_1\"\n";
    check(&model, &lark(sql), &["SELECT col_1, col_2 from table_1"], &["SELECT from table_1"]);
    let odd = "start ::= Upper-Case2 | x\nUpper-Case2 ::= \"\\x41\" \"\\u00e9\"{2} [\\]\\-a]{,2} \
               .\nx ::= \"(\" x? \")\" | <think> x{1,2} </think> | \"\"{0}";
    check(
        &model,
        &lark(odd),
        &["A\u{e9}\u{e9}]-\n", "A\u{e9}\u{e9}\u{4e16}", "((()))", "<think>()()</think>", ""],
        &["A\u{e9}x", "(", "<think></think>x"],
    );
}

#[test]
fn random_replies_in_gbnf_are_in_the_language() {
    let model = Model::pieces();
    let grammar = model.compile(&lark(JSON)).unwrap();
    for seed in 0..30 {
        let reply = walk(&model, &mut grammar.clone(), &mut Dice::new(seed), 60);
        let text = model.text(&reply);
        let document: Result<Value, _> = serde_json::from_str(&text);
        // The author of this grammar allows unpaired surrogates.
        assert!(document.is_ok_and(|value| value.is_object()) || text.contains("\\u"), "{text}");
    }
}

#[test]
fn wrong_gbnf_is_refused_where_it_is_wrong() {
    let model = Model::bytes();
    for (bad, what) in [
        ("a ::= \"x\"", "no rule `root`"),
        ("root ::= a b\na ::= \"x\"", "\"b\", which is not there"),
        ("root ::= \"x", "line 1, column 12: the string does not end"),
        ("root ::= \"x\"\nroot ::= \"y\"", "a second rule"),
        ("root ::= (\"x\"", "expected `)`"),
        ("root ::= [z-a]", "range is empty"),
        ("root ::= \"a\"{3,2}", "number of repetitions"),
        ("root ::= (= \"a\") .", "look-ahead"),
        ("root ::= \"\\q\"", "unknown escape"),
        ("root ::= \"x\"i", "case"),
        ("root ::= root \"a\"", "matches nothing"),
    ] {
        let text = message(&model, &lark(bad));
        assert!(text.contains(what), "{bad}: {text}");
    }
    assert!(gbnf::is_gbnf("\n  root ::= a") && !gbnf::is_gbnf("start: \"::=\"\n// root::= x"));
}

#[test]
fn multiples_are_told_up_to_the_largest() {
    let model = Model::bytes();
    for (multiple, good, bad) in [
        (json!(4093), ["8186", "-4093000"], ["8185", "4094"]),
        (json!(1e-8), ["0.00000003", "-12.5"], ["0.000000001", "0.000000031"]),
        (json!(0.25), ["1.75", "1000000"], ["1.7", "0.126"]),
    ] {
        let schema = json!({ "type": "number", "multipleOf": multiple });
        let grammar = model.compile(&Constraint::JsonSchema { schema, strict: true }).unwrap();
        for text in good {
            assert!(model.takes(&grammar, text), "{text} of {multiple}");
        }
        for text in bad {
            assert!(!model.takes(&grammar, text), "{text} of {multiple}");
        }
    }
}

#[test]
fn dialects_that_nobody_knows_are_no_mistake() {
    for dialect in [
        "http://json-schema.org/draft-07/schema",
        "https://json-schema.org/draft-07/schema#",
        "https://json-schema.org/draft/2020-12/schema#",
        "https://example.org/schema",
        "draft-07",
    ] {
        let schema = json!({ "$schema": dialect, "type": "boolean" });
        let constraint = Constraint::JsonSchema { schema, strict: true };
        check(&Model::bytes(), &constraint, &["true"], &["1"]);
    }
}

#[test]
fn schemas_that_cannot_be_enforced_are_refused_or_reported() {
    let model = Model::bytes();
    let schema = json!({
        "type": "object",
        "properties": {
            "a": { "type": "array", "items": { "type": "boolean" }, "uniqueItems": true },
            "b": { "type": "string", "pattern": "^(?=x).*$" },
            "c": { "type": "string", "format": "idn-email" },
        },
        "required": ["a", "b", "c"],
        "if": { "required": ["a"] }, "then": { "required": ["b"] },
    });
    let strict = Constraint::JsonSchema { schema: schema.clone(), strict: true };
    let text = message(&model, &strict);
    assert!(text.contains("`uniqueItems` at #/properties/a/uniqueItems"), "{text}");
    let grammar = model.compile(&Constraint::JsonSchema { schema, strict: false }).unwrap();
    let warnings = grammar.warnings().join("\n");
    for place in ["a/uniqueItems", "b/pattern", "c/format", "#/if", "#/then"] {
        assert!(warnings.contains(place), "{warnings}");
    }
    assert!(model.takes(&grammar, "{\"a\":[true,true],\"b\":\"y\",\"c\":\"\"}"));
    let loose =
        json!({ "a": { "type": "float" }, "b": { "type": "any" }, "c": { "type": ["str"] } });
    let loose = json!({ "type": "dict", "properties": loose });
    let grammar = model.compile(&Constraint::JsonSchema { schema: loose, strict: false }).unwrap();
    assert!(
        model.takes(&grammar, "{\"a\":1.5,\"b\":[]}") && !model.takes(&grammar, "{\"a\":\"\"}")
    );
    for (bad, what) in [
        (json!({ "type": "nonsense" }), "at #/type: there is no type \"nonsense\""),
        (json!({ "items": { "type": ["null", "x"] } }), "at #/items/type: there is no type \"x\""),
        (json!({ "type": 5 }), "at #/type: it must be the name of a type"),
    ] {
        let text = message(&model, &Constraint::JsonSchema { schema: bad, strict: false });
        assert!(text.contains(what), "{text}");
    }
}

#[test]
fn schemas_that_make_no_sense_are_refused_by_their_place() {
    let model = Model::pieces();
    for (bad, what) in [
        (json!({ "type": "text" }), "no type \"text\""),
        (json!({ "$ref": "#/$defs/gone" }), "gone"),
        (json!({ "type": "integer", "minimum": 3, "maximum": 2 }), "minimum"),
        (json!({ "enum": [] }), "anyOf is empty"),
        (json!({ "const": "\u{1}" }), "control character"),
        (json!({ "const": 9_007_199_254_740_993_u64 }), "too large to be exact"),
        (json!({ "const": [{ "a": 1e25 }] }), "#/const: the number 1e+25 is too large to be exact"),
        (json!({ "enum": [1, -1e300] }), "at #/enum: the number -1e+300 is too large"),
        (json!({ "maximum": 1e300 }), "`maximum` of 1e+300, which is too large to be exact, at #/"),
        (json!({ "items": { "multipleOf": 1e300 } }), "at #/items/multipleOf is not supported"),
        (
            json!({ "multipleOf": 1e-300 }),
            "too many digits (at most 4096 without the point, and 8 after it), at #/multipleOf",
        ),
        (
            json!({ "multipleOf": 1e-9 }),
            "too many digits (at most 4096 without the point, and 8 after it), at #/multipleOf",
        ),
        (
            json!({ "multipleOf": 65_537 }),
            "too many digits (at most 4096 without the point, and 8 after it), at #/multipleOf",
        ),
        (
            json!({ "allOf": [{ "multipleOf": 2048 }, { "multipleOf": 2047 }] }),
            "too many digits together, at # is",
        ),
        (json!({ "multipleOf": 0.0 }), "at #/multipleOf: it must be a number greater than 0"),
        (json!({ "minLength": 1e300 }), "at #/minLength: no reply can be that long"),
        (json!({ "maxItems": -1 }), "at #/maxItems: it must be a whole number"),
        (json!({ "$ref": "other.json" }), "nothing is fetched"),
        (json!({ "properties": { "a~/": { "properties": [] } } }), "#/properties/a~0~1/properties"),
    ] {
        let text = message(&model, &Constraint::JsonSchema { schema: bad, strict: true });
        assert!(text.contains(what), "{text}");
    }
}

#[test]
fn white_space_is_bounded_or_the_users_own() {
    let model = Model::pieces();
    let array = json!({ "type": "array", "items": { "type": "boolean" } });
    let usual = model.compile(&super::json(array.clone())).unwrap();
    for (text, right) in [
        ("[true, false]", true),
        ("[\n    true,\n    false\n]", true),
        ("[\n\ttrue]", true),
        ("[  true]", false),
        ("[\n\ntrue]", false),
        ("[\r\ntrue]", false),
    ] {
        assert_eq!(model.takes(&usual, text), right, "{text:?}");
    }
    assert!(!model.takes(&usual, &format!("[\n{}true]", " ".repeat(17))));
    for (space, right, wrong) in [
        ("", "[true,false]", "[true, false]"),
        ("[ ]?", "[true, false]", "[true,  false]"),
        ("[ ]?", "[true,false]", "[true,\nfalse]"),
        ("\\n{2}|\\t", "[true,\tfalse\n\n]", "[true, false]"),
    ] {
        let constraint = Constraint::SpacedJson { schema: array.clone(), space: space.to_owned() };
        let grammar = model.compile(&constraint).unwrap();
        assert!(model.takes(&grammar, right), "{space:?} {right:?}");
        assert!(!model.takes(&grammar, wrong), "{space:?} {wrong:?}");
    }
    for space in [".", "[^ ]", "(", "^ "] {
        let constraint = Constraint::SpacedJson { schema: array.clone(), space: space.to_owned() };
        assert!(message(&model, &constraint).contains("pattern of white space"), "{space}");
    }
}
