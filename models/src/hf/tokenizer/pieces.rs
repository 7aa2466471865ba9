//! SentencePiece from merges.
//!
//! transformers writes a SentencePiece vocabulary down as BPE: every way to cut a token into two tokens is a merge, and
//! merges stand in the order of the scores of what they make. So a token's score is, up to its size, minus the place
//! of its first merge. That holds only if all those ways are there; a vocabulary that was trained as merges has one for
//! each token, and the two rules would give different tokens. So it is checked.

use super::{BYTE, FILE, Merge, NORMAL, UNKNOWN, fault};
use crate::error::Result;
use std::borrow::Cow;
use std::collections::HashMap;

/// Tokens of which some merge is missing, in a hundred, that are still taken for a slip.
const MOST_ODD_PERCENT: usize = 1;

/// Marks the byte tokens and the one for what is unknown.
pub(super) fn set_types(tokens: &[Cow<'_, str>], types: &mut [i32], unk: Option<u32>) {
    for (text, ty) in tokens.iter().zip(types.iter_mut()) {
        let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        if hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok()) {
            *ty = BYTE;
        }
    }
    if let Some(ty) = unk.and_then(|id| types.get_mut(id as usize)) {
        *ty = UNKNOWN;
    }
}

/// Scores by id.
pub(super) fn scores(
    tokens: &[Cow<'_, str>],
    types: &[i32],
    merges: &[Merge<'_>],
    by_text: &HashMap<&str, u32>,
    warnings: &mut Vec<String>,
) -> Result<Vec<f32>> {
    // The place of each token's first merge, and how many merges make it; and as many as could.
    let worst = merges.len() as u32;
    let mut first = vec![worst; tokens.len()];
    let mut listed = vec![0u32; tokens.len()];
    let mut joined = String::new();
    for (place, merge) in (0u32..).zip(merges) {
        let (left, right) = merge.parts();
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        let known = by_text.contains_key(left) && by_text.contains_key(right);
        let Some(&id) = by_text.get(joined.as_str()).filter(|_| known) else {
            let shown: String = merge.0.chars().take(80).collect();
            return Err(fault(
                FILE,
                format!("model.merges: {shown:?} joins or makes what is no token; fetch it again"),
            ));
        };
        first[id as usize] = first[id as usize].min(place);
        listed[id as usize] += 1;
    }
    let mut odd = 0;
    let mut example = None;
    let normal = tokens.iter().zip(types).zip(&listed).filter(|((_, ty), _)| **ty == NORMAL);
    for ((text, _), listed) in normal {
        let cuts = text.char_indices().skip(1).filter(|&(at, _)| {
            let (left, right) = text.split_at(at);
            by_text.contains_key(left) && by_text.contains_key(right)
        });
        if cuts.count() != *listed as usize {
            odd += 1;
            example.get_or_insert(text);
        }
    }
    if let Some(example) = example {
        let shown: String = example.chars().take(40).collect();
        let what =
            format!("{odd} of {} tokens ({shown:?}) lack a merge that SentencePiece would do", tokens.len());
        if odd * 100 > tokens.len() * MOST_ODD_PERCENT {
            let why = format!(
                "model.merges: {what}: BPE of this kind is not supported; use a GGUF file of the model"
            );
            return Err(fault(FILE, why));
        }
        warnings.push(format!("{FILE}: {what}: some texts may get other tokens than in training"));
    }
    // Places are exact: no file of less than 256 MiB has 2^24 merges.
    Ok(first.iter().map(|&place| -(place as f32)).collect())
}
