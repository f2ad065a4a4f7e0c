//! The families against what is published of them.

mod configs;
mod published;
mod refusals;
