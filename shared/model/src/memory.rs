//! Memory of the device that a model computes on, for whoever chooses the size of batches.

use std::path::{Path, PathBuf};

use tch::{Device, TchError};

use crate::native;

/// Bytes that can still be taken on `device`.
///
/// On CUDA: what the driver has free; blocks that libtorch holds without using them are not in it until [`empty_cache`] gives
/// them back. On the CPU: the kernel's estimate of available memory, or what the tightest control group above this process
/// leaves, if that is less. `None` where nobody tells.
pub fn free_memory(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(index) => native::cuda_free(index).ok(),
        Device::Cpu => {
            let available = available(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
            Some(control_groups().iter().filter_map(|folder| left_in(folder)).fold(available, u64::min))
        }
        _ => None,
    }
}

/// Gives the blocks that libtorch holds without using them back to the device; nothing on the CPU.
///
/// # Errors
/// When the device has failed.
pub fn empty_cache(device: Device) -> Result<(), TchError> {
    if device.is_cuda() { native::cuda_empty_cache() } else { Ok(()) }
}

/// The most bytes that tensors took on a CUDA device since the last call; `None` on the CPU, where nobody counts.
///
/// # Errors
/// When the device has failed.
pub fn take_peak(device: Device) -> Result<Option<u64>, TchError> {
    match device {
        Device::Cuda(index) => native::cuda_take_peak(index).map(Some),
        _ => Ok(None),
    }
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Folders of the control groups (version 2) of this process, the innermost first.
fn control_groups() -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(own) = text.lines().find_map(|line| line.strip_prefix("0::/")) else { return Vec::new() };
    let root = Path::new("/sys/fs/cgroup");
    root.join(own).ancestors().take_while(|folder| folder.starts_with(root)).map(Path::to_path_buf).collect()
}

/// What a control group leaves of its limit; page cache that can be dropped at once counts as free. `None` without a limit.
fn left_in(folder: &Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let limit: u64 = read("memory.max")?.trim().parse().ok()?;
    let current: u64 = read("memory.current")?.trim().parse().ok()?;
    let droppable = read("memory.stat")
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok()));
    Some(limit.saturating_sub(current.saturating_sub(droppable.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_tells() {
        let meminfo = "MemTotal:       100 kB\nMemFree:  1 kB\nMemAvailable:   64 kB\n";
        assert_eq!(available(meminfo), Some(65_536));
        assert_eq!(available("MemTotal: 1 kB\n"), None);

        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(group.path().join(name), text).unwrap();
        assert_eq!(left_in(group.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(left_in(group.path()), None);
        write("memory.max", "1000\n");
        assert_eq!(left_in(group.path()), Some(300));
        write("memory.stat", "anon 400\ninactive_file 200\n");
        assert_eq!(left_in(group.path()), Some(500));
        write("memory.max", "100\n");
        assert_eq!(left_in(group.path()), Some(0));
    }

    #[test]
    fn this_machine_has_memory_and_the_cpu_no_cache_to_empty() {
        assert!(free_memory(Device::Cpu).unwrap() > 1 << 20);
        empty_cache(Device::Cpu).unwrap();
        assert_eq!(take_peak(Device::Cpu).unwrap(), None);
    }
}
