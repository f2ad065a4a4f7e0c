//! Parses the header of a message as it arrives. Anything that a model writes is accepted:
//! meaningless words are skipped, and a header that is never closed is returned as text.

use super::{FUNCTIONS, FormatToken};

/// Longest header. Its largest part is a tool's name, of at most 256 characters.
const HEADER_BYTES_MAX: usize = 2048;

/// The kind of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Analysis,
    Commentary,
    Final,
}

impl Channel {
    pub(crate) const ALL: [Self; 3] = [Self::Analysis, Self::Commentary, Self::Final];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Analysis => "analysis",
            Self::Commentary => "commentary",
            Self::Final => "final",
        }
    }
}

/// See the file's head.
#[derive(Clone, Debug, Default)]
pub(crate) struct Header {
    role: Vec<u8>,
    /// The text after `<|channel|>`.
    channel: Option<Vec<u8>>,
    /// The text after `<|constrain|>`.
    content_type: Option<Vec<u8>>,
}

impl Header {
    /// Adds text. Returns false if the header is too long to be one.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> bool {
        let section = self.content_type.as_mut().or(self.channel.as_mut());
        section.unwrap_or(&mut self.role).extend_from_slice(bytes);
        let sections = [Some(&self.role), self.channel.as_ref(), self.content_type.as_ref()];
        sections.into_iter().flatten().map(Vec::len).sum::<usize>() <= HEADER_BYTES_MAX
    }

    /// Begins a section. If a section occurs twice, the last one counts.
    pub(crate) fn begin_section(&mut self, token: FormatToken) {
        match token {
            FormatToken::Channel => {
                self.channel = Some(Vec::new());
                self.content_type = None;
            }
            FormatToken::Constrain => self.content_type = Some(Vec::new()),
            _ => {}
        }
    }

    /// The channel, wherever it is named: `<|channel|>` may be missing or be followed by garbage.
    pub(crate) fn channel(&self) -> Option<Channel> {
        let named = |section: &[u8]| {
            let text = String::from_utf8_lossy(section);
            let mut words = text.split_whitespace();
            words.find_map(|word| {
                let word = word.split("to=").next().unwrap_or_default();
                Channel::ALL.into_iter().find(|channel| word.contains(channel.name()))
            })
        };
        self.channel.as_deref().and_then(named).or_else(|| named(&self.role))
    }

    /// The name of the function that the message calls, as the model wrote it: after `to=`, or in a
    /// word that begins with the namespace.
    pub(crate) fn function(&self) -> Option<String> {
        let sections = [Some(&self.role), self.channel.as_ref(), self.content_type.as_ref()];
        let sections = sections.into_iter().flatten();
        let texts: Vec<_> = sections.map(|section| String::from_utf8_lossy(section)).collect();
        let words = || texts.iter().flat_map(|text| text.split_whitespace());
        let addressed = || {
            let mut words = words();
            let (_, name) = words.find_map(|word| word.split_once("to="))?;
            if name.is_empty() { words.next() } else { Some(name) }
        };
        let name = addressed().or_else(|| words().find(|word| word.starts_with(FUNCTIONS)))?;
        let name = name.trim_matches(['"', '\'', ',', ';', ':']);
        Some(name.strip_prefix(FUNCTIONS).unwrap_or(name).to_owned())
    }

    /// The text of a message without `<|message|>`: everything after the words of a header.
    pub(crate) fn text(&self) -> String {
        let (section, is_word): (_, fn(usize, &str) -> bool) =
            match (&self.content_type, &self.channel) {
                (Some(section), _) => (section, |index, _| index == 0),
                (None, Some(section)) => {
                    (section, |index, word| index == 0 || word.contains("to="))
                }
                (None, None) => (&self.role, |index, word| {
                    (index == 0 && word == "assistant") || word.contains("to=")
                }),
            };
        let text = String::from_utf8_lossy(section);
        let mut rest = text.trim_start();
        let mut index = 0;
        while let Some(word) = rest.split_whitespace().next().filter(|word| is_word(index, word)) {
            rest = rest[word.len()..].trim_start();
            index += 1;
        }
        rest.to_owned()
    }
}
