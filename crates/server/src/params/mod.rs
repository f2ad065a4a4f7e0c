//! Turns the fields of a request into resolved parameters: every value is checked and every default
//! filled in, the same way for all APIs. This module knows the wire types, but no route.

pub(crate) mod chat_prompt;
pub(crate) mod constraint;
pub(crate) mod content;
pub(crate) mod prompt;
pub(crate) mod ranges;
pub(crate) mod sampling;
pub(crate) mod tools;

use kilotok_generation::{GenerationRequest, Replies, StartError};

use crate::error::ApiError;
use crate::middleware::ReplyId;
use crate::service::Service;

/// A request of any API, ready to be generated.
pub(crate) struct PreparedRequest {
    pub(crate) id: ReplyId,
    pub(crate) generation: GenerationRequest,
    /// The names of the fields that errors of the prompt and of the constraint refer to.
    pub(crate) prompt_param: &'static str,
    pub(crate) constraint_param: &'static str,
}

impl PreparedRequest {
    /// Starts the replies, and gives back the memory that the request held to make its prompt.
    pub(crate) async fn start(mut self, service: &Service) -> Result<Replies, ApiError> {
        self.generation.request_id = self.id.internal();
        let started = service.generator.start(&self.generation).await;
        self.id.release_memory();
        started.map_err(|error| match error {
            StartError::Refused(refusal) => ApiError::from_refusal(refusal, self.prompt_param),
            StartError::Grammar(error) => ApiError::from_grammar(&error, self.constraint_param),
            StartError::Lost => ApiError::internal("preparing the grammar failed"),
        })
    }
}
