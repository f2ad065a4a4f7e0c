//! Problems of a checkpoint. Each names the file, the tensor and the reason.

use std::fmt;

use kilotok_model::ConfigError;

/// A single problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Relative to the checkpoint's folder.
    pub file: String,
    /// Empty if the problem concerns the whole file.
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

/// All problems: how many there are, and the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    pub count: usize,
    pub first: Vec<Problem>,
}

impl Problems {
    /// As many as a reader will still read.
    const SHOWN_MAX: usize = 20;
    /// A malicious checkpoint may have names that would fill the log.
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

/// A name without control characters, cut to a length that fits a message.
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
    /// One problem per line.
    #[error("{0}")]
    Files(Problems),
}

/// A weight that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WeightError(pub Problem);
