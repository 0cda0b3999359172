//! Which process gets which GPU. Pure: settings and the visible GPUs in, a layout or every mistake out.
//!
//! Indices count within the parent's `CUDA_VISIBLE_DEVICES`, as the guide says, and are mapped through it, so that a
//! supervisor inside a container or beside another tenant never touches a GPU that was not given to it. Where the variable is not
//! set, GPUs are counted: by NVML where it answers, else by what the driver shows in `/proc`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use grail_settings::{ConfigError, ConfigErrors, Generation, Proof, ProofSlots, Settings};
use grail_supervision::gpu::Nvml;

/// Where the driver shows the GPUs of the host, unless it runs in a sandbox such as gVisor.
const DRIVER_FOLDER: &str = "/proc/driver/nvidia/gpus";
/// Longest wait for NVML's count: without persistence mode the driver is loaded for it.
const COUNT_PATIENCE: Duration = Duration::from_secs(30);

/// Who said how many GPUs there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CountSource {
    /// `CUDA_VISIBLE_DEVICES`.
    Variable,
    /// The driver's library.
    Nvml,
    /// `/proc/driver/nvidia/gpus`, where NVML does not answer.
    Driver,
    /// Neither answers.
    #[default]
    Nobody,
}

impl fmt::Display for CountSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable => write!(formatter, "by CUDA_VISIBLE_DEVICES"),
            Self::Nvml => write!(formatter, "by NVML's count"),
            Self::Driver => write!(formatter, "by {DRIVER_FOLDER}, as NVML (libnvidia-ml.so.1) does not answer"),
            Self::Nobody => {
                write!(
                    formatter,
                    "as NVML (libnvidia-ml.so.1) does not answer and {DRIVER_FOLDER} is not there: no NVIDIA driver"
                )
            }
        }
    }
}

/// GPUs of a host without `CUDA_VISIBLE_DEVICES`, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Installed {
    /// How many.
    pub count: usize,
    /// Who says so.
    pub source: CountSource,
}

impl Installed {
    /// NVML sees what was given to this container; `/proc` may show every GPU of the host (CDI), or nothing at all (gVisor). So it
    /// is believed where it answers.
    pub fn judge(nvml: Option<usize>, proc: Option<usize>) -> Self {
        match (nvml, proc) {
            (Some(count), _) => Self { count, source: CountSource::Nvml },
            (None, Some(count)) => Self { count, source: CountSource::Driver },
            (None, None) => Self::default(),
        }
    }

    /// Asks both. It may take a while.
    fn look() -> Self {
        let proc = std::fs::read_dir(Path::new(DRIVER_FOLDER)).map(|entries| entries.flatten().count()).ok();
        Self::judge(Nvml::uuids_within(COUNT_PATIENCE).map(|uuids| uuids.len()), proc)
    }
}

/// The GPUs this process may use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VisibleGpus {
    /// In order, as `CUDA_VISIBLE_DEVICES` names them (index or UUID).
    pub gpus: Vec<String>,
    /// Who says so.
    pub source: CountSource,
}

impl VisibleGpus {
    /// From the variable where it is set, else all that are `installed`. A negative entry ends the list, as CUDA does.
    ///
    /// # Errors
    /// An entry that names no device, or one twice: CUDA would use fewer GPUs than are listed, and not say so.
    pub fn new(variable: Option<&str>, installed: impl FnOnce() -> Installed) -> Result<Self, ConfigError> {
        let Some(list) = variable else {
            let Installed { count, source } = installed();
            return Ok(Self { gpus: (0..count).map(|index| index.to_string()).collect(), source });
        };
        let list = list.trim();
        let (mut gpus, mut known): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
        for entry in list.strip_suffix(',').unwrap_or(list).split(',').map(str::trim).filter(|_| !list.is_empty()) {
            if entry.strip_prefix('-').is_some_and(is_number) {
                break;
            }
            let device = device(entry).map_err(|why| refused(list, entry, &why))?;
            // Identifiers are hexadecimal: upper and lower case are the same.
            let same = device.to_ascii_lowercase();
            if known.contains(&same) {
                return Err(refused(list, entry, "the same device twice: every process needs a GPU of its own"));
            }
            known.push(same);
            gpus.push(device);
        }
        Ok(Self { gpus, source: CountSource::Variable })
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The device that an entry names: an index, or an identifier as `nvidia-smi -L` shows it.
fn device(entry: &str) -> Result<String, String> {
    let identifier = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit() || b"-/".contains(&byte));
    let of_mig = |text: &str| identifier(text.strip_prefix("GPU-").unwrap_or(text));
    if is_number(entry) {
        let digits = entry.trim_start_matches('0');
        return Ok(if digits.is_empty() { "0".into() } else { digits.into() });
    }
    if entry.strip_prefix("GPU-").is_some_and(|rest| identifier(rest) && !rest.contains('/'))
        || entry.strip_prefix("MIG-").is_some_and(of_mig)
    {
        return Ok(entry.into());
    }
    let hint = match entry {
        _ if entry.contains(['\'', '"']) => "quotes are part of the value: take them out",
        _ if entry.split_once('-').is_some_and(|(first, last)| is_number(first) && is_number(last)) => {
            "not a device (a range): list each one"
        }
        "all" | "none" | "void" => "not a device (a word of container runtimes)",
        _ => "not a device: an index, GPU-... or MIG-... as nvidia-smi -L shows them",
    };
    Err(hint.into())
}

fn refused(list: &str, entry: &str, why: &str) -> ConfigError {
    let reason = format!("has {entry:?}, which is {why}");
    ConfigError { key: "CUDA_VISIBLE_DEVICES".into(), value: Some(format!("{list:?}")), origin: None, reason }
}

/// One proof worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofSlot {
    /// Number of the slot.
    pub slot: u32,
    /// Its GPU as `CUDA_VISIBLE_DEVICES` names it; `None` for the CPU.
    pub gpu: Option<String>,
}

/// The layout of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// GPUs of each generation server that is started here, one after the other; none for the embedded engine.
    pub generation: Vec<Vec<String>>,
    /// One worker each.
    pub proof: Vec<ProofSlot>,
    /// Who says which GPUs there are.
    pub counted: CountSource,
}

impl Plan {
    /// Judges the layout.
    ///
    /// # Errors
    /// Every GPU that is out of range or used twice (the guide's `ProtocolViolationError`), with the setting that names it.
    pub fn new(generation: &Generation, proof: &Proof, visible: &VisibleGpus) -> Result<Self, Vec<ConfigError>> {
        let mut claims = Claims { visible, taken: BTreeMap::new(), errors: Vec::new() };
        let width = if generation.backend == "embedded" || generation.cpu { 0 } else { generation.tensor_parallel };
        if width > 1
            && let Some(instance) = visible.gpus.iter().find(|gpu| gpu.starts_with("MIG-"))
        {
            let reason = format!("needs whole GPUs: CUDA gives a process one MIG instance, and {instance} is one");
            let value = Some(width.to_string());
            claims.errors.push(ConfigError { key: "generation.tensor_parallel".into(), value, origin: None, reason });
        }
        let launched = if generation.servers.is_empty() { generation.replicas } else { 0 };
        let generation = (0..launched)
            .map(|replica| {
                let first = generation.gpu.saturating_add(replica.saturating_mul(width));
                (first..first.saturating_add(width)).filter_map(|index| claims.claim(index, "generation.gpu")).collect()
            })
            .collect();
        let proof = match &proof.slots {
            ProofSlots::Cpu(slots) => (0..*slots).map(|slot| ProofSlot { slot, gpu: None }).collect(),
            ProofSlots::Gpus(indices) => {
                let gpus = indices.iter().filter_map(|index| claims.claim(*index, "proof.gpus"));
                (0..).zip(gpus).map(|(slot, gpu)| ProofSlot { slot, gpu: Some(gpu) }).collect()
            }
        };
        if claims.errors.is_empty() { Ok(Self { generation, proof, counted: visible.source }) } else { Err(claims.errors) }
    }
}

impl Plan {
    /// Names the servers' GPUs by index: vLLM up to 0.20.1 makes a number of each entry of `CUDA_VISIBLE_DEVICES` and dies of a UUID.
    /// Indices count in the order of PCI addresses, as every child is told (`CUDA_DEVICE_ORDER`). MIG instances have none and stay.
    ///
    /// # Errors
    /// A UUID that none of the GPUs has, or that several begin with.
    fn number_generation_gpus(&mut self, uuids: impl FnOnce() -> Option<Vec<String>>) -> Result<(), Vec<ConfigError>> {
        let named = |gpu: &&mut String| gpu.starts_with("GPU-");
        if !self.generation.iter_mut().flatten().any(|gpu| named(&gpu)) {
            return Ok(());
        }
        let Some(uuids) = uuids() else {
            tracing::warn!("NVML does not answer: vLLM gets its GPUs by UUID, which only releases after 0.20.1 understand.");
            return Ok(());
        };
        let mut errors = Vec::new();
        for gpu in self.generation.iter_mut().flatten().filter(named) {
            match index_of(gpu, &uuids) {
                Ok(index) => *gpu = index.to_string(),
                Err(reason) => errors.push(ConfigError {
                    key: "CUDA_VISIBLE_DEVICES".into(),
                    value: Some(gpu.clone()),
                    origin: None,
                    reason: format!("{reason}; compare with nvidia-smi -L"),
                }),
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

/// The place of the one GPU whose UUID begins with `gpu`.
fn index_of(gpu: &str, uuids: &[String]) -> Result<usize, String> {
    let wanted = gpu.to_ascii_lowercase();
    let mut found = uuids.iter().enumerate().filter(|(_, uuid)| uuid.to_ascii_lowercase().starts_with(&wanted));
    match (found.next(), found.next()) {
        (Some((index, _)), None) => Ok(index),
        (Some(_), Some(_)) => Err("is the beginning of several GPUs' UUIDs".into()),
        (None, _) => Err(format!("is none of the {} GPU(s) that NVML shows", uuids.len())),
    }
}

/// Whether a folder can be libtorch's: the worker would take another one in its place, and not say so.
fn has_libtorch(folder: &Path) -> Result<(), ConfigError> {
    let refuse = |reason: String| {
        let value = Some(folder.display().to_string());
        ConfigError { key: "proof.library_path".into(), value, origin: None, reason }
    };
    let unreadable = |error| refuse(format!("cannot be read: {error}; give the folder that holds libtorch_cpu.so"));
    let is_libtorch = |name: &str| name.starts_with("libtorch") && name.contains(".so");
    let mut entries = std::fs::read_dir(folder).map_err(unreadable)?.flatten();
    if entries.any(|entry| entry.file_name().to_str().is_some_and(is_libtorch)) {
        return Ok(());
    }
    Err(refuse("holds no libtorch*.so; in an installed wheel it is <site-packages>/torch/lib".into()))
}

struct Claims<'a> {
    visible: &'a VisibleGpus,
    taken: BTreeMap<u32, &'static str>,
    errors: Vec<ConfigError>,
}

impl Claims<'_> {
    fn claim(&mut self, index: u32, key: &'static str) -> Option<String> {
        let Some(gpu) = self.visible.gpus.get(index as usize) else {
            let (count, source) = (self.visible.gpus.len(), self.visible.source);
            let cpu = if count == 0 {
                "; on a machine without one set proof.device = \"cpu\" and generation.backend = \"embedded\" (or generation.device = \"cpu\")"
            } else {
                ""
            };
            return self.refuse(
                key,
                index,
                format!("is out of range: {count} GPU(s) are visible to this process, {source}{cpu}"),
            );
        };
        match self.taken.insert(index, key) {
            None => Some(gpu.clone()),
            Some(other) => {
                self.refuse(key, index, format!("is used twice: {other} has it already; every process needs a GPU of its own"))
            }
        }
    }

    fn refuse(&mut self, key: &str, index: u32, reason: String) -> Option<String> {
        match self.errors.iter_mut().find(|error| error.key == key && error.reason == reason) {
            // The same of several is one mistake.
            Some(error) => error.value = error.value.take().map(|others| format!("{others}, {index}")),
            None => self.errors.push(ConfigError { key: key.into(), value: Some(format!("GPU {index}")), origin: None, reason }),
        }
        None
    }
}

/// The layout of the host, with every mistake at once.
///
/// # Errors
/// GPUs that are out of range or used twice.
pub fn of_host(settings: &Settings) -> Result<Plan, ConfigErrors> {
    let generation = &settings.generation;
    let serves = generation.servers.is_empty() && generation.backend != "embedded" && !generation.cpu;
    // A driver that is sick may take its time to answer; who needs no GPU does not ask it.
    let ask = serves || matches!(settings.proof.slots, ProofSlots::Gpus(_));
    let installed = || if ask { Installed::look() } else { Installed::default() };
    let visible = VisibleGpus::new(settings.visible_gpus.as_deref(), installed);
    let visible = visible.map_err(|error| ConfigErrors(vec![error]))?;
    let mut plan = Plan::new(generation, &settings.proof, &visible);
    if let Ok(plan) = &mut plan
        && generation.backend == "vllm"
    {
        plan.number_generation_gpus(|| Nvml::uuids_within(COUNT_PATIENCE)).map_err(ConfigErrors)?;
    }
    let libraries = settings.proof.library_path.as_deref().map_or(Ok(()), has_libtorch);
    match (plan, libraries) {
        (Ok(plan), Ok(())) => Ok(plan),
        (plan, libraries) => Err(ConfigErrors(plan.err().into_iter().flatten().chain(libraries.err()).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings of SGLang on one GPU.
    fn sglang() -> Generation {
        Generation {
            backend: "sglang".into(),
            gpu: 0,
            tensor_parallel: 1,
            replicas: 1,
            servers: Vec::new(),
            servers_cache: None,
            python: "python3".into(),
            cpu: false,
            memory_share: Some(0.9),
            max_running: 64,
            disable_cuda_graph: false,
            link_folder: None,
            tokenizer: None,
            extra: Default::default(),
            max_model_length: 1,
            max_concurrent: 1,
            groups_in_flight: grail_settings::GroupsInFlight::Auto,
            server_timeout: 1.0,
            threads: 1,
            dtype: "auto".into(),
        }
    }

    fn proof() -> Proof {
        Proof { slots: ProofSlots::Cpu(1), threads: 1, dtype: "auto".into(), numerics: Default::default(), library_path: None }
    }

    fn plan(gpu: u32, tensor_parallel: u32, proof: &[u32], visible: &str) -> Result<Plan, String> {
        let generation = Generation { gpu, tensor_parallel, ..sglang() };
        let proof = Proof { slots: ProofSlots::Gpus(proof.to_vec()), ..self::proof() };
        Plan::new(&generation, &proof, &VisibleGpus::new(Some(visible), Installed::default).unwrap())
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn indices_are_mapped_through_the_visible_ones() {
        let plan = plan(0, 2, &[2, 3], "4,GPU-5,6,7").unwrap();
        assert_eq!(plan.generation, [["4", "GPU-5"]]);
        assert_eq!(plan.proof.iter().map(|slot| slot.gpu.as_deref().unwrap()).collect::<Vec<_>>(), ["6", "7"]);
    }

    #[test]
    fn replicas_have_gpus_of_their_own_one_after_the_other() {
        let generation = |replicas, tensor_parallel| Generation { replicas, tensor_parallel, ..sglang() };
        let proof = |gpus: Vec<u32>| Proof { slots: ProofSlots::Gpus(gpus), ..proof() };
        let visible = VisibleGpus::new(Some("0,1,2,3,4"), Installed::default).unwrap();
        for (replicas, tensor_parallel) in [(1, 4), (2, 2), (4, 1)] {
            let plan = Plan::new(&generation(replicas, tensor_parallel), &proof(vec![4]), &visible).unwrap();
            assert_eq!(plan.generation.concat(), ["0", "1", "2", "3"]);
            assert!(plan.generation.iter().all(|gpus| gpus.len() == tensor_parallel as usize));
        }
        let elsewhere = Generation { servers: vec!["http://10.0.0.2:30000".into()], ..sglang() };
        let plan = Plan::new(&elsewhere, &proof(vec![0]), &visible).unwrap();
        assert!(plan.generation.is_empty(), "no GPU of this host is for servers that run elsewhere");
        let errors = Plan::new(&generation(3, 2), &proof(vec![3]), &visible).unwrap_err();
        let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert!(text[0].contains("GPU 5 is out of range") && text[1].contains("GPU 3 is used twice"), "{text:?}");
    }

    #[test]
    fn every_mistake_is_named() {
        let error = plan(2, 4, &[3, 9], "0,1,2,3").unwrap_err();
        assert!(error.contains("generation.gpu = GPU 4, 5 is out of range: 4 GPU(s)"), "{error}");
        assert!(error.contains("proof.gpus = GPU 3 is used twice: generation.gpu has it"), "{error}");
        assert!(error.contains("proof.gpus = GPU 9 is out of range"), "{error}");
    }

    #[test]
    fn nothing_is_visible_after_minus_one() {
        assert!(VisibleGpus::new(Some("-1"), || panic!("nobody is asked where the variable is set")).unwrap().gpus.is_empty());
        assert!(plan(0, 1, &[0], "").unwrap_err().contains("proof.device = \"cpu\""));
    }

    #[test]
    fn gpus_are_counted_by_nvml_where_it_answers_and_the_source_is_told() {
        for (nvml, proc, count, source) in [
            (Some(2), Some(8), 2, CountSource::Nvml),
            (Some(8), None, 8, CountSource::Nvml),
            (Some(0), Some(8), 0, CountSource::Nvml),
            (None, Some(4), 4, CountSource::Driver),
            (None, None, 0, CountSource::Nobody),
        ] {
            assert_eq!(Installed::judge(nvml, proc), Installed { count, source });
        }
        let visible = VisibleGpus::new(None, || Installed::judge(Some(2), Some(8))).unwrap();
        assert_eq!(visible.gpus, ["0", "1"]);
        let proof = Proof { slots: ProofSlots::Gpus(vec![2]), ..proof() };
        for (nvml, word) in [(Some(2), "2 GPU(s) are visible to this process, by NVML's count"), (None, "no NVIDIA driver")] {
            let visible = VisibleGpus::new(None, || Installed::judge(nvml, None)).unwrap();
            let errors = Plan::new(&sglang(), &proof, &visible).unwrap_err();
            assert!(errors.iter().any(|error| error.to_string().contains(word)), "{errors:?}");
        }
    }

    #[test]
    fn a_folder_without_libtorch_is_refused_as_the_workers_library_path() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| has_libtorch(path).unwrap_err().to_string();
        assert!(refused(folder.path()).contains("holds no libtorch*.so"), "{}", refused(folder.path()));
        assert!(refused(&folder.path().join("none")).contains("proof.library_path"), "{}", refused(&folder.path().join("none")));
        std::fs::write(folder.path().join("libtorch_cpu.so"), "").unwrap();
        has_libtorch(folder.path()).unwrap();
    }

    #[test]
    fn vllm_gets_indices_where_uuids_are_given_and_the_others_keep_their_names() {
        let uuids = || Some(["GPU-aa11", "GPU-bb22", "GPU-bb33"].map(str::to_owned).to_vec());
        let plan = |visible: &str| plan(0, 2, &[2], visible).unwrap();
        let mut numbered = plan("GPU-BB22,GPU-aa,GPU-bb33");
        numbered.number_generation_gpus(uuids).unwrap();
        assert_eq!(numbered.generation, [["1", "0"]], "in the order that was given");
        assert_eq!(numbered.proof[0].gpu.as_deref(), Some("GPU-bb33"), "a proof worker takes a UUID");
        let mut by_index = plan("5,6,7");
        by_index.number_generation_gpus(|| panic!("an index needs no NVML")).unwrap();
        assert_eq!(by_index.generation, [["5", "6"]]);
        for (visible, words) in [("GPU-bb,0,1", "several GPUs' UUIDs"), ("0,GPU-cc,1", "none of the 3 GPU(s)")] {
            let errors = plan(visible).number_generation_gpus(uuids).unwrap_err();
            assert!(errors.len() == 1 && errors[0].to_string().contains(words), "{errors:?}");
        }
        let mut unknown = plan("GPU-aa,GPU-bb22,0");
        unknown.number_generation_gpus(|| None).unwrap();
        assert_eq!(unknown.generation, [["GPU-aa", "GPU-bb22"]], "newer releases take them");
    }

    #[test]
    fn the_same_mistake_of_several_gpus_is_one_line() {
        let error = plan(0, 1, &[1, 2, 3, 4], "0,1").unwrap_err();
        assert!(error.starts_with("proof.gpus = GPU 2, 3, 4 is out of range") && error.lines().count() == 1, "{error}");
    }

    #[test]
    fn what_names_no_device_is_refused_with_the_reason() {
        for (list, word) in
            [("'0'", "quotes"), ("0-3", "a range"), ("none", "container runtimes"), ("0,,1", "not a device"), ("1,01", "twice")]
        {
            let error = VisibleGpus::new(Some(list), Installed::default).unwrap_err().to_string();
            assert!(error.contains("CUDA_VISIBLE_DEVICES") && error.contains(word), "{error}");
        }
        let mig = VisibleGpus::new(Some("MIG-aaaa,MIG-bbbb"), Installed::default).unwrap();
        let errors = Plan::new(&Generation { tensor_parallel: 2, ..sglang() }, &proof(), &mig).unwrap_err();
        assert!(errors[0].to_string().contains("MIG instance"), "{errors:?}");
    }
}
