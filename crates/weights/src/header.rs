//! The header of a safetensors file: 8 bytes of length, that much JSON, and then the tensors'
//! bytes without gap or overlap. Works on bytes in memory; knows neither files nor models.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use kilotok_model::json::{self, Object};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::problem::Problems;

/// Longer headers are refused, as the format's own library does.
pub(crate) const JSON_BYTES_MAX: u64 = 100_000_000;
const LENGTH_BYTES: usize = 8;
const METADATA: &str = "__metadata__";

/// Element types by name, with their size in bits.
const DTYPES: &[(&str, u64)] = &[
    ("BOOL", 8),
    ("U8", 8),
    ("I8", 8),
    ("F8_E4M3", 8),
    ("F8_E5M2", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U16", 16),
    ("I16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("U32", 32),
    ("I32", 32),
    ("F32", 32),
    ("U64", 64),
    ("I64", 64),
    ("F64", 64),
    ("C64", 64),
];

/// A tensor of a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderTensor {
    /// As safetensors spells it.
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    /// Its bytes within the file: as many as type and shape say.
    pub span: Range<usize>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// A header's tensors. Its one other entry, [`METADATA`], is checked and left out.
struct Entries(BTreeMap<String, TensorEntry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Entries, A::Error> {
        let entries = json::entries(map, |name, map| {
            if name == METADATA {
                map.next_value::<Object<String>>()?;
                return Ok(None);
            }
            map.next_value().map(Some)
        })?;
        Ok(Entries(entries))
    }
}

/// Reads the header of a safetensors file, given whole, and checks it against the file's size.
/// `file` is the name that problems are told under.
///
/// # Errors
/// Every tensor whose type is unknown, whose bytes are not as many as its shape says or lie
/// outside the file, overlap another's or leave a gap. A header that is no such JSON at all is
/// one problem.
pub fn parse_header(file: &str, bytes: &[u8]) -> Result<BTreeMap<String, HeaderTensor>, Problems> {
    let mut problems = Problems::default();
    let (entries, data_start) = match entries(bytes) {
        Ok(parsed) => parsed,
        Err(reason) => {
            problems.push(file, "", reason);
            return Err(problems);
        }
    };
    let mut tensors = BTreeMap::new();
    for (name, entry) in entries {
        match tensor(&entry, data_start, bytes.len()) {
            Ok(tensor) => {
                tensors.insert(name, tensor);
            }
            Err(reason) => problems.push(file, &name, reason),
        }
    }
    if problems.is_empty() {
        check_cover(&mut problems, file, &tensors, data_start..bytes.len());
    }
    if problems.is_empty() { Ok(tensors) } else { Err(problems) }
}

/// The entries by name, and where the tensors' bytes begin.
fn entries(bytes: &[u8]) -> Result<(BTreeMap<String, TensorEntry>, usize), String> {
    let size = bytes.len();
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(format!("has {size} bytes, too few for a safetensors file"));
    };
    let length = u64::from_le_bytes(*length);
    if length > JSON_BYTES_MAX {
        return Err(format!("says that its header has {length} bytes, which is too much"));
    }
    let length = length as usize;
    let Some(json) = rest.get(..length) else {
        return Err(format!("says that its header has {length} bytes, but has {size} in all"));
    };
    if json.first() != Some(&b'{') {
        return Err("has a header that does not begin with an object".to_owned());
    }
    let Entries(entries) =
        serde_json::from_slice(json).map_err(|error| format!("has a bad header: {error}"))?;
    Ok((entries, LENGTH_BYTES + length))
}

fn tensor(entry: &TensorEntry, data_start: usize, size: usize) -> Result<HeaderTensor, String> {
    let TensorEntry { dtype, shape, data_offsets: [begin, end] } = entry;
    let Some((dtype, bits)) = DTYPES.iter().find(|(name, _)| name == dtype) else {
        return Err(format!("has the unknown type {dtype:?}"));
    };
    let elements = shape.iter().try_fold(1_usize, |product, n| product.checked_mul(*n));
    let bits = elements.and_then(|n| u64::try_from(n).ok()?.checked_mul(*bits));
    let Some(bits) = bits else {
        return Err(format!("has the shape {shape:?}, which is too large"));
    };
    if !bits.is_multiple_of(8) {
        return Err(format!("has {bits} bits, which are no whole bytes"));
    }
    let data_size = size - data_start;
    if begin > end || *end > data_size {
        return Err(format!("has the bytes {begin}..{end} of {data_size}"));
    }
    if (end - begin) as u64 != bits / 8 {
        let (has, needs) = (end - begin, bits / 8);
        return Err(format!("has {has} bytes, but {dtype} {shape:?} needs {needs}"));
    }
    Ok(HeaderTensor { dtype, shape: shape.clone(), span: data_start + begin..data_start + end })
}

/// Whether the tensors cover the file's bytes, each once.
fn check_cover(
    problems: &mut Problems,
    file: &str,
    tensors: &BTreeMap<String, HeaderTensor>,
    data: Range<usize>,
) {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| (tensor.span.start, tensor.span.end));
    let (mut at, mut last) = (data.start, "the header");
    for (name, tensor) in order {
        let start = tensor.span.start;
        if start < at {
            problems.push(file, name, format_args!("overlaps {last} by {} bytes", at - start));
        } else if start > at {
            let gap = start - at;
            problems.push(file, name, format_args!("begins {gap} bytes after the end of {last}"));
        }
        (at, last) = (at.max(tensor.span.end), name);
    }
    if at != data.end {
        let rest = data.end - at;
        problems.push(file, "", format_args!("has {rest} bytes after the end of {last}"));
    }
}
