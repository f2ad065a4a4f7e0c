//! Resolves the fields that requests share: how tokens are sampled, and when a reply ends. Defaults
//! come from the checkpoint, then from OpenAI's documentation.

use std::collections::{BTreeMap, BTreeSet};

use kilotok_abi::{BAD_TOKENS_MAX, FORBIDDEN, Sampling, TokenId};
use kilotok_engine::SlotSetup;
use kilotok_generation::{GenerationRequest, Submission};
use kilotok_text::{ReplyOptions, Text};
use uuid::Uuid;

use super::ranges::{at_most, count, outside, within};
use crate::error::ApiError;
use crate::service::Service;
use crate::wire::generation::GenerationFields;

/// The resolved values of the shared fields.
pub(crate) struct ResolvedParams {
    /// Id, prompts and constraint are not set yet. Each API sets how its replies are parsed.
    pub(crate) generation: GenerationRequest,
    pub(crate) truncate: Option<Truncate>,
    /// Log-probabilities of the prompt are wanted, with this many alternatives.
    pub(crate) prompt_logprobs: Option<u32>,
    pub(crate) token_ids: bool,
    pub(crate) tokens_as_ids: bool,
}

/// How a prompt that is too long is truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Truncate {
    /// How many tokens to keep; if absent, all that fit.
    pub(crate) keep: Option<u32>,
    /// Keeps the beginning of the prompt instead of its end.
    pub(crate) right: bool,
}

/// Most tokens of a list: as many as fit into a slot's tables.
const TOKENS_MAX: usize = 1024;
/// One level is worth 256 later arrivals, so no request is overtaken by more than some 50,000
/// others.
const PRIORITY_MAX: i64 = 100;
const STOP_BYTES_MAX: usize = 1024;
const WORD_BYTES_MAX: usize = 256;
/// Most bytes of all bad words together. They are checked before the words are tokenized: each word
/// becomes two lists of tokens, and few tokens of words are longer than 8 bytes.
const WORDS_BYTES_MAX: usize = BAD_TOKENS_MAX * 8 / 2;
const INTERVAL_MAX: i64 = 1024;
const SALT_CHARS_MAX: usize = 128;

/// Checks every field and fills in the defaults. An error names the field.
pub(crate) fn resolve(
    fields: &GenerationFields,
    service: &Service,
) -> Result<ResolvedParams, ApiError> {
    if fields.stream_options.is_some() && fields.stream != Some(true) {
        let message =
            "stream_options: only a stream has them; set stream to true, or leave them out";
        return Err(ApiError::bad("stream_options", message));
    }
    let vocab = service.admission.caps().vocab_size;
    let n_max = service.config.n_max.min(service.admission.held_max());
    let n = count("n", fields.n, 1, i64::from(n_max))?.unwrap_or(1);
    let token_max = count("max_tokens", fields.max_tokens, 0, i64::MAX)?;
    let token_max = token_max.or(service.config.token_max_default).unwrap_or(u32::MAX);
    let stop_tokens = fields.stop_token_ids.as_deref().unwrap_or_default();
    at_most("stop_token_ids", stop_tokens, TOKENS_MAX)?;
    let stop_tokens = tokens("stop_token_ids", stop_tokens, vocab)?;
    let sampling = sampling(fields, &service.text, token_max)?;
    let mut setup = SlotSetup::new(sampling, 0);
    // A seeded reply is the same with and without drafts and in any batch, so rejection sampling is
    // not for it.
    let draws = fields.seed.is_none() && !sampling.is_greedy();
    if draws || !service.config.verification.is_rejection() {
        setup.verification = service.config.verification;
    }
    setup.end_tokens.clone_from(&stop_tokens);
    if fields.ignore_eos != Some(true) {
        setup.end_tokens.extend_from_slice(&service.text.defaults().end_tokens);
    }
    setup.logit_bias = biases(fields, vocab)?;
    setup.bad_words = bad_words(fields.bad_words.as_deref().unwrap_or_default(), &service.text)?;
    let mut submission = Submission::new(Vec::new(), setup, token_max);
    submission.priority = priority(fields.priority, service.config.allow_priority)?;
    submission.cache_salt = salt(fields.cache_salt.clone())?;
    submission.drafts = fields.drafts.unwrap_or(true);
    let stop = fields.stop.as_ref().map_or(&[][..], |stop| &stop.0);
    check_stops("stop", stop, service.config.stop_max)?;
    let reply = ReplyOptions {
        stop: stop.to_vec(),
        include_stop: fields.include_stop_str_in_output.unwrap_or_default(),
        min_tokens: submission.setup.sampling.min_tokens,
        skip_special: fields.skip_special_tokens.unwrap_or(true),
        parallel_calls: true,
        ..ReplyOptions::default()
    };
    let generation = GenerationRequest {
        request_id: String::new(),
        prompts: Vec::new(),
        n,
        submission,
        constraint: None,
        reply,
        stop_tokens,
        interval: count("stream_interval", fields.stream_interval, 1, INTERVAL_MAX)?.unwrap_or(1),
    };
    Ok(ResolvedParams {
        generation,
        truncate: truncate(fields)?,
        prompt_logprobs: alternatives("prompt_logprobs", fields.prompt_logprobs, service)?,
        token_ids: fields.return_token_ids.unwrap_or_default(),
        tokens_as_ids: fields.return_tokens_as_token_ids.unwrap_or_default(),
    })
}

/// Checks the number of alternatives for each token.
pub(crate) fn alternatives(
    name: &str,
    asked: Option<i64>,
    service: &Service,
) -> Result<Option<u32>, ApiError> {
    count(name, asked, 0, i64::from(service.admission.caps().logprobs_max.min(20)))
}

fn sampling(fields: &GenerationFields, text: &Text, token_max: u32) -> Result<Sampling, ApiError> {
    let defaults = text.defaults();
    let pick = |name, value: Option<f64>, low: f64, high: f64, default: Option<f32>, else_: f32| {
        let value = within(name, value, low, high)?.map(|value| value as f32);
        Ok::<_, ApiError>(value.or(default).unwrap_or(else_))
    };
    let top_p = pick("top_p", fields.top_p, 0.0, 1.0, defaults.top_p, 1.0)?;
    if fields.top_p == Some(0.0) {
        return Err(outside("top_p", &0, "above 0 and at most 1"));
    }
    let top_k = within("top_k", fields.top_k, -1, i64::from(i32::MAX))?;
    let min_tokens = count("min_tokens", fields.min_tokens, 0, i64::MAX)?.unwrap_or_default();
    if min_tokens > token_max {
        let message = format!(
            "min_tokens: {min_tokens} is more than the reply may have, which is {token_max}; raise \
             max_tokens"
        );
        return Err(ApiError::bad("min_tokens", message));
    }
    Ok(Sampling {
        seed: fields.seed.map_or_else(random_seed, |seed| seed as u64),
        temperature: pick("temperature", fields.temperature, 0.0, 2.0, defaults.temperature, 1.0)?,
        // Smaller values are not f32 numbers.
        top_p: top_p.max(f32::MIN_POSITIVE),
        min_p: pick("min_p", fields.min_p, 0.0, 1.0, defaults.min_p, 0.0)?,
        repetition_penalty: pick(
            "repetition_penalty",
            fields.repetition_penalty,
            0.01,
            10.0,
            defaults.repetition_penalty,
            1.0,
        )?,
        presence_penalty: penalty("presence_penalty", fields.presence_penalty)?,
        frequency_penalty: penalty("frequency_penalty", fields.frequency_penalty)?,
        top_k: top_k.map_or(defaults.top_k.unwrap_or(0), |top_k| top_k.max(0) as u32),
        min_tokens,
    })
}

fn penalty(name: &str, value: Option<f64>) -> Result<f32, ApiError> {
    Ok(within(name, value, -2.0, 2.0)?.unwrap_or_default() as f32)
}

fn random_seed() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    // Each half has a few fixed bits; the rotation puts them onto random bits of the other half.
    high ^ low.rotate_left(32)
}

fn tokens(name: &str, ids: &[i64], vocab: u32) -> Result<Vec<TokenId>, ApiError> {
    let token = |(index, id): (usize, &i64)| match u32::try_from(*id) {
        Ok(token) if token < vocab => Ok(token),
        _ => Err(outside(&format!("{name}[{index}]"), id, &vocabulary(vocab))),
    };
    ids.iter().enumerate().map(token).collect()
}

fn vocabulary(vocab: u32) -> String {
    format!("a token id between 0 and {}", vocab - 1)
}

fn biases(fields: &GenerationFields, vocab: u32) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let none = BTreeMap::new();
    let wanted = fields.logit_bias.as_ref().unwrap_or(&none);
    let mut biases = Vec::with_capacity(wanted.len());
    if wanted.len() > TOKENS_MAX {
        let message =
            format!("logit_bias: {} tokens, at most {TOKENS_MAX} are possible", wanted.len());
        return Err(ApiError::bad("logit_bias", message));
    }
    for (key, bias) in wanted {
        let name = format!("logit_bias.{key}");
        let token = key.parse().ok().filter(|token: &u32| *token < vocab);
        let token = token.ok_or_else(|| outside("logit_bias", key, &vocabulary(vocab)))?;
        within(&name, Some(*bias), -100.0, 100.0)?;
        biases.push((token, *bias as f32));
    }
    let Some(allowed) = &fields.allowed_token_ids else { return Ok(biases) };
    at_most("allowed_token_ids", allowed, vocab as usize)?;
    let allowed = tokens("allowed_token_ids", allowed, vocab)?;
    let allowed: BTreeSet<_> = allowed.into_iter().collect();
    if allowed.is_empty() {
        let message = "allowed_token_ids: the list is empty, so that no token may be chosen";
        return Err(ApiError::bad("allowed_token_ids", message));
    }
    biases.retain(|(token, _)| allowed.contains(token));
    let others = (0..vocab).filter(|token| !allowed.contains(token));
    biases.extend(others.map(|token| (token, FORBIDDEN)));
    Ok(biases)
}

/// A word is banned both at the beginning of a text and within it, where its tokens may differ.
fn bad_words(words: &[String], text: &Text) -> Result<Vec<Vec<TokenId>>, ApiError> {
    at_most("bad_words", words, TOKENS_MAX)?;
    let bytes = words.iter().map(String::len).sum::<usize>();
    if bytes > WORDS_BYTES_MAX {
        let message =
            format!("bad_words: {bytes} bytes together, at most {WORDS_BYTES_MAX} are possible");
        return Err(ApiError::bad("bad_words", message));
    }
    let mut banned = BTreeSet::new();
    for (index, word) in words.iter().enumerate() {
        let name = format!("bad_words[{index}]");
        if word.is_empty() || word.len() > WORD_BYTES_MAX {
            let message = format!("{name}: it must have 1 to {WORD_BYTES_MAX} bytes");
            return Err(ApiError::bad(name, message));
        }
        for form in [word.clone(), format!(" {}", word.trim_start())] {
            let tokens = text.encode_plain(&form);
            banned.insert(tokens.map_err(|error| ApiError::from_text(&error, &name))?);
        }
    }
    banned.remove(&Vec::new());
    let count = banned.iter().map(Vec::len).sum::<usize>();
    if count > BAD_TOKENS_MAX {
        let message =
            format!("bad_words: {count} tokens together, at most {BAD_TOKENS_MAX} are possible");
        return Err(ApiError::bad("bad_words", message));
    }
    Ok(banned.into_iter().collect())
}

/// Checks texts that end a reply. An empty one would end every reply before it began.
pub(crate) fn check_stops(name: &str, stops: &[String], stop_max: usize) -> Result<(), ApiError> {
    at_most(name, stops, stop_max)?;
    let fits = |stop: &String| (1..=STOP_BYTES_MAX).contains(&stop.len());
    if let Some(index) = stops.iter().position(|stop| !fits(stop)) {
        let name = format!("{name}[{index}]");
        let message = format!("{name}: it must have 1 to {STOP_BYTES_MAX} bytes");
        return Err(ApiError::bad(name, message));
    }
    Ok(())
}

/// Checks the priority as vLLM does: if scheduling by priority is off, only 0 is allowed.
fn priority(asked: Option<i64>, allowed: bool) -> Result<i32, ApiError> {
    let priority = within("priority", asked, -PRIORITY_MAX, PRIORITY_MAX)?.unwrap_or_default();
    if priority == 0 || allowed {
        return Ok(priority as i32);
    }
    let message = "priority: this server was started without --allow-priority, so only 0 is \
                   possible";
    Err(ApiError::bad("priority", message))
}

pub(crate) fn salt(salt: Option<String>) -> Result<String, ApiError> {
    match salt {
        Some(salt) if salt.is_empty() || salt.chars().count() > SALT_CHARS_MAX => {
            let message = format!("cache_salt: it must have 1 to {SALT_CHARS_MAX} characters");
            Err(ApiError::bad("cache_salt", message))
        }
        salt => Ok(salt.unwrap_or_default()),
    }
}

fn truncate(fields: &GenerationFields) -> Result<Option<Truncate>, ApiError> {
    let right = match fields.truncation_side.as_deref() {
        None | Some("left") => false,
        Some("right") => true,
        Some(other) => {
            let message = format!("truncation_side: {other:?}, it must be \"left\" or \"right\"");
            return Err(ApiError::bad("truncation_side", message));
        }
    };
    let keep = match fields.truncate_prompt_tokens {
        None => return Ok(None),
        Some(-1) => None,
        Some(keep) => {
            let range = "-1 for all that fit, or at least 1";
            let fits = u32::try_from(keep).ok().filter(|keep| *keep > 0);
            Some(fits.ok_or_else(|| outside("truncate_prompt_tokens", &keep, range))?)
        }
    };
    Ok(Some(Truncate { keep, right }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_are_the_operators_choice() {
        assert_eq!(priority(Some(-100), true).unwrap(), -100);
        assert_eq!((priority(None, false).unwrap(), priority(Some(0), false).unwrap()), (0, 0));
        let error = priority(Some(-1), false).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("priority"));
        assert!(error.message.contains("--allow-priority"), "{}", error.message);
        assert!(priority(Some(101), true).unwrap_err().message.contains("-100"));
    }

    #[test]
    fn stops_are_bounded() {
        let long = "x".repeat(2000);
        for (stops, fault) in [
            (vec!["a"; 4], None),
            (vec!["a"; 5], Some("stop")),
            (vec![""], Some("stop[0]")),
            (vec!["a", "", "b"], Some("stop[1]")),
            (vec!["a", &long], Some("stop[1]")),
        ] {
            let stops: Vec<_> = stops.into_iter().map(str::to_owned).collect();
            let param = check_stops("stop", &stops, 4).err().and_then(|error| error.param);
            assert_eq!(param.as_deref(), fault, "{stops:?}");
        }
    }

    #[test]
    fn only_allowed_tokens_keep_their_logits() {
        let asked = GenerationFields {
            allowed_token_ids: Some(vec![1, 3]),
            logit_bias: Some(BTreeMap::from([("1".into(), 2.0), ("2".into(), 5.0)])),
            ..GenerationFields::default()
        };
        let biases = biases(&asked, 5).unwrap();
        assert_eq!(biases, [(1, 2.0), (0, FORBIDDEN), (2, FORBIDDEN), (4, FORBIDDEN)]);
    }

    #[test]
    fn tokens_are_of_the_vocabulary() {
        let bias = |key: &str, bias| {
            let logit_bias = Some(BTreeMap::from([(key.into(), bias)]));
            biases(&GenerationFields { logit_bias, ..GenerationFields::default() }, 5)
        };
        assert_eq!(bias("4", -100.0).unwrap(), [(4, -100.0)]);
        for key in ["5", "-1", "x", "", "1.0"] {
            assert_eq!(bias(key, 1.0).unwrap_err().param.as_deref(), Some("logit_bias"), "{key}");
        }
        let error = bias("4", 100.5).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("logit_bias.4"));
        assert!(error.message.contains("100.5") && error.message.contains("between -100 and 100"));
        let error = tokens("stop_token_ids", &[1, 5], 5).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("stop_token_ids[1]"));
        assert!(error.message.contains("between 0 and 4"), "{}", error.message);
    }

    #[test]
    fn truncation_is_checked() {
        let asked = |keep, side: Option<&str>| GenerationFields {
            truncate_prompt_tokens: keep,
            truncation_side: side.map(str::to_owned),
            ..GenerationFields::default()
        };
        assert_eq!(truncate(&asked(None, Some("right"))).unwrap(), None);
        let all = Truncate { keep: None, right: false };
        assert_eq!(truncate(&asked(Some(-1), None)).unwrap(), Some(all));
        for keep in [0, -2, i64::from(u32::MAX) + 1] {
            let error = truncate(&asked(Some(keep), None)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("truncate_prompt_tokens"));
        }
        assert!(truncate(&asked(Some(3), Some("middle"))).is_err());
    }
}
