//! Masks allow exactly what the grammar accepts, after every draft, and computing them changes
//! nothing.

use serde_json::json;

use super::{
    CALL, Dice, END_CALL, END_THINK, ENDS, Model, OTHER, THINK, allowed, json as schema, listed,
    walk,
};
use crate::grammar::{Constraint, Grammar, GrammarError};
use crate::{ReasoningStart, TokenId};

fn constraints() -> Vec<Constraint> {
    vec![
        Constraint::JsonObject,
        schema(json!({
            "type": "object",
            "properties": {
                "name": { "type": "string", "pattern": "^[a-z\u{e9}\u{4e16}]{1,9}$" },
                "n": { "type": "integer", "minimum": 0, "maximum": 5000 },
                "list": { "type": "array", "items": { "enum": ["true", true, null, "t"] } },
            },
            "required": ["name", "list"],
            "additionalProperties": { "type": "boolean" },
        })),
        Constraint::Regex("(ab|a[0-9]{2,5}|\u{1f44b})+(</think>)?".to_owned()),
        Constraint::Lark(
            "start: \"[\" item (\",\" item)* \"]\"\n\
             item: start | NUMBER | <think> NUMBER </think>\nNUMBER: /[0-9]+(\\.[0-9]+)?/"
                .to_owned(),
        ),
        Constraint::Choice(["the", "thing", "the thing", "", "</"].map(str::to_owned).to_vec()),
    ]
}

#[test]
fn masks_are_what_each_token_alone_would_say() {
    for (model, places) in [(Model::bytes(), 12), (Model::pieces(), 4)] {
        for (number, constraint) in constraints().iter().enumerate() {
            let mut grammar = model.compile(constraint).unwrap();
            let mut dice = Dice::new(number as u64 + 40);
            for _ in 0..places {
                let mask = grammar.masks(&[]).unwrap().masks.remove(0);
                for token in 0..mask.len() as TokenId * 32 {
                    let alone = grammar.masks(&[token]).unwrap().draft_count == 1;
                    assert_eq!(allowed(&mask, token), alone, "{constraint:?}: {token}");
                }
                let token = dice.pick(&listed(&mask));
                if ENDS.contains(&token) {
                    break;
                }
                grammar.accept(&[token]).unwrap();
            }
        }
    }
}

#[test]
fn asking_changes_nothing() {
    let model = Model::pieces();
    for (number, constraint) in constraints().iter().enumerate() {
        for seed in 0..6 {
            let mut dice = Dice::new(seed * 100 + number as u64);
            let mut asked = model.compile(constraint).unwrap();
            let mut silent = asked.clone();
            let reply = walk(&model, &mut asked, &mut dice, 40);
            // During the walk, masks were computed for drafts of all kinds at every position.
            let mut again = silent.clone();
            for &token in &reply {
                silent.accept(&[token]).unwrap();
            }
            assert_eq!(asked_here(&mut silent), asked_here(&mut asked));
            for (index, token) in reply.iter().enumerate() {
                let alone = asked_here(&mut again);
                for _ in 0..3 {
                    let end = (index + dice.below(5)).min(reply.len());
                    let mut drafts = reply[index..end].to_vec();
                    if dice.below(2) == 0 {
                        drafts.push(dice.below(model.words.len()) as TokenId);
                    }
                    let masks = again.masks(&drafts).unwrap();
                    assert!(masks.draft_count as usize >= end - index);
                    assert_eq!(masks.masks[0], alone);
                }
                assert_eq!(asked_here(&mut again), alone);
                again.accept(&[*token]).unwrap();
            }
        }
    }
}

/// llguidance caches its last mask under a key that two paths through a grammar can share.
#[test]
fn what_was_asked_for_one_way_does_not_show_on_another() {
    let model = Model::bytes();
    let lark = "start: \"a\" X \"1\" | \"b\" X \"2\"\nX: /x+/".to_owned();
    let mut grammar = model.compile(&Constraint::Lark(lark)).unwrap();
    let tokens = |text: &[u8]| text.iter().map(|&byte| TokenId::from(byte)).collect::<Vec<_>>();
    let masks = grammar.masks(&tokens(b"ax")).unwrap();
    assert_eq!(listed(&masks.masks[2]), tokens(b"1x"));
    grammar.accept(&tokens(b"bx")).unwrap();
    assert_eq!(listed(&asked_here(&mut grammar)), tokens(b"2x"));
}

fn asked_here(grammar: &mut Grammar) -> Vec<u32> {
    grammar.masks(&[]).unwrap().masks.remove(0)
}

#[test]
fn masks_of_drafts_are_those_of_the_places_they_lead_to() {
    let model = Model::pieces();
    for (number, constraint) in constraints().iter().enumerate() {
        let mut dice = Dice::new(number as u64 + 9);
        let mut grammar = model.compile(constraint).unwrap();
        let reply = walk(&model, &mut grammar.clone(), &mut dice, 30);
        let masks = grammar.masks(&reply).unwrap();
        assert_eq!(masks.draft_count as usize, reply.len());
        for (index, mask) in masks.masks.iter().enumerate() {
            let mut there = grammar.clone();
            there.accept(&reply[..index]).unwrap();
            assert_eq!(asked_here(&mut there), *mask);
        }
    }
}

/// Whether the model would choose a draft is unknown until the draft's mask is computed.
#[test]
fn a_draft_into_a_place_with_an_error_is_not_followed_and_costs_nothing() {
    let mut dice = Dice::new(8);
    let long = (0..200).map(|_| (0..64).map(|_| dice.pick(b"ab")).collect()).collect::<Vec<_>>();
    let model = Model::with(&long, true);
    let [a, x, z] = [b'a', b'x', b'z'].map(TokenId::from);
    for (lark, invalid) in [
        // An end token cannot be matched within a grammar.
        ("start: A (\"x\" <[256]> \"y\" | \"z\")\nA: /a{3}/", true),
        // The pattern breaks llguidance's matcher: it has more states than there is fuel for.
        ("start: A (\"x\" B | \"z\")\nA: /a{3}/\nB: /[ab]*a[ab]{400}/", false),
    ] {
        let mut grammar = model.compile(&Constraint::Lark(lark.to_owned())).unwrap();
        let mut silent = grammar.clone();
        grammar.accept(&[a, a]).unwrap();
        assert_eq!(grammar.masks(&[a, z]).unwrap().draft_count, 2, "{lark}");
        let masks = grammar.masks(&[a, x]).unwrap();
        silent.accept(&[a, a]).unwrap();
        assert_eq!(masks.masks[0], asked_here(&mut silent), "{lark}");
        assert_eq!(masks.masks.len(), masks.draft_count as usize + 1);
        for token in [a, z] {
            grammar.accept(&[token]).unwrap();
            silent.accept(&[token]).unwrap();
            assert_eq!(asked_here(&mut grammar), asked_here(&mut silent), "{lark}");
        }
        // Only a reply that takes this path fails.
        let mut there = model.compile(&Constraint::Lark(lark.to_owned())).unwrap();
        there.accept(&[a, a, a, x]).unwrap();
        let error = there.masks(&[a]).unwrap_err();
        assert_eq!(matches!(error, GrammarError::Invalid(_)), invalid, "{lark}: {error}");
        assert_eq!(matches!(error, GrammarError::TooLarge(_)), !invalid, "{lark}: {error}");
    }
}

#[test]
fn all_end_tokens_end_and_only_where_the_grammar_is_complete() {
    let model = Model::bytes();
    let mut grammar = model.compile(&Constraint::Regex("ab?".to_owned())).unwrap();
    let ends = ENDS.to_vec();
    assert_eq!(listed(&asked_here(&mut grammar)), [97]);
    assert_eq!(grammar.masks(&ENDS).unwrap().draft_count, 0);
    let masks = grammar.masks(&[97, 98, ENDS[1]]).unwrap();
    assert_eq!(masks.draft_count, 3);
    assert_eq!(listed(&masks.masks[1]), [vec![98], ends.clone()].concat());
    assert_eq!(listed(&masks.masks[2]), ends);
    assert_eq!(listed(&masks.masks[3]), ends);
    grammar.accept(&[97, 98]).unwrap();
    assert_eq!(listed(&asked_here(&mut grammar)), ends);
    // A request that ignores end tokens continues after them.
    grammar.accept(&[ENDS[0], ENDS[1]]).unwrap();
    assert_eq!(listed(&asked_here(&mut grammar)), ends);
    assert!(matches!(grammar.accept(&[97]), Err(GrammarError::Fault(_))));

    let any = Constraint::Lark("start: \"a\" <[*]> \"b\"".to_owned());
    let mut grammar = model.compile(&any).unwrap();
    grammar.accept(&[97]).unwrap();
    let mask = asked_here(&mut grammar);
    assert!(allowed(&mask, OTHER) && !ENDS.iter().any(|&end| allowed(&mask, end)));
    assert!(listed(&mask).iter().all(|&token| (token as usize) < model.words.len()));
}

#[test]
fn special_tokens_and_padding_are_in_no_text() {
    let model = Model::pieces();
    let texts = [
        Constraint::JsonObject,
        schema(json!({ "type": "string" })),
        Constraint::Regex("(?s:.)*".to_owned()),
        Constraint::Regex("\"(?s:.)*".to_owned()),
        Constraint::Lark("start: /[^x]+/".to_owned()),
    ];
    for constraint in texts {
        let mut grammar = model.compile(&constraint).unwrap();
        let begin: &[TokenId] = if constraint == Constraint::JsonObject {
            b"{\"".map(TokenId::from).as_slice().to_vec().leak()
        } else {
            &[34]
        };
        grammar.accept(begin).unwrap();
        let mask = asked_here(&mut grammar);
        assert_eq!(mask.len(), (model.words.len() + 37).div_ceil(32));
        assert!(allowed(&mask, 97));
        for token in [THINK, END_THINK, CALL, END_CALL, OTHER] {
            assert!(!allowed(&mask, token), "{constraint:?}");
            assert!(grammar.clone().accept(&[token]).is_err());
        }
        assert!(listed(&mask).iter().all(|&token| (token as usize) < model.words.len()));
    }
}

#[test]
fn everything_goes_until_reasoning_ends() {
    let model = Model::bytes();
    let digit = Constraint::Regex("[0-9]".to_owned());
    let begun =
        |reasoning: ReasoningStart| model.grammars.compile(&digit, reasoning, &|| false).unwrap();
    let mut grammar = begun(ReasoningStart::Begun);
    let x = TokenId::from(b'x');
    let seven = TokenId::from(b'7');
    let masks = grammar.masks(&[x, OTHER, ENDS[0]]).unwrap();
    assert_eq!((masks.draft_count, masks.masks.len()), (3, 0));
    // A token that does not exist is not a legal draft either.
    assert_eq!(grammar.masks(&[x, 9999]).unwrap().draft_count, 1);
    let masks = grammar.masks(&[x, END_THINK, seven, x]).unwrap();
    assert_eq!(masks.draft_count, 3);
    let all: Vec<TokenId> = (0..model.words.len() as TokenId).collect();
    assert_eq!(listed(&masks.masks[0]), all);
    assert_eq!(listed(&masks.masks[1]), all);
    let digits: Vec<TokenId> = (b'0'..=b'9').map(TokenId::from).collect();
    let newline = TokenId::from(b'\n');
    assert_eq!(listed(&masks.masks[2]), [vec![newline], digits.clone()].concat());
    assert_eq!(listed(&masks.masks[3]), ENDS);
    // None of these requests for masks has changed the state.
    assert!(grammar.masks(&[x]).unwrap().masks.is_empty());
    grammar.accept(&[x, END_THINK, newline, newline]).unwrap();
    assert_eq!(listed(&asked_here(&mut grammar)), digits);
    assert!(grammar.clone().accept(&[newline]).is_err());
    grammar.accept(&[seven]).unwrap();
    assert_eq!(listed(&asked_here(&mut grammar)), ENDS);

    let mut grammar = begun(ReasoningStart::Maybe);
    assert_eq!(listed(&asked_here(&mut grammar)), [digits.clone(), vec![THINK]].concat());
    assert_eq!(grammar.masks(&[THINK, x, END_THINK, seven, seven]).unwrap().draft_count, 4);
    assert_eq!(grammar.masks(&[seven, THINK]).unwrap().draft_count, 1);
    grammar.accept(&[seven]).unwrap();
    assert_eq!(listed(&asked_here(&mut grammar)), ENDS);

    let mut grammar = begun(ReasoningStart::Never);
    assert_eq!(listed(&asked_here(&mut grammar)), digits);
    assert!(grammar.accept(&[THINK]).is_err());
}

#[test]
fn reasoning_may_end_in_text() {
    let model = Model::with(&[b"k>".to_vec(), b"k>\n".to_vec(), b"k>7".to_vec()], false);
    let digit = Constraint::Regex("[0-9]".to_owned());
    let first = 263;
    for (last, left) in [(first, false), (first + 1, false), (first + 2, true)] {
        let mut grammar = model.grammars.compile(&digit, true, &|| false).unwrap();
        let text: Vec<TokenId> = b"so </</thin".iter().map(|&byte| TokenId::from(byte)).collect();
        grammar.accept(&text).unwrap();
        let masks = grammar.masks(&[last, 55]).unwrap();
        assert_eq!(masks.draft_count, if left { 1 } else { 2 });
        assert!(grammar.masks(&[107, 61]).unwrap().masks.is_empty());
        grammar.accept(&[last]).unwrap();
        let mask = asked_here(&mut grammar);
        assert_eq!(allowed(&mask, 55), !left);
        assert_eq!(allowed(&mask, ENDS[0]), left);
    }
}

#[test]
fn clones_go_their_own_ways() {
    let model = Model::pieces();
    let mut first = model.compile(&Constraint::JsonObject).unwrap();
    first.accept(&model.encode("{\"a\": [1, ")).unwrap();
    let mut second = first.clone();
    let before = asked_here(&mut second);
    first.accept(&model.encode("2]}")).unwrap();
    assert_eq!(listed(&asked_here(&mut first)), ENDS);
    assert!(first.accept(&[97]).is_err());
    assert_eq!(asked_here(&mut second), before);
    second.accept(&model.encode("{\"b\": null}], \"c\": \"d\"}")).unwrap();
    assert_eq!(listed(&asked_here(&mut second)), ENDS);
}

#[test]
fn grammars_can_be_sent_to_threads() {
    fn send<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    send::<Grammar>();
    shared::<crate::Grammars>();
}

#[test]
fn what_is_asked_for_again_is_not_compiled_again() {
    let model = Model::pieces();
    let of = |first: &str, second: &str| {
        schema(
            serde_json::from_str(&format!(
                r#"{{"type": "object", "additionalProperties": false, "required": ["a", "b"],
                "properties": {{"{first}": {{"type": "null"}}, "{second}": {{"type": "null"}}}}}}"#
            ))
            .unwrap(),
        )
    };
    let mut used = model.compile(&of("a", "b")).unwrap();
    used.accept(&model.encode("{\"a\":null,")).unwrap();
    let again = model.compile(&of("a", "b")).unwrap();
    assert_eq!(model.grammars.cache.len(), 1);
    assert!(model.takes(&again, r#"{"a":null,"b":null}"#), "it begins at the beginning");
    // JSON's equality ignores the order of fields, but replies have one.
    let turned = model.compile(&of("b", "a")).unwrap();
    assert_eq!(model.grammars.cache.len(), 2);
    assert!(model.takes(&turned, r#"{"b":null,"a":null}"#));
    assert!(!model.takes(&turned, r#"{"a":null,"b":null}"#));
    assert!(model.compile(&Constraint::Regex("((".to_owned())).is_err());
    assert_eq!(model.grammars.cache.len(), 2, "errors are not kept");
    let reasons = model.grammars.compile(&of("a", "b"), true, &|| false);
    assert!(reasons.unwrap().masks(&[]).unwrap().masks.is_empty(), "its own reply may reason");
}
