//! Integers written as floats, such as 1.0, which JSON Schema counts as integers: every field that
//! `/openapi.json` declares as an integer must accept them, and no other floats.

use serde_json::{Value, json};

use super::server::Server;

/// Fewest integer fields of all requests together, to check that none is missed. A field that two
/// requests share counts twice.
const INTEGERS_MIN: usize = 60;
/// Deepest nesting of fields that is searched: a field within a field within a request, in a list
/// of lists.
const DEPTH_MAX: usize = 6;

/// Adds one value for each integer field of the schema, in which that integer is 1.
fn values(document: &Value, schema: &Value, depth: usize, out: &mut Vec<Value>) {
    if depth == 0 {
        return;
    }
    let kind = &schema["type"];
    if kind == "integer" || kind.as_array().is_some_and(|kinds| kinds.contains(&"integer".into())) {
        out.push(json!(1));
    }
    if let Some(path) = schema["$ref"].as_str() {
        let target = document.pointer(path.strip_prefix('#').unwrap()).unwrap();
        values(document, target, depth, out);
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        for part in schema[key].as_array().into_iter().flatten() {
            values(document, part, depth - 1, out);
        }
    }
    let mut inner = Vec::new();
    values(document, &schema["items"], depth - 1, &mut inner);
    out.extend(inner.drain(..).map(|value| json!([value])));
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        values(document, property, depth - 1, &mut inner);
        out.extend(inner.drain(..).map(|value| json!({ name: value })));
    }
}

/// The required fields of each request.
fn least(path: &str) -> Value {
    match path {
        "/v1/completions" | "/v1/completions/render" | "/tokenize" => json!({"prompt": "say:hi"}),
        "/v1/responses" => json!({"input": "say:hi"}),
        "/detokenize" => json!({"tokens": [1]}),
        "/abort_requests" => json!({"request_ids": []}),
        _ => json!({"messages": [{"role": "user", "content": "say:hi"}], "max_tokens": 4}),
    }
}

#[test]
fn every_integer_may_have_a_fraction_of_zero() {
    let server = Server::new();
    let document = server.get("/openapi.json").good();
    let mut count = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let schema = &methods["post"]["requestBody"]["content"]["application/json"]["schema"];
        let mut all = Vec::new();
        values(&document, schema, DEPTH_MAX, &mut all);
        for value in all {
            let [(field, value)] = value.as_object().unwrap().iter().collect::<Vec<_>>()[..] else {
                panic!("{path}: {value}");
            };
            let answer = |number: &str| {
                let mut request = least(path);
                let text = value.to_string().replace('1', number);
                request[field] = serde_json::from_str(&text).unwrap();
                server.post(path, &request)
            };
            let outcome = |number: &str| {
                let answer = answer(number);
                assert!(answer.status < 500, "{path}: {field}: {}", answer.text());
                (answer.status, answer.json()["error"]["param"].clone())
            };
            let plain = outcome("1");
            assert_eq!(outcome("1.0"), plain, "{path}: {field} {value}");
            for other in ["1.5", "1e300", "-1e300"] {
                let answer = answer(other);
                let error = &answer.json()["error"];
                assert_eq!(answer.status, 400, "{path}: {field} {value}, {other}: {error}");
                // Anthropic's errors name the field in the message only.
                let place = error["param"].as_str().or(error["message"].as_str()).unwrap();
                assert!(place.starts_with(field.as_str()), "{path}: {field}, {other}: {error}");
            }
            count += 1;
        }
    }
    assert!(count >= INTEGERS_MIN, "only {count} integers");
}
