//! `/v1/chat/completions`, and `/render`, which shows the prompt instead.

use std::mem::take;
use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;

use super::reply::{answer, check_tier, show};
use crate::chorus::Chorus;
use crate::dialects::Letterhead;
use crate::dialects::chat::{Chat, Reasoning};
use crate::error::{ApiError, Faults};
use crate::params::conversation::{Ending, conversation};
use crate::params::ranges::count;
use crate::params::sampling::{Chosen, alternatives, choose};
use crate::params::shape::shape;
use crate::params::talk::{Talk, variables};
use crate::params::tools::chat_tools;
use crate::service::Service;
use crate::sse;
use crate::trace::RequestId;
use crate::wire::body::Body;
use crate::wire::chat::{ChatCompletion, ChatRequest, RenderedPrompt};
use crate::wire::sampled::{Sampled, Shapes};

/// What of a request is about its reply's form.
struct Form {
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
        Faults,
    ),
)]
pub(crate) async fn create(
    State(service): State<Arc<Service>>,
    Extension(request_id): Extension<RequestId>,
    Body(mut request): Body<ChatRequest>,
) -> Result<Response, ApiError> {
    let model = service.model(request.model.as_deref())?;
    let mut sampled = request.sampled();
    let id = request_id.reply("chatcmpl-", sampled.request_id.as_deref())?;
    let (stream, options) = (sampled.stream, sampled.stream_options);
    let convert = move |service: &Service| {
        let chosen = chosen(&request, &mut sampled, service)?;
        let form = form(&request, service)?;
        let talk = talk(request, take(&mut sampled.shapes), form.reasoning)?;
        Ok((chosen, form, talk))
    };
    let (chosen, form, talk) = service.work(request_id.work(), convert).await?;
    let head = Letterhead::new(id.shown.clone(), model, &service);
    let show = show(head, &chosen, 1, form.logprobs, options);
    let mut job = talk.job(id, chosen, &service).await?;
    job.submission.logprobs = form.logprobs.max(show.prompt_logprobs);
    job.submission.score_prompt = show.prompt_logprobs.is_some();
    let chat = Chat::new(show, Arc::clone(&job.prompts[0]), form.reasoning, form.echo);
    answer(&service, Chorus::start(&service, &job).await?, chat, stream).await
}

/// Shows the prompt that a conversation becomes.
#[utoipa::path(
    post,
    path = "/v1/chat/completions/render",
    operation_id = "render_chat",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The prompt.", body = RenderedPrompt),
        Faults,
    ),
)]
pub(crate) async fn render(
    State(service): State<Arc<Service>>,
    Extension(request_id): Extension<RequestId>,
    Body(mut request): Body<ChatRequest>,
) -> Result<axum::Json<RenderedPrompt>, ApiError> {
    let model = service.model(request.model.as_deref())?;
    let mut sampled = request.sampled();
    let id = request_id.reply("chatcmpl-", sampled.request_id.as_deref())?;
    let convert = move |service: &Service| {
        let chosen = chosen(&request, &mut sampled, service)?;
        Ok((chosen, talk(request, sampled.shapes, Reasoning::Apart)?))
    };
    let (chosen, mut talk) = service.work(request_id.work(), convert).await?;
    let prompt = talk.prompt(Some(&chosen), &service).await?;
    let token_ids = prompt.tokens.to_vec();
    let request_id = id.shown;
    Ok(axum::Json(RenderedPrompt { request_id, model, prompt: prompt.text, token_ids }))
}

fn chosen(
    request: &ChatRequest,
    sampled: &mut Sampled,
    service: &Service,
) -> Result<Chosen, ApiError> {
    let newer = count("max_completion_tokens", request.max_completion_tokens, 1, i64::MAX)?;
    count("max_tokens", sampled.max_tokens, 1, i64::MAX)?;
    sampled.max_tokens = newer.map(i64::from).or(sampled.max_tokens);
    choose(sampled, service)
}

fn form(request: &ChatRequest, service: &Service) -> Result<Form, ApiError> {
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
        Reasoning::Left
    } else if request.separate_reasoning == Some(false) {
        Reasoning::Inline
    } else {
        Reasoning::Apart
    };
    // Only what the assistant has begun is of one message with the reply.
    let begun = request.messages.last().filter(|message| message.role == "assistant");
    let begun = begun.filter(|_| request.echo == Some(true)).and_then(|last| last.content.as_ref());
    let echo = begun.map(|parts| crate::params::conversation::text_of(parts, "messages"));
    let echo = echo.transpose()?;
    Ok(Form { logprobs, reasoning, echo })
}

fn talk(request: ChatRequest, shapes: Shapes, reasoning: Reasoning) -> Result<Talk, ApiError> {
    let mut tools = chat_tools(request.tools, request.tool_choice, request.parallel_tool_calls)?;
    let shape = shape(shapes)?;
    let variables =
        variables(request.chat_template_kwargs, request.reasoning_effort, "reasoning_effort")?;
    let ending = Ending {
        add_generation_prompt: request.add_generation_prompt,
        continue_final_message: request.continue_final_message,
    };
    Ok(Talk {
        conversation: conversation(request.messages, variables, &ending, &mut tools.left_out)?,
        tools,
        shape,
        apart: reasoning != Reasoning::Inline,
        param: "messages",
    })
}
