//! Qwen3-Coder. Calls are in XML as in MiMo's format, but tags and values are on separate lines:
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
