//! Readers that are dropped, aborts, drains and stops: each leaves nothing of a request behind.

use kilotok_testkit::{DraftAccuracy, Random};

use super::*;

#[tokio::test]
async fn a_thousand_readers_leave_nothing_behind() {
    let rig = Rig::with(engine(), Limits::default(), 40).lively();
    let mut random = Random::new(5);
    let mut readers = Vec::new();
    for index in 0..1000_u32 {
        let (stay, how) = (random.below(6), random.below(4));
        let admission = rig.admission.clone();
        let prompt = text(random.between(1, 120), index % 9);
        // Half of the replies would run far longer than the test.
        let token_max = if index % 2 == 0 { random.between(1, 60) } else { 3000 };
        let request = named(&format!("r{index}"), prompt, token_max);
        readers.push(tokio::spawn(async move {
            let submitted = admission.submit(request);
            let mut submitted = std::pin::pin!(submitted);
            if stay == 0 && how == 0 {
                // Dropped before the request is admitted.
                let now = std::future::poll_fn(|context| {
                    std::task::Poll::Ready(submitted.as_mut().poll(context).is_ready())
                });
                now.await;
                return;
            }
            let mut stream = match submitted.await {
                Ok(stream) => stream,
                Err(refusal) => {
                    assert!(matches!(refusal, Refusal::QueueFull { .. }), "{refusal}");
                    return;
                }
            };
            for _ in 0..stay {
                let _ = soon("an increment", stream.next()).await;
            }
            match how {
                0 | 1 => drop(stream),
                2 => stream.complete(1),
                _ => {
                    admission.abort(&format!("r{index}"));
                }
            }
        }));
        if index % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for reader in readers {
        reader.await.unwrap();
    }
    rig.is_clean().await;
}

#[tokio::test]
async fn a_request_is_cancelled_wherever_it_is() {
    let (engine, hold) = held(engine());
    let limits = Limits { running_max: 1, ..Limits::default() };
    let rig = Rig::with(engine, limits, 5);
    let running = rig.submit(request(text(20, 1), 50)).await;
    hold.entered();
    let waiting = rig.submit_late(request(text(20, 2), 50)).await;
    hold.permit();
    let waiting = waiting.await.unwrap().unwrap();
    hold.entered();
    assert_eq!((rig.admission.load().running, rig.admission.load().waiting()), (1, 1));
    drop(waiting);
    drop(running);
    assert_eq!(rig.admission.load().held, 2, "the engine's thread is busy");
    hold.permit();
    until("they are gone with the step", || rig.admission.load().held == 0).await;
    drop(hold);
    rig.is_clean().await;
}

#[tokio::test]
async fn an_abort_ends_those_of_its_name() {
    let (rig, hold) = Rig::held(engine());
    let mut streams = Vec::new();
    for name in ["a", "b", "a", ""] {
        let submitted = rig.submit_late(named(name, text(9, 1), 40)).await;
        hold.permit();
        streams.push(submitted.await.unwrap().unwrap());
    }
    assert_eq!(rig.admission.abort(""), 0);
    assert_eq!(rig.admission.abort("c"), 0);
    assert_eq!(rig.admission.abort("a"), 2);
    assert_eq!(rig.admission.abort("a"), 0, "they are gone");
    let [a, b, again, nameless] = <[TokenStream; 4]>::try_from(streams).ok().unwrap();
    // The stop ends it at once, although the engine does not advance.
    assert_eq!(
        (read(a).await.finish, read(again).await.finish),
        (FinishReason::Aborted, FinishReason::Aborted)
    );
    drop(hold);
    assert_eq!(read(b).await.finish, FinishReason::Length);
    assert_eq!(read(nameless).await.finish, FinishReason::Length);
    assert_eq!(rig.admission.abort_all(""), 0);
    rig.is_clean().await;
}

#[tokio::test]
async fn a_stopped_reply_keeps_its_text_and_no_more() {
    let engine = ScriptedEngine::new(ScriptedEngine::caps(), DraftAccuracy::Percent(0));
    let (rig, hold) = Rig::held(engine);
    let mut stream = rig.submit(request(text(24, 1), 1000)).await;
    let mut tokens = Vec::new();
    // Its window's pages from before the reply's ninth token are still held.
    while tokens.len() < 18 {
        hold.permit();
        tokens.extend(soon("an increment", stream.next()).await.unwrap().tokens);
    }
    stream.complete(9);
    drop(hold);
    assert_eq!(stream.next().await, None);
    drop(stream);
    until("it has left", || rig.admission.load().held == 0).await;
    let all = [&text(24, 1)[..], &tokens].concat();
    let reply = read(rig.submit(request(all, 4)).await).await;
    assert_eq!(
        reply.stats.cached_count, 32,
        "whole pages of 24 + 9 tokens, none of what came after"
    );
    assert_eq!(value(&rig.metrics, "vllm:request_success_total", r#"finished_reason="stop""#), 1.0);
    assert_eq!(value(&rig.metrics, "vllm:request_generation_tokens_sum", ""), 13.0);
}

#[tokio::test]
async fn a_drain_finishes_what_was_let_in() {
    let (engine, hold) = held(engine());
    let rig = Rig::with(engine, Limits { running_max: 1, ..Limits::default() }, 5);
    let running = rig.submit(request(text(20, 1), 1)).await;
    hold.entered();
    // No other reply remains after this step.
    let waiting = rig.submit_late(request(text(20, 2), 9)).await;
    rig.admission.drain();
    assert_eq!(rig.admission.health(), Health::Draining);
    assert_eq!(rig.admission.submit(request(text(3, 1), 1)).await.err(), Some(Refusal::Draining));
    drop(hold);
    assert_eq!(read(waiting.await.unwrap().unwrap()).await.tokens.len(), 9);
    assert_eq!(read(running).await.tokens.len(), 1);
    assert_eq!(soon("the end", rig.admission.ended()).await, Ok(()));
    assert_eq!(rig.thread.join(), Ok(()));
    assert_eq!(rig.admission.health(), Health::Draining);
}

#[tokio::test]
async fn shut_doors_end_replies_even_if_the_engine_hangs() {
    let (engine, hold) = held(engine());
    let rig = Rig::with(engine, Limits { running_max: 1, ..Limits::default() }, 5);
    let running = rig.submit(request(text(20, 1), 9)).await;
    hold.entered();
    rig.admission.stop();
    let ended = read(running).await.finish;
    let FinishReason::Failed(failure) = ended else { panic!("{ended:?}") };
    assert_eq!(failure.kind, FailureKind::Shutdown);
    assert_eq!(rig.admission.submit(request(text(3, 1), 1)).await.err(), Some(Refusal::Draining));
    drop(hold);
    assert_eq!(rig.thread.join(), Ok(()));
}

#[tokio::test]
async fn a_queue_without_a_bound_has_one_all_the_same() {
    let rig = Rig::with(engine(), Limits { running_max: 3, ..Limits::default() }, u32::MAX);
    assert_eq!(rig.admission.held_max(), WAITING_MAX + 3);
    rig.is_clean().await;
}

#[tokio::test]
async fn without_gates_and_tickets_the_engine_stops() {
    let Rig { admission, thread, .. } = Rig::new(engine());
    let stream = admission.submit(request(text(9, 1), 5)).await.unwrap();
    drop(admission);
    assert_eq!(read(stream).await.tokens.len(), 5);
    assert_eq!(thread.join(), Ok(()));
}
