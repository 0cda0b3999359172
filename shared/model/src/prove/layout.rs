//! Which sequences are computed together, and where each of their tokens lies in the packed row of tokens. Pure.

use std::ops::Range;

use super::Sequence;

/// Where one sequence lies: its prompt, which it may share with its neighbours, and its completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub prompt: Range<usize>,
    pub completion: Range<usize>,
}

impl Place {
    /// Prompt and completion lie side by side.
    pub fn is_whole(&self) -> bool {
        self.prompt.end == self.completion.start
    }

    /// Tokens of the sequence.
    pub fn len(&self) -> usize {
        self.prompt.len() + self.completion.len()
    }

    /// The packed row of a position of the sequence.
    pub fn row(&self, position: usize) -> usize {
        match position.checked_sub(self.prompt.len()) {
            None => self.prompt.start + position,
            Some(offset) => self.completion.start + offset,
        }
    }
}

/// A batch: packed ids, each with its position in its own sequence.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub ids: Vec<i64>,
    pub positions: Vec<i64>,
    pub places: Vec<Place>,
}

impl Layout {
    /// Lays sequences end to end in the given order. With `share`, neighbours with the same prompt have it once.
    pub fn of(sequences: &[Sequence], share: bool) -> Self {
        let mut layout = Self::default();
        let mut before: Option<(&[u32], Range<usize>)> = None;
        for sequence in sequences {
            let (prompt, completion) = sequence.tokens.split_at(sequence.prompt_length);
            let known = before.as_ref().filter(|(known, _)| share && *known == prompt && !completion.is_empty());
            let place = match known {
                Some((_, range)) => range.clone(),
                None => layout.push(prompt, 0),
            };
            let completion = layout.push(completion, prompt.len());
            layout.places.push(Place { prompt: place.clone(), completion });
            before = Some((prompt, place));
        }
        layout
    }

    fn push(&mut self, tokens: &[u32], first_position: usize) -> Range<usize> {
        let start = self.ids.len();
        self.ids.extend(tokens.iter().map(|&token| i64::from(token)));
        self.positions.extend((first_position..first_position + tokens.len()).map(|position| position as i64));
        start..self.ids.len()
    }
}

/// Cuts sequences, in order, into the fewest batches of at most `budget` tokens and makes those about equally long, so that
/// none is too short to fill the device. A sequence that is longer than the budget has a batch of its own.
pub(super) fn batches(sequences: &[Sequence], share: bool, budget: usize) -> Vec<Range<usize>> {
    let own = own_tokens(sequences, share);
    let (greedy, tokens) = cut(sequences, &own, budget);
    let mut aim = tokens.div_ceil(greedy.len().max(1)).min(budget);
    let mut balanced = cut(sequences, &own, aim).0;
    // Whole sequences do not always divide as evenly as tokens do.
    while balanced.len() > greedy.len() {
        aim = (aim + aim.div_ceil(16)).min(budget);
        balanced = cut(sequences, &own, aim).0;
    }
    balanced
}

/// The tokens that each sequence adds to a batch that its predecessor is in.
fn own_tokens(sequences: &[Sequence], share: bool) -> Vec<usize> {
    let own = |(index, sequence): (usize, &Sequence)| {
        let shared = share && index > 0 && sequences[index - 1].prompt() == sequence.prompt();
        sequence.tokens.len() - if shared { sequence.prompt_length } else { 0 }
    };
    sequences.iter().enumerate().map(own).collect()
}

/// Fills batch after batch up to `budget`; also gives the tokens of all of them.
fn cut(sequences: &[Sequence], own: &[usize], budget: usize) -> (Vec<Range<usize>>, usize) {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let (mut tokens, mut all) = (0, 0);
    for (index, sequence) in sequences.iter().enumerate() {
        match batches.last_mut() {
            Some(batch) if tokens + own[index] <= budget => {
                batch.end = index + 1;
                tokens += own[index];
            }
            _ => {
                batches.push(index..index + 1);
                all += tokens;
                tokens = sequence.tokens.len();
            }
        }
    }
    (batches, all + tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sequence(tokens: &[u32], prompt_length: usize) -> Sequence<'_> {
        Sequence { tokens, prompt_length, coefficients: [1; 16] }
    }

    fn groups() -> impl Strategy<Value = Vec<(Vec<u32>, usize)>> {
        let group = (proptest::collection::vec(0u32..50, 0..9), proptest::collection::vec(1usize..40, 1..17));
        proptest::collection::vec(group, 1..4).prop_map(|groups| {
            let whole = |prompt: &[u32], length: usize| {
                prompt.iter().copied().chain((0..length as u32).map(|token| token + 100)).collect::<Vec<_>>()
            };
            groups.iter().flat_map(|(prompt, lengths)| lengths.iter().map(|&n| (whole(prompt, n), prompt.len()))).collect()
        })
    }

    proptest! {
        #[test]
        fn every_token_of_every_sequence_is_found_at_its_row(rows in groups(), share: bool) {
            let sequences: Vec<Sequence> = rows.iter().map(|(tokens, prompt)| sequence(tokens, *prompt)).collect();
            let layout = Layout::of(&sequences, share);
            for (sequence, place) in sequences.iter().zip(&layout.places) {
                prop_assert_eq!(place.len(), sequence.tokens.len());
                for (position, &token) in sequence.tokens.iter().enumerate() {
                    let row = place.row(position);
                    prop_assert_eq!((layout.ids[row], layout.positions[row]), (i64::from(token), position as i64));
                }
            }
            if !share {
                prop_assert!(layout.places.iter().all(Place::is_whole));
                prop_assert_eq!(layout.ids.len(), rows.iter().map(|(tokens, _)| tokens.len()).sum::<usize>());
            }
        }

        #[test]
        fn batches_cover_everything_in_order_and_keep_to_the_budget(rows in groups(), share: bool, budget in 1usize..300) {
            let sequences: Vec<Sequence> = rows.iter().map(|(tokens, prompt)| sequence(tokens, *prompt)).collect();
            let batches = batches(&sequences, share, budget);
            let mut next = 0;
            for batch in &batches {
                prop_assert_eq!(batch.start, next);
                next = batch.end;
                let tokens = Layout::of(&sequences[batch.clone()], share).ids.len();
                prop_assert!(tokens <= budget || batch.len() == 1);
            }
            prop_assert_eq!(next, sequences.len());
            prop_assert_eq!(batches.len(), cut(&sequences, &own_tokens(&sequences, share), budget).0.len());
        }
    }

    #[test]
    fn a_group_of_one_prompt_has_it_once() {
        let rows: Vec<Vec<u32>> = (0..16).map(|row| vec![7, 8, 9, row, row]).collect();
        let sequences: Vec<Sequence> = rows.iter().map(|tokens| sequence(tokens, 3)).collect();
        let layout = Layout::of(&sequences, true);
        assert_eq!(layout.ids.len(), 3 + 16 * 2);
        assert!(layout.places[0].is_whole() && !layout.places[1].is_whole());
        assert_eq!(layout.positions[3..7], [3, 4, 3, 4]);
    }
}
