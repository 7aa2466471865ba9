//! `lutite chat`: a conversation, line by line.

use crate::args::{ChatArgs, EngineArgs, Mem};
use crate::talk::Talk;
use crate::ui::{self, Answer};
use crate::{interrupt, places};
use lutite_models::Message;
use lutite_runtime::decode::Finish;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::io::IsTerminal;

const HELP: &str = "/clear forgets the conversation, /stats says how fast the last answer was, \
                    /mem 300M changes what the program may take, /quit leaves \
                    (so does Ctrl-D); a line that ends in \\ goes on in the next; Ctrl-C stops an answer";

/// What is said of a model that nothing can be said of.
const WHOLE: &str = "all weights are in memory: the file has no blocks";

pub(crate) fn chat(args: &ChatArgs) -> anyhow::Result<()> {
    let open = |engine: &EngineArgs| Talk::open(args.model.named(), &args.talk, engine, &args.sampling);
    let mut engine = args.engine.clone();
    let mut talk = open(&engine)?;
    let first: Vec<Message> = args.talk.system.iter().map(|s| Message::new("system", s)).collect();
    let mut messages = first.clone();
    let mut out = Answer::stdout();
    let mut lines = Lines::new()?;
    let mut stats = None;
    if lines.interactive {
        ui::note(HELP);
    }
    while let Some(line) = lines.next()? {
        match line.trim() {
            "" => continue,
            "/quit" | "/exit" => break,
            "/help" | "/?" => ui::note(HELP),
            "/clear" => {
                messages.clone_from(&first);
                ui::note("the conversation is forgotten");
            }
            "/stats" => ui::note(stats.as_deref().unwrap_or("no answer yet")),
            "/mem" => ui::note(talk.resident().as_deref().unwrap_or(WHOLE)),
            other if other.starts_with("/mem ") => {
                let mem = other["/mem ".len()..].trim().parse::<Mem>().map_err(anyhow::Error::msg);
                match mem {
                    Ok(mem) => talk = with_memory(talk, mem, &mut engine, &open)?,
                    Err(e) => ui::error(&e),
                }
            }
            other if other.starts_with('/') && !other.contains(' ') => {
                ui::warn(format_args!("no command {other}; {HELP}"));
            }
            _ => {
                messages.push(Message::new("user", line));
                interrupt::clear();
                match talk.answer(&messages, &mut out) {
                    Ok((text, outcome)) => {
                        out.print(if text.ends_with('\n') { "" } else { "\n" })?;
                        stats = Some(talk.summary(&outcome));
                        if outcome.finish == Finish::ContextFull {
                            ui::warn("the context is full: /clear, or start again with a longer one (-c)");
                        }
                        messages.push(Message::new("assistant", text));
                    }
                    Err(e) if e.downcast_ref::<ui::Quit>().is_some() => return Err(e),
                    Err(e) => {
                        // The conversation goes on without the question that failed.
                        messages.pop();
                        ui::error(&e);
                    }
                }
                interrupt::clear();
                talk.hear_of_the_rest()?;
            }
        }
    }
    talk.end()
}

/// The model with another amount of memory; `engine` is how it is open.
fn with_memory(
    mut talk: Talk,
    mem: Mem,
    engine: &mut EngineArgs,
    open: &dyn Fn(&EngineArgs) -> anyhow::Result<Talk>,
) -> anyhow::Result<Talk> {
    let other = EngineArgs { mem: Some(mem), ..engine.clone() };
    match talk.set_memory(mem) {
        Ok(true) => *engine = other,
        Ok(false) => {
            // Both at a time may be too much. Of the conversation the new one knows nothing: it reads it again.
            talk.end()?;
            talk = match open(&other) {
                Ok(talk) => {
                    *engine = other;
                    talk
                }
                Err(e) => {
                    ui::error(&e);
                    open(engine)?
                }
            };
        }
        Err(e) => {
            ui::error(&e);
            return Ok(talk);
        }
    }
    ui::note(talk.resident().as_deref().unwrap_or(WHOLE));
    Ok(talk)
}

/// What the person types, with editing and history on a terminal, else plain lines.
struct Lines {
    editor: Option<DefaultEditor>,
    interactive: bool,
}

impl Lines {
    fn new() -> anyhow::Result<Lines> {
        let interactive = std::io::stdin().is_terminal();
        let mut editor = if interactive { Some(DefaultEditor::new()?) } else { None };
        if let (Some(e), Ok(home)) = (&mut editor, places::home()) {
            // A missing or unreadable history is an empty one.
            let _ = e.load_history(&home.join("history"));
        }
        Ok(Lines { editor, interactive })
    }

    /// One message, continued lines joined; `None` at the end of input.
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        let mut text = String::new();
        loop {
            let prompt = if text.is_empty() { "> " } else { "| " };
            let line = match &mut self.editor {
                Some(editor) => match editor.readline(prompt) {
                    Ok(line) => line,
                    // Ctrl-C at the prompt drops the line, as in a shell; Ctrl-D leaves.
                    Err(ReadlineError::Interrupted) => {
                        text.clear();
                        continue;
                    }
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(e) => return Err(e.into()),
                },
                None => {
                    let mut line = String::new();
                    if std::io::stdin().read_line(&mut line)? == 0 {
                        return Ok((!text.is_empty()).then_some(text));
                    }
                    line.truncate(line.trim_end_matches(['\n', '\r']).len());
                    line
                }
            };
            match line.strip_suffix('\\') {
                Some(part) => {
                    text.push_str(part);
                    text.push('\n');
                }
                None => {
                    text.push_str(&line);
                    break;
                }
            }
        }
        if let Some(editor) = &mut self.editor {
            let _ = editor.add_history_entry(&text);
        }
        Ok(Some(text))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if let (Some(editor), Ok(home)) = (&mut self.editor, places::home())
            && std::fs::create_dir_all(&home).is_ok()
        {
            let _ = editor.save_history(&home.join("history"));
        }
    }
}
