//! `/v1/models`.

use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList<'a> {
    /// `list`.
    pub object: &'static str,
    pub data: Vec<ModelCard<'a>>,
}

/// A name under which the model is served.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelCard<'a> {
    pub id: &'a str,
    /// `model`.
    pub object: &'static str,
    /// When the server started.
    pub created: u64,
    pub owned_by: &'static str,
    /// Where the checkpoint came from.
    pub root: &'a str,
    #[schema(value_type = Option<String>)]
    pub parent: (),
    /// Most tokens of a prompt and its reply together.
    pub max_model_len: u32,
}
