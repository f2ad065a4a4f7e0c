//! What every format's reader of replies is: a state machine over the tokens of one reply.

use kilotok_abi::TokenId;

use super::events::Events;

/// How a reader takes a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenUse {
    /// As any other: as text, unless it is a special token and these are left out.
    Ordinary,
    /// As text, also where special tokens are left out.
    Text,
    /// Not as text: it says what the text before and after it is.
    Markup,
}

/// Reads one reply. It takes whatever the model writes: at worst markup appears as text.
pub(crate) trait Reader: Send {
    /// How the next token is taken, if it is this one.
    fn token_use(&self, token: TokenId) -> TokenUse;

    /// A token that is [`TokenUse::Markup`], and its bytes. All text before it has come.
    fn markup(&mut self, token: TokenId, bytes: &[u8], events: &mut Events);

    /// A character of the text.
    fn character(&mut self, character: char, events: &mut Events);

    /// Whether the next token belongs to reasoning.
    fn is_reasoning(&self) -> bool;

    /// Whether the only call that the reply may have is complete.
    fn is_over(&self) -> bool;

    /// Nothing more comes; `cut` short if the model did not end it. Then a call stays as far as it
    /// came, and markup that is not whole is left out.
    fn finish(&mut self, cut: bool, events: &mut Events);
}

/// All is content.
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
