//! What a reply said, put together from its pieces; and log-probabilities, in the words of each
//! API. Knows nothing of streams.

use kilotok_abi::TokenId;
use kilotok_engine::{TokenLogprob, TokenLogprobs};
use kilotok_text::{Event, Text};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::choice::{Finish, Piece};
use crate::tally::Tally;
use crate::wire::logprobs::{ChatLogprob, Pairs, PromptLogprob, PromptLogprobs, TopLogprob};
use crate::wire::tools::{CalledCustom, CalledFunction, ToolCall};

/// A whole reply.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) content: String,
    pub(crate) reasoning: String,
    pub(crate) calls: Vec<ToolCall>,
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    pub(crate) scored: Vec<TokenLogprobs>,
    pub(crate) tally: Tally,
    pub(crate) finish: Option<Finish>,
}

impl Said {
    /// So many replies from all their pieces.
    pub(crate) fn all(count: usize, pieces: Vec<(usize, Piece)>) -> Vec<Self> {
        let mut said: Vec<_> = (0..count).map(|_| Self::default()).collect();
        for (index, piece) in pieces {
            said[index].add(piece);
        }
        said
    }

    fn add(&mut self, piece: Piece) {
        for event in piece.events {
            match event {
                Event::Content(text) => self.content.push_str(&text),
                Event::Reasoning(text) => self.reasoning.push_str(&text),
                Event::Call { name, takes_text, .. } => {
                    let (id, text) = (call_id(), String::new());
                    self.calls.push(if takes_text {
                        ToolCall::Custom { id, custom: CalledCustom { name, input: text } }
                    } else {
                        ToolCall::Function {
                            id,
                            function: CalledFunction { name, arguments: text },
                        }
                    });
                }
                Event::Arguments { index, text } => match self.calls.get_mut(index as usize) {
                    Some(ToolCall::Function { function, .. }) => function.arguments.push_str(&text),
                    Some(ToolCall::Custom { custom, .. }) => custom.input.push_str(&text),
                    None => {}
                },
            }
        }
        self.tokens.extend(piece.tokens);
        self.logprobs.extend(piece.logprobs);
        self.scored.extend(piece.scored);
        self.tally = piece.tally;
        self.finish = piece.finish;
    }

    pub(crate) fn finish_reason(&self) -> &'static str {
        self.finish.as_ref().map_or("stop", finish_reason)
    }

    pub(crate) fn stop_reason(&self) -> Value {
        self.finish.as_ref().map_or(Value::Null, stop_reason)
    }
}

/// In OpenAI's words.
pub(crate) fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::End | Finish::StopToken(_) | Finish::StopString(_) => "stop",
        Finish::Calls => "tool_calls",
        Finish::Length => "length",
        Finish::Aborted => "abort",
    }
}

/// In vLLM's: the string or token that ended the reply.
pub(crate) fn stop_reason(finish: &Finish) -> Value {
    match finish {
        Finish::StopToken(token) => json!(token),
        Finish::StopString(text) => json!(text),
        _ => Value::Null,
    }
}

/// A new name for a call.
pub(crate) fn call_id() -> String {
    let id = Uuid::new_v4().simple().to_string();
    format!("call_{}", &id[..24])
}

/// How tokens are written.
#[derive(Clone, Copy)]
pub(crate) struct Spelling<'a> {
    pub(crate) text: &'a Text,
    pub(crate) as_ids: bool,
}

impl Spelling<'_> {
    pub(crate) fn token(&self, token: TokenId) -> String {
        if self.as_ids { format!("token_id:{token}") } else { self.text.token_text(token) }
    }

    fn bytes(&self, token: TokenId) -> Option<Vec<u8>> {
        self.text.token_bytes(token).map(<[u8]>::to_vec)
    }

    /// Of a chat reply.
    pub(crate) fn chat(&self, logprobs: &TokenLogprobs, top_count: u32) -> ChatLogprob {
        let top = logprobs.top.iter().take(top_count as usize);
        let top = top.map(|TokenLogprob { token, logprob }| TopLogprob {
            token: self.token(*token),
            logprob: finite(*logprob),
            bytes: self.bytes(*token),
        });
        ChatLogprob {
            token: self.token(logprobs.chosen.token),
            logprob: finite(logprobs.chosen.logprob),
            bytes: self.bytes(logprobs.chosen.token),
            top_logprobs: top.collect(),
        }
    }

    /// The likeliest tokens of a position and the chosen one, as a map. Of tokens that look the
    /// same the likelier one counts.
    pub(crate) fn top(&self, logprobs: &TokenLogprobs, top_count: u32) -> Pairs<String, f32> {
        let mut pairs = Pairs(Vec::new());
        let top = logprobs.top.iter().take(top_count as usize);
        for TokenLogprob { token, logprob } in top.chain([&logprobs.chosen]) {
            pairs.add(self.token(*token), finite(*logprob));
        }
        pairs
    }

    /// Of a prompt, in vLLM's form. The first token has none.
    pub(crate) fn prompt(&self, scored: &[TokenLogprobs], top_count: u32) -> PromptLogprobs {
        let told = |rank, entry: &TokenLogprob| PromptLogprob {
            logprob: finite(entry.logprob),
            rank,
            decoded_token: self.text.token_text(entry.token),
        };
        let position = |logprobs: &TokenLogprobs| {
            let mut pairs = Pairs(Vec::new());
            for (rank, top) in (1..).zip(logprobs.top.iter().take(top_count as usize)) {
                pairs.add(top.token, told(rank, top));
            }
            let chosen = &logprobs.chosen;
            pairs.add(chosen.token, told(logprobs.rank + 1, chosen));
            Some(pairs)
        };
        std::iter::once(None).chain(scored.iter().map(position)).collect()
    }
}

/// JSON has no infinity; what is impossible gets vLLM's number for it.
pub(crate) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob.max(-9999.0) } else { -9999.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_ids_look_like_openais() {
        let id = call_id();
        let hex = id.strip_prefix("call_").unwrap();
        assert!(hex.len() == 24 && hex.chars().all(|c| c.is_ascii_hexdigit()), "{id}");
        assert_ne!(id, call_id());
    }

    #[test]
    fn a_reply_is_its_pieces() {
        let mut said = Said::default();
        let call = |name: &str, index| Event::Call { index, name: name.into(), takes_text: false };
        let arguments = |text: &str, index| Event::Arguments { index, text: text.into() };
        for events in [
            vec![Event::Reasoning("hm".into()), Event::Content("a".into())],
            vec![Event::Content("b".into()), call("f", 0), arguments("{\"x\":", 0)],
            vec![arguments("1}", 0), call("g", 1), arguments("{}", 1)],
        ] {
            said.add(Piece { events, tokens: vec![1], ..Piece::default() });
        }
        assert_eq!((said.content.as_str(), said.reasoning.as_str()), ("ab", "hm"));
        let calls = said.calls.iter().map(|call| match call {
            ToolCall::Function { function: CalledFunction { name, arguments }, .. } => {
                (name.as_str(), arguments.as_str())
            }
            ToolCall::Custom { custom: CalledCustom { name, input }, .. } => (&**name, &**input),
        });
        let calls: Vec<_> = calls.collect();
        assert_eq!(calls, [("f", "{\"x\":1}"), ("g", "{}")]);
        assert_eq!(said.tokens, [1, 1, 1]);
    }

    #[test]
    fn infinities_have_a_number() {
        assert_eq!(finite(f32::NEG_INFINITY), -9999.0);
        assert_eq!(finite(-0.5), -0.5);
    }
}
