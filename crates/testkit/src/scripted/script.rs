//! Scripts: the answers of a scripted engine, given the text so far. Scripts know tokens, not
//! pages.

use kilotok_abi::TokenId;

/// Returns the token that should follow a text, if the script names one.
pub type Script = Box<dyn Fn(&[TokenId]) -> Option<TokenId> + Send>;

/// Repeats what the prompt says, for a vocabulary whose tokens 0 to 255 are the bytes. The reply is
/// the text after the last `say:` of the prompt, up to the end of that turn, `turn_end`, or of the
/// line where there are no turns; then comes `turn_end`. Without a `say:` the reply is random.
///
/// A turn may hold several replies, each after a line that begins with `next:`. The first answers
/// that turn, the second comes after the first and, for example, the result of its call, and so on.
///
/// `turn_start` opens a turn, and a line with its role comes first. `skipped` may stand at the head
/// of a reply without being part of it: marks that a template writes for the model.
pub fn repeat_prompt(turn_start: TokenId, turn_end: TokenId, skipped: Vec<TokenId>) -> Script {
    const LINE_END: TokenId = b'\n' as TokenId;
    let (told, next) = (b"say:".map(TokenId::from), b"\nnext:".map(TokenId::from));
    Box::new(move |text| {
        let turn = text.iter().rposition(|token| *token == turn_start);
        let prompt_end = match turn {
            Some(start) => start + text[start..].iter().position(|token| *token == LINE_END)? + 1,
            None => text.iter().rposition(|token| *token == LINE_END)? + 1,
        };
        let (prompt, mut reply) = text.split_at(prompt_end);
        reply = reply.strip_prefix(skipped.as_slice()).unwrap_or(reply);
        let told = prompt.windows(told.len()).rposition(|words| words == told)? + told.len();
        let last = if turn.is_some() { turn_end } else { LINE_END };
        let mut words = prompt[told..].split(|token| *token == last).next()?;
        let opening = &prompt[turn.unwrap_or(prompt_end)..];
        let turn_count = if opening.is_empty() { 1 } else { count(&prompt[told..], opening) };
        for _ in 1..turn_count {
            let Some(line) = find(words, &next) else { break };
            words = &words[line + next.len()..];
        }
        words = &words[..find(words, &next).unwrap_or(words.len())];
        words.starts_with(reply).then(|| *words.get(reply.len()).unwrap_or(&turn_end))
    })
}

fn find(text: &[TokenId], part: &[TokenId]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

fn count(text: &[TokenId], part: &[TokenId]) -> usize {
    text.windows(part.len()).filter(|window| *window == part).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: TokenId = 256;
    const END: TokenId = 257;

    fn next(parts: &[&[TokenId]]) -> Option<TokenId> {
        repeat_prompt(START, END, vec![258, 259])(&parts.concat())
    }

    fn bytes(text: &str) -> Vec<TokenId> {
        text.bytes().map(TokenId::from).collect()
    }

    #[test]
    fn a_reply_repeats_the_last_thing_told() {
        let user = [vec![START], bytes("user\nsay:no say:ab"), vec![END, 10]].concat();
        let turn = [vec![START], bytes("assistant\n")].concat();
        assert_eq!(next(&[&user, &turn]), Some(97));
        assert_eq!(next(&[&user, &turn, &[97]]), Some(98));
        assert_eq!(next(&[&user, &turn, &[258, 259, 97, 98]]), Some(END));
        assert_eq!(next(&[&user, &turn, &[98]]), None);
        assert_eq!(next(&[&bytes("say:ab\na")]), Some(98));
        assert_eq!(next(&[&bytes("nothing\n")]), None);
        assert_eq!(next(&[]), None);
    }

    #[test]
    fn a_turn_may_tell_several_replies() {
        let user = [vec![START], bytes("user\nsay:ab\nnext:cd\nnext:"), vec![END]].concat();
        let result = [vec![START], bytes("tool\nx"), vec![END]].concat();
        let turn = [vec![START], bytes("assistant\n")].concat();
        let (first, second) =
            ([bytes("ab"), vec![END]].concat(), [bytes("cd"), vec![END]].concat());
        assert_eq!(next(&[&user, &turn, &bytes("ab")]), Some(END));
        assert_eq!(next(&[&user, &turn, &first, &result, &turn]), Some(99));
        assert_eq!(next(&[&user, &turn, &first, &turn, &second, &turn]), Some(END));
        assert_eq!(next(&[&user, &turn, &first, &user, &turn]), Some(97));
    }
}
