//! Demands of a schema that no grammar enforces. They are reported to the client, counted, and
//! logged once per keyword.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use axum::http::HeaderValue;

use crate::metrics::HttpMetrics;

/// Most warnings in the body of a response; a schema may cause thousands.
const WARNINGS_MAX: usize = 16;
/// Most bytes of one warning. A warning may quote a pattern from the client.
const WARNING_BYTES_MAX: usize = 300;
/// Most bytes of the header. Clients and proxies limit all headers together, to 8 KiB or more.
const HEADER_BYTES_MAX: usize = 1024;

/// The keywords that were logged.
#[derive(Default)]
pub(crate) struct Unenforced(Mutex<BTreeSet<String>>);

impl Unenforced {
    pub(crate) fn note(&self, warnings: &[String], metrics: &HttpMetrics) {
        metrics.unenforced.inc_by(warnings.len() as u64);
        for warning in warnings {
            let keyword = keyword(warning);
            let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if logged.insert(keyword.to_owned()) {
                tracing::warn!(keyword, "a schema asks for what is not enforced; logged once");
            }
        }
    }
}

/// The keyword that a warning is about. Keywords are the server's own words, so there are few.
fn keyword(warning: &str) -> &str {
    let rest = warning.strip_prefix("tool ").and_then(|rest| rest.split_once(": "));
    let rest = rest.map_or(warning, |(_, rest)| rest);
    match rest.split('`').nth(1) {
        Some(keyword) if rest.starts_with('`') => keyword,
        _ if rest.starts_with("the pattern") => "pattern",
        _ if rest.starts_with("the format") => "format",
        _ => "other",
    }
}

/// The warnings, shortened for the body of a response.
pub(crate) fn shortened(warnings: &[String]) -> Vec<String> {
    let more = warnings.len().saturating_sub(WARNINGS_MAX);
    let mut short: Vec<String> =
        warnings.iter().take(WARNINGS_MAX).map(|warning| cut(warning, WARNING_BYTES_MAX)).collect();
    if more > 0 {
        short.push(format!("and {more} more"));
    }
    short
}

/// The warnings as the value of a header.
pub(crate) fn header(warnings: &[String]) -> Option<HeaderValue> {
    if warnings.is_empty() {
        return None;
    }
    let text: String = warnings.join("; ").chars().flat_map(char::escape_default).collect();
    // Quotes need no backslash in a header.
    HeaderValue::from_str(&cut(&text.replace("\\\"", "\""), HEADER_BYTES_MAX)).ok()
}

fn cut(text: &str, bytes: usize) -> String {
    let end = text.floor_char_boundary(bytes);
    if end < text.len() { format!("{}...", &text[..end]) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_are_few_whatever_clients_write() {
        for (warning, expected) in [
            ("`not` at #/not is not enforced", "not"),
            ("tool \"f\": `multipleOf` of 1e-9, which is", "multipleOf"),
            ("the pattern \"`x` is: `y`\" (no) at # is not enforced", "pattern"),
            ("tool \"f\": the format \"idn-email\" at # is not enforced", "format"),
            ("a string with so many patterns", "other"),
        ] {
            assert_eq!(keyword(warning), expected);
        }
    }

    #[test]
    fn warnings_are_bounded() {
        let many = vec!["\u{e9}\n\"x\"".repeat(200); 1000];
        let short = shortened(&many);
        assert_eq!((short.len(), short[16].as_str()), (17, "and 984 more"));
        let header = header(&short).unwrap();
        assert!(header.len() < 1100);
        assert!(header.to_str().unwrap().starts_with("\\u{e9}\\n\"x\""));
        assert_eq!(super::header(&[]), None);
    }
}
