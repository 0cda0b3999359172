//! What a start needs of the host before anything is started: GPUs, paths that sockets fit into, a folder for temporary files, a way
//! out. `run`, `check`, `plan` and `doctor` ask here, and tell it in the same words.

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use grail_engines::Engine;
use grail_link::MAX_SOCKET_PATH;
use grail_process::environment;
use grail_settings::{Address, Chain, ConfigError, ConfigErrors, Settings, Storage, r2_address};
use grail_supervision::exit::Failure;
use grail_supervision::state::too_long_for_sockets;
use hyper_util::client::proxy::matcher::Matcher;
use tempfile::TempDir;

use crate::plan::{self, Plan};

/// The variable that says where temporary files belong, and where they lie without it.
const TEMPORARY: &str = "TMPDIR";
const USUAL_TEMPORARY: &str = "/tmp";
/// Bytes that are written to see whether a folder takes anything.
const PROBE_BYTES: usize = 1 << 20;
/// What the servers put behind `TMPDIR` for sockets of their own: vLLM a slash and a UUID, SGLang `/tmp` and eight letters.
const VLLM_SOCKET: usize = 37;
const SGLANG_SOCKET: usize = 12;

/// What was found of the host.
#[derive(Debug)]
pub struct Preflight {
    /// Which process gets which GPU.
    pub layout: Result<Plan, ConfigErrors>,
    /// Why children could not be talked to.
    pub sockets: Option<ConfigError>,
    /// Why the generation server that is started here could not talk to itself.
    pub server_sockets: Option<ConfigError>,
    /// Why temporary files find no place.
    pub temporary: Option<String>,
    /// Which proxy is named for which addresses, and not used.
    pub proxy: Option<String>,
}

impl Preflight {
    /// Looks at the host for these settings. A temporary file is made, and gone.
    pub fn of_host(settings: &Settings) -> Self {
        let temporary = settings.temporary.as_deref().unwrap_or(Path::new(USUAL_TEMPORARY));
        Self {
            layout: plan::of_host(settings),
            sockets: too_long_for_sockets(&settings.state).map(|why| ConfigError {
                key: "state.folder".into(),
                value: Some(format!("{:?}", settings.state)),
                origin: None,
                reason: format!("{why}; choose a shorter folder"),
            }),
            server_sockets: server_sockets(settings, temporary),
            temporary: unusable(temporary),
            proxy: unused_proxy(settings),
        }
    }

    /// What hinders no start, in whole sentences.
    pub fn warnings(&self, settings: &Settings) -> Vec<String> {
        let of_settings = settings.remarks.iter().cloned().chain(settings.generation.exposed());
        of_settings.chain(self.temporary.clone()).chain(self.proxy.clone()).collect()
    }

    /// The layout, where nothing hinders a start.
    ///
    /// # Errors
    /// Every mistake at once.
    pub fn plan(self) -> Result<Plan, ConfigErrors> {
        let (plan, mut errors) = match self.layout {
            Ok(plan) => (Some(plan), Vec::new()),
            Err(errors) => (None, errors.0),
        };
        errors.extend(self.sockets.into_iter().chain(self.server_sockets));
        match plan {
            Some(plan) if errors.is_empty() => Ok(plan),
            _ => Err(ConfigErrors(errors)),
        }
    }
}

/// Servers bind sockets in `TMPDIR` and die of a path that is too long.
fn server_sockets(settings: &Settings, temporary: &Path) -> Option<ConfigError> {
    let generation = &settings.generation;
    if generation.backend == "embedded" || !generation.servers.is_empty() {
        return None;
    }
    let behind = if generation.engine() == Engine::Vllm { VLLM_SOCKET } else { SGLANG_SOCKET };
    let length = std::path::absolute(temporary).map_or(0, |path| path.as_os_str().len()) + behind;
    (length > MAX_SOCKET_PATH).then(|| ConfigError {
        key: TEMPORARY.into(),
        value: Some(format!("{temporary:?}")),
        origin: None,
        reason: format!(
            "is too long: sockets that {} makes there would have {length} bytes and the operating system allows {MAX_SOCKET_PATH}; name \
             a shorter folder, or unset it for {USUAL_TEMPORARY}",
            generation.engine().name()
        ),
    })
}

/// Why a folder takes no temporary files, in a whole sentence.
fn unusable(folder: &Path) -> Option<String> {
    let error = tempfile::tempfile_in(folder).and_then(|mut file| file.write_all(&vec![0; PROBE_BYTES])).err()?;
    Some(no_place(folder, &error))
}

fn no_place(folder: &Path, error: &io::Error) -> String {
    let why = match error.kind() {
        ErrorKind::NotFound => "does not exist".to_owned(),
        ErrorKind::NotADirectory => "is no folder".to_owned(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "is full".to_owned(),
        ErrorKind::ReadOnlyFilesystem => "is read-only".to_owned(),
        ErrorKind::PermissionDenied => "may not be written to by this user".to_owned(),
        _ => format!("takes no file ({error})"),
    };
    format!(
        "{TEMPORARY} = {folder:?} {why}: temporary files of generation servers, `doctor` and `validate` find no place there. Put that \
         right, or set {TEMPORARY} to a folder that can be written to."
    )
}

/// A folder of our own for sockets and temporary files, which is removed with what is in it.
///
/// # Errors
/// Where none can be made in `TMPDIR`, or its sockets could not be bound.
pub fn own_folder(prefix: &str) -> Result<TempDir, Failure> {
    let temporary = environment::variable(TEMPORARY).filter(|folder| !folder.is_empty());
    let temporary = PathBuf::from(temporary.as_deref().unwrap_or(USUAL_TEMPORARY));
    let refuse = |why: String| Failure::Unavailable(format!("{TEMPORARY} = {temporary:?} {why}; name another folder"));
    let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(&temporary);
    let folder = folder.map_err(|error| unusable(&temporary).map_or_else(|| refuse(error.to_string()), Failure::Unavailable))?;
    match too_long_for_sockets(folder.path()) {
        None => Ok(folder),
        Some(why) => Err(refuse(why)),
    }
}

/// A proxy that somebody has named for what is asked here. No connection of these programs goes through one.
fn unused_proxy(settings: &Settings) -> Option<String> {
    let named = |names: [&str; 2]| names.iter().find_map(|name| settings.proxies.get(*name)).map_or("", Address::reveal);
    let matcher = Matcher::builder()
        .http(named(["http_proxy", "HTTP_PROXY"]))
        .https(named(["https_proxy", "HTTPS_PROXY"]))
        .all(named(["all_proxy", "ALL_PROXY"]))
        .no(named(["no_proxy", "NO_PROXY"]))
        .build();
    let meant = |address: &Address| {
        // As everybody else takes it, a WebSocket is an HTTP connection.
        let address = address.reveal().replacen("ws", "http", usize::from(address.reveal().starts_with("ws")));
        address.parse().is_ok_and(|address| matcher.intercept(&address).is_some())
    };
    let asked: Vec<String> = outside(settings).iter().filter(|address| meant(address)).map(ToString::to_string).collect();
    let names: Vec<&str> = settings.proxies.keys().copied().filter(|name| !name.eq_ignore_ascii_case("no_proxy")).collect();
    (!asked.is_empty()).then(|| {
        format!(
            "{} set, and no proxy is used here: {} must be reached directly. Let the firewall pass them; add them to NO_PROXY to \
             have this said no more.",
            match names.as_slice() {
                [name] => format!("{name} is"),
                names => format!("{} are", names.join(", ")),
            },
            asked.join(", ")
        )
    })
}

/// What is asked over the network, as far as the settings tell.
fn outside(settings: &Settings) -> Vec<Address> {
    let mut addresses = Vec::new();
    if let Chain::Network { endpoints, .. } = &settings.chain {
        addresses.extend(endpoints.iter().cloned());
    }
    if let Storage::Remote { endpoint, account_id, .. } = &settings.storage {
        addresses.push(endpoint.clone().unwrap_or_else(|| r2_address(account_id)).into());
    }
    addresses.extend(settings.beacon.iter().chain(&settings.generation.servers).cloned());
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str, variables: &[(&str, &str)]) -> Settings {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("host.toml");
        let usual = "[wallet]\ndevelopment = '//Alice'\n[storage]\nlocal_folder = 'b'\n[proof]\ndevice = 'cpu'\n";
        std::fs::write(&file, format!("{usual}{text}")).unwrap();
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let sources = grail_settings::Sources { file: Some(file), environment, ..Default::default() };
        grail_settings::load(&sources).unwrap().settings
    }

    const LOCAL: &str = "[chain]\nnetwork = 'local'\n";

    #[test]
    fn a_proxy_is_told_where_it_is_meant_for_what_is_asked() {
        let relays = format!("{LOCAL}[beacon]\nrelays = ['https://a.example', 'http://b.example']\n");
        let told = |text: &str, variables: &[(&str, &str)]| unused_proxy(&settings(text, variables)).unwrap_or_default();
        let proxy = "http://user:hushhush@proxy.example:3128";
        assert_eq!(told(LOCAL, &[("HTTPS_PROXY", proxy)]), "", "nothing is asked outside");
        assert_eq!(told(&relays, &[("NO_PROXY", "*")]), "");
        let one = told(&relays, &[("HTTPS_PROXY", proxy)]);
        assert!(one.starts_with("HTTPS_PROXY is set") && one.contains("https://a.example"), "{one}");
        assert!(!one.contains("b.example") && !one.contains("hushhush"), "{one}");
        assert!(told(&relays, &[("http_proxy", "proxy.example:3128")]).contains("http://b.example must"));
        assert!(told(&relays, &[("ALL_PROXY", proxy)]).contains("https://a.example, http://b.example must"));
        assert_eq!(told(&relays, &[("https_proxy", proxy), ("no_proxy", ".example")]), "");
    }

    #[test]
    fn a_websocket_counts_as_the_http_connection_that_it_begins_as() {
        let mut network = settings(LOCAL, &[("HTTPS_PROXY", "http://proxy.example:3128")]);
        let endpoints = vec!["wss://node.example:443".into(), "ws://near.example".into()];
        network.chain = Chain::Network { name: "custom".into(), endpoints, genesis: None, block_seconds: 12.0 };
        let told = unused_proxy(&network).unwrap_or_default();
        assert!(told.contains("wss://node.example") && !told.contains("near.example"), "{told}");
    }

    #[test]
    fn a_folder_for_temporary_files_is_there_or_told() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(unusable(folder.path()), None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
        std::fs::write(folder.path().join("file"), "").unwrap();
        for (path, word) in [("none", "does not exist"), ("file", "is no folder")] {
            let told = unusable(&folder.path().join(path)).unwrap_or_default();
            assert!(told.contains(word) && told.contains("TMPDIR"), "{told}");
        }
        for (kind, word) in [(ErrorKind::StorageFull, "is full:"), (ErrorKind::ReadOnlyFilesystem, "is read-only:")] {
            let told = no_place(Path::new("/scratch"), &kind.into());
            assert!(told.starts_with(&format!("TMPDIR = \"/scratch\" {word}")), "{told}");
        }
    }

    #[test]
    fn only_a_server_that_is_started_here_needs_a_short_folder() {
        let sockets = |backend: &str, length: usize, more: &str| {
            let text = format!("{LOCAL}[generation]\nbackend = '{backend}'\ndevice = 'cpu'\n{more}");
            let settings = settings(&text, &[]);
            server_sockets(&settings, &Path::new("/").join("x".repeat(length - 1))).map(|error| error.to_string())
        };
        assert_eq!((sockets("sglang", 95, ""), sockets("vllm", 70, "")), (None, None));
        assert!(sockets("sglang", 96, "").is_some_and(|told| told.contains("108 bytes") && told.contains("107")));
        assert!(sockets("vllm", 71, "").is_some_and(|told| told.starts_with("TMPDIR = \"/xxx") && told.contains("vLLM")));
        assert_eq!(sockets("vllm", 90, "servers = 'http://10.0.0.1:8000'\n"), None);
        assert_eq!(sockets("embedded", 200, ""), None);
    }
}
