//! `tojson` as Hugging Face has it: Python's `json.dumps(ensure_ascii=False)`, nothing escaped for HTML.

use super::guard::{Meter, pay};
use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind};
use std::fmt::Write;

/// The widest indentation of one level.
const MAX_INDENT: usize = 16;

/// The filter: `value | tojson`, `value | tojson(indent=4)`. Other options of Python's are ignored.
pub(super) fn dump(meter: &Meter, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (indent, options): (Option<usize>, Kwargs) = from_args(args)?;
    let indent = indent.or(options.get::<Option<usize>>("indent").unwrap_or(None)).map(|n| n.min(MAX_INDENT));
    // Bounds the recursion too.
    pay(meter, value)?;
    let mut out = String::new();
    write(&mut out, value, indent, 0)?;
    Ok(Value::from_safe_string(out))
}

fn write(out: &mut String, value: &Value, indent: Option<usize>, depth: usize) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => {
            // Writing to a String does not fail.
            let _ = write!(out, "{value}");
        }
        ValueKind::String => string(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            block(out, ['[', ']'], &items, indent, depth, |out, item| write(out, item, indent, depth + 1))?;
        }
        ValueKind::Map => {
            let keys: Vec<Value> = value.try_iter()?.collect();
            block(out, ['{', '}'], &keys, indent, depth, |out, key| {
                string(out, &key.to_string());
                out.push_str(": ");
                write(out, &value.get_item(key)?, indent, depth + 1)
            })?;
        }
        kind => {
            return Err(Error::new(ErrorKind::BadSerialization, format!("{kind} cannot be written as JSON")));
        }
    }
    Ok(())
}

fn block(
    out: &mut String,
    [open, close]: [char; 2],
    items: &[Value],
    indent: Option<usize>,
    depth: usize,
    mut each: impl FnMut(&mut String, &Value) -> Result<(), Error>,
) -> Result<(), Error> {
    out.push(open);
    let line = |out: &mut String, depth: usize| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        line(out, depth + 1);
        each(out, item)?;
    }
    if !items.is_empty() {
        line(out, depth);
    }
    out.push(close);
    Ok(())
}

fn string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => {
                // Writing to a String does not fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
