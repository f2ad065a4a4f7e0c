//! The requests with which the promises are tested. Each has the reply that it gets when run alone,
//! in as few rows as possible and without drafts. Prompts are several windows long.

use kilotok_abi::{Sampling, TokenId};
use kilotok_engine::{Caps, Engine, PageKind};

use crate::host::{Drafts, Guess, Host, How, Reply, Request};
use crate::mix::{Stream, mix};
use kilotok_engine::difference;

use super::Verdict;

/// Tokens of a reply.
pub(super) const REPLY: u32 = 12;

/// A request and its reply.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) request: Request,
    pub(super) reply: Reply,
}

impl Case {
    pub(super) fn new(
        engine: &mut dyn Engine,
        name: &'static str,
        request: Request,
    ) -> Result<Self, String> {
        let reply = Host::new(engine, 0).run(&request, &How::default());
        let reply = reply.map_err(|error| format!("{name}, alone: {error}"))?;
        Ok(Self { name, request, reply })
    }

    /// Whether the request got the same reply again.
    pub(super) fn same(&self, way: &str, reply: &Reply) -> Verdict {
        match difference(&self.reply, reply) {
            None => Ok(()),
            Some(difference) => Err(format!("{}, {way}: {difference}", self.name)),
        }
    }

    /// Given drafts, of which the first `right` are correct.
    pub(super) fn guess(&self, count: u32, right: u32) -> Drafts {
        let text = [&self.request.prompt[..], &self.reply.tokens].concat();
        Drafts::Given(Guess { text, count, right })
    }
}

/// Runs every case, all together and each in its own way, and compares the replies.
pub(super) fn run_same(host: &mut Host<'_>, way: &str, cases: &[(&Case, How)]) -> Verdict {
    let jobs: Vec<_> = cases.iter().map(|(case, how)| (&case.request, how)).collect();
    let replies = host.run_all(&jobs).map_err(|error| format!("{way}: {error}"))?;
    cases.iter().zip(&replies).try_for_each(|((case, _), reply)| case.same(way, reply))
}

/// A number of positions after which a sequence's first tokens are outside every window, and more.
pub(super) fn prompt_length(caps: &Caps) -> usize {
    let windows = caps.groups.iter().filter_map(|group| {
        let times = if group.kind == PageKind::Draft { 2 } else { 3 };
        group.window.map(|keys| keys * times)
    });
    windows.max().unwrap_or(40) as usize + 5
}

/// A text of random tokens.
pub(super) fn text(caps: &Caps, seed: u64, length: usize) -> Vec<TokenId> {
    let mut stream = Stream::new(seed);
    (0..length).map(|_| stream.below(caps.vocab_size as usize) as TokenId).collect()
}

/// A greedy request with a random prompt.
pub(super) fn plain(engine: &mut dyn Engine, seed: u64, length: usize) -> Result<Case, String> {
    let prompt = text(engine.caps(), seed, length);
    let request = Request { top: top(engine), ..Request::greedy(prompt, REPLY) };
    Case::new(engine, "greedy", request)
}

fn top(engine: &dyn Engine) -> u32 {
    engine.caps().logprobs_max.min(5)
}

/// Allows one token in three, depending on the token before.
fn one_in_three(known: &[TokenId], vocab_size: u32) -> Vec<u32> {
    let last = u64::from(known.last().copied().unwrap_or_default());
    let mut mask = vec![0; vocab_size.div_ceil(32) as usize];
    for token in
        (0..vocab_size).filter(|token| mix(last << 32 | u64::from(*token)).is_multiple_of(3))
    {
        mask[token as usize / 32] |= 1 << (token % 32);
    }
    mask
}

/// A greedy request, a seeded one, and one with all features at once.
pub(super) fn few(engine: &mut dyn Engine) -> Result<Vec<Case>, String> {
    let mut cases = all_of(engine, &["seeded", "everything"])?;
    let length = prompt_length(engine.caps());
    cases.insert(0, plain(engine, 1, length)?);
    Ok(cases)
}

/// A request for every way in which tokens can be chosen.
pub(super) fn all(engine: &mut dyn Engine) -> Result<Vec<Case>, String> {
    all_of(engine, &[])
}

fn all_of(engine: &mut dyn Engine, names: &[&str]) -> Result<Vec<Case>, String> {
    let length = prompt_length(engine.caps());
    let greedy = plain(engine, 2, length)?;
    let bad_words = if names.is_empty() { bad_words(engine, &greedy)? } else { Vec::new() };
    let hits = greedy.reply.tokens.clone();
    let mut cases = Vec::new();
    for (name, sampling) in samplings() {
        if !(names.is_empty() || names.contains(&name)) {
            continue;
        }
        let mut request = greedy.request.clone();
        // Texts and lengths differ, except for requests that are made to fit the greedy reply.
        if sampling.temperature > 0.0 {
            request.prompt =
                text(engine.caps(), sampling.seed, length + sampling.seed as usize % 7);
        }
        request.setup.sampling = sampling;
        let setup = &mut request.setup;
        let everything = name == "everything";
        if name == "bias" || everything {
            setup.logit_bias = vec![(hits[0], -6.5), (hits[2], 1.5), (hits[5], -0.75)];
        }
        if name == "bad words" || everything {
            setup.bad_words.clone_from(&bad_words);
        }
        if name == "end tokens" || everything {
            setup.end_tokens = vec![hits[1], hits[4]];
        }
        if name.contains("mask") || everything {
            request.mask = Some(one_in_three);
        }
        cases.push(Case::new(engine, name, request)?);
    }
    Ok(cases)
}

fn samplings() -> Vec<(&'static str, Sampling)> {
    let greedy = Sampling::GREEDY;
    let warm = |seed, temperature| Sampling { seed, temperature, ..greedy };
    let nearly_all = Sampling { top_p: 0.97, min_p: 0.004, top_k: 100, ..warm(10, 0.9) };
    vec![
        ("greedy", greedy),
        ("seeded", warm(3, 1.0)),
        ("top-k", Sampling { top_k: 9, ..warm(4, 1.0) }),
        ("top-p", Sampling { top_p: 0.8, ..warm(5, 1.1) }),
        ("min-p", Sampling { min_p: 0.1, ..warm(6, 1.2) }),
        ("repetition", Sampling { repetition_penalty: 1.5, ..greedy }),
        (
            "presence and frequency",
            Sampling { presence_penalty: 0.9, frequency_penalty: 0.5, ..warm(7, 0.8) },
        ),
        ("bias", greedy),
        ("bad words", greedy),
        ("end tokens", Sampling { min_tokens: 6, ..greedy }),
        ("mask", greedy),
        ("seeded mask", warm(8, 1.0)),
        (
            "everything",
            Sampling {
                repetition_penalty: 1.2,
                presence_penalty: 0.3,
                frequency_penalty: 0.2,
                min_tokens: 5,
                ..nearly_all
            },
        ),
    ]
}

/// Bad words of one, two and three tokens, each of which the greedy reply would complete.
fn bad_words(engine: &mut dyn Engine, greedy: &Case) -> Result<Vec<Vec<TokenId>>, String> {
    let mut request = greedy.request.clone();
    let mut reply = greedy.reply.tokens.clone();
    for (length, end) in [(1, 1), (2, 4), (3, 8)] {
        request.setup.bad_words.push(reply[end - length..end].to_vec());
        reply = Case::new(engine, "bad words", request.clone())?.reply.tokens;
    }
    Ok(request.setup.bad_words)
}
