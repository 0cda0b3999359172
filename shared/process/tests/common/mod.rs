//! What the tests of child processes share.

use grail_process::Launch;

/// A shell that runs a script.
pub fn shell(script: &str) -> Launch {
    Launch {
        name: "test child".into(),
        program: "/bin/sh".into(),
        arguments: vec!["-c".into(), script.into()],
        environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
    }
}
