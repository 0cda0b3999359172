//! The functions that every template sees.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::call::{Args, integer, text};
use super::iterate::Iter;
use super::render::Renderer;
use super::value::{Cycler, Namespace, Outcome, Range, Value};

/// Most items of a range in the sandbox.
const MAX_RANGE: i128 = 100_000;
/// Most namespaces, cyclers and joiners of one rendering.
const STEPS_PER_OBJECT: u64 = 4_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Range,
    Dict,
    Lipsum,
    Cycler,
    Joiner,
    Namespace,
    RaiseException,
    StrftimeNow,
}

impl Function {
    /// Jinja's own and transformers' two.
    pub(super) const GLOBALS: [(&'static str, Self); 8] = [
        ("range", Self::Range),
        ("dict", Self::Dict),
        ("lipsum", Self::Lipsum),
        ("cycler", Self::Cycler),
        ("joiner", Self::Joiner),
        ("namespace", Self::Namespace),
        ("raise_exception", Self::RaiseException),
        ("strftime_now", Self::StrftimeNow),
    ];

    pub(super) fn call(self, args: Args, renderer: &mut Renderer<'_>) -> Outcome<Value> {
        match self {
            Self::Range => range(args),
            Self::Dict => Value::dict(pairs(args, renderer)?),
            Self::Lipsum => Err("`lipsum` gives other text each time".to_owned()),
            Self::Cycler => {
                renderer.step(STEPS_PER_OBJECT)?;
                if args.positional.is_empty() || !args.named.is_empty() {
                    return Err("`cycler` needs items".to_owned());
                }
                Ok(Value::Cycler(Rc::new(Cycler { items: args.positional, at: Cell::new(0) })))
            }
            Self::Joiner => {
                renderer.step(STEPS_PER_OBJECT)?;
                let [separator] = args.bind(["sep"], 0)?;
                let separator = separator.map_or(Ok(", ".into()), |separator| Ok::<_, String>(text(&separator)?.into()))?;
                Ok(Value::Joiner(Rc::new((separator, Cell::new(false)))))
            }
            Self::Namespace => {
                renderer.step(STEPS_PER_OBJECT)?;
                let namespace = Namespace { attributes: RefCell::default() };
                for (name, value) in pairs(args, renderer)? {
                    namespace.set(text(&name)?, value)?;
                }
                Ok(Value::Namespace(Rc::new(namespace)))
            }
            Self::RaiseException => {
                let [message] = args.bind(["message"], 1)?;
                Err(format!("the template refuses: {}", message.map_or(Ok("".into()), |message| message.to_text())?))
            }
            Self::StrftimeNow => {
                let [format] = args.bind(["format"], 1)?;
                renderer.text(strftime_now(text(&format.unwrap_or(Value::None))?)?)
            }
        }
    }
}

fn range(args: Args) -> Outcome<Value> {
    let bounds: [Option<Value>; 3] = args.positional(1)?;
    let [first, second, step] = bounds.map(|bound| bound.map(|bound| integer(&bound)).transpose());
    let (start, stop) = match (first?, second?) {
        (Some(stop), None) => (0, stop),
        (start, stop) => (start.unwrap_or_default(), stop.unwrap_or_default()),
    };
    let step = step?.unwrap_or(1);
    if step == 0 || [start, stop, step].iter().any(|bound| bound.unsigned_abs() > 1 << 62) {
        return Err("the bounds of a range are not usable".to_owned());
    }
    let range = Range { start, stop, step };
    if range.len() > MAX_RANGE { Err(format!("a range has more than {MAX_RANGE} items")) } else { Ok(Value::Range(range)) }
}

/// The pairs of Python's `dict(…)`.
fn pairs(args: Args, renderer: &mut Renderer<'_>) -> Outcome<Vec<(Value, Value)>> {
    let mut pairs = Vec::new();
    if args.positional.len() > 1 {
        return Err("one dict at most can be given".to_owned());
    }
    match args.positional.first() {
        Some(Value::Dict(dict)) => pairs.extend(dict.entries().iter().cloned()),
        Some(other) => {
            for pair in Iter::of(other.defined()?)?.all(renderer)? {
                let mut parts = Iter::of(&pair)?.all(renderer)?;
                match (parts.len(), parts.pop(), parts.pop()) {
                    (2, Some(value), Some(key)) => pairs.push((key, value)),
                    _ => return Err("a dict is made of pairs".to_owned()),
                }
            }
        }
        None => {}
    }
    pairs.extend(args.named.into_iter().map(|(name, value)| (Value::str(name), value)));
    Ok(pairs)
}

/// The local date and time in Python's format language, as far as chrono prints the same as the C library. It needs the
/// local calendar, which the protocol's clock does not know; a template that prints it makes prompts that differ from day
/// to day on both sides alike.
fn strftime_now(format: &str) -> Outcome<String> {
    const SAME: &str = "aAbBdHIjmMpSUwWyYFTDRehnt%";
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        let code = &rest[at + 1..];
        let (padding, code) = match code.strip_prefix('-') {
            Some(code) => (true, code),
            None => (false, code),
        };
        match code.chars().next() {
            Some(code) if padding && "dHIjmMS".contains(code) => {}
            Some(code) if !padding && SAME.contains(code) => {}
            _ => return Err(format!("strftime_now does not know the format `{format}`")),
        }
        rest = &code[1..];
    }
    let items: Vec<_> = chrono::format::StrftimeItems::new(format).collect();
    if items.contains(&chrono::format::Item::Error) {
        return Err(format!("strftime_now does not know the format `{format}`"));
    }
    Ok(chrono::Local::now().format_with_items(items.iter()).to_string())
}
