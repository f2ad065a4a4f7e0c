//! Compiles grammars on separate threads, so that a caller can stop waiting: few at a time, with
//! stacks that fit the deepest allowed constraint. It also turns the library's errors into messages
//! for users.

use std::fmt::Display;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Logger, Matcher, ParserFactory};

use super::GrammarError;

/// Most grammars that are compiled at once. One whose caller has stopped waiting still counts, so
/// the fuel of all together is bounded.
const RUNNING_MAX: u32 = 4;
/// Longest time between two checks of a caller's cancellation.
const CANCEL_CHECK: Duration = Duration::from_millis(5);
/// The library recurses over schemas, properties and rules. Stack that is not touched costs
/// nothing.
const STACK_BYTES: usize = 64 << 20;

/// The pool of threads that compile grammars.
pub(super) struct CompilePool {
    places: Arc<Places>,
    stack_bytes: usize,
}

impl Default for CompilePool {
    fn default() -> Self {
        Self::with_stack(STACK_BYTES)
    }
}

#[derive(Default)]
struct Places {
    running: Mutex<u32>,
    freed: Condvar,
}

/// A place in the pool. Dropping it gives the place back.
struct Place(Arc<Places>);

impl CompilePool {
    pub(super) fn with_stack(stack_bytes: usize) -> Self {
        Self { places: Arc::default(), stack_bytes }
    }

    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, GrammarError> + Send + 'static,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<T, GrammarError> {
        let place = self.enter(cancelled)?;
        let (sender, receiver) = sync_channel(1);
        let body = move || {
            let result = work();
            drop(place);
            // The receiver is gone if the request was cancelled.
            let _ = sender.send(result);
        };
        let builder = thread::Builder::new().name("kilotok-grammar".to_owned());
        let spawned = builder.stack_size(self.stack_bytes).spawn(body);
        spawned.map_err(|error| GrammarError::NoThread(error.to_string()))?;
        loop {
            match receiver.recv_timeout(CANCEL_CHECK) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) if cancelled() => {
                    return Err(GrammarError::Cancelled);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let text = "compiling the grammar panicked";
                    return Err(GrammarError::Fault(text.to_owned()));
                }
            }
        }
    }

    fn enter(&self, cancelled: &dyn Fn() -> bool) -> Result<Place, GrammarError> {
        let mut running = self.places.lock();
        while *running >= RUNNING_MAX {
            let waited = self.places.freed.wait_timeout(running, CANCEL_CHECK);
            running = waited.unwrap_or_else(PoisonError::into_inner).0;
            if cancelled() {
                return Err(GrammarError::Cancelled);
            }
        }
        *running += 1;
        Ok(Place(Arc::clone(&self.places)))
    }
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, u32> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.freed.notify_one();
    }
}

/// A compiled grammar, before the first token of a reply.
pub(super) struct Compiled {
    pub(super) matcher: Matcher,
    /// The parts of the constraint that are not enforced, as messages for people.
    pub(super) warnings: Arc<[String]>,
}

impl Clone for Compiled {
    fn clone(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), warnings: Arc::clone(&self.warnings) }
    }
}

/// A matcher that has been checked to have a first token.
pub(super) fn matcher(
    factory: &ParserFactory,
    grammar: TopLevelGrammar,
    limits: ParserLimits,
) -> Result<Matcher, GrammarError> {
    let (init, quiet) = (GrammarInit::Serialized(grammar), Logger::new(0, 0));
    let none = InferenceCapabilities::default();
    let parser = factory.create_parser_from_init_ext(init, quiet, none, limits);
    let parser = parser.map_err(library_error)?;
    let lexer = parser.parser.grammar().lexer_spec();
    if !lexer.can_rollback() {
        let text = "the grammar uses `stop=` or `max_tokens=`, which do not go together with \
                    drafts; `suffix=` does";
        return Err(GrammarError::Invalid(text.to_owned()));
    }
    let mut matcher = Matcher::new(Ok(parser));
    matcher.compute_mask_or_eos().map_err(library_error)?;
    Ok(matcher)
}

/// Phrases in the library's messages about limits; the library has no error codes.
const TOO_LARGE: &[&str] = &[
    "too big",
    "too large",
    "too many expressions",
    "too many states",
    "too many items",
    "too deeply",
    "fuel",
    "stack level exceeded",
    "items; max is",
    "Unable to determine if regex is empty",
    "LexerTooComplex",
    "ParserTooComplex",
];

/// Longest message that is passed on.
const MESSAGE_BYTES_MAX: usize = 1000;

/// Translates an error of llguidance for a user.
pub(super) fn library_error(error: impl Display) -> GrammarError {
    let text = format!("{error:#}");
    // The text from these tags on is for llguidance's authors.
    let end = ["<non-verbose/>", "<backtrace>", "<state>"].iter().filter_map(|tag| text.find(tag));
    let end = end.min().unwrap_or(text.len()).min(text.floor_char_boundary(MESSAGE_BYTES_MAX));
    let text = text[..end].trim().to_owned();
    if text.contains("NoExtensionBias") {
        GrammarError::Invalid("the grammar matches nothing".to_owned())
    } else if TOO_LARGE.iter().any(|words| text.to_lowercase().contains(&words.to_lowercase())) {
        GrammarError::TooLarge(format!("the grammar is too complex: {text}"))
    } else {
        GrammarError::Invalid(format!("the grammar cannot be used: {text}"))
    }
}
