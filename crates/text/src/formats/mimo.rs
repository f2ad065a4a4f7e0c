//! MiMo. Reasoning, answer and calls follow each other with nothing between them, and all text is
//! verbatim, including values:
//!
//! ```text
//! <think>reasoning</think>answer<tool_call>
//! <function=name>
//! <parameter=key>value</parameter>
//! </function>
//! </tool_call>
//! ```

use super::Style;

pub(super) const STYLE: Style = Style { reasons: true, calls: true, padded: false };

pub(super) fn writes(model_type: &str, template: &str) -> bool {
    model_type.starts_with("mimo") && template.contains("<function=")
}
