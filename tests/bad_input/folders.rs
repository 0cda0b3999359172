//! Folders that people hand over, and what is told of those that cannot be used.

use std::path::Path;
use std::process::Command;

use grail_tests::{programs, workspace};

use super::{copy_dir, host};

/// A folder as a training run leaves it, and what is wrong with it, told at once; mended, the checkpoint alone is published.
#[test]
fn an_incomplete_folder_is_refused_whole_and_a_training_runs_other_files_are_left_behind() {
    let host = host();
    let copy = host.path().join("copy");
    copy_dir(&workspace().join("demo/checkpoint-a"), &copy);
    let publish = || host.run(&["publish-checkpoint", copy.to_str().unwrap()]);
    let place = |name: &str, text: &str| std::fs::write(copy.join(name), text).unwrap();
    let strangers = ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "pytorch_model.bin", "train.py"];
    strangers.iter().for_each(|name| place(name, "not for miners"));
    // What a trainer writes is no JSON that others would read.
    place("trainer_state.json", r#"{"grad_norm": NaN}"#);
    std::fs::create_dir(copy.join("global_step10")).unwrap();
    std::fs::rename(copy.join("model.safetensors"), copy.join("model-00001-of-00003.safetensors")).unwrap();
    let index = r#"{"weight_map": {"a": "model-00001-of-00003.safetensors", "b": "model-00002-of-00003.safetensors",
        "c": "model-00003-of-00003.safetensors"}}"#;
    place("model.safetensors.index.json", index);
    let (template, tokenizer) = (copy.join("chat_template.jinja"), copy.join("tokenizer.json"));
    let set_aside: Vec<_> = [&template, &tokenizer].map(|path| std::fs::read(path).unwrap()).into();
    [&template, &tokenizer, &copy.join("config.json")].into_iter().for_each(|path| std::fs::remove_file(path).unwrap());
    let refused = publish();
    assert_eq!(refused.code, 65, "{}", refused.stderr);
    for words in [
        "4 mistakes",
        "config.json is missing; save the model",
        "tokenizer.json is missing; save the fast tokenizer",
        "there is no chat template",
        "2 of the 3 shards that model.safetensors.index.json names are missing: model-00002-of-00003.safetensors, model-00003",
    ] {
        assert!(refused.stderr.contains(words), "{words:?} is missing in\n{}", refused.stderr);
    }
    std::fs::write(&template, &set_aside[0]).unwrap();
    std::fs::write(&tokenizer, &set_aside[1]).unwrap();
    let config = std::fs::read_to_string(workspace().join("demo/checkpoint-a/config.json")).unwrap();
    place("config.json", &config);
    std::fs::remove_file(copy.join("model.safetensors.index.json")).unwrap();
    let refused = publish();
    assert!(refused.code == 65 && refused.stderr.contains("nobody knows whether shards are whole"), "{}", refused.stderr);
    std::fs::rename(copy.join("model-00001-of-00003.safetensors"), copy.join("model.safetensors")).unwrap();
    place("config.json", &format!("\u{feff}{config}"));
    let refused = publish();
    let named = refused.stderr.contains("config.json") && refused.stderr.contains("byte order mark");
    assert!(refused.code == 65 && named, "{}", refused.stderr);
    assert!(!host.trainer_bucket().join("grail").exists(), "nothing was sent");
    place("config.json", &config);
    let published = publish();
    assert_eq!(published.code, 0, "{}", published.stderr);
    for name in strangers.into_iter().chain(["trainer_state.json", "global_step10/"]) {
        assert!(published.stdout.contains(name), "{name} is missing in\n{}", published.stdout);
    }
    let sent = files_below(&host.trainer_bucket());
    assert!(sent.iter().any(|name| name == "model.safetensors"), "{sent:?}");
    assert!(!sent.iter().any(|name| strangers.contains(&name.as_str()) || name == "trainer_state.json"), "{sent:?}");
}

fn files_below(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    let names = |path: std::path::PathBuf| match path.is_dir() {
        true => files_below(&path),
        false => vec![path.file_name().unwrap().to_string_lossy().into_owned()],
    };
    entries.flat_map(names).collect()
}

/// What the programs say about things that are not there: each cause once, whoever of them tells it.
#[test]
fn a_cause_is_told_once() {
    const MISSING: &str = "(os error 2)";
    let host = host();
    let nowhere = host.path().join("nowhere");
    let nowhere = nowhere.to_str().unwrap();
    let supervisor = [
        &["publish-checkpoint", nowhere][..],
        &["check", "--dataset", nowhere],
        &["run", "--dataset", nowhere],
        &["plan", "--checkpoint", nowhere, "--gpu-memory", "80"],
        &["simulate", "--host", nowhere],
        &["status"],
        &["explain"],
        &["incident", "--output", &format!("{nowhere}/incident.tar.gz")],
        &["validate", "--test-mode", "--dataset", nowhere],
    ];
    let mut told: Vec<(String, String)> = supervisor
        .into_iter()
        .map(|arguments| (format!("{arguments:?}"), host.run(arguments)))
        .map(|(what, finished)| (what, finished.stderr))
        .collect();
    let socket = format!("{nowhere}/socket");
    for (program, arguments) in [
        ("grail-proof-worker", vec!["--slot", "0", "--threads", "1", "--socket", &socket]),
        ("grail-proof-worker", vec!["bench", "--checkpoint", nowhere]),
        ("grail-gen-launcher", vec!["--socket", &socket, "--backend", "embedded"]),
    ] {
        let output = Command::new(programs().join(program)).args(&arguments).output().unwrap();
        told.push((format!("{program} {arguments:?}"), String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let named = told.iter().filter(|(_, text)| text.contains(MISSING)).count();
    assert!(named * 2 > told.len(), "the cause is told at all: {told:#?}");
    for (what, text) in told {
        let twice = text.lines().find(|line| line.matches(MISSING).count() > 1);
        assert_eq!(twice, None, "{what}\n{text}");
    }
}

/// Some editors begin a text with a mark of its byte order.
#[test]
fn a_byte_order_mark_before_the_configuration_is_passed_over() {
    let host = host();
    let path = host.path().join("host.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
    let explained = host.run(&["config", "explain"]);
    assert_eq!(explained.code, 0, "{}", explained.stderr);
    assert!(explained.stdout.contains("host.toml"), "{}", explained.stdout);
}
