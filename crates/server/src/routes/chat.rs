//! `/v1/chat/completions`, and `/render`, which shows the prompt instead.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;

use crate::chorus::Chorus;
use crate::dialects::chat::{Chat, Reasoning, Show};
use crate::dialects::{Extras, Letterhead};
use crate::error::{ApiError, ErrorBody};
use crate::params::conversation::{Ending, conversation};
use crate::params::ranges::count;
use crate::params::sampling::{Chosen, alternatives, choose};
use crate::params::shape::{Shapes, shape};
use crate::params::talk::{Talk, variables};
use crate::params::tools::chat_tools;
use crate::said::listen;
use crate::service::Service;
use crate::sse;
use crate::trace::RequestId;
use crate::wire::body::Body;
use crate::wire::chat::{ChatCompletion, ChatRequest, RenderedPrompt};
use crate::wire::sampled::Sampled;

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
        (status = "4XX", description = "The request's fault.", body = ErrorBody),
        (status = "5XX", description = "The server's fault.", body = ErrorBody),
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
    let chosen = chosen(&request, &mut sampled, &service)?;
    let form = form(&request, &service)?;
    let talk = talk(request, form.reasoning)?;
    let head = Letterhead::new(id.clone(), model, &service);
    let (prompt_logprobs, tokens_as_ids) = (chosen.prompt_logprobs, chosen.tokens_as_ids);
    let (n, token_ids) = (chosen.n, chosen.token_ids);
    let mut job = talk.job(id, chosen, &service).await?;
    job.submission.logprobs = form.logprobs.max(prompt_logprobs);
    job.submission.score_prompt = prompt_logprobs.is_some();
    let show = Show {
        n,
        logprobs: form.logprobs,
        prompt_logprobs,
        tokens_as_ids,
        token_ids: token_ids.then(|| Arc::clone(&job.prompts[0])),
        reasoning: form.reasoning,
        echo: form.echo,
        extras: Extras::of(sampled.stream_options),
    };
    let chat = Chat::new(head, show);
    let chorus = Chorus::start(&service, &job).await?;
    if sampled.stream == Some(true) {
        return sse::respond(chorus, chat, service.config.keep_alive).await;
    }
    Ok(chat.whole(listen(chorus, job.choice_count()).await?))
}

/// Shows the prompt that a conversation becomes.
#[utoipa::path(
    post,
    path = "/v1/chat/completions/render",
    operation_id = "render_chat",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The prompt.", body = RenderedPrompt),
        (status = "4XX", description = "The request's fault.", body = ErrorBody),
        (status = "5XX", description = "The server's fault.", body = ErrorBody),
    ),
)]
pub(crate) async fn render(
    State(service): State<Arc<Service>>,
    Extension(request_id): Extension<RequestId>,
    Body(mut request): Body<ChatRequest>,
) -> Result<axum::Json<RenderedPrompt>, ApiError> {
    let model = service.model(request.model.as_deref())?;
    let mut sampled = request.sampled();
    let request_id = request_id.reply("chatcmpl-", sampled.request_id.as_deref())?;
    let chosen = chosen(&request, &mut sampled, &service)?;
    let prompt = talk(request, Reasoning::Apart)?.prompt(Some(&chosen), &service).await?;
    let token_ids = prompt.tokens.to_vec();
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
    let last = request.messages.last().and_then(|message| message.content.as_ref());
    let text = last.map(|parts| crate::params::conversation::text_of(parts, "messages"));
    let echo = match (request.echo, text) {
        (Some(true), Some(text)) => Some(text?),
        _ => None,
    };
    Ok(Form { logprobs, reasoning, echo })
}

/// There is one tier, whatever it is called.
pub(crate) fn check_tier(tier: Option<&str>) -> Result<(), ApiError> {
    match tier {
        None | Some("auto" | "default" | "standard_only") => Ok(()),
        Some(other) => Err(ApiError::not_implemented("service_tier", other)),
    }
}

fn talk(request: ChatRequest, reasoning: Reasoning) -> Result<Talk, ApiError> {
    let tools = chat_tools(request.tools, request.tool_choice, request.parallel_tool_calls)?;
    let shape = shape(Shapes {
        response_format: request.response_format,
        structured_outputs: request.structured_outputs,
        regex: request.regex,
        ebnf: request.ebnf,
    })?;
    let variables =
        variables(request.chat_template_kwargs, request.reasoning_effort, "reasoning_effort")?;
    let ending = Ending {
        add_generation_prompt: request.add_generation_prompt,
        continue_final_message: request.continue_final_message,
    };
    Ok(Talk {
        conversation: conversation(request.messages, variables, &ending)?,
        tools,
        shape,
        apart: reasoning != Reasoning::Inline,
        param: "messages",
    })
}
