//! The real program and the device it was told to compute on, with stubs in the place of libtorch's CUDA half.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test starts programs and may panic")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use grail_link::message::{FromWorker, ToWorker, WorkerHello};
use grail_link::{Connection, Listener};
use grail_process::{Launch, Spawner, environment};
use tokio::io::AsyncReadExt;

const LIMIT: Duration = Duration::from_secs(60);
/// The exit code for "libtorch, driver and GPU do not go together" (README).
const UNUSABLE: i32 = 86;

/// A `libtorch_cuda.so` that leaves `loaded` in its folder when it is loaded.
fn stub(folder: &Path, missing_part: bool) -> PathBuf {
    let source = folder.join("stub.c");
    let part = if missing_part {
        "extern int grail_test_part_of_nvshmem(void);\nint whole(void) { return grail_test_part_of_nvshmem(); }"
    } else {
        ""
    };
    let marker = folder.join("loaded");
    let text = format!(
        "#include <stdio.h>\n{part}\n__attribute__((constructor)) static void come(void) {{ FILE *f = fopen(\"{}\", \"w\"); if (f) fclose(f); }}\n",
        marker.display()
    );
    std::fs::write(&source, text).unwrap();
    let compiler = std::env::var("CC").unwrap_or("cc".into());
    let made = Command::new(compiler)
        .args(["-shared", "-fPIC", "-o"])
        .arg(folder.join("libtorch_cuda.so"))
        .arg(&source)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    marker
}

struct Ended {
    hello: Option<WorkerHello>,
    /// Exit code, where it ended before it said hello.
    code: Option<i32>,
    log: String,
}

/// Starts a worker with `--device`, with `libraries` before all others, and waits for its hello or its end.
async fn start(device: &str, libraries: &Path) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let listener = Listener::bind(&folder.path().join("run").join("w.sock")).unwrap();
    let arguments = ["--slot", "3", "--device", device, "--threads", "1", "--socket"].map(Into::into);
    // No host has so many GPUs: with a whole libtorch and a driver there is none to be seen either.
    let variables = [("LD_LIBRARY_PATH", libraries.as_os_str()), ("CUDA_VISIBLE_DEVICES", "97".as_ref())];
    let launch = Launch {
        name: "proof-worker 3".into(),
        program: env!("CARGO_BIN_EXE_grail-proof-worker").into(),
        arguments: arguments.into_iter().chain([listener.path().into()]).collect(),
        environment: environment::for_child(std::env::vars_os(), variables.map(|(name, value)| (name.into(), value.into()))),
    };
    let spawner = Spawner::start().unwrap();
    let mut child = spawner.spawn(launch).await.unwrap();
    let pid = child.pid();
    let mut stderr = child.take_output().unwrap().stderr;
    let log = tokio::spawn(async move {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text).await;
        text
    });
    let greeted = async {
        let mut link: Connection<FromWorker, ToWorker> = listener.accept(pid).await.unwrap();
        link.inbox.receive().await.unwrap().unwrap()
    };
    let (hello, code) = tokio::select! {
        message = tokio::time::timeout(LIMIT, greeted) => match message.unwrap() {
            FromWorker::Hello(hello) => (Some(hello), None),
            other => panic!("want Hello, got {other:?}"),
        },
        status = child.exited() => (None, status.code()),
    };
    child.kill().await;
    Ended { hello, code, log: log.await.unwrap() }
}

#[tokio::test]
async fn a_worker_that_was_given_a_gpu_ends_where_libtorchs_cuda_half_lacks_a_part_and_tells_the_loaders_words() {
    let libraries = tempfile::tempdir().unwrap();
    stub(libraries.path(), true);
    let ended = start("cuda", libraries.path()).await;
    assert_eq!((ended.code, ended.hello.is_some()), (Some(UNUSABLE), false), "{}", ended.log);
    for words in ["undefined symbol: grail_test_part_of_nvshmem", "LD_LIBRARY_PATH", "systemd", "nvidia-smi -L"] {
        assert!(ended.log.contains(words), "{words:?} is not in\n{}", ended.log);
    }
}

#[tokio::test]
async fn a_worker_that_was_given_a_gpu_ends_where_there_is_no_cuda_half_or_no_such_gpu() {
    let nothing = tempfile::tempdir().unwrap();
    let ended = start("cuda", nothing.path()).await;
    assert_eq!((ended.code, ended.hello.is_some()), (Some(UNUSABLE), false), "{}", ended.log);
    assert!(ended.log.contains("the GPU that was given cannot be computed on: "), "{}", ended.log);
}

#[tokio::test]
async fn a_worker_that_was_given_a_gpu_ends_where_the_cuda_half_loads_and_shows_no_device() {
    let libraries = tempfile::tempdir().unwrap();
    let marker = stub(libraries.path(), false);
    let ended = start("cuda", libraries.path()).await;
    assert!(marker.exists(), "the stub was not loaded: {}", ended.log);
    assert_eq!((ended.code, ended.hello.is_some()), (Some(UNUSABLE), false), "{}", ended.log);
}

#[tokio::test]
async fn a_worker_that_may_choose_says_in_its_hello_why_it_is_on_the_cpu() {
    let libraries = tempfile::tempdir().unwrap();
    stub(libraries.path(), true);
    let ended = start("auto", libraries.path()).await;
    let hello = ended.hello.unwrap_or_else(|| panic!("{:?}: {}", ended.code, ended.log));
    assert_eq!(hello.device, "cpu");
    assert!(hello.device_reason.as_ref().is_some_and(|why| why.contains("grail_test_part_of_nvshmem")), "{hello:?}");
    assert!(ended.log.contains("grail_test_part_of_nvshmem"), "{}", ended.log);
}

#[tokio::test]
async fn a_worker_of_the_cpu_does_not_even_load_the_cuda_half() {
    let libraries = tempfile::tempdir().unwrap();
    let marker = stub(libraries.path(), false);
    let ended = start("cpu", libraries.path()).await;
    let hello = ended.hello.unwrap_or_else(|| panic!("{:?}: {}", ended.code, ended.log));
    assert_eq!((hello.device.as_str(), marker.exists()), ("cpu", false), "{hello:?}");
    assert!(hello.device_reason.is_some(), "{hello:?}");
}
