//! Borders between tokens, and what is computed once.

use super::pair::{Pair, Pairing};
use super::scorer::Scorer;
use lutite_models::{Tokenizer, TokenizerSpec};
use lutite_runtime::decode::{Decoder, Logits, Phase};
use std::convert::Infallible;

const TOKENS: [&str; 8] = ["a", "b", "c", "Ġ", "Ġa", "ab", "<s>", "</s>"];
const A: u32 = 0;
const B: u32 = 1;
const C: u32 = 2;
const SPACE: u32 = 3;
const SPACE_A: u32 = 4;
const AB: u32 = 5;
const BOS: u32 = 6;
const EOS: u32 = 7;

fn tokenizer(bos: Option<u32>, eos: Option<u32>, add_bos: bool) -> Tokenizer {
    let spec = TokenizerSpec {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens: TOKENS.to_vec(),
        token_types: vec![1, 1, 1, 1, 1, 1, 3, 3],
        merges: vec!["Ġ a", "a b"],
        bos,
        eos,
        add_bos: Some(add_bos),
        add_eos: Some(true),
        ..TokenizerSpec::default()
    };
    Tokenizer::new(&spec).unwrap()
}

fn pair(context: &[u32], continuation: &[u32], cut: bool) -> Result<Pair, String> {
    Ok(Pair { context: context.to_vec(), continuation: continuation.to_vec(), cut })
}

#[test]
fn borders_are_where_lm_eval_has_them() {
    let plain = tokenizer(Some(BOS), Some(EOS), false);
    let of = |context, continuation| Pairing { tokenizer: &plain, positions: 9 }.pair(context, continuation);
    assert_eq!(of("c", " a"), pair(&[C], &[SPACE_A], false));
    // The space goes over.
    assert_eq!(of("c ", "a"), pair(&[C], &[SPACE_A], false));
    assert_eq!(of("c  ", "b"), pair(&[C], &[SPACE, SPACE, B], false));
    // `ab` across the border: what the model reads is what the context is alone.
    assert_eq!(of("a", "bc"), pair(&[A], &[C], false));
    assert_eq!(of("a", "b"), Err("the continuation adds no token to its context".into()));
    // Written out, a special token is text; its characters are not in this vocabulary.
    assert_eq!(of("c</s>", "ab"), pair(&[C], &[AB], false));
    // Something has to come first, also where BOS is not wanted.
    assert_eq!(of("", "ab"), pair(&[BOS], &[AB], false));
    assert_eq!(of(" ", "ab"), pair(&[BOS], &[SPACE_A, B], false));

    let begins = tokenizer(Some(BOS), Some(EOS), true);
    let of = |context, continuation| Pairing { tokenizer: &begins, positions: 9 }.pair(context, continuation);
    assert_eq!(of("c", " a"), pair(&[BOS, C], &[SPACE_A], false));
    assert_eq!(of("", "ab"), pair(&[BOS], &[AB], false));

    let no_bos = tokenizer(None, Some(EOS), false);
    assert_eq!(Pairing { tokenizer: &no_bos, positions: 9 }.pair("", "ab"), pair(&[EOS], &[AB], false));
    let nothing = tokenizer(None, None, false);
    let error = Pairing { tokenizer: &nothing, positions: 9 }.pair("", "ab").unwrap_err();
    assert!(error.contains("no token to begin with"), "{error}");
}

#[test]
fn what_does_not_fit_is_cut_on_the_left() {
    let tokenizer = tokenizer(Some(BOS), Some(EOS), true);
    let of = |positions| Pairing { tokenizer: &tokenizer, positions }.pair("ccb", "cac");
    assert_eq!(of(6), pair(&[BOS, C, C, B], &[C, A, C], false));
    assert_eq!(of(5), pair(&[C, C, B], &[C, A, C], true));
    assert_eq!(of(3), pair(&[B], &[C, A, C], true));
    assert_eq!(of(2), Err("the continuation has 3 tokens, the model 2 positions".into()));
}

/// Logits that depend on all tokens that it holds.
#[derive(Debug, Default)]
struct Sum {
    held: Vec<u32>,
    logits: Vec<f32>,
    fed: usize,
    broken: bool,
}

const VOCAB: usize = 8;

impl Decoder for Sum {
    type Error = Infallible;

    fn vocab(&self) -> usize {
        VOCAB
    }
    fn context(&self) -> usize {
        100
    }
    fn batch(&self) -> usize {
        3
    }
    fn position(&self) -> usize {
        self.held.len()
    }
    fn rewind(&mut self, position: usize) {
        self.held.truncate(position);
    }
    fn check_room(&self, _: usize) -> Result<(), Infallible> {
        Ok(())
    }
    fn step(&mut self, tokens: &[u32], phase: Phase, logits: Logits) -> Result<&[f32], Infallible> {
        assert!((1..=3).contains(&tokens.len()) && phase == Phase::Prompt);
        self.fed += tokens.len();
        self.logits.clear();
        for token in tokens {
            self.held.push(*token);
            let hash = self.held.iter().fold(7u32, |hash, token| hash.wrapping_mul(31).wrapping_add(*token));
            let row = (0..VOCAB as u32).map(|t| (hash.wrapping_mul(t + 3) % 97) as f32 * 0.1);
            self.logits.extend(row);
        }
        if self.broken {
            self.logits[0] = f32::NAN;
        }
        Ok(match logits {
            Logits::All => &self.logits,
            Logits::Last => &self.logits[self.logits.len() - VOCAB..],
        })
    }
}

#[test]
fn what_is_shared_is_computed_once() {
    let pairs = [
        (&[1, 2, 3, 4, 5][..], &[6][..], 5),
        // Of the context nothing, of the continuation not the last token.
        (&[1, 2, 3, 4, 5], &[7], 0),
        (&[1, 2, 3, 4, 5], &[0, 1, 2, 3, 4, 5, 6, 7], 7),
        (&[1, 2, 3, 4, 5], &[0, 1, 2, 3], 3),
        (&[1, 2, 3, 4, 6], &[0, 1], 2),
        // A part of the last one, of which only the last token's logits were kept.
        (&[1, 2, 3], &[4, 6], 2),
        (&[1, 2, 3, 4], &[6], 1),
        (&[2], &[6], 1),
    ];
    let mut scorer = Scorer::new(Sum::default(), 2);
    let mut fed = 0;
    for (context, continuation, costs) in pairs {
        let pair = pair(context, continuation, false).unwrap();
        let fast = scorer.log_prob(&pair).unwrap().unwrap();
        let slow = Scorer::new(Sum::default(), 1).log_prob(&pair).unwrap().unwrap();
        assert_eq!(fast.to_bits(), slow.to_bits(), "{pair:?}");
        assert_eq!(scorer.decoder().fed - fed, costs, "{pair:?}");
        fed = scorer.decoder().fed;
    }
}

#[test]
fn what_is_not_finite_is_none() {
    let pair = pair(&[1], &[2, 3], false).unwrap();
    let broken = Sum { broken: true, ..Sum::default() };
    assert_eq!(Scorer::new(broken, 1).log_prob(&pair).unwrap(), None);
}
