//! Prompts: random ones, or those of a file.

use std::path::Path;

use anyhow::{Context, Result, bail};
use kilotok_abi::{Purpose, TokenId};
use kilotok_sampling::Draws;
use serde_json::{Value, json};

/// Common words. Most tokenizers have one token for each of them.
pub(super) const WORDS: &[&str] = &[
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
];

/// The prompt of one request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Prompt {
    pub(super) content: Content,
    pub(super) output_count: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Text(String),
    /// In the API's form.
    Messages(Value),
}

impl Content {
    pub(super) fn messages(&self) -> Value {
        match self {
            Self::Text(text) => json!([{ "role": "user", "content": text }]),
            Self::Messages(messages) => messages.clone(),
        }
    }

    /// The prompt's text, for an endpoint without messages.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Messages(messages) => {
                let messages = messages.as_array().into_iter().flatten();
                let texts: Vec<_> = messages.filter_map(|part| part["content"].as_str()).collect();
                texts.join("\n")
            }
        }
    }
}

/// Random words. The first `prefix_count` words are the same for every `index`; the next ones
/// differ, so that beyond the prefix no prompt is found in a cache.
pub(super) fn words(seed: u64, index: u32, prefix_count: usize, count: usize) -> String {
    let shared = Draws::new(seed, u32::MAX, Purpose::Target);
    let own = Draws::new(seed, index, Purpose::Target);
    let word = |place: usize| {
        let draws = if place < prefix_count { &shared } else { &own };
        WORDS[draws.bits(place as u32) as usize % WORDS.len()]
    };
    (0..count).map(word).collect::<Vec<_>>().join(" ")
}

/// Random tokens, made in the same way.
pub(super) fn tokens(
    seed: u64,
    index: u32,
    prefix_count: usize,
    count: usize,
    vocab_size: u32,
) -> Vec<TokenId> {
    let shared = Draws::new(seed, u32::MAX, Purpose::Target);
    let own = Draws::new(seed, index, Purpose::Target);
    let token = |place: usize| {
        let draws = if place < prefix_count { &shared } else { &own };
        draws.bits(place as u32) % vocab_size
    };
    (0..count).map(token).collect()
}

/// The prompts of a file, repeated until there are enough.
pub(super) fn read(path: &Path, count: usize, output_count: u32) -> Result<Vec<Prompt>> {
    let named = || path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(named)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompts: Result<Vec<_>> = lines
        .map(|(index, line)| {
            parse(line, output_count).with_context(|| format!("{}:{}", path.display(), index + 1))
        })
        .collect();
    let prompts = prompts?;
    if prompts.is_empty() {
        bail!("{} holds no prompt", path.display());
    }
    Ok(prompts.iter().cycle().take(count).cloned().collect())
}

fn parse(line: &str, output_count: u32) -> Result<Prompt> {
    let value: Value = serde_json::from_str(line).context("it is no JSON")?;
    let conversation = || {
        let turns = value["conversations"].as_array()?;
        Some(turns.first()?["value"].as_str()?.to_owned())
    };
    let content = if let Some(text) = value.as_str().or_else(|| value["prompt"].as_str()) {
        Content::Text(text.to_owned())
    } else if value["messages"].is_array() {
        Content::Messages(value["messages"].clone())
    } else if let Some(text) = conversation() {
        Content::Text(text)
    } else {
        bail!("it has neither `prompt` nor `messages`");
    };
    let own = ["output_tokens", "output_len", "max_tokens"].iter().find_map(|key| {
        let count = value.get(key)?.as_u64()?;
        u32::try_from(count).ok().filter(|count| *count > 0)
    });
    Ok(Prompt { content, output_count: own.unwrap_or(output_count) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_share_their_prefix_and_nothing_more() {
        let prompts: Vec<String> = (0..50).map(|index| words(3, index, 10, 40)).collect();
        let start = |text: &str, count: usize| -> Vec<String> {
            text.split(' ').take(count).map(str::to_owned).collect()
        };
        assert!(prompts.iter().all(|text| start(text, 10) == start(&prompts[0], 10)));
        let mut whole = prompts.clone();
        whole.sort();
        whole.dedup();
        assert_eq!(whole.len(), 50);
        assert_eq!(prompts[0].split(' ').count(), 40);
        let ids = tokens(3, 1, 0, 1000, 17);
        assert!(ids.iter().all(|token| *token < 17) && ids != tokens(3, 2, 0, 1000, 17));
    }

    #[test]
    fn lines_of_the_usual_shapes_are_read() {
        let text = |text: &str| Content::Text(text.to_owned());
        for (line, content, output_count) in [
            (r#"{"prompt": "a", "output_tokens": 3}"#, text("a"), 3),
            (r#""a""#, text("a"), 9),
            (r#"{"conversations": [{"from": "human", "value": "a"}]}"#, text("a"), 9),
            (r#"{"messages": [], "max_tokens": 0}"#, Content::Messages(json!([])), 9),
        ] {
            assert_eq!(parse(line, 9).unwrap(), Prompt { content, output_count }, "{line}");
        }
        for bad in ["{", "{}", "3", r#"{"prompt": 3}"#] {
            assert!(parse(bad, 9).is_err(), "{bad}");
        }
    }
}
