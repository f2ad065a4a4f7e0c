//! How a step's prompt tokens are shared. Half go to the request first in order of rank, so that a
//! stream of short prompts cannot hold up a long one. The rest go to the shortest prompts, so that
//! a long prompt cannot hold up short ones.

/// Tokens for each prompt, given the tokens that each has left to compute, in order of rank.
pub(crate) fn share_prompts(lefts: &[u32], budget: u32) -> Vec<u32> {
    let mut shares = vec![0; lefts.len()];
    let Some(first) = shares.first_mut() else {
        return shares;
    };
    *first = lefts[0].min(budget.div_ceil(2));
    let mut budget = budget - *first;
    let mut order: Vec<usize> = (0..lefts.len()).collect();
    order.sort_by_key(|index| lefts[*index] - shares[*index]);
    for index in order {
        let share = (lefts[index] - shares[index]).min(budget);
        shares[index] += share;
        budget -= share;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_goes_to_the_first_and_half_to_the_shortest() {
        assert!(share_prompts(&[], 10).is_empty());
        assert_eq!(share_prompts(&[100], 10), [10]);
        assert_eq!(share_prompts(&[100, 50, 3], 10), [5, 2, 3]);
        assert_eq!(share_prompts(&[2, 50, 30], 10), [2, 0, 8]);
        assert_eq!(share_prompts(&[4, 4], 10), [4, 4]);
        assert_eq!(share_prompts(&[9, 9], 1), [1, 0]);
    }
}
