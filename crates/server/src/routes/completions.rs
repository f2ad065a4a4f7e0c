//! `/v1/completions`, and `/render`, which shows the tokens instead.

use std::mem::take;
use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use kilotok_abi::TokenId;

use super::reply::{answer, show};
use crate::chorus::Chorus;
use crate::dialects::Letterhead;
use crate::dialects::completions::Completions;
use crate::error::{ApiError, Faults};
use crate::params::Job;
use crate::params::prompt::{finished, wanted};
use crate::params::sampling::{Chosen, alternatives, choose};
use crate::params::shape::{Shape, shape};
use crate::service::{Left, Service};
use crate::sse;
use crate::trace::{ReplyId, RequestId};
use crate::wire::body::Body;
use crate::wire::chat::RenderedPrompt;
use crate::wire::completions::{Completion, CompletionRequest, Prompts};
use crate::wire::sampled::Sampled;

const PARAM: &str = "prompt";
/// Of a request that does not say, where the operator does not say either. It is what clients
/// expect of this API: OpenAI and vLLM have it too.
const TOKENS_DEFAULT: u32 = 16;

/// Continues texts. They are raw: special tokens in them are recognised.
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
        Faults,
    ),
)]
pub(crate) async fn create(
    State(service): State<Arc<Service>>,
    Extension(request_id): Extension<RequestId>,
    Body(mut request): Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    let model = service.model(request.model.as_deref())?;
    let mut sampled = sampled(&mut request, &service);
    let id = request_id.reply("cmpl-", sampled.request_id.as_deref())?;
    let (stream, options) = (sampled.stream, sampled.stream_options);
    let convert = move |service: &Service| {
        Ok((choose(&sampled, service)?, shape(take(&mut sampled.shapes))?))
    };
    let (chosen, shape) = service.work(request_id.work(), convert).await?;
    let logprobs = alternatives("logprobs", request.logprobs, &service)?;
    let echo = request.echo.unwrap_or_default();
    let prompts = prompts(request, &chosen, &service).await?;
    let text = |tokens: &Arc<[TokenId]>| service.text.decode(tokens, false);
    let texts = echo.then(|| prompts.iter().map(text).collect());
    let head = Letterhead::new(id.shown.clone(), model, &service);
    let show = show(head, &chosen, prompts.len(), logprobs, options);
    // The first token of a prompt has no score.
    let scores = show.prompt_logprobs.is_some() || (echo && logprobs.is_some());
    let silent = chosen.submission.token_max == 0;
    let goes = |prompt: &[TokenId]| !silent || (scores && prompt.len() > 1);
    let mut job = job(id, chosen, prompts.clone(), shape);
    job.submission.logprobs = logprobs.max(show.prompt_logprobs);
    job.submission.score_prompt = scores;
    let mut completions = Completions::new(show, prompts, texts);
    let chorus = if job.prompts.iter().any(|prompt| goes(prompt)) {
        completions.ask(goes);
        job.prompts.retain(|prompt| goes(prompt));
        Chorus::start(&service, &job).await?
    } else {
        Chorus::of_nothing(&job)
    };
    answer(&service, chorus, completions, stream).await
}

/// Shows the tokens of prompts.
#[utoipa::path(
    post,
    path = "/v1/completions/render",
    operation_id = "render_completion",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The prompts.", body = Vec<RenderedPrompt>),
        Faults,
    ),
)]
pub(crate) async fn render(
    State(service): State<Arc<Service>>,
    Extension(request_id): Extension<RequestId>,
    Body(mut request): Body<CompletionRequest>,
) -> Result<axum::Json<Vec<RenderedPrompt>>, ApiError> {
    let model = service.model(request.model.as_deref())?;
    let sampled = sampled(&mut request, &service);
    let id = request_id.reply("cmpl-", sampled.request_id.as_deref())?;
    let chosen = service.work(request_id.work(), move |service| choose(&sampled, service)).await?;
    let prompts = prompts(request, &chosen, &service).await?;
    let shown = prompts.iter().map(|tokens| RenderedPrompt {
        request_id: id.shown.clone(),
        model: model.clone(),
        prompt: service.text.decode(tokens, false),
        token_ids: tokens.to_vec(),
    });
    Ok(axum::Json(shown.collect()))
}

fn sampled(request: &mut CompletionRequest, service: &Service) -> Sampled {
    let mut sampled = request.sampled();
    let default = service.config.token_max_default.unwrap_or(TOKENS_DEFAULT);
    sampled.max_tokens.get_or_insert(default.into());
    sampled
}

async fn prompts(
    request: CompletionRequest,
    chosen: &Chosen,
    service: &Arc<Service>,
) -> Result<Vec<Arc<[TokenId]>>, ApiError> {
    let count = match &request.prompt {
        Prompts::Texts(texts) => texts.len(),
        Prompts::Tokens(lists) => lists.len(),
    };
    let choice_max = service.config.n_max;
    if count as u64 * u64::from(chosen.n) > u64::from(choice_max) {
        let message = format!(
            "prompt: {count} prompts with {} replies each, at most {choice_max} replies are \
             possible",
            chosen.n
        );
        return Err(ApiError::bad(PARAM, message));
    }
    let (truncate, token_max) = (chosen.truncate, chosen.submission.token_max);
    let bytes = match &request.prompt {
        Prompts::Texts(texts) => texts.iter().map(String::len).sum(),
        Prompts::Tokens(_) => 0,
    };
    let work = move |service: &Service, left: &Left| {
        let cancelled = || left.is_set();
        let wanted = wanted(truncate, token_max, service.gate.context_max(), &cancelled);
        let encode = |text: &String| {
            let tokens = service.text.encode_wanted(text, &wanted);
            tokens.map_err(|error| ApiError::from_text(&error, PARAM))
        };
        let lists: Vec<_> = match request.prompt {
            Prompts::Texts(texts) => texts.iter().map(encode).collect::<Result<_, _>>()?,
            Prompts::Tokens(lists) => lists,
        };
        let finish = |tokens| finished(tokens, truncate, token_max, service, PARAM);
        lists.into_iter().map(finish).collect()
    };
    service.chore(bytes, work).await
}

fn job(
    id: ReplyId,
    chosen: Chosen,
    prompts: Vec<Arc<[TokenId]>>,
    constraint: Option<Shape>,
) -> Job {
    Job {
        id,
        prompts,
        n: chosen.n,
        submission: chosen.submission,
        // All is content: nothing else is looked for.
        reply: chosen.reply,
        constraint,
        stop_tokens: chosen.stop_tokens,
        interval: chosen.interval,
        prompt_param: PARAM,
    }
}
