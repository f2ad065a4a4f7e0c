//! What can be wrong with a checkpoint: each problem names the file, the tensor and the reason.

use std::fmt;

use kilotok_model::ConfigError;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Relative to the checkpoint's folder.
    pub file: String,
    /// Empty when the file as a whole is at fault.
    pub tensor: String,
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, tensor, reason } = self;
        if tensor.is_empty() {
            write!(f, "{file}: {reason}")
        } else {
            write!(f, "{file}: {tensor}: {reason}")
        }
    }
}

/// Everything that is wrong: how many problems there are, and the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    pub count: usize,
    pub first: Vec<Problem>,
}

impl Problems {
    /// As many as fit a message that is still read.
    const SHOWN_MAX: usize = 20;
    /// A checkpoint may have chosen its names to fill the log.
    const NAME_CHARS_MAX: usize = 200;

    pub(crate) fn push(&mut self, file: &str, tensor: &str, reason: impl fmt::Display) {
        self.count += 1;
        if self.first.len() < Self::SHOWN_MAX {
            let (file, tensor) = (shown(file), shown(tensor));
            self.first.push(Problem { file, tensor, reason: reason.to_string() });
        }
    }

    pub(crate) fn append(&mut self, other: Self) {
        self.count += other.count;
        let room = Self::SHOWN_MAX - self.first.len();
        self.first.extend(other.first.into_iter().take(room));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// A name without control characters, cut to what fits a message.
fn shown(name: &str) -> String {
    let mut chars = name.chars();
    let mut shown = String::new();
    for char in chars.by_ref().take(Problems::NAME_CHARS_MAX) {
        if char.is_control() {
            shown.extend(char.escape_default());
        } else {
            shown.push(char);
        }
    }
    if chars.next().is_some() {
        shown.push_str("...");
    }
    shown
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.first.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        match self.count - self.first.len() {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

/// A checkpoint that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// One problem a line.
    #[error("{0}")]
    Files(Problems),
}

/// A weight that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WeightError(pub Problem);
