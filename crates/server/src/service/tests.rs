//! Requests whose prompts are being made count as waiting, like those that were admitted.

use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{SyncSender, sync_channel};

use kilotok_abi::{Sampling, TokenId};
use kilotok_engine::SlotSetup;
use kilotok_generation::{AdmissionOptions, Limits, Refusal, ReplyRequest, Submission};
use kilotok_testkit::{DraftAccuracy, ScriptedEngine};
use kilotok_text::{Conversation, Grammars, Message, Tool, ToolCall};
use serde_json::json;
use tokio::task::JoinHandle;

use super::*;
use crate::params::chat_prompt::{ChatPrompt, EncodedPrompt};
use crate::params::tools::Tools;

const HELD_MAX: u32 = 6;
const VOCAB: u32 = 256;
/// No test here takes a second; one that waits this long is stuck.
const STUCK: Duration = Duration::from_mins(1);

/// A service whose tokens are bytes, and which holds at most `held_max` requests.
fn service() -> Arc<Service> {
    let caps = ScriptedEngine::caps();
    let metrics = Arc::new(Metrics::new("toy", &caps));
    let limits = Limits { running_max: 2, ..Limits::default() };
    let options = AdmissionOptions { waiting_max: HELD_MAX - 2, ..AdmissionOptions::default() };
    let engine = Box::new(ScriptedEngine::new(caps, DraftAccuracy::Percent(70)));
    let (admission, _thread) = Admission::start(engine, limits, Arc::clone(&metrics), options);
    let text = Text::dummy(Path::new("none"), VOCAB as usize).unwrap();
    let grammars = Grammars::new(&text, VOCAB, &[VOCAB - 1]).unwrap();
    let config = ServerConfig::default();
    Arc::new(Service::new(Arc::new(text), Arc::new(grammars), admission, metrics, config))
}

fn submission(prompt: Vec<TokenId>, token_max: u32) -> Submission {
    Submission::new(prompt, SlotSetup::new(Sampling::GREEDY, 0), token_max)
}

fn reply_request() -> ReplyRequest {
    let submission = submission(vec![1, 2, 3], 5);
    ReplyRequest { request_id: String::new(), submission, grammar: None }
}

/// Checks that no request is held, and that the next one is served.
async fn is_clean(service: &Service) {
    until("no request is held", || service.admission.load().held == 0).await;
    let mut stream = service.admission.submit(reply_request()).await.unwrap();
    let mut tokens = Vec::new();
    while let Some(increment) = soon("an increment", stream.next()).await {
        tokens.extend(increment.tokens);
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

/// A service whose queue was full of large prompts, of which some were cancelled. The others are
/// made once the sender is dropped.
async fn busy() -> (Arc<Service>, SyncSender<()>, Vec<JoinHandle<Result<(), ApiError>>>) {
    let service = service();
    let (free, held) = sync_channel::<()>(0);
    let held = Arc::new(Mutex::new(held));
    let start = || {
        let (service, held) = (Arc::clone(&service), Arc::clone(&held));
        let work = move |_: &Service, _: &Cancelled| {
            let _ = held.lock().unwrap().recv();
            Ok(())
        };
        tokio::spawn(async move { service.run_blocking(1 << 20, work).await })
    };
    let mut started: Vec<_> = (0..HELD_MAX).map(|_| start()).collect();
    until("all wait", || service.admission.load().waiting() == HELD_MAX).await;
    let refused = soon("an answer", start()).await.unwrap().err().unwrap();
    assert_eq!((refused.status.as_u16(), refused.code), (429, Some("queue_full")));
    assert!(refused.retry_after_s.is_some());
    let late = service.admission.submit(reply_request()).await;
    assert!(matches!(late, Err(Refusal::QueueFull { .. })), "the queue is one");
    for cancelled in started.split_off(3) {
        cancelled.abort();
    }
    (service, free, started)
}

#[tokio::test]
async fn no_prompt_is_made_without_a_reservation() {
    let (service, free, started) = busy().await;
    until("they are gone", || service.admission.load().held == 3).await;
    drop(free);
    for done in started {
        soon("the prompt", done).await.unwrap().unwrap();
    }
    is_clean(&service).await;
}

#[tokio::test]
async fn small_prompts_pass_large_ones() {
    let (service, free, started) = busy().await;
    soon("a small prompt", service.run_blocking(1, |_, _| Ok(()))).await.unwrap();
    drop(free);
    for done in started {
        soon("a large prompt", done).await.unwrap().unwrap();
    }
    is_clean(&service).await;
}

#[tokio::test]
async fn work_learns_that_its_request_was_cancelled() {
    let service = service();
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (ended, ends) = tokio::sync::oneshot::channel();
    let request = tokio::spawn(async move {
        let work = move |_: &Service, cancelled: &Cancelled| {
            let _ = begun.send(());
            while !cancelled.is_set() {
                std::thread::yield_now();
            }
            let _ = ended.send(());
            Ok(())
        };
        service.run_blocking(1, work).await
    });
    soon("its beginning", begins).await.unwrap();
    request.abort();
    soon("its end", ends).await.unwrap();
}

async fn encode(
    service: &Arc<Service>,
    mut conversation: Conversation,
) -> Result<EncodedPrompt, ApiError> {
    let tools = Tools::all(std::mem::take(&mut conversation.tools));
    let (constraint, separate_reasoning, param) = (None, true, "messages");
    let mut prompt = ChatPrompt { conversation, tools, constraint, separate_reasoning, param };
    prompt.encode(None, service).await
}

#[tokio::test]
async fn a_long_conversation_is_not_made_at_once_wherever_its_text_is() {
    let service = service();
    let _reservations: Vec<_> =
        (0..HELD_MAX).map(|_| service.admission.reserve().unwrap()).collect();
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
        let error = encode(&service, conversation).await.err().unwrap();
        assert_eq!(error.status.as_u16(), 429, "{what}");
    }
    assert!(encode(&service, call(json!({"a": "short"}))).await.is_ok(), "it needs no reservation");
}
