//! The chat, responses and messages APIs all turn a request into a [`ChatPrompt`]: a conversation,
//! and how its reply is parsed. It is rendered here with the model's chat template and encoded by
//! the tokenizer.

use std::sync::Arc;

use kilotok_abi::TokenId;
use kilotok_text::{Constraint, Conversation, Format, Parse, ReasoningStart, ReplyOptions};
use serde_json::{Map, Value, json};

use super::PreparedRequest;
use super::constraint::FieldConstraint;
use super::prompt::{finish, wanted};
use super::sampling::ResolvedParams;
use super::tools::Tools;
use crate::error::ApiError;
use crate::middleware::ReplyId;
use crate::service::{Cancelled, Service};

/// See the file's head.
pub(crate) struct ChatPrompt {
    /// Without tools: those are in `tools`.
    pub(crate) conversation: Conversation,
    pub(crate) tools: Tools,
    pub(crate) constraint: Option<FieldConstraint>,
    /// Whether reasoning is separated from the answer.
    pub(crate) separate_reasoning: bool,
    /// The name of the request's field that holds the conversation.
    pub(crate) param: &'static str,
}

/// A conversation as rendered by the template, and its tokens.
pub(crate) struct EncodedPrompt {
    pub(crate) text: String,
    pub(crate) tokens: Arc<[TokenId]>,
    pub(crate) reasoning: ReasoningStart,
}

impl ChatPrompt {
    /// Renders and encodes the prompt, on another thread.
    pub(crate) async fn encode(
        &mut self,
        params: Option<&ResolvedParams>,
        service: &Arc<Service>,
    ) -> Result<EncodedPrompt, ApiError> {
        self.tools.left_out.publish(&service.http_metrics);
        let mut conversation = std::mem::take(&mut self.conversation);
        conversation.tools = self.tools.shown();
        let bytes = bytes_of(&conversation);
        let param = self.param;
        let truncate = params.and_then(|params| params.truncate);
        let token_max = params.map_or(1, |params| params.generation.submission.token_max);
        let work = move |service: &Service, cancelled: &Cancelled| {
            let error = |error| ApiError::from_text(&error, param);
            let rendered = service.text.render(&conversation).map_err(error)?;
            let cancelled = || cancelled.is_set();
            let wanted = wanted(truncate, token_max, service.admission.context_max(), &cancelled);
            let tokens = service.text.encode_rendered(&rendered, &wanted).map_err(error)?;
            let tokens = finish(tokens, truncate, token_max, service, param)?;
            let (text, reasoning) = (rendered.prompt, rendered.reasoning);
            Ok(EncodedPrompt { text, tokens, reasoning })
        };
        service.run_blocking(bytes, work).await
    }

    pub(crate) async fn prepare(
        mut self,
        id: ReplyId,
        params: ResolvedParams,
        service: &Arc<Service>,
    ) -> Result<PreparedRequest, ApiError> {
        let constraint = self.whole_constraint(service);
        let is_shape_or_calls = matches!(constraint, Some((Constraint::ShapeOrCalls { .. }, _)));
        let prompt = self.encode(Some(&params), service).await?;
        let may_call = self.tools.may_call();
        let mut generation = params.generation;
        generation.prompts = vec![prompt.tokens];
        generation.reply = ReplyOptions {
            parse: match (may_call, self.separate_reasoning) {
                (true, _) if is_shape_or_calls => Parse::ReasoningThenCalls,
                (true, _) => Parse::ReasoningAndCalls,
                (false, true) => Parse::Reasoning,
                // Message headers of the Harmony format are not text, so they are parsed even if
                // reasoning stays in the answer.
                (false, false) if service.text.format() == Format::Harmony => Parse::Reasoning,
                (false, false) => Parse::Nothing,
            },
            tools: if may_call { self.tools.callable() } else { Vec::new() },
            reasoning: prompt.reasoning,
            parallel_calls: self.tools.parallel,
            ..generation.reply
        };
        let (constraint, constraint_param) = constraint.unzip();
        generation.constraint = constraint;
        Ok(PreparedRequest {
            id,
            generation,
            prompt_param: self.param,
            constraint_param: constraint_param.unwrap_or_default(),
        })
    }

    /// The constraint of the whole reply: it combines the request's own constraint with the form of
    /// calls.
    fn whole_constraint(&mut self, service: &Service) -> Option<FieldConstraint> {
        let format = service.text.format();
        let parallel = self.tools.parallel;
        match (self.tools.required(), self.constraint.take()) {
            // A reply that must be calls contains no other text.
            (Some(tools), _) => {
                Some((Constraint::Calls { tools, format, parallel }, "tool_choice"))
            }
            (None, Some((constraint, param))) if self.tools.may_call() => {
                let (shape, tools) = (Box::new(constraint), self.tools.callable());
                Some((Constraint::ShapeOrCalls { shape, tools, format, parallel }, param))
            }
            (None, None) if self.tools.may_call() && format.has_calls() => {
                let tools = self.tools.callable().into();
                Some((Constraint::TextWithCalls { tools, format, parallel }, "tools"))
            }
            (None, constraint) => constraint,
        }
    }
}

/// Approximate bytes that a template writes around a message, a tool, or a JSON value.
const MARKUP_BYTES: usize = 16;

/// Approximate bytes of text that a template receives, over all parts of a conversation.
fn bytes_of(conversation: &Conversation) -> usize {
    let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let messages = conversation.messages.iter().map(|message| {
        let calls = message.tool_calls.iter();
        let calls =
            calls.map(|call| call.id.len() + call.name.len() + value_bytes(&call.arguments));
        let names = message.role.len() + length(&message.name) + length(&message.tool_call_id);
        let text = message.content.len() + length(&message.reasoning);
        MARKUP_BYTES + names + text + calls.sum::<usize>()
    });
    let tools = conversation.tools.iter().map(|tool| {
        let texts = tool.name.len() + length(&tool.description);
        MARKUP_BYTES + texts + value_bytes(&tool.parameters)
    });
    let variables = conversation.variables.values().map(value_bytes);
    messages.chain(tools).chain(variables).sum()
}

fn value_bytes(value: &Value) -> usize {
    let inner = match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(value_bytes).sum(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| name.len() + value_bytes(value)).sum()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    };
    MARKUP_BYTES + inner
}

/// The reasoning efforts of OpenAI and others.
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// The variables of the template. Those that the client sets take precedence.
pub(crate) fn variables(
    given: Option<Map<String, Value>>,
    effort: Option<String>,
    param: &str,
) -> Result<Map<String, Value>, ApiError> {
    let mut variables = given.unwrap_or_default();
    let Some(effort) = effort else { return Ok(variables) };
    if !EFFORTS.contains(&effort.as_str()) {
        let message = format!("{param}: {effort:?}, it must be one of {}", EFFORTS.join(", "));
        return Err(ApiError::bad(param, message));
    }
    variables.entry("enable_thinking").or_insert(json!(effort != "none"));
    variables.entry("reasoning_effort").or_insert(json!(effort));
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effort_is_a_variable_of_the_template() {
        let of = |given: Value, effort: Option<&str>| {
            let given = given.as_object().cloned();
            variables(given, effort.map(str::to_owned), "reasoning_effort").map(Value::from)
        };
        let low = json!({"enable_thinking": true, "reasoning_effort": "low"});
        assert_eq!(of(json!({}), Some("low")).unwrap(), low);
        assert_eq!(of(json!({}), Some("none")).unwrap()["enable_thinking"], false);
        assert_eq!(of(json!(null), None).unwrap(), json!({}));
        let kept = of(json!({"enable_thinking": true}), Some("none")).unwrap();
        assert_eq!(kept["enable_thinking"], true);
        assert_eq!(of(json!({}), Some("huge")).unwrap_err().param.unwrap(), "reasoning_effort");
    }
}
