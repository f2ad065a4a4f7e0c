//! The kernels' sources as NVRTC needs them: one program, and every header by its name in
//! `#include`. NVRTC has no headers of its own, so the two of the standard library that the kernels
//! include are here.

use std::fmt::Write;
use std::path::Path;

/// Path below `kernels/` and text of every source.
const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/sources.rs"));

const CSTDINT: &str = "\
#pragma once
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
using uintptr_t = unsigned long long;
";

const CSTDDEF: &str = "\
#pragma once
#ifndef offsetof
#define offsetof(type, member) __INTADDR__(&((type*)0)->member)
#endif
// Built-in functions that host compilers have and NVRTC does not.
#define __builtin_huge_valf() __builtin_bit_cast(float, 0x7f800000u)
";

/// A program and the headers that it includes, by name.
pub(crate) struct Program {
    pub(crate) text: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Program {
    /// All kernels, for the model whose constants are in `model_header`; with `stamps`, kernels
    /// that record them.
    pub(crate) fn new(model_header: &str, stamps: bool) -> Self {
        let text = if stamps { "#define KILOTOK_STAMPS\n" } else { "" };
        let mut program = Self { text: text.to_owned(), headers: Vec::new() };
        let mut header = |name: &str, text: &str| {
            program.headers.push((name.to_owned(), text.to_owned()));
        };
        header("cstdint", CSTDINT);
        header("cstddef", CSTDDEF);
        header("kilotok/model.h", model_header);
        for (path, text) in FILES {
            header(path.strip_prefix("include/").unwrap_or(path), text);
        }
        let is_entry = |path: &str| Path::new(path).extension().is_some_and(|end| end == "cu");
        for (path, _) in FILES.iter().filter(|(path, _)| is_entry(path)) {
            let _ = writeln!(program.text, "#include \"{path}\"");
        }
        program
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_include_has_a_header() {
        let program = Program::new("", false);
        let names: Vec<_> = program.headers.iter().map(|(name, _)| name.as_str()).collect();
        let mut lines = program.headers.iter().flat_map(|(name, text)| {
            text.lines().filter(|line| line.starts_with("#include")).map(move |line| (name, line))
        });
        let absent = lines.find(|(_, line)| {
            let name = line.trim_start_matches("#include").trim().trim_matches(['"', '<', '>']);
            !names.contains(&name)
        });
        assert_eq!(absent, None, "the driver's compiler looks for headers nowhere else");
        assert!(names.contains(&"kilotok/abi.h"));
    }

    /// This is all that `kernels/split/nvrtc.cpp` has to replace.
    #[test]
    fn multiprocessors_are_asked_for_their_number_in_one_place() {
        let asked = FILES.iter().map(|(_, text)| text.matches("%%smid").count());
        assert_eq!(asked.sum::<usize>(), 1);
    }
}
