//! `config explain`: every setting, its value, and who set it.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::source::shown;
use super::table::TABLE;
use super::{Loaded, Origin};

/// Prefixes of variables that belong to this software family.
const FAMILIES: [&str; 3] = ["GRAIL_", "R2_", "BT_"];

/// A table for the terminal; secrets are hidden. Ends with variables of the family that this program does not use.
pub fn explain(loaded: &Loaded, environment: &BTreeMap<String, String>) -> String {
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
    let known = |name: &str| TABLE.iter().any(|setting| setting.variables.contains(&name));
    let unused: Vec<&str> = environment
        .keys()
        .map(String::as_str)
        .filter(|name| FAMILIES.iter().any(|family| name.starts_with(family)) && !known(name))
        .collect();
    if !unused.is_empty() {
        let _ = writeln!(text, "\nIn the environment, but not used by this program: {}", unused.join(", "));
    }
    text
}
