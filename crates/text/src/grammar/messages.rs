//! Constraints of replies in the form of messages (harmony): headers in the format's own form, and
//! which messages a grammar constrains. Headers are always constrained, so that the reader finds
//! what the model meant; reasoning and free answers are not.

use std::fmt::Write;
use std::sync::Arc;

use kilotok_abi::TokenId;

use super::calls::{self, Writer};
use super::vocabulary::Vocabulary;
use super::{GrammarError, Source, lark, weight};
use crate::harmony::{Channel, FUNCTIONS, FormatToken, FormatTokens, Header};
use crate::{ReasoningStart, Tool};

/// The contents that a reply may have besides reasoning and calls.
pub(super) enum Answer {
    /// Any text, even before a call.
    Free,
    /// A final message that matches the source.
    Shape(Source),
    /// None: the reply must be a call.
    None,
}

/// The grammar of one message, from its header on. It ends where free text begins, or before the
/// message's end token.
pub(super) fn source(
    tools: &[Tool],
    answer: Answer,
    tokens: FormatTokens,
) -> Result<Source, GrammarError> {
    calls::check(tools)?;
    let is_bound = |tool: &&Tool| tool.strict || !matches!(answer, Answer::Free);
    weight::check(tools.iter().filter(is_bound).map(|tool| &tool.parameters))?;
    let marker = |token| format!("<[{}]>", tokens.id(token));
    let [open, close] = [FormatToken::Channel, FormatToken::Message].map(marker);
    let mut writer = Writer::default();
    let mut messages = Vec::new();
    let mut call = |name: &str, arguments: &str, writer: &mut Writer| {
        let place = "(\"commentary\" | \"analysis\")";
        let after_role = format!("{name} {open} {place} type? {close} {arguments}");
        let after_channel = format!("{open} {place} {name} type? {close} {arguments}");
        messages.push(writer.rule("call", &format!("{after_role} | {after_channel}")));
    };
    let mut free = Vec::new();
    for tool in calls::first_of_each_name(tools) {
        let name = lark::literal(&format!(" to={FUNCTIONS}{}", tool.name));
        if is_bound(&tool) {
            let arguments = writer.arguments(tool, None)?;
            call(&name, &arguments, &mut writer);
        } else {
            free.push(name);
        }
    }
    if !free.is_empty() {
        call(&format!("({})", free.join(" | ")), "", &mut writer);
    }
    let said = |channels: &str| format!("{open} ({channels}) {close}");
    match &answer {
        Answer::Free => messages.push(said("\"analysis\" | \"commentary\" | \"final\"")),
        Answer::Shape(_) => {
            messages.extend([said("\"analysis\""), said("\"final\"") + " @shape"]);
        }
        Answer::None => messages.push(said("\"analysis\"")),
    }
    let start = marker(FormatToken::Start);
    let mut rules = format!("start: ({start} \"assistant\")? ({})\n", messages.join(" | "));
    // Writing to a string cannot fail.
    let constrain = marker(FormatToken::Constrain);
    let _ = writeln!(rules, "type: \" \"? {constrain} \"json\" | \" json\" | \" code\"");
    let mut source = writer.finish(&rules);
    if let Answer::Shape(shape) = answer {
        source.append("shape", shape);
    }
    Ok(source)
}

/// The messages that a grammar constrains beyond their header.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) answers: bool,
    /// Names of the functions whose calls are constrained.
    pub(super) functions: Vec<String>,
}

/// Follows the messages of a reply.
#[derive(Clone)]
pub(super) struct MessageListener {
    tokens: FormatTokens,
    bound: Arc<Bound>,
    state: State,
}

#[derive(Clone)]
enum State {
    Header(Header),
    /// In a message that a grammar constrains.
    Bound,
    /// In a message of any text.
    Free,
}

impl MessageListener {
    /// `in_text`: the answer is unconstrained, so a prompt may end within it.
    pub(super) fn new(
        tokens: FormatTokens,
        bound: Bound,
        reasoning: ReasoningStart,
        in_text: bool,
    ) -> Self {
        let state = match reasoning {
            ReasoningStart::Begun => State::Free,
            ReasoningStart::Never if in_text => State::Free,
            ReasoningStart::Never | ReasoningStart::Maybe => State::Header(Header::default()),
        };
        Self { tokens, bound: Arc::new(bound), state }
    }

    /// Whether any text may follow, up to the end of the message.
    pub(super) fn is_free(&self) -> bool {
        matches!(self.state, State::Free)
    }

    /// Adds a token. If a header begins, returns its tokens so far: this token, or none if the
    /// header begins after it.
    pub(super) fn push(&mut self, token: TokenId, vocabulary: &Vocabulary) -> Option<Vec<TokenId>> {
        let which = self.tokens.which(token);
        match (&mut self.state, which) {
            (State::Header(header), Some(FormatToken::Message)) => {
                let function = header.function();
                let is_bound = match function {
                    Some(name) => self.bound.functions.contains(&name),
                    None => self.bound.answers && header.channel() == Some(Channel::Final),
                };
                self.state = if is_bound { State::Bound } else { State::Free };
                None
            }
            (
                State::Header(header),
                Some(token @ (FormatToken::Channel | FormatToken::Constrain)),
            ) => {
                header.begin_section(token);
                None
            }
            (State::Header(header), None) => {
                header.push(vocabulary.text_bytes(token));
                None
            }
            (State::Header(header), Some(_)) => {
                *header = Header::default();
                None
            }
            (
                State::Bound | State::Free,
                None | Some(FormatToken::Message | FormatToken::Constrain),
            ) => None,
            (State::Bound | State::Free, Some(token_of_format)) => {
                let mut header = Header::default();
                header.begin_section(token_of_format);
                self.state = State::Header(header);
                let begins = [FormatToken::Start, FormatToken::Channel].contains(&token_of_format);
                Some(if begins { vec![token] } else { Vec::new() })
            }
        }
    }
}
