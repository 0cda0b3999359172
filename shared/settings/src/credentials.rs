//! What lets somebody into a generation server, and how it gets there: everybody on the host can read a command line.

use std::ffi::OsString;

use grail_engines::unconcealed;
use grail_secrets::Secret;

use super::Generation;

impl Generation {
    /// What lets somebody into the servers that are started here.
    pub fn credentials(&self) -> Vec<(String, Secret)> {
        let started = self.backend != "embedded" && self.servers.is_empty();
        if started { self.extra.without_credentials().0 } else { Vec::new() }
    }

    /// The same for the launcher, as a variable: everybody on the host can read a command line.
    pub fn launcher_variable(&self) -> Option<(OsString, OsString)> {
        let lines: Vec<String> =
            self.credentials().iter().flat_map(|(flag, value)| [flag.clone(), value.reveal().to_owned()]).collect();
        (!lines.is_empty()).then(|| ("GRAIL_SERVER_SECRETS".into(), lines.join("\n").into()))
    }

    /// What everybody on the host reads in the list of processes, because the server has no other way for it.
    pub fn exposed(&self) -> Option<String> {
        let flags = unconcealed(self.engine(), &self.credentials());
        (!flags.is_empty()).then(|| {
            format!(
                "generation.extra_arguments: everybody on this host can read the values of {} in the list of processes; {} takes them \
                 in no other way",
                flags.join(", "),
                self.engine().name()
            )
        })
    }
}
