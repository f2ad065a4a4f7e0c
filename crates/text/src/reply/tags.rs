//! The tags of all formats, and a search for them in text that arrives character by character.

/// A tag begins with `<` and contains no other `<`, and no tag is the beginning of another. So at
/// most one tag can be in progress, and its end does not depend on the text after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    Think,
    EndThink,
    Call,
    EndCall,
    /// The name follows, up to `>`.
    Function,
    EndFunction,
    /// The key follows, up to `>`.
    Parameter,
    EndParameter,
}

impl Tag {
    pub(crate) const ALL: [Self; 8] = [
        Self::Think,
        Self::EndThink,
        Self::Call,
        Self::EndCall,
        Self::Function,
        Self::EndFunction,
        Self::Parameter,
        Self::EndParameter,
    ];

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Think => "<think>",
            Self::EndThink => "</think>",
            Self::Call => "<tool_call>",
            Self::EndCall => "</tool_call>",
            Self::Function => "<function=",
            Self::EndFunction => "</function>",
            Self::Parameter => "<parameter=",
            Self::EndParameter => "</parameter>",
        }
    }
}

/// The result of reading a character.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A tag may be in progress.
    Nothing,
    /// The character is text.
    Character,
    /// The text that was held back is not a tag.
    Text(String),
    Tag(Tag),
}

/// Finds tags. Text that may become a tag is held back.
#[derive(Clone, Debug, Default)]
pub(super) struct Finder {
    pending: String,
}

impl Finder {
    /// Reads a character. Only tags for which `counts` returns true are recognised.
    pub(super) fn push(&mut self, character: char, counts: impl Fn(Tag) -> bool) -> Found {
        if character == '<' {
            // A tag contains no other `<`, so the pending text is not a tag.
            let text = self.finish();
            self.pending.push(character);
            return if text.is_empty() { Found::Nothing } else { Found::Text(text) };
        }
        if self.pending.is_empty() {
            return Found::Character;
        }
        self.pending.push(character);
        let begun = |tag: &Tag| tag.text().starts_with(&self.pending) && counts(*tag);
        match Tag::ALL.into_iter().find(begun) {
            Some(tag) if tag.text() == self.pending => {
                self.pending.clear();
                Found::Tag(tag)
            }
            Some(_) => Found::Nothing,
            None => Found::Text(self.finish()),
        }
    }

    /// The text that is held back.
    pub(super) fn pending(&self) -> &str {
        &self.pending
    }

    /// Ends the search: the text that is held back is not a tag.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.pending)
    }
}
