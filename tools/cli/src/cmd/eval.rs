//! `lutite eval`: how many multiple-choice questions a model answers rightly.

use super::evaluate;
use crate::args::EvalArgs;
use crate::cache;
use crate::judge::choices::journal::{Journal, MAGIC, Record};
use crate::judge::choices::lines::{Lines, Request};
use crate::judge::choices::pair::Pairing;
use crate::judge::choices::scorer::Scorer;
use crate::judge::choices::task::{Figures, Task};
use crate::load::{self, Source};
use crate::ui::{self, Answer, Progress};
use lutite_models::Model;
use serde_json::{Value, json};
use std::time::Instant;

pub(crate) fn eval(args: &EvalArgs) -> anyhow::Result<()> {
    let limit = args.limit.or(usize::MAX);
    if limit == 0 {
        anyhow::bail!("no document is asked for; give --limit at least 1, or leave it out");
    }
    let path = evaluate::path(args.path);
    let source = evaluate::find(args.model.named(), path, &args.engine)?;
    let tokenizer = load::tokenizer(&source)?;
    let positions = match args.ctx_size {
        Some(n) => n.get() as usize,
        None => evaluate::config(&source)?.context,
    };
    let pairing = Pairing { tokenizer: &tokenizer, positions };
    let mut tasks = Vec::new();
    for file in &args.tasks {
        let task = Task::scan(file, limit, &pairing)?;
        ui::note(format_args!("{}: {} of {} documents", task.name(), task.asked(), task.documents()));
        if task.cut() > 0 {
            ui::warn(format_args!(
                "{} requests of {} do not fit in {positions} positions; their contexts lose what is too much at \
                 the start",
                task.cut(),
                task.name()
            ));
        }
        tasks.push(task);
    }
    let longest = tasks.iter().map(Task::longest).max().unwrap_or(0);
    let model = evaluate::open(&source, path, None, &args.engine, longest)?;
    let described = evaluate::describe(&source, &model, path);
    let journal = match &args.resume {
        Some(file) => {
            let header = header(&source, &described, args.engine.exact_prompts, positions, &tasks)?;
            let mut records = 0;
            let journal = Journal::open(file, &header, |record| {
                records += 1;
                let task = tasks.get_mut(record.task).ok_or("there is no such task")?;
                task.restore(record)
            })?;
            if records > 0 {
                ui::note(format_args!("going on from {}, which has {records} results", file.display()));
            }
            Some(journal)
        }
        None => None,
    };

    let start = Instant::now();
    let threads = model.workers();
    let mut scorer = Scorer::new(model, threads);
    compute(&mut tasks, &mut scorer, &pairing, &source, journal)?;
    let seconds = start.elapsed().as_secs_f64();
    ui::note(format_args!("computed in {seconds:.1} s"));

    let mut figures: Vec<Figures> = tasks.iter().map(Task::figures).collect();
    let average = (figures.len() > 1).then(|| Figures::average(&figures));
    if args.json {
        let mut value = json!({ "tasks": figures });
        if let Some(average) = average {
            value["average"] = serde_json::to_value(average)?;
        }
        value["seconds"] = seconds.into();
        value["model"] = described;
        return evaluate::print_json(&value);
    }
    figures.extend(average);
    Answer::stdout().print(&table(&figures))
}

/// All that the numbers depend on. Not the number of documents, since each is scored alone.
fn header(
    source: &Source,
    described: &Value,
    exact_prompts: bool,
    positions: usize,
    tasks: &[Task],
) -> anyhow::Result<Value> {
    let hex = |hash: u64| format!("{hash:016x}");
    Ok(json!({
        MAGIC: 1,
        "lutite": env!("CARGO_PKG_VERSION"),
        "model": { "bytes": source.file.len(), "xxh3": hex(cache::hash(source.file.chunks())?) },
        "tasks": tasks.iter().map(|task| hex(task.hash())).collect::<Vec<_>>(),
        "path": described["path"],
        "kernel": described["kernel"],
        "type_k": described["type_k"],
        "type_v": described["type_v"],
        "exact_prompts": exact_prompts,
        "ctx_size": positions,
    }))
}

/// Computes what the tasks still lack.
fn compute(
    tasks: &mut [Task],
    scorer: &mut Scorer<Model>,
    pairing: &Pairing<'_>,
    source: &Source,
    mut journal: Option<Journal>,
) -> anyhow::Result<()> {
    let mut progress = Progress::share("evaluating", tasks.iter().map(Task::work).sum());
    let mut worked = 0;
    for (i, task) in tasks.iter_mut().enumerate() {
        let log_prob = |request: &Request, lines: &Lines| {
            let pair = pairing.pair(&request.context, &request.continuation);
            let log_prob = scorer.log_prob(&pair.map_err(|why| lines.bad(why))?)?;
            log_prob.ok_or_else(|| evaluate::not_finite(source, lines.place()))
        };
        let done = |document: usize, uncond: bool, log_probs: &[f64], work: u64| {
            worked += work;
            progress.set(worked);
            match &mut journal {
                Some(journal) => {
                    journal.push(&Record { task: i, document, uncond, log_probs: log_probs.to_vec() })
                }
                None => Ok(()),
            }
        };
        task.run(log_prob, done)?;
    }
    Ok(())
}

/// The figures for people: a task in each line, in percent.
fn table(figures: &[Figures]) -> String {
    let width = figures.iter().map(|f| f.task.chars().count()).max().unwrap_or(0).max("task".len());
    let uncond = figures.iter().any(|f| f.acc_uncond.is_some());
    let mut out = format!("{:width$}  documents  chance, %  {:>16}  {:>16}", "task", "acc, %", "acc_norm, %");
    out.push_str(&if uncond { format!("  {:>16}\n", "acc_uncond, %") } else { "\n".into() });
    for f in figures {
        let percent = |value: f64, error: f64| format!("  {:>6.2} +/- {:>5.2}", 100.0 * value, 100.0 * error);
        out.push_str(&format!("{:width$}  {:>9}  {:>9.2}", f.task, f.documents, 100.0 * f.chance));
        out.push_str(&percent(f.acc, f.acc_error));
        out.push_str(&percent(f.acc_norm, f.acc_norm_error));
        if let (Some(value), Some(error)) = (f.acc_uncond, f.acc_uncond_error) {
            out.push_str(&percent(value, error));
        }
        out.push('\n');
    }
    out
}
