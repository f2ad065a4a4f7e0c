//! `/v1/completions`: turns a request into parameters, prompts and an encoder of the replies.
//! `/render` returns the prompts' tokens without generating.

mod encoder;
pub mod wire;

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use kilotok_abi::TokenId;

use crate::chat::wire::RenderedPrompt;
use crate::encoder::{OutputOptions, ResponseHead, respond};
use crate::error::{ApiError, ErrorResponses};
use crate::middleware::RequestId;
use crate::params::PreparedRequest;
use crate::params::constraint::constraint;
use crate::params::prompt::{finish, wanted};
use crate::params::sampling::{ResolvedParams, alternatives, resolve};
use crate::service::{Cancelled, Service};
use crate::sse;
use crate::wire::body::Body;
use crate::wire::generation::GenerationFields;
use encoder::CompletionsEncoder;
use wire::{Completion, CompletionRequest, Prompts};

const PARAM: &str = "prompt";
/// `max_tokens` if neither the request nor the operator sets it. OpenAI and vLLM have the same
/// default, and clients of this API expect it.
const TOKENS_DEFAULT: u32 = 16;

/// Continues texts as they are, without a chat template. Special tokens in them are recognised.
#[utoipa::path(
    post,
    path = "/v1/completions",
    operation_id = "complete",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The reply, whole or as server-sent events.", content(
            (Completion<'static> = "application/json"),
            (sse::SentEvent = "text/event-stream"),
        )),
        ErrorResponses,
    ),
)]
pub(crate) async fn create(
    State(service): State<Arc<Service>>,
    Extension(request_id): Extension<RequestId>,
    Body(mut request): Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    let model = service.model(request.model.as_deref())?;
    let mut fields = generation_fields(&mut request, &service);
    let id = request_id.reply("cmpl-", fields.request_id.as_deref())?;
    let (stream, stream_options) = (fields.stream, fields.stream_options);
    let convert = move |service: &Service| {
        let params = resolve(&fields, service)?;
        Ok((params, constraint(std::mem::take(&mut fields.constraints))?))
    };
    let (params, constraint) = service.work(request_id.work(), convert).await?;
    let logprobs = alternatives("logprobs", request.logprobs, &service)?;
    let echo = request.echo.unwrap_or_default();
    let prompts = prompts(request, &params, &service).await?;
    let text = |tokens: &Arc<[TokenId]>| service.text.decode(tokens, false);
    let echoed = echo.then(|| prompts.iter().map(text).collect());
    let head = ResponseHead::new(id.shown.clone(), model, &service);
    let output = OutputOptions::new(head, &params, prompts.len(), logprobs, stream_options);
    let mut generation = params.generation;
    // The first token of a prompt has no log-probability.
    let score_prompt = output.prompt_logprobs.is_some() || (echo && logprobs.is_some());
    let no_tokens = generation.submission.token_max == 0;
    let is_generated = |prompt: &[TokenId]| !no_tokens || (score_prompt && prompt.len() > 1);
    generation.submission.logprobs = logprobs.max(output.prompt_logprobs);
    generation.submission.score_prompt = score_prompt;
    generation.prompts = prompts.iter().filter(|prompt| is_generated(prompt)).cloned().collect();
    let encoder = CompletionsEncoder::new(output, prompts, echoed, is_generated);
    let (constraint, constraint_param) = constraint.unzip();
    generation.constraint = constraint;
    let constraint_param = constraint_param.unwrap_or_default();
    let prepared = PreparedRequest { id, generation, prompt_param: PARAM, constraint_param };
    respond(&service, prepared.start(&service).await?, encoder, stream).await
}

/// Returns the tokens of prompts, without replies.
#[utoipa::path(
    post,
    path = "/v1/completions/render",
    operation_id = "render_completion",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The prompts.", body = Vec<RenderedPrompt>),
        ErrorResponses,
    ),
)]
pub(crate) async fn render(
    State(service): State<Arc<Service>>,
    Extension(request_id): Extension<RequestId>,
    Body(mut request): Body<CompletionRequest>,
) -> Result<axum::Json<Vec<RenderedPrompt>>, ApiError> {
    let model = service.model(request.model.as_deref())?;
    let fields = generation_fields(&mut request, &service);
    let id = request_id.reply("cmpl-", fields.request_id.as_deref())?;
    let params = service.work(request_id.work(), move |service| resolve(&fields, service)).await?;
    let prompts = prompts(request, &params, &service).await?;
    let shown = prompts.iter().map(|tokens| RenderedPrompt {
        request_id: id.shown.clone(),
        model: model.clone(),
        prompt: service.text.decode(tokens, false),
        token_ids: tokens.to_vec(),
    });
    Ok(axum::Json(shown.collect()))
}

fn generation_fields(request: &mut CompletionRequest, service: &Service) -> GenerationFields {
    let mut fields = request.take_generation();
    let default = service.config.token_max_default.unwrap_or(TOKENS_DEFAULT);
    fields.max_tokens.get_or_insert(default.into());
    fields
}

async fn prompts(
    request: CompletionRequest,
    params: &ResolvedParams,
    service: &Arc<Service>,
) -> Result<Vec<Arc<[TokenId]>>, ApiError> {
    let count = match &request.prompt {
        Prompts::Texts(texts) => texts.len(),
        Prompts::Tokens(lists) => lists.len(),
    };
    let choice_max = service.config.n_max;
    if count as u64 * u64::from(params.generation.n) > u64::from(choice_max) {
        let message = format!(
            "prompt: {count} prompts with {} replies each, at most {choice_max} replies are \
             possible",
            params.generation.n
        );
        return Err(ApiError::bad(PARAM, message));
    }
    let (truncate, token_max) = (params.truncate, params.generation.submission.token_max);
    let bytes = match &request.prompt {
        Prompts::Texts(texts) => texts.iter().map(String::len).sum(),
        Prompts::Tokens(_) => 0,
    };
    let work = move |service: &Service, cancelled: &Cancelled| {
        let cancelled = || cancelled.is_set();
        let wanted = wanted(truncate, token_max, service.admission.context_max(), &cancelled);
        let encode = |text: &String| {
            let tokens = service.text.encode_wanted(text, &wanted);
            tokens.map_err(|error| ApiError::from_text(&error, PARAM))
        };
        let lists: Vec<_> = match request.prompt {
            Prompts::Texts(texts) => texts.iter().map(encode).collect::<Result<_, _>>()?,
            Prompts::Tokens(lists) => lists,
        };
        let finish = |tokens| finish(tokens, truncate, token_max, service, PARAM);
        lists.into_iter().map(finish).collect()
    };
    service.run_blocking(bytes, work).await
}
