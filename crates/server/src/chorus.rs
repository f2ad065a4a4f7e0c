//! All replies of one request: asked for, then told piece by piece in the order in which they come.
//! Dropping it ends them all.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use axum::http::StatusCode;
use kilotok_abi::TokenId;
use kilotok_text::Grammar;

use crate::choice::{Choice, Finish, Piece};
use crate::error::ApiError;
use crate::params::Job;
use crate::params::sampling::seed_of;
use crate::service::Service;
use crate::tally::Tally;
use crate::unenforced;
use kilotok_generation::gate::Ask;

/// See the file's head.
pub(crate) struct Chorus {
    /// By prompt, then by number; None when over.
    choices: Vec<Option<Choice>>,
    /// Who is asked first, so that nobody is always last.
    turn: usize,
    /// Pieces that are known already.
    ready: VecDeque<(usize, Piece)>,
    /// What the client asked for and does not get.
    warnings: Vec<String>,
}

impl Chorus {
    /// Asks for all replies of a request at once: its prompts share steps from the first on.
    pub(crate) async fn start(service: &Arc<Service>, job: &Job) -> Result<Self, ApiError> {
        let grammar = grammar(service, job).await?;
        let ask = |prompt: &[TokenId], number| {
            let mut submission = job.submission.clone();
            submission.prompt = prompt.to_vec();
            let seed = &mut submission.setup.sampling.seed;
            *seed = seed_of(*seed, number);
            if grammar.as_ref().is_some_and(Grammar::ends_reply) {
                // At the end of a grammar there is nothing else to say.
                let end_tokens = &mut submission.setup.end_tokens;
                end_tokens.extend_from_slice(&service.text.defaults().end_tokens);
            }
            Ask { request_id: job.id.known_as(), submission, grammar: grammar.clone() }
        };
        let asks = |prompt: &Arc<[TokenId]>| (0..job.n).map(|number| ask(prompt, number)).collect();
        let tickets = service.gate.submit_all(job.prompts.iter().map(asks).collect()).await;
        job.id.prompt_made();
        let tickets =
            tickets.map_err(|refusal| ApiError::from_refusal(refusal, job.prompt_param))?;
        let counts = job.prompts.iter().flat_map(|prompt| (0..job.n).map(|_| prompt.len() as u32));
        let choices = tickets
            .into_iter()
            .zip(counts)
            .map(|(ticket, count)| Some(Choice::new(ticket, job, count, &service.text)));
        let warnings = grammar.as_ref().map_or(&[][..], Grammar::warnings);
        let warnings = unenforced::told(warnings);
        Ok(Self { choices: choices.collect(), turn: 0, ready: VecDeque::new(), warnings })
    }

    /// What the client asked for and does not get.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Replies without a token: the engine has nothing to do.
    pub(crate) fn of_nothing(job: &Job) -> Self {
        let replies = job.prompts.iter().flat_map(|prompt| (0..job.n).map(|_| prompt.len() as u32));
        let silent = |prompt_count| Piece {
            tally: Tally::new(prompt_count),
            finish: Some(Finish::Length),
            ..Piece::default()
        };
        let ready = replies.map(silent).enumerate().collect();
        Self { choices: Vec::new(), turn: 0, ready, warnings: Vec::new() }
    }

    /// The next piece of any reply, and whose it is; None when all are over. An error ends all.
    pub(crate) async fn next(&mut self) -> Option<Result<(usize, Piece), ApiError>> {
        if let Some(piece) = self.ready.pop_front() {
            return Some(Ok(piece));
        }
        poll_fn(|context| {
            let count = self.choices.len();
            let mut running = false;
            for step in 0..count {
                let index = (self.turn + step) % count;
                let Some(choice) = &mut self.choices[index] else { continue };
                match choice.poll_next(context) {
                    Poll::Pending => running = true,
                    Poll::Ready(None) => self.choices[index] = None,
                    Poll::Ready(Some(Ok(piece))) => {
                        self.turn = index + 1;
                        if piece.finish.is_some() {
                            self.choices[index] = None;
                        }
                        return Poll::Ready(Some(Ok((index, piece))));
                    }
                    Poll::Ready(Some(Err(error))) => {
                        self.choices.clear();
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
            if running { Poll::Pending } else { Poll::Ready(None) }
        })
        .await
    }
}

/// The grammar, compiled on a thread of its own for as long as somebody waits for it.
async fn grammar(service: &Arc<Service>, job: &Job) -> Result<Option<Grammar>, ApiError> {
    struct Cancel(Arc<AtomicBool>);
    impl Drop for Cancel {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let Some((constraint, param)) = job.constraint.clone() else { return Ok(None) };
    let _place = service.place()?;
    let (grammars, reasoning) = (Arc::clone(&service.grammars), job.reply.reasoning);
    let cancel = Cancel(Arc::default());
    let cancelled = Arc::clone(&cancel.0);
    let lost = || {
        let message = "preparing the grammar failed";
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    };
    // Whoever waits for a turn takes no thread.
    let turn = Arc::clone(&service.compiling).acquire_owned().await.map_err(|_| lost())?;
    let compile = move || {
        let _turn = turn;
        grammars.compile(&constraint, reasoning, &|| cancelled.load(Ordering::Relaxed))
    };
    match tokio::task::spawn_blocking(compile).await {
        Ok(Ok(grammar)) => {
            service.unenforced.note(grammar.warnings(), &service.metrics);
            Ok(Some(grammar))
        }
        Ok(Err(error)) => Err(ApiError::from_grammar(&error, param)),
        Err(_) => Err(lost()),
    }
}
