//! The interface of every format's reader: a state machine over the tokens of one reply.

use kilotok_abi::TokenId;

use super::events::Events;

/// How a reader treats a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenUse {
    /// As text, unless it is a special token and special tokens are left out.
    Ordinary,
    /// As text, even if special tokens are left out.
    Text,
    /// As markup, which tells what the text before and after it is.
    Markup,
}

/// Reads one reply. A reader accepts whatever the model writes: at worst markup appears as text.
pub(crate) trait Reader: Send {
    /// How this token would be treated if it came next.
    fn token_use(&self, token: TokenId) -> TokenUse;

    /// Handles a token that is [`TokenUse::Markup`], and its bytes. All text before it has been
    /// passed on.
    fn markup(&mut self, token: TokenId, bytes: &[u8], events: &mut Events);

    /// Handles a character of text.
    fn character(&mut self, character: char, events: &mut Events);

    /// Whether the next token belongs to reasoning.
    fn is_reasoning(&self) -> bool;

    /// Whether the reply may have only one call and that call is complete.
    fn is_over(&self) -> bool;

    /// Ends the reply. `cut` means that the model did not end it: an incomplete call then stays as
    /// it is, and incomplete markup is left out.
    fn finish(&mut self, cut: bool, events: &mut Events);
}

/// The whole reply is content.
pub(super) struct Verbatim;

impl Reader for Verbatim {
    fn token_use(&self, _: TokenId) -> TokenUse {
        TokenUse::Ordinary
    }

    fn markup(&mut self, _: TokenId, _: &[u8], _: &mut Events) {}

    fn character(&mut self, character: char, events: &mut Events) {
        events.content(character);
    }

    fn is_reasoning(&self) -> bool {
        false
    }

    fn is_over(&self) -> bool {
        false
    }

    fn finish(&mut self, _: bool, _: &mut Events) {}
}
