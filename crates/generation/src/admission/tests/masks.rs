//! Replies with a grammar beside replies without, with and without drafts.

use std::path::Path;

use kilotok_engine::StepId;
use kilotok_text::{Constraint, Grammars, ReplyOptions, Text};

use super::engines::Altered;
use super::*;
use crate::mask_workers::MaskJob;
use crate::replies::{GenerationRequest, Generator, StartError};

const END: TokenId = 255;

/// A text whose tokens are single bytes, except the last, which no text contains: it ends a reply.
fn bytes() -> Text {
    Text::dummy(Path::new("none"), 256).unwrap()
}

fn bound(grammars: &Grammars, regex: &str, index: u32, drafts: bool) -> ReplyRequest {
    bound_to(grammars, &Constraint::Regex(regex.into()), index, drafts)
}

fn bound_to(
    grammars: &Grammars,
    constraint: &Constraint,
    index: u32,
    drafts: bool,
) -> ReplyRequest {
    let mut request = request(text(5 + index * 11, index), 100);
    request.submission.setup.end_tokens = vec![END];
    // The drafter guesses the likeliest token, so that greedy replies accept some of its drafts.
    request.submission.setup.sampling.temperature = if index % 4 == 2 { 0.0 } else { 1.0 };
    request.submission.setup.sampling.seed = u64::from(index);
    request.submission.drafts = drafts;
    request.grammar = Some(grammars.compile(constraint, false, &|| false).unwrap());
    request
}

const REGEXES: [&str; 4] =
    ["[a-c]{12}(yes|no)", r#"\{"a": [0-9]{1,30}, "b": "[x-z]*"\}"#, "[ -~]{40}", "é[0-9]+ü"];

#[tokio::test]
async fn every_reply_is_what_it_must_be_whatever_is_drafted() {
    let text_of_bytes = bytes();
    let grammars = Grammars::new(&text_of_bytes, 256, &[END]).unwrap();
    let free: Vec<_> = (0..3).map(|index| submission(text(20, index), 90)).collect();
    let mut replies = Vec::new();
    let mut accepted_count = 0;
    for (skill, drafts) in [
        (DraftAccuracy::Percent(70), false),
        (DraftAccuracy::Percent(70), true),
        (DraftAccuracy::Percent(0), true),
        (DraftAccuracy::Always(b'!'.into()), true),
        (DraftAccuracy::Always(END), true),
    ] {
        let rig = Rig::new(ScriptedEngine::new(ScriptedEngine::caps(), skill)).lively();
        let mut streams = Vec::new();
        for submission in free.clone() {
            let request = ReplyRequest { request_id: String::new(), submission, grammar: None };
            streams.push(rig.submit(request).await);
        }
        for index in 0..12 {
            let request = bound(&grammars, REGEXES[index % 4], index as u32, drafts);
            // Some requests are dropped at once.
            drop(rig.admission.submit(bound(&grammars, REGEXES[0], 1, drafts)).await.unwrap());
            streams.push(rig.submit(request).await);
        }
        let mut these = Vec::new();
        for (number, stream) in streams.into_iter().enumerate() {
            let reply = read(stream).await;
            accepted_count += if number < 3 { 0 } else { reply.stats.accepted_count };
            these.push((reply.tokens, reply.finish));
        }
        rig.is_clean().await;
        replies.push(these);
    }
    assert!(accepted_count > 10, "{accepted_count} drafts of bound replies were accepted");
    assert!(replies.iter().all(|these| *these == replies[0]), "drafts change no token");
    let (these, bound) = replies[0].split_at(3);
    let expected = alone(free);
    assert!(these.iter().zip(expected).all(|((tokens, _), expected)| *tokens == expected));
    for (index, (tokens, ended)) in bound.iter().enumerate() {
        let said = text_of_bytes.decode(tokens.strip_suffix(&[END]).unwrap_or(tokens), true);
        let ok = match index % 4 {
            0 => said.len() >= 14 && (said.ends_with("yes") || said.ends_with("no")),
            1 => said.starts_with(r#"{"a": "#) && (said.ends_with("\"}") || tokens.len() == 100),
            2 => said.len() == 40 && said.chars().all(|letter| (' '..='~').contains(&letter)),
            _ => said.starts_with('é') && (said.ends_with('ü') || tokens.len() == 100),
        };
        assert!(ok, "{index}: {said:?}");
        assert!(*ended == FinishReason::EndToken || tokens.len() == 100, "{said:?}");
    }
}

/// In the grammar, "x" leads to a place where no token is allowed. A reply that chose "x" fails
/// with an error that no retry helps; a reply for which "x" was only drafted goes on another way.
#[tokio::test]
async fn a_place_where_nothing_matches_ends_those_who_chose_it() {
    let grammars = Grammars::new(&bytes(), 256, &[END]).unwrap();
    let lark = format!("start: A (\"x\" <[{END}]> \"y\" | \"z\")\nA: /[a-c]{{3}}/");
    let mut replies = Vec::new();
    for drafts in [false, true] {
        let engine =
            ScriptedEngine::new(ScriptedEngine::caps(), DraftAccuracy::Always(b'x'.into()));
        let rig = Rig::new(engine).lively();
        let mut these = Vec::new();
        for index in 0..16 {
            let request = bound_to(&grammars, &Constraint::Lark(lark.clone()), index, drafts);
            let reply = read(rig.submit(request).await).await;
            these.push((reply.tokens, reply.finish));
        }
        rig.is_clean().await;
        replies.push(these);
    }
    assert_eq!(replies[0], replies[1], "drafts change no token and no end");
    let (failed, whole): (Vec<_>, Vec<_>) = replies
        .remove(0)
        .into_iter()
        .partition(|(_, ended)| matches!(ended, FinishReason::Failed(_)));
    assert!(whole.len() > 2 && whole.iter().all(|(_, ended)| *ended == FinishReason::EndToken));
    assert!(failed.len() > 2, "{} replies failed", failed.len());
    for (_, ended) in failed {
        let FinishReason::Failed(failure) = ended else { panic!("{ended:?}") };
        assert!(failure.message.contains("nothing matches"), "{}", failure.message);
        assert_eq!(failure.kind, FailureKind::NothingAllowed);
    }
}

#[tokio::test]
async fn a_grammar_that_breaks_costs_one_reply() {
    let grammars = Grammars::new(&bytes(), 256, &[END]).unwrap();
    // Makes the engine choose a token that the mask forbids. Only the other request has
    // log-probabilities.
    let mut wrong_count = 0;
    let alter = move |_: StepId, out: &mut StepOutput| {
        for row in &mut out.rows {
            if !row.tokens.is_empty() && row.logprobs.is_empty() {
                wrong_count += 1;
                if wrong_count == 4 {
                    row.tokens = vec![b'!'.into()];
                }
            }
        }
    };
    let rig = Rig::new(Altered { inner: engine(), alter });
    let mut free = request(text(20, 1), 200);
    free.submission.logprobs = Some(0);
    let free = rig.submit(free).await;
    let bound = read(rig.submit(bound(&grammars, "[a-c]{50}", 1, false)).await).await;
    let FinishReason::Failed(failure) = bound.finish else { panic!("{:?}", bound.finish) };
    assert_eq!(failure.kind, FailureKind::Fault);
    assert!(failure.message.contains("token 33 was chosen"), "{}", failure.message);
    assert_eq!(vec![read(free).await.tokens], alone(vec![submission(text(20, 1), 200)]));
    rig.is_clean().await;
}

/// A grammar that cannot be followed ends its replies and leaves nothing behind: neither copies
/// that wait for the first reply, nor an engine that is believed to have work.
#[tokio::test]
async fn more_grammars_than_can_be_followed_leave_nothing_behind() {
    let grammars = Grammars::new(&bytes(), 256, &[END]).unwrap();
    let limits = Limits { running_max: 3, ..Limits::default() };
    let (rig, free) = Rig::stuck(engine(), limits, 0, "kilotok-masks");
    let mut full = false;
    for _ in 0..20 {
        // The prompt fills a page, so that the copies wait for the first.
        let requests = (0..3).map(|_| bound(&grammars, "[a-c]{12}", 3, true)).collect();
        let mut streams = rig.admission.submit_all(vec![requests]).await.unwrap();
        full = rig.admission.load().held == 0;
        if full {
            for stream in streams.drain(..) {
                let ended = read(stream).await.finish;
                let FinishReason::Failed(failure) = ended else { panic!("{ended:?}") };
                assert!(failure.message.contains("too many grammars"), "{}", failure.message);
                assert_eq!(failure.kind, FailureKind::Busy);
            }
            break;
        }
        drop(streams);
        until("they are gone", || rig.admission.load().held == 0).await;
    }
    assert!(full, "there is no bound");
    rig.pass_ms(100_000);
    until("there is no work", || rig.admission.health() == Health::Ok { busy: false }).await;
    drop(free);
    rig.is_clean().await;
}

#[tokio::test]
async fn an_engine_that_waits_for_masks_is_not_stalled() {
    let grammars = Grammars::new(&bytes(), 256, &[END]).unwrap();
    let (rig, free) = Rig::stuck(engine(), Limits::default(), 9, "kilotok-masks");
    let waits = rig.submit(bound(&grammars, "[a-c]{12}", 3, true)).await;
    until("all but the masks is there", || rig.admission.health() == Health::Ok { busy: false })
        .await;
    rig.pass_ms(100_000);
    assert_eq!(rig.admission.health(), Health::Ok { busy: false });
    assert_eq!(read(rig.submit(request(text(9, 1), 5)).await).await.tokens.len(), 5);
    drop(free);
    assert_eq!(read(waits).await.finish, FinishReason::EndToken);
    rig.is_clean().await;
}

/// The engine's thread learns of a dropped reader even if the queue was full at the time.
#[test]
fn a_dropped_reader_gets_no_masks_and_is_reported() {
    let grammars = Grammars::new(&bytes(), 256, &[END]).unwrap();
    let metrics = Arc::new(Metrics::new("toy", &ScriptedEngine::caps()));
    let (sender, inbox) = sync_channel(1);
    let commands = CommandQueue::new(sender, Arc::new(EngineStatus::new(Clock::default(), 1000)));
    let workers = MaskWorkers::start(1, 1, &commands, &metrics, &Clock::default());
    let channel = Arc::new(ReplyChannel::new("gone".into(), 0));
    channel.cancel(CancelReason::Dropped);
    let grammar = grammars.compile(&Constraint::JsonObject, false, &|| false).unwrap();
    let (tokens, drafts) = (Vec::new(), Vec::new());
    assert!(workers.send(MaskJob { key: 7, channel, grammar, tokens, drafts }));
    assert!(matches!(inbox.recv_timeout(STUCK), Ok(Command::Cancel(7))));
}

#[tokio::test]
async fn copies_follow_a_grammar_each() {
    let grammars = Grammars::new(&bytes(), 256, &[END]).unwrap();
    let rig = Rig::new(engine());
    let requests = (0..4).map(|_| bound(&grammars, "[ -~]{30}", 3, true)).collect();
    let mut replies = Vec::new();
    for stream in rig.admission.submit_all(vec![requests]).await.unwrap() {
        replies.push(read(stream).await);
    }
    assert!(replies.iter().all(|reply| reply.tokens == replies[0].tokens), "same seed, same reply");
    assert!(replies[1..].iter().all(|reply| reply.stats.cached_count == 32));
    assert!(rig.metrics.text().contains("kilotok:mask_seconds_count"));
    rig.is_clean().await;
}

/// Requests whose grammars are being compiled count as waiting, like those that were admitted.
#[tokio::test]
async fn no_grammar_is_compiled_without_a_reservation() {
    const HELD_MAX: u32 = 6;
    let rig = Rig::with(engine(), Limits { running_max: 2, ..Limits::default() }, HELD_MAX - 2);
    let text_of_bytes = Arc::new(bytes());
    let grammars = Arc::new(Grammars::new(&text_of_bytes, 256, &[END]).unwrap());
    let generator = Arc::new(Generator::new(rig.admission.clone(), text_of_bytes, grammars));
    let compiling = generator.compiling();
    let turns = compiling.available_permits() as u32;
    let turns = compiling.acquire_many(turns).await.unwrap();
    let start = || {
        let generator = Arc::clone(&generator);
        let request = GenerationRequest {
            request_id: String::new(),
            prompts: vec![text(9, 1).into()],
            n: 2,
            submission: submission(Vec::new(), 5),
            constraint: Some(Constraint::Regex("[a-c]{3}".into())),
            reply: ReplyOptions::default(),
            stop_tokens: Vec::new(),
            interval: 1,
        };
        tokio::spawn(async move { generator.start(&request).await })
    };
    let mut started: Vec<_> = (0..HELD_MAX).map(|_| start()).collect();
    until("all wait", || rig.admission.load().waiting() == HELD_MAX).await;
    let refused = soon("an answer", start()).await.unwrap().err();
    assert!(matches!(refused, Some(StartError::Refused(Refusal::QueueFull { .. }))));
    for dropped in started.split_off(3) {
        dropped.abort();
    }
    until("they are gone", || rig.admission.load().held == 3).await;
    drop(turns);
    // Two replies each: there is room for all of the remaining ones.
    for replies in started {
        let mut replies = soon("the replies", replies).await.unwrap().unwrap();
        while let Some(increment) = soon("an increment", replies.next()).await {
            increment.unwrap();
        }
    }
    rig.is_clean().await;
}
