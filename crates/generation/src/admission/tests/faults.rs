//! Engines that err, panic, stall and refuse: which replies fail, and which go on.

use std::sync::mpsc::sync_channel;

use kilotok_engine::{EngineError, RowFault, RowOutput, StepId};

use super::engines::Altered;
use super::*;

/// Two replies run, two wait; the engine fails in its fourth step.
async fn fails_for_all(engine: impl Engine + 'static, expected: &str) {
    let rig = Rig::with(engine, Limits { running_max: 2, ..Limits::default() }, 9);
    let requests = (0..4).map(|index| request(text(4, index), 50)).collect();
    for stream in rig.admission.submit_all(vec![requests]).await.unwrap() {
        let ended = read(stream).await.finish;
        let FinishReason::Failed(failure) = ended else { panic!("{ended:?}") };
        assert_eq!(failure.kind, FailureKind::Engine);
        assert!(failure.message.contains(expected), "{}", failure.message);
    }
    let Health::Failed { message } = rig.admission.health() else {
        panic!("{:?}", rig.admission.health())
    };
    assert!(message.contains(expected), "{message}");
    let refusal = rig.admission.submit(request(text(3, 1), 1)).await.err().unwrap();
    assert_eq!(refusal, Refusal::Failed(message.clone()));
    assert_eq!(soon("the end", rig.admission.ended()).await.unwrap_err().to_string(), message);
    assert_eq!(rig.thread.join().unwrap_err().to_string(), message);
    assert_eq!(rig.admission.load(), Load::default());
    assert_eq!(
        value(&rig.metrics, "vllm:request_success_total", r#"finished_reason="error""#),
        4.0
    );
    assert_eq!(value(&rig.metrics, "vllm:num_requests_running", ""), 0.0);
}

#[tokio::test]
async fn an_error_of_the_engine_ends_everything() {
    let mut engine = engine();
    engine.fail_at(3, EngineError::Busy { in_flight: 7 });
    fails_for_all(engine, "7 steps are in flight").await;
}

#[tokio::test]
async fn so_does_a_panic() {
    let alter = |step: StepId, _: &mut StepOutput| {
        assert!(step.0 < 3, "rank 3 is gone");
    };
    fails_for_all(Altered { inner: engine(), alter }, "rank 3 is gone").await;
}

#[tokio::test]
async fn so_does_an_output_that_cannot_be() {
    let alter = |step: StepId, out: &mut StepOutput| {
        if step.0 == 3 {
            out.rows.pop();
        }
    };
    fails_for_all(Altered { inner: engine(), alter }, "rows came out of").await;
}

#[tokio::test]
async fn a_refused_plan_costs_one_reply() {
    let mut engine = engine();
    engine.fail_at(2, EngineError::Plan { row: 1, reason: "no such page".into() });
    let (rig, hold) = Rig::held(engine);
    let prompts: Vec<_> = (0..3).map(|index| text(9 + index, index)).collect();
    let mut streams = Vec::new();
    for prompt in &prompts {
        let submitted = rig.submit_late(request(prompt.clone(), 60)).await;
        // All three are submitted before the third step.
        if streams.len() == 1 {
            hold.permit();
        }
        streams.push(submitted);
        if streams.len() == 1 {
            hold.entered();
        }
    }
    drop(hold);
    let mut replies = Vec::new();
    for stream in streams {
        replies.push(read(stream.await.unwrap().unwrap()).await);
    }
    let failed: Vec<_> = replies.iter().map(|reply| reply.finish != FinishReason::Length).collect();
    assert_eq!(failed, [false, true, false]);
    let FinishReason::Failed(failure) = &replies[1].finish else { panic!() };
    assert!(failure.message.contains("no such page"), "{}", failure.message);
    let expected = alone(prompts.iter().map(|prompt| submission(prompt.clone(), 60)).collect());
    assert_eq!((&replies[0].tokens, &replies[2].tokens), (&expected[0], &expected[2]));
    assert_eq!(value(&rig.metrics, "kilotok:plans_refused_total", ""), 1.0);
    rig.is_clean().await;
}

#[tokio::test]
async fn a_row_without_a_token_costs_one_reply() {
    let alter = |step: StepId, out: &mut StepOutput| {
        if step.0 == 4 {
            let fault = Some(RowFault::NotFinite { position: 17 });
            out.rows[0] = RowOutput { fault, ..RowOutput::default() };
        }
    };
    let rig = Rig::new(Altered { inner: engine(), alter });
    let requests = vec![request(text(4, 1), 99), request(text(5, 2), 99)];
    let mut replies = Vec::new();
    for stream in rig.admission.submit_all(vec![requests]).await.unwrap() {
        replies.push(read(stream).await);
    }
    let FinishReason::Failed(failure) = &replies[0].finish else {
        panic!("{:?}", replies[0].finish)
    };
    assert_eq!(failure.kind, FailureKind::Fault);
    assert!(failure.message.contains("position 17 are not finite"), "{}", failure.message);
    assert!(!replies[0].tokens.is_empty(), "what came before is not lost");
    assert_eq!(replies[1].tokens, alone(vec![submission(text(5, 2), 99)])[0]);
    assert_eq!(value(&rig.metrics, "vllm:corrupted_requests_total", ""), 1.0);
    rig.is_clean().await;
}

#[tokio::test]
async fn a_stalled_engine_is_told_from_an_idle_one() {
    let (rig, hold) = Rig::held(engine());
    rig.pass_ms(100_000);
    assert_eq!(rig.admission.health(), Health::Ok { busy: false });
    let stream = rig.submit(request(text(9, 1), 40)).await;
    hold.entered();
    assert_eq!(rig.admission.health(), Health::Ok { busy: true });
    rig.pass_ms(4_000);
    assert_eq!(rig.admission.health(), Health::Ok { busy: true });
    rig.pass_ms(2_000);
    assert_eq!(rig.admission.health(), Health::Stalled { for_ms: 6_000 });
    let refused = rig.admission.submit(request(text(3, 1), 1)).await.err().unwrap();
    assert_eq!(refused.to_string(), "the engine has failed: it has finished no step for 6000 ms");
    // A late step ends the stall.
    hold.permit();
    hold.entered();
    assert_eq!(rig.admission.health(), Health::Ok { busy: true });
    drop(hold);
    assert_eq!(read(stream).await.tokens.len(), 40);
    rig.is_clean().await;
}

#[tokio::test]
async fn a_thread_that_hangs_while_nothing_runs_is_stalled() {
    let (rig, free) = Rig::stuck(engine(), Limits::default(), 9, "kilotok-engine");
    let stream = soon("the answer", rig.submit(request(text(9, 1), 5))).await;
    rig.pass_ms(4_000);
    assert_eq!(rig.admission.health(), Health::Ok { busy: true });
    rig.pass_ms(2_000);
    assert_eq!(rig.admission.health(), Health::Stalled { for_ms: 6_000 });
    drop(free);
    assert_eq!(read(stream).await.tokens.len(), 5);
    rig.is_clean().await;
}

#[tokio::test]
async fn a_command_that_is_not_read_is_work() {
    let status = Arc::new(EngineStatus::new(Clock::new(|| 0), 5_000));
    let (sender, inbox) = sync_channel(1);
    let commands = CommandQueue::new(sender, Arc::clone(&status));
    commands.try_send(Command::Wake).unwrap();
    status.idle();
    assert_eq!(status.health(), Health::Ok { busy: true }, "it came before the thread was idle");
    assert!(commands.try_send(Command::Wake).is_err(), "the queue is full");
    status.command_read();
    status.idle();
    assert_eq!(status.health(), Health::Ok { busy: false });
    drop(inbox);
    assert!(commands.send(Command::Wake).is_err() && commands.try_send(Command::Wake).is_err());
    assert_eq!(status.health(), Health::Ok { busy: false }, "there is no reader");
}

#[tokio::test]
async fn a_caller_waits_no_longer_than_a_stall_takes() {
    let (rig, hold) = Rig::held(engine());
    let running = rig.submit(request(text(9, 1), 40)).await;
    hold.entered();
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    let late = rig.submit_late(request(text(9, 2), 40)).await;
    rig.pass_ms(6_000);
    let refused = late.await.unwrap().err();
    let stalled = "it has finished no step for 6000 ms";
    assert_eq!(refused, Some(Refusal::Failed(stalled.into())));
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    drop((hold, running));
}

#[tokio::test]
async fn a_caller_is_not_kept_waiting_for_an_engine_that_hangs() {
    let (rig, hold) = Rig::held(engine());
    let running = rig.submit(request(text(9, 1), 40)).await;
    hold.entered();
    tokio::time::pause();
    // Admission still sees a healthy engine. Tokio's paused clock advances when all tasks are idle.
    let refused = rig.admission.submit(request(text(9, 2), 40)).await.err();
    assert_eq!(refused, Some(Refusal::Failed("it did not answer in time".into())));
    drop((hold, running));
    let (sender, ended) = sync_channel(1);
    std::thread::spawn(move || sender.send(rig.thread.join()));
    drop(rig.admission);
    assert_eq!(ended.recv_timeout(STUCK), Ok(Ok(())));
}
