//! A wait that timed out on the GPU: what was waited for, in which launch, and the record of it.

use crate::layout::{abi_constants, abi_struct};

abi_constants! {
    /// What a wait was for.
    pub enum Waits {
        /// All CTAs of a rank at a grid barrier.
        Grid = 1,
        /// A full page of the ring buffer.
        Page = 2,
        /// A free page of the ring buffer.
        FreePage = 3,
        /// Another rank's part of a collective.
        Peer = 4,
        /// The router's choice of experts.
        Routes = 5,
        /// Partial sums between consumers and epilogue.
        Sums = 6,
        /// An operand that all CTAs write.
        Operand = 7,
        /// A single value that another CTA publishes.
        Value = 8,
    }
}

abi_constants! {
    /// The launches of a step, in their order; there is one of the last for each batch of drafts.
    pub enum Launch {
        /// None of them: a harness.
        Other = 0,
        Target = 1,
        Verify = 2,
        DraftContext = 3,
        DraftRows = 4,
        /// One of the launches that stand in the target's place where a step has many tokens.
        Wide = 5,
    }
}

abi_struct! {
    /// The record of the first wait that timed out on a rank.
    pub struct Fault : 28 {
        /// A [`Waits`]; 0 while there is no record.
        pub code: u32,
        pub rank: u32,
        pub cta: u32,
        /// A [`Launch`].
        pub launch: u32,
        /// Grid barriers at which the CTA had arrived in it; of the wide pass the layer.
        pub phase: u32,
        pub wanted: u32,
        pub seen: u32,
    }
}
