//! The two thinking modes: their tags, system prompts and template arguments (grail-environments 4).

/// How the model is told to think. The checkpoint's metadata selects it; it is passed along as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ThinkingMode {
    /// The trainer installs the protocol's own chat template; reasoning stands in `<start_working_out>` tags.
    Instructed,
    /// The model's own template, with `enable_thinking = true`; reasoning stands in `<think>` tags.
    Native,
}

/// The literal tags of one thinking mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tags {
    /// Opens the reasoning. Never required in a completion.
    pub thinking_open: &'static str,
    /// Closes the reasoning. In instructed mode its name differs from the opening tag's.
    pub thinking_close: &'static str,
    /// Opens the answer.
    pub solution_open: &'static str,
    /// Closes the answer.
    pub solution_close: &'static str,
}

/// Unknown thinking mode `{0}`: the protocol knows `instructed` and `native`. Skip this checkpoint's windows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Unknown thinking mode `{0}`: the protocol knows `instructed` and `native`. Skip this checkpoint's windows.")]
pub struct UnknownThinkingMode(pub String);

impl ThinkingMode {
    /// Both modes.
    pub const ALL: [Self; 2] = [Self::Instructed, Self::Native];

    /// The name used in checkpoint metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Instructed => "instructed",
            Self::Native => "native",
        }
    }

    /// The tags that completions of this mode are read with.
    pub fn tags(self) -> Tags {
        let (thinking_open, thinking_close) = match self {
            Self::Instructed => ("<start_working_out>", "</end_working_out>"),
            Self::Native => ("<think>", "</think>"),
        };
        Tags { thinking_open, thinking_close, solution_open: "<SOLUTION>", solution_close: "</SOLUTION>" }
    }

    /// The system prompt that is put before the task's message. Its bytes are normative, without a final line feed.
    pub fn system_prompt(self) -> &'static str {
        match self {
            Self::Instructed => include_str!("../data/system_prompt.instructed.txt"),
            Self::Native => include_str!("../data/system_prompt.native.txt"),
        }
    }

    /// The chat template that the trainer installs in instructed checkpoints; `None` where the model's own is used.
    ///
    /// Prompts are always rendered with the checkpoint's stored template; this one is for making checkpoints.
    pub fn installed_template(self) -> Option<&'static str> {
        match self {
            Self::Instructed => Some(include_str!("../data/chat_template.instructed.jinja")),
            Self::Native => None,
        }
    }

    /// Whether `enable_thinking = true` is passed to the chat template.
    pub fn enables_thinking(self) -> bool {
        self == Self::Native
    }
}

impl std::str::FromStr for ThinkingMode {
    type Err = UnknownThinkingMode;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == name).ok_or_else(|| UnknownThinkingMode(name.to_owned()))
    }
}

impl std::fmt::Display for ThinkingMode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn sha256(text: &str) -> String {
        Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn data_files_are_the_protocols_bytes() {
        let instructed = "6533a08686b85388a6326e0fd2ed9f336aab666fc46e09410c1063774bd53c60";
        let native = "f0ed105a7c5664b2cd10aa97d2f66f587076999b65c14c12e630bc9635615145";
        let template = "17762d2e5131cb2a950db7dd5700c50095547773d3302b52baebe9ae32257a55";
        assert_eq!(sha256(ThinkingMode::Instructed.system_prompt()), instructed);
        assert_eq!(sha256(ThinkingMode::Native.system_prompt()), native);
        assert_eq!(ThinkingMode::Instructed.installed_template().map(sha256).as_deref(), Some(template));
        assert_eq!(ThinkingMode::Native.installed_template(), None);
    }

    #[test]
    fn modes_are_read_by_their_exact_names() {
        assert_eq!("native".parse(), Ok(ThinkingMode::Native));
        assert_eq!("Native".parse::<ThinkingMode>(), Err(UnknownThinkingMode("Native".into())));
    }
}
