//! The command line and environment of a server, for the version that is installed (grail-miner 5, generation-servers 1.9).
//!
//! Flags come and go between versions, and an unknown one ends the server with code 2. So the parser of the installed version
//! is asked (`--help`), the guide's flags are mapped to it, and what it cannot do is refused before anything is started.

use std::collections::BTreeSet;
use std::fmt;

use grail_secrets::Secret;
use serde_json::{Map, Value, json};

use crate::Engine;

/// The name under which vLLM serves whatever it holds, and of the link to it.
pub const VLLM_NAME: &str = "vllm_active";
/// Oldest SGLang with pause modes, `/model_info` and a flush within the update.
const OLDEST_SGLANG: Version = Version([0, 5, 6]);
/// Flags of which every release from that one on has one in each group, and older ones do not (generation-servers 1.9).
const SHOW_SGLANG: [&[&str]; 2] = [
    &["--weight-version"],
    &[
        "--enable-piecewise-cuda-graph",
        "--disable-piecewise-cuda-graph",
        "--disable-prefill-cuda-graph",
        "--cuda-graph-backend-prefill",
    ],
];

/// A release, as far as three numbers tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub [u32; 3]);

/// A version as Python's packages have it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PrintedVersion {
    /// As it was printed.
    text: String,
    release: Version,
    /// Built between two releases: the numbers say nothing, for a checkout without its tags has 0.0.0 or 0.1.
    development: bool,
}

impl PrintedVersion {
    /// The version that follows the package's name on a line of its own, or is a line of its own. Whatever else a start of Python
    /// prints (conda, a module system, warnings) is passed over.
    fn find(engine: Engine, printed: &str) -> Option<Self> {
        let lines = || printed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let named = lines().find_map(|words| match words[..] {
            [name, version] if engine.packages().contains(&name) => Self::read(version),
            _ => None,
        });
        named.or_else(|| lines().find_map(|words| if let [version] = words[..] { Self::read(version) } else { None }))
    }

    /// `0.5.10`, `0.6`, `0.5.10.post1`, `0.11.1rc2`, `0.0.0.dev1+g0123abc`.
    fn read(text: &str) -> Option<Self> {
        let (public, local) = text.split_once('+').unwrap_or((text, ""));
        let digits = |text: &str| text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        let (mut numbers, mut rest) = (Vec::new(), public);
        while digits(rest) > 0 {
            let (number, after) = rest.split_at(digits(rest));
            numbers.push(number.parse::<u32>().ok()?);
            rest = after;
            match after.strip_prefix('.') {
                Some(next) if digits(next) > 0 => rest = next,
                _ => break,
            }
        }
        // One number is anything.
        if numbers.len() < 2 {
            return None;
        }
        numbers.resize(3, 0);
        // What a build adds of the commit that it was made of: setuptools_scm writes g and the hash.
        let of_a_commit = local.split('.').any(|part| {
            part.strip_prefix('g').is_some_and(|hash| hash.len() >= 7 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
        });
        let development = rest.contains("dev") || of_a_commit || numbers[..3] == [0; 3];
        Some(Self { text: text.into(), release: Version([numbers[0], numbers[1], numbers[2]]), development })
    }
}

impl fmt::Display for PrintedVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([major, minor, patch]) = self;
        write!(formatter, "{major}.{minor}.{patch}")
    }
}

/// What the installed server says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    engine: Engine,
    version: PrintedVersion,
    flags: BTreeSet<String>,
}

/// Why what is installed cannot be used at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsuited {
    /// No version was found in what it printed.
    #[error("{engine} does not tell its version; it printed {printed:?}. Is it installed in this Python (generation.python)?")]
    NoVersion {
        /// Which server.
        engine: &'static str,
        /// What it printed, cut.
        printed: String,
    },
    /// Its help names no flag that every release has.
    #[error(
        "the --help of {engine} {version} names no --port, so it cannot be started by flags; its last line: {printed:?}. If that is an error, mend its installation; else install a release of it."
    )]
    NoHelp {
        /// Which server.
        engine: &'static str,
        /// Its version.
        version: String,
        /// What its help says last, cut.
        printed: String,
    },
    /// It lacks what an exact weight update needs.
    #[error(
        "{engine} {version} is too old: without pause modes and weight versions nobody can tell which weights a completion was sampled with. Install {oldest} or newer."
    )]
    TooOld {
        /// Which server.
        engine: &'static str,
        /// Its version.
        version: Version,
        /// The oldest that will do.
        oldest: Version,
    },
    /// A version between two releases that lacks a flag of what is needed.
    #[error(
        "{engine} {version} is a development version, and its --help names no {flag}: it is older than {oldest}, from which on an update of the weights is exact. Install a newer one."
    )]
    Lacks {
        /// Which server.
        engine: &'static str,
        /// Its version.
        version: String,
        /// What would show that it is new enough.
        flag: String,
        /// The oldest release that will do.
        oldest: Version,
    },
}

/// Why a command line cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The installed version has no flag for something that was asked for.
    #[error("{engine} {version} has no {flag}, which {why} needs; {remedy}")]
    NoFlag {
        /// Which server.
        engine: &'static str,
        /// Its version.
        version: String,
        /// The flag.
        flag: &'static str,
        /// The setting behind it.
        why: &'static str,
        /// What to do.
        remedy: &'static str,
    },
}

/// What a server is started with.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerOptions {
    /// Directory of the checkpoint (vLLM: the link to it).
    pub model: String,
    /// Loopback port.
    pub port: u16,
    /// The server runs on the CPU.
    pub cpu: bool,
    /// What to compute in: `auto` (bf16), `f32`, `bf16` or `f16`.
    pub dtype: String,
    /// GPUs.
    pub tensor_parallel: u32,
    /// Share of GPU memory for weights and cache (`GRAIL_PIPELINE_GPU_MEM_UTIL`); `None` leaves it to the server's own rule.
    pub memory_share: Option<f64>,
    /// Longest prompt plus completion (`GRAIL_PIPELINE_MAX_MODEL_LEN`).
    pub context_length: u32,
    /// Requests that it works on at once (`GRAIL_PIPELINE_MAX_NUM_SEQS`).
    pub max_running: u32,
    /// `GRAIL_PIPELINE_DISABLE_CUDA_GRAPH`.
    pub disable_cuda_graph: bool,
    /// Tokenizer, for vLLM where the checkpoint has none of its own.
    pub tokenizer: Option<String>,
    /// Weight version until the first update (SGLang).
    pub weight_version: String,
    /// Further words as they are, for what no setting names.
    pub extra: Vec<String>,
}

impl ServerOptions {
    fn dtype(&self) -> &'static str {
        match self.dtype.as_str() {
            "f32" => "float32",
            "f16" => "float16",
            _ => "bfloat16",
        }
    }
}

/// Credentials of a server, by the way that each goes.
#[derive(Debug, Clone, Default)]
pub struct Concealed {
    /// Those for which there is no other way than the command line.
    pub open: Vec<(String, Secret)>,
    /// Those that it reads from its environment.
    pub variables: Vec<(&'static str, Secret)>,
    /// A YAML file of the others, whose path follows `--config`.
    pub file: Option<Secret>,
}

/// Flags whose secret stays on the command line of every version of a server.
pub fn unconcealed(engine: Engine, credentials: &[(String, Secret)]) -> Vec<String> {
    let stays = |flag: &&String| engine == Engine::Vllm && *flag != "--api-key";
    credentials.iter().map(|(flag, _)| flag).filter(stays).cloned().collect()
}

impl Installed {
    /// From what `--version` and `--help` printed.
    ///
    /// # Errors
    /// Where it is no server that can be used.
    pub fn read(engine: Engine, version: &str, help: &str) -> Result<Self, Unsuited> {
        let (engine_name, printed) = (engine.name(), || version.chars().take(200).collect());
        let found = PrintedVersion::find(engine, version)
            .ok_or_else(|| Unsuited::NoVersion { engine: engine_name, printed: printed() })?;
        let words = help.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '-'));
        let flags: BTreeSet<String> = words.filter(|word| word.starts_with("--") && word.len() > 2).map(str::to_owned).collect();
        if !flags.contains("--port") {
            let last = help.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
            let printed = last.chars().take(300).collect();
            return Err(Unsuited::NoHelp { engine: engine_name, version: found.text, printed });
        }
        if engine == Engine::Sglang && !found.development && found.release < OLDEST_SGLANG {
            return Err(Unsuited::TooOld { engine: engine_name, version: found.release, oldest: OLDEST_SGLANG });
        }
        if engine == Engine::Sglang && found.development {
            let missing = SHOW_SGLANG.iter().find(|group| !group.iter().any(|flag| flags.contains(*flag)));
            if let Some(group) = missing {
                let (version, flag) = (found.text, group.join(" or "));
                return Err(Unsuited::Lacks { engine: engine_name, version, flag, oldest: OLDEST_SGLANG });
            }
        }
        Ok(Self { engine, version: found, flags })
    }

    /// The release that was measured (generation-servers): SGLang 0.5.23, vLLM 0.23.0.
    pub fn measured(engine: Engine) -> Self {
        let (version, flags): (_, &[&str]) = match engine {
            Engine::Sglang => (
                Version([0, 5, 23]),
                &[
                    "--load-balance-method",
                    "--disable-prefill-cuda-graph",
                    "--disable-cuda-graph",
                    "--weight-version",
                    "--enable-metrics",
                    "--config",
                ],
            ),
            Engine::Vllm => (Version([0, 23, 0]), &["--enable-sleep-mode", "--enforce-eager"]),
        };
        let version = PrintedVersion { text: version.to_string(), release: version, development: false };
        Self { engine, version, flags: flags.iter().map(|flag| (*flag).to_owned()).collect() }
    }

    /// Its version, as it tells it.
    pub fn version(&self) -> &str {
        &self.version.text
    }

    /// What somebody should know who built it from source: nobody has measured it.
    pub fn warning(&self) -> Option<String> {
        self.version.development.then(|| {
            format!(
                "{} {} was built between two releases: its number says nothing, so it is judged by the flags of its --help alone",
                self.engine.name(),
                self.version
            )
        })
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.contains(flag)
    }

    fn need(&self, flag: &'static str, why: &'static str, remedy: &'static str) -> Result<(), CommandError> {
        let missing =
            || CommandError::NoFlag { engine: self.engine.name(), version: self.version.text.clone(), flag, why, remedy };
        if self.has(flag) { Ok(()) } else { Err(missing()) }
    }

    /// The words after `python -m MODULE`, in the order of the reference.
    ///
    /// # Errors
    /// Where the installed version lacks a flag that the options need.
    pub fn command(&self, options: &ServerOptions) -> Result<Vec<String>, CommandError> {
        let mut words = match self.engine {
            Engine::Sglang => self.sglang(options)?,
            Engine::Vllm => self.vllm(options)?,
        };
        words.extend(options.extra.iter().cloned());
        Ok(words)
    }

    /// How credentials reach the server without standing on its command line, which everybody on the host can read.
    ///
    /// # Errors
    /// Where the installed version offers no way.
    pub fn conceal(&self, credentials: &[(String, Secret)]) -> Result<Concealed, CommandError> {
        let (mut concealed, mut in_file) = (Concealed::default(), Map::new());
        for (flag, value) in credentials {
            match (self.engine, flag.as_str()) {
                (Engine::Vllm, "--api-key") => {
                    concealed.variables.push(("VLLM_API_KEY", value.clone()));
                }
                (Engine::Vllm, _) => concealed.open.push((flag.clone(), value.clone())),
                (Engine::Sglang, _) => {
                    self.need(
                        "--config",
                        "a secret in generation.extra_arguments, which must not stand on a command line,",
                        "leave it out, or install a release that reads its flags from a file",
                    )?;
                    in_file.insert(flag.trim_start_matches('-').to_owned(), json!(value.reveal()));
                }
            }
        }
        // JSON is YAML.
        concealed.file = (!in_file.is_empty()).then(|| Secret::new(Value::Object(in_file).to_string()));
        Ok(concealed)
    }

    fn sglang(&self, options: &ServerOptions) -> Result<Vec<String>, CommandError> {
        let name = options.model.trim_end_matches('/').rsplit('/').next().unwrap_or("model");
        let mut words = Words::default();
        words.pair("--model-path", &options.model).pair("--served-model-name", name);
        words.pair("--host", "127.0.0.1").pair("--port", options.port).pair("--dtype", options.dtype());
        if options.cpu {
            words.pair("--device", "cpu");
        }
        words.pair("--tp-size", options.tensor_parallel);
        // Its own rule counts what graphs and activations take, which a share of 0.9 leaves no room for on some GPUs.
        options.memory_share.iter().for_each(|share| _ = words.pair("--mem-fraction-static", share));
        // Without --trust-remote-code: no family that is mined needs code of its checkpoint, which would run as this user.
        words.pair("--context-length", options.context_length);
        // With one server it has no effect; releases without it, or with other methods, lose nothing.
        if self.has("--load-balance-method") {
            words.pair("--load-balance-method", "total_tokens");
        }
        words.flag("--disable-custom-all-reduce");
        self.no_piecewise_graphs(&mut words)?;
        if options.disable_cuda_graph {
            self.need(
                "--disable-cuda-graph",
                "generation.disable_cuda_graph",
                "leave the setting out, or install a release that has it",
            )?;
            words.flag("--disable-cuda-graph");
        }
        words.pair("--max-running-requests", options.max_running);
        self.need("--weight-version", "telling weights apart", "install a newer release")?;
        words.pair("--weight-version", &options.weight_version);
        if self.has("--enable-metrics") {
            words.flag("--enable-metrics");
        }
        Ok(words.0)
    }

    /// The guide's `--disable-piecewise-cuda-graph` under its name in this release: it was on by default from 0.5.10 on, became
    /// an alias in 0.5.15 and vanished in 0.5.20.
    fn no_piecewise_graphs(&self, words: &mut Words) -> Result<(), CommandError> {
        if self.has("--disable-prefill-cuda-graph") {
            words.flag("--disable-prefill-cuda-graph");
        } else if self.has("--cuda-graph-backend-prefill") {
            words.pair("--cuda-graph-backend-prefill", "disabled");
        } else if self.has("--disable-piecewise-cuda-graph") {
            words.flag("--disable-piecewise-cuda-graph");
        } else if !self.has("--enable-piecewise-cuda-graph") && self.version.release >= Version([0, 5, 10]) {
            return self.need(
                "--disable-piecewise-cuda-graph",
                "the guide's command line",
                "no flag of this release is known to replace it; install another release",
            );
        }
        Ok(())
    }

    fn vllm(&self, options: &ServerOptions) -> Result<Vec<String>, CommandError> {
        let mut words = Words::default();
        words.pair("--model", &options.model).pair("--served-model-name", VLLM_NAME);
        words.pair("--host", "127.0.0.1").pair("--port", options.port).pair("--dtype", options.dtype());
        words.pair("--kv-cache-dtype", "auto").pair("--tensor-parallel-size", options.tensor_parallel);
        options.memory_share.iter().for_each(|share| _ = words.pair("--gpu-memory-utilization", share));
        words.pair("--max-model-len", options.context_length);
        words.pair("--max-num-seqs", options.max_running);
        if let Some(tokenizer) = &options.tokenizer {
            words.pair("--tokenizer", tokenizer);
        }
        // On the CPU the server refuses it and ends (generation-servers 2.1).
        if !options.cpu {
            self.need("--enable-sleep-mode", "the reference's command line", "install vLLM 0.10.2 or newer")?;
            words.flag("--enable-sleep-mode");
        }
        if options.disable_cuda_graph {
            self.need("--enforce-eager", "generation.disable_cuda_graph", "leave the setting out")?;
            words.flag("--enforce-eager");
        }
        Ok(words.0)
    }
}

#[derive(Default)]
struct Words(Vec<String>);

impl Words {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.to_owned());
        self
    }

    fn pair(&mut self, flag: &str, value: impl ToString) -> &mut Self {
        self.0.extend([flag.to_owned(), value.to_string()]);
        self
    }
}

/// Variables that the server needs beside what every child inherits; GPUs are the parent's to choose.
pub fn environment(engine: Engine, cpu: bool) -> Vec<(&'static str, &'static str)> {
    let mut variables = match engine {
        // Without these a server whose scheduler died listens for up to 67 s and answers nothing (generation-servers 1.8).
        Engine::Sglang => vec![("SGLANG_CUDA_COREDUMP_BEFORE_CRASH", "0"), ("SGLANG_PYSPY_DUMP_BEFORE_CRASH", "0")],
        Engine::Vllm => vec![("PYTORCH_CUDA_ALLOC_CONF", ""), ("VLLM_SERVER_DEV_MODE", "1")],
    };
    if cpu && engine == Engine::Sglang {
        variables.push(("SGLANG_USE_CPU_ENGINE", "1"));
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ServerOptions {
        ServerOptions {
            model: "/cache/checkpoint-30".into(),
            port: 30123,
            cpu: false,
            dtype: "auto".into(),
            tensor_parallel: 4,
            memory_share: Some(0.88),
            context_length: 4096,
            max_running: 512,
            disable_cuda_graph: true,
            tokenizer: None,
            weight_version: "30-ab".into(),
            extra: vec!["--device".into(), "cpu".into()],
        }
    }

    fn sglang(version: &str, flags: &str) -> Result<Result<Vec<String>, CommandError>, Unsuited> {
        let help = format!("usage: launch_server.py [-h] --port PORT [--weight-version V] [--disable-cuda-graph] {flags}\n");
        Ok(Installed::read(Engine::Sglang, version, &help)?.command(&options()))
    }

    #[test]
    fn credentials_go_another_way_than_the_command_line_where_there_is_one() {
        let given = [("--api-key".to_owned(), Secret::new("a \"b\"")), ("--hf-token".to_owned(), Secret::new("c"))];
        let sglang = Installed::measured(Engine::Sglang).conceal(&given).unwrap();
        let file: Value = serde_json::from_str(sglang.file.unwrap().reveal()).unwrap();
        assert_eq!(file, json!({"api-key": "a \"b\"", "hf-token": "c"}));
        assert!(sglang.open.is_empty() && sglang.variables.is_empty());
        let vllm = Installed::measured(Engine::Vllm).conceal(&given).unwrap();
        assert_eq!((vllm.variables, vllm.file), (vec![("VLLM_API_KEY", given[0].1.clone())], None));
        assert_eq!((vllm.open, unconcealed(Engine::Vllm, &given)), (vec![given[1].clone()], vec!["--hf-token".to_owned()]));
        assert!(unconcealed(Engine::Sglang, &given).is_empty());
        let old = Installed::read(Engine::Sglang, "sglang 0.5.6", "--port").unwrap();
        assert!(old.conceal(&[]).is_ok());
        let error = old.conceal(&given).unwrap_err().to_string();
        assert!(error.contains("has no --config") && !error.contains("a \""), "{error}");
    }

    #[test]
    fn the_flag_that_vanished_is_mapped_by_what_the_parser_takes() {
        for (version, flags, want) in [
            ("sglang 0.5.9", "--enable-piecewise-cuda-graph", None),
            ("0.5.10.post1", "[--disable-piecewise-cuda-graph]", Some("--disable-piecewise-cuda-graph")),
            ("0.5.18", "--disable-piecewise-cuda-graph --disable-prefill-cuda-graph", Some("--disable-prefill-cuda-graph")),
            ("0.5.23", "--cuda-graph-backend-prefill {a,disabled}", Some("--cuda-graph-backend-prefill")),
        ] {
            let words = sglang(version, flags).unwrap().unwrap();
            let found = words.iter().find(|word| word.contains("piecewise") || word.contains("prefill"));
            assert_eq!(found.map(String::as_str), want, "{version}");
            assert!(words.windows(2).any(|pair| pair == ["--tp-size", "4"]), "{words:?}");
            assert!(words.ends_with(&["--device".to_owned(), "cpu".to_owned()]));
        }
    }

    #[test]
    fn a_share_that_nobody_set_is_the_servers_own_matter() {
        for (engine, flag) in [(Engine::Sglang, "--mem-fraction-static"), (Engine::Vllm, "--gpu-memory-utilization")] {
            let of = |memory_share| Installed::measured(engine).command(&ServerOptions { memory_share, ..options() }).unwrap();
            assert!(of(Some(0.88)).windows(2).any(|pair| pair == [flag, "0.88"]), "{:?}", of(Some(0.88)));
            assert!(!of(None).iter().any(|word| word == flag), "{:?}", of(None));
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_reason() {
        let error = sglang("0.5.30", "").unwrap().unwrap_err().to_string();
        assert!(error.contains("0.5.30 has no --disable-piecewise-cuda-graph"), "{error}");
        assert!(matches!(sglang("0.4.10", ""), Err(Unsuited::TooOld { .. })));
        assert!(matches!(sglang("No module named sglang", ""), Err(Unsuited::NoVersion { .. })));
        assert!(matches!(Installed::read(Engine::Vllm, "0.23.0", "usage"), Err(Unsuited::NoHelp { .. })));
        let vllm = Installed::read(Engine::Vllm, "0.23.0", "--port --enforce-eager").unwrap();
        assert!(vllm.command(&options()).unwrap_err().to_string().contains("--enable-sleep-mode"));
    }

    #[test]
    fn a_server_on_the_cpu_is_asked_for_nothing_of_a_gpu() {
        let options = ServerOptions { cpu: true, dtype: "f32".into(), ..options() };
        let sglang = Installed::measured(Engine::Sglang).command(&options).unwrap();
        for pair in [["--device", "cpu"], ["--dtype", "float32"]] {
            assert!(sglang.windows(2).any(|words| words == pair), "{sglang:?}");
        }
        assert!(environment(Engine::Sglang, true).contains(&("SGLANG_USE_CPU_ENGINE", "1")));
        let vllm = Installed::measured(Engine::Vllm).command(&options).unwrap();
        assert!(!vllm.iter().any(|word| word == "--enable-sleep-mode"), "{vllm:?}");
    }

    #[test]
    fn versions_are_found_in_what_programs_print() {
        for (printed, text, release, development) in [
            ("sglang 0.5.10.post1", "0.5.10.post1", [0, 5, 10], false),
            ("0.5.23\n", "0.5.23", [0, 5, 23], false),
            ("sglang 0.6", "0.6", [0, 6, 0], false),
            ("conda 24.1.2 is activated\n24.1.2\nsglang 0.5.23\n", "0.5.23", [0, 5, 23], false),
            ("sglang 0.5.11rc1", "0.5.11rc1", [0, 5, 11], false),
            ("sglang 0.0.0.dev1+g1a2b3c4d5", "0.0.0.dev1+g1a2b3c4d5", [0, 0, 0], true),
            ("sglang 0.1.dev1+gdeadbeef.d20261101", "0.1.dev1+gdeadbeef.d20261101", [0, 1, 0], true),
            ("sglang 0.5.6.post3.dev12+gabcdef0", "0.5.6.post3.dev12+gabcdef0", [0, 5, 6], true),
            ("sglang 0.5.10+g0123abc", "0.5.10+g0123abc", [0, 5, 10], true),
            ("sglang 0.0.0", "0.0.0", [0, 0, 0], true),
        ] {
            let told = PrintedVersion::find(Engine::Sglang, printed);
            assert_eq!(told, Some(PrintedVersion { text: text.into(), release: Version(release), development }), "{printed}");
        }
        let cpu = PrintedVersion::find(Engine::Vllm, "INFO 11-21 of the loader\nvllm_cpu 0.23.0+cpu").unwrap();
        assert_eq!((cpu.release, cpu.development), (Version([0, 23, 0]), false));
        for printed in ["", "Python 3", "No module named sglang", "vllm 0.23.0", "sglang unknown", "3.11"] {
            let told = PrintedVersion::find(Engine::Sglang, printed);
            assert!(told.is_none() || printed == "3.11", "{printed}: {told:?}");
        }
    }

    #[test]
    fn what_was_built_from_source_is_judged_by_its_flags() {
        let new = "--cuda-graph-backend-prefill {a,disabled}";
        for version in
            ["sglang 0.0.0.dev1+g1a2b3c4d5", "sglang 0.1.dev1+gdeadbeef", "sglang 0.6", "conda 1.2.3\nsglang 0.6.0.dev4"]
        {
            assert!(sglang(version, new).unwrap().is_ok(), "{version}");
        }
        let read =
            |version: &str, flags: &str| Installed::read(Engine::Sglang, version, &format!("--port --weight-version {flags}"));
        let built = read("sglang 0.1.dev1+gdeadbeef", new).unwrap();
        assert!(
            built.warning().is_some_and(|warning| warning.contains("0.1.dev1+gdeadbeef"))
                && built.version() == "0.1.dev1+gdeadbeef"
        );
        assert_eq!(read("sglang 0.6", new).unwrap().warning(), None);
        // The numbers of a development version say nothing in either direction.
        for version in ["sglang 0.0.0.dev1+g1a2b3c4d5", "sglang 9.9.dev1+gdeadbeef"] {
            let error = read(version, "").unwrap_err();
            assert!(matches!(&error, Unsuited::Lacks { flag, .. } if flag.contains("piecewise")), "{error}");
            let error = Installed::read(Engine::Sglang, version, &format!("--port {new}")).unwrap_err();
            assert!(matches!(&error, Unsuited::Lacks { flag, .. } if flag == "--weight-version"), "{error}");
        }
        let vllm =
            Installed::read(Engine::Vllm, "vllm 0.1.dev1+gdeadbeef", "--port --enable-sleep-mode --enforce-eager").unwrap();
        assert!(vllm.command(&options()).is_ok() && vllm.warning().is_some());
    }
}
