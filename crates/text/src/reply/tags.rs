//! The tags of all formats, and a search for them in text that arrives character by character.

/// A tag begins with `<` and has no other, and none begins another: so at most one of them can be
/// under way, and where it ends does not depend on what follows.
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

/// What became of a character.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A tag may be under way.
    Nothing,
    /// The character is text.
    Character,
    /// What was held back is text.
    Text(String),
    Tag(Tag),
}

/// Finds tags. Holds back what may become one.
#[derive(Clone, Debug, Default)]
pub(super) struct Finder {
    pending: String,
}

impl Finder {
    /// Takes a character where the tags that `counts` names count.
    pub(super) fn push(&mut self, character: char, counts: impl Fn(Tag) -> bool) -> Found {
        if character == '<' {
            // A tag has no other `<`, so what is pending is none.
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

    /// What is held back.
    pub(super) fn pending(&self) -> &str {
        &self.pending
    }

    /// What is held back is no tag.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.pending)
    }
}
