//! Replies of the model, read through the public interface: by example, and whatever their tokens.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod any_tokens;
mod examples;
mod speaking;
