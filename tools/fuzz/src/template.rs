//! Chat templates.

use crate::within;
use lutite_models::{ChatTemplate, Message};

/// Between the template and each message of an input.
const SEPARATOR: &str = "\n===\n";

/// The limits of `models/src/chat`: what a rendering may make, besides so much for each byte of messages. Values take
/// more memory than they are long, hence the factor.
const OUTPUT_BYTES: usize = 16 << 20;
const PER_MESSAGE_BYTE: usize = 64;
const MEMORY_PER_OUTPUT_BYTE: usize = 4;

/// A template and messages, `template SEPARATOR role \n content SEPARATOR ...`, or usual messages where there are none:
/// it is refused or rendered, in bounded time, memory and output.
///
/// # Panics
/// Where that does not hold.
pub fn template(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let mut parts = text.split(SEPARATOR);
    let source = parts.next().unwrap_or_default();
    let mut messages: Vec<Message> = parts
        .map(|part| part.split_once('\n').unwrap_or((part, "")))
        .map(|(role, content)| Message::new(role, content))
        .collect();
    if messages.is_empty() {
        messages = [("system", "Be kind."), ("user", "Hi <b>"), ("assistant", " Hello!\n"), ("user", "Bye")]
            .map(|(role, content)| Message::new(role, content))
            .into();
    }
    let said: usize = messages.iter().map(|m| m.role.len() + m.content.len() + 64).sum();
    let output = OUTPUT_BYTES + PER_MESSAGE_BYTE * said;
    let rendered = within("render", MEMORY_PER_OUTPUT_BYTE * output, 5.0, || {
        ChatTemplate::new(source)?.render_with(&messages, "<s>", "</s>", true)
    });
    match rendered {
        Ok(text) => {
            assert!(text.len() <= output, "{} bytes of output, at most {output} expected", text.len());
            true
        }
        Err(e) => {
            assert!(!e.to_string().is_empty());
            false
        }
    }
}
