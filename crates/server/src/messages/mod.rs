//! `/v1/messages` and `/v1/messages/count_tokens`, Anthropic's API: turns a request into
//! parameters, a prompt, and an encoder of the reply.

mod content;
mod encoder;
pub(crate) mod tools;
pub mod wire;

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::response::Response;
use kilotok_text::{Conversation, Message};
use serde_json::{Map, Value, json};

use crate::encoder::{ResponseHead, check_tier, respond};
use crate::error::ApiError;
use crate::middleware::RequestId;
use crate::params::chat_prompt::{ChatPrompt, variables};
use crate::params::constraint::{FieldConstraint, schema_of};
use crate::params::ranges::count;
use crate::params::sampling::{check_stops, resolve};
use crate::service::Service;
use crate::sse;
use crate::wire::body::Body;
use crate::wire::content::OneOrMany;
use crate::wire::generation::GenerationFields;
use content::messages;
use encoder::MessagesEncoder;
pub(crate) use encoder::{is_client, translate_error};
use tools::tools;
use wire::{
    CountRequest, ErrorBody, Message as Reply, MessagesRequest, OutputConfig, OutputFormat,
    Thinking, TokenCount,
};

/// Continues a conversation.
#[utoipa::path(
    post,
    path = "/v1/messages",
    operation_id = "message",
    request_body = MessagesRequest,
    responses(
        (status = 200, description = "The reply, whole or as server-sent events.", content(
            (Reply = "application/json"),
            (sse::SentEvent = "text/event-stream"),
        )),
        (status = "4XX", description = "The request is refused.", body = ErrorBody),
        (status = "5XX", description = "The server failed.", body = ErrorBody),
    ),
)]
pub(crate) async fn create(
    State(service): State<Arc<Service>>,
    Extension(request_id): Extension<RequestId>,
    Body(request): Body<MessagesRequest>,
) -> Result<Response, ApiError> {
    let model = service.model(request.model.as_deref())?;
    let id = request_id.reply("msg_", None)?;
    check_tier(request.service_tier.as_deref())?;
    count("max_tokens", Some(request.max_tokens), 1, i64::MAX)?;
    let stops = request.stop_sequences.as_deref().unwrap_or_default();
    check_stops("stop_sequences", stops, service.config.stop_max)?;
    let params = resolve(
        &GenerationFields {
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: request.top_k,
            max_tokens: Some(request.max_tokens),
            stop: request.stop_sequences.clone().map(OneOrMany),
            ..GenerationFields::default()
        },
        &service,
    )?;
    let stream = request.stream;
    let has_thinking = has_thinking(request.thinking.as_ref())?;
    let convert = move |_: &Service| {
        let (constraint, effort) = output(request.output_config, request.output_format)?;
        let conversation = CountRequest {
            model: None,
            messages: request.messages,
            system: request.system,
            tools: request.tools,
            tool_choice: request.tool_choice,
            thinking: request.thinking,
            chat_template_kwargs: request.chat_template_kwargs,
        };
        Ok(ChatPrompt { constraint, ..chat_prompt(conversation, effort)? })
    };
    let prompt = service.work(request_id.work(), convert).await?;
    let head = ResponseHead::new(id.shown.clone(), model, &service);
    let prepared = prompt.prepare(id, params, &service).await?;
    let replies = prepared.start(&service).await?;
    respond(&service, replies, MessagesEncoder::new(head, has_thinking), stream).await
}

/// Counts the tokens of a conversation's prompt.
#[utoipa::path(
    post,
    path = "/v1/messages/count_tokens",
    operation_id = "count_tokens",
    request_body = CountRequest,
    responses(
        (status = 200, description = "The number of input tokens.", body = TokenCount),
        (status = "4XX", description = "The request is refused.", body = ErrorBody),
        (status = "5XX", description = "The server failed.", body = ErrorBody),
    ),
)]
pub(crate) async fn count_tokens(
    State(service): State<Arc<Service>>,
    Extension(request_id): Extension<RequestId>,
    Body(request): Body<CountRequest>,
) -> Result<Json<TokenCount>, ApiError> {
    service.model(request.model.as_deref())?;
    let prompt = service.work(request_id.work(), move |_| chat_prompt(request, None));
    let prompt = prompt.await?.encode(None, &service).await?;
    Ok(Json(TokenCount { input_tokens: prompt.tokens.len() }))
}

fn has_thinking(thinking: Option<&Thinking>) -> Result<bool, ApiError> {
    match thinking.map(|thinking| thinking.kind.as_str()) {
        None | Some("disabled") => Ok(false),
        Some("enabled" | "adaptive") => Ok(true),
        Some(other) => Err(ApiError::bad(
            "thinking.type",
            format!("thinking.type: {other:?}, it must be enabled, adaptive or disabled"),
        )),
    }
}

/// The constraint of the reply and the effort of reasoning.
fn output(
    config: Option<OutputConfig>,
    older: Option<OutputFormat>,
) -> Result<(Option<FieldConstraint>, Option<String>), ApiError> {
    let (effort, newer) = config.map_or((None, None), |config| (config.effort, config.format));
    let (param, format) = match (newer, older) {
        (Some(format), _) => ("output_config.format", format),
        (None, Some(format)) => ("output_format", format),
        (None, None) => return Ok((None, effort)),
    };
    match (format.kind.as_str(), format.schema) {
        ("json_schema", Some(schema)) => {
            let constraint = schema_of(&format!("{param}.schema"), schema, true)?;
            Ok((Some((constraint, param)), effort))
        }
        ("json_schema", None) => Err(ApiError::bad(param, format!("{param}.schema: missing"))),
        (other, _) => Err(ApiError::not_implemented(param, other)),
    }
}

fn chat_prompt(request: CountRequest, effort: Option<String>) -> Result<ChatPrompt, ApiError> {
    let mut tools = tools(request.tools, request.tool_choice)?;
    let messages = messages(request.system, request.messages, &mut tools.left_out)?;
    let has_thinking = has_thinking(request.thinking.as_ref())?;
    let mut given: Map<String, Value> = request.chat_template_kwargs.unwrap_or_default();
    given.entry("enable_thinking").or_insert(json!(has_thinking));
    Ok(ChatPrompt {
        // If the last message is the assistant's, the reply continues it.
        conversation: Conversation {
            continue_final_message: messages.last().is_some_and(is_prefill),
            add_generation_prompt: !messages.last().is_some_and(is_prefill),
            messages,
            variables: variables(Some(given), effort, "output_config.effort")?,
            ..Conversation::default()
        },
        tools,
        constraint: None,
        separate_reasoning: true,
        param: "messages",
    })
}

fn is_prefill(message: &Message) -> bool {
    message.role == "assistant" && message.tool_calls.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(request: Value) -> Result<ChatPrompt, ApiError> {
        chat_prompt(serde_json::from_value(request).unwrap(), None)
    }

    #[test]
    fn parts_become_messages() {
        let prompt = of(json!({
            "system": [
                {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=abc"},
                {"type": "text", "text": "be", "cache_control": {"type": "ephemeral"}},
            ],
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "so"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "1"},
                    {"type": "text", "text": "go on"},
                ]},
            ],
        }))
        .unwrap();
        let messages = &prompt.conversation.messages;
        let roles: Vec<_> = messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "user"]);
        assert_eq!(messages[0].content, "be");
        assert_eq!(messages[2].reasoning.as_deref(), Some("hm"));
        assert_eq!(messages[2].tool_calls[0].arguments, json!({"x": 1}));
        assert_eq!((messages[3].content.as_str(), messages[4].content.as_str()), ("1", "go on"));
        assert_eq!(prompt.conversation.variables["enable_thinking"], false);
        assert!(prompt.conversation.add_generation_prompt);
    }

    #[test]
    fn a_last_message_of_the_assistant_goes_on() {
        let prompt = of(json!({"messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "so"},
        ], "thinking": {"type": "enabled", "budget_tokens": 1024}}))
        .unwrap();
        assert!(prompt.conversation.continue_final_message);
        assert!(!prompt.conversation.add_generation_prompt);
        assert_eq!(prompt.conversation.variables["enable_thinking"], true);
    }

    #[test]
    fn what_cannot_be_is_refused_by_place() {
        for (request, param) in [
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"role": "tool", "content": "a"}]}), "messages[0].role"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
                "messages[0].content[0].type",
            ),
            (
                json!({"messages": [{"role": "user", "content": "a"}],
                       "tools": [{"input_schema": {"type": "object"}}]}),
                "tools[0].name",
            ),
            (
                json!({"messages": [{"role": "user", "content": "a"}],
                       "tool_choice": {"type": "some"}}),
                "tool_choice.type",
            ),
        ] {
            assert_eq!(of(request).err().unwrap().param.as_deref(), Some(param));
        }
    }
}
