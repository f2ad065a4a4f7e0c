//! A conversation and how it is to be answered, in the one form that chat, responses and messages
//! come to.

use std::sync::Arc;

use kilotok_text::{Constraint, Conversation, Parse, ReasoningStart, ReplyOptions};
use serde_json::{Map, Value, json};

use super::Job;
use super::prompt::{finished, wanted};
use super::sampling::Chosen;
use super::shape::Shape;
use super::tools::Tools;
use crate::error::ApiError;
use crate::service::{Left, Service};
use crate::trace::ReplyId;

/// See the file's head.
pub(crate) struct Talk {
    /// Without tools, which come from `tools`.
    pub(crate) conversation: Conversation,
    pub(crate) tools: Tools,
    pub(crate) shape: Option<Shape>,
    /// Whether reasoning is told apart from the answer.
    pub(crate) apart: bool,
    /// The field that holds the conversation.
    pub(crate) param: &'static str,
}

/// A conversation in the model's words and tokens.
pub(crate) struct Prompt {
    pub(crate) text: String,
    pub(crate) tokens: Arc<[u32]>,
    pub(crate) reasoning: ReasoningStart,
}

impl Talk {
    /// The prompt, made on another thread.
    pub(crate) async fn prompt(
        &mut self,
        chosen: Option<&Chosen>,
        service: &Arc<Service>,
    ) -> Result<Prompt, ApiError> {
        self.tools.left_out.publish(&service.metrics);
        let mut conversation = std::mem::take(&mut self.conversation);
        conversation.tools = self.tools.shown();
        let bytes = bytes_of(&conversation);
        let param = self.param;
        let truncate = chosen.and_then(|chosen| chosen.truncate);
        let token_max = chosen.map_or(1, |chosen| chosen.submission.token_max);
        let work = move |service: &Service, left: &Left| {
            let fault = |error| ApiError::from_text(&error, param);
            let rendered = service.text.render(&conversation).map_err(fault)?;
            let cancelled = || left.is_set();
            let wanted = wanted(truncate, token_max, service.gate.context_max(), &cancelled);
            let tokens = service.text.encode_rendered(&rendered, &wanted).map_err(fault)?;
            let tokens = finished(tokens, truncate, token_max, service, param)?;
            Ok(Prompt { text: rendered.prompt, tokens, reasoning: rendered.reasoning })
        };
        service.chore(bytes, work).await
    }

    /// What is to be asked of the engine.
    pub(crate) async fn job(
        mut self,
        id: ReplyId,
        chosen: Chosen,
        service: &Arc<Service>,
    ) -> Result<Job, ApiError> {
        let constraint = self.constraint(service);
        let shaped = matches!(constraint, Some((Constraint::ShapeOrCalls { .. }, _)));
        let prompt = self.prompt(Some(&chosen), service).await?;
        let calls = self.tools.may_call();
        let reply = ReplyOptions {
            parse: match (calls, self.apart) {
                (true, _) if shaped => Parse::ReasoningThenCalls,
                (true, _) => Parse::ReasoningAndCalls,
                (false, true) => Parse::Reasoning,
                (false, false) => Parse::Nothing,
            },
            tools: if calls { self.tools.callable() } else { Vec::new() },
            reasoning: prompt.reasoning,
            parallel_calls: self.tools.parallel,
            ..chosen.reply
        };
        Ok(Job {
            id,
            prompts: vec![prompt.tokens],
            n: chosen.n,
            submission: chosen.submission,
            reply,
            constraint,
            stop_tokens: chosen.stop_tokens,
            interval: chosen.interval,
            prompt_param: self.param,
        })
    }

    fn constraint(&mut self, service: &Service) -> Option<Shape> {
        let format = service.text.format();
        let parallel = self.tools.parallel;
        match (self.tools.required(), self.shape.take()) {
            // A reply that must be calls has no text to shape.
            (Some(tools), _) => {
                Some((Constraint::Calls { tools, format, parallel }, "tool_choice"))
            }
            (None, Some((shape, param))) if self.tools.may_call() => {
                let (shape, tools) = (Box::new(shape), self.tools.callable());
                Some((Constraint::ShapeOrCalls { shape, tools, format, parallel }, param))
            }
            (None, None) if self.tools.may_call() && format.has_calls() => {
                let tools = self.tools.callable().into();
                Some((Constraint::TextWithCalls { tools, format, parallel }, "tools"))
            }
            (None, shape) => shape,
        }
    }
}

/// What a template writes around a message, a tool, or a value of JSON, about.
const MARKUP_BYTES: usize = 16;

/// About how much text a template is given, wherever in a conversation it is.
fn bytes_of(conversation: &Conversation) -> usize {
    let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let messages = conversation.messages.iter().map(|message| {
        let calls = message.tool_calls.iter();
        let calls =
            calls.map(|call| call.id.len() + call.name.len() + value_bytes(&call.arguments));
        let told = message.role.len() + length(&message.name) + length(&message.tool_call_id);
        let said = message.content.len() + length(&message.reasoning);
        MARKUP_BYTES + told + said + calls.sum::<usize>()
    });
    let tools = conversation.tools.iter().map(|tool| {
        let told = tool.name.len() + length(&tool.description);
        MARKUP_BYTES + told + value_bytes(&tool.parameters)
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

/// What OpenAI and others call the levels of reasoning.
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// Variables of the template: what the client set itself comes first.
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
