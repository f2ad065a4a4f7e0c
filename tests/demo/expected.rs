//! `expected.safetensors`: greedy replies to three prompts and the logits along them, computed in
//! float64 by code that took no part in training. `crates/demo/train/fixture.py` describes each
//! tensor.

use kilotok_abi::TokenId;
use safetensors::SafeTensors;

use crate::of_demo;

/// Logits are stored for one token of the vocabulary in this many.
pub(crate) const STRIDE: usize = 32;
pub(crate) const PROMPT_COUNT: usize = 3;

/// A prompt, its reply, and the rounds in which the reply was generated.
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
