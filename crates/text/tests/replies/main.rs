//! Parsing of the model's replies through the public interface: by example, and for any tokens.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod any_tokens;
mod examples;
mod speaking;
