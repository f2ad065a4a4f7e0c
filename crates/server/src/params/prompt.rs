//! Prompts as tokens: encoded, checked against the vocabulary, and truncated if the client allows
//! it.

use std::sync::Arc;

use kilotok_abi::TokenId;
use kilotok_text::{Keep, Wanted};

use super::sampling::Truncate;
use crate::error::ApiError;
use crate::service::Service;

/// The part of a text's tokens that is wanted. It is no more than fits, so that encoding a longer
/// text ends early.
pub(crate) fn wanted(
    truncate: Option<Truncate>,
    token_max: u32,
    context_max: u32,
    cancelled: &dyn Fn() -> bool,
) -> Wanted<'_> {
    let kept = truncate.map(|truncate| (truncate.kept(token_max, context_max), truncate.right));
    let (token_max, keep) = match kept {
        Some((kept, right)) if kept <= context_max as usize => {
            (kept, if right { Keep::First } else { Keep::Last })
        }
        _ => (context_max as usize, Keep::All),
    };
    Wanted { token_max, keep, cancelled }
}

/// Checks and truncates the tokens of one prompt.
pub(crate) fn finish(
    mut tokens: Vec<TokenId>,
    truncate: Option<Truncate>,
    token_max: u32,
    service: &Service,
    param: &str,
) -> Result<Arc<[TokenId]>, ApiError> {
    let vocab = service.admission.caps().vocab_size;
    if let Some(index) = tokens.iter().position(|token| *token >= vocab) {
        let token = tokens[index];
        let message = format!("{param}: token {token} at {index}, the vocabulary ends at {vocab}");
        return Err(ApiError::bad(param, message));
    }
    if tokens.is_empty() {
        return Err(ApiError::bad(param, format!("{param}: the prompt has no tokens")));
    }
    if let Some(truncate) = truncate {
        cut(&mut tokens, truncate, token_max, service.admission.context_max());
    }
    Ok(tokens.into())
}

fn cut(tokens: &mut Vec<TokenId>, truncate: Truncate, token_max: u32, context_max: u32) {
    let kept = truncate.kept(token_max, context_max);
    if truncate.right {
        tokens.truncate(kept);
    } else if tokens.len() > kept {
        tokens.drain(..tokens.len() - kept);
    }
}

impl Truncate {
    /// How many tokens of a prompt are kept.
    fn kept(self, token_max: u32, context_max: u32) -> usize {
        let room = context_max.saturating_sub(token_max.clamp(1, context_max / 2));
        self.keep.unwrap_or(room).max(1) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_prompts_are_cut_at_either_end() {
        let cut_to = |keep, right, token_max| {
            let mut tokens: Vec<_> = (0..100).collect();
            cut(&mut tokens, Truncate { keep, right }, token_max, 64);
            (tokens[0], tokens.len())
        };
        assert_eq!(cut_to(Some(10), false, 5), (90, 10));
        assert_eq!(cut_to(Some(10), true, 5), (0, 10));
        assert_eq!(cut_to(Some(200), false, 5), (0, 100));
        assert_eq!(cut_to(None, false, 14), (50, 50));
        // An unbounded reply leaves half of the context to the prompt.
        assert_eq!(cut_to(None, false, u32::MAX), (68, 32));
    }
}
