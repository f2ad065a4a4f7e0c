//! Plain: a reply is its text.

use super::Style;

pub(super) const STYLE: Style = Style { reasons: false, calls: false, padded: false };
