//! Multiples up to the largest, with a vocabulary that has every number of three digits: a mask
//! looks a thousand numbers ahead.

use serde_json::{Value, json};

use super::{Dice, ENDS, Model, json as constraint, listed};
use crate::TokenId;
use crate::grammar::Grammar;

/// Primes, which have no common factor with ten, powers of two, and the largest.
const MULTIPLES: [&str; 9] =
    ["997", "1024", "2047", "3001", "4000", "4093", "4096", "40.93", "0.00004093"];

/// The schema, and the text before and after the number.
fn forms(multiple: &Value) -> Vec<(Value, &'static str, &'static str)> {
    let range = json!({ "minimum": -9_876_543.5, "exclusiveMaximum": 1_234_567 });
    let mut ranged = json!({ "type": ["null", "number"], "multipleOf": multiple });
    ranged.as_object_mut().unwrap().extend(range.as_object().unwrap().clone());
    let number = json!({ "type": "number", "multipleOf": multiple });
    let joined = json!({ "type": "number", "allOf": [{ "multipleOf": multiple }] });
    let properties = json!({ "a": number, "b": { "type": "integer", "multipleOf": multiple } });
    let object = json!({ "type": "object", "properties": properties, "required": ["a", "b"] });
    vec![
        (number, "", ""),
        (ranged, "", ""),
        (joined, "", ""),
        (json!({ "multipleOf": multiple }), "", ""),
        (object.clone(), "{\"a\":", ",\"b\":0}"),
        (object, "{\"a\":0,\"b\":", "}"),
    ]
}

/// Generates a number in random pieces, mostly of three digits, until it may end.
fn number(model: &Model, grammar: &mut Grammar, dice: &mut Dice, end: TokenId) -> String {
    let is_piece = |token: TokenId| {
        let word = &model.words[token as usize].bytes;
        !word.is_empty() && word.iter().all(|byte| byte.is_ascii_digit() || b"-.".contains(byte))
    };
    let mut text = String::new();
    let patience = dice.below(16);
    loop {
        let allowed = listed(&grammar.masks(&[]).unwrap().masks[0]);
        let ends = allowed.contains(&end);
        let pieces: Vec<TokenId> = allowed.into_iter().filter(|&token| is_piece(token)).collect();
        if ends && (text.len() > patience || pieces.is_empty()) {
            return text;
        }
        let token = dice.pick(&pieces);
        grammar.accept(&[token]).unwrap();
        text += &model.text(&[token]);
    }
}

/// The number times 10^20.
fn scaled(text: &str) -> i128 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}{fraction:0<20}").parse().unwrap()
}

#[test]
fn every_multiple_can_be_written_and_nothing_else() {
    let model = Model::pieces();
    let mut dice = Dice::new(11);
    for multiple in MULTIPLES {
        for (schema, before, after) in forms(&serde_json::from_str(multiple).unwrap()) {
            let mut grammar = model.compile(&constraint(schema.clone())).unwrap();
            grammar.accept(&model.encode(before)).unwrap();
            let end = after.bytes().next().map_or(ENDS[0], TokenId::from);
            let text = number(&model, &mut grammar, &mut dice, end);
            assert_eq!(scaled(&text) % scaled(multiple), 0, "{text} of {multiple}");
            grammar.accept(&model.encode(after)).unwrap();
            grammar.accept(&ENDS[..1]).unwrap();
        }
    }
}
