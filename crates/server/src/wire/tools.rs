//! Tools, their choice, calls of them, and the shape that a reply must have, as OpenAI's chat API
//! says them.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::absent::Absent;
use super::content::NameOr;

/// A function that the model may call.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ChatTool {
    /// `function`.
    #[serde(rename = "type")]
    #[schema(example = "function")]
    pub kind: String,
    pub function: Option<FunctionSpec>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct FunctionSpec {
    #[schema(pattern = "^[a-zA-Z0-9_.:/-]{1,256}$")]
    pub name: String,
    pub description: Option<String>,
    /// A JSON schema of the arguments.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    pub strict: Option<bool>,
}

/// `none`, `auto`, `required`, or the function to call.
pub type ToolChoice = NameOr<NamedChoice>;

/// Which function must be called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct NamedChoice {
    /// `function`.
    #[serde(rename = "type")]
    pub kind: String,
    pub function: Option<FunctionName>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct FunctionName {
    pub name: String,
}

/// A call that an assistant made earlier.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct PastCall {
    pub id: Option<String>,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub function: PastFunction,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct PastFunction {
    pub name: String,
    /// JSON, as a string or as it is.
    #[schema(value_type = Option<String>)]
    pub arguments: Option<Value>,
}

/// The shape of a reply.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    pub kind: String,
    pub json_schema: Option<NamedSchema>,
    /// A schema beside `json_object`, as llama.cpp has it.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct NamedSchema {
    pub name: Option<String>,
    pub description: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    pub strict: Option<bool>,
}

/// vLLM's constraints of a reply: one of them.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct StructuredOutputs {
    /// A JSON schema, as an object or as a string.
    #[schema(value_type = Option<Object>)]
    pub json: Option<Value>,
    pub regex: Option<String>,
    pub choice: Option<Vec<String>>,
    /// Lark, or EBNF in the manner of GBNF.
    pub grammar: Option<String>,
    pub json_object: Option<bool>,
    #[serde(default)]
    pub structural_tag: Absent,
    #[serde(default)]
    pub whitespace_pattern: Absent,
}

/// A call in a reply.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ToolCall {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub function: CalledFunction,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CalledFunction {
    pub name: String,
    /// JSON.
    pub arguments: String,
}

/// A piece of a call.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ToolCallDelta<'a> {
    pub index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    pub function: FunctionDelta<'a>,
}

#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<&'a str>,
}
