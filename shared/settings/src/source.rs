//! Where values come from, in rising order: defaults, the TOML file, the environment, `.env` (which the guide lets win over
//! the shell), `--set`. Reads files and the environment once; everything after works on the result.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use grail_secrets::{Address, HIDDEN, Words, shown_addresses};
use toml::Value;

use super::dotenv::{self, Unread};
use super::table::{Form, Setting, TABLE, find};
use super::{ConfigError, Unused, foreign};

/// Who set a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The table of settings.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// A variable of the environment.
    Environment(&'static str),
    /// A variable in a `.env` file.
    DotEnv(PathBuf, &'static str),
    /// The command line.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(formatter, "default"),
            Self::File(path) => write!(formatter, "{}", path.display()),
            Self::Environment(name) => write!(formatter, "environment {name}"),
            Self::DotEnv(path, name) => write!(formatter, "{} {name}", path.display()),
            Self::CommandLine => write!(formatter, "command line"),
        }
    }
}

/// A value with its origin.
#[derive(Debug, Clone)]
pub struct Sourced {
    /// The value in TOML form.
    pub value: Value,
    /// Who set it.
    pub origin: Origin,
}

/// What may supply values.
#[derive(Debug, Default)]
pub struct Sources {
    /// The TOML file.
    pub file: Option<PathBuf>,
    /// The variables of the environment.
    pub environment: BTreeMap<String, String>,
    /// A `.env` file that must exist, or `None` for `.env` beside the caller if it is there.
    pub dot_env: Option<PathBuf>,
    /// `key=value` of the command line.
    pub overrides: Vec<(String, String)>,
}

/// Every setting that has a value, by key.
pub type Values = BTreeMap<&'static str, Sourced>;

/// Everything that was collected.
pub struct Collected {
    /// Every setting that has a value.
    pub values: Values,
    /// Variables that nothing was made of.
    pub unused: Unused,
    /// What `.env` says.
    pub dot_env: BTreeMap<String, String>,
    /// Why the configuration file cannot be read at all, so that whatever else seems wrong comes from that.
    pub without_file: Option<WithoutFile>,
}

/// A configuration file that cannot be read.
pub struct WithoutFile {
    /// What is secret in its lines, as far as they tell.
    pub secrets: Vec<String>,
}

/// Collects the values, and the variables that nothing was made of; every mistake of form is added to `errors`.
pub fn collect(sources: &Sources, errors: &mut Vec<ConfigError>) -> Collected {
    let mut unused = foreign::names(&sources.environment);
    let mut values = defaults();
    let mut without_file = None;
    if let Some(path) = &sources.file {
        match file_values(path, errors) {
            Ok(read) => read.into_iter().for_each(|(key, value)| {
                insert_known(&mut values, &key, value, &Origin::File(path.clone()), errors);
            }),
            Err(file) => without_file = Some(file),
        }
    }
    insert_variables(&mut values, &sources.environment, Origin::Environment, errors);
    let mut dot_env = BTreeMap::new();
    if let Some(path) = sources.dot_env.clone().or_else(|| Some(PathBuf::from(".env")).filter(|path| path.exists())) {
        dot_env = dot_env_variables(&path, &sources.environment, &mut unused, errors);
        insert_variables(&mut values, &dot_env, |name| Origin::DotEnv(path.clone(), name), errors);
        unused.extend(foreign::names(&dot_env));
    }
    for (key, text) in &sources.overrides {
        if let Some(setting) = find(key).filter(|setting| !secrets(setting.form, text).is_empty()) {
            errors.push(in_argv(setting));
            continue;
        }
        match find(key).map(|setting| from_text(setting, text)) {
            Some(Ok(value)) => insert_known(&mut values, key, value, &Origin::CommandLine, errors),
            Some(Err(reason)) => errors.push(ConfigError::value(key, shown(key, text), &Origin::CommandLine, reason)),
            None => errors.push(unknown(key, &Origin::CommandLine)),
        }
    }
    Collected { values, unused, dot_env, without_file }
}

/// What stands on a command line is read by everybody on the host (`ps`), and kept by shells.
fn in_argv(setting: &Setting) -> ConfigError {
    let place = match setting.variables {
        [] => "write it in the TOML file (--config)".to_owned(),
        variables => format!("write it in the TOML file (--config), or set {}", variables.join(" or ")),
    };
    let reason = format!("is secret and must not stand on a command line, where every user of this host can read it; {place}");
    ConfigError { key: setting.key.into(), value: None, origin: Some(Origin::CommandLine), reason }
}

fn defaults() -> Values {
    let parse = |setting: &'static Setting| {
        let document: toml::Table = format!("value = {}", setting.default).parse().ok()?;
        Some((setting.key, Sourced { value: document.get("value")?.clone(), origin: Origin::Default }))
    };
    TABLE.iter().filter_map(parse).collect()
}

fn file_values(path: &Path, errors: &mut Vec<ConfigError>) -> Result<Vec<(String, Value)>, WithoutFile> {
    let fail = |reason: String| ConfigError { key: path.display().to_string(), value: None, origin: None, reason };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            errors.push(fail(format!("cannot be read: {error}; give the file with --config PATH")));
            return Err(WithoutFile { secrets: Vec::new() });
        }
    };
    match text.parse::<toml::Table>() {
        Ok(table) => Ok(flatten(String::new(), table)),
        Err(error) => {
            errors.push(fail(not_toml(&text, &error)));
            Err(WithoutFile { secrets: secrets_of_lines(&text) })
        }
    }
}

/// What is secret in a text that is no TOML, as far as its single lines tell: who looks at the miner all the same must not show it.
fn secrets_of_lines(text: &str) -> Vec<String> {
    let of_line = |line: &str| {
        let (name, value) = line.split_once('=')?;
        let last = |key: &'static str| key.rsplit('.').next() == name.trim().rsplit('.').next();
        let setting = TABLE.iter().find(|setting| last(setting.key))?;
        let value = value.trim();
        let quoted = value.strip_prefix(['"', '\'']).map(|value| value.split(['"', '\'']).next().unwrap_or(value));
        Some(secrets(setting.form, quoted.unwrap_or(value)))
    };
    text.lines().filter_map(of_line).flatten().collect()
}

/// Where a file is no TOML: the parser's own text repeats the line, which may hold a secret.
fn not_toml(text: &str, error: &toml::de::Error) -> String {
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else { return "is not TOML".into() };
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = before.chars().rev().take_while(|letter| *letter != '\n').count() + 1;
    // The parser's words are told where they hold no word of the value.
    let whole = text.lines().nth(line - 1).unwrap_or_default();
    let value = whole.split_once('=').map_or(whole, |(_, value)| value);
    let mut words = value.split(|letter: char| !letter.is_alphanumeric()).filter(|word| word.len() >= 3);
    let message = error.message().lines().next().unwrap_or_default();
    let message = if words.any(|word| message.contains(word)) { String::new() } else { format!(": {message}") };
    format!("is not TOML: line {line}, column {column}{message} (the line is not repeated here, it may hold a secret)")
}

fn flatten(prefix: String, table: toml::Table) -> Vec<(String, Value)> {
    let name = |key: String| if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
    let step = |(key, value)| match value {
        Value::Table(inner) => flatten(name(key), inner),
        value => vec![(name(key), value)],
    };
    table.into_iter().flat_map(step).collect()
}

fn insert_known(values: &mut Values, key: &str, value: Value, origin: &Origin, errors: &mut Vec<ConfigError>) {
    let Some(setting) = find(key) else {
        errors.push(unknown(key, origin));
        return;
    };
    match with_form(setting.form, value) {
        Ok(value) => {
            values.insert(setting.key, Sourced { value, origin: origin.clone() });
        }
        Err((value, wanted)) => {
            let reason = format!("is {}, not {wanted}", value.type_str());
            errors.push(ConfigError::value(key, shown(key, &value.to_string()), origin, reason));
        }
    }
}

fn unknown(key: &str, origin: &Origin) -> ConfigError {
    let nearest = TABLE.iter().max_by(|a, b| similarity(key, a.key).total_cmp(&similarity(key, b.key)));
    let hint = nearest.filter(|setting| similarity(key, setting.key) > 0.7);
    let reason = match hint {
        Some(setting) => format!("is no setting; did you mean {}?", setting.key),
        None => "is no setting; `grail-supervisor config explain` lists them all".into(),
    };
    ConfigError { key: key.into(), value: None, origin: Some(origin.clone()), reason }
}

/// Names that share the last part count as near, because a wrong section is the commonest mistake.
fn similarity(a: &str, b: &str) -> f64 {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    strsim::jaro_winkler(a, b).max(strsim::jaro_winkler(&last(a), &last(b)) * 0.95)
}

fn insert_variables(
    values: &mut Values,
    variables: &BTreeMap<String, String>,
    origin: impl Fn(&'static str) -> Origin,
    errors: &mut Vec<ConfigError>,
) {
    for setting in TABLE {
        // An empty variable means "not set", as the guide has it.
        let set = setting.variables.iter().find_map(|name| {
            let text = variables.get(*name)?.trim();
            (!text.is_empty()).then_some((*name, text))
        });
        let Some((name, text)) = set else { continue };
        let origin = origin(name);
        match from_text(setting, text) {
            Ok(value) => {
                values.insert(setting.key, Sourced { value, origin });
            }
            Err(reason) => errors.push(ConfigError::value(setting.key, shown(setting.key, text), &origin, reason)),
        }
    }
}

/// What a `.env` sets, as the reference reads it; a statement that cannot be read is a mistake where its word is a variable of ours,
/// else it goes to `unused`.
fn dot_env_variables(
    path: &Path,
    environment: &BTreeMap<String, String>,
    unused: &mut Unused,
    errors: &mut Vec<ConfigError>,
) -> BTreeMap<String, String> {
    let mut fail =
        |reason: String| errors.push(ConfigError { key: path.display().to_string(), value: None, origin: None, reason });
    let mut text = String::new();
    let most = dotenv::MOST_BYTES as u64 + 1;
    match File::open(path).and_then(|file| file.take(most).read_to_string(&mut text)) {
        // It could be handed to no child.
        Ok(_) if text.contains('\0') => {
            fail("holds a NUL byte, and is no text; name the right file with --env-file".into());
            return BTreeMap::new();
        }
        Ok(length) if length <= dotenv::MOST_BYTES => {}
        Ok(_) => {
            fail(format!("is longer than {} bytes; name the right file with --env-file", dotenv::MOST_BYTES));
            return BTreeMap::new();
        }
        Err(error) => {
            fail(format!("cannot be read: {error}; name a readable file with --env-file, or take this one away"));
            return BTreeMap::new();
        }
    }
    let found = dotenv::parse(&text, environment);
    // The line itself is not repeated, it may hold a secret.
    for Unread { line, word } in found.unread {
        if TABLE.iter().any(|setting| setting.variables.contains(&word.as_str())) {
            fail(format!("has a line {line} that is not {word}=value (quotes that do not end, or words after them?)"));
        } else {
            unused.insert(format!("{} line {line}", path.display()), Some(foreign::UNREAD));
        }
    }
    found.values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn from_text(setting: &Setting, text: &str) -> Result<Value, String> {
    let whole = |text: &str| text.trim().parse::<u32>().map(|number| Value::Integer(number.into())).ok();
    let value = match setting.form {
        Form::Text | Form::Path | Form::Secret | Form::Addresses | Form::Words => Some(Value::String(text.into())),
        Form::Whole => whole(text),
        Form::WholeOrAuto if text.trim() == "auto" => Some(Value::String("auto".into())),
        Form::WholeOrAuto => whole(text),
        Form::Flag => match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" => Some(Value::Boolean(true)),
            "0" | "false" | "no" => Some(Value::Boolean(false)),
            _ => None,
        },
        Form::NumberOrAuto if text.trim() == "auto" => Some(Value::String("auto".into())),
        Form::Number | Form::NumberOrAuto => text.parse::<f64>().ok().filter(|number| number.is_finite()).map(Value::Float),
        Form::WholeList => {
            let text = text.trim_matches(|bracket| "[]".contains(bracket));
            text.split(',').filter(|item| !item.trim().is_empty()).map(whole).collect::<Option<Vec<_>>>().map(Value::Array)
        }
    };
    value.ok_or_else(|| format!("is not {}", wanted(setting.form)))
}

fn with_form(form: Form, value: Value) -> Result<Value, (Value, &'static str)> {
    let is_whole = |value: &Value| value.as_integer().is_some_and(|number| u32::try_from(number).is_ok());
    match (form, value) {
        (Form::Text | Form::Path | Form::Secret | Form::Addresses | Form::Words, value @ Value::String(_)) => Ok(value),
        (Form::Addresses, Value::Array(items)) if items.iter().all(Value::is_str) => {
            Ok(Value::String(items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")))
        }
        (Form::Whole | Form::WholeOrAuto, value) if is_whole(&value) => Ok(value),
        (Form::WholeOrAuto | Form::NumberOrAuto, value) if value.as_str() == Some("auto") => Ok(value),
        (Form::Flag, value @ Value::Boolean(_)) => Ok(value),
        (Form::Number | Form::NumberOrAuto, Value::Integer(number)) => Ok(Value::Float(number as f64)),
        (Form::Number | Form::NumberOrAuto, Value::Float(number)) if number.is_finite() => Ok(Value::Float(number)),
        (Form::WholeList, Value::Array(items)) if items.iter().all(is_whole) => Ok(Value::Array(items)),
        (form, value) => Err((value, wanted(form))),
    }
}

fn wanted(form: Form) -> &'static str {
    match form {
        Form::Text | Form::Secret | Form::Words => "text",
        Form::Path => "a path (text)",
        Form::WholeOrAuto => "a whole number or auto",
        Form::Whole => "a whole number of 0 or more",
        Form::Flag => "true or false",
        Form::Number => "a number",
        Form::NumberOrAuto => "a number or auto",
        Form::Addresses => "a list of addresses in quotes, or one text with commas between them",
        Form::WholeList => "a list of whole numbers such as [1, 2]",
    }
}

/// The text of a value as it may be shown, plain or as TOML writes it: never a secret, nor what is secret in it.
pub fn shown(key: &str, text: &str) -> String {
    match find(key).map(|setting| setting.form) {
        Some(Form::Secret) => HIDDEN.into(),
        Some(Form::Addresses) => shown_addresses(text),
        Some(Form::Words) => match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
            Some(text) => format!("\"{}\"", Words::new(text.split_whitespace())),
            // A list of words, which is refused: where one ends is not for this place to find out.
            None if text.starts_with('[') => HIDDEN.to_owned(),
            None => Words::new(text.split_whitespace()).to_string(),
        },
        _ => text.into(),
    }
}

/// What of a value must not be shown.
pub fn secrets(form: Form, text: &str) -> Vec<String> {
    match form {
        Form::Secret => Some(text.trim().to_owned()).filter(|text| !text.is_empty()).into_iter().collect(),
        Form::Addresses => text.split(',').flat_map(|one| Address::from(one.trim()).secrets()).collect(),
        Form::Words => Words::new(text.split_whitespace()).secrets(),
        _ => Vec::new(),
    }
}
