//! NVML as a [`Sensor`].

use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::{Device, Nvml as Library, cuda_driver_version_major, cuda_driver_version_minor};

use super::{GpuProcess, GpuReading, Sensor, SensorError};

/// Processes on one GPU that are told.
const MAX_PROCESSES: usize = 32;
/// The number that stands for an XID which NVML does not name.
const UNNAMED_XID: u32 = 999;

/// The driver's management library, loaded at run time: a host without it is a host without it, not one without a miner.
pub struct Nvml {
    library: &'static Library,
    gpus: Vec<(String, String)>,
    /// `None` where the driver sends no events.
    events: Option<EventSet<'static>>,
    /// GPUs whose XIDs cannot be had, and why.
    without_xids: Vec<(String, String)>,
}

/// The driver as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// Its version, such as `580.65.06`.
    pub version: String,
    /// Major and minor number of the newest CUDA that it runs.
    pub cuda: (i32, i32),
}

/// What one GPU is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its name, such as `NVIDIA H200`.
    pub name: String,
    /// Bytes in use, by anybody.
    pub memory_used: u64,
    /// Bytes there are.
    pub memory_total: u64,
    /// Major and minor number of its compute capability.
    pub capability: (i32, i32),
    /// Whether the driver stays loaded while nobody uses the GPU; `None` where it does not tell.
    pub persistent: Option<bool>,
}

impl Nvml {
    /// Loads the library and asks for the XIDs of `gpus`.
    ///
    /// # Errors
    /// When there is no library or no driver.
    pub fn open(gpus: &[String]) -> Result<Self, SensorError> {
        // Once per process: the library is never unloaded, so that its events may outlive this value.
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| Library::init().map_err(|error| error.to_string()));
        let library = library.as_ref().map_err(|reason| SensorError::Absent(reason.clone()))?;
        let mut sensor = Self { library, gpus: Vec::new(), events: None, without_xids: Vec::new() };
        let mut devices = Vec::new();
        for gpu in gpus {
            // A GPU that cannot be found now is told about with its first reading.
            let Ok(device) = sensor.device(gpu) else { continue };
            let Ok(uuid) = device.uuid() else { continue };
            sensor.gpus.push((gpu.clone(), uuid));
            devices.push((gpu.clone(), device));
        }
        let fresh = || library.create_event_set().map_err(|error| error.to_string());
        let register = |device: &Device<'static>, events| {
            device.register_events(EventTypes::CRITICAL_XID_ERROR, events).map_err(|error| error.to_string())
        };
        (sensor.events, sensor.without_xids) = register_all(&devices, fresh, register);
        Ok(sensor)
    }

    /// UUIDs of the GPUs that this process may see, by index in the order of PCI addresses. A container shows those that were given
    /// to it.
    ///
    /// # Errors
    /// When the library does not answer.
    pub fn uuids(&self) -> Result<Vec<String>, SensorError> {
        let count = self.library.device_count().map_err(|error| SensorError::Lost(error.to_string()))?;
        let uuid = |index: u32| {
            let device = self.library.device_by_index(index).map_err(|error| failure(&index.to_string(), &error))?;
            device.uuid().map_err(|error| failure(&index.to_string(), &error))
        };
        // One that does not answer keeps its index.
        Ok((0..count).map(|index| uuid(index).unwrap_or_default()).collect())
    }

    /// [`Nvml::uuids`], no longer than `patience`: a driver that hangs must not hang who only counts. `None` where nothing answers.
    pub fn uuids_within(patience: Duration) -> Option<Vec<String>> {
        let (answer, answered) = mpsc::channel();
        // Where the driver hangs the thread is left behind; it holds nothing.
        let asked = std::thread::Builder::new().name("nvml-count".into()).spawn(move || {
            let _ = answer.send(Self::open(&[]).and_then(|nvml| nvml.uuids()).ok());
        });
        asked.ok().and_then(|_| answered.recv_timeout(patience).ok()).flatten()
    }

    /// The driver, where it says what it is.
    pub fn driver(&self) -> Option<Driver> {
        let cuda = self.library.sys_cuda_driver_version().ok()?;
        let cuda = (cuda_driver_version_major(cuda), cuda_driver_version_minor(cuda));
        Some(Driver { version: self.library.sys_driver_version().ok()?, cuda })
    }

    /// What a GPU is, named as in `CUDA_VISIBLE_DEVICES`.
    ///
    /// # Errors
    /// When nothing can be known about it.
    pub fn card(&self, gpu: &str) -> Result<Card, SensorError> {
        let device = self.device(gpu)?;
        let failed = |error: NvmlError| failure(gpu, &error);
        let memory = device.memory_info().map_err(failed)?;
        let capability = device.cuda_compute_capability().map_err(failed)?;
        Ok(Card {
            name: device.name().map_err(failed)?,
            memory_used: memory.used,
            memory_total: memory.total,
            capability: (capability.major, capability.minor),
            persistent: device.is_in_persistent_mode().ok(),
        })
    }

    /// A GPU by its index in the order of PCI addresses, or by its UUID or the beginning of it, as CUDA takes them.
    fn device(&self, gpu: &str) -> Result<Device<'static>, SensorError> {
        let library = self.library;
        let failed = |error: NvmlError| failure(gpu, &error);
        if let Ok(index) = gpu.parse() {
            return library.device_by_index(index).map_err(failed);
        }
        for index in 0..library.device_count().map_err(failed)? {
            let device = library.device_by_index(index).map_err(failed)?;
            if device.uuid().is_ok_and(|uuid| uuid.starts_with(gpu)) {
                return Ok(device);
            }
        }
        Err(SensorError::Unwatched { gpu: gpu.into(), reason: "NVML knows no GPU of this name (a MIG instance is none)".into() })
    }

    fn processes(&self, device: &Device<'_>) -> Vec<GpuProcess> {
        let processes = device.running_compute_processes().unwrap_or_default();
        let describe = |process: nvml_wrapper::struct_wrappers::device::ProcessInfo| GpuProcess {
            pid: process.pid,
            program: self.library.sys_process_name(process.pid, 256).unwrap_or_else(|_| "a program".into()),
            bytes: match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            },
        };
        processes.into_iter().take(MAX_PROCESSES).map(describe).collect()
    }
}

fn failure(gpu: &str, error: &NvmlError) -> SensorError {
    match error {
        NvmlError::GpuLost | NvmlError::ResetRequired => SensorError::Gone { gpu: gpu.into(), reason: error.to_string() },
        NvmlError::Uninitialized
        | NvmlError::DriverNotLoaded
        | NvmlError::LibRmVersionMismatch
        | NvmlError::FailedToLoadSymbol(_)
        | NvmlError::LibloadingError(_) => SensorError::Lost(error.to_string()),
        _ => SensorError::Unwatched { gpu: gpu.into(), reason: error.to_string() },
    }
}

/// Registers as many GPUs as let themselves be: with the set of them all, those that do not, and why. A registration that fails takes
/// its set along, so the others begin again without that GPU.
fn register_all<Gpu, Set>(
    gpus: &[(String, Gpu)],
    fresh: impl Fn() -> Result<Set, String>,
    register: impl Fn(&Gpu, Set) -> Result<Set, String>,
) -> (Option<Set>, Vec<(String, String)>) {
    let mut refused: Vec<(String, String)> = Vec::new();
    loop {
        let mut left = gpus.iter().filter(|(name, _)| refused.iter().all(|(other, _)| other != name));
        let filled = fresh().map_err(|reason| (None, reason)).and_then(|set| {
            left.try_fold(set, |set, (name, gpu)| register(gpu, set).map_err(|reason| (Some(name.clone()), reason)))
        });
        match filled {
            Ok(set) => return (Some(set), refused),
            Err((Some(name), reason)) => refused.push((name, reason)),
            Err((None, reason)) => {
                return (None, gpus.iter().map(|(name, _)| (name.clone(), reason.clone())).collect());
            }
        }
    }
}

impl Sensor for Nvml {
    fn without_xids(&self) -> Vec<(String, String)> {
        self.without_xids.clone()
    }

    fn read(&mut self, gpu: &str) -> Result<GpuReading, SensorError> {
        let device = self.device(gpu)?;
        let memory = device.memory_info().map_err(|error| failure(gpu, &error))?;
        let watts = |milliwatts: u32| f64::from(milliwatts) / 1000.0;
        Ok(GpuReading {
            memory_used: memory.used,
            memory_total: memory.total,
            processes: self.processes(&device),
            temperature: device.temperature(TemperatureSensor::Gpu).ok(),
            slowdown_temperature: device.temperature_threshold(TemperatureThreshold::Slowdown).ok(),
            power: device.power_usage().ok().map(watts),
            power_cap: device.enforced_power_limit().ok().map(watts),
            default_power_cap: device.power_management_limit_default().ok().map(watts),
            uncorrected_errors: device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).ok(),
        })
    }

    fn xids(&mut self, wait: Duration) -> Result<Vec<(String, u32)>, SensorError> {
        let Some(events) = &self.events else {
            std::thread::sleep(wait);
            return Ok(Vec::new());
        };
        let event = match events.wait(u32::try_from(wait.as_millis()).unwrap_or(u32::MAX)) {
            Ok(event) => event,
            Err(NvmlError::Timeout) => return Ok(Vec::new()),
            Err(error) => return Err(SensorError::Lost(error.to_string())),
        };
        let xid = match event.event_data {
            Some(XidError::Value(xid)) => u32::try_from(xid).unwrap_or(UNNAMED_XID),
            Some(XidError::Unknown) => UNNAMED_XID,
            None => return Ok(Vec::new()),
        };
        let uuid = event.device.uuid().unwrap_or_default();
        let named = self.gpus.iter().find(|(_, known)| *known == uuid);
        Ok(named.map(|(gpu, _)| (gpu.clone(), xid)).into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registered(gpus: &[&str], refusing: &[&str]) -> (Option<Vec<String>>, Vec<(String, String)>) {
        let gpus: Vec<(String, String)> = gpus.iter().map(|gpu| ((*gpu).to_owned(), format!("uuid {gpu}"))).collect();
        let register = |gpu: &String, mut set: Vec<String>| match refusing.iter().any(|name| *gpu == format!("uuid {name}")) {
            true => Err("not supported".to_owned()),
            false => {
                set.push(gpu.clone());
                Ok(set)
            }
        };
        register_all(&gpus, || Ok(Vec::new()), register)
    }

    #[test]
    fn a_registration_that_fails_costs_that_gpus_xids_alone() {
        assert_eq!(registered(&["0", "1"], &[]), (Some(vec!["uuid 0".into(), "uuid 1".into()]), vec![]));
        let (set, refused) = registered(&["0", "1", "2", "3"], &["0", "2"]);
        assert_eq!(set.unwrap(), ["uuid 1", "uuid 3"], "each of the others once");
        assert_eq!(refused, [("0".into(), "not supported".into()), ("2".into(), "not supported".to_owned())]);
        assert_eq!(registered(&["0"], &["0"]).0, Some(Vec::new()));
    }

    #[test]
    fn a_driver_that_has_no_events_tells_no_xids_at_all() {
        let gpus = [("0".to_owned(), ()), ("1".to_owned(), ())];
        let (set, refused) = register_all(&gpus, || Err::<(), _>("no events".to_owned()), |(), set| Ok(set));
        assert!(set.is_none() && refused.len() == 2, "{refused:?}");
    }
}
