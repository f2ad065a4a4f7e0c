//! What a scripted engine says. Knows tokens, not pages: the words come from the text so far.

use kilotok_abi::TokenId;

/// The token that should follow a text, if any in particular.
pub type Voice = Box<dyn Fn(&[TokenId]) -> Option<TokenId> + Send>;

/// Repeats what it is told, for a vocabulary whose tokens 0 to 255 are the bytes. The reply is what
/// stands after the last `say:` of the prompt, up to the end of that turn, `turn_end`, or of the
/// line where there are no turns; then comes `turn_end`. Told nothing, it babbles.
///
/// `turn_start` opens a turn, and a line with its role comes first. `skipped` may stand at the
/// head of a reply without being part of it: marks that a template writes for the model.
pub fn parrot(turn_start: TokenId, turn_end: TokenId, skipped: Vec<TokenId>) -> Voice {
    const LINE_END: TokenId = b'\n' as TokenId;
    let told = b"say:".map(TokenId::from);
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
        let words = prompt[told..].split(|token| *token == last).next()?;
        words.starts_with(reply).then(|| *words.get(reply.len()).unwrap_or(&turn_end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: TokenId = 256;
    const END: TokenId = 257;

    fn next(parts: &[&[TokenId]]) -> Option<TokenId> {
        parrot(START, END, vec![258, 259])(&parts.concat())
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
}
