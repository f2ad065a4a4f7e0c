//! `/tokenize` and `/detokenize`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use crate::error::{ApiError, Faults};
use crate::params::conversation::{Ending, conversation};
use crate::params::prompt::wanted;
use crate::params::talk::{Talk, variables};
use crate::params::tools::chat_tools;
use crate::service::{Left, Service};
use crate::wire::body::Body;
use crate::wire::tokenize::{DetokenizeRequest, Detokenized, TokenizeRequest, Tokenized};

/// About how many bytes of text a token is.
const TOKEN_BYTES: usize = 4;

/// Cuts a text or a conversation into tokens, at most as many as fit into the model's context.
/// Special tokens are recognised in a raw prompt; in a conversation the template alone writes them.
#[utoipa::path(
    post,
    path = "/tokenize",
    request_body = TokenizeRequest,
    responses(
        (status = 200, description = "The tokens.", body = Tokenized),
        Faults,
    ),
)]
pub(crate) async fn tokenize(
    State(service): State<Arc<Service>>,
    Body(mut request): Body<TokenizeRequest>,
) -> Result<Json<Tokenized>, ApiError> {
    service.model(request.model.as_deref())?;
    let strings = request.return_token_strs.unwrap_or_default();
    let tokens = match (request.prompt.take(), request.messages.is_some()) {
        (Some(prompt), false) => {
            let bytes = prompt.len();
            let work = move |service: &Service, left: &Left| {
                let cancelled = || left.is_set();
                let wanted = wanted(None, 1, service.gate.context_max(), &cancelled);
                let tokens = service.text.encode_wanted(&prompt, &wanted);
                tokens.map_err(|error| ApiError::from_text(&error, "prompt"))
            };
            service.chore(bytes, work).await?
        }
        (None, true) => talk(request)?.prompt(None, &service).await?.tokens.to_vec(),
        _ => return Err(ApiError::bad("prompt", "either prompt or messages, please")),
    };
    let (tokens, token_strs) = if strings {
        let bytes = tokens.len() * TOKEN_BYTES;
        let work = move |service: &Service| {
            let text = |token: &u32| service.text.token_text(*token);
            let texts = tokens.iter().map(text).collect();
            Ok((tokens, Some(texts)))
        };
        service.work(bytes, work).await?
    } else {
        (tokens, None)
    };
    Ok(Json(Tokenized {
        count: tokens.len(),
        max_model_len: service.gate.context_max(),
        token_strs,
        tokens,
    }))
}

fn talk(request: TokenizeRequest) -> Result<Talk, ApiError> {
    let variables =
        variables(request.chat_template_kwargs, request.reasoning_effort, "reasoning_effort")?;
    let ending = Ending {
        add_generation_prompt: request.add_generation_prompt,
        continue_final_message: request.continue_final_message,
    };
    let messages = request.messages.unwrap_or_default();
    let mut tools = chat_tools(request.tools, None, None)?;
    Ok(Talk {
        conversation: conversation(messages, variables, &ending, &mut tools.left_out)?,
        tools,
        shape: None,
        apart: true,
        param: "messages",
    })
}

/// Makes text of tokens.
#[utoipa::path(
    post,
    path = "/detokenize",
    request_body = DetokenizeRequest,
    responses(
        (status = 200, description = "The text.", body = Detokenized),
        Faults,
    ),
)]
pub(crate) async fn detokenize(
    State(service): State<Arc<Service>>,
    Body(request): Body<DetokenizeRequest>,
) -> Result<Json<Detokenized>, ApiError> {
    service.model(request.model.as_deref())?;
    let bytes = request.tokens.len() * TOKEN_BYTES;
    let work = move |service: &Service| {
        let vocab = service.gate.caps().vocab_size;
        if let Some(index) = request.tokens.iter().position(|token| *token >= vocab) {
            let token = request.tokens[index];
            let param = format!("tokens[{index}]");
            let message = format!("{param}: there is no token {token}, the last is {}", vocab - 1);
            return Err(ApiError::bad(param, message));
        }
        Ok(service.text.decode(&request.tokens, false))
    };
    let prompt = service.work(bytes, work).await?;
    Ok(Json(Detokenized { prompt }))
}
