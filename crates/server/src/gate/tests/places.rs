//! Requests whose prompts and grammars are being made wait like those that were let in.

use kilotok_text::{Constraint, Conversation, Grammars, Message, ReplyOptions, Tool, ToolCall};
use serde_json::json;

use super::masks::{END, bytes};
use super::*;
use crate::chorus::Chorus;
use crate::error::ApiError;
use crate::params::Job;
use crate::params::talk::Talk;
use crate::params::tools::Tools;
use crate::service::{Left, ServerConfig, Service};
use crate::trace::ReplyId;

const ROOM: u32 = 6;

fn service() -> (Rig, Arc<Service>) {
    let rig = Rig::with(engine(), Limits { running_max: 2, ..Limits::default() }, ROOM - 2);
    let text = bytes();
    let grammars = Grammars::new(&text, 256, &[END]).unwrap();
    let (gate, metrics) = (rig.gate.clone(), Arc::clone(&rig.metrics));
    let config = ServerConfig::default();
    let service = Service::new(Arc::new(text), Arc::new(grammars), gate, metrics, config);
    (rig, Arc::new(service))
}

/// Asks until there is no place, has some leave, and returns those who stay.
async fn fill<T: Send + 'static>(
    rig: &Rig,
    ask: impl Fn() -> JoinHandle<Result<T, ApiError>>,
) -> Vec<JoinHandle<Result<T, ApiError>>> {
    let mut asked: Vec<_> = (0..ROOM).map(|_| ask()).collect();
    until("all wait", || rig.gate.load().waiting() == ROOM).await;
    let refused = soon("an answer", ask()).await.unwrap().err().unwrap();
    assert_eq!((refused.status.as_u16(), refused.code), (429, Some("queue_full")));
    assert!(refused.retry_after_s.is_some());
    let late = rig.gate.submit(self::ask(text(3, 1), 1)).await;
    assert!(matches!(late, Err(Refusal::QueueFull { .. })), "the queue is one");
    for left in asked.split_off(3) {
        left.abort();
    }
    asked
}

#[tokio::test]
async fn no_prompt_is_made_without_a_place() {
    let (rig, service) = service();
    let (free, held) = sync_channel::<()>(0);
    let held = Arc::new(Mutex::new(held));
    let asked = fill(&rig, || {
        let (service, held) = (Arc::clone(&service), Arc::clone(&held));
        let work = move |_: &Service, _: &Left| {
            let _ = held.lock().unwrap().recv();
            Ok(())
        };
        tokio::spawn(async move { service.chore(1 << 20, work).await })
    })
    .await;
    until("they have left", || rig.gate.load().held == 3).await;
    drop(free);
    for done in asked {
        soon("the prompt", done).await.unwrap().unwrap();
    }
    rig.is_clean().await;
}

#[tokio::test]
async fn small_prompts_pass_large_ones() {
    let (rig, service) = service();
    let (free, held) = sync_channel::<()>(0);
    let held = Arc::new(Mutex::new(held));
    let asked = fill(&rig, || {
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
    rig.is_clean().await;
}

#[tokio::test]
async fn work_is_told_that_its_client_has_left() {
    let (_rig, service) = service();
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
    let (rig, service) = service();
    let compiling = Arc::clone(&service.compiling);
    let turns = compiling.available_permits() as u32;
    let turns = compiling.acquire_many(turns).await.unwrap();
    let asked = fill(&rig, || {
        let service = Arc::clone(&service);
        let job = Job {
            id: ReplyId::default(),
            prompts: vec![text(9, 1).into()],
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
    until("they have left", || rig.gate.load().held == 3).await;
    drop(turns);
    // Two replies each: there is room for all of those who stayed.
    for chorus in asked {
        let mut chorus = soon("the replies", chorus).await.unwrap().unwrap();
        while let Some(piece) = soon("a piece", chorus.next()).await {
            piece.unwrap();
        }
    }
    rig.is_clean().await;
}

/// The status of a prompt that finds no place. One that is made at once needs none.
async fn refused(service: &Arc<Service>, mut conversation: Conversation) -> u16 {
    let tools = std::mem::take(&mut conversation.tools);
    let tools = Tools::all(tools);
    let mut talk = Talk { conversation, tools, shape: None, apart: true, param: "messages" };
    talk.prompt(None, service).await.err().unwrap().status.as_u16()
}

#[tokio::test]
async fn a_long_conversation_is_not_made_at_once_wherever_its_text_is() {
    let (rig, service) = service();
    let _places: Vec<_> = (0..ROOM).map(|_| rig.gate.place().unwrap()).collect();
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
        assert_eq!(refused(&service, conversation).await, 429, "{what}");
    }
    // There is no template.
    assert_eq!(refused(&service, call(json!({"a": "short"}))).await, 400);
}
