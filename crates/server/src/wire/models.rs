//! `/v1/models`, as OpenAI and as Anthropic have it.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The list in the form that the client knows.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Models<'a> {
    OpenAi(ModelList<'a>),
    Anthropic(ModelPage<'a>),
}

/// One name in the form that the client knows.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Model<'a> {
    OpenAi(ModelCard<'a>),
    Anthropic(ModelInfo<'a>),
}

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

/// A part of the names, in Anthropic's form.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelPage<'a> {
    pub data: Vec<ModelInfo<'a>>,
    /// Whether more names follow in the direction that was asked for.
    pub has_more: bool,
    pub first_id: Option<&'a str>,
    pub last_id: Option<&'a str>,
}

/// A name under which the model is served, in Anthropic's form.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelInfo<'a> {
    /// `model`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub id: &'a str,
    /// The same.
    pub display_name: &'a str,
    /// When the server started, as RFC 3339 writes it.
    pub created_at: String,
    /// `active`.
    pub lifecycle: &'static str,
    /// Most tokens of a prompt and its reply together.
    pub max_input_tokens: u32,
    /// Most tokens of a reply.
    pub max_tokens: u32,
}

/// Which names are listed, in Anthropic's form. OpenAI's form has all of them.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageOptions {
    /// The names that come after this one.
    pub after_id: Option<String>,
    /// The names that come before this one.
    pub before_id: Option<String>,
    /// So many names at most. Default: 20.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<i64>,
}
