//! `plan`: the layout of the host, with each child's command line, environment and addresses, before anything is started; and
//! whether a model fits into the GPUs and the ports are free. It looks at the checkpoint's files and the host's ports, and starts
//! nothing.

use std::fmt::Write;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use grail_engines::{Engine, Installed, PORTS, ServerOptions};
use grail_process::ports;
use grail_settings::{Address, ConfigError, ConfigErrors, Generation, ProofSlots, Settings, Storage};
use grail_supervision::exit::Failure;
use grail_supervision::state::StateFolder;
use grail_workers::plan::{Plan, ProofSlot};
use serde_json::Value;

/// Memory of a GPU that neither weights nor cache get: the CUDA context, NCCL, activations.
const OVERHEAD_GIB: f64 = 3.0;
const GIB: f64 = 1_073_741_824.0;
/// Bytes of a configuration that are read; it has a few thousand.
const MOST_CONFIG: u64 = 1 << 20;

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// A checkpoint's directory: does it fit into the GPUs?
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Memory of one GPU.
    #[arg(long, value_name = "GIB", requires = "checkpoint")]
    gpu_memory: Option<f64>,
}

/// What of a model decides about memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelSize {
    /// Bytes of the weights.
    pub weights: f64,
    /// Bytes of keys and values per token, in bf16.
    pub cache_per_token: f64,
    /// Attention heads, and heads of keys and values.
    pub heads: (u64, u64),
}

impl ModelSize {
    /// From a checkpoint's `config.json` and the sizes of its weight files.
    ///
    /// # Errors
    /// What cannot be read or is not there.
    pub fn read(directory: &Path) -> Result<Self, String> {
        let path = directory.join("config.json");
        let unreadable = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
        let mut text = String::new();
        std::fs::File::open(&path).and_then(|file| file.take(MOST_CONFIG).read_to_string(&mut text)).map_err(unreadable)?;
        if text.starts_with('\u{feff}') {
            let path = path.display();
            return Err(format!(
                "{path} begins with a byte order mark, which nothing that loads it takes; save it as UTF-8 without one"
            ));
        }
        let config: Value = serde_json::from_str(&text).map_err(|error| format!("{} is no JSON: {error}", path.display()))?;
        let files = std::fs::read_dir(directory).map_err(|error| format!("{} cannot be read: {error}", directory.display()))?;
        let is_weights = |entry: &std::fs::DirEntry| entry.path().extension().is_some_and(|end| end == "safetensors");
        let sizes = files.flatten().filter(is_weights).filter_map(|entry| std::fs::metadata(entry.path()).ok());
        Self::of(&config, sizes.map(|data| data.len() as f64).sum())
            .ok_or_else(|| format!("{} tells no shape that a model can have", path.display()))
    }

    /// From the fields of a configuration.
    pub fn of(config: &Value, weights: f64) -> Option<Self> {
        let number = |key: &str| config[key].as_u64();
        let heads = number("num_attention_heads").filter(|heads| *heads > 0)?;
        let of_keys = number("num_key_value_heads").unwrap_or(heads);
        let width = number("head_dim").or_else(|| Some(number("hidden_size")? / heads))?;
        // Keys and values, two bytes each. Whatever a configuration says, it is a number of bytes, and not none.
        let factors = [2, number("num_hidden_layers")?, of_keys, width, 2];
        let cache_per_token = factors.into_iter().try_fold(1_u64, u64::checked_mul).filter(|bytes| *bytes > 0)?;
        Some(Self { weights, cache_per_token: cache_per_token as f64, heads: (heads, of_keys) })
    }

    /// Tokens of keys and values for which the generation GPUs have room.
    ///
    /// # Errors
    /// Why the model cannot be served by them, by setting.
    pub fn room(&self, generation: &Generation, gpu_bytes: f64) -> Result<f64, ConfigError> {
        let refuse =
            |key: &str, value: String, reason: String| ConfigError { key: key.into(), value: Some(value), origin: None, reason };
        let gpus = u64::from(generation.tensor_parallel);
        let (heads, of_keys) = self.heads;
        if heads % gpus != 0 || (of_keys % gpus != 0 && gpus % of_keys.max(1) != 0) {
            let which = if heads % gpus == 0 { "" } else { " (the attention heads)" };
            let reason =
                format!("does not divide the model's {heads} attention heads and {of_keys} heads of keys and values{which}");
            return Err(refuse("generation.tensor_parallel", gpus.to_string(), reason));
        }
        let share = generation.memory_share.min(1.0 - OVERHEAD_GIB * GIB / gpu_bytes);
        // More GPUs than heads of keys and values: each head lies on several of them.
        let on_each = self.cache_per_token / gpus.min(of_keys.max(1)) as f64;
        let room = (gpu_bytes * share - self.weights / gpus as f64) / on_each;
        if room < f64::from(generation.max_model_length) {
            let (weights, memory) = (self.weights / gpus as f64 / GIB, gpu_bytes * share / GIB);
            let reason = format!(
                "leaves no room for one sequence of generation.max_model_length: each GPU holds {weights:.1} GiB of weights and the \
                 server may use {memory:.1} GiB of it; use more GPUs (generation.tensor_parallel) or a shorter length"
            );
            return Err(refuse("generation.memory_share", generation.memory_share.to_string(), reason));
        }
        Ok(room)
    }
}

/// The report of `plan`: the layout, what would be started, and whether ports and memory are there.
///
/// # Errors
/// Everything that cannot work, all at once.
pub fn report(settings: &Settings, plan: Result<Plan, ConfigErrors>, arguments: &Arguments) -> Result<String, Failure> {
    let (mut text, mut errors) = (String::new(), Vec::new());
    match plan {
        Ok(plan) => children(&mut text, settings, &plan)?,
        Err(mistakes) => errors.extend(mistakes.0),
    }
    ports(&mut text, settings, &mut errors);
    if let Some(directory) = &arguments.checkpoint {
        memory(&mut text, settings, directory, arguments.gpu_memory, &mut errors);
    }
    if errors.is_empty() { Ok(text) } else { Err(ConfigErrors(errors).into()) }
}

/// Every child and every server elsewhere, a line each.
pub fn outline(settings: &Settings, plan: &Plan) -> String {
    let replicas = (0..plan.generation.len()).map(|replica| replica_line(settings, plan, replica));
    let elsewhere = settings.generation.servers.iter().map(|url| elsewhere_line(settings, url));
    replicas.chain(elsewhere).chain(plan.proof.iter().map(worker_line)).map(|line| line + "\n").collect()
}

fn replica_line(settings: &Settings, plan: &Plan, replica: usize) -> String {
    let number = if plan.generation.len() > 1 { format!(" {replica}") } else { String::new() };
    format!("generation{number}: {} on {}", settings.generation.backend, gpus(&plan.generation[replica]))
}

fn elsewhere_line(settings: &Settings, url: &Address) -> String {
    format!(
        "generation: {} at {url}, which somebody else runs; it is probed and updated, not started",
        settings.generation.backend
    )
}

fn worker_line(slot: &ProofSlot) -> String {
    format!("proof-worker {}: {}", slot.slot, gpus(slot.gpu.as_slice()))
}

/// Every child with what it is started with.
fn children(text: &mut String, settings: &Settings, plan: &Plan) -> Result<(), Failure> {
    let generation = &settings.generation;
    for (replica, gpus_of) in plan.generation.iter().enumerate() {
        let _ = writeln!(text, "{}", replica_line(settings, plan, replica));
        let _ = writeln!(text, "  environment: CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={}", gpus_of.join(","));
        if generation.backend != "embedded" {
            server(text, generation)?;
        }
        let _ = writeln!(text, "  port: a free one of 127.0.0.1, {} to {}, chosen at each start", PORTS.start, PORTS.end - 1);
    }
    for url in &generation.servers {
        let _ = writeln!(text, "{}", elsewhere_line(settings, url));
        let seen_as = generation.servers_cache.as_ref().unwrap_or(&settings.cache);
        let _ = writeln!(text, "  weights: below {}, as it sees {}", seen_as.display(), settings.cache.display());
    }
    for slot in &plan.proof {
        let _ = writeln!(text, "{}", worker_line(slot));
        let gpu = slot.gpu.as_deref().unwrap_or_default();
        let _ = writeln!(text, "  environment: CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={gpu}");
    }
    let _ = writeln!(text, "sockets: {}", settings.state.join("run").display());
    Ok(())
}

/// The ports that a run would listen on. A supervisor that runs with this state folder has them rightly.
fn ports(text: &mut String, settings: &Settings, errors: &mut Vec<ConfigError>) {
    let mut refuse = |key: &str, value: Option<String>, reason: String| {
        errors.push(ConfigError { key: key.into(), value, origin: None, reason });
    };
    if settings.generation.servers.is_empty()
        && let Err(error) = ports::free(PORTS, PORTS.start)
    {
        refuse("generation.backend", Some(settings.generation.backend.clone()), format!("needs a port to listen on: {error}"));
    }
    let Storage::Local { address, .. } = &settings.storage else { return };
    let whose = match ports::listen(*address) {
        Ok(()) => "free",
        Err(_) if StateFolder::is_locked(&settings.state) => "the running supervisor's",
        Err(error) => {
            let reason = format!("cannot be listened on: {error}; end what has it, or set another port");
            return refuse("storage.local_address", Some(address.to_string()), reason);
        }
    };
    let _ = writeln!(text, "local bucket server: {address} ({whose})");
}

fn gpus(list: &[String]) -> String {
    if list.is_empty() { "the CPU".into() } else { format!("GPU {}", list.join(", ")) }
}

fn server(text: &mut String, generation: &Generation) -> Result<(), Failure> {
    let engine = generation.engine();
    let options = ServerOptions {
        model: match engine {
            Engine::Sglang => "<checkpoint>".into(),
            Engine::Vllm => {
                generation.link_folder.as_deref().unwrap_or(Path::new("<cache>")).join("vllm_active").display().to_string()
            }
        },
        port: 0,
        cpu: generation.cpu,
        dtype: generation.dtype.clone(),
        tensor_parallel: generation.tensor_parallel,
        memory_share: generation.memory_share,
        context_length: generation.max_model_length,
        max_running: generation.max_running,
        disable_cuda_graph: generation.disable_cuda_graph,
        tokenizer: generation.tokenizer.clone(),
        weight_version: "<revision>".into(),
        extra: generation.extra.shown(),
    };
    let measured = Installed::measured(engine);
    let command = measured.command(&options).map_err(|error| Failure::internal("make the command line", error))?.join(" ");
    let python = generation.python.display();
    let _ = writeln!(text, "  command: {python} -m {} {command}", engine.module());
    let _ = writeln!(text, "    (for {} {}; the launcher asks what is installed)", engine.name(), measured.version());
    let variables: Vec<String> =
        grail_engines::environment(engine, generation.cpu).iter().map(|(name, value)| format!("{name}={value}")).collect();
    let _ = writeln!(text, "  environment: {}", variables.join(" "));
    Ok(())
}

/// Whether the model fits into the GPUs that the settings give to servers and proof workers, whatever else is wrong with them.
fn memory(text: &mut String, settings: &Settings, directory: &Path, gpu: Option<f64>, errors: &mut Vec<ConfigError>) {
    let mut refuse = |key: &str, value: Option<String>, reason: String| {
        errors.push(ConfigError { key: key.into(), value, origin: None, reason });
    };
    let size = match ModelSize::read(directory) {
        Ok(size) => size,
        Err(error) => return refuse("--checkpoint", Some(directory.display().to_string()), format!("is no checkpoint: {error}")),
    };
    let cache = size.cache_per_token / 1024.0;
    let _ = writeln!(text, "model: {:.2} GiB of weights, {cache:.1} KiB of keys and values per token", size.weights / GIB);
    let Some(gpu) = gpu else { return };
    if !(gpu.is_finite() && gpu > OVERHEAD_GIB) {
        let reason = format!("is no GPU's memory; give more than {OVERHEAD_GIB} GiB");
        return refuse("--gpu-memory", Some(gpu.to_string()), reason);
    }
    if matches!(settings.proof.slots, ProofSlots::Gpus(_)) && size.weights > (gpu - OVERHEAD_GIB) * GIB {
        let weights = size.weights / GIB;
        refuse("proof.gpus", None, format!("cannot hold the model: {weights:.1} GiB of weights, {gpu:.0} GiB of memory each"));
    }
    let generation = &settings.generation;
    if generation.backend == "embedded" || generation.cpu || !generation.servers.is_empty() {
        return;
    }
    match size.room(generation, gpu * GIB) {
        Ok(room) => _ = writeln!(text, "  cache: room for {room:.0} tokens on the GPUs of each server"),
        Err(error) => errors.push(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// What a hostile configuration may say of a size.
    fn size() -> impl Strategy<Value = Value> {
        let numbers =
            prop::sample::select(vec![0, 1, 3, 28, 64, 3584, 1 << 31, 1 << 32, 1 << 33, 1 << 62, u64::MAX - 1, u64::MAX]);
        prop_oneof![
            4 => numbers.prop_map(|number| json!(number)),
            2 => any::<u64>().prop_map(|number| json!(number)),
            1 => prop::sample::select(vec![json!(null), json!(-1), json!(1e300), json!("28"), json!([1]), json!({"a": 1})]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn no_configuration_is_too_hostile_to_be_judged(
            sizes in prop::collection::vec(prop::option::weighted(0.9, size()), 5),
            weights in prop::sample::select(vec![0.0, 1.0, 15.2 * GIB, 1e18, 1e300]),
            tensor_parallel in prop::sample::select(vec![1_u32, 2, 3, 8, u32::MAX]),
            gpu in prop::sample::select(vec![3.1, 16.0, 80.0, 1e12]),
        ) {
            let keys = ["num_attention_heads", "num_key_value_heads", "hidden_size", "num_hidden_layers", "head_dim"];
            let given = keys.into_iter().zip(sizes).filter_map(|(key, size)| Some((key.to_owned(), size?)));
            let config: Value = given.collect::<serde_json::Map<_, _>>().into();
            let Some(model) = ModelSize::of(&config, weights) else { return Ok(()) };
            prop_assert!(model.cache_per_token >= 1.0 && model.cache_per_token.is_finite(), "{config}: {model:?}");
            match model.room(&generation(tensor_parallel), gpu * GIB) {
                Ok(room) => prop_assert!(room.is_finite() && room >= 4096.0, "{config}: {room}"),
                Err(error) => prop_assert!(error.to_string().contains("generation."), "{error}"),
            }
        }
    }

    fn generation(tensor_parallel: u32) -> Generation {
        let text = "[storage]\nlocal_folder = 'bucket'\n[chain]\nnetwork = 'local'\n[wallet]\ndevelopment = '//Alice'\n[generation]\nbackend = 'sglang'\n";
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("host.toml");
        std::fs::write(&file, text).unwrap();
        let loaded = grail_settings::load(&grail_settings::Sources { file: Some(file), ..Default::default() }).unwrap();
        Generation { tensor_parallel, max_model_length: 4096, memory_share: 0.9, max_running: 64, ..loaded.settings.generation }
    }

    #[test]
    fn what_does_not_fit_is_refused_by_setting() {
        let config = json!({"num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 3584, "num_hidden_layers": 28});
        let size = ModelSize::of(&config, 15.2 * GIB).unwrap();
        assert_eq!(size.cache_per_token, 57_344.0);
        let room = size.room(&generation(4), 80.0 * GIB).unwrap();
        // 4 GPUs with 0.9 of 80 GiB, less the weights.
        assert!((room - (288.0 - 15.2) * GIB / 57_344.0).abs() < 1.0, "{room}");
        // Eight GPUs over four heads: each head is there twice.
        let replicated = ModelSize { heads: (32, 4), ..size }.room(&generation(8), 80.0 * GIB).unwrap();
        assert!((replicated - (72.0 - 1.9) * GIB / (57_344.0 / 4.0)).abs() < 1.0, "{replicated}");
        let error = size.room(&generation(3), 80.0 * GIB).unwrap_err().to_string();
        assert!(error.contains("generation.tensor_parallel = 3 does not divide"), "{error}");
        let error = size.room(&generation(1), 16.0 * GIB).unwrap_err().to_string();
        assert!(error.contains("generation.memory_share") && error.contains("15.2 GiB of weights"), "{error}");
    }
}
