//! `lutite run`: one prompt, one answer.

use crate::args::RunArgs;
use crate::talk::Talk;
use crate::ui::{self, Answer};
use anyhow::Context;
use lutite_models::Message;
use lutite_runtime::decode::Finish;
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
    if outcome.finish == Finish::Cancelled { Err(ui::Quit::Interrupted.into()) } else { Ok(()) }
}

/// `-p`, `-f`, or what is piped in.
fn prompt(args: &RunArgs) -> anyhow::Result<String> {
    let named = match (&args.prompt, &args.file) {
        (Some(text), _) => Some(text.clone()),
        (None, Some(file)) => {
            Some(std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?)
        }
        (None, None) => None,
    };
    if let Some(text) = named {
        return Ok(text);
    }
    if std::io::stdin().is_terminal() {
        anyhow::bail!("no prompt; give one with -p TEXT or -f FILE, pipe one in, or use `lutite chat`");
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the prompt from standard input")?;
    Ok(text)
}
