//! Everything besides replies: models, keys, CORS, limits, ids, health, metrics, the page; and the
//! errors of nonsensical requests.

use kilotok_server::ServerConfig;
use serde_json::{Value, json};

use super::server::{Server, Setup, head};

const CHAT: &str = "/v1/chat/completions";

fn hi() -> Value {
    json!({"messages": [{"role": "user", "content": "say:hi"}], "max_tokens": 4})
}

#[test]
fn models_have_their_names() {
    let server = Server::new();
    let list = server.get("/v1/models").good();
    assert_eq!(list["object"], "list");
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|card| &card["id"]).collect();
    assert_eq!(ids, ["toy", "alias/toy"]);
    assert_eq!(server.get("/v1/models/alias/toy").good(), list["data"][1]);
    assert_eq!(list["data"][0]["max_model_len"], 2048);
    let answer = server.get("/v1/models/other");
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!("model_not_found")));
    let mut request = hi();
    request["model"] = json!("alias/toy");
    assert_eq!(server.post(CHAT, &request).good()["model"], "alias/toy");
    request["model"] = json!("other");
    let answer = server.post(CHAT, &request);
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (404, &json!("model")));
}

#[test]
fn anthropics_clients_get_models_in_their_form() {
    let served_names = ["a", "b/c", "d"].map(str::to_owned).into();
    let server = Server::with(ServerConfig { served_names, ..ServerConfig::default() });
    let ask = |path: &str| {
        let headers = [("anthropic-version", "2023-06-01")];
        server.send(&head("GET", path, &headers, 0), &[]).answer()
    };
    let list = ask("/v1/models").good();
    assert_eq!(
        (&list["has_more"], &list["first_id"], &list["last_id"]),
        (&json!(false), &json!("a"), &json!("d"))
    );
    let model = &list["data"][1];
    assert_eq!(
        (&model["type"], &model["id"], &model["display_name"]),
        (&json!("model"), &json!("b/c"), &json!("b/c"))
    );
    let created = model["created_at"].as_str().unwrap();
    assert!(created.len() == 20 && created.ends_with('Z'), "{created}");
    assert!(model["object"].is_null() && list["object"].is_null());
    assert_eq!(ask("/v1/models/b/c").good(), *model);
    let page = ask("/v1/models?limit=1&after_id=a").good();
    assert_eq!((&page["data"][0]["id"], &page["has_more"]), (&json!("b/c"), &json!(true)));
    for (path, status) in [
        ("/v1/models?limit=x", 400),
        ("/v1/models?limit=0", 400),
        ("/v1/models?after_id=x", 400),
        ("/v1/models/x", 404),
    ] {
        let answer = ask(path);
        assert_eq!((answer.status, &answer.json()["type"]), (status, &json!("error")), "{path}");
    }
    assert_eq!(server.get("/v1/models?limit=x").good()["object"], "list");
}

#[test]
fn values_that_make_no_sense_are_refused_by_name() {
    let server = Server::new();
    let long_words: Vec<_> = (0..80).map(|word| format!("{word:0250}")).collect();
    for (field, value) in [
        ("temperature", json!(2.5)),
        ("temperature", json!("hot")),
        ("top_p", json!(-0.1)),
        ("top_p", json!(0)),
        ("top_k", json!(-2)),
        ("min_p", json!(1.5)),
        ("n", json!(0)),
        ("n", json!(100_000)),
        ("max_tokens", json!(0)),
        ("max_completion_tokens", json!(-1)),
        ("presence_penalty", json!(3)),
        ("frequency_penalty", json!(-3)),
        ("repetition_penalty", json!(0)),
        ("seed", json!(1.5)),
        ("top_logprobs", json!(3)),
        ("stop", json!(vec!["x"; 17])),
        ("stop", json!({"a": 1})),
        ("stop_token_ids", json!([265])),
        ("stop_token_ids", json!(vec![1; 1025])),
        ("bad_words", json!(long_words)),
        ("logit_bias", json!({"265": 1})),
        ("logit_bias", json!({"1": 101})),
        ("min_tokens", json!(5)),
        ("priority", json!(101)),
        ("cache_salt", json!("")),
        ("reasoning_effort", json!("huge")),
        ("truncate_prompt_tokens", json!(0)),
        ("request_id", json!("a b")),
        ("best_of", json!(2)),
        ("use_beam_search", json!(true)),
        ("modalities", json!(["audio"])),
        ("service_tier", json!("priority")),
        ("functions", json!([{"name": "f"}])),
        ("chat_template", json!("{{ messages }}")),
        ("messages", json!([])),
        ("messages", json!("hi")),
        ("messages", json!([{"role": "user", "content": [{"type": "image_url"}]}])),
        ("messages", json!([{"content": "no role"}])),
        ("tool_choice", json!("required")),
        ("prompt_logprobs", json!(9)),
        ("stream", json!("yes")),
    ] {
        let mut request = hi();
        request[field] = value.clone();
        let answer = server.post(CHAT, &request);
        assert_eq!(answer.status, 400, "{field} {value}: {}", answer.text());
        let error = &answer.json()["error"];
        let param = error["param"].as_str().unwrap();
        assert!(param.starts_with(field), "{field}: {param}");
        assert!(error["message"].as_str().unwrap().contains(field), "{field}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
}

#[test]
fn null_is_absent_and_the_unknown_is_counted() {
    let server = Server::new();
    let plain = server.post(CHAT, &hi()).good();
    let mut request = hi();
    for field in [
        "temperature",
        "top_p",
        "n",
        "stop",
        "tools",
        "tool_choice",
        "response_format",
        "seed",
        "logprobs",
        "stream",
        "stream_options",
        "user",
        "metadata",
        "audio",
        "functions",
        "max_completion_tokens",
        "best_of",
        "reasoning_effort",
        "structured_outputs",
    ] {
        request[field] = Value::Null;
    }
    let answer = server.post(CHAT, &request).good();
    assert_eq!(answer["choices"], plain["choices"]);
    request["colour"] = json!("red");
    request["messages"][0]["mood"] = json!({"good": true});
    request["store"] = json!(true);
    request["verbosity"] = json!("low");
    assert_eq!(server.post(CHAT, &request).good()["choices"], plain["choices"]);
    assert_eq!(server.metric("kilotok:unknown_fields_total"), 2.0);
}

#[test]
fn garbage_is_the_senders_fault_and_does_no_harm() {
    let server = Server::new();
    let deep = format!(r#"{{"messages": {}1{}}}"#, "[".repeat(5000), "]".repeat(5000));
    let bodies: [&[u8]; 12] = [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\"text\"",
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\xfe\"}]}",
        b"\x00\x01\x02",
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"n\": 1e999}",
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]} trailing",
        b"{\"n\": 1, \"n\": 2, \"messages\": []}",
        deep.as_bytes(),
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"\\ud800\"}]}",
    ];
    for path in [CHAT, "/v1/completions", "/v1/responses", "/v1/messages"] {
        for body in bodies {
            let answer = server.post_bytes(path, body, &[]);
            let shown = String::from_utf8_lossy(&body[..body.len().min(60)]);
            assert_eq!(answer.status, 400, "{path} {shown}: {}", answer.text());
            assert!(answer.json()["error"]["message"].is_string());
        }
    }
    let answer = server.post_bytes(CHAT, b"{\"messages\":\n  oops}", &[]);
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("line 2 column 3"));
    assert_eq!(server.post(CHAT, &hi()).good()["choices"][0]["message"]["content"], "hi");
}

#[test]
fn http_has_its_own_errors() {
    let server = Server::with(ServerConfig { body_max: 2000, ..Setup::default().config });
    let answer = server.get("/v1/nothing");
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!("unknown_url")));
    let answer = server.get(CHAT);
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    assert_eq!(answer.json()["error"]["code"], "method_not_allowed");
    let large = json!({"messages": [{"role": "user", "content": "x".repeat(3000)}]});
    assert_eq!(server.post(CHAT, &large).status, 413);
    let body = hi().to_string();
    for (kind, status) in [
        ("application/json; charset=utf-8", 200),
        ("text/plain", 200),
        ("application/x-www-form-urlencoded", 200),
        ("multipart/form-data; boundary=x", 415),
        ("image/png", 415),
    ] {
        let answer = server.post_bytes(CHAT, body.as_bytes(), &[("content-type", kind)]);
        assert_eq!(answer.status, status, "{kind}");
    }
    // A browser sends such bodies, as plain text or without a type, to any server without asking it
    // first.
    for (kind, status) in [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("text/plain; x=application/json", 415),
        ("", 415),
    ] {
        let headers = [("content-type", kind), ("origin", "http://elsewhere")];
        let answer = server.post_bytes(CHAT, body.as_bytes(), &headers);
        assert_eq!(answer.status, status, "{kind}");
    }
    let answer = server.post_bytes(CHAT, body.as_bytes(), &[("content-encoding", "gzip")]);
    assert_eq!(answer.status, 415);
    let long = "x".repeat(200_000);
    let answer = server.send(&head("GET", "/health", &[("x-long", &long)], 0), &[]).answer();
    assert_eq!(answer.status, 431);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn keys_open_the_api() {
    let keys = vec!["one".to_owned(), "two".to_owned()];
    let server = Server::with(ServerConfig { api_keys: keys, ..Setup::default().config });
    let body = hi().to_string();
    let status = |path: &str, headers: &[(&str, &str)]| {
        server.post_bytes(path, body.as_bytes(), headers).status
    };
    assert_eq!(status(CHAT, &[("authorization", "Bearer two")]), 200);
    assert_eq!(status(CHAT, &[("x-api-key", "one")]), 200);
    for path in [CHAT, "/v1/anything", "/tokenize", "/detokenize", "/abort_requests"] {
        assert_eq!(status(path, &[]), 401, "{path}");
        assert_eq!(status(path, &[("authorization", "Bearer three")]), 401, "{path}");
    }
    let answer = server.post_bytes(CHAT, body.as_bytes(), &[]);
    assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    let answer = server.post_bytes("/v1/messages", body.as_bytes(), &[]);
    assert_eq!(answer.json()["error"]["type"], "authentication_error");
    for path in
        ["/health", "/ready", "/live", "/metrics", "/version", "/load", "/openapi.json", "/"]
    {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
}

#[test]
fn other_sites_are_let_in_by_name() {
    let origins = vec!["https://chat.example".to_owned()];
    let server = Server::with(ServerConfig { cors_origins: origins, ..Setup::default().config });
    let ask = |server: &Server, origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type"),
        ];
        server.send(&head("OPTIONS", CHAT, &headers, 0), &[]).answer()
    };
    let answer = ask(&server, "https://chat.example");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://chat.example"));
    assert!(answer.header("access-control-allow-methods").unwrap().contains("POST"));
    let headers = answer.header("access-control-allow-headers");
    assert_eq!(headers, Some("authorization,content-type"), "`*` leaves out the key");
    let evil = ask(&server, "https://evil.example");
    assert_eq!((evil.status, evil.header("access-control-allow-origin")), (403, None));
    let body = hi().to_string();
    let answer = server.post_bytes(CHAT, body.as_bytes(), &[("origin", "https://chat.example")]);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://chat.example"));
    let closed = Server::new();
    assert_eq!(ask(&closed, "https://chat.example").header("access-control-allow-origin"), None);
    let open =
        Server::with(ServerConfig { cors_origins: vec!["*".into()], ..Setup::default().config });
    assert_eq!(ask(&open, "https://any.example").header("access-control-allow-origin"), Some("*"));
}

#[test]
fn ids_come_back() {
    let server = Server::new();
    let body = hi().to_string();
    let answer = server.post_bytes(CHAT, body.as_bytes(), &[("x-request-id", "my-id.7")]);
    assert_eq!(answer.header("x-request-id"), Some("my-id.7"));
    assert_eq!(answer.good()["id"], "chatcmpl-my-id.7");
    let odd = "x".repeat(1000);
    let answer = server.post_bytes(CHAT, body.as_bytes(), &[("x-request-id", &odd)]);
    let id = answer.header("x-request-id").unwrap();
    assert_eq!(id.len(), 32);
    assert_eq!(answer.good()["id"], format!("chatcmpl-{id}"));
    let mut named = hi();
    named["request_id"] = json!("from-the-body");
    assert_eq!(server.post(CHAT, &named).good()["id"], "chatcmpl-from-the-body");
    let answer = server.get("/nothing");
    assert!(answer.header("x-request-id").is_some());
}

#[test]
fn state_can_be_seen() {
    let server = Server::new();
    assert_eq!(server.get("/health").good()["status"], "ok");
    assert_eq!(server.get("/ready").good()["status"], "ok");
    assert_eq!(server.get("/live").good()["status"], "ok");
    assert!(server.get("/version").good()["version"].is_string());
    assert_eq!(server.get("/load").good()["server_load"], 0);
    server.post(CHAT, &hi()).good();
    let metrics = server.get("/metrics");
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    for series in [
        "vllm:generation_tokens_total{",
        "vllm:time_to_first_token_seconds_bucket{",
        "vllm:num_requests_running{",
        "http_requests_total{handler=\"/v1/chat/completions\",method=\"POST\",status=\"2xx\"} 1",
    ] {
        assert!(metrics.text().contains(series), "{series}");
    }
    let format = [("endpoint-load-metrics-format", "TEXT")];
    let answer = server.post_bytes(CHAT, hi().to_string().as_bytes(), &format);
    let load = answer.header("endpoint-load-metrics").unwrap();
    assert!(load.starts_with("TEXT named_metrics.kv_cache_usage_perc="), "{load}");
}

#[test]
fn a_reply_without_a_bound_counts_as_what_there_is_room_for() {
    let server = Server::new();
    let mut request = hi();
    request.as_object_mut().unwrap().remove("max_tokens");
    let answer = server.post(CHAT, &request).good();
    let room = 2048.0 - answer["usage"]["prompt_tokens"].as_f64().unwrap();
    assert_eq!(server.metric("vllm:request_params_max_tokens_sum"), room);
}

#[test]
fn the_server_describes_itself() {
    let server = Server::new();
    let document = server.get("/openapi.json").good();
    for path in [CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize", "/health"] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    let page = server.get("/");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'sha256-"));
    assert!(!policy.contains("unsafe"));
    assert_eq!(server.get("/favicon.ico").status, 204);
}
