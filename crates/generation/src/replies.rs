//! All replies of one request: its grammar is compiled, its replies are submitted together, and
//! their increments are returned in the order in which they are generated.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use kilotok_abi::TokenId;
use kilotok_sched::Submission;
use kilotok_text::{
    Constraint, Grammar, GrammarError, Grammars, ReasoningStart, ReplyOptions, Text,
};
use tokio::sync::Semaphore;

use crate::admission::{Admission, Refusal, ReplyRequest};
use crate::increment::{Failure, Increment};
use crate::reply_stream::ReplyStream;

/// Most grammars that are compiled at once. More would only take the cores from one another.
const COMPILING_MAX: usize = 4;

/// A request whose values are checked and resolved.
pub struct GenerationRequest {
    /// The id by which [`Admission::abort`] ends its replies.
    pub request_id: String,
    /// Each prompt gets `n` replies.
    pub prompts: Vec<Arc<[TokenId]>>,
    pub n: u32,
    /// Its prompt is empty, and its seed is that of the first reply.
    pub submission: Submission,
    /// The constraint that each reply must match.
    pub constraint: Option<Constraint>,
    /// How tokens become text, and which texts end a reply.
    pub reply: ReplyOptions,
    /// The request's own tokens that end a reply.
    pub stop_tokens: Vec<TokenId>,
    /// Number of tokens for which an increment waits; the first and the last increment do not wait.
    pub interval: u32,
}

/// The reason why no reply was started.
#[derive(Debug)]
pub enum StartError {
    Refused(Refusal),
    Grammar(GrammarError),
    /// The thread that compiled the grammar was lost.
    Lost,
}

impl From<Refusal> for StartError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Starts replies. One serves all requests.
pub struct Generator {
    admission: Admission,
    text: Arc<Text>,
    grammars: Arc<Grammars>,
    compiling: Arc<Semaphore>,
}

impl Generator {
    pub fn new(admission: Admission, text: Arc<Text>, grammars: Arc<Grammars>) -> Self {
        Self { admission, text, grammars, compiling: Arc::new(Semaphore::new(COMPILING_MAX)) }
    }

    /// Submits all replies of a request together, so that its prompts share steps from the first
    /// on. A request without prompts has no replies.
    pub async fn start(&self, request: &GenerationRequest) -> Result<Replies, StartError> {
        if request.prompts.is_empty() {
            return Ok(Replies { streams: Vec::new(), turn: 0, warnings: Vec::new() });
        }
        let grammar = match &request.constraint {
            Some(constraint) => Some(self.compile(constraint, request.reply.reasoning).await?),
            None => None,
        };
        let one = |prompt: &[TokenId], number| {
            let mut submission = request.submission.clone();
            submission.prompt = prompt.to_vec();
            let seed = &mut submission.setup.sampling.seed;
            *seed = seed_of(*seed, number);
            if grammar.as_ref().is_some_and(Grammar::ends_reply) {
                // Where the grammar ends, only an end token is allowed. The reply must end there,
                // even if the request ignores the model's end tokens.
                let end_tokens = &mut submission.setup.end_tokens;
                end_tokens.extend_from_slice(&self.text.defaults().end_tokens);
            }
            let (request_id, grammar) = (request.request_id.clone(), grammar.clone());
            ReplyRequest { request_id, submission, grammar }
        };
        let copies =
            |prompt: &Arc<[TokenId]>| (0..request.n).map(|number| one(prompt, number)).collect();
        let prompts = request.prompts.iter().map(copies).collect();
        let streams = self.admission.submit_all(prompts).await?;
        let reply = |tokens| Some(ReplyStream::new(tokens, request, &self.text));
        Ok(Replies {
            streams: streams.into_iter().map(reply).collect(),
            turn: 0,
            warnings: grammar.map_or_else(Vec::new, |grammar| grammar.warnings().to_vec()),
        })
    }

    /// Compiles a grammar on another thread. It stops if the caller no longer waits.
    async fn compile(
        &self,
        constraint: &Constraint,
        reasoning: ReasoningStart,
    ) -> Result<Grammar, StartError> {
        struct CancelOnDrop(Arc<AtomicBool>);
        impl Drop for CancelOnDrop {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _reservation = self.admission.reserve()?;
        let (grammars, constraint) = (Arc::clone(&self.grammars), constraint.clone());
        let cancel = CancelOnDrop(Arc::default());
        let cancelled = Arc::clone(&cancel.0);
        // A request that waits for its turn occupies no thread.
        let turn = Arc::clone(&self.compiling).acquire_owned().await;
        let turn = turn.map_err(|_| StartError::Lost)?;
        let compile = move || {
            let _turn = turn;
            grammars.compile(&constraint, reasoning, &|| cancelled.load(Ordering::Relaxed))
        };
        let compiled = tokio::task::spawn_blocking(compile).await;
        compiled.map_err(|_| StartError::Lost)?.map_err(StartError::Grammar)
    }

    /// The permits to compile grammars.
    #[cfg(test)]
    pub(crate) fn compiling(&self) -> Arc<Semaphore> {
        Arc::clone(&self.compiling)
    }
}

/// See the file's head. Dropping this cancels all replies.
pub struct Replies {
    /// Ordered by prompt, then by number of the reply; `None` once the reply is over.
    streams: Vec<Option<ReplyStream>>,
    /// The stream that is polled first. It rotates, so that no stream is always last.
    turn: usize,
    warnings: Vec<String>,
}

impl Replies {
    /// Parts of the constraint that no grammar enforces.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The next increment of any reply, with the reply's index; `None` when all are over. A failure
    /// ends all replies.
    pub async fn next(&mut self) -> Option<Result<(usize, Increment), Failure>> {
        poll_fn(|context| {
            let count = self.streams.len();
            let mut running = false;
            for step in 0..count {
                let index = (self.turn + step) % count;
                let Some(stream) = &mut self.streams[index] else { continue };
                match stream.poll_next(context) {
                    Poll::Pending => running = true,
                    Poll::Ready(None) => self.streams[index] = None,
                    Poll::Ready(Some(Ok(increment))) => {
                        self.turn = index + 1;
                        if increment.finish.is_some() {
                            self.streams[index] = None;
                        }
                        return Poll::Ready(Some(Ok((index, increment))));
                    }
                    Poll::Ready(Some(Err(failure))) => {
                        self.streams.clear();
                        return Poll::Ready(Some(Err(failure)));
                    }
                }
            }
            if running { Poll::Pending } else { Poll::Ready(None) }
        })
        .await
    }
}

/// The seed of the reply `number` of a request. The first reply has the request's own seed.
fn seed_of(seed: u64, number: u32) -> u64 {
    if number == 0 {
        return seed;
    }
    // The finalizer of splitmix64, which makes seeds of adjacent numbers unrelated.
    let mut x = seed ^ u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn seeds_of_replies_differ_and_repeat() {
        let seeds: BTreeSet<_> =
            (0..64).flat_map(|seed| (0..64).map(move |number| seed_of(seed, number))).collect();
        assert_eq!(seeds.len(), 64 * 64);
        assert_eq!(seed_of(9, 0), 9);
        assert_eq!(seed_of(9, 5), seed_of(9, 5));
    }
}
