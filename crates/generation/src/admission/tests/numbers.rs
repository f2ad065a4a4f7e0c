//! Metrics and load report what happened.

use super::*;

#[tokio::test]
async fn a_request_is_measured_from_end_to_end() {
    let (engine, hold) =
        held(ScriptedEngine::new(ScriptedEngine::caps(), DraftAccuracy::Percent(0)));
    let rig = Rig::with(engine, Limits { running_max: 1, ..Limits::default() }, 9);
    let value = |name: &str, labels: &str| value(&rig.metrics, name, labels);
    let first = rig.submit(request(text(20, 1), 1)).await;
    hold.entered();
    let second = rig.submit_late(request(text(30, 2), 3)).await;
    rig.pass_ms(100);
    hold.permit();
    let mut second = second.await.unwrap().unwrap();
    hold.entered();
    assert_eq!(read(first).await.tokens.len(), 1);
    assert_eq!(rig.admission.load().running, 1);
    assert_eq!(value("vllm:num_requests_running", ""), 1.0);
    assert!(value("vllm:kv_cache_usage_perc", "") > 0.0);
    for ms in [40, 5, 7] {
        rig.pass_ms(ms);
        hold.permit();
        soon("an increment", second.next()).await.unwrap();
    }
    drop((hold, second));
    rig.is_clean().await;
    let sums = [
        ("time_to_first_token", 0.1 + 0.14),
        ("inter_token_latency", 0.012),
        ("request_time_per_output_token", 0.006),
        ("e2e_request_latency", 0.1 + 0.152),
        ("request_queue_time", 0.1),
        ("request_inference_time", 0.1 + 0.052),
        ("request_prefill_time", 0.1 + 0.04),
        ("request_decode_time", 0.012),
    ];
    for (name, sum) in sums {
        let found = value(&format!("vllm:{name}_seconds_sum"), "");
        assert!((found - sum).abs() < 1e-9, "{name}: {found} instead of {sum}");
    }
    let counts = [
        ("vllm:inter_token_latency_seconds_count", "", 2.0 + 4.0),
        ("vllm:request_success_total", "length", 3.0),
        ("vllm:request_success_total", "abort", 0.0),
        ("vllm:prompt_tokens_total", "", 20.0 + 30.0 + 9.0),
        ("vllm:generation_tokens_total", "", 1.0 + 3.0 + 5.0),
        ("vllm:request_prompt_tokens_sum", "", 59.0),
        ("vllm:request_generation_tokens_sum", "", 9.0),
        ("vllm:request_max_num_generation_tokens_count", "", 3.0),
        ("vllm:request_params_max_tokens_sum", "", 9.0),
        ("vllm:request_params_n_sum", "", 3.0),
        ("kilotok:step_rows_sum", "", 9.0),
        ("vllm:num_requests_running", "", 0.0),
        ("vllm:kv_cache_usage_perc", "", 0.0),
    ];
    for (name, labels, count) in counts {
        assert_eq!(value(name, labels), count, "{name} {labels}");
    }
    let tokens = "vllm:iteration_tokens_total";
    assert_eq!(value(&format!("{tokens}_sum"), ""), 20.0 + 1.0 + 30.0 + 3.0 + 9.0 + 5.0);
    assert_eq!(value(&format!("{tokens}_count"), ""), 9.0);
}

#[tokio::test]
async fn hits_and_drafts_are_counted() {
    let engine = ScriptedEngine::new(ScriptedEngine::caps(), DraftAccuracy::Percent(100));
    let rig = Rig::new(engine).lively();
    let first = read(rig.submit(request(text(40, 1), 33)).await).await;
    let second = read(rig.submit(request(text(40, 1), 33)).await).await;
    assert_eq!((first.stats.cached_count, second.stats.cached_count), (0, 32));
    assert_eq!(first.tokens, second.tokens);
    let drafted = (first.stats.drafted_count + second.stats.drafted_count) as f64;
    let accepted = (first.stats.accepted_count + second.stats.accepted_count) as f64;
    assert!(accepted > 10.0 && accepted == drafted, "{accepted} of {drafted}");
    until("all is counted", || value(&rig.metrics, "vllm:generation_tokens_total", "") == 66.0)
        .await;
    let counts = [
        ("prefix_cache_queries_total", "", 80.0),
        ("prefix_cache_hits_total", "", 32.0),
        ("prompt_tokens_cached_total", "", 32.0),
        ("prompt_tokens_by_source_total", "local_cache_hit", 32.0),
        ("prompt_tokens_by_source_total", "local_compute", 48.0),
        ("request_prefill_kv_computed_tokens_sum", "", 48.0),
        ("spec_decode_num_draft_tokens_total", "", drafted),
        ("spec_decode_num_accepted_tokens_total", "", accepted),
    ];
    for (name, labels, count) in counts {
        assert_eq!(value(&rig.metrics, &format!("vllm:{name}"), labels), count, "{name} {labels}");
    }
    let places = (0..7).map(|position| {
        let label = format!(r#"position="{position}""#);
        value(&rig.metrics, "vllm:spec_decode_num_accepted_tokens_per_pos_total", &label)
    });
    let places: Vec<f64> = places.collect();
    assert_eq!(places.iter().sum::<f64>(), accepted);
    assert!(places.is_sorted_by(|a, b| a >= b), "{places:?}");
}

#[tokio::test]
async fn endings_are_told_apart() {
    let (engine, hold) = held(engine());
    let rig = Rig::with(engine, Limits { running_max: 4, ..Limits::default() }, 0);
    let requests = (0..4).map(|index| named("n", text(20, index), 40)).collect();
    let mut streams = rig.admission.submit_all(vec![requests]).await.unwrap();
    assert!(rig.admission.submit(request(text(3, 1), 1)).await.is_err());
    drop(streams.pop());
    streams.pop().unwrap().complete(0);
    drop(hold);
    for stream in streams {
        assert_eq!(read(stream).await.finish, FinishReason::Length);
    }
    until("no reply is held", || rig.admission.load().held == 0).await;
    let ended = |reason: &str| value(&rig.metrics, "vllm:request_success_total", reason);
    let counts = ["length", "stop", "abort", "error"].map(ended);
    assert_eq!(counts, [2.0, 1.0, 1.0, 0.0]);
    assert_eq!(value(&rig.metrics, "vllm:admission_rejections_total", "queue_full"), 1.0);
    assert_eq!(value(&rig.metrics, "vllm:request_params_n_sum", ""), 4.0);
    assert_eq!(value(&rig.metrics, "vllm:request_max_num_generation_tokens_sum", ""), 40.0);
}

#[tokio::test]
async fn a_stop_string_counts_although_the_length_came_first() {
    for late in [false, true] {
        let (engine, hold) =
            held(ScriptedEngine::new(ScriptedEngine::caps(), DraftAccuracy::Percent(0)));
        let rig = Rig::new(engine);
        let mut stream = rig.submit(request(text(20, 1), 3)).await;
        hold.permit();
        hold.permit();
        let mut token_count = 0;
        while token_count < 2 {
            token_count += soon("an increment", stream.next()).await.unwrap().tokens.len();
        }
        // The reader finds its stop string either while the last step runs, or in that step's
        // tokens.
        if !late {
            stream.complete(1);
        }
        drop(hold);
        until("the engine is done", || rig.admission.load().held == 0).await;
        if late {
            let increment = soon("an increment", stream.next()).await.unwrap();
            assert_eq!(increment.finish, Some(FinishReason::Length));
            stream.complete(1);
        }
        until("it is counted", || {
            value(&rig.metrics, "vllm:request_success_total", "stop")
                + value(&rig.metrics, "vllm:request_success_total", "length")
                > 0.0
        })
        .await;
        drop(stream);
        let counts = [
            ("request_success_total", "stop", 1.0),
            ("request_success_total", "length", 0.0),
            ("request_success_total", "abort", 0.0),
            ("request_generation_tokens_sum", "", 1.0),
            ("request_max_num_generation_tokens_sum", "", 1.0),
        ];
        for (name, labels, count) in counts {
            let found = value(&rig.metrics, &format!("vllm:{name}"), labels);
            assert_eq!(found, count, "{name} {labels}, late: {late}");
        }
    }
}

#[tokio::test]
async fn an_abort_counts_although_the_length_came_first() {
    let (rig, hold) = Rig::held(engine());
    let stream = rig.submit(named("a", text(20, 1), 1)).await;
    hold.entered();
    assert_eq!(rig.admission.abort("a"), 1);
    drop(hold);
    assert_eq!(read(stream).await.finish, FinishReason::Aborted);
    until("the engine is done", || rig.admission.load().held == 0).await;
    let ended = |reason: &str| value(&rig.metrics, "vllm:request_success_total", reason);
    until("it is counted", || ended("abort") + ended("length") > 0.0).await;
    assert_eq!((ended("abort"), ended("length")), (1.0, 0.0));
}
