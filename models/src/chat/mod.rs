//! Chat templates: messages to the text that a model was trained to answer.
//!
//! Templates are Jinja, in the file (`tokenizer.chat_template`), and rendered as Hugging Face's `apply_chat_template`
//! does: `trim_blocks`, `lstrip_blocks`, `break` and `continue`, Python's string methods, `raise_exception`,
//! `strftime_now`. They are programs from a stranger, so `guard.rs` bounds their time and memory.
//!
//! Where a template writes BOS and the tokenizer adds it too, there would be two: tokenize the text with
//! [`Tokenizer::encode_prompt`], which adds BOS only where it is missing.

mod builtin;
mod clock;
mod guard;
mod json;

use crate::Tokenizer;
use builtin::{BUILTIN, BY_TOKEN};
use guard::Meter;
use lutite_runtime::store::{Gguf, GgufError};
use minijinja::machinery::{CompiledTemplate, TemplateConfig, eval, make_string_output};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, context};
use std::sync::Arc;

/// Instructions a rendering may take, and those more for each message. The longest templates known take some hundred a
/// message.
const FUEL: u64 = 200_000;
const FUEL_PER_MESSAGE: u64 = 5_000;
/// Bytes a rendering may make and values it may visit, and how many times its input it may make besides.
const BUDGET: usize = 16 << 20;
const BUDGET_PER_INPUT_BYTE: usize = 64;
/// Loops, macros and blocks nest at most this deep; each level takes stack.
const MAX_RECURSION: usize = 64;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who says it: `system`, `user`, `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// Why there is no prompt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The template is no valid Jinja, or larger than any real one.
    #[error("chat template cannot be used: {0}; choose another with --chat-template NAME")]
    BadTemplate(String),
    /// The template refuses the messages (roles must alternate, no system message, ...), or went over its limits.
    #[error("chat template: {0}")]
    Render(String),
    /// There is no template by this name.
    #[error("no chat template is called '{name}'; there are {known}")]
    UnknownName {
        /// The name asked for.
        name: String,
        /// The names there are, with commas between.
        known: String,
    },
    /// The file has no template and its vocabulary tells of none.
    #[error(
        "the model carries no chat template, so it may not be made for chat; choose one with --chat-template NAME ({known}), or give it plain text to continue"
    )]
    NoTemplate {
        /// The names there are, with commas between.
        known: String,
    },
    /// The metadata key has another type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
}

/// A template, known to be valid.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
}

impl ChatTemplate {
    /// The template with this Jinja source.
    ///
    /// # Errors
    /// [`ChatError::BadTemplate`].
    pub fn new(source: impl Into<String>) -> Result<ChatTemplate, ChatError> {
        let source = without_generation(&source.into());
        let bad = |e: Error| ChatError::BadTemplate(describe(&e));
        guard::check_source(&source, &config()).map_err(bad)?;
        compile(&source).map_err(bad)?;
        Ok(ChatTemplate { source })
    }

    /// The template of that name, see [`Self::names`].
    ///
    /// # Errors
    /// [`ChatError::UnknownName`].
    pub fn builtin(name: &str) -> Result<ChatTemplate, ChatError> {
        match BUILTIN.iter().find(|(known, _)| *known == name) {
            Some((_, source)) => ChatTemplate::new(*source),
            None => Err(ChatError::UnknownName { name: name.chars().take(80).collect(), known: known() }),
        }
    }

    /// The names of the templates that are built in.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILTIN.iter().map(|(name, _)| *name)
    }

    /// The model's template: the file's own, or, when it has none, the one whose tokens are in the vocabulary.
    ///
    /// # Errors
    /// [`ChatError::BadTemplate`], [`ChatError::NoTemplate`], [`ChatError::Gguf`].
    pub fn for_model(gguf: &Gguf<'_>, tokenizer: &Tokenizer) -> Result<ChatTemplate, ChatError> {
        match gguf.str("tokenizer.chat_template")? {
            Some(source) => ChatTemplate::new(source),
            None => ChatTemplate::by_vocabulary(tokenizer),
        }
    }

    /// The built-in template whose tokens are in the vocabulary.
    ///
    /// # Errors
    /// [`ChatError::NoTemplate`].
    pub fn by_vocabulary(tokenizer: &Tokenizer) -> Result<ChatTemplate, ChatError> {
        match BY_TOKEN.iter().find(|(token, _)| tokenizer.token_id(token).is_some()) {
            Some((_, name)) => ChatTemplate::builtin(name),
            None => Err(ChatError::NoTemplate { known: known() }),
        }
    }

    /// The Jinja source, with `{% generation %}` written as `{% if true %}`.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for `messages`; with `add_generation_prompt` it ends where the answer begins. To be tokenized with
    /// [`Tokenizer::encode_prompt`].
    ///
    /// # Errors
    /// [`ChatError::Render`].
    pub fn render(
        &self,
        messages: &[Message],
        tokenizer: &Tokenizer,
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
        self.render_with(messages, text(tokenizer.bos()), text(tokenizer.eos()), add_generation_prompt)
    }

    /// As [`Self::render`], with the texts of BOS and EOS given.
    ///
    /// # Errors
    /// [`ChatError::Render`].
    pub fn render_with(
        &self,
        messages: &[Message],
        bos: &str,
        eos: &str,
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        self.try_render(messages, bos, eos, add_generation_prompt)
            .map_err(|e| ChatError::Render(describe(&e)))
    }

    fn try_render(&self, messages: &[Message], bos: &str, eos: &str, prompt: bool) -> Result<String, Error> {
        let input: usize = messages.iter().map(|m| m.role.len() + m.content.len() + 64).sum();
        let meter = Meter::new(BUDGET.saturating_add(BUDGET_PER_INPUT_BYTE.saturating_mul(input)));
        let mut env = Environment::new();
        env.set_fuel(Some(FUEL + FUEL_PER_MESSAGE * messages.len() as u64));
        env.set_recursion_limit(MAX_RECURSION);
        guard::install(&mut env, &meter);
        env.add_function("raise_exception", |why: &str| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, why.chars().take(1000).collect::<String>()))
        });
        env.add_function("strftime_now", clock::strftime_now);
        let messages: Vec<Value> = messages
            .iter()
            .map(|m| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]))
            .collect();
        let root = context! {
            messages, add_generation_prompt => prompt, bos_token => bos, eos_token => eos, tools => (),
        };
        let compiled = compile(&self.source)?;
        let mut out = String::new();
        let mut to = make_string_output(&mut out);
        eval(&env, &compiled.instructions, root, &compiled.blocks, &mut to, AutoEscape::None)?;
        Ok(out)
    }
}

fn config() -> TemplateConfig {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    TemplateConfig {
        // Only custom delimiters can be wrong, and these are the usual ones.
        syntax_config: syntax.unwrap_or_default(),
        default_auto_escape: Arc::new(|_| AutoEscape::None),
    }
}

fn compile(source: &str) -> Result<CompiledTemplate<'_>, Error> {
    let mut compiled = CompiledTemplate::new("chat_template", source, &config())?;
    guard::rewrite(&mut compiled.instructions)?;
    compiled.blocks.values_mut().try_for_each(guard::rewrite)?;
    Ok(compiled)
}

/// Writes `{% generation %}` and `{% endgeneration %}` as `{% if true %}` and `{% endif %}`: Hugging Face's mark for what
/// to train on, which means nothing here, but the engine does not know it.
fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut parts = source.split("{%");
    out.extend(parts.next());
    for part in parts {
        let word = part.trim_start_matches(['-', '+']).trim_start();
        let sign = &part[..part.len() - word.len()];
        let end = word.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(word.len());
        let new = match &word[..end] {
            "generation" => "if true",
            "endgeneration" => "endif",
            other => other,
        };
        out.extend(["{%", sign, new, &word[end..]]);
    }
    out
}

fn describe(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

fn known() -> String {
    ChatTemplate::names().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
