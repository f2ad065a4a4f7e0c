//! Safetensors files whose header is false or missing.

use crate::good::{Files, Model, split_header, with_header};
use crate::refuses;

const FILE: &str = "model.safetensors";
const NORM: &str = "model.norm.weight";

/// The good files, with the target's file changed.
fn with_bytes(edit: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Files {
    let mut files = Model::good().files();
    let bytes = files.remove(FILE).unwrap();
    files.insert(FILE.to_owned(), edit(bytes));
    files
}

fn with_text(edit: impl FnOnce(String) -> String) -> Files {
    with_bytes(|bytes| {
        let (text, data) = split_header(&bytes);
        with_header(&edit(text), &data)
    })
}

/// The header with one text replaced by another.
fn replaced(from: &str, to: &str) -> Files {
    with_text(|text| {
        assert!(text.contains(from), "{text} has no {from}");
        text.replacen(from, to, 1)
    })
}

/// The header with another entry for the final norm, made from the norm's offsets.
fn with_norm(entry: impl FnOnce([usize; 2]) -> String) -> Files {
    with_text(|text| {
        let start = text.find(&format!("\"{NORM}\"")).unwrap();
        let length = text[start..].find('}').unwrap() + 1;
        let old = &text[start..start + length];
        let numbers = old[old.find("offsets\":[").unwrap() + 10..].split([',', ']']);
        let mut numbers = numbers.map_while(|number| number.parse().ok());
        let offsets = [numbers.next().unwrap(), numbers.next().unwrap()];
        text.replacen(old, &format!("\"{NORM}\":{}", entry(offsets)), 1)
    })
}

#[test]
fn lengths_that_lie() {
    let length = |length: u64| {
        with_bytes(|mut bytes| {
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            bytes
        })
    };
    refuses(&length(u64::MAX), &[FILE, "header has 18446744073709551615 bytes, which is too much"]);
    refuses(&length(100_000_001), &[FILE, "header has 100000001 bytes, which is too much"]);
    refuses(&length(99_999_999), &[FILE, "says that its header has 99999999 bytes, but has"]);
    refuses(&length(0), &[FILE, "does not begin with an object"]);
    refuses(&length(1), &[FILE, "bad header", "EOF"]);
    refuses(&length(100), &[FILE, "bad header"]);
}

#[test]
fn files_cut_short() {
    let cut = |length: usize| {
        with_bytes(|mut bytes| {
            bytes.truncate(length);
            bytes
        })
    };
    refuses(&cut(0), &[FILE, "has 0 bytes, too few"]);
    refuses(&cut(7), &[FILE, "has 7 bytes, too few"]);
    refuses(&cut(8), &[FILE, "says that its header has"]);
    refuses(&cut(200), &[FILE, "but has 200 in all"]);
    let whole = Model::good().files()[FILE].len();
    refuses(&cut(whole - 1), &[FILE, "lm_head.weight: has the bytes"]);
    let longer = with_bytes(|bytes| [&bytes[..], &[0; 3]].concat());
    refuses(&longer, &[FILE, "has 3 bytes after the end of"]);
}

#[test]
fn headers_that_are_no_object_of_tensors() {
    let text = |text: &str| with_text(|_| text.to_owned());
    refuses(&text("not JSON"), &[FILE, "does not begin with an object"]);
    refuses(&text("[]"), &[FILE, "does not begin with an object"]);
    refuses(&text(" {}"), &[FILE, "does not begin with an object"]);
    refuses(&text("{\"a\""), &[FILE, "bad header"]);
    refuses(&text("{} x"), &[FILE, "bad header", "trailing characters"]);
    refuses(&text("{}"), &[FILE, "bytes after the end of the header"]);
    refuses(&text("{\"a\": 3}"), &[FILE, "bad header", "a: ", "expected struct TensorEntry"]);
    refuses(&text("{\"a\": null}"), &[FILE, "bad header", "a: "]);
    let deep = format!("{{\"a\": {}", "[".repeat(100_000));
    refuses(&text(&deep), &[FILE, "bad header", "a: "]);
    let deep = "{\"a\":".repeat(100_000);
    refuses(&text(&deep), &[FILE, "bad header", "a: "]);
    let wrong_utf8 = with_bytes(|mut bytes| {
        bytes[10] = 0xff;
        bytes
    });
    refuses(&wrong_utf8, &[FILE, "bad header", "unicode"]);
}

#[test]
fn metadata_of_another_kind() {
    let good = "\"__metadata__\":{\"format\":\"pt\"}";
    refuses(&replaced(good, "\"__metadata__\":{\"format\":3}"), &[FILE, "__metadata__: format: "]);
    refuses(
        &replaced(good, "\"__metadata__\":[]"),
        &[FILE, "__metadata__: ", "expected an object"],
    );
    let twice = format!("{good},{good}");
    refuses(&replaced(good, &twice), &[FILE, "__metadata__ stands twice"]);
}

#[test]
fn entries_of_another_kind() {
    let entry = |entry: &str| {
        let entry = entry.to_owned();
        with_norm(|[a, b]| entry.replace("AT", &format!("\"data_offsets\":[{a},{b}]")))
    };
    for (text, reason) in [
        ("{\"dtype\":\"BF16\",\"shape\":[-64],AT}", "integer `-64`"),
        ("{\"dtype\":\"BF16\",\"shape\":[64.0],AT}", "floating point `64.0`"),
        ("{\"dtype\":\"BF16\",\"shape\":[1e30],AT}", "floating point"),
        ("{\"dtype\":\"BF16\",\"shape\":[99999999999999999999],AT}", "floating point"),
        ("{\"dtype\":\"BF16\",\"shape\":\"64\",AT}", "string \"64\""),
        ("{\"dtype\":\"BF16\",\"shape\":64,AT}", "integer `64`, expected a sequence"),
        ("{\"dtype\":3,\"shape\":[64],AT}", "integer `3`, expected a string"),
        ("{\"shape\":[64],AT}", "missing field `dtype`"),
        ("{\"dtype\":\"BF16\",AT}", "missing field `shape`"),
        ("{\"dtype\":\"BF16\",\"shape\":[64]}", "missing field `data_offsets`"),
        ("{\"dtype\":\"BF16\",\"shape\":[64],AT,\"more\":1}", "unknown field `more`"),
        ("{\"dtype\":\"BF16\",\"dtype\":\"BF16\",\"shape\":[64],AT}", "duplicate field `dtype`"),
        ("{\"dtype\":\"BF16\",\"shape\":[64],\"data_offsets\":[0]}", "invalid length 1"),
        ("{\"dtype\":\"BF16\",\"shape\":[64],\"data_offsets\":[0,1,2]}", "bad header"),
        ("{\"dtype\":\"BF16\",\"shape\":[64],\"data_offsets\":[-1,127]}", "integer `-1`"),
    ] {
        refuses(&entry(text), &[FILE, NORM, reason]);
    }
    for (text, reason) in [
        ("{\"dtype\":\"BF17\",\"shape\":[64],AT}", "has the unknown type \"BF17\""),
        ("{\"dtype\":\"bf16\",\"shape\":[64],AT}", "has the unknown type \"bf16\""),
        ("{\"dtype\":\"BF16\",\"shape\":[65],AT}", "has 128 bytes, but BF16 [65] needs 130"),
        ("{\"dtype\":\"F32\",\"shape\":[64],AT}", "has 128 bytes, but F32 [64] needs 256"),
        ("{\"dtype\":\"F4\",\"shape\":[255],AT}", "has 1020 bits, which are no whole bytes"),
        ("{\"dtype\":\"BF16\",\"shape\":[4294967296,4294967296],AT}", "which is too large"),
        ("{\"dtype\":\"BF16\",\"shape\":[9223372036854775808,2,0],AT}", "which is too large"),
        ("{\"dtype\":\"U8\",\"shape\":[18446744073709551615],AT}", "which is too large"),
        ("{\"dtype\":\"U8\",\"shape\":[1000000000000],AT}", "but U8 [1000000000000] needs"),
        ("{\"dtype\":\"BF16\",\"shape\":[],AT}", "has 128 bytes, but BF16 [] needs 2"),
    ] {
        refuses(&entry(text), &[&format!("{FILE}: {NORM}: "), reason]);
    }
}

#[test]
fn tensors_that_lie_where_they_should_not() {
    let offsets = |edit: fn([usize; 2]) -> [usize; 2]| {
        with_norm(|offsets| {
            let [begin, end] = edit(offsets);
            format!("{{\"dtype\":\"BF16\",\"shape\":[64],\"data_offsets\":[{begin},{end}]}}")
        })
    };
    let named = format!("{FILE}: {NORM}: ");
    refuses(&offsets(|[a, b]| [b, a]), &[&named, "has the bytes"]);
    refuses(&offsets(|[a, b]| [a + (1 << 40), b + (1 << 40)]), &[&named, "has the bytes"]);
    refuses(&offsets(|_| [usize::MAX - 128, usize::MAX]), &[&named, "has the bytes"]);
    refuses(&offsets(|[a, b]| [a - 64, b - 64]), &[&named, "overlaps", "by 64 bytes"]);
    refuses(&offsets(|[a, b]| [a + 64, b + 64]), &[FILE, "by 64 bytes", "begins 64 bytes after"]);
    refuses(&offsets(|_| [0, 128]), &[FILE, "overlaps"]);
    // A byte between two tensors that belongs to neither.
    let gap = with_bytes(|bytes| {
        let (text, data) = split_header(&bytes);
        let mut header: serde_json::Value = serde_json::from_str(&text).unwrap();
        for entry in header.as_object_mut().unwrap().values_mut() {
            for offset in
                entry.get_mut("data_offsets").into_iter().flat_map(|o| o.as_array_mut().unwrap())
            {
                *offset = (offset.as_u64().unwrap() + 1).into();
            }
        }
        with_header(&header.to_string(), &[&[0], &data[..]].concat())
    });
    refuses(&gap, &[FILE, "begins 1 bytes after the end of the header"]);
}

#[test]
fn a_tensor_that_stands_twice() {
    let again = with_text(|text| {
        let start = text.find(&format!("\"{NORM}\"")).unwrap();
        let length = text[start..].find('}').unwrap() + 1;
        let entry = text[start..start + length].to_owned();
        text.replacen(&entry, &format!("{entry},{entry}"), 1)
    });
    refuses(&again, &[FILE, "model.norm.weight stands twice"]);
}
