//! Control and state: aborts, health, load, version.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::content::Strings;

/// Requests to end, named by the ids of their replies or by their `x-request-id`.
#[derive(Debug, Deserialize, ToSchema)]
pub struct AbortRequest {
    #[serde(alias = "request_id", alias = "rid")]
    #[schema(inline)]
    pub request_ids: Option<Strings>,
    /// Ends all requests, or those with the caller's key if the server has API keys. Default:
    /// false.
    pub abort_all: Option<bool>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Aborted {
    /// Number of replies that were ended.
    pub aborted: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct HealthBody {
    /// `ok`, `stalled` (there is work, but no step finishes), `failed` (the engine stopped for
    /// good) or `draining` (the server is shutting down).
    pub status: &'static str,
    /// Why the engine is `stalled` or `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct VersionBody {
    pub version: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct LoadBody {
    /// Replies that run or wait, under vLLM's name.
    pub server_load: u32,
    /// Replies that the engine works on.
    pub running: u32,
    /// Replies that wait for the engine.
    pub waiting: u32,
    /// How full the KV cache is, from 0 to 1; of several groups of pages, the fullest.
    pub kv_cache_usage: f64,
    /// Tokens in the KV cache.
    pub kv_cache_tokens: u64,
    /// Tokens that the KV cache can hold.
    pub kv_cache_tokens_max: u64,
    /// Bytes of memory that requests take until the engine has their prompts.
    pub request_bytes: usize,
    /// Limit of `request_bytes`; requests beyond it are refused with 503.
    pub request_bytes_max: usize,
}
