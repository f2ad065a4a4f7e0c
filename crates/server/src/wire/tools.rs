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
    /// `function` or `custom`. Tools of other types are left out of the prompt.
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
    /// JSON schema of the arguments. Default: an object without properties.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// Whether the arguments of calls must follow `parameters`. Default: false.
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

/// The form of the text that a custom tool takes. The Responses API has `syntax` and `definition`
/// here, the chat API has them in `grammar`; both places are read in both APIs.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct CustomFormat {
    /// `text` (any text) or `grammar`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `lark` or `regex`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syntax: Option<String>,
    /// The grammar or the regular expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grammar: Option<GrammarFormat>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct GrammarFormat {
    /// `lark` or `regex`.
    pub syntax: Option<String>,
    /// The grammar or the regular expression.
    pub definition: Option<String>,
}

/// `none`, `auto`, `required`, the tool to call, or those that may be called.
pub type ToolChoice = NameOr<ChatChoice>;

/// The tool that must be called, or the tools that may be called.
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

/// The tools that may be called. The prompt still shows the others.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct AllowedTools {
    /// `auto`, or `required` if one of the tools must be called.
    pub mode: Option<String>,
    pub tools: Vec<AllowedTool>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct AllowedTool {
    /// `function` or `custom`. Tools of other types are left out.
    #[serde(rename = "type")]
    pub kind: String,
    pub function: Option<ToolName>,
    pub custom: Option<ToolName>,
}

/// A call in an earlier message of the assistant.
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
    /// The arguments: JSON in a string, or the JSON object itself.
    #[schema(value_type = Option<String>)]
    pub arguments: Option<Value>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct PastCustom {
    pub name: String,
    pub input: Option<String>,
}

/// The form of a reply's text.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ResponseFormat {
    /// `text` (any text), `json_object` or `json_schema`.
    #[serde(rename = "type")]
    pub kind: String,
    pub json_schema: Option<NamedSchema>,
    /// With `json_object`: a JSON schema that the object follows, as in llama.cpp.
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

/// vLLM's constraints of a reply's text: exactly one of `json`, `regex`, `choice`, `grammar` and
/// `json_object`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct StructuredOutputs {
    /// A JSON schema that the reply follows, as an object or as a string.
    #[schema(value_type = Option<Object>)]
    pub json: Option<Value>,
    /// A regular expression that the whole reply matches.
    pub regex: Option<String>,
    /// Texts of which the reply is one.
    pub choice: Option<Vec<String>>,
    /// A grammar that the reply follows: Lark, or EBNF in the manner of GBNF.
    pub grammar: Option<String>,
    /// Whether the reply must be a JSON object.
    pub json_object: Option<bool>,
    #[serde(default)]
    pub structural_tag: Unsupported,
    /// A regular expression for the white space between tokens of JSON. Default: a space, or a line
    /// end with indentation.
    pub whitespace_pattern: Option<String>,
    /// Allows no white space between tokens of JSON. Default: false.
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
    /// The arguments, as a string of JSON.
    pub arguments: String,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CalledCustom {
    pub name: String,
    /// The input, a text.
    pub input: String,
}

/// A call, or a part of one, in a chunk of a stream.
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
