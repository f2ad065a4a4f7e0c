//! `kernels/include/kilotok/abi.h`, made from the Rust declarations. `cargo xtask abi` writes it,
//! `cargo xtask tidy` refuses a stale one.

use std::fmt::Write;

use crate::{
    BAD_TOKENS_MAX, BAD_WORDS_MAX, BY_MATCH, BY_REJECTION, Batch, BatchRow, BatchToken, Bias,
    CANDIDATES_MAX, COUNTER_BYTES, COUNTERS, Candidate, ChoiceFault, ChoicePart, DraftMemory,
    END_TOKENS_MAX, Fault, GROUPS_MAX, Judged, Launch, LayerMemory, Layout, Memory,
    OUTPUT_COUNT_MAX, PARTS_MAX, PLAN_CTA_BYTES, PLAN_THREAD_BYTES, Peers, PlanMemory, Purpose,
    RANKS_MAX, RECENT_MAX, ReadMemory, Report, RowChoice, SEEN, SPAN_TOKENS, STAMPS_MAX,
    SampleMemory, SampleRow, Sampling, Slot, Stamp, Stamped, TOPS_MAX, Timestamps, Top,
    VerifyMemory, WANTED_MAX, Waits, Wanted, WideCollective, WideMemory,
};

/// Where the header lies, from the repository's root.
pub const PATH: &str = "kernels/include/kilotok/abi.h";

const STRUCTS: &[Layout] = &[
    Sampling::layout(),
    BatchToken::layout(),
    BatchRow::layout(),
    Batch::layout(),
    Peers::layout(),
    LayerMemory::layout(),
    Memory::layout(),
    WideMemory::layout(),
    PlanMemory::layout(),
    ReadMemory::layout(),
    Timestamps::layout(),
    Fault::layout(),
    Slot::layout(),
    Bias::layout(),
    Candidate::layout(),
    SampleRow::layout(),
    Wanted::layout(),
    Judged::layout(),
    ChoicePart::layout(),
    RowChoice::layout(),
    Report::layout(),
    Top::layout(),
    SampleMemory::layout(),
    VerifyMemory::layout(),
    DraftMemory::layout(),
    Stamped::layout(),
];
const CONSTANTS: &[(&str, usize)] = &[
    ("GROUPS_MAX", GROUPS_MAX),
    ("RANKS_MAX", RANKS_MAX),
    ("COUNTER_BYTES", COUNTER_BYTES),
    ("COUNTERS", COUNTERS),
    ("PLAN_THREAD_BYTES", PLAN_THREAD_BYTES),
    ("PLAN_CTA_BYTES", PLAN_CTA_BYTES),
    ("SPAN_TOKENS", SPAN_TOKENS),
    ("BAD_WORDS_MAX", BAD_WORDS_MAX),
    ("BAD_TOKENS_MAX", BAD_TOKENS_MAX),
    ("RECENT_MAX", RECENT_MAX),
    ("END_TOKENS_MAX", END_TOKENS_MAX),
    ("TOPS_MAX", TOPS_MAX),
    ("PARTS_MAX", PARTS_MAX),
    ("CANDIDATES_MAX", CANDIDATES_MAX),
    ("BY_MATCH", BY_MATCH),
    ("BY_REJECTION", BY_REJECTION),
    ("WANTED_MAX", WANTED_MAX),
    ("SEEN", SEEN as usize),
    ("OUTPUT_COUNT_MAX", OUTPUT_COUNT_MAX as usize),
    ("STAMPS_MAX", STAMPS_MAX),
    ("STAMP_COUNT", Stamp::VALUES.len()),
];
const ENUMS: &[(&str, &[(&str, u32)])] = &[
    ("Purpose", Purpose::VALUES),
    ("ChoiceFault", ChoiceFault::VALUES),
    ("Waits", Waits::VALUES),
    ("Launch", Launch::VALUES),
    ("WideCollective", WideCollective::VALUES),
    ("Stamp", Stamp::VALUES),
];

/// The whole text of the header, with an assert for every size and offset.
pub fn text() -> String {
    let mut out = String::from(
        "// Structs and constants that host and GPU share.\n\
         // Generated from crates/abi by `cargo xtask abi`; do not edit.\n\
         #pragma once\n\n#include <cstddef>\n#include <cstdint>\n\nnamespace kilotok {\n",
    );
    for (name, value) in CONSTANTS {
        let _ = writeln!(out, "\nconstexpr int {name} = {value};");
    }
    for (name, values) in ENUMS {
        write_enum(&mut out, name, values);
    }
    write_names(&mut out, "Waits", Waits::VALUES);
    write_names(&mut out, "Stamp", Stamp::VALUES);
    for layout in STRUCTS {
        write_struct(&mut out, layout);
    }
    out.push_str("\n}  // namespace kilotok\n");
    out
}

fn write_enum(out: &mut String, name: &str, values: &[(&str, u32)]) {
    let _ = writeln!(out, "\nenum class {name} : uint32_t {{");
    for (variant, value) in values {
        let _ = writeln!(out, "  {variant} = {value},");
    }
    out.push_str("};\n");
}

/// For harnesses, which print them.
fn write_names(out: &mut String, name: &str, values: &[(&str, u32)]) {
    let _ = writeln!(out, "\nconstexpr const char* name_of({name} value) {{\n  switch (value) {{");
    for (variant, _) in values {
        let _ = writeln!(out, "    case {name}::{variant}: return \"{variant}\";");
    }
    out.push_str("  }\n  return \"\";\n}\n");
}

fn write_struct(out: &mut String, layout: &Layout) {
    let Layout { name, bytes, align, fields } = layout;
    let _ = writeln!(out, "\nstruct alignas({align}) {name} {{");
    for field in *fields {
        let (c_type, count) = c_type(field.rust_type);
        let _ = writeln!(out, "  {c_type} {}{count};", field.name);
    }
    out.push_str("};\n");
    let _ = writeln!(out, "static_assert(sizeof({name}) == {bytes}, \"size of {name}\");");
    for field in *fields {
        let (field, offset) = (field.name, field.offset);
        let _ = writeln!(
            out,
            "static_assert(offsetof({name}, {field}) == {offset}, \"{name}.{field}\");"
        );
    }
}

/// C type and array suffix of a Rust field type.
fn c_type(rust_type: &'static str) -> (&'static str, String) {
    if let Some((element, count)) = rust_type
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .and_then(|t| t.split_once(';'))
    {
        return (c_type(element.trim()).0, format!("[{}]", count.trim()));
    }
    let scalar = match rust_type {
        "u8" => "uint8_t",
        "u16" => "uint16_t",
        "u32" => "uint32_t",
        "u64" => "uint64_t",
        "i32" => "int32_t",
        "f32" => "float",
        other if STRUCTS.iter().any(|layout| layout.name == other) => other,
        other => panic!("no C spelling for {other}: add it to abi::header"),
    };
    (scalar, String::new())
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_field_is_asserted() {
        let text = super::text();
        assert!(text.contains("static_assert(sizeof(Sampling) == 40"));
        assert!(text.contains("static_assert(offsetof(Sampling, temperature) == 8"));
        assert!(text.contains("  Residual = 3,"));
        assert!(text.contains("    case Stamp::GateUp: return \"GateUp\";"));
        assert_eq!(super::c_type("[u32; 4]"), ("uint32_t", "[4]".to_owned()));
    }
}
