//! Constraints built to be expensive: each is refused, or costs no more than any other.

use std::cell::Cell;
use std::sync::{Arc, Barrier};

use serde_json::{Map, Value, json};

use super::{Dice, Model, json as constraint, listed};
use crate::grammar::compile::CompilePool;
use crate::grammar::{Constraint, Grammar, GrammarError, limits};
use crate::{Format, Tool};

fn nested(depth: usize, inner: Value, wrap: impl Fn(Value) -> Value) -> Value {
    (0..depth).fold(inner, |value, _| wrap(value))
}

/// Definitions each of which uses the next one twice.
fn doubling(count: usize, twice: impl Fn(Value) -> Value) -> Value {
    let mut definitions = Map::new();
    for index in 0..count {
        let next = json!({ "$ref": format!("#/$defs/d{}", index + 1) });
        definitions.insert(format!("d{index}"), twice(next));
    }
    definitions.insert(format!("d{count}"), json!({ "type": "object" }));
    json!({ "$defs": definitions, "$ref": "#/$defs/d0" })
}

type Named = (&'static str, Value);

/// Multiples of numbers with few common factors.
fn multiples(count: u32) -> Vec<Value> {
    (0..count).map(|index| json!({ "type": "number", "multipleOf": 3001 + 2 * index })).collect()
}

fn deep() -> Vec<Named> {
    let null = json!({ "type": "null" });
    let length = json!({ "minLength": 1 });
    vec![
        ("deep objects", nested(39, json!(true), |one| json!({ "properties": { "a": one } }))),
        ("too deep", nested(200, json!(true), |one| json!({ "items": one }))),
        ("deep anyOf", nested(38, null, |one| json!({ "anyOf": [one, true] }))),
        ("deep allOf", nested(12, length, |one| json!({ "allOf": [one, one.clone()] }))),
        ("doubling allOf", doubling(40, |next| json!({ "allOf": [next, next.clone()] }))),
        ("doubling anyOf", doubling(40, |next| json!({ "anyOf": [next, next.clone()] }))),
        (
            "doubling siblings",
            doubling(40, |next| {
                let both = json!({ "a": next, "b": next.clone() });
                json!({ "$ref": next["$ref"], "properties": both })
            }),
        ),
        (
            "doubling properties",
            doubling(30, |next| {
                let (one, both) = (json!({ "a": next }), json!({ "a": next, "b": next.clone() }));
                json!({ "allOf": [{ "properties": one }, { "properties": both }] })
            }),
        ),
        ("its own reference", json!({ "$ref": "#" })),
        ("a ring of references", {
            let definitions = json!({ "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } });
            json!({ "$defs": definitions, "$ref": "#/$defs/a" })
        }),
        (
            "no end",
            json!({ "type": "object", "properties": { "a": { "$ref": "#" } }, "required": ["a"] }),
        ),
        ("somewhere else", json!({ "$ref": "http://169.254.169.254/latest" })),
        ("a file", json!({ "$ref": "file:///etc/passwd" })),
    ]
}

fn wide() -> Vec<Named> {
    let names = |count: usize| -> Vec<String> {
        (0..count).map(|index| format!("name {index:05}")).collect()
    };
    let map = |count: usize, schema: Value| -> Map<String, Value> {
        names(count).into_iter().map(|name| (format!("^{name}"), schema.clone())).collect()
    };
    let strings = |count: usize| map(count, json!({ "type": "string" }));
    let nulls = |count: usize| vec![json!({ "type": "null" }); count];
    let pattern = |index: usize| json!({ "pattern": format!("(a|b{index}).{{{index}}}c") });
    let values: Vec<Value> = names(4_000).iter().map(|name| json!({ "const": name })).collect();
    vec![
        ("giant enum", json!({ "enum": names(19_000) })),
        ("larger enum", json!({ "enum": names(30_000) })),
        ("enum twice", json!({ "allOf": [{ "enum": names(9_000) }, { "enum": names(9_000) }] })),
        ("many properties", json!({ "type": "object", "properties": strings(6_000) })),
        ("large and many", json!({ "properties": strings(1_900), "anyOf": nulls(5_500) })),
        ("many oneOf", json!({ "oneOf": values })),
        ("many patterns", json!({ "patternProperties": strings(2_000) })),
        ("patterns at once", json!({ "allOf": (0..40).map(pattern).collect::<Vec<_>>() })),
    ]
}

fn endless() -> Vec<Named> {
    let array = json!({ "type": "array", "maxItems": 4_000_000_000_u64 });
    let string = |key: &str, value: Value| json!({ "type": "string", key: value });
    vec![
        ("minItems", json!({ "type": "array", "minItems": 1_000_000_000 })),
        ("maxItems", json!({ "type": "array", "maxItems": 4_000_000_000_u64, "items": array })),
        ("minLength", string("minLength", json!(1_000_000_000))),
        ("maxLength", string("maxLength", json!(2_000_000_000))),
        ("lengths beyond", string("minLength", json!(u64::MAX))),
        ("minProperties", json!({ "type": "object", "minProperties": 1_000_000_000 })),
        ("repeated pattern", string("pattern", json!("^((((a{1000}){1000}){1000}){1000})$"))),
        ("pattern that doubles", string("pattern", json!("(a|aa)+$|(.*x){50}[a-z].{200}$"))),
        ("far away", json!({ "type": "string", "pattern": "x.{300}$", "minLength": 500 })),
        ("multiples", json!({ "type": "number", "multipleOf": 1e-300 })),
        ("large multiple", json!({ "type": "number", "multipleOf": 65_537 })),
        ("joined multiples", json!({ "allOf": multiples(20) })),
        ("several multiples", json!({ "anyOf": multiples(20) })),
        ("many multiples", json!({ "prefixItems": multiples(21) })),
        ("more multiples", json!({ "prefixItems": multiples(22) })),
        ("numbers", json!({ "type": "number", "minimum": -1e308, "maximum": 1e308 })),
        ("its own options", json!({ "x-guidance": { "whitespace_pattern": "(((" } })),
        ("no schema", json!([1, 2])),
        ("wrong", json!({ "type": 5, "properties": 7, "items": "x", "enum": 3, "required": {} })),
    ]
}

fn languages() -> Vec<(&'static str, Constraint)> {
    let letters =
        |index: u8| format!("T{}{}", char::from(b'A' + index / 26), char::from(b'A' + index % 26));
    let doubled =
        (0..60).map(|index| format!("{0}: {1} {1}\n", letters(index), letters(index + 1)));
    let doubled: String = doubled.collect();
    let terminals = format!("start: {}\n{doubled}{}: \"a\"\n", letters(0), letters(60));
    let rules = terminals.to_lowercase();
    let both =
        (0..40).map(|index| format!("/(a|b{{{index}}}).*c/")).collect::<Vec<_>>().join(" & ");
    let lark = |text: &str| Constraint::Lark(text.to_owned());
    let regex = |text: &str| Constraint::Regex(text.to_owned());
    vec![
        ("doubling terminals", Constraint::Lark(terminals)),
        ("doubling rules", Constraint::Lark(rules)),
        ("intersections", Constraint::Lark(format!("start: T\nT: {both}"))),
        ("complements", Constraint::Lark(format!("start: T\nT: {}", both.replace(" & ", " ~")))),
        (
            "deep groups",
            Constraint::Lark(format!("start: {}\"a\"{}", "(".repeat(5_000), ")".repeat(5_000))),
        ),
        ("ambiguity", lark("start: a\na: a a | \"x\" | \"xx\" | \"xxx\"")),
        ("left and right", lark("start: a\na: a \"b\" a | \"c\" a | /[bc]*/")),
        (
            "a schema within",
            Constraint::Lark(format!(
                "start: %json {}",
                doubling(40, |next| json!({ "allOf": [next, next.clone()] }))
            )),
        ),
        ("half a character", lark("start: \"\u{e9}")),
        ("repetition in GBNF", lark("root ::= ((\"a\"{1,90000}){1,90000}){1,90000} | root")),
        ("groups in GBNF", Constraint::Lark(format!("root ::= {}", "(".repeat(60_000)))),
        ("a regex", regex("(((a{1000}){1000}){1000}){1000}")),
        ("a long regex", Constraint::Regex("(?:a|b)?".repeat(2_000))),
        ("a longer regex", Constraint::Regex("(?:a|b)?".repeat(3_000))),
        ("unicode", regex("\\p{L}{1,1000}\\w{1,1000}(\\p{Greek}|\\P{Latin}){500}")),
        ("states", regex("[ab]*a[ab]{400}")),
        (
            "a long choice",
            Constraint::Choice((0..4000).map(|index| format!("{index:030}")).collect()),
        ),
        ("a longer choice", Constraint::Choice(vec![String::new(); 5000])),
        ("NUL", regex("\0\u{ff}")),
    ]
}

/// Names of the constraints that are refused, either before compiling or when compiling exceeds a
/// count.
const REFUSED: &[&str] = &[
    "too deep",
    "several multiples",
    "more multiples",
    "deep allOf",
    "doubling allOf",
    "doubling anyOf",
    "doubling siblings",
    "doubling properties",
    "larger enum",
    "enum twice",
    "many properties",
    "large and many",
    "many patterns",
    "far away",
    "patterns at once",
    "its own reference",
    "a ring of references",
    "doubling terminals",
    "intersections",
    "complements",
    "deep groups",
    "a schema within",
    "groups in GBNF",
    "a longer regex",
    "a longer choice",
];

#[test]
fn hostile_constraints_are_refused_or_cheap() {
    let model = Model::pieces();
    let schemas = [deep(), wide(), endless()].concat().into_iter();
    let schemas = schemas.map(|(name, schema)| (name, constraint(schema)));
    for (name, constraint) in schemas.chain(languages()) {
        match model.compile(&constraint) {
            Ok(grammar) => {
                assert!(!REFUSED.contains(&name), "{name}");
                stay_cheap(grammar, name);
            }
            Err(GrammarError::TooLarge(_)) => assert!(REFUSED.contains(&name), "{name}"),
            Err(GrammarError::Invalid(text)) => {
                assert!(!REFUSED.contains(&name) && !text.contains("panic"), "{name}: {text}");
            }
            Err(error) => panic!("{name}: {error:?}"),
        }
    }
}

fn stay_cheap(mut grammar: Grammar, name: &str) {
    let mut dice = Dice::new(3);
    for _ in 0..60 {
        let Ok(masks) = grammar.masks(&[]) else { break };
        // The limit is only checked between two derivatives.
        let multiple = if name.contains("multiples") { 3041 } else { 0 };
        assert!(grammar.fuel() <= 2 * limits(multiple).step_lexer_fuel, "{name}");
        let token = dice.pick(&listed(&masks.masks[0]));
        if grammar.accept(&[token]).is_err() {
            break;
        }
    }
}

/// Arguments that are written verbatim.
fn texts() -> Vec<Named> {
    let often = |what: Value| {
        let both = |name: &str| json!({ "anyOf": vec![json!({ "$ref": name }); 100] });
        let inner = json!({ "a": both("#/$defs/b"), "b": both("#/$defs/c"), "c": what });
        json!({ "$defs": inner, "$ref": "#/$defs/a" })
    };
    let letters = |count: usize| json!({ "pattern": "\\p{L}".repeat(count) });
    let part = |index: usize| json!({ "pattern": format!("(a|b{{{index}}}).*c") });
    vec![
        ("a long pattern, often", often(json!({ "pattern": "[a-m]x?".repeat(500) }))),
        ("a list, often", often(json!({ "enum": vec!["a name"; 100] }))),
        ("letters", letters(80)),
        ("more letters", letters(800)),
        ("eight at once", json!({ "allOf": (0..8).map(part).collect::<Vec<_>>() })),
        ("any of many", json!({ "anyOf": (0..2000).map(part).collect::<Vec<_>>() })),
    ]
}

#[test]
fn hostile_arguments_are_refused_or_cheap() {
    let model = Model::pieces();
    for (name, schema) in [deep(), wide(), endless(), texts()].concat() {
        let mut parameters = json!({ "properties": { "x": schema }, "required": ["x"] });
        // References start at the root.
        if let Some(definitions) = schema.get("$defs") {
            parameters["$defs"] = definitions.clone();
        }
        let tools =
            vec![Tool { name: "f".to_owned(), parameters, strict: true, ..Tool::default() }];
        let calls = Constraint::Calls { tools, format: Format::Mimo, parallel: false };
        match model.compile(&calls) {
            Ok(grammar) => stay_cheap(grammar, name),
            Err(GrammarError::TooLarge(_)) => {}
            Err(GrammarError::Invalid(text)) => assert!(!text.contains("panic"), "{name}: {text}"),
            Err(error) => panic!("{name}: {error:?}"),
        }
    }
}

#[test]
fn the_cancelled_do_not_wait() {
    let model = Model::bytes();
    let compile = |cancelled: &dyn Fn() -> bool| {
        model.grammars.compile(&Constraint::JsonObject, false, cancelled).map(drop)
    };
    assert_eq!(compile(&|| true), Err(GrammarError::Cancelled));
    assert_eq!(compile(&|| false), Ok(()));

    // Work that does not end until it is told to.
    let pool = CompilePool::default();
    let hold = Arc::new(Barrier::new(5));
    for _ in 0..4 {
        let hold = Arc::clone(&hold);
        let asked = Cell::new(0);
        let cancelled = || asked.replace(asked.get() + 1) > 2;
        let work = move || Ok(hold.wait().is_leader());
        assert_eq!(pool.run(work, &cancelled), Err(GrammarError::Cancelled));
    }
    // The work fills the pool. The next caller waits for it in vain,
    let asked = Cell::new(0);
    let cancelled = || asked.replace(asked.get() + 1) > 2;
    assert_eq!(pool.run(|| Ok(()), &cancelled), Err(GrammarError::Cancelled));
    // and another one until there is room again.
    hold.wait();
    assert_eq!(pool.run(|| Ok(7), &|| false), Ok(7));
    let panics = pool.run(|| -> Result<(), GrammarError> { panic!("of the test") }, &|| false);
    assert!(matches!(panics, Err(GrammarError::Fault(_))));
}

/// A stack of 2^60 bytes is refused by any system, as any thread is where there are too many.
#[test]
fn a_grammar_without_a_thread_is_told_apart_and_leaves_its_place() {
    let pool = CompilePool::with_stack(1 << 60);
    for _ in 0..10 {
        let outcome = pool.run(|| Ok(()), &|| false);
        assert!(matches!(outcome, Err(GrammarError::NoThread(_))), "{outcome:?}");
    }
}
