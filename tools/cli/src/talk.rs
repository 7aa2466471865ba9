//! What `run` and `chat` share: a model with its template, and one answer after another.

use crate::args::{EngineArgs, Mem, SamplingArgs, TalkArgs};
use crate::hub::Arriving;
use crate::load::{self, Source};
use crate::ui::{self, Answer};
use crate::{interrupt, mem};
use anyhow::Context;
use lutite_kernels::isa::Isa;
use lutite_models::sampling::SamplingDefaults;
use lutite_models::{ChatTemplate, Message, Model, Tokenizer};
use lutite_runtime::decode::{Decoder, Finish, Outcome, Request, generate};
use lutite_runtime::residency::Watch;
use lutite_runtime::sample::Sampler;
use lutite_runtime::store::Gguf;
use lutite_runtime::stream::TextStream;
use std::ops::ControlFlow;
use std::time::Duration;

/// How long a change of memory is waited for.
const SETTLE: Duration = Duration::from_secs(10);

/// A model that answers.
pub(crate) struct Talk {
    model: Model,
    tokenizer: Tokenizer,
    /// `None` for `--chat-template none`.
    template: Option<ChatTemplate>,
    sampler: Sampler,
    /// Tokens that the model's cache holds.
    held: Vec<u32>,
    stops: Vec<String>,
    max_tokens: usize,
    /// Bytes that the program took before the model.
    base: u64,
    /// What follows the memory that there is.
    watch: Option<Watch>,
    /// What fetches the rest of its file.
    arriving: Option<Arriving>,
}

impl Talk {
    /// Loads the named model for the flags given.
    pub(crate) fn open(
        named: &str,
        talk: &TalkArgs,
        engine: &EngineArgs,
        sampling: &SamplingArgs,
    ) -> anyhow::Result<Talk> {
        // A wrong name is said before a model is pulled and packed.
        Isa::from_env()?;
        let (source, arriving) = load::find_early(named, &load::Packing::of(engine))?;
        let gguf = load::gguf(&source)?;
        let config = lutite_models::config::Config::read(&gguf)
            .with_context(|| format!("cannot load {}", source.path.display()))?;
        let context = load::context(talk.ctx_size, &config);
        if context > config.context {
            ui::warn(format_args!("the model was trained for {} positions, not {context}", config.context));
        }
        let mut options = load::options(engine, Some(context), lutite_models::Path::Lut)?;
        let tokenizer = load::tokenizer(&source)?;
        let template = template(&gguf, &tokenizer, talk.chat_template.as_deref(), &source)?;
        let base = mem::taken();
        let memory = mem::asked(engine.mem, &source)?;
        options.budget = memory.map(|mem| mem::budget(mem, &source, engine.at_once)).transpose()?;
        let model = load::model(&source, &options)?;
        if model.streamed_bytes() > 0 {
            let bytes = ui::megabytes(model.streamed_bytes());
            ui::warn(format_args!(
                "not all weights fit into --mem: {bytes} are read from the file for every token"
            ));
        }
        let watch = memory.and_then(|mem| mem::watch(mem, &model));
        if let Some(stack) = model.residency().filter(|_| arriving.is_some()) {
            let now = stack.resident();
            let (blocks, all) = (now.blocks, now.all);
            ui::note(format_args!("answering with {blocks} of {all} blocks while the rest arrives"));
        }
        Ok(Talk {
            model,
            base,
            watch,
            arriving,
            tokenizer,
            template,
            sampler: sampler(sampling, &gguf, context)?,
            held: Vec::new(),
            stops: talk.reverse_prompt.clone(),
            max_tokens: talk.predict.or(usize::MAX),
        })
    }

    /// Answers a conversation, printing the answer as it comes, and returns its text.
    pub(crate) fn answer(
        &mut self,
        messages: &[Message],
        out: &mut Answer,
    ) -> anyhow::Result<(String, Outcome)> {
        let prompt = match &self.template {
            Some(t) => self.tokenizer.encode_prompt(&t.render(messages, &self.tokenizer, true)?),
            None => {
                let text: String = messages.iter().map(|m| m.content.as_str()).collect();
                self.tokenizer.encode(&text, true, true)
            }
        };
        self.complete(&prompt, out)
    }

    fn complete(&mut self, prompt: &[u32], out: &mut Answer) -> anyhow::Result<(String, Outcome)> {
        if prompt.is_empty() {
            anyhow::bail!("the prompt is empty; give one with -p TEXT, -f FILE or on standard input");
        }
        // What the cache already holds of this conversation need not be computed again, but for the last
        // token, whose logits are wanted.
        let common = self.held.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = common.min(prompt.len() - 1);
        self.model.rewind(kept);
        self.held.truncate(kept);
        self.sampler.reset();
        self.held.iter().for_each(|t| self.sampler.accept(*t));

        let mut stream = TextStream::new(self.stops.iter().cloned());
        let (mut text, mut bytes, mut generated) = (String::new(), Vec::new(), Vec::new());
        let mut printed = Ok(());
        let request = Request {
            prompt: &prompt[kept..],
            max_tokens: self.max_tokens,
            ends: self.tokenizer.eog_ids(),
            cancel: interrupt::flag(),
        };
        let outcome = generate(&mut self.model, &mut self.sampler, request, &mut |token| {
            if self.arriving.as_mut().is_some_and(Arriving::is_wrong) {
                return ControlFlow::Break(());
            }
            generated.push(token);
            bytes.clear();
            self.tokenizer.decode_bytes(token, &mut bytes, false);
            let from = text.len();
            let hit = stream.push(&bytes, &mut text);
            printed = out.print(&text[from..]);
            if hit.is_some() || printed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        printed?;
        let from = text.len();
        stream.finish(&mut text);
        out.print(&text[from..])?;
        self.held.extend_from_slice(&prompt[kept..]);
        self.held.extend_from_slice(&generated);
        self.held.truncate(self.model.position());
        Ok((text, outcome))
    }

    /// Warns if the rest of the model's file does not come.
    ///
    /// # Errors
    /// If it was the wrong file: answers that were cut short are one reason to ask.
    pub(crate) fn hear_of_the_rest(&mut self) -> anyhow::Result<()> {
        self.arriving.as_mut().map_or(Ok(()), Arriving::report)
    }

    /// Leaves the rest of the model's file for the next time.
    ///
    /// # Errors
    /// As [`Self::hear_of_the_rest`].
    pub(crate) fn end(self) -> anyhow::Result<()> {
        self.arriving.map_or(Ok(()), Arriving::end)
    }

    /// Changes what the program may take, if blocks can come or go for it; false if the model has to be opened again for that.
    ///
    /// # Errors
    /// Less than the program takes without a model.
    pub(crate) fn set_memory(&mut self, mem: Mem) -> anyhow::Result<bool> {
        let bytes = mem::beside(mem::bytes(mem, mem::taken())?, self.base)?;
        // Else what follows the memory could have its own way in between.
        self.watch = None;
        let changed = self.model.set_budget(bytes);
        self.watch = mem::watch(mem, &self.model);
        let Ok(Some(_)) = changed else { return Ok(false) };
        if let Some(stack) = self.model.residency() {
            stack.wait(SETTLE);
        }
        Ok(true)
    }

    /// What of a stacked file is in memory, and how much of any file is not.
    pub(crate) fn resident(&self) -> Option<String> {
        if self.model.streamed_bytes() > 0 {
            let bytes = ui::megabytes(self.model.streamed_bytes());
            return Some(format!("{bytes} of weights are read for every token"));
        }
        let resident = self.model.residency()?.resident();
        let bits = 8.0 * self.model.bytes_per_token() as f64 / self.model.weights_per_token() as f64;
        let kl = resident.kl.map_or(String::new(), |kl| format!(", KL {kl:.4}"));
        let failed = resident.failure.map_or(String::new(), |why| format!("; {why}"));
        Some(format!(
            "{} of {} blocks, weights of {}, {bits:.3} bits per weight{kl}{failed}",
            resident.blocks,
            resident.all,
            ui::megabytes(resident.bytes),
        ))
    }

    /// One line of figures on an answer.
    pub(crate) fn summary(&self, o: &Outcome) -> String {
        let rate = |n: usize, t: Duration| n as f64 / t.as_secs_f64().max(1e-9);
        let end = match o.finish {
            Finish::ContextFull => format!("; the context of {} is full (-c)", self.model.context()),
            Finish::Length => "; cut at -n".into(),
            Finish::Cancelled => "; stopped".into(),
            Finish::End | Finish::Stopped => String::new(),
        };
        format!(
            "prompt {} tokens, {:.1}/s; answer {} tokens, {:.1}/s{end}",
            o.prompt_tokens,
            rate(o.prompt_tokens, o.prompt_time),
            o.tokens,
            rate(o.tokens.saturating_sub(1), o.time),
        ) + &self.resident().map_or(String::new(), |r| format!("; {r}"))
    }
}

/// The sampler that the flags, the model and our own defaults make, in this order.
fn sampler(sampling: &SamplingArgs, gguf: &Gguf<'_>, context: usize) -> anyhow::Result<Sampler> {
    let model = SamplingDefaults::read(gguf)?;
    let config = sampling.config(&model, context);
    let said = sampling.taken_from(&model);
    if !said.is_empty() {
        ui::note(format_args!("sampling as the model's authors recommend: {said}"));
    }
    Sampler::new(config)
        .context("cannot sample as the model's file says; give flags of your own, such as --temp 0.8")
}

fn template(
    gguf: &Gguf<'_>,
    tokenizer: &Tokenizer,
    asked: Option<&str>,
    source: &Source,
) -> anyhow::Result<Option<ChatTemplate>> {
    Ok(match asked {
        Some("none") => None,
        Some(name) if ChatTemplate::names().any(|n| n == name) => Some(ChatTemplate::builtin(name)?),
        Some(file) => {
            let names = ChatTemplate::names().collect::<Vec<_>>().join(", ");
            let text = std::fs::read_to_string(file).with_context(|| {
                format!("--chat-template {file}: no such file, and none of the built-in ones ({names}, none)")
            })?;
            Some(ChatTemplate::new(text)?)
        }
        None => match ChatTemplate::for_model(gguf, tokenizer) {
            Ok(t) => Some(t),
            Err(lutite_models::ChatError::NoTemplate { .. }) => {
                let name = source.path.display();
                ui::warn(format_args!("{name} has no chat template: the prompt is continued as it is"));
                None
            }
            Err(e) => return Err(e.into()),
        },
    })
}
