//! Harmony, the format of gpt-oss: see [`crate::harmony`].

use super::Style;

pub(super) const STYLE: Style = Style { reasons: true, calls: true, padded: false };

pub(super) fn writes(model_type: &str, template: &str) -> bool {
    model_type == "gpt_oss"
        || (template.contains("<|start|>assistant") && template.contains("<|channel|>analysis"))
}
