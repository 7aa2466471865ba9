//! Pre-tokenizers: how byte-level BPE cuts a text into words, before any merge.
//!
//! Each is defined by a regular expression (quoted at its function, after llama.cpp's `llm_tokenizer_bpe` and the
//! models' `tokenizer.json`); here each is a hand-written scanner. A scanner looks at every character a constant number
//! of times, whatever the text, so no input can make it backtrack; and it needs no compiled automaton, which would cost
//! milliseconds at every start. Character classes are Unicode's general categories.

use unicode_general_category::{GeneralCategory as Gc, get_general_category};

/// The ways to cut that are known by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pre {
    /// GPT-2's own expression.
    Gpt2,
    /// Each digit alone, then GPT-2: SmolLM, StarCoder, Refact, Command-R and others.
    DigitsGpt2,
    /// Punctuation apart, then GPT-2, then digits in threes: Falcon, and llama.cpp's `default`.
    Punctuation {
        /// Also the backtick is cut off (Falcon), or not (`default`).
        backtick: bool,
    },
    /// The expression of GPT-4 (cl100k) with its later variations.
    Cl100k {
        /// The longest group of digits: 3 for Llama 3, 1 for Qwen.
        digits: usize,
        /// Combining marks count as letters (Qwen 3.5).
        marks: bool,
    },
}

/// What a name in `tokenizer.ggml.pre` stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PreRule {
    pub(super) pre: Pre,
    /// A word that is a token as a whole becomes that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether texts start with BOS when the file does not say.
    pub(super) add_bos: bool,
}

impl PreRule {
    /// The rule called `default`.
    pub(super) const DEFAULT: PreRule =
        PreRule { pre: Pre::Punctuation { backtick: false }, ignore_merges: false, add_bos: false };

    /// The rule for `name`, or `None` when it is not known. Names as in llama.cpp's `llama_vocab::impl::load`.
    pub(super) fn by_name(name: &str) -> Option<PreRule> {
        let plain = |pre| PreRule { pre, ignore_merges: false, add_bos: false };
        Some(match name {
            "default" => PreRule::DEFAULT,
            "falcon" => plain(Pre::Punctuation { backtick: true }),
            "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling"
            | "exaone4" | "gigachat" | "a.x-4.0" | "mellum" | "modern-bert" => plain(Pre::Gpt2),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b"
            | "mellum2" => plain(Pre::DigitsGpt2),
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0"
            | "lfm2" => {
                PreRule { pre: Pre::Cl100k { digits: 3, marks: false }, ignore_merges: true, add_bos: true }
            }
            "dbrx" | "smaug-bpe" | "chatglm-bpe" => plain(Pre::Cl100k { digits: 3, marks: false }),
            "glm4" | "glm5" => {
                PreRule { ignore_merges: true, ..plain(Pre::Cl100k { digits: 3, marks: false }) }
            }
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "stablelm2" | "hunyuan" | "megrez" | "solar-open"
            | "grok-2" => plain(Pre::Cl100k { digits: 1, marks: false }),
            "qwen35" => plain(Pre::Cl100k { digits: 1, marks: true }),
            _ => return None,
        })
    }
}

/// Calls `word` for each piece of `text`, in order; the pieces are not empty and together they are `text`.
pub(super) fn split<'t>(pre: Pre, text: &'t str, word: &mut dyn FnMut(&'t str)) {
    match pre {
        Pre::Gpt2 => gpt2(text, word),
        Pre::DigitsGpt2 => {
            isolate(text, |c| class(c) == Class::Number, false, &mut |piece| gpt2(piece, word));
        }
        Pre::Punctuation { backtick } => {
            // [\p{P}\$\+<=>\^~\|]+ ; then GPT-2 ; then \p{N}+ (default only) ; then [0-9][0-9][0-9]
            let cut = |c| {
                class(c) == Class::Punctuation
                    || matches!(c, '$' | '+' | '<' | '=' | '>' | '^' | '~' | '|')
                    || (backtick && c == '`')
            };
            isolate(text, cut, true, &mut |piece| {
                gpt2(piece, &mut |part| {
                    if backtick {
                        threes(part, word);
                    } else {
                        isolate(part, |c| class(c) == Class::Number, true, &mut |p| threes(p, word));
                    }
                });
            });
        }
        Pre::Cl100k { digits, marks } => cl100k(text, digits, marks, word),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Mark,
    Punctuation,
    /// `\s`: Unicode's White_Space.
    White,
    Other,
}

fn class(c: char) -> Class {
    if c.is_ascii() {
        return match c {
            'a'..='z' | 'A'..='Z' => Class::Letter,
            '0'..='9' => Class::Number,
            ' ' | '\t'..='\r' => Class::White,
            '$' | '+' | '<' | '=' | '>' | '^' | '`' | '|' | '~' => Class::Other,
            '!'..='~' => Class::Punctuation,
            _ => Class::Other,
        };
    }
    if c.is_whitespace() {
        return Class::White;
    }
    match get_general_category(c) {
        Gc::UppercaseLetter
        | Gc::LowercaseLetter
        | Gc::TitlecaseLetter
        | Gc::ModifierLetter
        | Gc::OtherLetter => Class::Letter,
        Gc::DecimalNumber | Gc::LetterNumber | Gc::OtherNumber => Class::Number,
        Gc::NonspacingMark | Gc::SpacingMark | Gc::EnclosingMark => Class::Mark,
        Gc::ConnectorPunctuation
        | Gc::DashPunctuation
        | Gc::OpenPunctuation
        | Gc::ClosePunctuation
        | Gc::InitialPunctuation
        | Gc::FinalPunctuation
        | Gc::OtherPunctuation => Class::Punctuation,
        _ => Class::Other,
    }
}

/// The length in bytes of the longest start of `text` whose characters all satisfy `keep`.
fn run(text: &str, keep: impl Fn(char) -> bool) -> usize {
    text.find(|c| !keep(c)).unwrap_or(text.len())
}

/// Cuts `text` into what satisfies `cut` (runs of it when `runs`, else single characters) and what lies between.
fn isolate<'t>(text: &'t str, cut: impl Fn(char) -> bool, runs: bool, word: &mut dyn FnMut(&'t str)) {
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let len = match (cut(first), runs) {
            (true, true) => run(rest, &cut),
            (true, false) => first.len_utf8(),
            (false, _) => run(rest, |c| !cut(c)),
        };
        let (piece, tail) = rest.split_at(len);
        word(piece);
        rest = tail;
    }
}

/// `[0-9][0-9][0-9]`: cuts out each three ASCII digits in a row, leftmost first.
fn threes<'t>(text: &'t str, word: &mut dyn FnMut(&'t str)) {
    let bytes = text.as_bytes();
    let (mut start, mut i) = (0, 0);
    while i + 3 <= bytes.len() {
        if bytes[i..i + 3].iter().all(u8::is_ascii_digit) {
            if start < i {
                word(&text[start..i]);
            }
            word(&text[i..i + 3]);
            i += 3;
            start = i;
        } else {
            i += 1;
        }
    }
    if start < text.len() {
        word(&text[start..]);
    }
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
fn gpt2<'t>(text: &'t str, word: &mut dyn FnMut(&'t str)) {
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (piece, tail) = rest.split_at(gpt2_word(rest, first));
        word(piece);
        rest = tail;
    }
}

fn gpt2_word(rest: &str, first: char) -> usize {
    if let Some(len) = contraction(rest, false) {
        return len;
    }
    let lead = usize::from(first == ' ');
    let body = &rest[lead..];
    match body.chars().next().map(class) {
        None | Some(Class::White) => white(rest),
        Some(Class::Letter) => lead + run(body, |c| class(c) == Class::Letter),
        Some(Class::Number) => lead + run(body, |c| class(c) == Class::Number),
        Some(_) => lead + run(body, |c| !matches!(class(c), Class::White | Class::Letter | Class::Number)),
    }
}

/// `'s|'t|'re|'ve|'m|'ll|'d`, in either case when `any_case`.
fn contraction(rest: &str, any_case: bool) -> Option<usize> {
    let bytes = rest.as_bytes();
    if bytes.first() != Some(&b'\'') {
        return None;
    }
    let at = |i: usize| bytes.get(i).map(|b| if any_case { b.to_ascii_lowercase() } else { *b });
    match (at(1), at(2)) {
        (Some(b's' | b't' | b'm' | b'd'), _) => Some(2),
        (Some(b'r' | b'v'), Some(b'e')) | (Some(b'l'), Some(b'l')) => Some(3),
        _ => None,
    }
}

/// `\s+(?!\S)|\s+`: white space up to, but not including, the last one before a word.
fn white(rest: &str) -> usize {
    let len = run(rest, |c| class(c) == Class::White);
    if len == rest.len() {
        return len;
    }
    let last = rest[..len].chars().next_back().map_or(0, char::len_utf8);
    if len > last { len - last } else { len }
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
/// with `\p{N}` alone for `digits == 1` and `[\p{L}\p{M}]` for `\p{L}` with `marks` (but not in the lead's negation).
fn cl100k<'t>(text: &'t str, digits: usize, marks: bool, word: &mut dyn FnMut(&'t str)) {
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (piece, tail) = rest.split_at(cl100k_word(rest, first, digits, marks));
        word(piece);
        rest = tail;
    }
}

fn cl100k_word(rest: &str, first: char, digits: usize, marks: bool) -> usize {
    if let Some(len) = contraction(rest, true) {
        return len;
    }
    let letter = |c| matches!((class(c), marks), (Class::Letter, _) | (Class::Mark, true));
    let kind = class(first);
    if letter(first) {
        return run(rest, letter);
    }
    if kind == Class::Number {
        return rest
            .chars()
            .take(digits)
            .take_while(|&c| class(c) == Class::Number)
            .map(char::len_utf8)
            .sum();
    }
    if !matches!(first, '\r' | '\n') {
        let lead = first.len_utf8();
        let letters = run(&rest[lead..], letter);
        if letters > 0 {
            return lead + letters;
        }
    }
    let lead = usize::from(first == ' ');
    let other = |c| !letter(c) && !matches!(class(c), Class::White | Class::Letter | Class::Number);
    let others = run(&rest[lead..], other);
    if others > 0 {
        let end = lead + others;
        return end + run(&rest[end..], |c| matches!(c, '\r' | '\n'));
    }
    let len = run(rest, |c| class(c) == Class::White);
    match rest[..len].rfind(['\r', '\n']) {
        Some(at) => at + 1,
        None => white(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::{Pre, PreRule, split};

    fn pieces(name: &str, text: &str) -> Vec<String> {
        let mut out = Vec::new();
        split(PreRule::by_name(name).unwrap().pre, text, &mut |w| out.push(w.to_owned()));
        out
    }

    #[test]
    fn each_rule_cuts_as_its_expression_says() {
        assert_eq!(
            pieces("gpt-2", "I've  been 'told 12345!!\n\n x"),
            ["I", "'ve", " ", " been", " '", "told", " 12345", "!!", "\n\n", " x"]
        );
        assert_eq!(pieces("smollm", "a 12 b"), ["a", " ", "1", "2", " b"]);
        assert_eq!(
            pieces("llama-bpe", "I'VE 12345 (x) \r\n\n  y "),
            ["I", "'VE", " ", "123", "45", " (", "x", ")", " \r\n\n", " ", " y", " "]
        );
        assert_eq!(pieces("qwen2", "12 ...\n\nx"), ["1", "2", " ...\n\n", "x"]);
        assert_eq!(pieces("qwen2", "हिन्दी")[0], "ह");
        assert_eq!(pieces("qwen35", "हिन्दी"), ["हिन्दी"]);
        assert_eq!(pieces("default", "a+b 12345's"), ["a", "+", "b", " ", "123", "45", "'", "s"]);
    }

    #[test]
    fn pieces_are_the_text() {
        let text = " \t\u{a0}\u{3000}x'S'll'' ١٢٣ 123४५६7 é e\u{301} 🦙\u{200d}\u{fe0f} \r\n \n  _a-b`c\u{0}";
        let rules = [
            Pre::Gpt2,
            Pre::DigitsGpt2,
            Pre::Punctuation { backtick: true },
            Pre::Punctuation { backtick: false },
            Pre::Cl100k { digits: 3, marks: false },
            Pre::Cl100k { digits: 1, marks: true },
        ];
        for pre in rules {
            let mut out = String::new();
            split(pre, text, &mut |w| {
                assert!(!w.is_empty());
                out.push_str(w);
            });
            assert_eq!(out, text, "{pre:?}");
        }
    }
}
