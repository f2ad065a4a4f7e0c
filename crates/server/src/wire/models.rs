//! `/v1/models`, as OpenAI and as Anthropic have it.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The list in OpenAI's form, or in Anthropic's if the request has an `anthropic-version` header.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Models<'a> {
    OpenAi(ModelList<'a>),
    Anthropic(ModelPage<'a>),
}

/// One name in OpenAI's form, or in Anthropic's if the request has an `anthropic-version` header.
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
    /// When the server started, in Unix time in seconds.
    pub created: u64,
    pub owned_by: &'static str,
    /// The checkpoint's folder on the server.
    pub root: &'a str,
    #[schema(value_type = Option<String>)]
    pub parent: (),
    /// Most tokens that a prompt and its reply may have together.
    pub max_model_len: u32,
}

/// A page of the list of names, in Anthropic's form.
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
    /// The same as `id`.
    pub display_name: &'a str,
    /// When the server started, in the format of RFC 3339.
    pub created_at: String,
    /// `active`.
    pub lifecycle: &'static str,
    /// Most tokens that a prompt and its reply may have together.
    pub max_input_tokens: u32,
    /// Most tokens that a reply may have.
    pub max_tokens: u32,
}

/// Which names are listed, in Anthropic's form. OpenAI's form has all of them.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageOptions {
    /// In Anthropic's form: lists the names after this one.
    pub after_id: Option<String>,
    /// In Anthropic's form: lists the names before this one.
    pub before_id: Option<String>,
    /// In Anthropic's form: the most names to list. Default: 20.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<i64>,
}
