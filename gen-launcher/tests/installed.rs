//! The launcher with SGLang and vLLM as they behave, without their packages: a Python that has modules of their names.

// The lint spares test functions only, not what they share.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use grail_link::message::{FromLauncher, ReloadCommand, Revision, ToLauncher};
use grail_link::{Connection, Listener};
use grail_process::{Child, Launch, Spawner, environment};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use tokio::io::AsyncReadExt;

const LIMIT: Duration = Duration::from_secs(60);

struct Rig {
    child: Child,
    _spawner: Spawner,
    link: Connection<FromLauncher, ToLauncher>,
    log: tokio::task::JoinHandle<String>,
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
        python(folder.path(), package, release);
        Self::with(folder, backend, &[]).await
    }

    /// With the stand-in that lies in the folder already.
    async fn with(folder: tempfile::TempDir, backend: &str, more: &[&str]) -> Self {
        Self::with_secrets(folder, backend, more, "").await
    }

    async fn with_secrets(folder: tempfile::TempDir, backend: &str, more: &[&str], secrets: &str) -> Self {
        let python = folder.path().join("python");
        let listener = Listener::bind(&folder.path().join("run").join("g.sock")).unwrap();
        let mut arguments: Vec<std::ffi::OsString> = vec!["--backend".into(), backend.into(), "--python".into(), python.into()];
        arguments.extend(["--tensor-parallel", "2", "--memory-share", "0.88", "--context-length", "4096"].map(Into::into));
        arguments.extend(["--disable-cuda-graph", "--max-running-requests", "512", "--socket"].map(Into::into));
        arguments.push(listener.path().into());
        arguments.extend(["--link-folder".into(), folder.path().into(), "--probes".into(), folder.path().join("probes").into()]);
        arguments.extend(more.iter().map(Into::into));
        let launch = Launch {
            name: "gen-launcher".into(),
            program: env!("CARGO_BIN_EXE_grail-gen-launcher").into(),
            arguments,
            environment: environment::for_child(
                std::env::vars_os(),
                [("CUDA_VISIBLE_DEVICES".into(), "GPU-a,MIG-b".into()), ("GRAIL_SERVER_SECRETS".into(), secrets.into())],
            ),
        };
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(launch).await.unwrap();
        let mut output = child.take_output().unwrap();
        let log = tokio::spawn(async move {
            let mut text = String::new();
            let _ = output.stderr.read_to_string(&mut text).await;
            text
        });
        let link = tokio::time::timeout(LIMIT, listener.accept(child.pid())).await.unwrap().unwrap();
        let mut rig = Self { child, _spawner: spawner, link, log, folder };
        assert_eq!(rig.receive().await, FromLauncher::Hello { pid: rig.child.pid(), backend: backend.into() });
        rig
    }

    /// Ends the launcher as the supervisor does, and leaves the folder for another one.
    async fn end(self) -> tempfile::TempDir {
        let Self { mut child, link, folder, .. } = self;
        drop(link);
        assert!(tokio::time::timeout(LIMIT, child.exited()).await.unwrap().success());
        folder
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
    let folder = tempfile::tempdir().unwrap();
    let refused = rig.reload(120, not_a_number(folder.path())).await;
    assert!(
        matches!(&refused, FromLauncher::ReloadRefused { reason, .. } if reason.contains("model.norm.weight")),
        "{refused:?}"
    );
    assert_eq!(rig.calls(), Vec::<String>::new(), "it would take them, and answer with token 0 for ever");
    rig.wish("refuse");
    let refused = rig.reload(150, checkpoint()).await;
    assert!(matches!(&refused, FromLauncher::ReloadRefused { reason, .. } if reason.contains("no weights")), "{refused:?}");
    assert_eq!(rig.calls().last().unwrap(), "/continue_generation");
}

/// A copy of the checkpoint, whole and of the right form, with one weight that is no number.
fn not_a_number(folder: &Path) -> PathBuf {
    for entry in std::fs::read_dir(checkpoint()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let mut tensors: Vec<_> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    let norm = tensors.iter_mut().find(|(name, ..)| name == "model.norm.weight").unwrap();
    norm.3[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let views = tensors.iter().map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &path).unwrap();
    folder.to_owned()
}

#[tokio::test]
async fn what_the_help_says_is_remembered_until_the_installation_changes() {
    let mut rig = Rig::start("sglang", "sglang", "0.5.23").await;
    serving(&rig.reload(30, checkpoint()).await, 30);
    let folder = rig.end().await;
    let path = folder.path().to_owned();
    let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap().lines().count();
    assert_eq!((read("helps"), read("argv")), (1, 1));
    let mut rig = Rig::with(folder, "sglang", &[]).await;
    serving(&rig.reload(60, checkpoint()).await, 60);
    let folder = rig.end().await;
    assert_eq!((read("helps"), read("argv")), (1, 2), "a second start asks nothing");

    // Another release under the same interpreter, and then a file that was edited where it lies.
    let site = folder.path().join("site");
    let (facts, newer) = (site.join("sglang-0.5.23.dist-info"), site.join("sglang-0.5.24.dist-info"));
    std::fs::rename(&facts, &newer).unwrap();
    std::fs::write(newer.join("METADATA"), "Metadata-Version: 2.1\nName: sglang\nVersion: 0.5.24\n").unwrap();
    let mut rig = Rig::with(folder, "sglang", &[]).await;
    serving(&rig.reload(90, checkpoint()).await, 90);
    let folder = rig.end().await;
    assert_eq!(read("helps"), 2, "another release is asked");
    let module = folder.path().join("site/sglang/launch_server.py");
    let edited = std::fs::read_to_string(&module).unwrap() + "# edited\n";
    std::fs::write(&module, edited).unwrap();
    let mut rig = Rig::with(folder, "sglang", &[]).await;
    serving(&rig.reload(120, checkpoint()).await, 120);
    let folder = rig.end().await;
    assert_eq!(read("helps"), 3, "an edited one too");

    // What is remembered of this installation, but damaged, names no flag that is needed: the start fails, and the next asks.
    let memory = folder.path().join("probes/SGLang.help");
    let text = std::fs::read_to_string(&memory).unwrap();
    std::fs::write(&memory, text.split_once('\n').unwrap().0.to_owned() + "\n--port").unwrap();
    let mut rig = Rig::with(folder, "sglang", &[]).await;
    let refused = rig.reload(150, checkpoint()).await;
    assert!(matches!(&refused, FromLauncher::ReloadRefused { .. }), "{refused:?}");
    serving(&rig.reload(180, checkpoint()).await, 180);
    assert_eq!(read("helps"), 4);
}

#[tokio::test]
async fn a_start_that_makes_no_progress_is_ended_with_its_last_lines() {
    let folder = tempfile::tempdir().unwrap();
    python(folder.path(), "sglang", "0.5.23");
    // A third of the time may pass in which nothing moves.
    let mut rig = Rig::with(folder, "sglang", &["--ready-timeout", "18"]).await;
    rig.wish("hang");
    rig.order(30, checkpoint()).await;
    let status = tokio::time::timeout(LIMIT, rig.child.exited()).await.unwrap();
    let log = rig.log.await.unwrap();
    assert_eq!(status.code(), Some(1), "another process may well load the same weights: the launcher begins anew\n{log}");
    let told = log.lines().find(|line| line.contains("makes no progress")).unwrap_or_else(|| panic!("{log}"));
    assert!(told.contains("Init torch distributed begin.") && told.contains("python3 "), "{told}");
    assert_eq!(std::fs::read_to_string(rig.folder.path().join("argv")).unwrap().lines().count(), 1);
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

#[tokio::test]
async fn a_release_that_needs_a_gpu_to_tell_its_flags_is_asked_with_its_own() {
    let mut rig = Rig::start("sglang", "sglang", "0.5.23").await;
    rig.wish("needs_gpu");
    serving(&rig.reload(30, checkpoint()).await, 30);
    assert_eq!(rig.text("helps").lines().count(), 1, "with every GPU hidden it tells nothing");
}

#[tokio::test]
async fn the_servers_keys_are_on_no_command_line_and_every_request_carries_the_one_it_needs() {
    const KEY: &str = "c4n4ry-0001";
    // SGLang alone knows one for administrators.
    let both = format!("--api-key\n{KEY}\n--admin-api-key\n{KEY}-admin");
    let one = format!("--api-key\n{KEY}");
    for (backend, package, release, secrets) in [("sglang", "sglang", "0.5.23", both), ("vllm", "vllm_cpu", "0.23.0", one)] {
        let folder = tempfile::tempdir().unwrap();
        python(folder.path(), package, release);
        // A launcher that was killed has left one, which somebody opened to everybody.
        std::fs::DirBuilder::new().mode(0o700).create(folder.path().join("run")).unwrap();
        std::fs::write(folder.path().join("run/g.yaml"), "{}").unwrap();
        let mut rig = Rig::with_secrets(folder, backend, &[], &secrets).await;
        serving(&rig.reload(30, checkpoint()).await, 30);
        serving(&rig.reload(60, checkpoint()).await, 60);
        let argv = rig.text("argv");
        assert!(argv.lines().count() == 1 && !argv.contains(KEY), "{argv}");
        let own = std::fs::read_to_string(format!("/proc/{}/cmdline", rig.child.pid())).unwrap();
        assert!(own.contains("--backend") && !own.contains(KEY), "{own}");
        if backend == "sglang" {
            let config = rig.text("config");
            let (mode, path) = config.trim().split_once(' ').unwrap();
            assert!(mode == "600" && !Path::new(path).exists(), "{config}");
            assert!(!rig.text("environment").contains(KEY));
        }
        let Rig { child, link, log, folder: _folder, .. } = rig;
        drop(link);
        let mut child = child;
        assert!(tokio::time::timeout(LIMIT, child.exited()).await.unwrap().success());
        let log = log.await.unwrap();
        assert!(log.contains("A generation server is started") && !log.contains(KEY), "{log}");
    }
}
