//! The demo model, inside the binary: a small MiMo-V2 checkpoint with its DFlash drafter, file by
//! file as in a folder. `train/` made it; README.md says how, from which data, and what the model
//! can do.

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../checkpoint/", $name)))),*]
    };
}

/// Every file of the checkpoint's folder: its path within the folder, and its bytes.
pub const FILES: &[(&str, &[u8])] = files![
    "chat_template.jinja",
    "config.json",
    "dflash/config.json",
    "dflash/dflash_draft_model.safetensors",
    "dflash/mask_embedding.pt",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Questions for the demo model. It was trained on similar ones, and answers most of them
/// correctly.
pub const EXAMPLES: &[&str] = &[
    "Write a Python function that returns the primes up to n.",
    "Write a Python function that merges two dictionaries.",
    "What is 54 plus 43?",
    "What can you do?",
];

#[cfg(test)]
mod tests {
    use super::FILES;

    #[test]
    fn it_is_small_and_whole() {
        let bytes: usize = FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes < 24_000_000, "{bytes} bytes");
        assert!(FILES.iter().all(|(_, bytes)| !bytes.is_empty()));
        assert!(FILES.is_sorted_by_key(|(name, _)| *name));
    }
}
