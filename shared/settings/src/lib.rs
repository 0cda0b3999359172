//! Settings: read once, judged whole, before anything is started. All mistakes are reported at once.

mod credentials;
pub mod dotenv;
mod endpoint;
mod explain;
mod foreign;
mod home;
mod joining;
mod sections;
mod source;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use grail_supervision::exit::Failure;

pub use endpoint::{is_r2_account_id, network_of, r2_address};
pub use explain::explain;
pub use grail_secrets::{Address, Secret, Words};
pub use sections::*;
pub use source::{Origin, Sources};
pub use table::{Form, Setting, TABLE};

use source::{Collected, Sourced, Values, collect, shown};

/// Requests in flight where only the groups in flight bound them: 512 groups, the most that "auto" tries.
const MOST_CONCURRENT: u32 = 8192;
/// Requests that a server works on at once where nothing else is set: more than fit into the cache of most hosts. The server itself
/// makes the others wait, and says so.
const MOST_RUNNING: u32 = 1024;
/// The same of the embedded engine, whose cores gain nothing from more.
const EMBEDDED_RUNNING: u32 = 48;

/// What S3 takes as a part of an upload that is not its last one.
const LEAST_PART_KIB: u32 = 5 * 1024;
/// Seconds that a server may take until it answers, on the CPU …
const SERVER_START: f64 = 300.0;
/// … and on GPUs: kernels that nobody has compiled yet, NCCL, graphs to capture.
const COLD_SERVER_START: f64 = 900.0;

/// One mistake in the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The setting's key, or the file's path.
    pub key: String,
    /// The value, unless it is a secret.
    pub value: Option<String>,
    /// Who set it.
    pub origin: Option<Origin>,
    /// What is wrong and what to do.
    pub reason: String,
}

impl ConfigError {
    fn value(key: &str, value: String, origin: &Origin, reason: String) -> Self {
        Self { key: key.into(), value: Some(value), origin: Some(origin.clone()), reason }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.key)?;
        if let Some(value) = &self.value {
            write!(formatter, " = {value}")?;
        }
        if let Some(origin) = &self.origin {
            write!(formatter, " ({origin})")?;
        }
        write!(formatter, " {}", self.reason)
    }
}

/// Every mistake of one configuration.
#[derive(Debug, Default, thiserror::Error)]
#[error("{} mistake(s) in the configuration; nothing was started:{}", .0.len(), .0.iter().map(|error| format!("\n  {error}")).collect::<String>())]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl ConfigErrors {
    /// Those in settings of these sections.
    pub fn of<'a>(&'a self, sections: &'a [&str]) -> impl Iterator<Item = &'a ConfigError> {
        let section = |error: &&ConfigError| error.key.split_once('.').is_some_and(|(section, _)| sections.contains(&section));
        self.0.iter().filter(section)
    }

    /// Whether there are any.
    pub fn concern(&self, sections: &[&str]) -> bool {
        self.of(sections).next().is_some()
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        Self::Configuration(errors.to_string())
    }
}

/// The settings together with where each value came from.
pub struct Loaded {
    /// The settings; what is wrong in them has some value, which is good for looking only.
    pub settings: Settings,
    /// What is wrong.
    pub mistakes: ConfigErrors,
    /// The configuration file cannot be read at all: next to nothing is known.
    pub without_file: bool,
    values: Values,
    /// Variables of the environment and of `.env` that are of this software family and no setting's.
    unused: Unused,
    /// What `.env` says.
    dot_env: BTreeMap<String, String>,
    /// Secrets in what could not be read as settings.
    unread_secrets: Vec<String>,
}

impl fmt::Debug for Loaded {
    /// Without what was read, which may be secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Loaded");
        shown.field("settings", &self.settings).field("mistakes", &self.mistakes).finish_non_exhaustive()
    }
}

impl Loaded {
    /// Variables that are set and change nothing, each with the reason where it is a known one.
    pub fn unused(&self) -> impl Iterator<Item = (&str, Option<&'static str>)> {
        self.unused.iter().map(|(name, reason)| (name.as_str(), *reason))
    }

    /// Every variable of `.env`.
    pub fn dot_env(&self) -> &BTreeMap<String, String> {
        &self.dot_env
    }

    /// Everything secret that is set, also within addresses and command lines, for keeping it out of what leaves this process.
    pub fn secrets(&self) -> Vec<String> {
        let values = TABLE.iter().filter_map(|setting| Some((setting.form, self.values.get(setting.key)?.value.as_str()?)));
        let of_proxies = self.settings.proxies.values().filter(|proxy| proxy.reveal().contains('@')).flat_map(Address::secrets);
        let of_values = values.flat_map(|(form, text)| source::secrets(form, text));
        of_values.chain(of_proxies).chain(self.unread_secrets.iter().cloned()).collect()
    }

    /// The same, where nothing is wrong.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn judged(self) -> Result<Self, ConfigErrors> {
        if self.mistakes.0.is_empty() { Ok(self) } else { Err(self.mistakes) }
    }
}

/// What is set and changes nothing, with the reason where it is a known one.
type Unused = BTreeMap<String, Option<&'static str>>;

/// Reads and judges the settings.
///
/// # Errors
/// All mistakes at once.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    read(sources).judged()
}

/// Reads the settings, whatever is wrong with them: a person may always look at a host, and at a running miner.
pub fn read(sources: &Sources) -> Loaded {
    let mut errors = Vec::new();
    let Collected { values, unused, dot_env, without_file } = collect(sources, &mut errors);
    let of_form = errors.clone();
    // `.env` wins over the environment.
    let mut variables = sources.environment.clone();
    variables.extend(dot_env.clone());
    let mut reader = Reader::new(&values, sources, &variables, errors);
    let settings = reader.settings();
    let mistakes = ConfigErrors(if without_file.is_some() { of_form } else { reader.errors });
    let unread_secrets = without_file.as_ref().map(|file| file.secrets.clone()).unwrap_or_default();
    Loaded { settings, mistakes, without_file: without_file.is_some(), values, unused, dot_env, unread_secrets }
}

/// The GPUs that this process was given. Set and empty, it is none.
const VISIBLE_GPUS: &str = "CUDA_VISIBLE_DEVICES";
/// Where temporary files belong.
const TEMPORARY: &str = "TMPDIR";
/// What others read of proxies, in either spelling.
const PROXIES: [&str; 8] =
    ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"];

/// Turns values into settings and collects what is wrong with them.
struct Reader<'a> {
    values: &'a Values,
    /// The environment, and `.env` over it.
    variables: &'a BTreeMap<String, String>,
    errors: Vec<ConfigError>,
    remarks: Vec<String>,
    base: PathBuf,
    home: Option<PathBuf>,
}

impl<'a> Reader<'a> {
    fn new(values: &'a Values, sources: &Sources, variables: &'a BTreeMap<String, String>, errors: Vec<ConfigError>) -> Self {
        let base = sources.file.as_deref().and_then(Path::parent).map(Path::to_path_buf).unwrap_or_default();
        let home = home::folder(variables.get("HOME").map(String::as_str));
        Self { values, variables, errors, remarks: Vec::new(), base, home }
    }

    fn settings(&mut self) -> Settings {
        let state = self.path("state.folder").unwrap_or_default();
        let local_chain = self.text("chain.network") == "local";
        let chain = self.chain(local_chain, &state);
        Settings {
            wallet: self.wallet(local_chain),
            patience: self.patience(),
            netuid: u16::try_from(self.whole("chain.netuid", 0, u32::from(u16::MAX))).unwrap_or_default(),
            beacon: self.beacon(local_chain),
            storage: self.storage(local_chain, &chain),
            chain,
            cache: self.path("checkpoints.cache").unwrap_or_default(),
            trainer: self.optional("checkpoints.trainer"),
            dataset: self.path("environment.dataset"),
            generation: self.generation(),
            proof: self.proof(),
            safety_blocks: self.number("schedule.safety_blocks", 0.0, 29.0),
            admission: match self.choice("schedule.gate", &["deadline", "reference"]).as_str() {
                "reference" => Admission::Reference,
                _ => Admission::Deadline,
            },
            confidence: self.number("schedule.confidence", 0.01, 1.0),
            upload_timeout: self.number("upload.timeout_seconds", 1.0, 360.0),
            upload_part_bytes: self.part_bytes(),
            spool_budget: u64::from(self.whole("spool.budget_mib", 1, 1 << 24)) << 20,
            gate: self.gate(),
            shutdown_budget: self.number("shutdown.budget_seconds", 1.0, 600.0),
            shutdown_grace: Some(self.number("shutdown.grace_seconds", 0.0, 3600.0)).filter(|grace| *grace > 0.0),
            visible_gpus: self.variables.get(VISIBLE_GPUS).cloned(),
            temporary: self.set_variable(TEMPORARY).map(PathBuf::from),
            proxies: PROXIES.iter().filter_map(|name| Some((*name, self.set_variable(name)?.into()))).collect(),
            programs: self.path("programs.folder"),
            state,
            remarks: std::mem::take(&mut self.remarks),
        }
    }

    /// A variable of `.env` or the environment; an empty one counts as not set.
    fn set_variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn part_bytes(&mut self) -> usize {
        let key = "upload.part_kib";
        let kib = self.whole(key, 0, 1 << 16);
        if (1..LEAST_PART_KIB).contains(&kib) {
            let reason = format!(
                "is less than S3 and R2 take as a part that is not the last one: the bucket would refuse the upload at its end, and the \
                 whole file would have to follow; set {LEAST_PART_KIB} or more, or 0 to send it whole at the end"
            );
            self.refuse(key, &reason);
        }
        (kib as usize) << 10
    }

    fn wallet(&mut self, local_chain: bool) -> Wallet {
        if let Some(uri) = self.optional("wallet.development") {
            if !local_chain {
                self.refuse("wallet.development", "works with chain.network = \"local\" only: everybody knows this key");
            }
            // Only derivations of the development phrase: a seed or mnemonic has no place in a settings file.
            if !uri.starts_with("//") {
                self.refuse(
                    "wallet.development",
                    "is not a development key such as //Alice; a real key belongs in a wallet file",
                );
            }
            return Wallet::Development(uri);
        }
        let folder = self.path("wallet.path").unwrap_or_default();
        let (cold, hot) = (self.file_name("wallet.cold"), self.file_name("wallet.hot"));
        Wallet::File(folder.join(cold).join("hotkeys").join(hot))
    }

    fn generation(&mut self) -> Generation {
        let backend = self.choice("generation.backend", &["sglang", "vllm", "embedded"]);
        let servers = self.servers(&backend);
        let cpu = self.choice("generation.device", &["cuda", "cpu"]) == "cpu";
        let usual_start = if cpu || backend == "embedded" { SERVER_START } else { COLD_SERVER_START };
        let python = if backend == "vllm" { "generation.vllm_python" } else { "generation.sglang_python" };
        Generation {
            python: self.program(python),
            cpu,
            memory_share: self.number_or_auto("generation.memory_share", 0.05, 1.0),
            max_running: match self.text("generation.max_running").as_str() {
                "auto" if backend == "embedded" => EMBEDDED_RUNNING,
                "auto" => MOST_RUNNING,
                _ => self.whole("generation.max_running", 1, 65_536),
            },
            disable_cuda_graph: self.flag("generation.disable_cuda_graph"),
            link_folder: self.path("generation.link_folder"),
            tokenizer: self.optional("generation.tokenizer"),
            extra: Words::new(self.text("generation.extra_arguments").split_whitespace()),
            backend,
            gpu: self.whole("generation.gpu", 0, 1023),
            tensor_parallel: self.whole("generation.tensor_parallel", 1, 64),
            replicas: self.whole("generation.replicas", 1, 64),
            servers,
            servers_cache: self.optional("generation.servers_cache").map(PathBuf::from),
            max_model_length: self.whole("generation.max_model_length", 64, 1 << 20),
            max_concurrent: match self.text("generation.max_concurrent").as_str() {
                "auto" => MOST_CONCURRENT,
                _ => self.whole("generation.max_concurrent", 1, 65_536),
            },
            groups_in_flight: match self.text("generation.groups_in_flight").as_str() {
                "auto" => GroupsInFlight::Auto,
                _ => GroupsInFlight::Fixed(self.whole("generation.groups_in_flight", 1, 4096)),
            },
            server_timeout: self.number_or_auto("generation.server_timeout_seconds", 1.0, 7200.0).unwrap_or(usual_start),
            threads: self.whole("generation.threads", 1, 1024),
            dtype: self.choice("generation.dtype", &["auto", "f32", "bf16", "f16"]),
        }
    }

    /// Addresses of servers that run elsewhere.
    fn servers(&mut self, backend: &str) -> Vec<Address> {
        let key = "generation.servers";
        let servers = self.addresses(key, &["http://", "https://"]);
        if !servers.is_empty() && backend == "embedded" {
            self.refuse(key, "need generation.backend = \"sglang\" or \"vllm\", which says how they are spoken to");
        }
        if !servers.is_empty() && self.whole("generation.replicas", 1, 64) > 1 {
            self.refuse(
                "generation.replicas",
                "are servers started here, and none is where generation.servers names some; leave one out",
            );
        }
        if self.optional("generation.servers_cache").is_some_and(|path| !path.starts_with('/')) {
            self.refuse("generation.servers_cache", "is no absolute path; it is a folder on the servers' machines");
        }
        servers.iter().map(|url| url.reveal().trim_end_matches('/').into()).collect()
    }

    /// A path, or a bare name that is looked for on the path.
    fn program(&mut self, key: &str) -> PathBuf {
        let text = self.text(key);
        if text.contains('/') { self.path(key).unwrap_or_default() } else { text.into() }
    }

    fn proof(&mut self) -> Proof {
        if !self.flag("proof.subprocess") {
            self.refuse("proof.subprocess", "is not possible: every proof worker is a process of its own; leave the setting out");
        }
        if self.flag("proof.flash_attention") {
            self.refuse(
                "proof.flash_attention",
                "is not possible: the proof workers compute libtorch's own attention; leave it out",
            );
        }
        let slots = if self.choice("proof.device", &["cuda", "cpu"]) == "cpu" {
            self.remark_gpus_beside_the_cpu();
            ProofSlots::Cpu(self.whole("proof.cpu_slots", 1, 64))
        } else {
            let listed: Vec<u32> = self.list("proof.gpus");
            ProofSlots::Gpus(if listed.is_empty() { vec![self.whole("proof.gpu", 0, 1023)] } else { listed })
        };
        let dtype = self.choice("proof.dtype", &["auto", "f32", "bf16", "f16"]);
        let library_path = self.path("proof.library_path");
        Proof { slots, threads: self.whole("proof.threads", 1, 1024), dtype, numerics: self.numerics(), library_path }
    }

    fn remark_gpus_beside_the_cpu(&mut self) {
        for key in ["proof.gpus", "proof.gpu"] {
            let Some(sourced) = self.sourced(key).filter(|sourced| sourced.origin != Origin::Default) else { continue };
            let remark = format!(
                "{key} = {} ({}) changes nothing beside proof.device = \"cpu\", which makes proofs without a GPU. Leave it out, or set \
                 proof.device = \"cuda\".",
                sourced.value, sourced.origin
            );
            self.remarks.push(remark);
        }
    }

    fn numerics(&mut self) -> WorkerNumerics {
        let level = self.whole("proof.precision_tuning", 0, 2);
        let key = "proof.force_eager_attention";
        let force_eager_attention = self.flag(key);
        let asked = self.sourced(key).is_some_and(|sourced| sourced.origin != Origin::Default);
        if level == 2 && asked && !force_eager_attention {
            self.refuse(key, "contradicts proof.precision_tuning = 2, which computes attention eagerly; leave one of them out");
        }
        let mode = ProofMode::named(&self.choice("proof.mode", &ProofMode::NAMES));
        WorkerNumerics { mode, precision_tuning: u8::try_from(level).unwrap_or(0), force_eager_attention }
    }

    fn gate(&mut self) -> Gate {
        let limits = AgreementLimits {
            identical_share: self.number("gate.identical_share", 0.0, 1.0),
            distance_p99: self.whole("gate.distance_p99", 0, 6000),
            logprob_p99: self.number("gate.logprob_p99", 0.0, 10.0) as f32,
        };
        Gate { spot_checks: self.whole("gate.spot_checks", 0, 5000) as usize, limits }
    }

    fn sourced(&self, key: &str) -> Option<&Sourced> {
        debug_assert!(table::find(key).is_some(), "{key} is not in the table");
        self.values.get(key)
    }

    fn text(&self, key: &str) -> String {
        self.sourced(key).and_then(|sourced| sourced.value.as_str()).unwrap_or_default().trim().to_owned()
    }

    fn optional(&self, key: &str) -> Option<String> {
        Some(self.text(key)).filter(|text| !text.is_empty())
    }

    fn required(&mut self, key: &str) -> String {
        let text = self.text(key);
        if text.is_empty() {
            let variables = table::find(key).map(|setting| setting.variables.join(" or ")).unwrap_or_default();
            let reason = format!("is not set; write it in the TOML file or set {variables}");
            self.errors.push(ConfigError { key: key.into(), value: None, origin: None, reason });
        }
        text
    }

    fn path(&mut self, key: &str) -> Option<PathBuf> {
        let text = self.optional(key)?;
        let expanded = match home::expand(&text, self.home.as_deref()) {
            Ok(path) => path,
            Err(why) => {
                self.refuse(key, &why);
                return None;
            }
        };
        // Only what the file says counts from the file's folder; variables and flags count from where the user stands.
        let from_file = self.sourced(key).is_some_and(|sourced| matches!(sourced.origin, Origin::File(_) | Origin::Default));
        Some(if from_file { self.base.join(expanded) } else { expanded })
    }

    fn file_name(&mut self, key: &str) -> String {
        let text = self.text(key);
        if text.is_empty() || text.contains('/') || text.starts_with('.') {
            self.refuse(key, "is not a plain name; give the wallet's name, not a path");
        }
        text
    }

    fn choice(&mut self, key: &str, allowed: &[&str]) -> String {
        let text = self.text(key);
        if !allowed.contains(&text.as_str()) {
            self.refuse(key, &format!("is none of {}", allowed.join(", ")));
        }
        text
    }

    fn number(&mut self, key: &str, low: f64, high: f64) -> f64 {
        let number = self.sourced(key).and_then(|sourced| sourced.value.as_float()).unwrap_or(low);
        if !(low..=high).contains(&number) {
            self.refuse(key, &format!("is outside {low} to {high}"));
        }
        number
    }

    /// `None` for "auto".
    fn number_or_auto(&mut self, key: &str, low: f64, high: f64) -> Option<f64> {
        if self.text(key) == "auto" { None } else { Some(self.number(key, low, high)) }
    }

    fn whole(&mut self, key: &str, low: u32, high: u32) -> u32 {
        let number = self.sourced(key).and_then(|sourced| sourced.value.as_integer());
        let number = number.and_then(|number| u32::try_from(number).ok()).unwrap_or(low);
        if !(low..=high).contains(&number) {
            self.refuse(key, &format!("is outside {low} to {high}"));
        }
        number
    }

    fn flag(&self, key: &str) -> bool {
        self.sourced(key).and_then(|sourced| sourced.value.as_bool()).unwrap_or(false)
    }

    fn list(&self, key: &str) -> Vec<u32> {
        let items = self.sourced(key).and_then(|sourced| sourced.value.as_array()).cloned().unwrap_or_default();
        items.iter().filter_map(toml::Value::as_integer).filter_map(|number| u32::try_from(number).ok()).collect()
    }

    /// As [`Reader::refuse`], for a value that may be a secret although the setting is none.
    fn refuse_unseen(&mut self, key: &str, reason: &str) {
        self.refuse(key, reason);
        self.errors.iter_mut().rev().take(1).for_each(|error| error.value = None);
    }

    fn refuse(&mut self, key: &str, reason: &str) {
        let sourced = self.sourced(key);
        let value = sourced.map(|sourced| shown(key, &sourced.value.to_string()));
        let origin = sourced.map(|sourced| sourced.origin.clone());
        self.errors.push(ConfigError { key: key.into(), value, origin, reason: reason.into() });
    }
}

#[cfg(test)]
mod tests;
