//! `/v1/responses`, stateless: every request brings its whole conversation.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use kilotok_text::{Conversation, Message, ToolCall};
use serde_json::{Value, json};

use super::reply::{answer, check_tier};
use crate::chorus::Chorus;
use crate::dialects::Letterhead;
use crate::dialects::responses::Responses;
use crate::error::{ApiError, Faults};
use crate::params::conversation::text_of;
use crate::params::ranges::{at_most, count};
use crate::params::sampling::{alternatives, choose};
use crate::params::shape::shape;
use crate::params::talk::{Talk, variables};
use crate::params::tools::{Tools, only_functions, past_arguments, tool_of, usage_of};
use crate::service::Service;
use crate::sse;
use crate::trace::RequestId;
use crate::wire::body::Body;
use crate::wire::content::{NameOr, OneOrMany};
use crate::wire::responses::{
    InputItem, ReasoningOptions, ResponseObject, ResponsesChoice, ResponsesRequest, ResponsesTool,
    TextFormat, TextOptions,
};
use crate::wire::sampled::{Sampled, Shapes};
use crate::wire::tools::{NamedSchema, ResponseFormat};

/// More are not a conversation.
const ITEMS_MAX: usize = 16_384;

/// Continues a conversation.
#[utoipa::path(
    post,
    path = "/v1/responses",
    operation_id = "respond",
    request_body = ResponsesRequest,
    responses(
        (status = 200, description = "The reply, whole or as server-sent events.", content(
            (ResponseObject = "application/json"),
            (sse::SentEvent = "text/event-stream"),
        )),
        Faults,
    ),
)]
pub(crate) async fn create(
    State(service): State<Arc<Service>>,
    Extension(request_id): Extension<RequestId>,
    Body(request): Body<ResponsesRequest>,
) -> Result<Response, ApiError> {
    let model = service.model(request.model.as_deref())?;
    let id = request_id.reply("resp_", request.request_id.as_deref())?;
    check(&request)?;
    let sampled = sampled(&request)?;
    let chosen = choose(&sampled, &service)?;
    let logprobs = logprobs(&request, &service)?;
    let head = Letterhead::new(id.clone(), model, &service);
    let stream = request.stream;
    let sampling = &chosen.submission.setup.sampling;
    let mut object = object(&request, &head);
    (object.temperature, object.top_p) = (rounded(sampling.temperature), rounded(sampling.top_p));
    let talk = talk(request)?;
    object.parallel_tool_calls = talk.tools.parallel;
    let mut job = talk.job(id, chosen, &service).await?;
    job.submission.logprobs = logprobs;
    let responses = Responses::new(head, object, logprobs);
    answer(&service, Chorus::start(&service, &job).await?, responses, stream).await
}

/// As the client would write it: 0.7, not the f32 next to it.
fn rounded(value: f32) -> f64 {
    (f64::from(value) * 1e6).round() / 1e6
}

fn check(request: &ResponsesRequest) -> Result<(), ApiError> {
    check_tier(request.service_tier.as_deref())?;
    if request.store == Some(true) {
        let message = "store: nothing is stored here; send false, and the whole conversation \
                       with every request";
        return Err(ApiError::bad("store", message).with_code("unsupported_parameter"));
    }
    let known = ["message.output_text.logprobs", "reasoning.encrypted_content"];
    let other = request.include.iter().flatten().find(|name| !known.contains(&name.as_str()));
    if let Some(other) = other {
        return Err(ApiError::not_implemented("include", other));
    }
    at_most("input", &request.input.0, ITEMS_MAX)
}

fn sampled(request: &ResponsesRequest) -> Result<Sampled, ApiError> {
    count("max_output_tokens", request.max_output_tokens, 1, i64::MAX)?;
    let truncate_prompt_tokens = match request.truncation.as_deref() {
        None | Some("disabled") => None,
        Some("auto") => Some(-1),
        Some(other) => {
            let message = format!("truncation: {other:?}, it must be auto or disabled");
            return Err(ApiError::bad("truncation", message));
        }
    };
    Ok(Sampled {
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        seed: request.seed,
        max_tokens: request.max_output_tokens,
        priority: request.priority,
        cache_salt: request.cache_salt.clone(),
        truncate_prompt_tokens,
        ..Sampled::default()
    })
}

fn logprobs(request: &ResponsesRequest, service: &Service) -> Result<Option<u32>, ApiError> {
    let top = alternatives("top_logprobs", request.top_logprobs, service)?;
    let wanted = |name: &String| name == "message.output_text.logprobs";
    if request.include.iter().flatten().any(wanted) {
        return Ok(Some(top.unwrap_or_default()));
    }
    Ok(top.filter(|top| *top > 0))
}

/// The reply before it has begun; it repeats much of the request.
fn object(request: &ResponsesRequest, head: &Letterhead) -> ResponseObject {
    let text = request.text.clone().unwrap_or_default();
    let plain = || TextFormat {
        kind: "text".into(),
        name: None,
        description: None,
        schema: None,
        strict: None,
    };
    ResponseObject {
        id: head.id.clone(),
        object: "response",
        created_at: head.created,
        status: "in_progress",
        error: None,
        incomplete_details: None,
        instructions: request.instructions.clone(),
        max_output_tokens: request.max_output_tokens,
        model: head.model.clone(),
        output: Vec::new(),
        parallel_tool_calls: true,
        previous_response_id: (),
        reasoning: request.reasoning.clone().unwrap_or_default(),
        store: false,
        temperature: 1.0,
        text: TextOptions { format: Some(text.format.unwrap_or_else(plain)), ..text },
        tool_choice: match &request.tool_choice {
            None => json!("auto"),
            Some(NameOr::Name(name)) => json!(name),
            Some(NameOr::Object(choice)) => json!(choice),
        },
        tools: request.tools.clone().unwrap_or_default(),
        top_p: 1.0,
        truncation: request.truncation.clone().unwrap_or_else(|| "disabled".into()),
        usage: None,
        user: request.user.clone(),
        metadata: request.metadata.clone().unwrap_or_default(),
        metrics: None,
    }
}

fn talk(request: ResponsesRequest) -> Result<Talk, ApiError> {
    let tools = tools(request.tools, request.tool_choice, request.parallel_tool_calls)?;
    let response_format = request.text.and_then(|text| text.format).map(|format| {
        let TextFormat { kind, name, description, schema, strict } = format;
        let json_schema = Some(NamedSchema { name, description, schema, strict });
        ResponseFormat { kind, json_schema, schema: None }
    });
    let shape = shape(Shapes { response_format, ..Shapes::default() })
        .map_err(|error| error.with_param("text.format"))?;
    let shape = shape.map(|(constraint, _)| (constraint, "text.format"));
    let effort = request.reasoning.and_then(|ReasoningOptions { effort, .. }| effort);
    let variables = variables(request.chat_template_kwargs, effort, "reasoning.effort")?;
    Ok(Talk {
        conversation: Conversation {
            messages: messages(request.instructions, request.input.0)?,
            variables,
            add_generation_prompt: true,
            ..Conversation::default()
        },
        tools,
        shape,
        apart: true,
        param: "input",
    })
}

fn tools(
    tools: Option<Vec<ResponsesTool>>,
    choice: Option<NameOr<ResponsesChoice>>,
    parallel: Option<bool>,
) -> Result<Tools, ApiError> {
    let mut list = Vec::new();
    for (index, tool) in tools.unwrap_or_default().into_iter().enumerate() {
        let param = format!("tools[{index}]");
        only_functions(&param, &tool.kind)?;
        let ResponsesTool { name, description, parameters, strict, .. } = tool;
        let (name, strict) = (name.unwrap_or_default(), strict.unwrap_or_default());
        list.push(tool_of(&param, name, description, parameters, strict)?);
    }
    let named = |ResponsesChoice { kind, name }| (kind, name);
    Tools::new(list, usage_of(choice, named)?, parallel)
}

/// Items as messages: reasoning and calls belong to the assistant's message that they are next to.
fn messages(instructions: Option<String>, items: Vec<InputItem>) -> Result<Vec<Message>, ApiError> {
    let mut messages = Vec::new();
    if let Some(content) = instructions.filter(|text| !text.is_empty()) {
        messages.push(Message { role: "system".into(), content, ..Message::default() });
    }
    let mut reasoning: Option<String> = None;
    for (index, item) in items.into_iter().enumerate() {
        let param = format!("input[{index}]");
        match item.kind.as_deref() {
            Some("reasoning") => {
                let parts = item.content.map_or_else(|| item.summary.unwrap_or_default(), |c| c.0);
                let text = text_of(&OneOrMany(parts), &format!("{param}.content"))?;
                reasoning.get_or_insert_default().push_str(&text);
            }
            Some("function_call") => {
                let call = ToolCall {
                    id: item.call_id.or(item.id).unwrap_or_default(),
                    name: item.name.unwrap_or_default(),
                    arguments: past_arguments(item.arguments.map(Value::String)),
                };
                assistant(&mut messages, reasoning.take()).tool_calls.push(call);
            }
            Some("function_call_output") => messages.push(Message {
                role: "tool".into(),
                content: text_of(&item.output.unwrap_or_default(), &format!("{param}.output"))?,
                tool_call_id: item.call_id,
                ..Message::default()
            }),
            None | Some("message") => {
                let content = item.content.unwrap_or_default();
                let content = text_of(&content, &format!("{param}.content"))?;
                match item.role.as_deref() {
                    Some("assistant") => {
                        let message = assistant(&mut messages, reasoning.take());
                        message.content.push_str(&content);
                    }
                    Some(role) => {
                        let role = if role == "developer" { "system" } else { role };
                        messages.push(Message { role: role.into(), content, ..Message::default() });
                    }
                    None => {
                        let param = format!("{param}.role");
                        return Err(ApiError::bad(&param, format!("{param}: missing")));
                    }
                }
            }
            Some(other) => {
                let what = format!("an item of type {other:?}");
                return Err(ApiError::not_implemented(format!("{param}.type"), &what));
            }
        }
    }
    if messages.is_empty() {
        return Err(ApiError::bad("input", "input: there must be at least one message"));
    }
    Ok(messages)
}

/// The assistant's message that is being put together.
fn assistant(messages: &mut Vec<Message>, reasoning: Option<String>) -> &mut Message {
    let goes_on = messages.last().is_some_and(|last| last.role == "assistant");
    if !goes_on || reasoning.is_some() {
        messages.push(Message { role: "assistant".into(), reasoning, ..Message::default() });
    }
    let last = messages.len() - 1;
    &mut messages[last]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_become_messages() {
        let items: Vec<InputItem> = serde_json::from_value(json!([
            {"role": "developer", "content": "be"},
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [],
             "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant",
             "content": [{"type": "output_text", "text": "let me see", "annotations": []}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"x\":1}"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
            {"type": "function_call_output", "call_id": "c2",
             "output": [{"type": "input_text", "text": "2"}]},
            {"role": "assistant", "content": "done"},
        ]))
        .unwrap();
        let messages = messages(Some("first".into()), items).unwrap();
        let roles: Vec<_> = messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["system", "system", "user", "assistant", "tool", "tool", "assistant"]);
        assert_eq!(messages[3].reasoning.as_deref(), Some("hm"));
        assert_eq!(messages[3].content, "let me see");
        assert_eq!(messages[3].tool_calls.len(), 2);
        assert_eq!(messages[5].content, "2");
        assert_eq!(messages[6].reasoning, None);
    }

    #[test]
    fn unknown_items_are_refused_by_place() {
        let items = serde_json::from_value(json!([{"type": "computer_call"}])).unwrap();
        let error = messages(None, items).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("input[0].type"));
        assert!(messages(None, Vec::new()).is_err());
    }
}
