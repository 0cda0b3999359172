//! What was found, row by row, and how it is told.

use std::borrow::Cow;
use std::fmt::Write;

use serde::Serialize;

/// How it is with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It can be mined with, not as well as it could.
    Warning,
    /// Nothing can be mined.
    Failed,
    /// It could not be looked at; why is in the row.
    NotAsked,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "FAILED",
            Self::NotAsked => "not asked",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What.
    pub what: Cow<'static, str>,
    /// How it is.
    pub verdict: Verdict,
    /// What was found, or why it was not asked.
    pub found: String,
    /// What to do, where something is to be done and the finding does not say it itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Row {
    pub(super) fn ok(what: impl Into<Cow<'static, str>>, found: impl Into<String>) -> Self {
        Self { what: what.into(), verdict: Verdict::Ok, found: found.into(), remedy: None }
    }

    pub(super) fn warning(what: impl Into<Cow<'static, str>>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), verdict: Verdict::Warning, found: found.into(), remedy: Some(remedy.into()) }
    }

    pub(super) fn failed(what: impl Into<Cow<'static, str>>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), verdict: Verdict::Failed, found: found.into(), remedy: Some(remedy.into()) }
    }

    /// For an error whose message ends with what to do.
    pub(super) fn failed_as_told(what: impl Into<Cow<'static, str>>, error: &impl ToString) -> Self {
        Self { what: what.into(), verdict: Verdict::Failed, found: error.to_string(), remedy: None }
    }

    /// For a warning that says itself what to do.
    pub(super) fn warned_as_told(what: impl Into<Cow<'static, str>>, found: impl Into<String>) -> Self {
        Self { what: what.into(), verdict: Verdict::Warning, found: found.into(), remedy: None }
    }

    pub(super) fn not_asked(what: impl Into<Cow<'static, str>>, why: impl Into<String>) -> Self {
        Self { what: what.into(), verdict: Verdict::NotAsked, found: why.into(), remedy: None }
    }
}

/// A table for the terminal, and how many rows have which verdict.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let width = rows.iter().map(|row| row.what.len()).max().unwrap_or(0);
    let indent = width + 12;
    for row in rows {
        let _ = write!(text, "{:<9} {:<width$}  ", row.verdict.word(), row.what);
        let mut lines = row.found.lines();
        let _ = writeln!(text, "{}", lines.next().unwrap_or_default());
        for line in lines {
            let _ = writeln!(text, "{:indent$}{}", "", line.trim_start());
        }
        if let Some(remedy) = &row.remedy {
            let _ = writeln!(text, "{:indent$}→ {remedy}", "");
        }
    }
    let count = |verdict| rows.iter().filter(|row| row.verdict == verdict).count();
    let _ = writeln!(
        text,
        "\n{} ok, {} warnings, {} failed, {} not asked.",
        count(Verdict::Ok),
        count(Verdict::Warning),
        count(Verdict::Failed),
        count(Verdict::NotAsked)
    );
    text
}

/// One JSON object: `rows`, each with `what`, `verdict`, `found` and, where there is one, `remedy`; and `failed`, how many did.
pub fn json(rows: &[Row]) -> String {
    let failed = rows.iter().filter(|row| row.verdict == Verdict::Failed).count();
    format!("{:#}\n", serde_json::json!({"failed": failed, "rows": rows}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_stays_readable_and_json_carries_the_same() {
        let rows = [Row::ok("a", "fine"), Row::failed("long name", "first\n  second", "mend it"), Row::not_asked("b", "because")];
        let text = table(&rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ok        a          fine");
        assert_eq!(lines[2], "                     second");
        assert_eq!(lines[3], "                     → mend it");
        assert!(text.ends_with("1 ok, 0 warnings, 1 failed, 1 not asked.\n"), "{text}");
        let parsed: serde_json::Value = serde_json::from_str(&json(&rows)).unwrap();
        assert_eq!((parsed["failed"].as_u64(), parsed["rows"][2]["verdict"].as_str()), (Some(1), Some("not_asked")));
        assert!(parsed["rows"][0].get("remedy").is_none());
    }
}
