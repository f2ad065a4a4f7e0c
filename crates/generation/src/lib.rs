//! Runs requests on one engine. [`Generator::start`] takes a request whose values are resolved, and
//! [`Replies`] yields its replies, increment by increment. In between, [`Admission`] bounds the
//! number of requests, and the engine's thread plans and runs steps.
//!
//! This crate knows neither HTTP nor JSON: `server` builds requests from the clients' JSON, and
//! encodes the increments of replies.

mod admission;
mod clock;
mod command;
mod completion_rate;
mod engine_thread;
mod health;
mod increment;
mod mask_workers;
pub mod metrics;
mod replies;
mod reply_channel;
mod reply_stream;
mod stats;
mod wake_relay;

pub use admission::{
    Admission, AdmissionOptions, EngineThread, Load, Refusal, ReplyRequest, Reservation,
    TokenStream, WAITING_MAX,
};
pub use clock::Clock;
pub use engine_thread::EngineFailed;
pub use health::Health;
pub use increment::{Failure, FailureKind, FinishReason, Increment};
pub use kilotok_sched::{Limits, Submission};
pub use metrics::Metrics;
pub use replies::{GenerationRequest, Generator, Replies, StartError};
pub use reply_stream::ReplyStream;
pub use stats::ReplyStats;
