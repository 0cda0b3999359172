//! What a start judges before anything else: the settings, and what it needs of the host. In the words of `run`.

use grail_settings::{ConfigError, ConfigErrors, Loaded};
use grail_workers::preflight::Preflight;

use super::row::Row;

/// Sections whose mistakes have rows of their own.
pub(super) const WALLET: &str = "wallet";
pub(super) const BUCKET: &str = "storage";

/// The mistakes in the settings of a section, in lines.
pub(super) fn mistakes(all: &ConfigErrors, section: &str) -> Option<String> {
    lines(all.of(&[section]))
}

fn lines<'a>(mistakes: impl Iterator<Item = &'a ConfigError>) -> Option<String> {
    let told: Vec<String> = mistakes.map(ToString::to_string).collect();
    (!told.is_empty()).then(|| told.join("\n"))
}

/// Every mistake that no other row tells, and what is set and changes nothing.
pub(super) fn settings_row(loaded: &Loaded) -> Row {
    let elsewhere: Vec<&ConfigError> = loaded.mistakes.of(&[WALLET, BUCKET]).collect();
    let mistakes = lines(loaded.mistakes.0.iter().filter(|error| !elsewhere.contains(error)));
    let told: Vec<&str> = mistakes.iter().chain(&loaded.settings.remarks).map(String::as_str).collect();
    let told = told.join("\n");
    match mistakes {
        Some(_) => Row::failed("settings", told, "what depends on them is not looked at; every other row is"),
        None if told.is_empty() => Row::ok("settings", "every value is one that can be"),
        None => Row::warned_as_told("settings", told),
    }
}

pub(super) fn temporary_row(preflight: &Preflight) -> Row {
    match (&preflight.server_sockets, &preflight.temporary) {
        (Some(error), _) => Row::failed_as_told("temporary files", error),
        (None, Some(warning)) => Row::warned_as_told("temporary files", warning),
        (None, None) => Row::ok("temporary files", "there is room for them"),
    }
}

pub(super) fn proxy_row(preflight: &Preflight) -> Row {
    match &preflight.proxy {
        Some(warning) => Row::warned_as_told("proxy", warning),
        None => Row::ok("proxy", "none is named for what is asked here"),
    }
}
