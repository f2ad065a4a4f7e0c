//! The files that git tracks or would track, read once. Checks see only these files.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

pub(crate) struct Tree {
    pub(crate) root: PathBuf,
    /// All files, sorted by path.
    pub(crate) files: Vec<File>,
}

pub(crate) struct File {
    /// Relative to the root, with `/`.
    pub(crate) path: String,
    pub(crate) bytes: usize,
    /// Empty if the file is not text.
    pub(crate) text: String,
}

impl File {
    pub(crate) fn extension(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name.rsplit_once('.').map_or("", |(_, extension)| extension)
    }

    pub(crate) fn is_rust(&self) -> bool {
        self.extension() == "rs"
    }

    /// Lines with their numbers, which start at 1.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines())
    }
}

impl Tree {
    pub(crate) fn read(root: PathBuf) -> Result<Self, Box<dyn Error>> {
        // The checkout may belong to a different user, for example in a container.
        let trust = format!("safe.directory={}", root.display());
        let listing = Command::new("git")
            .args(["-c", &trust, "ls-files", "-coz", "--exclude-standard"])
            .current_dir(&root)
            .output()?;
        if !listing.status.success() {
            let reason = String::from_utf8_lossy(&listing.stderr);
            return Err(format!("git ls-files: {}", reason.trim()).into());
        }
        let mut files = Vec::new();
        for path in String::from_utf8(listing.stdout)?.split_terminator('\0') {
            let place = root.join(path);
            if place.is_file() {
                let content = fs::read(place)?;
                let bytes = content.len();
                let text = String::from_utf8(content).ok();
                let text = text.filter(|text| !text.contains('\0'));
                files.push(File { path: path.to_owned(), bytes, text: text.unwrap_or_default() });
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { root, files })
    }

    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        let file = self.files.iter().find(|file| file.path == path)?;
        Some(&file.text)
    }

    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|&(path, text)| File {
            path: path.to_owned(),
            bytes: text.len(),
            text: text.to_owned(),
        });
        Self { root: PathBuf::new(), files: files.collect() }
    }
}
