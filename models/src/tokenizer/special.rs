//! Special tokens: finding them in a text, and knowing which of them end an answer.

use super::spec::TokenKind;
use super::strings::Strings;
use std::collections::BTreeMap;
use std::ops::Range;

/// Texts that end an answer wherever they are in a vocabulary, as llama.cpp has them (`llama_vocab::impl::load`; files
/// name one EOS, but chat models end a turn with another token). They are control tokens even if the file says normal.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Fill-in-the-middle tokens; a role is given to the first of its texts that the vocabulary has. The last three roles
/// (padding, repository, file separator) also end an answer.
const FILL_IN: [&[&str]; 6] = [
    &[
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ],
    &[
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ],
    &[
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ],
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];
const FILL_IN_ENDS: usize = 3;

/// Longer special tokens are not searched for; the longest known ones have some 40 bytes. Each length that there is costs
/// a look at each place of a text where a token may start: without an end, a file of a few megabytes could take minutes
/// over a page of text.
pub(super) const MAX_SPECIAL_BYTES: usize = 256;

/// Finds the tokens that end an answer, sorted, and corrects kinds the way llama.cpp does. `named` are the file's own
/// EOS, EOT and EOM.
pub(super) fn find_ends(strings: &Strings, kinds: &mut [TokenKind], named: &[Option<u32>]) -> Vec<u32> {
    let mut ends: Vec<u32> = named.iter().flatten().copied().collect();
    let mut control = |id: u32| kinds[id as usize] = TokenKind::Control;
    for (role, texts) in FILL_IN.iter().enumerate() {
        if let Some(id) = texts.iter().find_map(|text| strings.find(text)) {
            control(id);
            if role >= FILL_IN_ENDS {
                ends.push(id);
            }
        }
    }
    for id in ENDS.iter().filter_map(|text| strings.find(text)) {
        control(id);
        ends.push(id);
    }
    let among = |ends: &[u32], text: &str| strings.find(text).filter(|id| ends.contains(id));
    // Harmony (gpt-oss): <|end|> only ends a channel, and its marks belong to the text.
    let called = among(&ends, "<|call|>").or(among(&ends, "<|calls|>")).is_some();
    let harmony = called && (among(&ends, "<|return|>").is_some() || among(&ends, "<|flush|>").is_some());
    for text in ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"] {
        if let Some(id) = strings.find(text) {
            kinds[id as usize] = TokenKind::UserDefined;
        }
    }
    if let Some(id) = among(&ends, "<|end|>").filter(|_| harmony) {
        kinds[id as usize] = TokenKind::UserDefined;
        ends.retain(|&e| e != id);
    }
    // Where these are, </s> is ordinary text (Gemma 4, PLaMo).
    if among(&ends, "<|tool_response>").or(among(&ends, "<|plamo:eos|>")).is_some()
        && let Some(id) = among(&ends, "</s>")
    {
        kinds[id as usize] = TokenKind::Normal;
        ends.retain(|&e| e != id);
    }
    ends.sort_unstable();
    ends.dedup();
    ends
}

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fragment {
    /// To be tokenized.
    Text(Range<usize>),
    /// A special token that was written out.
    Token(u32),
}

/// The special tokens of a vocabulary, ready to be searched for.
#[derive(Debug, Clone, Default)]
pub(super) struct Specials {
    /// Found in every text (user-defined).
    always: Search,
    /// Found when special tokens are asked for: those, control and unknown tokens.
    parsed: Search,
}

#[derive(Debug, Clone, Default)]
struct Search {
    /// The bytes that start any of the tokens.
    first: Vec<bool>,
    /// The lengths there are, longest first, each with the bytes that start a token of this length.
    lengths: Vec<(usize, Vec<bool>)>,
}

impl Search {
    fn new<'s>(texts: impl Iterator<Item = &'s str>) -> Search {
        let mut by_length: BTreeMap<usize, Vec<bool>> = BTreeMap::new();
        let mut first = vec![false; 256];
        for text in texts.filter(|text| text.len() <= MAX_SPECIAL_BYTES) {
            if let Some(&byte) = text.as_bytes().first() {
                first[byte as usize] = true;
                by_length.entry(text.len()).or_insert_with(|| vec![false; 256])[byte as usize] = true;
            }
        }
        Search { first, lengths: by_length.into_iter().rev().collect() }
    }
}

impl Specials {
    /// Collects them from the vocabulary.
    pub(super) fn new(strings: &Strings, kinds: &[TokenKind]) -> Specials {
        let of = |wanted: &'static [TokenKind]| {
            let ids = (0u32..).zip(kinds).filter(move |(_, kind)| wanted.contains(kind));
            Search::new(ids.filter_map(|(id, _)| strings.get(id)))
        };
        Specials {
            always: of(&[TokenKind::UserDefined]),
            parsed: of(&[TokenKind::UserDefined, TokenKind::Control, TokenKind::Unknown]),
        }
    }

    /// Cuts `text` at its special tokens: the longest are looked for first, in the whole text, then shorter ones in what
    /// is left, each from left to right (llama.cpp's `tokenizer_st_partition`).
    pub(super) fn partition(
        &self,
        text: &str,
        parse_special: bool,
        strings: &Strings,
        kinds: &[TokenKind],
    ) -> Vec<Fragment> {
        let search = if parse_special { &self.parsed } else { &self.always };
        let bytes = text.as_bytes();
        // Only places where a token can start are looked at again for each length.
        let mut places: Vec<usize> = Vec::new();
        if !search.lengths.is_empty() {
            places.extend((0..bytes.len()).filter(|&at| search.first[bytes[at] as usize]));
        }
        let mut found: BTreeMap<usize, (usize, u32)> = BTreeMap::new();
        for (len, first) in &search.lengths {
            let mut free = 0; // the end of the last one found in this round
            places.retain(|&at| {
                if at < free {
                    return false;
                }
                let Some(piece) = first[bytes[at] as usize].then(|| text.get(at..at + len)).flatten() else {
                    return true;
                };
                let Some(id) = strings.find(piece).filter(|&id| is_special(kinds, id, parse_special)) else {
                    return true;
                };
                // Not across the start of a longer one; those that start before `at` dropped this place already.
                if found.range(at..at + len).next().is_some() {
                    return true;
                }
                found.insert(at, (at + len, id));
                free = at + len;
                false
            });
        }
        let mut fragments = Vec::with_capacity(2 * found.len() + 1);
        let mut done = 0;
        for (start, (end, id)) in found {
            if done < start {
                fragments.push(Fragment::Text(done..start));
            }
            fragments.push(Fragment::Token(id));
            done = end;
        }
        if done < text.len() {
            fragments.push(Fragment::Text(done..text.len()));
        }
        fragments
    }
}

/// A special token that is too long to be searched for, and its length in bytes, if there is one.
pub(super) fn too_long(strings: &Strings, kinds: &[TokenKind]) -> Option<(u32, usize)> {
    let special = (0..kinds.len() as u32).filter(|&id| is_special(kinds, id, true));
    special
        .filter_map(|id| strings.get(id).map(|text| (id, text.len())))
        .find(|&(_, bytes)| bytes > MAX_SPECIAL_BYTES)
}

fn is_special(kinds: &[TokenKind], id: u32, parse_special: bool) -> bool {
    match kinds.get(id as usize) {
        Some(TokenKind::UserDefined) => true,
        Some(TokenKind::Control | TokenKind::Unknown) => parse_special,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(tokens: &[(&str, TokenKind)], text: &str, parse: bool) -> Vec<String> {
        let mut strings = Strings::with_capacity(0, 0);
        for (token, _) in tokens {
            strings.insert(token).unwrap();
        }
        let kinds: Vec<TokenKind> = tokens.iter().map(|t| t.1).collect();
        let fragments = Specials::new(&strings, &kinds).partition(text, parse, &strings, &kinds);
        fragments
            .into_iter()
            .map(|f| match f {
                Fragment::Text(range) => text[range].to_owned(),
                Fragment::Token(id) => format!("#{id}"),
            })
            .collect()
    }

    #[test]
    fn control_tokens_only_when_asked_and_longest_first() {
        use TokenKind::{Control, Normal, UserDefined};
        let vocab = [
            ("<a>", Control),
            ("<a><b>", Control),
            ("\n\n", UserDefined),
            ("\n\n\n", UserDefined),
            ("x", Normal),
        ];
        assert_eq!(cut(&vocab, "x<a><b>y<a>", true), ["x", "#1", "y", "#0"]);
        assert_eq!(cut(&vocab, "x<a>\n\n\n\n\n\n\n", false), ["x<a>", "#3", "#3", "\n"]);
        assert_eq!(cut(&vocab, "\n\n\n\n\n", false), ["#3", "#2"]);
        assert!(cut(&vocab, "", true).is_empty());
        // A longer one further right goes before a shorter one that reaches into it.
        let overlap = [("ab", UserDefined), ("bcd", UserDefined)];
        assert_eq!(cut(&overlap, "abcd", false), ["a", "#1"]);
        // Bytes that are not at a character's start are no place to begin.
        assert_eq!(cut(&[("\u{e9}", Control)], "\u{e9}\u{e8}\u{e9}", true), ["#0", "\u{e8}", "#0"]);
    }

    #[test]
    fn ends_are_known_by_text() {
        let mut strings = Strings::with_capacity(0, 0);
        for text in ["a", "<|im_end|>", "<|endoftext|>", "<|file_sep|>", "<|fim_prefix|>", "stop"] {
            strings.insert(text).unwrap();
        }
        let mut kinds = vec![TokenKind::Normal; 6];
        assert_eq!(find_ends(&strings, &mut kinds, &[Some(5), None]), [1, 2, 3, 5]);
        assert_eq!(
            (kinds[1], kinds[4], kinds[5]),
            (TokenKind::Control, TokenKind::Control, TokenKind::Normal)
        );
    }
}
