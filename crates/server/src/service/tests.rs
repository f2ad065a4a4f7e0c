//! Requests whose prompts and grammars are being made wait like those that were let in.

use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;

use kilotok_abi::{Sampling, TokenId};
use kilotok_engine::SlotSetup;
use kilotok_generation::gate::{Ask, Refusal};
use kilotok_generation::{Gate, GateOptions};
use kilotok_sched::{Limits, Submission};
use kilotok_testkit::{ScriptedEngine, Skill};
use kilotok_text::{Constraint, Conversation, Grammars, Message, ReplyOptions, Tool, ToolCall};
use serde_json::json;
use tokio::task::JoinHandle;

use super::*;
use crate::chorus::Chorus;
use crate::params::Job;
use crate::params::talk::{Prompt, Talk};
use crate::params::tools::Tools;
use crate::trace::ReplyId;

const ROOM: u32 = 6;
const VOCAB: u32 = 256;
/// Nothing here takes a second; a test that waits this long is stuck.
const STUCK: Duration = Duration::from_mins(1);

/// A service whose tokens are bytes, with places for so many requests.
fn service() -> Arc<Service> {
    let caps = ScriptedEngine::caps();
    let metrics = Arc::new(Metrics::new("toy", &caps));
    let limits = Limits { running_max: 2, ..Limits::default() };
    let options = GateOptions { queue_max: ROOM - 2, ..GateOptions::default() };
    let engine = Box::new(ScriptedEngine::new(caps, Skill::Percent(70)));
    let (gate, _driver) = Gate::start(engine, limits, Arc::clone(&metrics), options);
    let text = Text::dummy(Path::new("none"), VOCAB as usize).unwrap();
    let grammars = Grammars::new(&text, VOCAB, &[VOCAB - 1]).unwrap();
    let config = ServerConfig::default();
    Arc::new(Service::new(Arc::new(text), Arc::new(grammars), gate, metrics, config))
}

fn submission(prompt: Vec<TokenId>, token_max: u32) -> Submission {
    Submission::new(prompt, SlotSetup::new(Sampling::GREEDY, 0), token_max)
}

fn ask() -> Ask {
    Ask { request_id: String::new(), submission: submission(vec![1, 2, 3], 5), grammar: None }
}

/// A small request is let in again.
async fn is_clean(service: &Service) {
    until("everyone has left", || service.gate.load().held == 0).await;
    let mut ticket = service.gate.submit(ask()).await.unwrap();
    let mut tokens = Vec::new();
    while let Some(update) = soon("an update", ticket.next()).await {
        tokens.extend(update.tokens);
    }
    assert_eq!(tokens.len(), 5);
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(STUCK, future).await;
    waited.unwrap_or_else(|_| panic!("{what} does not come"))
}

async fn until(what: &str, done: impl Fn() -> bool) {
    soon(what, async {
        while !done() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Asks until there is no place, has some leave, and returns those who stay.
async fn fill<T: Send + 'static>(
    service: &Service,
    ask: impl Fn() -> JoinHandle<Result<T, ApiError>>,
) -> Vec<JoinHandle<Result<T, ApiError>>> {
    let mut asked: Vec<_> = (0..ROOM).map(|_| ask()).collect();
    until("all wait", || service.gate.load().waiting() == ROOM).await;
    let refused = soon("an answer", ask()).await.unwrap().err().unwrap();
    assert_eq!((refused.status.as_u16(), refused.code), (429, Some("queue_full")));
    assert!(refused.retry_after_s.is_some());
    let late = service.gate.submit(self::ask()).await;
    assert!(matches!(late, Err(Refusal::QueueFull { .. })), "the queue is one");
    for left in asked.split_off(3) {
        left.abort();
    }
    asked
}

#[tokio::test]
async fn no_prompt_is_made_without_a_place() {
    let service = service();
    let (free, held) = sync_channel::<()>(0);
    let held = Arc::new(Mutex::new(held));
    let asked = fill(&service, || {
        let (service, held) = (Arc::clone(&service), Arc::clone(&held));
        let work = move |_: &Service, _: &Left| {
            let _ = held.lock().unwrap().recv();
            Ok(())
        };
        tokio::spawn(async move { service.chore(1 << 20, work).await })
    })
    .await;
    until("they have left", || service.gate.load().held == 3).await;
    drop(free);
    for done in asked {
        soon("the prompt", done).await.unwrap().unwrap();
    }
    is_clean(&service).await;
}

#[tokio::test]
async fn small_prompts_pass_large_ones() {
    let service = service();
    let (free, held) = sync_channel::<()>(0);
    let held = Arc::new(Mutex::new(held));
    let asked = fill(&service, || {
        let (service, held) = (Arc::clone(&service), Arc::clone(&held));
        let work = move |_: &Service, _: &Left| {
            let _ = held.lock().unwrap().recv();
            Ok(())
        };
        tokio::spawn(async move { service.chore(1 << 20, work).await })
    })
    .await;
    soon("a small prompt", service.chore(1, |_, _| Ok(()))).await.unwrap();
    drop(free);
    for done in asked {
        soon("a large prompt", done).await.unwrap().unwrap();
    }
    is_clean(&service).await;
}

#[tokio::test]
async fn work_is_told_that_its_client_has_left() {
    let service = service();
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (ended, ends) = tokio::sync::oneshot::channel();
    let asked = tokio::spawn(async move {
        let work = move |_: &Service, left: &Left| {
            let _ = begun.send(());
            while !left.is_set() {
                std::thread::yield_now();
            }
            let _ = ended.send(());
            Ok(())
        };
        service.chore(1, work).await
    });
    soon("its beginning", begins).await.unwrap();
    asked.abort();
    soon("its end", ends).await.unwrap();
}

#[tokio::test]
async fn no_grammar_is_made_without_a_place() {
    let service = service();
    let compiling = Arc::clone(&service.compiling);
    let turns = compiling.available_permits() as u32;
    let turns = compiling.acquire_many(turns).await.unwrap();
    let asked = fill(&service, || {
        let service = Arc::clone(&service);
        let job = Job {
            id: ReplyId::default(),
            prompts: vec![[1, 2, 3].into()],
            n: 2,
            submission: submission(Vec::new(), 5),
            reply: ReplyOptions::default(),
            constraint: Some((Constraint::Regex("[a-c]{3}".into()), "regex")),
            stop_tokens: Vec::new(),
            interval: 1,
            prompt_param: "prompt",
        };
        tokio::spawn(async move { Chorus::start(&service, &job).await })
    })
    .await;
    until("they have left", || service.gate.load().held == 3).await;
    drop(turns);
    // Two replies each: there is room for all of those who stayed.
    for chorus in asked {
        let mut chorus = soon("the replies", chorus).await.unwrap().unwrap();
        while let Some(piece) = soon("a piece", chorus.next()).await {
            piece.unwrap();
        }
    }
    is_clean(&service).await;
}

async fn prompt(
    service: &Arc<Service>,
    mut conversation: Conversation,
) -> Result<Prompt, ApiError> {
    let tools = Tools::all(std::mem::take(&mut conversation.tools));
    let mut talk = Talk { conversation, tools, shape: None, apart: true, param: "messages" };
    talk.prompt(None, service).await
}

#[tokio::test]
async fn a_long_conversation_is_not_made_at_once_wherever_its_text_is() {
    let service = service();
    let _places: Vec<_> = (0..ROOM).map(|_| service.gate.place().unwrap()).collect();
    let long = "x".repeat(5000);
    let (list, numbers) = (json!({"a": [long.clone()]}), json!({"a": vec![0; 5000]}));
    let of = |messages: Vec<Message>| Conversation { messages, ..Conversation::default() };
    let call = |arguments| {
        let call = ToolCall { arguments, ..ToolCall::default() };
        of(vec![Message { tool_calls: vec![call], ..Message::default() }])
    };
    let variables = list.as_object().cloned().unwrap();
    let tool = Tool { parameters: list.clone(), ..Tool::default() };
    for (what, conversation) in [
        ("content", of(vec![Message { content: long.clone(), ..Message::default() }])),
        ("reasoning", of(vec![Message { reasoning: Some(long), ..Message::default() }])),
        ("messages", of(vec![Message::default(); 1000])),
        ("arguments", call(list)),
        ("numbers", call(numbers)),
        ("a tool", Conversation { tools: vec![tool], ..Conversation::default() }),
        ("variables", Conversation { variables, ..Conversation::default() }),
    ] {
        let error = prompt(&service, conversation).await.err().unwrap();
        assert_eq!(error.status.as_u16(), 429, "{what}");
    }
    assert!(prompt(&service, call(json!({"a": "short"}))).await.is_ok(), "it needs no place");
}
