//! How much longer a normalizer can make a text. Without a limit, one request could fill the
//! memory.

use serde_json::Value;

use super::Problem;

/// Largest growth. Normal forms and the usual replacements of a space stay far below it.
const GROWTH_MAX: f64 = 64.0;
/// Most bytes that are put before a text.
const PREFIX_BYTES_MAX: usize = 1024;
/// The largest growth of a character by decomposition (NFKD), as bytes per byte.
const DECOMPOSED: f64 = 18.0;

/// # Errors
/// The normalizer can make a text longer than that.
pub(super) fn check(normalizer: &Value) -> Result<(), Problem> {
    let growth = growth(normalizer)?;
    if growth > GROWTH_MAX {
        let reason = format!(
            "its normalizer can make a text {growth:.0} times as long, at most {GROWTH_MAX} \
             times is possible"
        );
        return Err(reason.into());
    }
    Ok(())
}

fn growth(normalizer: &Value) -> Result<f64, Problem> {
    let bytes = |value: &Value| value.as_str().map_or(0, str::len);
    Ok(match normalizer["type"].as_str().unwrap_or_default() {
        "Sequence" => {
            let stages = normalizer["normalizers"].as_array().into_iter().flatten();
            stages.map(growth).product::<Result<f64, Problem>>()?
        }
        "Replace" => {
            let content = bytes(&normalizer["content"]) as f64;
            match bytes(&normalizer["pattern"]["String"]) {
                // A regular expression may match at and between all bytes.
                0 => 1.0 + content,
                replaced => (content / replaced as f64).max(1.0),
            }
        }
        "Prepend" if bytes(&normalizer["prepend"]) > PREFIX_BYTES_MAX => {
            return Err("its normalizer puts more than 1024 bytes before a text".into());
        }
        "NFKD" | "NFKC" | "NFD" | "Precompiled" => DECOMPOSED,
        "Lowercase" | "ByteLevel" | "BertNormalizer" | "Nmt" => 3.0,
        _ => 1.0,
    })
}
