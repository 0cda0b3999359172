//! What a worker makes of bad checkpoints, a bad disk, bad frames and bad arguments: the real program over a raw socket.

// The lints spare test functions only, not what they share.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use grail_link::message::{ApplyCommand, FromWorker, ProofJob, ProofSequence, ReloadCommand, Revision, ToWorker, WorkerHello};
use grail_link::{MAX_FRAME_BYTES, decode_frame, encode_frame};
use grail_model::Checkpoint;

const LIMIT: Duration = Duration::from_secs(60);
const ARGUMENTS: [&str; 6] = ["--slot", "3", "--dtype", "f32", "--threads", "1"];

/// A worker and this test as its supervisor.
struct Peer {
    child: Child,
    stream: UnixStream,
    hello: WorkerHello,
    _folder: tempfile::TempDir,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // By its handle, hence by its pid; it may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_grail-proof-worker"));
    command.env_clear().env("OMP_WAIT_POLICY", "passive").arg("--socket").arg(socket).args(ARGUMENTS);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

impl Peer {
    fn start(more: &[&str], environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("w.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let child = program(&socket).args(more).envs(environment.iter().copied()).spawn().unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let hello = match receive(&stream) {
            FromWorker::Hello(hello) => hello,
            other => panic!("want Hello, got {other:?}"),
        };
        Self { child, stream, hello, _folder: folder }
    }

    fn loaded(environment: &[(&str, &str)]) -> Self {
        let mut peer = Self::start(&[], environment);
        peer.reload(30, &vector()).unwrap();
        peer
    }

    fn ask(&mut self, command: &ToWorker) -> FromWorker {
        self.stream.write_all(&encode_frame(command).unwrap()).unwrap();
        receive(&self.stream)
    }

    /// The hash of what is resident then, or why the checkpoint was refused.
    fn reload(&mut self, window: u64, directory: &Path) -> Result<String, String> {
        match self.ask(&reload(window, directory)) {
            FromWorker::Reloaded(reloaded) => Ok(reloaded.weights_hash),
            FromWorker::ReloadRefused { reason, .. } => Err(reason),
            other => panic!("want an answer to a reload, got {other:?}"),
        }
    }

    /// The sketches of a fixed sequence under the weights of window 30, which must be resident.
    fn sketches(&mut self) -> Vec<u32> {
        let tokens = (0..40).map(|position| position * 37 % 512).collect();
        let sequence =
            ProofSequence { tokens, prompt_length: 8, coefficients: std::array::from_fn(|index| index as i8 * 8 - 60) };
        let job = ProofJob { id: 1, revision: revision(30), sequences: vec![sequence], examine: None };
        let proof = match self.ask(&ToWorker::Prove(job)) {
            FromWorker::Sequence(proof) => proof,
            other => panic!("want Sequence, got {other:?}"),
        };
        assert!(matches!(receive(&self.stream), FromWorker::JobDone { .. }));
        proof.sketches
    }

    /// Waits for the end: the exit code, and what was written to standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap().code(), text)
    }
}

fn receive(mut stream: &UnixStream) -> FromWorker {
    let mut frame = vec![0; 12];
    stream.read_exact(&mut frame).unwrap();
    let length = u32::from_le_bytes(frame[4..8].try_into().unwrap()) as usize;
    frame.resize(12 + length, 0);
    stream.read_exact(&mut frame[12..]).unwrap();
    decode_frame(&frame).unwrap()
}

fn vector() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/grail/model-qwen2-f32")
}

fn revision(window: u64) -> Revision {
    Revision { window, weights_hash: "0".repeat(32) }
}

fn reload(window: u64, directory: &Path) -> ToWorker {
    ToWorker::Reload(ReloadCommand { revision: revision(window), directory: directory.to_owned(), manifest: Default::default() })
}

/// The header of the vector's weights as text, and the bytes of its tensors.
fn weights() -> (String, Vec<u8>) {
    let bytes = std::fs::read(vector().join("model.safetensors")).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (String::from_utf8(bytes[8..end].to_vec()).unwrap(), bytes[end..].to_vec())
}

/// A checkpoint of the given parts; the configuration is the vector's with `from` replaced by `to`.
fn checkpoint(header: &str, tensors: &[u8], (from, to): (&str, &str)) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(vector().join("config.json")).unwrap();
    std::fs::write(directory.path().join("config.json"), config.replace(from, to)).unwrap();
    let parts = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), tensors].concat();
    std::fs::write(directory.path().join("model.safetensors"), parts).unwrap();
    directory
}

#[test]
fn a_bad_checkpoint_is_refused_by_name_and_the_old_weights_go_on_serving() {
    let mut peer = Peer::loaded(&[]);
    let sketches = peer.sketches();
    let (header, tensors) = weights();
    let same = ("", "");
    let with_last = |value: f32| [&tensors[..tensors.len() - 4], &value.to_le_bytes()].concat();
    let extra =
        format!(",\"model.extra.weight\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[{0},{0}]}}}}", tensors.len());
    let cases = [
        (checkpoint(&header, &with_last(f32::NAN), same), "NaN or infinity at element"),
        (checkpoint(&header, &with_last(f32::NEG_INFINITY), same), "NaN or infinity at element"),
        (checkpoint(&header.replace("model.norm.weight", "model.nurm.weight"), &tensors, same), "model.norm.weight is missing"),
        (
            checkpoint(&(header.trim_end().strip_suffix('}').unwrap().to_owned() + &extra), &tensors, same),
            "model.extra.weight is unexpected",
        ),
        (checkpoint(&header.replacen("[512,64]", "[64,512]", 1), &tensors, same), "shape [64, 512], want [512, 64]"),
        (checkpoint(&header.replacen("F32", "I32", 1), &tensors, same), "stored as I32"),
        (checkpoint(&header, &tensors[..tensors.len() / 2], same), "not a valid safetensors file"),
        (checkpoint(&header, &tensors, ("\"rope_theta\": 10000.0", "\"rope_theta\": 50000.0")), "describes another model"),
        (checkpoint(&header, &tensors, ("\"qwen2\"", "\"gpt2\"")), "gpt2"),
    ];
    for (directory, word) in &cases {
        let reason = peer.reload(60, directory.path()).unwrap_err();
        assert!(reason.contains(word), "want {word:?}, got {reason:?}");
        assert_eq!(peer.sketches(), sketches, "after {word:?}");
    }
    let good = checkpoint(&header, &with_last(0.25), same);
    assert_eq!(peer.reload(60, good.path()).unwrap(), Checkpoint::open(good.path()).unwrap().weights_hash().unwrap());
}

/// A file that changes the last element of the last tensor.
fn changes(folder: &Path, value: f32) -> PathBuf {
    let (header, _) = weights();
    let header: serde_json::Value = serde_json::from_str(&header).unwrap();
    let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    let (name, last) = tensors.max_by_key(|(_, info)| info["data_offsets"][1].as_u64()).unwrap();
    let elements: u64 = last["shape"].as_array().unwrap().iter().map(|side| side.as_u64().unwrap()).product();
    let header = serde_json::json!({
        format!("{name}.positions"): {"dtype": "U32", "shape": [1], "data_offsets": [0, 4]},
        format!("{name}.values"): {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    })
    .to_string();
    let position = u32::try_from(elements - 1).unwrap();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &position.to_le_bytes(), &value.to_le_bytes()];
    let path = folder.join(format!("changes-{value}"));
    std::fs::write(&path, file.concat()).unwrap();
    path
}

#[test]
fn changes_from_a_file_lead_to_the_same_weights_as_the_whole_checkpoint() {
    let mut peer = Peer::loaded(&[]);
    let sketches = peer.sketches();
    let folder = tempfile::tempdir().unwrap();
    let (header, tensors) = weights();
    let whole = checkpoint(&header, &[&tensors[..tensors.len() - 4], &0.25_f32.to_le_bytes()].concat(), ("", ""));
    let want = Checkpoint::open(whole.path()).unwrap().weights_hash().unwrap();
    let apply = |peer: &mut Peer, from, hash: &str, file| {
        let to = Revision { window: 60, weights_hash: hash.into() };
        match peer.ask(&ToWorker::Apply(ApplyCommand { from: revision(from), revision: to, files: vec![file] })) {
            FromWorker::Reloaded(reloaded) => Ok(reloaded.weights_hash),
            FromWorker::ReloadRefused { reason, .. } => Err(reason),
            other => panic!("want an answer to a change, got {other:?}"),
        }
    };
    let good = changes(folder.path(), 0.25);
    let cases = [
        (0, want.as_str(), good.clone(), "is resident"),
        (30, &want, changes(folder.path(), f32::NAN), "NaN"),
        (30, &want, folder.path().join("absent"), "cannot be read"),
        (30, &want, changes(folder.path(), 0.5), "put back"),
    ];
    for (from, hash, file, word) in cases {
        let reason = apply(&mut peer, from, hash, file).unwrap_err();
        assert!(reason.contains(word), "want {word:?}, got {reason}");
        assert_eq!(peer.sketches(), sketches, "what was resident goes on serving after {word:?}");
    }
    assert_eq!(apply(&mut peer, 30, &want, good).unwrap(), want);
}

/// Compiles the library that stands in for a bad disk.
fn faulty_disk(folder: &Path) -> PathBuf {
    let library = folder.join("faulty_disk.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faulty_disk/preload.c");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").status().unwrap();
    assert!(built.success());
    library
}

#[test]
fn a_copy_that_breaks_off_leaves_unfit_weights_and_ends_the_worker_with_its_own_code() {
    let folder = tempfile::tempdir().unwrap();
    let library = faulty_disk(folder.path());
    for (fault, word) in [("eio", "cannot be read"), ("truncate", "was written to after it was opened")] {
        let (header, tensors) = weights();
        let new = checkpoint(&header, &tensors, ("", ""));
        let path = new.path().to_str().unwrap();
        let environment = [("LD_PRELOAD", library.to_str().unwrap()), ("FAULTY_PATH", path), ("FAULT", fault)];
        let mut peer = Peer::loaded(&environment);
        peer.stream.write_all(&encode_frame(&reload(60, new.path())).unwrap()).unwrap();
        let (code, log) = peer.end();
        assert_eq!(code, Some(70), "{log}");
        assert!(log.contains("class=\"weights unfit\"") && log.contains(word) && log.contains(path), "want {word:?} in {log}");
    }
}

#[test]
fn a_damaged_frame_ends_the_worker_with_the_reason() {
    let mut damaged = encode_frame(&reload(60, &vector())).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    let mut peer = Peer::start(&[], &[]);
    peer.stream.write_all(&damaged).unwrap();
    let (code, log) = peer.end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("checksum") && log.contains("The link to the supervisor broke"), "{log}");
}

#[test]
fn a_frame_that_is_too_large_is_refused_and_the_worker_lives() {
    let mut peer = Peer::loaded(&[]);
    let mut header = encode_frame(&reload(60, &vector())).unwrap()[..12].to_vec();
    header[4..8].copy_from_slice(&(MAX_FRAME_BYTES as u32 + 1).to_le_bytes());
    peer.stream.write_all(&header).unwrap();
    peer.stream.write_all(&vec![7; MAX_FRAME_BYTES + 1]).unwrap();
    match receive(&peer.stream) {
        FromWorker::FrameRefused { reason } => assert!(reason.contains("larger than the limit"), "{reason}"),
        other => panic!("want FrameRefused, got {other:?}"),
    }
    assert!(!peer.sketches().is_empty());
}

#[test]
fn numerics_that_cannot_be_had_are_refused_before_libtorch_starts() {
    let workspace = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8");
    let cases = [
        ("--precision-tuning=3", "--attention=eager", None, "use 0, 1 or 2"),
        ("--precision-tuning=2", "--attention=eager", None, "export CUBLAS_WORKSPACE_CONFIG=:4096:8"),
        ("--precision-tuning=2", "--attention=eager", Some(("CUBLAS_WORKSPACE_CONFIG", ":8:8")), "it is \":8:8\""),
        ("--precision-tuning=2", "--attention=sdpa", Some(workspace), "leave --attention out"),
        ("--precision-tuning=1", "--attention=flash", None, "use sdpa or eager"),
    ];
    for (tuning, attention, variable, word) in cases {
        let output = program(Path::new("/no/such/socket")).args([tuning, attention]).envs(variable).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{log}");
        assert!(log.contains(word) && !log.contains("The proof worker starts"), "want {word:?} in {log}");
    }
}

#[test]
fn the_hello_names_what_the_worker_computes_with() {
    let mut peer = Peer::start(
        &["--precision-tuning", "2"],
        &[("CUBLAS_WORKSPACE_CONFIG", ":16:8"), ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")],
    );
    let hello = peer.hello.clone();
    assert_eq!((hello.pid, hello.slot, hello.dtype.as_str()), (peer.child.id(), 3, "f32"));
    assert_eq!((hello.attention.as_str(), hello.precision_tuning, hello.mode.as_str()), ("eager", 2, "exact"));
    assert!(hello.libtorch.starts_with("2.11"), "{hello:?}");
    if hello.device == "cpu" {
        assert!(hello.device_name.starts_with("cpu ") && hello.driver.is_none(), "{hello:?}");
    } else {
        assert!(hello.driver.is_some(), "{hello:?}");
    }
    peer.reload(30, &vector()).unwrap();
    assert_eq!(peer.sketches().len(), 40);
    peer.stream.shutdown(std::net::Shutdown::Both).unwrap();
    let (code, log) = peer.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(
        log.contains("deterministic algorithms on") && log.contains("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 switches TF32 on"),
        "{log}"
    );
}
