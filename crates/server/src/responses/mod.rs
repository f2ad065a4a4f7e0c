//! `/v1/responses`, stateless: every request brings its whole conversation. It is turned into
//! parameters, a prompt, and an encoder of the reply.

mod encoder;
mod items;
pub(crate) mod tools;
pub mod wire;

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use kilotok_text::Conversation;
use serde_json::json;

use crate::encoder::{ResponseHead, check_tier, respond};
use crate::error::{ApiError, ErrorResponses};
use crate::middleware::RequestId;
use crate::params::chat_prompt::{ChatPrompt, variables};
use crate::params::constraint::constraint;
use crate::params::ranges::{at_most, count};
use crate::params::sampling::{alternatives, resolve};
use crate::params::tools::is_offered;
use crate::service::Service;
use crate::sse;
use crate::wire::body::Body;
use crate::wire::content::NameOr;
use crate::wire::generation::{ConstraintFields, GenerationFields};
use crate::wire::tools::{NamedSchema, ResponseFormat};
use crate::wire::unsupported::asks_nothing;
use encoder::{ReplyForm, ResponsesEncoder};
use items::{all_tools, messages};
use tools::tools;
use wire::{ReasoningOptions, ResponseObject, ResponsesRequest, TextFormat, TextOptions};

/// Most items of one conversation.
const ITEMS_MAX: usize = 16_384;

/// The advice where a client relies on a stored conversation.
const WHOLE: &str = "send the whole conversation in input with every request";

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
        ErrorResponses,
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
    let params = resolve(&generation_fields(&request)?, &service)?;
    let logprobs = logprobs(&request, &service)?;
    let head = ResponseHead::new(id.shown.clone(), model, &service);
    let stream = request.stream;
    let encrypted_content = includes(&request, "reasoning.encrypted_content");
    let form = ReplyForm { logprobs, encrypted_content };
    let convert = move |_: &Service| {
        let object = object(&request, &head);
        Ok((head, object, chat_prompt(request)?))
    };
    let (head, mut object, prompt) = service.work(request_id.work(), convert).await?;
    let sampling = &params.generation.submission.setup.sampling;
    (object.temperature, object.top_p) = (rounded(sampling.temperature), rounded(sampling.top_p));
    object.parallel_tool_calls = prompt.tools.parallel;
    let names = prompt.tools.names.clone();
    let mut prepared = prompt.prepare(id, params, &service).await?;
    prepared.generation.submission.logprobs = logprobs;
    let encoder = ResponsesEncoder::new(head, object, form, names);
    respond(&service, prepared.start(&service).await?, encoder, stream).await
}

/// The number as the client wrote it: 0.7, not the nearest f32.
fn rounded(value: f32) -> f64 {
    (f64::from(value) * 1e6).round() / 1e6
}

fn check(request: &ResponsesRequest) -> Result<(), ApiError> {
    check_tier(request.service_tier.as_deref())?;
    for (param, value, instead) in [
        ("previous_response_id", &request.previous_response_id, WHOLE),
        ("conversation", &request.conversation, WHOLE),
        ("prompt", &request.prompt, "send its text in instructions and input"),
        ("background", &request.background, "send false and wait for the reply, or stream it"),
    ] {
        if !value.as_ref().is_none_or(asks_nothing) {
            let message = format!("{param}: nothing is stored by this server; {instead}");
            return Err(ApiError::bad(param, message).with_code("unsupported_parameter"));
        }
    }
    at_most("input", &request.input.0, ITEMS_MAX)
}

fn generation_fields(request: &ResponsesRequest) -> Result<GenerationFields, ApiError> {
    count("max_output_tokens", request.max_output_tokens, 1, i64::MAX)?;
    let truncate_prompt_tokens = match request.truncation.as_deref() {
        None | Some("disabled") => None,
        Some("auto") => Some(-1),
        Some(other) => {
            let message = format!("truncation: {other:?}, it must be auto or disabled");
            return Err(ApiError::bad("truncation", message));
        }
    };
    Ok(GenerationFields {
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        seed: request.seed,
        max_tokens: request.max_output_tokens,
        priority: request.priority,
        cache_salt: request.cache_salt.clone(),
        truncate_prompt_tokens,
        stream: request.stream,
        stream_options: request.stream_options,
        ..GenerationFields::default()
    })
}

fn logprobs(request: &ResponsesRequest, service: &Service) -> Result<Option<u32>, ApiError> {
    let top = alternatives("top_logprobs", request.top_logprobs, service)?;
    if includes(request, "message.output_text.logprobs") {
        return Ok(Some(top.unwrap_or_default()));
    }
    Ok(top.filter(|top| *top > 0))
}

fn includes(request: &ResponsesRequest, what: &str) -> bool {
    request.include.iter().flatten().any(|name| name == what)
}

/// The response object before the reply begins. It repeats much of the request.
fn object(request: &ResponsesRequest, head: &ResponseHead) -> ResponseObject {
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
        tools: request
            .tools
            .iter()
            .flatten()
            .filter(|tool| is_offered(&tool.kind))
            .cloned()
            .collect(),
        top_p: 1.0,
        truncation: request.truncation.clone().unwrap_or_else(|| "disabled".into()),
        usage: None,
        user: request.user.clone(),
        metadata: request.metadata.clone().unwrap_or_default(),
        metrics: None,
        warnings: Vec::new(),
    }
}

fn chat_prompt(request: ResponsesRequest) -> Result<ChatPrompt, ApiError> {
    let mut items = request.input.0;
    let all = all_tools(request.tools, &mut items)?;
    let mut tools = tools(Some(all), request.tool_choice, request.parallel_tool_calls)?;
    let messages = messages(request.instructions, items, &tools.names, &mut tools.left_out)?;
    let response_format = request.text.and_then(|text| text.format).map(|format| {
        let TextFormat { kind, name, description, schema, strict } = format;
        let json_schema = Some(NamedSchema { name, description, schema, strict });
        ResponseFormat { kind, json_schema, schema: None }
    });
    let constraint =
        constraint(ConstraintFields { response_format, ..ConstraintFields::default() })
            .map_err(|error| error.with_param("text.format"))?;
    let constraint = constraint.map(|(constraint, _)| (constraint, "text.format"));
    let effort = request.reasoning.and_then(|ReasoningOptions { effort, .. }| effort);
    let variables = variables(request.chat_template_kwargs, effort, "reasoning.effort")?;
    Ok(ChatPrompt {
        conversation: Conversation {
            messages,
            variables,
            add_generation_prompt: true,
            ..Conversation::default()
        },
        tools,
        constraint,
        separate_reasoning: true,
        param: "input",
    })
}
