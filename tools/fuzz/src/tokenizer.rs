//! Tokenizers from a GGUF file's metadata.

use crate::within;
use lutite_models::tokenizer::TokenKind;
use lutite_models::{Tokenizer, TokenizerSpec};
use lutite_runtime::store::{Gguf, GgufWriter};

/// Longest text that is encoded: repetitions end here.
const TEXT_BYTES: usize = 64 << 10;

/// A vocabulary and texts, written as lines so that mutations keep most of it whole; all else is ignored:
///
/// ```text
/// m gpt2          the model            n smollm        the pre-tokenizer
/// t1 word         a token of type 1    s -0.5          its score
/// + a b           a merge              a               the 256 bytes as tokens
/// i1 5            special token 1 of `SPECIAL` is 5    f0 1   flag 0 of `FLAGS` is true
/// x 100 text      a text to encode, 100 times in a row
/// ```
///
/// `\n` stands for a line's end. The file is refused, or texts turn into tokens of its vocabulary and, where it has all
/// bytes, back into themselves.
///
/// # Panics
/// Where that does not hold.
pub fn tokenizer(input: &[u8]) -> bool {
    let input = String::from_utf8_lossy(input);
    let lines = Lines::read(&input);
    let file = lines.file().expect("each key once");
    let gguf = Gguf::parse(&file).expect("as written");
    let cap = 64 * file.len() + (256 << 10);
    let tokenizer = match within("build", cap, 2.0, || Tokenizer::from_gguf(&gguf)) {
        Ok(tokenizer) => tokenizer,
        Err(e) => {
            assert!(!e.to_string().is_empty());
            return false;
        }
    };
    let spec = TokenizerSpec::from_gguf(&gguf).expect("it has just been read");
    check_ids(&tokenizer, &spec);
    let promised = round_trip_is_promised(&tokenizer, &spec);
    for text in &lines.texts {
        // A symbol takes some 60 bytes and every one may be a candidate to be joined; the cache of words has 2 MiB.
        let cap = 256 * text.len() + (8 << 20);
        let encode = |special| within("encode", cap, 2.0, || tokenizer.encode(text, special, special));
        let (plain, special) = (encode(false), encode(true));
        let prompt = tokenizer.encode_prompt(text);
        for id in plain.iter().chain(&special).chain(&prompt) {
            assert!((*id as usize) < tokenizer.vocab_size(), "id {id} of {}", tokenizer.vocab_size());
        }
        tokenizer.decode(&special, true);
        let back = tokenizer.decode(&plain, false);
        if promised && !text.contains('\u{2581}') {
            assert_eq!(String::from_utf8_lossy(&back), text.as_str(), "round trip");
        }
    }
    true
}

/// What a tokenizer says of itself is within its vocabulary.
fn check_ids(t: &Tokenizer, spec: &TokenizerSpec<'_>) {
    assert_eq!(t.vocab_size(), spec.tokens.len());
    for id in t.eog_ids().iter().chain(&t.bos()).chain(&t.eos()).chain(&t.pad()).chain(&t.unk()) {
        assert!((*id as usize) < t.vocab_size());
    }
    for (id, text) in (0u32..).zip(&spec.tokens).filter(|(_, text)| !text.is_empty()) {
        assert_eq!((t.token_text(id), t.token_id(text)), (Some(*text), Some(id)));
    }
    t.warnings().iter().for_each(|w| assert!(!w.to_string().is_empty()));
}

/// Whether every text must come back: all bytes are tokens, SentencePiece's space too, every token is plain text, every
/// merge makes a token.
fn round_trip_is_promised(t: &Tokenizer, spec: &TokenizerSpec<'_>) -> bool {
    let bpe = spec.model == "gpt2";
    let plain = (0..t.vocab_size() as u32).all(|id| match t.kind(id) {
        Some(TokenKind::Normal) => true,
        Some(TokenKind::Byte) => !bpe && t.token_text(id).is_some_and(is_byte_token),
        _ => false,
    });
    let kind = if bpe { TokenKind::Normal } else { TokenKind::Byte };
    let bytes =
        (0..=255u8).all(|b| t.token_id(&byte_token(bpe, b)).is_some_and(|id| t.kind(id) == Some(kind)));
    let space = bpe || t.token_id("\u{2581}").is_some();
    let merges = !bpe
        || spec.merges.iter().all(|m| {
            let gap = m.bytes().skip(1).position(|b| b == b' ').map_or(m.len(), |at| at + 1);
            t.token_id(&(m[..gap].to_owned() + m.get(gap + 1..).unwrap_or_default())).is_some()
        });
    plain && bytes && space && merges
}

fn is_byte_token(text: &str) -> bool {
    (0..=255u8).any(|b| byte_token(false, b) == text)
}

/// The token of one byte. GPT-2's alphabet: printable Latin-1 as itself, the others from U+0100 on in order.
fn byte_token(bpe: bool, byte: u8) -> String {
    if !bpe {
        return format!("<0x{byte:02X}>");
    }
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let before = (0..byte).filter(|b| !printable(*b)).count() as u32;
    let c = if printable(byte) { Some(char::from(byte)) } else { char::from_u32(0x100 + before) };
    c.unwrap_or_default().to_string()
}

const SPECIAL: [&str; 6] = ["bos", "eos", "eot", "eom", "unknown", "padding"];
const FLAGS: [&str; 3] = ["add_bos_token", "add_eos_token", "add_space_prefix"];

#[derive(Default)]
struct Lines {
    model: String,
    pre: Option<String>,
    tokens: Vec<String>,
    types: Vec<i32>,
    scores: Vec<f32>,
    merges: Vec<String>,
    special: [Option<u32>; SPECIAL.len()],
    flags: [Option<bool>; FLAGS.len()],
    texts: Vec<String>,
}

impl Lines {
    fn read(input: &str) -> Lines {
        let mut lines = Lines::default();
        for line in input.lines() {
            let (tag, rest) = line.split_once(' ').unwrap_or((line, ""));
            let rest = rest.replace("\\n", "\n");
            let number = |from: &str| from.parse::<usize>().ok();
            match (tag.chars().next(), number(tag.get(1..).unwrap_or_default())) {
                (Some('m'), _) => lines.model = rest,
                (Some('n'), _) => lines.pre = Some(rest),
                (Some('t'), kind) => {
                    lines.tokens.push(rest);
                    lines.types.push(kind.unwrap_or(1) as i32);
                }
                (Some('s'), _) => lines.scores.push(rest.parse().unwrap_or(0.0)),
                (Some('+'), _) => lines.merges.push(rest),
                (Some('a'), _) => {
                    let bpe = lines.model == "gpt2";
                    lines.tokens.extend((0..=255).map(|b| byte_token(bpe, b)));
                    lines.types.extend([if bpe { 1 } else { 6 }; 256]);
                }
                (Some('i'), Some(which)) if which < SPECIAL.len() => {
                    lines.special[which] = rest.parse().ok();
                }
                (Some('f'), Some(which)) if which < FLAGS.len() => lines.flags[which] = Some(rest == "1"),
                (Some('x'), _) => {
                    let (times, text) = rest.split_once(' ').unwrap_or(("1", &rest));
                    let most = TEXT_BYTES / text.len().max(1);
                    let times = number(times).unwrap_or(1).min(most);
                    // Some texts are enough, so that an input's time does not hang on their number.
                    if lines.texts.len() < 4 {
                        lines.texts.push(text.repeat(times));
                    }
                }
                _ => {}
            }
        }
        lines
    }

    /// A GGUF file of nothing but this tokenizer. Arrays without elements are left out.
    fn file(&self) -> lutite_runtime::Result<Vec<u8>> {
        let mut w = GgufWriter::new();
        w.set("tokenizer.ggml.model", self.model.as_str())?;
        w.set("tokenizer.ggml.tokens", self.tokens.as_slice())?;
        if let Some(pre) = &self.pre {
            w.set("tokenizer.ggml.pre", pre.as_str())?;
        }
        if !self.types.is_empty() {
            w.set("tokenizer.ggml.token_type", self.types.as_slice())?;
        }
        if !self.scores.is_empty() {
            w.set("tokenizer.ggml.scores", self.scores.as_slice())?;
        }
        if !self.merges.is_empty() {
            w.set("tokenizer.ggml.merges", self.merges.as_slice())?;
        }
        for (name, id) in SPECIAL.iter().zip(self.special) {
            if let Some(id) = id {
                w.set(&format!("tokenizer.ggml.{name}_token_id"), id)?;
            }
        }
        for (name, flag) in FLAGS.iter().zip(self.flags) {
            if let Some(flag) = flag {
                w.set(&format!("tokenizer.ggml.{name}"), flag)?;
            }
        }
        w.begin_in_memory()?.finish()
    }
}
