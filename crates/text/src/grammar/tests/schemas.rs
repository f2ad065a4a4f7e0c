//! JSON schemas: an independent validator checks that replies follow them.

use std::path::Path;

use jsonschema::Validator;
use serde_json::Value;

use super::{Dice, Model, json as constraint, walk};

const WALKS: u64 = 12;

struct Case {
    name: String,
    schema: Value,
    valid: Vec<Value>,
    invalid: Vec<Value>,
}

/// The cases in tests/schemas of the repository.
fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/schemas");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.retain(|file| file.extension().is_some_and(|end| end == "json"));
    let mut cases = Vec::new();
    for file in files {
        let list: Vec<Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        for case in list {
            let documents = |key: &str| case[key].as_array().unwrap().clone();
            let (valid, invalid) = (documents("valid"), documents("invalid"));
            let file = file.file_stem().unwrap().to_string_lossy().into_owned();
            let name = format!("{file}: {}", case["description"].as_str().unwrap());
            cases.push(Case { name, schema: case["schema"].clone(), valid, invalid });
        }
    }
    assert!(cases.len() >= 50);
    cases
}

fn oracle(schema: &Value) -> Validator {
    jsonschema::options().should_validate_formats(true).build(schema).unwrap()
}

#[test]
fn the_cases_are_right() {
    for case in cases() {
        let oracle = oracle(&case.schema);
        for document in &case.valid {
            assert!(oracle.is_valid(document), "{}: {document}", case.name);
        }
        for document in &case.invalid {
            assert!(!oracle.is_valid(document), "{}: {document}", case.name);
        }
    }
}

#[test]
fn valid_documents_are_taken_and_others_are_not() {
    let model = Model::pieces();
    for case in cases() {
        let grammar = model.compile(&constraint(case.schema)).unwrap();
        for document in &case.valid {
            let compact = document.to_string();
            assert!(model.takes(&grammar, &compact), "{}: {compact}", case.name);
            let pretty = serde_json::to_string_pretty(document).unwrap();
            assert!(model.takes(&grammar, &pretty), "{}: {pretty}", case.name);
        }
        for document in &case.invalid {
            assert!(!model.takes(&grammar, &document.to_string()), "{}: {document}", case.name);
        }
    }
}

#[test]
fn random_replies_are_valid() {
    for model in [Model::bytes(), Model::pieces()] {
        for case in cases() {
            let oracle = oracle(&case.schema);
            let grammar = model.compile(&constraint(case.schema)).unwrap();
            for seed in 0..WALKS {
                let mut dice = Dice::new(seed + 1);
                let reply = walk(&model, &mut grammar.clone(), &mut dice, 60);
                let text = model.text(&reply);
                let document: Value = serde_json::from_str(&text)
                    .unwrap_or_else(|error| panic!("{}: {error}: {text}", case.name));
                if let Err(error) = oracle.validate(&document) {
                    panic!("{}: {error}: {text}", case.name);
                }
            }
        }
    }
}
