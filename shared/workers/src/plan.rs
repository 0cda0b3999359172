//! Which process gets which GPU. Pure: settings and the visible GPUs in, a layout or every mistake out.
//!
//! Indices count within the parent's `CUDA_VISIBLE_DEVICES`, as the guide says, and are mapped through it, so that a
//! supervisor inside a container or beside another tenant never touches a GPU that was not given to it.

use std::collections::BTreeMap;

use grail_settings::{ConfigError, ConfigErrors, Generation, Proof, ProofSlots, Settings};

/// The GPUs this process may use, in order, as `CUDA_VISIBLE_DEVICES` names them (index or UUID).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VisibleGpus(pub Vec<String>);

impl VisibleGpus {
    /// From the variable where it is set, else all `installed` GPUs of the host. A negative entry ends the list, as CUDA does.
    ///
    /// # Errors
    /// An entry that names no device, or one twice: CUDA would use fewer GPUs than are listed, and not say so.
    pub fn new(variable: Option<&str>, installed: usize) -> Result<Self, ConfigError> {
        let Some(list) = variable else { return Ok(Self((0..installed).map(|index| index.to_string()).collect())) };
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
        Ok(Self(gpus))
    }

    /// GPUs the NVIDIA driver of this host shows, without loading any of its libraries.
    pub fn installed() -> usize {
        std::fs::read_dir("/proc/driver/nvidia/gpus").map(|entries| entries.flatten().count()).unwrap_or(0)
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
            && let Some(instance) = visible.0.iter().find(|gpu| gpu.starts_with("MIG-"))
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
        if claims.errors.is_empty() { Ok(Self { generation, proof }) } else { Err(claims.errors) }
    }
}

struct Claims<'a> {
    visible: &'a VisibleGpus,
    taken: BTreeMap<u32, &'static str>,
    errors: Vec<ConfigError>,
}

impl Claims<'_> {
    fn claim(&mut self, index: u32, key: &'static str) -> Option<String> {
        let Some(gpu) = self.visible.0.get(index as usize) else {
            let count = self.visible.0.len();
            let cpu = if count == 0 {
                "; on a machine without one set proof.device = \"cpu\" and generation.backend = \"embedded\" (or generation.device = \"cpu\")"
            } else {
                ""
            };
            return self.refuse(key, index, format!("is out of range: {count} GPU(s) are visible to this process{cpu}"));
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
    let visible = VisibleGpus::new(settings.visible_gpus.as_deref(), VisibleGpus::installed());
    let visible = visible.map_err(|error| ConfigErrors(vec![error]))?;
    Plan::new(&settings.generation, &settings.proof, &visible).map_err(ConfigErrors)
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
            memory_share: 0.9,
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

    fn plan(gpu: u32, tensor_parallel: u32, proof: &[u32], visible: &str) -> Result<Plan, String> {
        let generation = Generation { gpu, tensor_parallel, ..sglang() };
        let proof =
            Proof { slots: ProofSlots::Gpus(proof.to_vec()), threads: 1, dtype: "auto".into(), numerics: Default::default() };
        Plan::new(&generation, &proof, &VisibleGpus::new(Some(visible), 0).unwrap())
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
        let proof = |gpus: Vec<u32>| Proof {
            slots: ProofSlots::Gpus(gpus),
            threads: 1,
            dtype: "auto".into(),
            numerics: Default::default(),
        };
        let visible = VisibleGpus::new(Some("0,1,2,3,4"), 0).unwrap();
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
        assert_eq!(VisibleGpus::new(Some("-1"), 8).unwrap(), VisibleGpus::default());
        assert_eq!(VisibleGpus::new(None, 2).unwrap().0, ["0", "1"]);
        assert!(plan(0, 1, &[0], "").unwrap_err().contains("proof.device = \"cpu\""));
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
            let error = VisibleGpus::new(Some(list), 8).unwrap_err().to_string();
            assert!(error.contains("CUDA_VISIBLE_DEVICES") && error.contains(word), "{error}");
        }
        let mig = VisibleGpus::new(Some("MIG-aaaa,MIG-bbbb"), 0).unwrap();
        let proof = Proof { slots: ProofSlots::Cpu(1), threads: 1, dtype: "auto".into(), numerics: Default::default() };
        let errors = Plan::new(&Generation { tensor_parallel: 2, ..sglang() }, &proof, &mig).unwrap_err();
        assert!(errors[0].to_string().contains("MIG instance"), "{errors:?}");
    }
}
