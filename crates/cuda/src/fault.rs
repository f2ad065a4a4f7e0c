//! What is said of a GPU that gave up.

use kilotok_abi::Fault;
use kilotok_engine::EngineError;

/// A fault that is being written.
const BUSY: u32 = !0;

/// What a wait was for: `Waits` of `kernels/include/kilotok/comm/wait.cuh`, from 1 on.
const WAITS: [&str; 7] = [
    "all CTAs at a grid barrier",
    "a page of weights",
    "a page that is free for weights",
    "another rank",
    "the router's choice of experts",
    "the host",
    "sums of a CTA's own warps",
];

/// The error of a rank whose driver said `error`, with the record that its kernel may have left.
pub(crate) fn error_of(rank: usize, fault: &Fault, error: &dyn std::fmt::Display) -> EngineError {
    if fault.code == 0 {
        return EngineError::Device { rank, reason: error.to_string() };
    }
    let waits = (fault.code as usize).checked_sub(1).and_then(|place| WAITS.get(place));
    let waited_for = match waits {
        Some(waits) => (*waits).to_owned(),
        None if fault.code == BUSY => "something that it had no time to name".to_owned(),
        None => format!("number {}", fault.code),
    };
    EngineError::Timeout {
        rank: fault.rank as usize,
        cta: fault.cta,
        phase: fault.phase,
        waited_for,
        wanted: fault.wanted,
        seen: fault.seen,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_named_with_its_place() {
        let fault = Fault { code: 2, rank: 3, cta: 17, phase: 41, wanted: 5, seen: 4 };
        let text = error_of(3, &fault, &"CUDA_ERROR_LAUNCH_FAILED").to_string();
        for part in ["rank 3", "CTA 17", "phase 41", "a page of weights", "5", "4"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let none = Fault { code: 0, ..fault };
        let text = error_of(1, &none, &"CUDA_ERROR_LAUNCH_FAILED").to_string();
        assert!(text.contains("rank 1") && text.contains("CUDA_ERROR_LAUNCH_FAILED"), "{text}");
        for code in [99, BUSY] {
            assert!(error_of(0, &Fault { code, ..fault }, &"").to_string().contains("phase 41"));
        }
    }

    #[test]
    fn the_kernels_number_waits_the_same_way() {
        let header = crate::sources::file("include/kilotok/comm/wait.cuh").unwrap();
        let start = header.find("enum class Waits").unwrap();
        let list = &header[start..start + header[start..].find('}').unwrap()];
        let names: Vec<_> = list.split(['{', ',']).filter(|part| part.contains('=')).collect();
        assert_eq!(names.len(), WAITS.len(), "a text for each of {list}");
        for (number, name) in (1..).zip(names) {
            assert!(name.trim().ends_with(&format!("= {number}")), "{name} is number {number}");
        }
    }
}
