//! Tools, their choice, calls of them, and the constraints of a reply, in the JSON of OpenAI's chat
//! API.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::content::NameOr;
use super::unsupported::Unsupported;

/// A tool that the model may call.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ChatTool {
    /// `function` or `custom`. Tools of other types are left out.
    #[serde(rename = "type")]
    #[schema(example = "function")]
    pub kind: String,
    pub function: Option<FunctionSpec>,
    pub custom: Option<CustomSpec>,
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

/// A tool that takes a text instead of JSON.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct CustomSpec {
    #[schema(pattern = "^[a-zA-Z0-9_.:/-]{1,256}$")]
    pub name: String,
    pub description: Option<String>,
    pub format: Option<CustomFormat>,
}

/// What texts a custom tool takes. The Responses API has the grammar's fields here, the chat API in
/// `grammar`; both are read in both.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct CustomFormat {
    /// `text` or `grammar`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `lark` or `regex`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syntax: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grammar: Option<GrammarFormat>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct GrammarFormat {
    /// `lark` or `regex`.
    pub syntax: Option<String>,
    pub definition: Option<String>,
}

/// `none`, `auto`, `required`, the tool to call, or those that may be called.
pub type ToolChoice = NameOr<ChatChoice>;

/// Which tool must be called, or which may be.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ChatChoice {
    /// `function`, `custom` or `allowed_tools`.
    #[serde(rename = "type")]
    pub kind: String,
    pub function: Option<ToolName>,
    pub custom: Option<ToolName>,
    pub allowed_tools: Option<AllowedTools>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ToolName {
    pub name: String,
}

/// The prompt shows all tools, but only these may be called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct AllowedTools {
    /// `auto`, or `required` if one of them must be called.
    pub mode: Option<String>,
    pub tools: Vec<AllowedTool>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct AllowedTool {
    /// `function` or `custom`. Other types are left out.
    #[serde(rename = "type")]
    pub kind: String,
    pub function: Option<ToolName>,
    pub custom: Option<ToolName>,
}

/// A call that an assistant made earlier.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct PastCall {
    pub id: Option<String>,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub function: Option<PastFunction>,
    pub custom: Option<PastCustom>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct PastFunction {
    pub name: String,
    /// JSON, as a string or as it is.
    #[schema(value_type = Option<String>)]
    pub arguments: Option<Value>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct PastCustom {
    pub name: String,
    pub input: Option<String>,
}

/// The format of a reply.
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
    pub structural_tag: Unsupported,
    /// A regular expression for the white space between tokens of JSON. Default: a space, or a line
    /// end with indentation.
    pub whitespace_pattern: Option<String>,
    /// No white space between tokens of JSON.
    pub disable_any_whitespace: Option<bool>,
}

/// A call in a reply.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToolCall {
    Function { id: String, function: CalledFunction },
    Custom { id: String, custom: CalledCustom },
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CalledFunction {
    pub name: String,
    /// JSON.
    pub arguments: String,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CalledCustom {
    pub name: String,
    /// A text.
    pub input: String,
}

/// A call, or a part of one, in a chunk.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ToolCallDelta<'a> {
    pub index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionDelta<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom: Option<CustomDelta<'a>>,
}

#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<&'a str>,
}

#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct CustomDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<&'a str>,
}
