//! Qwen3-Coder. Calls in XML as MiMo's, but what they consist of is on lines of its own:
//!
//! ```text
//! answer
//! <tool_call>
//! <function=name>
//! <parameter=key>
//! value
//! </parameter>
//! </function>
//! </tool_call>
//! ```

use super::Style;

pub(super) const STYLE: Style = Style { reasons: true, calls: true, padded: true };

pub(super) fn writes(template: &str) -> bool {
    template.contains("<tool_call>") && template.contains("<function=")
}
