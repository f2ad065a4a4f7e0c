//! Streaming detokenizer: turns arriving bytes into text. The returned pieces, joined, are the
//! lossy decoding of all bytes, and no Unicode scalar is split. This module does not know tokens.

/// Holds back at most the three bytes of an incomplete scalar.
#[derive(Clone, Debug, Default)]
pub(crate) struct Detokenizer {
    pending: Vec<u8>,
}

impl Detokenizer {
    /// Appends to `out` the text that is complete with these bytes.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    out.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    rest = after;
                    // Without a length, the remaining bytes may still become a scalar.
                    let Some(invalid) = error.error_len() else { break };
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[invalid..];
                }
            }
        }
        let kept = rest.len();
        self.pending.drain(..self.pending.len() - kept);
    }

    /// Ends the text: an incomplete scalar becomes one U+FFFD.
    pub(crate) fn finish(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes that meet in valid, cut and impossible sequences.
    const BYTES: [u8; 16] = [
        b'a', 0x80, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc3, 0xe0, 0xe4, 0xed, 0xef, 0xf0, 0xf4, 0xf5,
        0xff,
    ];

    fn pushed(pieces: &[Vec<u8>]) -> Vec<String> {
        let mut detokenizer = Detokenizer::default();
        let mut out: Vec<String> = Vec::new();
        for piece in pieces {
            let mut text = String::new();
            detokenizer.push(piece, &mut text);
            out.push(text);
        }
        let mut text = String::new();
        detokenizer.finish(&mut text);
        out.push(text);
        out
    }

    proptest! {
        #[test]
        fn pieces_make_the_text_of_the_whole(
            pieces in prop::collection::vec(
                prop::collection::vec(prop::sample::select(&BYTES[..]), 0..6),
                0..12,
            ),
        ) {
            let whole = pieces.concat();
            prop_assert_eq!(pushed(&pieces).concat(), String::from_utf8_lossy(&whole));
        }

        #[test]
        fn no_more_than_a_scalar_is_held_back(text in "[a-zé世😀]{0,20}") {
            let bytes: Vec<Vec<u8>> = text.bytes().map(|byte| vec![byte]).collect();
            let mut given = String::new();
            for (index, piece) in pushed(&bytes).into_iter().enumerate() {
                given.push_str(&piece);
                let complete = (0..=index + 1).rev().find(|&end| text.is_char_boundary(end));
                prop_assert_eq!(given.len(), complete.unwrap_or(0).min(text.len()));
            }
        }
    }
}
