//! What SGLang and vLLM need beside their packages to start on GPUs: they compile kernels at run time, keep them, and their processes
//! talk to each other through shared memory. Where no such server is started here, nothing of it is needed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use grail_settings::{Generation, Settings};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::host::bytes_text;
use super::row::Row;

const COMPILERS: &str = "compilers";
const CACHES: &str = "caches";
const SHARED_MEMORY: &str = "shared memory";
/// Variables that name a folder where compiled kernels, models and temporary files are kept.
const CACHE_VARIABLES: [&str; 14] = [
    "HOME",
    "XDG_CACHE_HOME",
    "TMPDIR",
    "CUDA_CACHE_PATH",
    "DG_JIT_CACHE_DIR",
    "FLASHINFER_WORKSPACE_BASE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "SGLANG_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCH_EXTENSIONS_DIR",
    "TRITON_CACHE_DIR",
    "TVM_FFI_CACHE_DIR",
    "VLLM_CACHE_ROOT",
];
/// Where the toolkit lies if nobody says so.
const USUAL_TOOLKIT: &str = "/usr/local/cuda";
/// NCCL takes tens of MiB for each pair of processes of a server; Docker gives 64 MiB in all where nothing is said.
const SHARED_BYTES: u64 = 1 << 30;

/// The environment, or a test's.
type Variable<'a> = &'a dyn Fn(&str) -> Option<OsString>;

pub(super) fn rows(settings: &Settings) -> [Row; 3] {
    let generation = &settings.generation;
    if generation.backend == "embedded" || generation.cpu || !generation.servers.is_empty() {
        return [COMPILERS, CACHES, SHARED_MEMORY].map(|what| Row::ok(what, "not needed: no server is started on GPUs here"));
    }
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let shared = statvfs("/dev/shm").map(|disk| disk.blocks().saturating_mul(disk.fragment_size()));
    [
        compilers_row(nvcc(&variable, Path::new(USUAL_TOOLKIT)), ninja(&variable, &generation.python)),
        caches_row(&variable),
        shared_memory_row(shared.map_err(|error| error.to_string()), generation),
    ]
}

/// The first file of this name that can be executed.
fn program(folders: impl IntoIterator<Item = PathBuf>, name: &str) -> Option<PathBuf> {
    folders.into_iter().map(|folder| folder.join(name)).find(|path| path.is_file() && access(path, AccessFlags::X_OK).is_ok())
}

fn on_path(variable: Variable<'_>) -> Vec<PathBuf> {
    variable("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// Where builds look: the toolkit that a variable names, the path, the usual place.
fn nvcc(variable: Variable<'_>, usual: &Path) -> Option<PathBuf> {
    let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).map(|toolkit| Path::new(&toolkit).join("bin"));
    program(named.chain(on_path(variable)).chain([usual.join("bin")]), "nvcc")
}

/// The launcher puts the folder of the server's Python in front of the path.
fn ninja(variable: Variable<'_>, python: &Path) -> Option<PathBuf> {
    let beside = python.parent().filter(|folder| !folder.as_os_str().is_empty()).map(Path::to_path_buf);
    program(beside.into_iter().chain(on_path(variable)), "ninja")
}

fn compilers_row(nvcc: Option<PathBuf>, ninja: Option<PathBuf>) -> Row {
    let told = |name: &str, found: &Option<PathBuf>| {
        found.as_ref().map_or(format!("no {name}"), |path| format!("{name} is {}", path.display()))
    };
    let found = format!("{}; {}", told("nvcc", &nvcc), told("ninja", &ninja));
    let mut remedies = Vec::new();
    if nvcc.is_none() {
        remedies.push("install the CUDA toolkit of the driver's version and set CUDA_HOME to it");
    }
    if ninja.is_none() {
        remedies.push("install ninja into the server's Python (pip install ninja)");
    }
    if remedies.is_empty() {
        return Row::ok(COMPILERS, found);
    }
    let remedy = format!(
        "{}: the server compiles kernels when it starts first, and some of its releases die without",
        remedies.join("; ")
    );
    Row::warning(COMPILERS, found, remedy)
}

/// Whether something can be kept in a folder, or be made where it is to be.
fn can_be_written(folder: &Path) -> bool {
    let place = folder.ancestors().find(|place| place.exists());
    place.is_some_and(|place| place.is_dir() && access(place, AccessFlags::W_OK | AccessFlags::X_OK).is_ok())
}

fn caches_row(variable: Variable<'_>) -> Row {
    let remedy =
        "set it to a folder that this user can write to: compiled kernels are kept there, and without one no server starts";
    if variable("HOME").is_none() {
        return Row::failed(CACHES, "HOME is not set, and caches lie below it where nothing else is said", remedy);
    }
    let set = || CACHE_VARIABLES.into_iter().filter_map(|name| Some((name, PathBuf::from(variable(name)?))));
    let told = |(name, folder): (&str, PathBuf)| format!("{name} ({})", folder.display());
    let refused: Vec<String> = set().filter(|(_, folder)| !can_be_written(folder)).map(told).collect();
    if refused.is_empty() {
        Row::ok(CACHES, format!("can be written to: {}", set().map(told).collect::<Vec<_>>().join(", ")))
    } else {
        Row::failed(CACHES, format!("cannot be written to: {}", refused.join(", ")), remedy)
    }
}

fn shared_memory_row(bytes: Result<u64, String>, generation: &Generation) -> Row {
    let gpus = generation.tensor_parallel;
    match bytes {
        Err(error) => Row::warning(SHARED_MEMORY, format!("/dev/shm cannot be looked at: {error}"), "mount a tmpfs there"),
        Ok(bytes) if gpus > 1 && bytes < SHARED_BYTES => Row::warning(
            SHARED_MEMORY,
            format!("{} at /dev/shm, for {gpus} GPUs of one server that talk through it", bytes_text(bytes)),
            "give it a gigabyte or more (Docker: --shm-size=8g or --ipc=host); NCCL fails without",
        ),
        Ok(bytes) => Row::ok(SHARED_MEMORY, format!("{} at /dev/shm", bytes_text(bytes))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::Verdict;
    use super::*;

    fn executable(folder: &Path, name: &str) -> PathBuf {
        std::fs::create_dir_all(folder).unwrap();
        let path = folder.join(name);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_toolkit_is_found_where_builds_look_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let usual = at("usual");
        let of = |name: &'static str, value: PathBuf| move |asked: &str| (asked == name).then(|| value.clone().into_os_string());
        assert_eq!(nvcc(&|_| None, &usual), None);
        let wanted = executable(&at("usual/bin"), "nvcc");
        assert_eq!(nvcc(&|_| None, &usual), Some(wanted));
        for (name, set, lies) in
            [("PATH", "path", "path"), ("CUDA_PATH", "toolkit", "toolkit/bin"), ("CUDA_HOME", "home", "home/bin")]
        {
            let wanted = executable(&at(lies), "nvcc");
            assert_eq!(nvcc(&of(name, at(set)), &usual), Some(wanted), "{name}");
        }
        // A file that cannot be executed is no compiler.
        std::fs::set_permissions(at("path/nvcc"), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(nvcc(&of("PATH", at("path")), &at("none")), None);
        let beside = executable(&at("venv/bin"), "ninja");
        assert_eq!(ninja(&|_| None, &at("venv/bin/python")), Some(beside));
        assert_eq!(ninja(&|_| None, Path::new("python3")), None);
    }

    #[test]
    fn what_a_server_compiles_with_is_told_and_what_is_missing_has_a_remedy() {
        let both = compilers_row(Some("/cuda/bin/nvcc".into()), Some("/venv/bin/ninja".into()));
        assert!(both.verdict == Verdict::Ok && both.found.contains("/cuda/bin/nvcc"), "{both:?}");
        let row = compilers_row(None, Some("/venv/bin/ninja".into()));
        assert!(row.verdict == Verdict::Warning && row.remedy.is_some_and(|remedy| remedy.contains("CUDA_HOME")));
        let row = compilers_row(Some("/cuda/bin/nvcc".into()), None);
        assert!(row.verdict == Verdict::Warning && row.remedy.is_some_and(|remedy| remedy.contains("pip install ninja")));
    }

    #[test]
    fn caches_must_be_writable_and_the_one_that_is_not_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (home, file) = (folder.path().join("home"), folder.path().join("file"));
        std::fs::write(&file, "").unwrap();
        let of = |triton: PathBuf| {
            let home = home.clone();
            move |asked: &str| match asked {
                "HOME" => Some(home.clone().into_os_string()),
                "TRITON_CACHE_DIR" => Some(triton.clone().into_os_string()),
                _ => None,
            }
        };
        let row = caches_row(&of(folder.path().join("not/yet")));
        assert!(row.verdict == Verdict::Ok && row.found.contains("TRITON_CACHE_DIR"), "{row:?}");
        // A file in the way stops root too.
        let row = caches_row(&of(file.join("below")));
        assert!(
            row.verdict == Verdict::Failed && row.found.contains("TRITON_CACHE_DIR") && !row.found.contains("HOME"),
            "{row:?}"
        );
        let row = caches_row(&|_| None);
        assert!(row.verdict == Verdict::Failed && row.found.contains("HOME is not set"), "{row:?}");
    }

    #[test]
    fn little_shared_memory_is_told_where_gpus_talk_through_it() {
        let text = "[storage]\nlocal_folder = 'bucket'\n[chain]\nnetwork = 'local'\n[wallet]\ndevelopment = '//Alice'\n";
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("host.toml");
        std::fs::write(&file, text).unwrap();
        let loaded = grail_settings::load(&grail_settings::Sources { file: Some(file), ..Default::default() }).unwrap();
        let of = |tensor_parallel| Generation { tensor_parallel, ..loaded.settings.generation.clone() };
        assert_eq!(shared_memory_row(Ok(64 << 20), &of(1)).verdict, Verdict::Ok);
        let row = shared_memory_row(Ok(64 << 20), &of(4));
        assert!(row.verdict == Verdict::Warning && row.found.contains("64.0 MiB"), "{row:?}");
        assert_eq!(shared_memory_row(Ok(8 << 30), &of(4)).verdict, Verdict::Ok);
        assert_eq!(shared_memory_row(Err("no such folder".into()), &of(1)).verdict, Verdict::Warning);
    }
}
