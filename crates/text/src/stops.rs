//! Finds stop strings in text that arrives in pieces. Only a possible beginning of a stop string is
//! held back, and the place where the text ends does not depend on the pieces. This module does not
//! know tokens or markup.

/// Finds the stop string that ends first; if several end at the same place, the longest.
#[derive(Debug)]
pub(crate) struct Stops {
    searches: Vec<Search>,
    include: bool,
    /// Text that is held back: at least as long as the longest current match.
    held: String,
    found: bool,
}

/// The search for one string, by the algorithm of Knuth, Morris and Pratt.
#[derive(Debug)]
struct Search {
    stop: String,
    /// For each length of the match, less one: the longest shorter match that it ends with.
    shorter: Vec<usize>,
    /// How many bytes of `stop` the text so far ends with.
    matched: usize,
}

impl Stops {
    pub(crate) fn new(stop: Vec<String>, include: bool) -> Self {
        let mut stop = stop;
        stop.retain(|stop| !stop.is_empty());
        // The longest comes first, so it is found first if several end at the same place.
        stop.sort_by_key(|stop| std::cmp::Reverse(stop.len()));
        let searches = stop.into_iter().map(Search::new).collect();
        Self { searches, include, held: String::new(), found: false }
    }

    /// Appends to `out` the text that certainly belongs to the reply. Returns a stop string that is
    /// complete; nothing after it belongs to the reply. If stops do not `count`, text passes, but
    /// may still be the beginning of a stop string.
    pub(crate) fn push(&mut self, text: &str, counts: bool, out: &mut String) -> Option<String> {
        if self.found {
            return None;
        }
        if self.searches.is_empty() {
            out.push_str(text);
            return None;
        }
        for character in text.chars() {
            self.held.push(character);
            let mut bytes = [0; 4];
            let bytes = character.encode_utf8(&mut bytes).as_bytes();
            let found = self.searches.iter_mut().filter_map(|search| {
                let complete = search.advance(bytes);
                (complete && counts).then(|| search.stop.clone())
            });
            // Every search must see the character.
            let found = found.fold(None, |first: Option<String>, next| first.or(Some(next)));
            if let Some(stop) = found {
                self.found = true;
                let kept = if self.include { 0 } else { stop.len() };
                self.held.truncate(self.held.len() - kept);
                out.push_str(&std::mem::take(&mut self.held));
                return Some(stop);
            }
            let held = self.searches.iter().map(|search| search.matched).max().unwrap_or(0);
            out.extend(self.held.drain(..self.held.len() - held));
        }
        None
    }

    /// Ends the text: held-back text is not a stop string. Another text may follow.
    pub(crate) fn finish(&mut self, text: &str, out: &mut String) {
        if !self.found {
            out.push_str(&std::mem::take(&mut self.held));
            out.push_str(text);
            self.searches.iter_mut().for_each(|search| search.matched = 0);
        }
    }
}

impl Search {
    fn new(stop: String) -> Self {
        let bytes = stop.as_bytes();
        let mut shorter = vec![0; bytes.len()];
        let mut matched = 0;
        for at in 1..bytes.len() {
            while matched > 0 && bytes[at] != bytes[matched] {
                matched = shorter[matched - 1];
            }
            matched += usize::from(bytes[at] == bytes[matched]);
            shorter[at] = matched;
        }
        Self { stop, shorter, matched: 0 }
    }

    /// Adds a byte. Returns whether the text now ends with the whole stop string.
    fn advance(&mut self, bytes: &[u8]) -> bool {
        let stop = self.stop.as_bytes();
        let mut complete = false;
        for &byte in bytes {
            if self.matched == stop.len() {
                self.matched = self.shorter[self.matched - 1];
            }
            while self.matched > 0 && byte != stop[self.matched] {
                self.matched = self.shorter[self.matched - 1];
            }
            self.matched += usize::from(byte == stop[self.matched]);
            complete = self.matched == stop.len();
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The text that is released with each piece and at the end, and the stop string that was
    /// found.
    fn pushed(
        stop: &[String],
        include: bool,
        pieces: &[(String, bool)],
    ) -> (Vec<String>, Option<String>) {
        let mut stops = Stops::new(stop.to_vec(), include);
        let mut found = None;
        let mut out = Vec::new();
        for (piece, counts) in pieces {
            let mut text = String::new();
            found = found.or(stops.push(piece, *counts, &mut text));
            out.push(text);
        }
        let mut text = String::new();
        stops.finish("", &mut text);
        out.push(text);
        (out, found)
    }

    /// The same result, from a search at every position of the text.
    fn naive(
        stop: &[String],
        include: bool,
        pieces: &[(String, bool)],
    ) -> (String, Option<String>) {
        let mut text = String::new();
        for (piece, counts) in pieces {
            for character in piece.chars() {
                text.push(character);
                let ends = stop.iter().filter(|stop| !stop.is_empty() && text.ends_with(*stop));
                if let Some(longest) = ends.max_by_key(|stop| stop.len()).filter(|_| *counts) {
                    let cut = if include { 0 } else { longest.len() };
                    text.truncate(text.len() - cut);
                    return (text, Some(longest.clone()));
                }
            }
        }
        (text, None)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn stops_are_found_as_by_looking_everywhere(
            stop in prop::collection::vec("[abé]{0,5}", 0..4),
            include in any::<bool>(),
            pieces in prop::collection::vec(("[abcé]{0,6}", prop::bool::weighted(0.8)), 0..10),
        ) {
            let (text, found) = pushed(&stop, include, &pieces);
            prop_assert_eq!((text.concat(), found), naive(&stop, include, &pieces));
        }

        #[test]
        fn only_the_longest_possible_beginning_is_held_back(
            stop in prop::collection::vec("[ab]{1,5}", 1..4),
            text in "[abc]{0,20}",
        ) {
            let pieces: Vec<_> = text.chars().map(|c| (c.to_string(), true)).collect();
            let (given, found) = pushed(&stop, false, &pieces);
            let mut so_far = 0;
            for (index, piece) in given.iter().take(text.len()).enumerate() {
                let read = &text[..=index];
                if stop.iter().any(|stop| read.ends_with(stop)) {
                    prop_assert!(found.is_some());
                    break;
                }
                let begins = |stop: &&String| {
                    (0..stop.len()).rev().find(|&length| read.ends_with(&stop[..length]))
                };
                let held = stop.iter().filter_map(|stop| begins(&stop)).max().unwrap_or(0);
                so_far += piece.len();
                prop_assert_eq!(so_far, read.len() - held, "after {}", read);
            }
        }
    }
}
