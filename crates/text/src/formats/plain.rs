//! Plain: the whole reply is the answer.

use super::Style;

pub(super) const STYLE: Style = Style { reasons: false, calls: false, padded: false };
