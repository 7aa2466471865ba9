//! `lutite run`: one prompt, one answer.

use crate::args::RunArgs;
use crate::talk::Talk;
use crate::ui::{self, Answer};
use anyhow::Context;
use lutite_models::Message;
use lutite_runtime::decode::Finish;
use std::fs::File;
use std::io::{IsTerminal, Read};

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let prompt = prompt(args)?;
    let mut talk = Talk::open(args.model.named(), &args.talk, &args.engine, &args.sampling)?;
    let mut messages = Vec::new();
    if let Some(system) = &args.talk.system {
        messages.push(Message::new("system", system));
    }
    messages.push(Message::new("user", prompt));
    let mut out = Answer::stdout();
    let (text, outcome) = talk.answer(&messages, &mut out)?;
    if !text.ends_with('\n') {
        out.print("\n")?;
    }
    ui::note(talk.summary(&outcome));
    talk.end()?;
    if outcome.finish == Finish::Cancelled { Err(ui::Quit::Interrupted.into()) } else { Ok(()) }
}

/// More than any context holds; what endless input is cut off at.
const PROMPT_MAX_BYTES: u64 = 64 << 20;

/// `-p`, `-f`, or what is piped in.
fn prompt(args: &RunArgs) -> anyhow::Result<String> {
    let text = match (&args.prompt, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => {
            let name = path.display().to_string();
            let file = File::open(path).with_context(|| format!("cannot read the prompt file {name}"))?;
            read(file, &format!("the prompt file {name}"))?
        }
        (None, None) if std::io::stdin().is_terminal() => {
            anyhow::bail!("no prompt; give one with -p TEXT or -f FILE, pipe one in, or use `lutite chat`")
        }
        (None, None) => read(std::io::stdin(), "the prompt on standard input")?,
    };
    if text.is_empty() {
        anyhow::bail!("the prompt is empty; give one with -p TEXT, -f FILE or on standard input");
    }
    Ok(text)
}

/// All of a text, which is called `what` in messages.
fn read(from: impl Read, what: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    from.take(PROMPT_MAX_BYTES + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {what}"))?;
    if bytes.len() as u64 > PROMPT_MAX_BYTES {
        anyhow::bail!("{what} has more than {} MiB; give a shorter one", PROMPT_MAX_BYTES >> 20);
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!("{what} is not UTF-8 from its byte {at} on; convert it, e.g. with iconv")
    })
}
