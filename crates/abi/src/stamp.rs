//! Stamps: the times at which the first CTA of a launch ends each phase, in kernels that are
//! compiled to record them.

use crate::layout::{abi_constants, abi_struct};

/// The most stamps of one launch. The longest launch, of 64 tokens through 70 layers, makes about
/// 3,600.
pub const STAMPS_MAX: usize = 8192;

abi_constants! {
    /// The phase that ends at a stamp. 0 means that there is no stamp.
    pub enum Stamp {
        /// The start of the launch, before its first phase.
        Begun = 1,
        /// The whole launch.
        Ended = 2,
        /// The wait of a grid barrier.
        Barrier = 3,
        Embed = 4,
        /// The all-reduce of what is added to the residual stream.
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
        /// The all-gather of logits, and the update of slots that a request enters.
        AllGather = 17,
        Sample = 18,
        /// The verification of drafts, and the beginning of the next ones.
        Accept = 19,
        /// The GEMM that fuses the taps into the drafter's context.
        Fuse = 20,
        ContextNorm = 21,
        /// Keys and values of that context.
        ContextKeys = 22,
        ArgmaxDrafts = 23,
        /// Wide pass: tokens are sorted and gathered by expert, and experts' products are added.
        GatherRows = 24,
        Combine = 25,
    }
}

abi_struct! {
    /// A recorded stamp.
    pub struct Stamped : 16 {
        /// A [`Stamp`], or 0.
        pub what: u32,
        /// Where a launch begins and ends: the low word of the device's clock in nanoseconds. Where
        /// experts were chosen: how many are read, counted once for every eight of an expert's
        /// tokens. Otherwise 0.
        pub number: u32,
        /// The SM's clock.
        pub cycles: u64,
    }
}
