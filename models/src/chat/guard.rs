//! Limits for templates, which come with models and are not to be trusted.
//!
//! minijinja bounds the number of instructions (fuel) and the recursion, but one instruction may do any amount of work:
//! forty times `x = x ~ x` asks for a terabyte. So every instruction and filter that can make much out of little is
//! exchanged, in the compiled template, for one of ours that first asks a [`Meter`]:
//!
//! - joining, adding, multiplying, writing: the size of what comes out is paid for before it is made;
//! - lists and maps: building one costs as much as walking it, so that sharing parts cannot grow exponentially, and
//!   nesting is bounded by [`MAX_DEPTH`], which bounds the recursion of everything that walks values;
//! - comparisons, slices, characters by number and filters pay for going over what they are given.

use minijinja::machinery::{Instruction, Instructions, Token, tokenize};
use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, Output, State, filters};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Values nest at most this deep.
const MAX_DEPTH: usize = 32;
/// The most tokens in one `{{ }}` or `{% %}`: the compiler folds constants in quadratic time.
const MAX_TAG_TOKENS: usize = 2000;
/// The longest template, in bytes; the longest known one has 17 KiB.
const MAX_SOURCE_BYTES: usize = 256 << 10;
/// The most times that a constant may be repeated by `*`.
const MAX_REPEAT: u64 = 200;
/// The widest indentation.
const MAX_INDENT: usize = 256;
/// Filters that walk their input as deep as it goes.
const DEEP: &[&str] =
    &["string", "join", "pprint", "sort", "unique", "min", "max", "dictsort", "groupby", "sum"];

/// Filters that take a text for the list of its characters.
const BY_CHARACTER: &[&str] = &[
    "list",
    "map",
    "select",
    "reject",
    "selectattr",
    "rejectattr",
    "sort",
    "unique",
    "chain",
    "zip",
    "groupby",
];

fn refuse(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

/// What a rendering may still spend: a byte made or a value visited costs one.
#[derive(Debug, Clone)]
pub(super) struct Meter(Arc<AtomicUsize>);

impl Meter {
    pub(super) fn new(budget: usize) -> Meter {
        Meter(Arc::new(AtomicUsize::new(budget)))
    }

    fn spend(&self, cost: usize) -> Result<(), Error> {
        let paid = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(cost));
        paid.map(|_| ()).map_err(|_| refuse("the template makes too much text or too large values"))
    }

    /// The bytes that `value` has when written, about; pays for the visit.
    fn weigh(&self, value: &Value, depth: usize) -> Result<usize, Error> {
        self.spend(1)?;
        if let Some(text) = value.as_str() {
            return Ok(text.len());
        }
        if depth == MAX_DEPTH {
            return Err(refuse("the template nests values too deep"));
        }
        // A macro holds what it has seen, to any depth, and does not show it.
        if value.as_object().is_some_and(|object| object.type_name().ends_with("::Macro")) {
            return Err(refuse("the template takes a macro for a value"));
        }
        let mut bytes = 8;
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()? {
                    bytes += self.weigh(&item, depth + 1)? + 2;
                }
            }
            ValueKind::Map => {
                for key in value.try_iter()? {
                    bytes +=
                        self.weigh(&key, depth + 1)? + self.weigh(&value.get_item(&key)?, depth + 1)? + 4;
                }
            }
            _ => {}
        }
        Ok(bytes)
    }

    /// Pays for everything in `value` once.
    fn pay(&self, value: &Value) -> Result<(), Error> {
        let bytes = self.weigh(value, 0)?;
        self.spend(bytes)
    }

    /// Pays for going once over `value`, or making it from values that were paid for.
    fn pay_flat(&self, value: &Value) -> Result<(), Error> {
        self.spend(size(value))
    }

    /// The items of a list or of what can be walked as one; pays for each.
    fn collect(&self, value: &Value) -> Result<Vec<Value>, Error> {
        let mut items = Vec::new();
        for item in value.try_iter()? {
            self.spend(size_of::<Value>())?;
            items.push(item);
        }
        Ok(items)
    }

    /// What a filter made, paid for. What would be made only when it is walked is made now: such values refer to each
    /// other, and walking twenty thousand of them overflows the stack.
    fn settle(&self, made: Value) -> Result<Value, Error> {
        if made.kind() == ValueKind::Iterable {
            let made = Value::from(self.collect(&made)?);
            // `zip` puts its values one deeper.
            self.weigh(&made, 0)?;
            return Ok(made);
        }
        self.pay_flat(&made)?;
        Ok(made)
    }

    fn compare(&self, a: &Value, b: &Value) -> Result<(), Error> {
        let deep = |v: &Value| {
            matches!(v.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain)
        };
        if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
            return self.spend(a.len().min(b.len()));
        }
        if deep(a) && deep(b) {
            self.weigh(a, 0)?;
            self.weigh(b, 0)?;
        }
        Ok(())
    }

    fn replace(&self, text: &str, from: &str, to: &str) -> Result<(), Error> {
        self.spend(text.len() + text.matches(from).count().saturating_mul(to.len()))
    }
}

/// Bytes of a value, parts not counted.
fn size(value: &Value) -> usize {
    match (value.as_str(), value.len()) {
        (Some(text), _) => text.len(),
        (None, Some(items)) => items.saturating_mul(size_of::<Value>()),
        (None, None) => 1,
    }
}

/// Refuses what would already be too much for the compiler.
pub(super) fn check_source(source: &str, config: &minijinja::machinery::TemplateConfig) -> Result<(), Error> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(refuse(format!("the template has {} bytes, more than {MAX_SOURCE_BYTES}", source.len())));
    }
    let (mut in_tag, mut products) = (0, 0);
    let mut tokens = tokenize(source, false, config.syntax_config.clone()).peekable();
    let mut before: Option<Token<'_>> = None;
    while let Some(token) = tokens.next() {
        let (token, _) = token?;
        match &token {
            Token::VariableStart | Token::BlockStart => (in_tag, products) = (0, 0),
            Token::Mul => {
                let after = tokens.peek().and_then(|t| t.as_ref().ok()).map(|(t, _)| t);
                products += usize::from(!varies(before.as_ref()) && !varies(after));
                let large = |t: Option<&Token<'_>>| matches!(t, Some(Token::Int(n)) if *n > MAX_REPEAT);
                let small =
                    is_plain(before.as_ref()) && is_plain(after) && !large(before.as_ref()) && !large(after);
                if products > 1 || products == 1 && !small {
                    return Err(refuse("the template multiplies large constants"));
                }
            }
            _ => in_tag += 1,
        }
        if in_tag > MAX_TAG_TOKENS {
            return Err(refuse(format!("the template has a tag of more than {MAX_TAG_TOKENS} words")));
        }
        before = Some(token);
    }
    Ok(())
}

/// Whether a product with this next to the sign is none of constants. The compiler folds those, without limits.
fn varies(token: Option<&Token<'_>>) -> bool {
    matches!(token, Some(Token::Ident(_)))
}

fn is_plain(token: Option<&Token<'_>>) -> bool {
    matches!(token, Some(Token::Int(_) | Token::Float(_) | Token::Str(_) | Token::String(_)))
}

/// Exchanges the instructions that need a meter for filters that have one.
pub(super) fn rewrite(code: &mut Instructions<'_>) -> Result<(), Error> {
    meter_literals(code);
    meter_namespaces(code);
    let mut at = 0;
    while let Some(instruction) = code.get_mut(at) {
        let count =
            |n: usize| u16::try_from(n).map(Some).map_err(|_| refuse("the template has too long a list"));
        let (name, args) = match instruction {
            Instruction::StringConcat => ("lutite~", Some(2)),
            Instruction::Add => ("lutite+", Some(2)),
            Instruction::Mul => ("lutite*", Some(2)),
            Instruction::Eq => ("lutite==", Some(2)),
            Instruction::Ne => ("lutite!=", Some(2)),
            Instruction::Gt => ("lutite>", Some(2)),
            Instruction::Gte => ("lutite>=", Some(2)),
            Instruction::Lt => ("lutite<", Some(2)),
            Instruction::Lte => ("lutite<=", Some(2)),
            Instruction::In => ("lutite_in", Some(2)),
            Instruction::GetItem => ("lutite_item", Some(2)),
            Instruction::Slice => ("lutite_slice", Some(4)),
            Instruction::BuildList(None) | Instruction::BuildTuple(None) => ("lutite[]", None),
            Instruction::BuildList(Some(n)) | Instruction::BuildTuple(Some(n)) => ("lutite[]", count(*n)?),
            Instruction::BuildMap(n) => ("lutite{}", count(2 * *n)?),
            Instruction::CompareAndPreserve(_) => {
                return Err(refuse("the template chains comparisons (a < b < c)"));
            }
            _ => {
                at += 1;
                continue;
            }
        };
        // !0: not one of the slots in which the engine keeps filters it has looked up.
        *instruction = Instruction::ApplyFilter(name, args, !0);
        at += 1;
    }
    Ok(())
}

/// Literal text is written by an instruction that asks nobody. It becomes a jump to behind the end, where the text is
/// written as a value like any other, and back.
fn meter_literals(code: &mut Instructions<'_>) {
    let end = (0..).take_while(|&at| code.get(at).is_some()).count() as u32;
    // Where the code ended by being over.
    code.add(Instruction::Return);
    for at in 0..end {
        let Some(Instruction::EmitRaw(text)) = code.get(at) else { continue };
        let text = Value::from(*text);
        // For messages.
        let line = code.get_line(at).and_then(|line| u16::try_from(line).ok()).unwrap_or_default();
        let aside = code.add_with_line(Instruction::LoadConst(text), line);
        code.add(Instruction::Emit);
        code.add(Instruction::Jump(at + 1));
        if let Some(literal) = code.get_mut(at) {
            *literal = Instruction::Jump(aside);
        }
    }
}

/// A namespace takes any value, another namespace too: what is to be set is first looked through, behind the end.
fn meter_namespaces(code: &mut Instructions<'_>) {
    let end = (0..).take_while(|&at| code.get(at).is_some()).count() as u32;
    for at in 0..end {
        let Some(Instruction::SetAttr(name)) = code.get(at) else { continue };
        let (name, line) =
            (*name, code.get_line(at).and_then(|line| u16::try_from(line).ok()).unwrap_or_default());
        // The namespace lies above the value.
        let aside = code.add_with_line(Instruction::Swap, line);
        code.add_with_line(Instruction::ApplyFilter("lutite_set", Some(1), !0), line);
        code.add(Instruction::Swap);
        code.add_with_line(Instruction::SetAttr(name), line);
        code.add(Instruction::Jump(at + 1));
        if let Some(set) = code.get_mut(at) {
            *set = Instruction::Jump(aside);
        }
    }
}

/// Puts the metered operators, filters, methods and output into `env`.
pub(super) fn install(env: &mut Environment<'_>, meter: &Meter) {
    operators(env, meter);
    let wrapped: [(&'static str, Value); 36] = [
        ("length", Value::from_function(filters::length)),
        ("count", Value::from_function(filters::length)),
        ("lower", Value::from_function(filters::lower)),
        ("upper", Value::from_function(filters::upper)),
        ("title", Value::from_function(filters::title)),
        ("capitalize", Value::from_function(filters::capitalize)),
        ("replace", Value::from_function(filters::replace)),
        ("dictsort", Value::from_function(filters::dictsort)),
        ("items", Value::from_function(filters::items)),
        ("reverse", Value::from_function(filters::reverse)),
        ("trim", Value::from_function(filters::trim)),
        ("join", Value::from_function(filters::join)),
        ("split", Value::from_function(filters::split)),
        ("lines", Value::from_function(filters::lines)),
        ("escape", Value::from_function(filters::escape)),
        ("e", Value::from_function(filters::escape)),
        ("first", Value::from_function(filters::first)),
        ("last", Value::from_function(filters::last)),
        ("min", Value::from_function(filters::min)),
        ("max", Value::from_function(filters::max)),
        ("sort", Value::from_function(filters::sort)),
        ("list", Value::from_function(filters::list)),
        ("string", Value::from_function(filters::string)),
        ("sum", Value::from_function(filters::sum)),
        ("indent", Value::from_function(filters::indent)),
        ("select", Value::from_function(filters::select)),
        ("reject", Value::from_function(filters::reject)),
        ("selectattr", Value::from_function(filters::selectattr)),
        ("rejectattr", Value::from_function(filters::rejectattr)),
        ("map", Value::from_function(filters::map)),
        ("groupby", Value::from_function(filters::groupby)),
        ("unique", Value::from_function(filters::unique)),
        ("chain", Value::from_function(filters::chain)),
        ("zip", Value::from_function(filters::zip)),
        ("pprint", Value::from_function(filters::pprint)),
        ("attr", Value::from_function(filters::attr)),
    ];
    for (name, inner) in wrapped {
        let meter = meter.clone();
        env.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            before(&meter, name, &args)?;
            meter.settle(inner.call(state, &args)?)
        });
    }
    // No chat template needs these, and each can make much out of little.
    for name in ["batch", "slice", "format"] {
        env.remove_filter(name);
    }
    env.remove_global("debug");

    let m = meter.clone();
    env.add_filter("tojson", move |value: &Value, args: Rest<ValueOrKwargs>| {
        super::json::dump(&m, value, &args.into_values())
    });
    let m = meter.clone();
    env.set_unknown_method_callback(move |state, value, method, args| {
        // Of a method the receiver is the separator, of a filter the first argument is not.
        match (method, args) {
            ("join", [items]) => before(&m, "join", &[items.clone(), value.clone()])?,
            ("format", _) => check_format(value)?,
            _ => before(&m, method, &[std::slice::from_ref(value), args].concat())?,
        }
        let result = minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)?;
        m.settle(result)
    });
    let m = meter.clone();
    env.set_formatter(move |out: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value| {
        m.pay(value)?;
        let written = match (value.kind(), value.as_str()) {
            (_, Some(text)) => out.write_str(text),
            // As Python writes them.
            (ValueKind::None, _) => out.write_str("None"),
            (ValueKind::Bool, _) => out.write_str(if value.is_true() { "True" } else { "False" }),
            _ => out.write_fmt(format_args!("{value}")),
        };
        written.map_err(Error::from)
    });
    for name in ["namespace", "dict"] {
        let inner = match name {
            "namespace" => Value::from_function(minijinja::functions::namespace),
            _ => Value::from_function(minijinja::functions::dict),
        };
        let m = meter.clone();
        env.add_function(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            args.iter().try_for_each(|arg| m.pay(arg))?;
            inner.call(state, &args)
        });
    }
}

/// Pays for what a filter or method will make, where that is more than its result tells.
fn before(meter: &Meter, name: &str, args: &[Value]) -> Result<(), Error> {
    let Some(value) = args.first() else { return Ok(()) };
    if DEEP.contains(&name) {
        meter.pay(value)?;
    }
    args.iter().filter_map(Value::as_str).try_for_each(|text| meter.spend(text.len()))?;
    let text = |i: usize| args.get(i).and_then(Value::as_str).unwrap_or_default();
    // A list is many times larger than the text that it is made of.
    let pieces = match name {
        "split" | "rsplit" if text(1).is_empty() => text(0).split_whitespace().count(),
        "split" | "rsplit" => text(0).matches(text(1)).count() + 1,
        "lines" | "splitlines" => text(0).lines().count(),
        _ if BY_CHARACTER.contains(&name) => args.iter().filter_map(Value::as_str).map(str::len).sum(),
        _ => 0,
    };
    meter.spend(pieces.saturating_mul(size_of::<Value>()))?;
    match name {
        "replace" => meter.replace(&value.to_string_metered(meter)?, text(1), text(2)),
        "join" => meter.spend(value.len().unwrap_or(0).saturating_mul(text(1).len())),
        // Nothing else of a name is needed here, and there would be two places to look for the width.
        "indent" if args.iter().any(Value::is_kwargs) => {
            Err(refuse("the template indents with named options"))
        }
        "indent" => {
            let width = args.iter().filter_map(Value::as_usize).max().unwrap_or(4);
            if width > MAX_INDENT {
                return Err(refuse(format!("the template indents by {width}, more than {MAX_INDENT}")));
            }
            meter.spend(text(0).lines().count().saturating_mul(width.max(text(1).len())))
        }
        _ => Ok(()),
    }
}

/// `str.format` may pad to any width, and the engine panics for some names in brackets. So: no numbers of more than three
/// digits, and only fields of the form `{name:spec}`, read as the engine reads them.
fn check_format(format: &Value) -> Result<(), Error> {
    let mut rest = format.as_str().unwrap_or_default();
    while let Some(at) = rest.find('{') {
        let field = &rest[at + 1..];
        // Two are a brace that is meant.
        if let Some(after) = field.strip_prefix('{') {
            rest = after;
            continue;
        }
        let name_end = field.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'));
        let (name, mut spec) = field.split_at(name_end.unwrap_or(field.len()));
        if let Some(after) = spec.strip_prefix(':') {
            let mut chars = after.chars();
            let fill = chars.next().map_or(0, char::len_utf8);
            // What fills may be a brace too.
            spec = if matches!(chars.next(), Some('<' | '>' | '^')) { &after[fill..] } else { after };
        }
        let (spec, after) = spec.split_at(spec.find('}').unwrap_or(spec.len()));
        let long = |text: &str| text.split(|c: char| !c.is_ascii_digit()).any(|number| number.len() > 3);
        if long(name) || long(spec) || spec.contains(['[', '{']) {
            return Err(refuse(
                "the template formats with computed or very large widths, or by names in brackets",
            ));
        }
        rest = after.strip_prefix('}').unwrap_or(after);
    }
    Ok(())
}

trait Metered {
    fn to_string_metered(&self, meter: &Meter) -> Result<String, Error>;
}

impl Metered for Value {
    fn to_string_metered(&self, meter: &Meter) -> Result<String, Error> {
        meter.pay(self)?;
        Ok(self.to_string())
    }
}

fn operators(env: &mut Environment<'_>, meter: &Meter) {
    let m = meter.clone();
    env.add_filter("lutite~", move |a: &Value, b: &Value| -> Result<Value, Error> {
        Ok(Value::from(a.to_string_metered(&m)? + &b.to_string_metered(&m)?))
    });
    let m = meter.clone();
    env.add_filter("lutite+", move |state: &mut State<'_, '_>, a: &Value, b: &Value| {
        m.spend(size(a).saturating_add(size(b)))?;
        m.settle(plain(state, "a + b", a, b)?)
    });
    let m = meter.clone();
    env.add_filter("lutite*", move |state: &mut State<'_, '_>, a: &Value, b: &Value| {
        // Of two numbers neither is long: the product of their sizes is no cost.
        if !(a.is_number() && b.is_number()) {
            let times = b.as_usize().or(a.as_usize()).unwrap_or(1);
            m.spend(size(a).max(size(b)).saturating_mul(times))?;
        }
        plain(state, "a * b", a, b)
    });
    for (name, expression) in [
        ("lutite==", "a == b"),
        ("lutite!=", "a != b"),
        ("lutite>", "a > b"),
        ("lutite>=", "a >= b"),
        ("lutite<", "a < b"),
        ("lutite<=", "a <= b"),
        ("lutite_in", "a in b"),
    ] {
        let m = meter.clone();
        env.add_filter(name, move |state: &mut State<'_, '_>, a: &Value, b: &Value| {
            if name == "lutite_in" {
                m.pay_flat(b)?;
            }
            m.compare(a, b)?;
            match name {
                "lutite==" => Ok(Value::from(a == b)),
                "lutite!=" => Ok(Value::from(a != b)),
                _ => plain(state, expression, a, b),
            }
        });
    }
    for name in ["eq", "equalto", "==", "ne", "!="] {
        let (m, equal) = (meter.clone(), !matches!(name, "ne" | "!="));
        env.add_test(name, move |a: &Value, b: &Value| m.compare(a, b).map(|()| (a == b) == equal));
    }
    for name in ["in", "lt", "lessthan", "<", "le", "<=", "gt", "greaterthan", ">", "ge", ">=", "sameas"] {
        env.remove_test(name);
    }
    // Python's None is not iterable; templates test `tools is iterable and tools|length`.
    env.add_test("iterable", |v: &Value| !v.is_none() && v.try_iter().is_ok());
    // The n-th character of a text, and a part of a list, are found by walking there.
    let m = meter.clone();
    env.add_filter("lutite_item", move |state: &mut State<'_, '_>, a: &Value, b: &Value| {
        m.spend(a.as_str().map_or(1, str::len))?;
        plain(state, "a[b]", a, b)
    });
    let m = meter.clone();
    env.add_filter("lutite_slice", move |a: &Value, b: &Value, c: &Value, d: &Value| slice(&m, a, [b, c, d]));
    let m = meter.clone();
    env.add_filter("lutite_set", move |value: &Value| m.weigh(value, 1).map(|_| value.clone()));
    let m = meter.clone();
    env.add_filter("lutite[]", move |items: Rest<Value>| -> Result<Value, Error> {
        let list = Value::from(items.0);
        m.pay(&list)?;
        Ok(list)
    });
    let m = meter.clone();
    env.add_filter("lutite{}", move |items: Rest<Value>| -> Result<Value, Error> {
        let map = Value::from_pairs(items.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())));
        m.pay(&map)?;
        Ok(map)
    });
}

/// `value[start:stop:step]` as in Python. The engine's own panics for `''[::-1]`, and gives a list that is made when it is
/// walked.
fn slice(meter: &Meter, value: &Value, bounds: [&Value; 3]) -> Result<Value, Error> {
    let number = |v: &Value| if v.is_none() { Ok(None) } else { i64::try_from(v.clone()).map(Some) };
    let [start, stop, step] = bounds.map(number);
    let (start, stop, step) = (start?, stop?, step?.unwrap_or(1));
    if step == 0 {
        return Err(refuse("the template slices by steps of 0"));
    }
    meter.pay_flat(value)?;
    let text = value.as_str().map(|text| {
        meter.spend(text.len() * size_of::<char>())?;
        Ok::<Vec<char>, Error>(text.chars().collect())
    });
    let text = text.transpose()?;
    let items = match (&text, value.kind()) {
        (Some(_), _) | (None, ValueKind::Undefined | ValueKind::None) => Vec::new(),
        (None, ValueKind::Seq | ValueKind::Iterable) => meter.collect(value)?,
        (None, kind) => return Err(refuse(format!("the template slices a value of type {kind}"))),
    };
    let len = text.as_ref().map_or(items.len(), Vec::len) as i64;
    // What is outside counts as the end on that side; backwards, both ends lie one to the left.
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let bound = |i: i64| (if i < 0 { i.saturating_add(len) } else { i }).clamp(low, high);
    let (from, to) = if step > 0 { (low, high) } else { (high, low) };
    let (at, to) = (start.map_or(from, bound), stop.map_or(to, bound));
    let taken = std::iter::successors(Some(at), |at| Some(at.saturating_add(step)))
        .take_while(|&at| if step > 0 { at < to } else { at > to })
        .map(|at| at as usize);
    Ok(match text {
        Some(text) => Value::from(taken.map(|i| text[i]).collect::<String>()),
        None => Value::from(taken.map(|i| items[i].clone()).collect::<Vec<_>>()),
    })
}

/// The engine's own operator, once its cost is paid.
fn plain(state: &mut State<'_, '_>, expression: &'static str, a: &Value, b: &Value) -> Result<Value, Error> {
    state.env().compile_expression(expression)?.eval(minijinja::context! { a, b })
}

pub(super) fn pay(meter: &Meter, value: &Value) -> Result<(), Error> {
    meter.pay(value)
}
