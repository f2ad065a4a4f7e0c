//! Compares the reference engine with independent implementations: Hugging Face transformers for
//! the target, and a float64 PyTorch program for the drafter. `README.md` beside this file
//! describes what each fixture covers and how it was made.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod draft;
mod fixture;
mod misread;
mod overflow;
mod target;
mod traps;
mod traps_of_families;
