//! Control and state: aborts, health, load, version.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::content::Strings;

/// Requests to be ended, by the id of their reply or by their `x-request-id`.
#[derive(Debug, Deserialize, ToSchema)]
pub struct AbortRequest {
    #[serde(alias = "request_id", alias = "rid")]
    #[schema(inline)]
    pub request_ids: Option<Strings>,
    /// Ends all of them.
    pub abort_all: Option<bool>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Aborted {
    /// Replies that were ended.
    pub aborted: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct HealthBody {
    /// `ok`, `stalled`, `failed` or `draining`.
    pub status: &'static str,
    /// What is the matter, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct VersionBody {
    pub version: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct LoadBody {
    /// Replies that are asked for and not complete, in vLLM's name.
    pub server_load: u32,
    pub running: u32,
    pub waiting: u32,
    /// How full the fullest page group is; 1 is full.
    pub kv_cache_usage: f64,
    pub kv_cache_tokens: u64,
    pub kv_cache_tokens_max: u64,
    /// Memory that requests take until their prompts are made, and what there is of it.
    pub request_bytes: usize,
    pub request_bytes_max: usize,
}
