//! Ten thousand nonsensical requests: each is the client's error, none is the server's, and good
//! requests in between are answered.

use serde_json::{Value, json};

use kilotok_server::ServerConfig;
use kilotok_testkit::Random;

use super::server::{Server, Setup, head};

const REQUESTS: u64 = 10_000;
/// One request in this many is good.
const GOOD_EVERY: u64 = 500;
const BODY_MAX: usize = 64 << 10;
/// Errors must not send the request's content back.
const ANSWER_BYTES_MAX: usize = 8 << 10;
const CHAT: &str = "/v1/chat/completions";
const PATHS: [&str; 8] = [
    CHAT,
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/chat/completions/render",
    "/tokenize",
    "/detokenize",
];

#[test]
fn ten_thousand_senseless_requests_are_their_senders_fault() {
    let config = ServerConfig { body_max: BODY_MAX, ..Setup::default().config };
    let server = Server::start(Setup { config, ..Setup::steady() });
    let series = |server: &Server| server.get("/metrics").text().lines().count();
    let mut dice = Random::new(1);
    let mut series_count = 0;
    for number in 0..REQUESTS {
        let garbage = GARBAGE[number as usize % GARBAGE.len()];
        garbage(&server, &mut dice);
        if number % GOOD_EVERY == 0 {
            let answer = server.post(CHAT, &good()).good();
            assert_eq!(answer["choices"][0]["message"]["content"], "hi");
            assert_eq!(server.get("/health").good()["status"], "ok");
        }
        if number == REQUESTS / 2 {
            // The first scrape creates series of its own.
            series_count = series(&server).max(series(&server));
        }
    }
    // Names that clients make up must not become labels.
    assert_eq!(series(&server), series_count);
    assert_eq!(server.get("/load").good()["server_load"], 0);
    assert_eq!(server.service.admission.load().usage, 0.0);
}

const GARBAGE: [fn(&Server, &mut Random); 11] = [
    noise,
    torn_json,
    bad_text,
    deep_nesting,
    wrong_types,
    huge_bodies,
    hostile_schemas,
    heavy_schemas,
    hostile_conversations,
    abused_headers,
    no_http,
];

fn good() -> Value {
    json!({"messages": [{"role": "user", "content": "say:hi"}], "max_tokens": 4})
}

/// A valid request, which the others spoil.
fn whole() -> Value {
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    json!({
        "model": "toy", "messages": [{"role": "user", "content": "say:hé"}], "prompt": "a",
        "input": "a", "tokens": [1, 2], "max_tokens": 4, "temperature": 0.5, "stop": ["x"],
        "logit_bias": {"1": 1}, "stream": false, "tools": [tool], "tool_choice": "none",
    })
}

/// Checks that the error is reported as the sender's fault.
#[track_caller]
fn refused(server: &Server, path: &str, body: &[u8]) {
    let answer = server.post_bytes(path, body, &[]);
    let shown = String::from_utf8_lossy(&body[..body.len().min(300)]);
    assert!((400..500).contains(&answer.status), "{path} {shown}: {}", answer.text());
    assert!(answer.json()["error"]["message"].is_string(), "{path} {shown}: {}", answer.text());
    assert!(answer.body.len() < ANSWER_BYTES_MAX, "{path} {shown}: too long an answer");
}

fn noise(server: &Server, dice: &mut Random) {
    let count = dice.below(300);
    let mut body: Vec<u8> = (0..count).map(|_| dice.bits() as u8).collect();
    if dice.percent(50) {
        body.insert(0, b'{');
    }
    refused(server, dice.pick(&PATHS), &body);
}

fn torn_json(server: &Server, dice: &mut Random) {
    let mut body = whole().to_string().into_bytes();
    if dice.percent(50) {
        body.truncate(dice.below(body.len()));
    } else {
        let odd = [&b"}"[..], b",", b"]", b"\0", b"null", b"{}", b"\"", b"//"];
        body.extend_from_slice(dice.pick(&odd));
    }
    refused(server, dice.pick(&PATHS), &body);
}

fn bad_text(server: &Server, dice: &mut Random) {
    let text = whole().to_string();
    let odd: [&[u8]; 6] =
        [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\\ud800", b"\\u12", b"\xf8\x88\x80\x80\x80"];
    let (before, after) = text.split_once('é').unwrap();
    let body = [before.as_bytes(), dice.pick(&odd), after.as_bytes()].concat();
    refused(server, CHAT, &body);
}

fn deep_nesting(server: &Server, dice: &mut Random) {
    let depth = 200 + dice.below(5000);
    let (open, close) = dice.pick(&[("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")]);
    let deep = format!("{}1{}", open.repeat(depth), close.repeat(depth));
    let (path, field) = dice.pick(&[
        (CHAT, "messages"),
        (CHAT, "tools"),
        (CHAT, "response_format"),
        (CHAT, "chat_template_kwargs"),
        ("/v1/completions", "prompt"),
        ("/v1/responses", "input"),
        ("/v1/messages", "system"),
        ("/tokenize", "messages"),
    ]);
    let mut text = whole().to_string();
    text.insert_str(1, &format!("\"{field}\":{deep},"));
    refused(server, path, text.as_bytes());
    // Unknown fields may be nested to any depth.
    let text = good().to_string().replacen('{', &format!("{{\"nobody_knows\":{deep},"), 1);
    assert_eq!(server.post_bytes(CHAT, text.as_bytes(), &[]).status, 200);
}

fn wrong_types(server: &Server, dice: &mut Random) {
    let mut request = whole();
    let field = dice.pick(&["temperature", "max_tokens", "stop", "stream", "logit_bias", "model"]);
    let odd = [json!({"a": {}}), json!([[1]]), json!(-1e300), json!([null, {}])];
    request[field] = dice.pick(&odd);
    refused(server, dice.pick(&[CHAT, "/v1/completions"]), request.to_string().as_bytes());
    let mut request = whole();
    let fields = [
        ("temperature", json!(1e30)),
        ("top_p", json!(-1)),
        ("n", json!(u64::MAX)),
        ("max_tokens", json!(-1)),
        ("seed", json!(1e40)),
        ("logit_bias", json!({"-1": 1})),
        ("logit_bias", json!({"99999999999999999999": 1})),
        ("stop", json!(["x".repeat(5000)])),
        ("stop_token_ids", json!([u64::MAX])),
        ("min_tokens", json!(i64::MAX)),
        ("priority", json!(i64::MAX)),
        ("cache_salt", json!("s".repeat(10_000))),
        ("request_id", json!("\r\nx-evil: 1")),
        ("model", json!("m".repeat(BODY_MAX / 2))),
        ("temperature", json!("t".repeat(BODY_MAX / 2))),
        ("logit_bias", json!({"x".repeat(BODY_MAX / 2): 1})),
        ("truncate_prompt_tokens", json!(-5)),
        ("allowed_token_ids", json!([])),
    ];
    let (field, value) = dice.pick(&fields);
    request[field] = value;
    refused(server, dice.pick(&[CHAT, "/v1/completions"]), request.to_string().as_bytes());
}

fn huge_bodies(server: &Server, dice: &mut Random) {
    let fill = "x".repeat(BODY_MAX + dice.below(BODY_MAX));
    let body = json!({"messages": [{"role": "user", "content": fill}]}).to_string();
    let path = dice.pick(&PATHS);
    let answer = if dice.percent(50) {
        server.post_bytes(path, body.as_bytes(), &[])
    } else {
        // The request does not announce its length.
        let start = format!("POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
        let head = format!("{start}transfer-encoding: chunked\r\n\r\n{:x}\r\n", body.len());
        server.send(head.as_bytes(), format!("{body}\r\n0\r\n\r\n").as_bytes()).answer()
    };
    assert_eq!(answer.status, 413, "{path}: {}", answer.text());
}

fn hostile_schemas(server: &Server, dice: &mut Random) {
    let deep =
        |key: &str| (0..110).fold(json!({"type": "string"}), |inner, _| json!({key: [inner, {}]}));
    let schemas = [
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
        json!({"$ref": "http://127.0.0.1:1/schema.json"}),
        json!({"$ref": "file:///etc/passwd"}),
        json!({"$ref": "#/nowhere"}),
        json!({"type": "string", "pattern": "((("}),
        json!({"type": "string", "pattern": "(?=x)y\\1"}),
        json!({"type": "string", "minLength": 5, "maxLength": 4}),
        json!({"type": "nonsense"}),
        json!({"type": 7}),
        json!({"properties": [1]}),
        json!({"enum": []}),
        json!({"allOf": [{"type": "string"}, {"type": "number"}]}),
        json!(false),
        deep("anyOf"),
        deep("allOf"),
    ];
    let mut request = good();
    let form = json!({"name": "s", "schema": dice.pick(&schemas), "strict": true});
    request["response_format"] = json!({"type": "json_schema", "json_schema": form});
    if dice.percent(40) {
        request = good();
        let others = [
            json!({"regex": "("}),
            json!({"regex": "(a|b)*c".repeat(5000)}),
            json!({"grammar": "start: start start | start"}),
            json!({"grammar": "start: nowhere"}),
            json!({"grammar": "root ::= ((((("}),
            json!({"choice": []}),
            json!({"json": 3}),
            json!({"json_object": true, "regex": "a"}),
        ];
        request["structured_outputs"] = dice.pick(&others);
    }
    refused(server, CHAT, request.to_string().as_bytes());
}

/// Schemas that are valid but absurd: they are refused or followed within a bounded time.
fn heavy_schemas(server: &Server, dice: &mut Random) {
    let many: Vec<String> = (0..3000).map(|n| n.to_string()).collect();
    let properties: serde_json::Map<String, Value> =
        many.iter().map(|name| (name.clone(), json!({"type": "string"}))).collect();
    let nested = (0..8).fold(json!({}), |inner, _| json!({"anyOf": [inner.clone(), inner]}));
    let schemas = [
        json!({"type": "string", "pattern": "(a{1000}){1000}{1000}"}),
        json!({"type": "string", "pattern": "^(a+)+$"}),
        json!({"type": "string", "maxLength": 4_000_000_000_u32}),
        json!({"type": "array", "items": {"type": "null"}, "minItems": 4_000_000_000_u32}),
        json!({"type": "array", "uniqueItems": true}),
        json!({"properties": properties, "required": many}),
        json!({"enum": many}),
        json!({"multipleOf": 1e-300}),
        nested,
    ];
    let mut request = good();
    let form = json!({"name": "s", "schema": dice.pick(&schemas)});
    request["response_format"] = json!({"type": "json_schema", "json_schema": form});
    if dice.percent(30) {
        request = good();
        let regexes = ["(x{0,5000}y){5000}".repeat(9), "((x{500}){500}){500}".into()];
        request["structured_outputs"] = json!({"regex": dice.pick(&regexes)});
    }
    let status = server.post(CHAT, &request).status;
    assert!(status == 200 || (400..500).contains(&status), "{status}: {request}");
}

fn hostile_conversations(server: &Server, dice: &mut Random) {
    let mut request = good();
    let template =
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
    match dice.below(6) {
        0 => request["chat_template"] = json!(template),
        1 => request["chat_template_kwargs"] = json!([template]),
        2 => request["messages"] = json!([{"role": "user", "content": "x".repeat(20_000)}]),
        3 => request["messages"] = json!([{"role": [template], "content": "a"}]),
        4 => request["messages"][0]["tool_calls"] = json!([{"function": {"arguments": "{"}}]),
        _ => {
            let tool = json!({"type": "function", "function": {"name": "f f\n", "parameters": 3}});
            request["tools"] = json!([tool]);
        }
    }
    refused(server, CHAT, request.to_string().as_bytes());
}

/// Requests that an HTTP server must refuse before it reads them.
fn abused_headers(server: &Server, dice: &mut Random) {
    let body = good().to_string();
    let long = "x".repeat(100_000);
    let many: Vec<(String, String)> = (0..300).map(|n| (format!("x-{n}"), n.to_string())).collect();
    let many: Vec<(&str, &str)> =
        many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let refuse: [&[(&str, &str)]; 8] = [
        &[("x-long", &long)],
        &many,
        &[("content-length", "7")],
        &[("transfer-encoding", "nonsense")],
        &[("content-encoding", "br")],
        &[("content-type", "multipart/form-data; boundary=x")],
        &[("bad name", "x")],
        &[("x-nul", "a\0b")],
    ];
    let answer = match dice.below(11) {
        index @ 0..8 => {
            let head = head("POST", CHAT, refuse[index], body.len());
            server.send(&head, body.as_bytes()).answer()
        }
        8 => server.send(&head("GET", &format!("/{long}"), &[], 0), &[]).answer(),
        9 => {
            let method: String = (0..12).map(|_| char::from(b'A' + dice.below(26) as u8)).collect();
            server.send(&head(&method, CHAT, &[], 0), &[]).answer()
        }
        _ => {
            let path = format!("/v1/%00../{}", dice.below(1000));
            server.send(&head("POST", &path, &[], 0), &[]).answer()
        }
    };
    assert!((400..500).contains(&answer.status), "{}: {}", answer.status, answer.text());
}

/// Bytes that are not HTTP are answered with an error, or the connection is closed.
fn no_http(server: &Server, dice: &mut Random) {
    let bytes: Vec<u8> = (0..=dice.below(200)).map(|_| dice.bits() as u8).collect();
    let odd: [&[u8]; 7] = [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"GET /health HTTP/1.1\nno colon\n\n",
        &bytes,
    ];
    let open = server.send(dice.pick(&odd), &[]);
    open.sent();
    if let Some(status) = open.status_if_any() {
        assert!((400..500).contains(&status), "{status}");
    }
}
