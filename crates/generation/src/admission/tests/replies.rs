//! Replies: their increments, slow readers, and the limit of the queue.

use super::*;

#[tokio::test]
async fn tokens_are_the_schedulers() {
    let asked: Vec<_> = (0..40)
        .map(|index| {
            let mut asked = submission(text(1 + index * 13 % 90, index), 1 + index * 7 % 40);
            asked.setup.sampling.seed = u64::from(index);
            asked.setup.sampling.temperature = if index % 3 == 0 { 0.8 } else { 0.0 };
            asked.drafts = index % 5 != 0;
            asked
        })
        .collect();
    let rig = Rig::new(engine()).lively();
    let mut readers = Vec::new();
    for submission in asked.clone() {
        let request = ReplyRequest { request_id: String::new(), submission, grammar: None };
        readers.push(tokio::spawn(read(rig.submit(request).await)));
    }
    for (reader, expected) in readers.into_iter().zip(alone(asked)) {
        let reply = reader.await.unwrap();
        let token_count = reply.tokens.len();
        assert_eq!((reply.finish, reply.tokens), (FinishReason::Length, expected));
        assert_eq!(reply.stats.token_count as usize, token_count);
    }
    rig.is_clean().await;
}

#[tokio::test]
async fn a_slow_reader_delays_no_other_and_misses_nothing() {
    let rig = Rig::new(engine());
    let slow = rig.submit(request(text(20, 1), 60)).await;
    let quick = read(rig.submit(request(text(20, 2), 120)).await).await;
    assert_eq!(quick.tokens.len(), 120);
    until("the slow one's reply is complete", || rig.admission.load().held == 0).await;
    let slow = read(slow).await;
    assert_eq!(slow.increment_count, 1, "all of it is one increment");
    assert_eq!(vec![slow.tokens], alone(vec![submission(text(20, 1), 60)]));
    assert_eq!((slow.stats.token_count, slow.finish), (60, FinishReason::Length));
    rig.is_clean().await;
}

#[tokio::test]
async fn each_step_is_one_increment() {
    let (rig, hold) = Rig::held(engine());
    let mut stream = rig.submit(request(text(20, 1), 30)).await;
    let mut increment_count = 0;
    loop {
        hold.entered();
        rig.pass_ms(4);
        hold.permit();
        let increment = soon("an increment", stream.next()).await.unwrap();
        increment_count += 1;
        let ReplyStats { queue_ms, ttft_ms, decode_ms, .. } = increment.stats;
        let decode_ms_expected = f64::from(4 * (increment_count - 1));
        assert_eq!((queue_ms, ttft_ms, decode_ms), (0.0, 4.0, decode_ms_expected));
        if increment.finish.is_some() {
            break;
        }
    }
    assert!(increment_count > 4);
}

#[tokio::test]
async fn an_end_token_ends() {
    let rig = Rig::new(engine());
    let prompt = text(12, 5);
    let tokens = alone(vec![submission(prompt.clone(), 30)]).remove(0);
    let mut request = request(prompt, 30);
    request.submission.setup.end_tokens = vec![tokens[9]];
    let at = tokens.iter().position(|token| *token == tokens[9]).unwrap();
    let reply = read(rig.submit(request).await).await;
    assert_eq!((&reply.tokens[..], reply.finish), (&tokens[..=at], FinishReason::EndToken));
}

#[tokio::test]
async fn a_prompt_is_scored_without_a_reply() {
    let rig = Rig::new(engine());
    let mut request = request(text(50, 5), 0);
    (request.submission.score_prompt, request.submission.logprobs) = (true, Some(2));
    let mut stream = rig.submit(request).await;
    let mut scored = Vec::new();
    loop {
        let increment = soon("an increment", stream.next()).await.unwrap();
        assert!(increment.tokens.is_empty());
        scored.extend(increment.prompt_logprobs);
        if let Some(ended) = increment.finish {
            assert_eq!(ended, FinishReason::Length);
            break;
        }
    }
    let chosen: Vec<_> = scored.iter().map(|scored| scored.chosen.token).collect();
    assert_eq!(chosen, text(50, 5)[1..]);
    assert!(scored.iter().all(|scored| scored.top.len() == 2));
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let rig = Rig::new(engine());
    let refused = async |request| rig.admission.submit(request).await.err().unwrap();
    let long = refused(request(text(4096, 1), 1)).await;
    assert_eq!(long, Refusal::TooLong { token_count: 4096, context_max: 4096 });
    let nothing = refused(request(text(3, 1), 0)).await;
    assert!(matches!(nothing, Refusal::Illegal(_)), "{nothing}");
    let foreign = refused(request(vec![1, 256], 1)).await;
    assert_eq!(foreign, Refusal::Illegal("token 256 of a vocabulary of 256".into()));
    let many =
        rig.admission.submit_all(vec![(0..2000).map(|_| request(text(3, 1), 1)).collect()]).await;
    let text = "2000 replies; 1 to 1040 are possible";
    assert_eq!(many.err(), Some(Refusal::Illegal(text.into())));
    rig.is_clean().await;
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let (engine, hold) = held(engine());
    let limits = Limits { running_max: 2, ..Limits::default() };
    let rig = Rig::with(engine, limits, 3);
    assert_eq!(rig.admission.held_max(), 5);
    let first = rig.submit(request(text(20, 1), 4)).await;
    hold.entered();
    // All are admitted at once when the step is done, into a queue of 3.
    let submit = |count: usize| {
        let admission = rig.admission.clone();
        let requests = (0..count).map(|_| request(text(20, 1), 4)).collect();
        tokio::spawn(async move { admission.submit_all(vec![requests]).await })
    };
    let burst = submit(4);
    until("the burst is in", || rig.admission.load().held == 5).await;
    let full = submit(1).await.unwrap().err();
    assert_eq!(full, Some(Refusal::QueueFull { retry_after_s: 5 }), "the rate is not known yet");
    drop(hold);
    for stream in burst.await.unwrap().unwrap() {
        assert_eq!(read(stream).await.tokens.len(), 4);
    }
    assert_eq!(read(first).await.tokens.len(), 4);
    rig.is_clean().await;
}

#[tokio::test]
async fn a_place_is_free_when_the_end_is_heard() {
    let rig = Rig::with(engine(), Limits { running_max: 1, ..Limits::default() }, 0);
    for index in 0..50 {
        let reply = read(rig.submit(request(text(9, index), 3)).await).await;
        assert_eq!(reply.tokens.len(), 3);
    }
}
