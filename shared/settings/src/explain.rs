//! `config explain`: every setting, its value, and who set it.

use std::fmt::Write;

use grail_process::environment::can_be_laid_over;

use super::source::shown;
use super::table::TABLE;
use super::{Loaded, Origin};

/// A table for the terminal; secrets are hidden. Ends with variables of the family that this program does not use.
pub fn explain(loaded: &Loaded) -> String {
    let mut text = String::new();
    for setting in TABLE {
        let (value, origin) = match loaded.values.get(setting.key) {
            Some(sourced) => (shown(setting.key, &sourced.value.to_string()), sourced.origin.to_string()),
            None => ("(not set)".into(), Origin::Default.to_string()),
        };
        let variables = if setting.variables.is_empty() { String::new() } else { format!(" [{}]", setting.variables.join(", ")) };
        let _ = writeln!(text, "{:<34} {value:<34} {origin}", setting.key);
        let _ = writeln!(text, "    {}{variables}", setting.meaning);
    }
    if !loaded.unused.is_empty() {
        let _ = writeln!(text, "\nSet, but not used by this program:");
    }
    for (name, reason) in loaded.unused() {
        let _ = writeln!(text, "{name:<34} {}", reason.unwrap_or("no setting is made of it; is it spelt right?"));
    }
    let counting: Vec<&str> = loaded.dot_env().keys().map(String::as_str).filter(|name| can_be_laid_over(name)).collect();
    if !counting.is_empty() {
        let _ = writeln!(text, "\nOf .env, as if it were exported, for children and the log: {}", counting.join(", "));
    }
    text
}
