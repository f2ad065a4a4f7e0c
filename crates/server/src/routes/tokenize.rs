//! `/tokenize` and `/detokenize`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use crate::chat::tools::tools;
use crate::chat::{ConversationEnd, conversation};
use crate::error::{ApiError, ErrorResponses};
use crate::params::chat_prompt::{ChatPrompt, variables};
use crate::params::prompt::wanted;
use crate::service::{Cancelled, Service};
use crate::wire::body::Body;
use crate::wire::tokenize::{DetokenizeRequest, Detokenized, TokenizeRequest, Tokenized};

/// Approximate bytes of text per token.
const TOKEN_BYTES: usize = 4;

/// Tokenizes a text or a conversation, which must fit into the model's context. Special tokens are
/// recognised in a text; in a conversation only the chat template writes them.
#[utoipa::path(
    post,
    path = "/tokenize",
    request_body = TokenizeRequest,
    responses(
        (status = 200, description = "The tokens.", body = Tokenized),
        ErrorResponses,
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
            let work = move |service: &Service, cancelled: &Cancelled| {
                let cancelled = || cancelled.is_set();
                let wanted = wanted(None, 1, service.admission.context_max(), &cancelled);
                let tokens = service.text.encode_wanted(&prompt, &wanted);
                tokens.map_err(|error| ApiError::from_text(&error, "prompt"))
            };
            service.run_blocking(bytes, work).await?
        }
        (None, true) => chat_prompt(request)?.encode(None, &service).await?.tokens.to_vec(),
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
        max_model_len: service.admission.context_max(),
        token_strs,
        tokens,
    }))
}

fn chat_prompt(request: TokenizeRequest) -> Result<ChatPrompt, ApiError> {
    let variables =
        variables(request.chat_template_kwargs, request.reasoning_effort, "reasoning_effort")?;
    let end = ConversationEnd {
        add_generation_prompt: request.add_generation_prompt,
        continue_final_message: request.continue_final_message,
    };
    let messages = request.messages.unwrap_or_default();
    let mut tools = tools(request.tools, None, None)?;
    Ok(ChatPrompt {
        conversation: conversation(messages, variables, &end, &mut tools.left_out)?,
        tools,
        constraint: None,
        separate_reasoning: true,
        param: "messages",
    })
}

/// Converts token ids to text.
#[utoipa::path(
    post,
    path = "/detokenize",
    request_body = DetokenizeRequest,
    responses(
        (status = 200, description = "The text.", body = Detokenized),
        ErrorResponses,
    ),
)]
pub(crate) async fn detokenize(
    State(service): State<Arc<Service>>,
    Body(request): Body<DetokenizeRequest>,
) -> Result<Json<Detokenized>, ApiError> {
    service.model(request.model.as_deref())?;
    let bytes = request.tokens.len() * TOKEN_BYTES;
    let work = move |service: &Service| {
        let vocab = service.admission.caps().vocab_size;
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
