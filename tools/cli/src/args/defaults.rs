//! Defaults from the configuration file, and variables.
//!
//! The file is TOML. A key is a flag's long name and holds for every verb that has the flag; a key in a table named as
//! a verb holds for that verb and beats the former.
//!
//! ```toml
//! threads = 4
//! top-k = 50
//!
//! [bench]
//! threads = [1, 2, 4]
//! ```
//!
//! The values become clap's default values, so clap's own order does the rest: a flag, then the variable, then these.

use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ErrorKind};
use clap::{Arg, ArgAction, Command};
use std::io;
use std::path::PathBuf;
use toml::{Table, Value};

/// What a configuration file says.
#[derive(Debug, Default)]
pub(super) struct Defaults {
    /// Of the file, for messages; empty without one.
    path: PathBuf,
    table: Table,
}

impl Defaults {
    /// Reads the file; the flag says whether it has to exist.
    pub(super) fn load(file: Option<(PathBuf, bool)>) -> Result<Self, String> {
        let Some((path, required)) = file else { return Ok(Self::default()) };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => return Ok(Self::default()),
            Err(error) => return Err(format!("cannot read the configuration {}: {error}", path.display())),
        };
        let table = text
            .parse::<Table>()
            .map_err(|error| format!("the configuration {} is no TOML: {error}", path.display()))?;
        Ok(Self { path, table })
    }

    /// The command with these defaults and with a variable for every long flag.
    pub(super) fn apply(&self, command: Command) -> Result<Command, String> {
        self.check(&command)?;
        Ok(command.mut_subcommands(|verb| {
            let name = verb.get_name().to_owned();
            verb.mut_args(|arg| self.prepare(arg, &name))
        }))
    }

    fn prepare(&self, arg: Arg, verb: &str) -> Arg {
        let Some(long) = arg.get_long().map(str::to_owned) else { return arg };
        let variable = format!("LUTITE_{}", long.to_uppercase().replace('-', "_"));
        let mut arg = arg.env(variable).hide_env(true);
        if matches!(arg.get_action(), ArgAction::SetTrue) {
            // For `LUTITE_X=1`: plain clap takes `true` only.
            arg = arg.value_parser(BoolishValueParser::new());
        }
        let of_verb = self.table.get(verb).and_then(|section| section.get(&long));
        match of_verb.or_else(|| self.table.get(&long)).and_then(values) {
            Some(values) => arg.required(false).default_values(values),
            None => arg,
        }
    }

    /// A key that no flag has is a slip of the pen that would go unnoticed.
    fn check(&self, command: &Command) -> Result<(), String> {
        let file = self.path.display();
        let has = |verb: &Command, key: &str| verb.get_arguments().any(|arg| arg.get_long() == Some(key));
        let is_default = |key: &str, value: &Value| {
            if values(value).is_none() {
                return Err(format!(
                    "{file}: `{key}` must be a text, a number, true, false, or a list of these"
                ));
            }
            Ok(())
        };
        for (key, value) in &self.table {
            if let (Some(verb), Some(section)) = (command.find_subcommand(key), value.as_table()) {
                for (key, value) in section {
                    if !has(verb, key) {
                        return Err(format!(
                            "{file}: [{}] has `{key}`, which is no flag of it",
                            verb.get_name()
                        ));
                    }
                    is_default(key, value)?;
                }
            } else if command.get_subcommands().any(|verb| has(verb, key)) {
                is_default(key, value)?;
            } else {
                return Err(format!(
                    "{file}: `{key}` is no flag of any verb (flags are written as in --{key})"
                ));
            }
        }
        Ok(())
    }

    /// Where a bad value may have come from, if not from the command line.
    pub(super) fn explain(&self, mut error: clap::Error) -> clap::Error {
        let from_value = matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue);
        if from_value && !self.table.is_empty() {
            let note = format!("defaults were read from {}", self.path.display());
            let note = clap::error::ContextValue::StyledStrs(vec![note.into()]);
            error.insert(ContextKind::Suggested, note);
        }
        error
    }
}

/// As they would be typed; none if the value is nothing that can be.
fn values(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Integer(number) => Some(vec![number.to_string()]),
        Value::Float(number) => Some(vec![number.to_string()]),
        Value::Boolean(truth) => Some(vec![truth.to_string()]),
        Value::Array(items) if items.iter().all(|item| !item.is_array()) => {
            items.iter().map(values).collect::<Option<Vec<_>>>().map(|lists| lists.concat())
        }
        Value::Array(_) | Value::Table(_) | Value::Datetime(_) => None,
    }
}
