//! Renders a conversation as the tokens of a prompt. Only the renderer writes tokens of the format:
//! text of the conversation that looks like one is spelled out.

use std::collections::BTreeMap;

use kilotok_abi::TokenId;
use serde_json::Value;

use super::{Channel, FUNCTIONS, FormatToken, FormatTokens, typescript};
use crate::template::{PROMPT_BYTES_MAX, date, seconds};
use crate::{Conversation, Message, ReasoningStart, TextError, ToolCall};

const IDENTITY: &str = "You are ChatGPT, a large language model trained by OpenAI.";
const KNOWLEDGE_CUTOFF: &str = "2024-06";
const CHANNELS: &str =
    "# Valid channels: analysis, commentary, final. Channel must be included for every message.";
const CALLS_CHANNEL: &str =
    "\nCalls to these tools must go to the commentary channel: 'functions'.";

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Token(TokenId),
    /// Text without special tokens. Adjacent texts are tokenized separately.
    Text(String),
}

/// The pieces of a prompt, and where the reply to it begins.
pub(crate) fn render(
    conversation: &Conversation,
    tokens: FormatTokens,
) -> Result<(Vec<Piece>, ReasoningStart), TextError> {
    let mut prompt = Prompt { tokens, pieces: Vec::new(), names: BTreeMap::new(), last_name: None };
    prompt.head("system", None, None);
    prompt.text(system(conversation)?);
    prompt.token(FormatToken::End);
    let messages = &conversation.messages;
    let leading = messages.iter().take_while(|message| message.role == "system").count();
    prompt.developer(&messages[..leading], conversation);
    let unfinished = unfinished(conversation)?;
    let is_final = |message: &Message| {
        message.role == "assistant" && message.tool_calls.is_empty() && !message.content.is_empty()
    };
    let whole = messages.len() - usize::from(unfinished.is_some());
    // Reasoning is kept until the calls that it led to are followed by a final answer.
    let answered = messages[..whole].iter().rposition(is_final);
    for (index, message) in messages[..whole].iter().enumerate().skip(leading) {
        prompt.message(message, answered.is_none_or(|answered| index > answered))?;
    }
    let start = match unfinished {
        Some(message) => prompt.unfinished(message),
        None => ReasoningStart::Maybe,
    };
    if conversation.add_generation_prompt {
        prompt.token(FormatToken::Start);
        prompt.text("assistant".to_owned());
    }
    let bytes = prompt.pieces.iter().map(|piece| match piece {
        Piece::Token(_) => 0,
        Piece::Text(text) => text.len(),
    });
    if bytes.sum::<usize>() > PROMPT_BYTES_MAX {
        let reason = format!("the prompt is larger than {PROMPT_BYTES_MAX} bytes");
        return Err(TextError::Template(reason));
    }
    Ok((prompt.pieces, start))
}

/// The system message, with which every conversation begins.
fn system(conversation: &Conversation) -> Result<String, TextError> {
    let identity = conversation.variables.get("model_identity").and_then(Value::as_str);
    let identity = identity.unwrap_or(IDENTITY);
    let today = date("%Y-%m-%d", seconds(conversation));
    let effort = effort(conversation)?;
    let calls = if conversation.tools.is_empty() { "" } else { CALLS_CHANNEL };
    Ok(format!(
        "{identity}\nKnowledge cutoff: {KNOWLEDGE_CUTOFF}\nCurrent date: {today}\n\nReasoning: \
         {effort}\n\n{CHANNELS}{calls}"
    ))
}

/// One of the model's three levels. The model always reasons, so no reasoning becomes the lowest.
fn effort(conversation: &Conversation) -> Result<&'static str, TextError> {
    let variable = |name| conversation.variables.get(name);
    match variable("reasoning_effort") {
        None | Some(Value::Null) if variable("enable_thinking") == Some(&Value::Bool(false)) => {
            Ok("low")
        }
        None | Some(Value::Null) => Ok("medium"),
        Some(effort) => match effort.as_str().map(str::to_ascii_lowercase).as_deref() {
            Some("none" | "minimal" | "low") => Ok("low"),
            Some("medium") => Ok("medium"),
            Some("high" | "xhigh" | "max") => Ok("high"),
            _ => Err(TextError::Template(format!(
                "reasoning_effort is {effort}, it must be low, medium or high"
            ))),
        },
    }
}

/// The message that the reply continues, if any.
fn unfinished(conversation: &Conversation) -> Result<Option<&Message>, TextError> {
    let refuse = |reason: &str| Err(TextError::Template(reason.to_owned()));
    if !conversation.continue_final_message {
        return Ok(None);
    }
    if conversation.add_generation_prompt {
        return refuse(
            "continue_final_message and add_generation_prompt exclude each other: set one",
        );
    }
    match conversation.messages.last() {
        Some(last) if last.role == "assistant" && last.tool_calls.is_empty() => Ok(Some(last)),
        _ => refuse(
            "continue_final_message: the last message must be the assistant's, without tool calls",
        ),
    }
}

/// A prompt under construction.
struct Prompt<'c> {
    tokens: FormatTokens,
    pieces: Vec<Piece>,
    /// Names of called functions, by the ids of the calls.
    names: BTreeMap<&'c str, &'c str>,
    last_name: Option<&'c str>,
}

impl<'c> Prompt<'c> {
    fn token(&mut self, token: FormatToken) {
        self.pieces.push(Piece::Token(self.tokens.id(token)));
    }

    fn text(&mut self, text: String) {
        if !text.is_empty() {
            self.pieces.push(Piece::Text(text));
        }
    }

    /// The header of a message: its role, recipient and channel.
    fn head(&mut self, role: &str, recipient: Option<&str>, channel: Option<Channel>) {
        self.token(FormatToken::Start);
        self.text(role.to_owned());
        if let Some(recipient) = recipient {
            self.text(format!(" to={recipient}"));
        }
        if let Some(channel) = channel {
            self.token(FormatToken::Channel);
            self.text(channel.name().to_owned());
        }
        if channel == Some(Channel::Commentary) && role == "assistant" && recipient.is_some() {
            self.text(" ".to_owned());
            self.token(FormatToken::Constrain);
            self.text("json".to_owned());
        }
        self.token(FormatToken::Message);
    }

    /// The developer messages. The first of them also declares the tools.
    fn developer(&mut self, messages: &[Message], conversation: &Conversation) {
        let instructions: Vec<&str> = messages.iter().map(|each| each.content.as_str()).collect();
        let mut sections = Vec::new();
        if !messages.is_empty() {
            sections.push(format!("# Instructions\n\n{}", instructions.join("\n\n")));
        }
        if !conversation.tools.is_empty() {
            sections.push(typescript::tools(&conversation.tools));
        }
        if !sections.is_empty() {
            self.head("developer", None, None);
            self.text(sections.join("\n\n"));
            self.token(FormatToken::End);
        }
    }

    fn message(&mut self, message: &'c Message, reasons: bool) -> Result<(), TextError> {
        match message.role.as_str() {
            "assistant" => self.assistant(message, reasons),
            "tool" => self.result(message)?,
            "user" | "system" => {
                let is_user = message.role == "user";
                let role = if is_user { "user" } else { "developer" };
                let named = message.name.as_ref().filter(|_| is_user);
                let role = named.map_or(role.to_owned(), |name| format!("{role}:{name}"));
                self.head(&role, None, None);
                let title = if is_user { "" } else { "# Instructions\n\n" };
                self.text(format!("{title}{}", message.content));
                self.token(FormatToken::End);
            }
            other => {
                return Err(TextError::Template(format!(
                    "the model knows no role {other:?}: use system, user, assistant or tool"
                )));
            }
        }
        Ok(())
    }

    fn assistant(&mut self, message: &'c Message, reasons: bool) {
        let reasoning = message.reasoning.as_ref().filter(|text| reasons && !text.is_empty());
        if let Some(reasoning) = reasoning {
            self.said(Channel::Analysis, reasoning);
            self.token(FormatToken::End);
        }
        if !message.content.is_empty() {
            let calls = !message.tool_calls.is_empty();
            let channel = if calls { Channel::Commentary } else { Channel::Final };
            self.said(channel, &message.content);
            self.token(FormatToken::End);
        }
        for call in &message.tool_calls {
            self.call(call);
        }
    }

    /// A message of the assistant, without its end token.
    fn said(&mut self, channel: Channel, text: &str) {
        self.head("assistant", None, Some(channel));
        self.text(text.to_owned());
    }

    fn call(&mut self, call: &'c ToolCall) {
        self.names.insert(&call.id, &call.name);
        self.last_name = Some(&call.name);
        let recipient = format!("{FUNCTIONS}{}", call.name);
        self.head("assistant", Some(&recipient), Some(Channel::Commentary));
        self.text(call.arguments.to_string());
        self.token(FormatToken::Call);
    }

    fn result(&mut self, message: &Message) -> Result<(), TextError> {
        let id = message.tool_call_id.as_deref();
        let name = id.and_then(|id| self.names.get(id).copied());
        let name = name.or(message.name.as_deref()).or(self.last_name);
        let Some(name) = name else {
            let reason = "a tool's result answers no call: send the assistant's message with \
                          tool_calls before it";
            return Err(TextError::Template(reason.to_owned()));
        };
        let role = format!("{FUNCTIONS}{name}");
        self.head(&role, Some("assistant"), Some(Channel::Commentary));
        self.text(message.content.clone());
        self.token(FormatToken::End);
        Ok(())
    }

    /// The message that the reply continues: its answer, or its reasoning if it has no answer.
    fn unfinished(&mut self, message: &Message) -> ReasoningStart {
        let reasoning = message.reasoning.as_deref().unwrap_or_default();
        if message.content.is_empty() && !reasoning.is_empty() {
            self.said(Channel::Analysis, reasoning);
            return ReasoningStart::Begun;
        }
        if !reasoning.is_empty() {
            self.said(Channel::Analysis, reasoning);
            self.token(FormatToken::End);
        }
        self.said(Channel::Final, &message.content);
        ReasoningStart::Never
    }
}
