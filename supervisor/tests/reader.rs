//! A checkpoint's template and tokenizer are a stranger's program: what they do ends a child, and nothing else. The child is the
//! real one.

// The lint spares test functions only, not what they share. Tests signal processes and measure time.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use grail_environments::{ChatTokenizer, ThinkingMode};
use grail_process::{Limits, Spawner, proc};
use grail_subnet::reader::{Bounds, ReadError, Reader, Readers};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// What does not come within this time never comes.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(1);
const MODE: ThinkingMode = ThinkingMode::Instructed;

/// A folder with a checkpoint's texts, and readers.
struct Room {
    folder: tempfile::TempDir,
    readers: Readers,
}

impl Room {
    /// Where nothing is to be left: no machine is so slow.
    fn new() -> Self {
        Self::with_answers_of(LONG)
    }

    /// Smaller than the product's, so that leaving them takes less time.
    fn with_answers_of(answer: Duration) -> Self {
        let limits = Limits { stack: 8 << 20, memory: 512 << 20 };
        Self::within(Bounds { limits, load: LONG, answer, patience: 5 * LONG })
    }

    fn within(bounds: Bounds) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/checkpoint-a");
        std::fs::create_dir(folder.path().join("checkpoint")).unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
            std::fs::copy(demo.join(name), folder.path().join("checkpoint").join(name)).unwrap();
        }
        let program = PathBuf::from(env!("CARGO_BIN_EXE_grail-supervisor"));
        let readers = Readers::of_program(program, Spawner::start().unwrap(), folder.path().join("run"), bounds);
        Self { folder, readers }
    }

    fn checkpoint(&self) -> PathBuf {
        self.folder.path().join("checkpoint")
    }

    fn template(&self, text: &str) {
        std::fs::write(self.checkpoint().join("chat_template.jinja"), text).unwrap();
    }

    fn tokenizer(&self, change: impl FnOnce(&mut Value)) {
        let path = self.checkpoint().join("tokenizer.json");
        let mut document: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut document);
        std::fs::write(path, document.to_string()).unwrap();
    }

    async fn open(&self, identity: &str) -> Result<Reader, ReadError> {
        self.readers.open(&self.checkpoint(), MODE, identity).await
    }

    /// Processes that were started for this room, by their command lines.
    fn processes(&self) -> Vec<u32> {
        let folder = self.folder.path().display().to_string();
        let children = proc::children(std::process::id()).unwrap();
        let line = |pid: u32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        children.into_iter().filter(|pid| String::from_utf8_lossy(&line(*pid)).contains(&folder)).collect()
    }

    async fn one_process(&self, but: u32) -> u32 {
        let end = Instant::now() + LONG;
        loop {
            if let Some(pid) = self.processes().into_iter().find(|pid| *pid != but) {
                return pid;
            }
            assert!(Instant::now() < end, "no reader within a minute");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Ids of an ordinary completion.
fn completion(length: u32, seed: u32) -> Vec<u32> {
    (0..length).map(|place| 3 + place.wrapping_mul(2_654_435_761).wrapping_add(seed) % 300).collect()
}

/// As many at once as sixteen rollouts of seventy-two groups are.
#[tokio::test(flavor = "multi_thread")]
async fn a_wave_of_completions_is_answered_at_once_and_rightly() {
    let room = Room::new();
    let own = ChatTokenizer::open(&room.checkpoint()).unwrap();
    let reader = room.open("a").await.unwrap();
    assert_eq!(reader.eos_token_id(), own.eos_token_id());
    let waits: Vec<_> = (0..1152).map(|seed| async move { (seed, completion(512, seed)) }).collect();
    let begun = Instant::now();
    let answers = futures::future::join_all(waits.into_iter().map(|wait| {
        let reader = reader.clone();
        async move {
            let (_, ids) = wait.await;
            (reader.text(&ids).await.unwrap(), ids)
        }
    }));
    let answers = answers.await;
    let taken = begun.elapsed();
    let begun = Instant::now();
    for (text, ids) in &answers {
        assert_eq!(*text, own.decode(ids).unwrap());
    }
    println!(
        "1152 completions of 512 tokens: {taken:?} with a reader, {:?} one after the other in this process",
        begun.elapsed()
    );
    assert!(taken < 2 * LONG, "{taken:?}");
    for question in ["Why?", "", "<|im_end|>é\u{1F600}\r\n"] {
        assert_eq!(reader.prompt_ids(question).await.unwrap(), own.prompt_ids(question, MODE).unwrap(), "{question:?}");
    }
    assert_eq!(room.processes().len(), 1, "one warm child");
    drop(reader);
    room.readers.stop().await;
    assert!(room.processes().is_empty());
}

/// Replaces every byte by ten, so many times.
fn growing(times: usize) -> Value {
    let tenfold = |_| json!({"type": "Replace", "pattern": {"Regex": "[\\s\\S]"}, "content": "aaaaaaaaaa"});
    json!({"type": "Sequence", "normalizers": (0..times).map(tenfold).collect::<Vec<_>>()})
}

type Change = fn(&Room);

/// What a checkpoint can do to whoever reads it, each with the computing time that an answer may take, where that is what ends it,
/// and with words of which its refusal says one.
const ATTACKS: [(&str, Duration, Change, &[&str]); 6] = [
    (
        "nested values",
        LONG,
        |room| {
            room.template(
                "{% set ns = namespace(x=[]) %}{% for a in range(400) %}{% for b in range(500) %}{% set ns.x = [ns.x] %}{% endfor %}\
                 {% endfor %}{{ ns.x }}",
            );
        },
        &["KiB of stack", "ended (signal", "chat template"],
    ),
    (
        "an indent",
        LONG,
        |room| {
            room.template("{% set s = '\\n' * 3000000 %}{% for i in range(9) %}{% set s = s | indent(2000, true, true) %}{% endfor %}{{ s | length }}")
        },
        &["MiB of memory", "chat template"],
    ),
    (
        "kept strings",
        SHORT,
        |room| {
            room.template(
                "{% set ns = namespace(x=[]) %}{% for i in range(4000) %}{% set ns.x = ns.x + ['x' * 2000000 ~ i] %}{% endfor %}{{ ns.x \
                 | length }}",
            );
        },
        &["MiB of memory", "computing time", "chat template"],
    ),
    (
        "a slow template",
        SHORT,
        |room| {
            room.template(
                "{% set s = 'x' * 3000000 %}{% for i in range(300) %}{% for j in range(300) %}{% if s.replace('xy', 'z') == 'q' %}{% \
                 endif %}{% endfor %}{% endfor %}ok",
            );
        },
        &["computing time", "chat template"],
    ),
    (
        "a normalizer",
        SHORT,
        |room| room.tokenizer(|document| document["normalizer"] = growing(9)),
        &["MiB of memory", "computing time"],
    ),
    (
        "a catastrophic regex",
        SHORT,
        |room| {
            let pattern = json!({"Regex": "^(([a-z ])+.)+[A-Z]([a-z ])+$|(?:(?:a+)+)+[^a]$"});
            let hostile = json!({"type": "Replace", "pattern": pattern, "content": "b"});
            let long = json!({"type": "Prepend", "prepend": "a".repeat(4000)});
            room.tokenizer(|document| document["normalizer"] = json!({"type": "Sequence", "normalizers": [long, hostile]}));
        },
        &["panicked", "retry-limit", "computing time"],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_a_checkpoint_does_to_its_reader_is_its_refusal_and_is_remembered() {
    for (name, answer, change, words) in ATTACKS {
        let room = Room::with_answers_of(answer);
        change(&room);
        let begun = Instant::now();
        let error = room.open("hostile").await.unwrap_err();
        println!("{name}: {error} ({:?})", begun.elapsed());
        let ReadError::Refused(why) = &error else { panic!("{name}: {error}") };
        assert!(words.iter().any(|word| why.contains(word)), "{name}: {why}");
        // Refused once: nothing is started again, whatever lies there.
        std::fs::remove_dir_all(room.checkpoint()).unwrap();
        assert_eq!(room.open("hostile").await.unwrap_err(), error, "{name}");
        assert!(room.processes().is_empty(), "{name}");
        let another = room.open("another").await.unwrap_err();
        assert!(another.to_string().contains("cannot be read"), "{another}");
    }
}

/// Whatever the renderer bounds by itself: the kernel bounds the rest.
#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_holds_a_reader_to_its_bounds() {
    let bounds = Bounds { answer: SHORT, ..Bounds::default() };
    let small = Room::within(Bounds { limits: Limits { stack: 8 << 20, memory: 96 << 20 }, answer: LONG, ..bounds });
    small.tokenizer(|document| document["normalizer"] = growing(6));
    let error = small.open("").await.unwrap_err().to_string();
    assert!(error.contains("needed more than 96 MiB of memory"), "{error}");
    let slow = Room::within(bounds);
    // A hundred thousand letters, turned to and fro.
    let turn = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"Regex": from}, "content": to});
    let turns = (0..2000).map(|time| if time % 2 == 0 { turn("a", "b") } else { turn("b", "a") });
    let all: Vec<Value> = [json!({"type": "Prepend", "prepend": "a".repeat(100_000)})].into_iter().chain(turns).collect();
    slow.tokenizer(|document| document["normalizer"] = json!({"type": "Sequence", "normalizers": all}));
    let error = slow.open("").await.unwrap_err().to_string();
    assert!(error.contains("took more than 1 s of computing time"), "{error}");
}

/// Killed from outside, as by the kernel when memory runs out: what was open is asked again.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_killed_costs_no_answer() {
    let room = Room::new();
    let own = ChatTokenizer::open(&room.checkpoint()).unwrap();
    let reader = room.open("a").await.unwrap();
    let wanted: Vec<_> = (0..600).map(|seed| completion(1024, seed)).collect();
    let asked = futures::future::join_all(wanted.iter().map(|ids| reader.text(ids)));
    let killer = async {
        let mut before = 0;
        for _ in 0..3 {
            before = room.one_process(before).await;
            kill(Pid::from_raw(before.cast_signed()), Signal::SIGKILL).unwrap();
        }
    };
    let (answers, ()) = tokio::join!(asked, killer);
    for (answer, ids) in answers.into_iter().zip(&wanted) {
        assert_eq!(answer.unwrap(), own.decode(ids).unwrap());
    }
    // One that ends while nobody asks is replaced at once, and the next question does not notice.
    let idle = room.one_process(0).await;
    kill(Pid::from_raw(idle.cast_signed()), Signal::SIGKILL).unwrap();
    room.one_process(idle).await;
    assert_eq!(reader.prompt_ids("Why?").await.unwrap(), own.prompt_ids("Why?", MODE).unwrap());
}

/// One question that kills readers costs its own answer only, again and again only so often.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadly_question_costs_itself_and_then_the_checkpoint() {
    let bounds = Bounds { limits: Limits { stack: 8 << 20, memory: 256 << 20 }, answer: LONG, ..Bounds::default() };
    let room = Room::within(bounds);
    // Harmless words pass; one letter is a hundred megabytes and more.
    room.tokenizer(|document| {
        let mut steps = growing(0)["normalizers"].as_array().cloned().unwrap();
        for (from, to) in [("Ω", "Ψ".repeat(2000)), ("Ψ", "Φ".repeat(1000)), ("Φ", "ab".to_owned())] {
            steps.push(json!({"type": "Replace", "pattern": {"String": from}, "content": to}));
        }
        document["normalizer"] = json!({"type": "Sequence", "normalizers": steps});
    });
    let reader = room.open("deadly").await.unwrap();
    for strike in 1..=3 {
        let questions: Vec<String> =
            (0..40).map(|place| if place == 17 { "Ω".repeat(4) } else { format!("What is {place}?") }).collect();
        let answers = futures::future::join_all(questions.iter().map(|question| reader.prompt_ids(question))).await;
        for (place, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(ids) => assert!(place != 17 && !ids.is_empty()),
                // After the third nobody is asked any more.
                Err(ReadError::Refused(why)) => {
                    assert!((place == 17 || strike == 3) && why.contains("MiB of memory"), "{place}: {why}")
                }
                Err(error) => panic!("{place}: {error}"),
            }
        }
    }
    let refused =
        |error: ReadError| matches!(error, ReadError::Refused(why) if why.contains("goes beyond what a reader may take"));
    assert!(refused(reader.prompt_ids("Why?").await.unwrap_err()));
    assert!(refused(room.open("deadly").await.unwrap_err()), "and a new one is not begun");
}

/// The supervisor itself never touches them: only the child's side names the type that does.
#[test]
fn only_the_child_loads_a_tokenizer_or_renders_a_template() {
    fn files(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { files(&path, found) } else { found.push(path) }
        }
    }
    let (mut found, supervisor) = (Vec::new(), Path::new(env!("CARGO_MANIFEST_DIR")));
    files(&supervisor.join("src"), &mut found);
    // What is linked into it, but for the crate that defines them.
    for room in ["mining", "settings", "subnet", "supervision", "validation", "workers"] {
        files(&supervisor.join("../shared").join(room).join("src"), &mut found);
    }
    let names = ["ChatTokenizer", "Prompt::of_seed", "Prompt::of_task", "tokenizers::", "chat::render"];
    let touches = |path: &PathBuf| names.iter().any(|name| std::fs::read_to_string(path).unwrap().contains(name));
    let touching: Vec<PathBuf> = found.into_iter().filter(touches).collect();
    assert!(touching.len() == 1 && touching[0].ends_with("reader/program.rs"), "{touching:?}");
}
