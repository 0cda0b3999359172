//! One value in a format: sign, digits, width.

use super::super::number;
use super::super::value::{Outcome, Value};

/// Widest field and most digits that are supported.
const MAX_SIZE: usize = 1000;
const DEFAULT_PRECISION: usize = 6;

/// How a value is laid out.
#[derive(Default)]
pub(super) struct Field {
    fill: Option<char>,
    /// `<`, `>`, `^` or `=`.
    align: Option<char>,
    /// What stands before a number that is not negative.
    sign: Option<char>,
    zeros: bool,
    grouping: bool,
    pub width: usize,
    pub precision: Option<usize>,
}

/// A width or precision; none where there are no digits.
pub(super) fn size(digits: &str) -> Outcome<Option<usize>> {
    if digits.is_empty() {
        return Ok(None);
    }
    let size = digits.parse().ok().filter(|size| *size <= MAX_SIZE);
    size.map(Some).ok_or_else(|| format!("a field of {digits} characters is not supported"))
}

impl Field {
    /// The flags of `%`.
    pub(super) fn flags(flags: &str) -> Outcome<Self> {
        if flags.contains('#') {
            return Err("the flag `#` of a format is not supported".to_owned());
        }
        let sign = if flags.contains('+') { Some('+') } else { flags.contains(' ').then_some(' ') };
        let align = flags.contains('-').then_some('<');
        Ok(Self { align, sign, zeros: flags.contains('0') && align.is_none(), ..Self::default() })
    }

    /// A value by the letter that stands after `%`.
    pub(super) fn percent(&self, kind: char, value: &Value) -> Outcome<String> {
        match kind {
            's' | 'r' => {
                let mut text = String::new();
                match kind {
                    's' => text.push_str(&value.to_text()?),
                    _ => value.repr(&mut text)?,
                }
                if matches!(value, Value::Safe(_)) {
                    return Err("safe markup in a format is not supported".to_owned());
                }
                // A zero before the width means nothing for texts.
                Ok(self.padded("", &self.cut(&text), ' ', '>'))
            }
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' if self.precision.is_none() => {
                let whole = match value {
                    Value::Float(value) if "diu".contains(kind) => number::exact_integer(value.trunc()),
                    other => other.integer(),
                };
                let whole = whole.ok_or_else(|| format!("{} is no whole number for a format", value.kind()))?;
                self.number(whole < 0, &digits(whole, if "iu".contains(kind) { 'd' } else { kind })?)
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let value = number::float(value.defined()?)?;
                self.number(value.is_sign_negative(), &self.decimal(value.abs(), kind)?)
            }
            other => Err(format!("the conversion `%{other}` is not supported")),
        }
    }

    fn cut(&self, text: &str) -> String {
        text.chars().take(self.precision.unwrap_or(usize::MAX)).collect()
    }

    fn number(&self, negative: bool, digits: &str) -> Outcome<String> {
        let sign = if negative { "-".to_owned() } else { self.sign.map(String::from).unwrap_or_default() };
        if self.zeros && self.grouping && self.width > 0 {
            return Err("zeros and thousands together are not supported".to_owned());
        }
        let fill = if self.zeros { '0' } else { ' ' };
        Ok(self.padded(&sign, digits, fill, if self.zeros { '=' } else { '>' }))
    }

    fn padded(&self, sign: &str, text: &str, fill: char, align: char) -> String {
        let missing = self.width.saturating_sub(sign.len() + text.chars().count());
        let pad = |count: usize| std::iter::repeat_n(self.fill.unwrap_or(fill), count).collect::<String>();
        match self.align.unwrap_or(align) {
            '<' => format!("{sign}{text}{}", pad(missing)),
            '^' => format!("{}{sign}{text}{}", pad(missing / 2), pad(missing - missing / 2)),
            '=' => format!("{sign}{}{text}", pad(missing)),
            _ => format!("{}{sign}{text}", pad(missing)),
        }
    }

    /// A float without its sign.
    fn decimal(&self, value: f64, kind: char) -> Outcome<String> {
        let precision = self.precision.unwrap_or(DEFAULT_PRECISION);
        let text = match kind.to_ascii_lowercase() {
            'f' => format!("{value:.precision$}"),
            'e' => exponent(value, precision),
            _ => general(value, precision.max(1)),
        };
        Ok(if kind.is_ascii_uppercase() { text.to_ascii_uppercase() } else { text })
    }
}

/// C's `%e`: two digits of exponent at least.
fn exponent(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent),
    };
    format!("{mantissa}e{sign}{digits:0>2}")
}

/// C's `%g`.
fn general(value: f64, precision: usize) -> String {
    let scientific = exponent(value, precision - 1);
    let (mantissa, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i64 = power.parse().unwrap_or_default();
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if power < -4 || power >= precision as i64 {
        let sign = if power < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trimmed(mantissa), power.unsigned_abs());
    }
    let decimals = usize::try_from(precision as i64 - 1 - power).unwrap_or_default();
    trimmed(&format!("{value:.decimals$}"))
}

fn digits(whole: i128, kind: char) -> Outcome<String> {
    let whole = whole.unsigned_abs();
    Ok(match kind {
        'd' => whole.to_string(),
        'x' => format!("{whole:x}"),
        'X' => format!("{whole:X}"),
        'o' => format!("{whole:o}"),
        'b' => format!("{whole:b}"),
        other => return Err(format!("the format `{other}` of a whole number is not supported")),
    })
}

/// Python's `format(value, spec)`.
pub(super) fn formatted(value: &Value, spec: &str) -> Outcome<String> {
    if spec.is_empty() {
        return match value {
            Value::Safe(_) => Err("safe markup in a format is not supported".to_owned()),
            other => Ok(other.to_text()?.to_string()),
        };
    }
    let (field, kind) = parse(spec)?;
    match value {
        Value::Str(text) if matches!(kind, None | Some('s')) => {
            if field.sign.is_some() || field.grouping || field.align == Some('=') || field.zeros {
                return Err(format!("the format `{spec}` of a text is not supported"));
            }
            Ok(field.padded("", &field.cut(text), ' ', '<'))
        }
        Value::Bool(_) | Value::Int(_) if matches!(kind, None | Some('d' | 'x' | 'X' | 'o' | 'b')) => {
            if field.precision.is_some() || (field.grouping && !matches!(kind, None | Some('d'))) {
                return Err(format!("the format `{spec}` of a whole number is not supported"));
            }
            let whole = value.integer().unwrap_or_default();
            let digits = digits(whole, kind.unwrap_or('d'))?;
            field.number(whole < 0, &if field.grouping { thousands(&digits) } else { digits })
        }
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
            let value = number::float(value)?;
            let text = match kind {
                Some('%') => format!("{}%", field.decimal(value.abs() * 100.0, 'f')?),
                Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G')) => field.decimal(value.abs(), kind)?,
                None if field.precision.is_none() => number::float_repr(value.abs()),
                _ => return Err(format!("the format `{spec}` of a float is not supported")),
            };
            field.number(value.is_sign_negative(), &if field.grouping { thousands(&text) } else { text })
        }
        other => Err(format!("the format `{spec}` of {} is not supported", other.kind())),
    }
}

fn thousands(digits: &str) -> String {
    let whole = digits.len() - digits.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
    let mut grouped = String::new();
    for (at, digit) in digits[..whole].chars().enumerate() {
        if at > 0 && (whole - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + &digits[whole..]
}

/// `[[fill]align][sign][0][width][,][.precision][type]`.
fn parse(spec: &str) -> Outcome<(Field, Option<char>)> {
    let unknown = || format!("the format `{spec}` is not supported");
    let mut field = Field::default();
    let mut rest: Vec<char> = spec.chars().collect();
    let aligns = |character: Option<&char>| character.is_some_and(|character| "<>^=".contains(*character));
    if aligns(rest.get(1)) {
        field.fill = Some(rest[0]);
        field.align = Some(rest[1]);
        rest.drain(..2);
    } else if aligns(rest.first()) {
        field.align = Some(rest.remove(0));
    }
    if let Some(sign @ ('+' | ' ' | '-')) = rest.first().copied() {
        field.sign = (sign != '-').then_some(sign);
        rest.remove(0);
    }
    if rest.first() == Some(&'0') {
        if field.align.is_some() {
            return Err(unknown());
        }
        field.zeros = true;
        rest.remove(0);
    }
    let take = |rest: &mut Vec<char>| {
        let count = rest.iter().take_while(|digit| digit.is_ascii_digit()).count();
        size(&rest.drain(..count).collect::<String>())
    };
    field.width = take(&mut rest)?.unwrap_or(0);
    if rest.first() == Some(&',') {
        field.grouping = true;
        rest.remove(0);
    }
    if rest.first() == Some(&'.') {
        rest.remove(0);
        field.precision = Some(take(&mut rest)?.ok_or_else(unknown)?);
    }
    match rest.as_slice() {
        [] => Ok((field, None)),
        [kind] => Ok((field, Some(*kind))),
        _ => Err(unknown()),
    }
}
