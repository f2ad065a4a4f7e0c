//! Stamps: when the first CTA of a launch had come where, in kernels that are compiled to say so.

use crate::layout::{abi_constants, abi_struct};

/// Stamps of one launch. The longest, of 64 tokens through 70 layers, makes about 3,600.
pub const STAMPS_MAX: usize = 8192;

abi_constants! {
    /// What ended when a stamp was made. 0 is where none was.
    pub enum Stamp {
        /// What comes before the launch's first phase.
        Begun = 1,
        /// All of the launch.
        Ended = 2,
        /// The wait of a grid barrier.
        Barrier = 3,
        Embed = 4,
        /// The sum over ranks of what is to be added to the stream.
        AllReduce = 5,
        AddRmsNorm = 6,
        Project = 7,
        AttentionIn = 8,
        Attention = 9,
        Output = 10,
        RouterParts = 11,
        RouterSums = 12,
        Routes = 13,
        GateUp = 14,
        Down = 15,
        Head = 16,
        /// Logits of all ranks to all, and slots that a request enters.
        AllGather = 17,
        Sample = 18,
        /// What of the drafts is accepted, and where the next ones begin.
        Accept = 19,
        /// The taps to the drafter's context.
        Fuse = 20,
        ContextNorm = 21,
        /// Keys and values of that context.
        ContextKeys = 22,
        ArgmaxDrafts = 23,
    }
}

abi_struct! {
    /// A stamp that was made.
    pub struct Stamped : 16 {
        /// A [`Stamp`], or 0.
        pub what: u32,
        /// Where a launch begins and ends the device's clock in nanoseconds, its low word; where
        /// experts were chosen how many are read, one again for every eight of its tokens; else 0.
        pub number: u32,
        /// Of the multiprocessor.
        pub cycles: u64,
    }
}
