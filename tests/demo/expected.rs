//! `expected.safetensors`: greedy replies to three prompts and the logits along them, in float64 by
//! code that trained nothing. `crates/demo/train/fixture.py` says what each tensor is.

use kilotok_abi::TokenId;
use safetensors::SafeTensors;

use crate::of_demo;

/// Logits are of every so many-th token of the vocabulary.
pub(crate) const STRIDE: usize = 32;
pub(crate) const PROMPT_COUNT: usize = 3;

/// One prompt, its reply, and the rounds that the reply came in.
pub(crate) struct Expected {
    bytes: Vec<u8>,
    prompt: usize,
}

impl Expected {
    pub(crate) fn read(prompt: usize) -> Self {
        Self { bytes: std::fs::read(of_demo("expected.safetensors")).unwrap(), prompt }
    }

    fn words(&self, name: &str) -> Option<Vec<[u8; 4]>> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(&format!("{}.{name}", self.prompt)).ok()?;
        Some(tensor.data().as_chunks().0.to_vec())
    }

    pub(crate) fn tokens(&self, name: &str) -> Vec<TokenId> {
        self.words(name).unwrap().into_iter().map(u32::from_le_bytes).collect()
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name).unwrap().into_iter().map(f32::from_le_bytes).collect()
    }

    pub(crate) fn round_count(&self) -> usize {
        let mut count = 0;
        while self.words(&format!("round.{count}.emitted")).is_some() {
            count += 1;
        }
        count
    }
}
