//! A cache of compiled grammars, because most clients send the same schema with every request. Its
//! size in source text is bounded, so that hostile requests cannot fill the memory.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many applications can use schemas of their own at the same time.
const ENTRIES_MAX: usize = 64;
/// Most bytes of all keys. A compiled grammar takes about 50 times its text, so all take 50 MiB.
const KEY_BYTES_MAX: usize = 1 << 20;

/// The most recently used entry comes first.
pub(super) struct Cache<T>(Mutex<VecDeque<(String, T)>>);

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Cache<T> {
    pub(super) fn get(&self, key: &str) -> Option<T> {
        let mut entries = self.entries();
        let at = entries.iter().position(|(known, _)| known == key)?;
        let entry = entries.remove(at)?;
        let value = entry.1.clone();
        entries.push_front(entry);
        Some(value)
    }

    pub(super) fn put(&self, key: String, value: &T) {
        let mut entries = self.entries();
        if key.len() > KEY_BYTES_MAX || entries.iter().any(|(known, _)| *known == key) {
            return;
        }
        entries.push_front((key, value.clone()));
        let mut bytes = 0;
        let mut fits = |(key, _): &(String, T)| {
            bytes += key.len();
            bytes <= KEY_BYTES_MAX
        };
        let kept = entries.iter().take(ENTRIES_MAX).take_while(|entry| fits(entry)).count();
        entries.truncate(kept);
    }

    fn entries(&self) -> MutexGuard<'_, VecDeque<(String, T)>> {
        // No panic can leave the list half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_is_kept() {
        let cache = Cache::default();
        for number in 0..ENTRIES_MAX {
            cache.put(number.to_string(), &number);
        }
        assert_eq!(cache.get("0"), Some(0));
        cache.put("new".into(), &77);
        assert_eq!((cache.get("new"), cache.get("0"), cache.get("1")), (Some(77), Some(0), None));
        assert_eq!(cache.len(), ENTRIES_MAX);
    }

    #[test]
    fn the_text_of_all_keys_is_bounded() {
        let cache = Cache::default();
        let key = |letter: &str, length: usize| letter.repeat(length);
        cache.put(key("x", KEY_BYTES_MAX + 1), &0);
        assert_eq!(cache.len(), 0);
        let half = KEY_BYTES_MAX / 2;
        for (number, letter) in ["a", "b", "c"].iter().enumerate() {
            cache.put(key(letter, half), &number);
        }
        assert_eq!((cache.get(&key("a", half)), cache.get(&key("b", half))), (None, Some(1)));
        cache.put(key("d", KEY_BYTES_MAX), &3);
        assert_eq!((cache.len(), cache.get(&key("d", KEY_BYTES_MAX))), (1, Some(3)));
    }
}
