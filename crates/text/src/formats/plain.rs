//! Plain: all of a reply is its answer.

use super::Style;

pub(super) const STYLE: Style = Style { reasons: false, calls: false, padded: false };
