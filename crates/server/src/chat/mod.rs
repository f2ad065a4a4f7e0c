//! `/v1/chat/completions`: `create` turns a request into parameters, a prompt and an encoder of its
//! replies. `/render` returns the prompt without generating.

mod conversation;
mod encoder;
pub(crate) mod tools;
pub mod wire;

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;

use crate::encoder::{OutputOptions, ResponseHead, check_tier, respond};
use crate::error::{ApiError, ErrorResponses};
use crate::middleware::RequestId;
use crate::params::chat_prompt::{ChatPrompt, variables};
use crate::params::constraint::constraint;
use crate::params::content::text_of;
use crate::params::ranges::count;
use crate::params::sampling::{ResolvedParams, alternatives, resolve};
use crate::service::Service;
use crate::sse;
use crate::wire::body::Body;
use crate::wire::generation::{ConstraintFields, GenerationFields};
pub(crate) use conversation::{ConversationEnd, conversation};
use encoder::{ChatEncoder, Reasoning};
use tools::tools;
use wire::{ChatCompletion, ChatRequest, RenderedPrompt};

/// The options of a request that shape its response.
struct ReplyForm {
    logprobs: Option<u32>,
    reasoning: Reasoning,
    echo: Option<String>,
}

/// Continues a conversation.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    operation_id = "chat",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The reply, whole or as server-sent events.", content(
            (ChatCompletion<'static> = "application/json"),
            (sse::SentEvent = "text/event-stream"),
        )),
        ErrorResponses,
    ),
)]
pub(crate) async fn create(
    State(service): State<Arc<Service>>,
    Extension(request_id): Extension<RequestId>,
    Body(mut request): Body<ChatRequest>,
) -> Result<Response, ApiError> {
    let model = service.model(request.model.as_deref())?;
    let mut fields = request.take_generation();
    let id = request_id.reply("chatcmpl-", fields.request_id.as_deref())?;
    let (stream, stream_options) = (fields.stream, fields.stream_options);
    let convert = move |service: &Service| {
        let params = resolved(&request, &mut fields, service)?;
        let form = reply_form(&request, service)?;
        let prompt = chat_prompt(request, fields.constraints, form.reasoning)?;
        Ok((params, form, prompt))
    };
    let (params, form, prompt) = service.work(request_id.work(), convert).await?;
    let head = ResponseHead::new(id.shown.clone(), model, &service);
    let output = OutputOptions::new(head, &params, 1, form.logprobs, stream_options);
    let mut prepared = prompt.prepare(id, params, &service).await?;
    let submission = &mut prepared.generation.submission;
    submission.logprobs = form.logprobs.max(output.prompt_logprobs);
    submission.score_prompt = output.prompt_logprobs.is_some();
    let prompt = Arc::clone(&prepared.generation.prompts[0]);
    let encoder = ChatEncoder::new(output, prompt, form.reasoning, form.echo);
    let replies = prepared.start(&service).await?;
    respond(&service, replies, encoder, stream).await
}

/// Returns the prompt that the chat template makes of a conversation, without a reply.
#[utoipa::path(
    post,
    path = "/v1/chat/completions/render",
    operation_id = "render_chat",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The prompt.", body = RenderedPrompt),
        ErrorResponses,
    ),
)]
pub(crate) async fn render(
    State(service): State<Arc<Service>>,
    Extension(request_id): Extension<RequestId>,
    Body(mut request): Body<ChatRequest>,
) -> Result<axum::Json<RenderedPrompt>, ApiError> {
    let model = service.model(request.model.as_deref())?;
    let mut fields = request.take_generation();
    let id = request_id.reply("chatcmpl-", fields.request_id.as_deref())?;
    let convert = move |service: &Service| {
        let params = resolved(&request, &mut fields, service)?;
        Ok((params, chat_prompt(request, fields.constraints, Reasoning::Separate)?))
    };
    let (params, mut prompt) = service.work(request_id.work(), convert).await?;
    let prompt = prompt.encode(Some(&params), &service).await?;
    let token_ids = prompt.tokens.to_vec();
    let request_id = id.shown;
    Ok(axum::Json(RenderedPrompt { request_id, model, prompt: prompt.text, token_ids }))
}

fn resolved(
    request: &ChatRequest,
    fields: &mut GenerationFields,
    service: &Service,
) -> Result<ResolvedParams, ApiError> {
    let newer = count("max_completion_tokens", request.max_completion_tokens, 1, i64::MAX)?;
    count("max_tokens", fields.max_tokens, 1, i64::MAX)?;
    fields.max_tokens = newer.map(i64::from).or(fields.max_tokens);
    resolve(fields, service)
}

fn reply_form(request: &ChatRequest, service: &Service) -> Result<ReplyForm, ApiError> {
    if let Some(other) = request.modalities.iter().flatten().find(|name| *name != "text") {
        return Err(ApiError::not_implemented("modalities", other));
    }
    check_tier(request.service_tier.as_deref())?;
    let top = alternatives("top_logprobs", request.top_logprobs, service)?;
    let logprobs = match (request.logprobs, top) {
        (Some(true), top) => Some(top.unwrap_or_default()),
        (_, None | Some(0)) => None,
        (_, Some(_)) => {
            let message = "top_logprobs: logprobs must be true beside it";
            return Err(ApiError::bad("top_logprobs", message));
        }
    };
    let reasoning = if request.include_reasoning == Some(false) {
        Reasoning::Omitted
    } else if request.separate_reasoning == Some(false) {
        Reasoning::Inline
    } else {
        Reasoning::Separate
    };
    // The echo is the beginning of a message that the reply continues, so only an assistant's
    // message is echoed.
    let begun = request.messages.last().filter(|message| message.role == "assistant");
    let begun = begun.filter(|_| request.echo == Some(true)).and_then(|last| last.content.as_ref());
    let echo = begun.map(|parts| text_of(parts, "messages")).transpose()?;
    Ok(ReplyForm { logprobs, reasoning, echo })
}

fn chat_prompt(
    request: ChatRequest,
    constraints: ConstraintFields,
    reasoning: Reasoning,
) -> Result<ChatPrompt, ApiError> {
    let mut tools = tools(request.tools, request.tool_choice, request.parallel_tool_calls)?;
    let constraint = constraint(constraints)?;
    let variables =
        variables(request.chat_template_kwargs, request.reasoning_effort, "reasoning_effort")?;
    let end = ConversationEnd {
        add_generation_prompt: request.add_generation_prompt,
        continue_final_message: request.continue_final_message,
    };
    Ok(ChatPrompt {
        conversation: conversation(request.messages, variables, &end, &mut tools.left_out)?,
        tools,
        constraint,
        separate_reasoning: reasoning != Reasoning::Inline,
        param: "messages",
    })
}
