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
    /// The launches of a step, in order. `DraftRows` is launched once for each batch of drafts, and
    /// `Wide` many times in the place of `Target`.
    pub enum Launch {
        /// A launch by a test harness.
        Other = 0,
        Target = 1,
        Verify = 2,
        DraftContext = 3,
        DraftRows = 4,
        /// A launch of the wide pass, which a step of many tokens takes.
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
        /// The number of grid barriers at which the CTA had arrived in this launch; in the wide
        /// pass, the layer.
        pub phase: u32,
        pub wanted: u32,
        pub seen: u32,
    }
}
