//! The text of a call whose tool takes text: the string `input`, extracted from the JSON of the
//! arguments as it arrives.

use super::echo::Escape;
use crate::conversation::TEXT_ARGUMENT;

/// The JSON was written by a reader, so it is well-formed.
#[derive(Debug, Default)]
pub(super) struct TextInput {
    /// Number of open brackets.
    depth: u32,
    /// Whether a string is the key of an argument.
    before_colon: bool,
    key: String,
    string: Option<(Role, Escape)>,
}

#[derive(Clone, Copy, Debug)]
enum Role {
    Key,
    Input,
    Other,
}

impl TextInput {
    pub(super) fn push(&mut self, character: char, out: &mut String) {
        if let Some((role, escape)) = self.string.take() {
            let mut other = String::new();
            let text = match role {
                Role::Key => &mut self.key,
                Role::Input => out,
                Role::Other => &mut other,
            };
            self.string = escape.step(character, text).map(|escape| (role, escape));
            return;
        }
        match character {
            '"' => {
                let role = match self.depth {
                    1 if self.before_colon => Role::Key,
                    1 if self.key == TEXT_ARGUMENT => Role::Input,
                    _ => Role::Other,
                };
                if let Role::Key = role {
                    self.key.clear();
                }
                self.string = Some((role, Escape::No));
            }
            '{' | '[' => {
                self.depth += 1;
                self.before_colon = self.depth == 1;
            }
            '}' | ']' => self.depth = self.depth.saturating_sub(1),
            ',' if self.depth == 1 => self.before_colon = true,
            ':' if self.depth == 1 => self.before_colon = false,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_is_found_among_all_arguments() {
        for (json, expected) in [
            (r#"{"input": "a\nb \"c\" \ud83d\ude00 {"}"#, "a\nb \"c\" 😀 {"),
            (r#"{"x": {"input": "no"}, "y": ["input"], "input": "yes"}"#, "yes"),
            (r#"{"x": "input", "input": "cut"#, "cut"),
            (r#"{"input": ["no"], "z": "no"}"#, ""),
            ("{}", ""),
        ] {
            let (mut input, mut out) = (TextInput::default(), String::new());
            json.chars().for_each(|character| input.push(character, &mut out));
            assert_eq!(out, expected, "{json}");
        }
    }
}
