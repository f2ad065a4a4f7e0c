//! The answers that SGLang's router expects from a worker, under SGLang's names.

use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct CheckpointInfo<'a> {
    /// The checkpoint's folder on the server.
    pub model_path: &'a str,
    pub tokenizer_path: &'a str,
    /// Always true: the model generates text, instead of embedding or scoring it.
    pub is_generation: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ServerInfo<'a> {
    /// The checkpoint's folder on the server.
    pub model_path: &'a str,
    /// The first name under which the model is served, by which the router knows it.
    pub served_model_name: &'a str,
    pub version: &'static str,
    /// Data-parallel size. Always 1: a server is one engine.
    pub dp_size: u32,
    /// Most tokens that a prompt and its reply may have together.
    pub context_length: u32,
    /// Most requests that run at once; further ones wait.
    pub max_running_requests: u32,
    /// Tokens that the KV cache can hold.
    pub max_total_num_tokens: u64,
}

/// The load of one engine.
#[derive(Debug, Serialize, ToSchema)]
pub struct EngineLoad {
    /// Data-parallel rank. Always 0: a server is one engine.
    pub dp_rank: u32,
    /// Requests that run or wait.
    pub num_reqs: u32,
    pub num_waiting_reqs: u32,
    /// Tokens in the KV cache.
    pub num_tokens: u64,
}
