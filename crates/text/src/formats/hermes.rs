//! Hermes, the format of Qwen2.5 and Qwen3. A call is a JSON object:
//!
//! ```text
//! <think>
//! reasoning
//! </think>
//!
//! answer
//! <tool_call>
//! {"name": "name", "arguments": {"key": "value"}}
//! </tool_call>
//! ```

use super::Style;

pub(super) const STYLE: Style = Style { reasons: true, calls: true, padded: true };

pub(super) fn writes(template: &str) -> bool {
    template.contains("<tool_call>") || template.contains("<think>")
}
