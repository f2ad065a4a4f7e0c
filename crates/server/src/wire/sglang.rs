//! The answers that SGLang's router expects from a worker, under SGLang's names.

use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct CheckpointInfo<'a> {
    /// Where the checkpoint came from.
    pub model_path: &'a str,
    pub tokenizer_path: &'a str,
    /// True: the model writes text, and is none that embeds or scores it.
    pub is_generation: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ServerInfo<'a> {
    /// Where the checkpoint came from.
    pub model_path: &'a str,
    /// The first name under which the model is served. The router knows the worker's model by it.
    pub served_model_name: &'a str,
    pub version: &'static str,
    /// 1: a server is one engine.
    pub dp_size: u32,
    /// Most tokens of a prompt and its reply together.
    pub context_length: u32,
    pub max_running_requests: u32,
    /// Tokens that the K/V cache can hold.
    pub max_total_num_tokens: u64,
}

/// The load of one engine.
#[derive(Debug, Serialize, ToSchema)]
pub struct EngineLoad {
    /// 0: a server is one engine.
    pub dp_rank: u32,
    /// Requests that run or wait.
    pub num_reqs: u32,
    pub num_waiting_reqs: u32,
    /// Tokens in the K/V cache.
    pub num_tokens: u64,
}
