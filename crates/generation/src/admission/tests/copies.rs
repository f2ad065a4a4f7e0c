//! Several replies to one prompt.

use super::*;

fn copies(count: u64, prompt_count: u32) -> Vec<ReplyRequest> {
    let copy = |seed| {
        let mut request = named("n", text(prompt_count, 1), 20);
        request.submission.setup.sampling.seed = seed;
        request.submission.setup.sampling.temperature = 1.0;
        request
    };
    (0..count).map(copy).collect()
}

fn alone_copies(count: u64, prompt_count: u32) -> Vec<Vec<TokenId>> {
    alone(copies(count, prompt_count).into_iter().map(|request| request.submission).collect())
}

#[tokio::test]
async fn they_share_the_prompt() {
    let (rig, hold) = Rig::held(engine());
    let streams = rig.admission.submit_all(vec![copies(5, 100)]).await.unwrap();
    hold.entered();
    assert_eq!((rig.admission.load().running, rig.admission.load().waiting()), (1, 4));
    hold.permit();
    hold.entered();
    assert_eq!(rig.admission.load().running, 5, "the first token starts them all");
    drop(hold);
    let mut replies = Vec::new();
    for stream in streams {
        replies.push(read(stream).await);
    }
    let cached: Vec<_> = replies.iter().map(|reply| reply.stats.cached_count).collect();
    assert_eq!(cached, [0, 96, 96, 96, 96]);
    let tokens: Vec<_> = replies.into_iter().map(|reply| reply.tokens).collect();
    assert_eq!(tokens, alone_copies(5, 100));
    rig.is_clean().await;
}

#[tokio::test]
async fn short_prompts_share_nothing_and_wait_for_nothing() {
    let (rig, hold) = Rig::held(engine());
    let streams = rig.admission.submit_all(vec![copies(5, 7)]).await.unwrap();
    hold.entered();
    assert_eq!(rig.admission.load().running, 5);
    drop(hold);
    for (stream, expected) in streams.into_iter().zip(alone_copies(5, 7)) {
        assert_eq!(read(stream).await.tokens, expected);
    }
}

#[tokio::test]
async fn they_start_when_the_first_ends_early() {
    for how in 0..3 {
        let (rig, hold) = Rig::held(engine());
        // The prompt takes more than one step, so the first reply can leave before its first token.
        let mut streams = rig.admission.submit_all(vec![copies(4, 400)]).await.unwrap();
        hold.entered();
        assert_eq!((rig.admission.load().running, rig.admission.load().waiting()), (1, 3));
        // One of the waiting replies leaves too.
        drop(streams.remove(2));
        let mut first = streams.remove(0);
        match how {
            0 => {}
            1 => first.complete(0),
            _ => assert_eq!(rig.admission.abort("n"), 3, "all that are left"),
        }
        drop(first);
        drop(hold);
        let expected = alone_copies(4, 400);
        for (stream, index) in streams.into_iter().zip([1, 3]) {
            let reply = read(stream).await;
            if how == 2 {
                assert_eq!(reply.finish, FinishReason::Aborted);
            } else {
                assert_eq!((&reply.tokens, reply.finish), (&expected[index], FinishReason::Length));
            }
        }
        rig.is_clean().await;
    }
}

#[tokio::test]
async fn all_are_let_in_or_none() {
    let rig = Rig::with(engine(), Limits { running_max: 2, ..Limits::default() }, 2);
    assert!(rig.admission.submit_all(vec![copies(5, 100)]).await.is_err());
    assert_eq!(rig.admission.load().held, 0);
    for stream in rig.admission.submit_all(vec![copies(4, 100)]).await.unwrap() {
        assert_eq!(read(stream).await.tokens.len(), 20);
    }
    rig.is_clean().await;
}

#[tokio::test]
async fn replies_to_several_prompts_leave_their_places_to_others() {
    let (engine, hold) = held(engine());
    let rig = Rig::with(engine, Limits { running_max: 2, ..Limits::default() }, 99);
    let prompts = (0..8).map(|first| vec![request(text(9, first), 200)]).collect();
    let many = rig.admission.submit_all(prompts).await.unwrap();
    hold.entered();
    let late = rig.submit_late(request(text(9, 50), 3)).await;
    // Four steps: the one in flight, and one for each token.
    for _ in 0..4 {
        hold.permit();
        hold.entered();
    }
    let stream = late.await.unwrap().unwrap();
    assert_eq!(read(stream).await.tokens.len(), 3);
    assert_eq!(rig.admission.load().held, 8);
    drop((hold, many));
    rig.is_clean().await;
}
