//! The parts of a request that are left out of its prompt: tools that only their vendor's service
//! can run, and items and parts of a conversation that have no text. Clients get no warning, so
//! they are counted by type and logged once.

use std::collections::BTreeMap;

use crate::metrics::HttpMetrics;

/// Types that have a counter of their own, without their dates. All others are counted as `other`,
/// because clients can send any type.
const TYPES: &[&str] = &[
    "apply_patch",
    "bash",
    "code_execution",
    "code_interpreter",
    "computer",
    "computer_use_preview",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "mcp_toolset",
    "memory",
    "shell",
    "str_replace_based_edit_tool",
    "text_editor",
    "tool_search",
    "tool_search_tool_bm25",
    "tool_search_tool_regex",
    "web_fetch",
    "web_search",
    "web_search_preview",
    "compaction",
    "computer_screenshot",
    "container_upload",
    "document",
    "image",
    "image_generation_call",
    "image_url",
    "input_audio",
    "input_file",
    "input_image",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_list_tools",
    "reasoning",
    "redacted_thinking",
    "web_search_call",
];

/// The kind of thing that was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    Tool,
    Item,
    Part,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Tool => "tool",
            Self::Item => "item",
            Self::Part => "part",
        }
    }
}

/// Everything that was left out of one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeftOut(BTreeMap<(What, &'static str), Kind>);

#[derive(Clone, Debug)]
struct Kind {
    /// The type as the client first wrote it.
    written: String,
    count: u64,
}

/// Most bytes of a type that are logged.
const WRITTEN_BYTES_MAX: usize = 64;

impl LeftOut {
    pub(crate) fn add(&mut self, what: What, kind: &str) {
        let written = &kind[..kind.floor_char_boundary(WRITTEN_BYTES_MAX)];
        let first = || Kind { written: written.to_owned(), count: 0 };
        self.0.entry((what, label(kind))).or_insert_with(first).count += 1;
    }

    /// Adds the counts to the metrics, and logs types that are seen for the first time.
    pub(crate) fn publish(&self, metrics: &HttpMetrics) {
        for ((what, label), Kind { written, count }) in &self.0 {
            let what = what.name();
            if metrics.left_out(what, label, *count) {
                tracing::warn!(
                    what,
                    kind = written,
                    "left out of a request, for this server cannot use it; counted in \
                     kilotok:left_out_total, and not logged again"
                );
            }
        }
    }
}

/// The type if it is known, without the date that some types carry.
fn label(kind: &str) -> &'static str {
    let date = |rest: &str| rest.chars().all(|c| c.is_ascii_digit() || c == '_');
    let is = |known: &str| {
        kind.strip_prefix(known)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('_') && date(rest))
    };
    TYPES.iter().find(|known| is(known)).unwrap_or(&"other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_counted_without_their_dates() {
        for (kind, expected) in [
            ("web_search", "web_search"),
            ("web_search_20250305", "web_search"),
            ("web_search_preview_2025_03_11", "web_search_preview"),
            ("tool_search_tool_bm25_20251119", "tool_search_tool_bm25"),
            ("", "other"),
            ("anything", "other"),
        ] {
            assert_eq!(label(kind), expected);
        }
    }

    #[test]
    fn it_does_not_grow_with_what_a_client_writes() {
        let mut left_out = LeftOut::default();
        for number in 0..1000 {
            left_out.add(What::Item, &format!("{number}{}", "é".repeat(1000)));
        }
        assert_eq!(left_out.0.len(), 1);
        let kind = &left_out.0[&(What::Item, "other")];
        assert_eq!(kind.count, 1000);
        assert!(kind.written.len() <= WRITTEN_BYTES_MAX);
    }
}
