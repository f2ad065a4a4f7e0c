//! Token ids to the residual stream. The rank that owns a token's row of the table gives it.

use kilotok_abi::TokenId;

use crate::weights::ModelWeights;

/// `[tokens, hidden]`
pub(crate) fn run(weights: &ModelWeights, tokens: &[TokenId]) -> Vec<f32> {
    let (rank_rows, hidden) = (weights.embedding[0].rows, weights.embedding[0].cols);
    let mut x = vec![0.0; tokens.len() * hidden];
    for (token, out) in tokens.iter().zip(x.chunks_exact_mut(hidden)) {
        let token = *token as usize;
        weights.embedding[token / rank_rows].decode_row(token % rank_rows, out);
    }
    x
}
