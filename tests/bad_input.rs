//! Bad input: a clear error, the documented exit code, nothing started or lost.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, measure time and may panic; the rules are for the product"
)]

#[path = "bad_input/folders.rs"]
mod folders;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use grail_node::{Setup, TestNode};
use grail_settings::r2_address;
use grail_store::local_server::LocalBucketServer;
use grail_tests::{Finished, Host, free_port, one_at_a_time, programs, workspace};

/// Runs the miner and expects that it refuses before anything is started.
fn refused(host: &Host, arguments: &[&str], code: i32, words: &[&str]) -> Finished {
    let finished = host.start(arguments).finish(Duration::from_secs(120));
    assert_eq!(finished.code, code, "{arguments:?}\n{}\n{}", finished.stdout, finished.stderr);
    for word in words {
        assert!(finished.stderr.contains(word), "{word:?} is missing in\n{}", finished.stderr);
    }
    assert!(!finished.stdout.contains("proof-worker"), "nothing may be started\n{}", finished.stdout);
    assert!(!host.path().join("state/run").exists(), "no socket may be made");
    finished
}

fn host() -> Host {
    Host::new(1.0, 5.0)
}

#[test]
fn an_unknown_key_is_refused_with_a_suggestion_beside_every_other_mistake() {
    let host = host();
    let mut file = std::fs::OpenOptions::new().append(true).open(host.path().join("host.toml")).unwrap();
    writeln!(file, "treads = 4\n[shutdown]\nbudget_seconds = 'soon'").unwrap();
    refused(&host, &["run"], 64, &["proof.treads", "did you mean proof.threads?", "shutdown.budget_seconds", "2 mistake(s)"]);
    assert!(!host.path().join("state").exists());
}

#[test]
fn gpus_out_of_range_or_used_twice_are_refused() {
    let host = host().variable("CUDA_VISIBLE_DEVICES", "0,1");
    let layout = ["--set", "proof.device=cuda", "--set", "generation.backend=sglang", "--set", "generation.tensor_parallel=2"];
    let run = [&["run"], &layout[..], &["--set", "proof.gpus=1,5"]].concat();
    refused(&host, &run, 64, &["proof.gpus = GPU 1 is used twice", "proof.gpus = GPU 5 is out of range: 2 GPU(s)"]);
}

#[test]
fn what_names_no_gpu_is_refused_by_every_command_and_a_broken_env_hides_no_status() {
    let host = host().variable("CUDA_VISIBLE_DEVICES", "0-3");
    for command in ["check", "plan", "run"] {
        refused(&host, &[command], 64, &["CUDA_VISIBLE_DEVICES = \"0-3\"", "a range"]);
    }
    // The file's own line wins over the shell, and the wallet's has words behind its quotes.
    std::fs::write(host.path().join(".env"), "CUDA_VISIBLE_DEVICES=\nBT_WALLET_COLD=\"x\"y\n").unwrap();
    refused(&host, &["check"], 64, &["1 mistake(s)", ".env has a line 2 that is not BT_WALLET_COLD=value"]);
    std::fs::create_dir(host.path().join("state")).unwrap();
    std::fs::write(host.path().join("state/status.json"), "{}").unwrap();
    let shown = host.run(&["status"]);
    assert_eq!((shown.code, shown.stdout.as_str()), (0, "{}"), "{}", shown.stderr);
    assert!(shown.stderr.contains("1 mistake(s)") && shown.stderr.contains("all the same"), "{}", shown.stderr);
    std::fs::write(host.path().join(".env"), "CUDA_VISIBLE_DEVICES=\nNOT A STATEMENT\n").unwrap();
    assert_eq!(host.run(&["check"]).code, 0, "a line that concerns nobody");
}

/// A port that somebody has, GPUs, and a model that is too large for them: one answer names all, and who has the port.
#[test]
fn plan_names_every_mistake_at_once_and_who_has_the_port() {
    let host = host().variable("CUDA_VISIBLE_DEVICES", "0,1,2");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let model = host.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let shape = r#"{"num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 3584, "num_hidden_layers": 28}"#;
    std::fs::write(model.join("config.json"), shape).unwrap();
    // Its size is all that is looked at.
    std::fs::File::create(model.join("model.safetensors")).unwrap().set_len(15 << 30).unwrap();
    let bucket = format!("storage.local_address={address}");
    let plan = ["plan", "--checkpoint", model.to_str().unwrap(), "--gpu-memory", "16", "--set", &bucket];
    let gpus = ["--set", "proof.device=cuda", "--set", "generation.backend=sglang", "--set", "proof.gpus=0,5"];
    let finished = host.run(&[&plan[..], &gpus].concat());
    assert_eq!(finished.code, 64, "{}\n{}", finished.stdout, finished.stderr);
    for words in [
        "5 mistake(s)",
        "proof.gpus = GPU 0 is used twice",
        "proof.gpus = GPU 5 is out of range",
        &format!("storage.local_address = {address} cannot be listened on"),
        &format!("process {} (", std::process::id()),
        "generation.memory_share = 0.9 leaves no room",
        "proof.gpus cannot hold the model: 15.0 GiB",
    ] {
        assert!(finished.stderr.contains(words), "{words:?} is missing in\n{}", finished.stderr);
    }
    // The same host in order: what would be started, and on which ports.
    drop(taken);
    let gpus = ["--set", "proof.device=cuda", "--set", "generation.backend=sglang", "--set", "proof.gpus=2"];
    let larger = ["plan", "--checkpoint", model.to_str().unwrap(), "--gpu-memory", "80", "--set", &bucket];
    let finished = host.run(&[&larger[..], &gpus, &["--set", "generation.tensor_parallel=2"]].concat());
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    for words in [
        "generation: sglang on GPU 0, 1",
        "--tp-size 2",
        "proof-worker 0: GPU 2",
        "127.0.0.1, 20000 to 31999",
        &format!("local bucket server: {address} (free)"),
        "cache: room for",
    ] {
        assert!(finished.stdout.contains(words), "{words:?} is missing in\n{}", finished.stdout);
    }
    assert!(!host.path().join("state/run").exists(), "nothing was started");
}

#[test]
fn a_missing_or_unreadable_wallet_is_refused() {
    let host = host();
    let wallet = ["--set", "wallet.development=", "--set", "wallet.path=wallets"];
    let run = [&["run"], &wallet[..]].concat();
    refused(&host, &run, 77, &["there is no hotkey file", "wallets/default/hotkeys/default", "btcli wallet new_hotkey"]);
    let folder = host.path().join("wallets/default/hotkeys");
    std::fs::create_dir_all(&folder).unwrap();
    let secret = "0x5ec2e7".to_owned() + &"ab".repeat(29);
    std::fs::write(folder.join("default"), format!("{{\"secretSeed\":\"{secret}\",\"ss58Address\":\"5Wrong\"}}")).unwrap();
    let finished = refused(&host, &run, 77, &["holds no usable key"]);
    assert!(!finished.stderr.contains("5ec2e7"), "the secret must not be shown\n{}", finished.stderr);
    std::fs::write(folder.join("default"), "not json").unwrap();
    refused(&host, &run, 77, &["holds no usable key"]);
}

/// The Python miner publishes the write key where the read pair is missing; a bucket or a key that is not right costs income too.
#[test]
fn credentials_that_would_cost_money_never_reach_the_chain() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let account = "a".repeat(32);
    let mut host = host();
    let (node, bucket) = runtime.block_on(async {
        let folder = host.path().join("r2");
        let address = "127.0.0.1:0".parse().unwrap();
        let (key, secret) = ("d".repeat(32), "e".repeat(64));
        let bucket = LocalBucketServer::start(&folder, address, &key, &secret, &[&account]).await.unwrap();
        (TestNode::start(Setup::new(&workspace().join("tests/vectors"))).await, bucket)
    });
    let bucket_endpoint = bucket.endpoint();
    let wallet = host.path().join("wallets/default/hotkeys");
    std::fs::create_dir_all(&wallet).unwrap();
    // //Alice, whom everybody knows.
    let seed = "0xe5be9a5092b81bca64be81d212e7f2f9eba183bb7a90954f7b76361f6edb5c0a";
    let address = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
    std::fs::write(wallet.join("default"), format!("{{\"secretSeed\":\"{seed}\",\"ss58Address\":\"{address}\"}}")).unwrap();
    for (key, value) in [("wallet.development", ""), ("wallet.path", "wallets"), ("storage.local_folder", "")] {
        host = host.set(key, value);
    }
    let variables = [
        ("BT_CHAIN_ENDPOINT", node.endpoint()),
        ("R2_ENDPOINT_URL", bucket_endpoint.clone()),
        ("R2_ACCOUNT_ID", account.clone()),
        ("R2_BUCKET_ID", account),
        ("R2_READ_ACCESS_KEY_ID", "b".repeat(32)),
        ("R2_READ_SECRET_ACCESS_KEY", "c".repeat(64)),
        ("R2_WRITE_ACCESS_KEY_ID", "d".repeat(32)),
        ("R2_WRITE_SECRET_ACCESS_KEY", "e".repeat(64)),
    ];
    let host = variables.iter().fold(host, |host, (name, value)| host.variable(name, value));
    let run = |more: &[&str]| {
        let mut arguments = vec!["run", "--set", "chain.network=finney"];
        more.iter().for_each(|setting| arguments.extend(["--set", setting]));
        host.run(&arguments)
    };
    let long = format!("storage.read_access_key_id={}", "b".repeat(33));
    let write_key = format!("storage.read_access_key_id={}", "d".repeat(32));
    let write_secret = format!("storage.read_secret_access_key={}", "e".repeat(64));
    for (more, word) in [
        (&["storage.region=ENAM"][..], "is the place that R2 shows"),
        (&["storage.bucket=grail"], "validators look for a bucket named like the account"),
        (&[&write_key], "would be published on chain"),
        (&[&write_secret], "would be published on chain"),
        (&["storage.read_access_key_id="], "R2_READ_ACCESS_KEY_ID"),
        (&["storage.read_secret_access_key="], "R2_READ_SECRET_ACCESS_KEY"),
        (&[&long], "has 33 characters where at most 32"),
        (&["storage.endpoint=", "storage.read_access_key_id=short"], "has 5 characters where exactly 32"),
        // A path may be a token.
        (&["storage.endpoint=https://s3.example/grail"], "must not stand on a command line"),
    ] {
        let finished = run(more);
        assert_eq!(finished.code, 64, "{more:?}\n{}", finished.stderr);
        assert!(finished.stderr.contains("1 mistake(s)") && finished.stderr.contains(word), "{more:?}\n{}", finished.stderr);
        assert!(!finished.stderr.contains(&"d".repeat(32)) && !finished.stderr.contains(&"e".repeat(64)), "{}", finished.stderr);
    }
    assert_eq!(node.requests("chain_getBlockHash"), 0, "nobody has connected");
    // With nothing wrong the chain is reached, and says that this hotkey is nobody.
    let finished = run(&[]);
    assert_eq!(finished.code, 1, "{}", finished.stderr);
    assert!(finished.stderr.contains("btcli subnet register") && node.requests("chain_getBlockHash") > 0, "{}", finished.stderr);
    assert_eq!(node.requests("author_submitAndWatchExtrinsic"), 0);

    // The same node turns out to be finney's: its validators never ask this bucket, so nothing is sent there either.
    let checked = host.run(&["check"]);
    let warning = format!("Warning: storage.endpoint = {bucket_endpoint}: only the node");
    assert!(checked.code == 0 && checked.stdout.contains(&warning), "{}\n{}", checked.stdout, checked.stderr);
    let finney = hex::decode("2f0555cc76fc2840a25a6ea3b9637146806f1f44b090c175ffde2a7e5ab36c03").unwrap().try_into().unwrap();
    node.faults(|faults| faults.genesis = Some(finney));
    // A bucket that is asked would answer that it is not there, which is another exit code.
    std::fs::remove_dir_all(host.path().join("r2")).unwrap();
    let finished = run(&[]);
    assert_eq!(finished.code, 64, "{}", finished.stderr);
    for word in ["storage.endpoint", "is not where validators of finney look", r2_address(&"a".repeat(32)).as_str()] {
        assert!(finished.stderr.contains(word), "{word:?} is missing in {}", finished.stderr);
    }
    let checked = host.variable("R2_ENDPOINT_URL", "https://s3.example/grail").run(&["check"]);
    assert!(checked.code == 64 && checked.stderr.contains("has a path"), "{}", checked.stderr);
}

#[test]
fn an_unreachable_or_read_only_bucket_is_refused() {
    let keys = ["read_access_key_id", "read_secret_access_key", "write_access_key_id", "write_secret_access_key"];
    let run_at = |endpoint: String| {
        let mut arguments = vec!["run".to_owned(), "--set".into(), "storage.local_folder=".into()];
        arguments.extend(["--set".into(), format!("storage.endpoint={endpoint}")]);
        arguments.extend(["--set".into(), "storage.account_id=acct".into(), "--set".into(), "storage.bucket=acct".into()]);
        arguments.extend(keys.iter().flat_map(|key| ["--set".to_owned(), format!("storage.{key}=k-{key}")]));
        arguments
    };
    let run = |port: u16| run_at(format!("http://127.0.0.1:{port}"));
    let host = host().variable("SSL_CERT_FILE", "/no/such/file").variable("SSL_CERT_DIR", "/no/such/folder");
    let arguments = run_at("https://127.0.0.1:1".into());
    refused(&host, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), 69, &["no CA certificates", "ca-certificates"]);
    let arguments = run(free_port());
    refused(&host, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), 69, &["the bucket cannot be used", "127.0.0.1"]);
    let port = deny_writes();
    let arguments = run(port);
    let finished = refused(&host, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), 69, &["the bucket cannot be used"]);
    assert!(finished.stderr.to_lowercase().contains("denied") && !finished.stderr.contains("k-write"), "{}", finished.stderr);
}

/// A bucket that everybody may read and nobody may write.
fn deny_writes() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = async |method: Method| {
        let denied = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
        if method == Method::GET { (StatusCode::OK, "") } else { (StatusCode::FORBIDDEN, denied) }
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, axum::Router::new().fallback(answer)).await.unwrap();
        });
    });
    port
}

#[test]
fn a_bad_dataset_is_refused_with_its_line() {
    let host = host();
    let path = host.path().join("train.jsonl");
    std::fs::write(&path, "{\"question\":\"1+1?\",\"answer\":\"#### 2\"}\n{\"question\":\"2+2?\"}\n").unwrap();
    refused(&host, &["run", "--dataset", path.to_str().unwrap()], 65, &["train.jsonl", "2", "answer"]);
    refused(&host, &["run", "--dataset", "/nowhere/at/all"], 65, &["/nowhere/at/all"]);
    refused(&host, &["run", "--set", "environment.dataset="], 65, &["no dataset is set", "GRAIL_DATASET"]);
}

#[test]
fn a_taken_port_and_a_long_socket_path_are_refused() {
    let host = host();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("storage.local_address={}", taken.local_addr().unwrap());
    refused(&host, &["run", "--set", &address], 69, &["cannot be listened on", &taken.local_addr().unwrap().port().to_string()]);
    let long = format!("state.folder={}", host.path().join("x".repeat(100)).display());
    refused(&host, &["run", "--set", &long], 64, &["state.folder", "107"]);
}

#[test]
fn a_second_supervisor_on_the_same_state_is_refused() {
    let _turn = one_at_a_time();
    let host = host();
    let mut first = host.start(&["run"]);
    host.await_status("the first supervisor", &mut first, 120, |status| status["pid"].is_u64());
    let second = host
        .start(&["run", "--set", &format!("storage.local_address=127.0.0.1:{}", free_port())])
        .finish(Duration::from_secs(120));
    assert_eq!(second.code, 75, "{}", second.stderr);
    assert!(second.stderr.contains(&first.pid().to_string()), "{}", second.stderr);
    assert_eq!(host.run(&["status"]).code, 0);
}

#[test]
fn a_directory_that_is_no_checkpoint_is_not_published() {
    let host = host();
    let publish = |directory: &Path| host.run(&["publish-checkpoint", directory.to_str().unwrap()]);
    let missing = publish(Path::new("/nowhere"));
    assert_eq!(missing.code, 65, "{}", missing.stderr);
    let copy = host.path().join("copy");
    copy_dir(&workspace().join("demo/checkpoint-a"), &copy);
    std::fs::write(copy.join("model.safetensors"), b"garbage").unwrap();
    let garbage = publish(&copy);
    assert_eq!(garbage.code, 65, "{}", garbage.stderr);
    assert!(garbage.stderr.contains("model.safetensors"), "{}", garbage.stderr);
    assert!(!host.trainer_bucket().join("grail").exists(), "nothing was sent");
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A checkpoint that cannot be used: what is the matter with it, what makes it so, and words of the reason.
struct Spoilt {
    damage: fn(&Host),
    words: &'static [&'static str],
}

/// Every one of them is skipped for its reason. They wait more than they work, so they do it side by side.
#[test]
fn a_checkpoint_that_cannot_be_used_is_not_mined_with() {
    let _turn = one_at_a_time();
    let all = [
        Spoilt { damage: wrong_hash, words: &["the checkpoint cannot be used", "model.safetensors"] },
        Spoilt { damage: no_sampling_keys, words: &["generation_params.top_k", "thinking_mode"] },
        Spoilt { damage: unsigned_metadata, words: &["sign"] },
        Spoilt { damage: without_a_tensor, words: &["refused the checkpoint", "model.norm.weight"] },
        Spoilt { damage: with_another_shape, words: &["refused the checkpoint", "model.norm.weight"] },
    ];
    programs();
    std::thread::scope(|scope| {
        let played: Vec<_> = all.iter().map(|spoilt| scope.spawn(|| skipped(spoilt))).collect();
        // A panic says by itself what failed.
        let failed = played.into_iter().filter_map(|one| one.join().err()).count();
        assert_eq!(failed, 0, "of {} checkpoints", all.len());
    });
}

/// Mines a window with it, and expects that it is skipped for the reason.
fn skipped(Spoilt { damage, words }: &Spoilt) {
    let host = Host::new(0.5, 6.0);
    damage(&host);
    let mut miner = host.start(&["run"]);
    // On a loaded machine a window may be over before it has come to the reason; then it is another one's.
    let for_its_reason = |window: &serde_json::Value| {
        let reason = window["reason"].as_str().unwrap_or_default();
        window["outcome"] == "skipped" && window["window"].as_u64() >= Some(30) && words.iter().all(|word| reason.contains(word))
    };
    host.await_status(&format!("a window skipped for {words:?}"), &mut miner, 120, |status| {
        status["finished"].as_array().is_some_and(|finished| finished.iter().any(for_its_reason))
    });
    assert!(host.uploaded().is_empty());
}

fn checkpoint_file(host: &Host, name: &str) -> std::path::PathBuf {
    host.trainer_bucket().join("grail/checkpoints/checkpoint-0/FULL").join(name)
}

fn wrong_hash(host: &Host) {
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let path = checkpoint_file(host, "model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn no_sampling_keys(host: &Host) {
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let path = checkpoint_file(host, "metadata.json");
    let mut metadata: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    metadata["generation_params"].as_object_mut().unwrap().remove("top_k");
    metadata["thinking_mode"] = serde_json::Value::Null;
    std::fs::write(&path, metadata.to_string()).unwrap();
    sign(host, &metadata);
}

/// Signs altered metadata as the local trainer, so that only the alteration itself is judged.
fn sign(host: &Host, metadata: &serde_json::Value) {
    let trainer = grail_protocol::keys::Hotkey::from_uri("//Trainer").unwrap();
    let bytes = grail_store::checkpoint::signed_bytes("metadata.json", metadata.to_string().as_bytes()).unwrap();
    std::fs::write(checkpoint_file(host, "manifest.sig"), hex::encode(trainer.sign(&bytes))).unwrap();
}

fn unsigned_metadata(host: &Host) {
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    let path = checkpoint_file(host, "metadata.json");
    let text = std::fs::read_to_string(&path).unwrap().replace("async_trainer_snapshot", "somebody_else");
    std::fs::write(path, text).unwrap();
}

/// Publishes the demo model after `change` has altered the tensors of its weights file.
fn publish_altered(host: &Host, change: impl Fn(&mut Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)>)) {
    let copy = host.path().join("copy");
    copy_dir(&workspace().join("demo/checkpoint-a"), &copy);
    let bytes = std::fs::read(copy.join("model.safetensors")).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = read
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name.clone(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let altered = safetensors::serialize(views, None).unwrap();
    std::fs::write(copy.join("model.safetensors"), altered).unwrap();
    let published = host.run(&["publish-checkpoint", copy.to_str().unwrap(), "--max-tokens", "192"]);
    assert_eq!(published.code, 0, "{}", published.stderr);
}

fn without_a_tensor(host: &Host) {
    publish_altered(host, |tensors| tensors.retain(|(name, ..)| name != "model.norm.weight"));
}

fn with_another_shape(host: &Host) {
    publish_altered(host, |tensors| {
        let norm = tensors.iter_mut().find(|(name, ..)| name == "model.norm.weight").unwrap();
        norm.2 = vec![norm.2[0] / 2];
        norm.3.truncate(norm.3.len() / 2);
    });
}

/// SGLang dies of an id outside the vocabulary (generation-servers 0): a tokenizer that gives one must cost its prompts only.
#[test]
fn an_id_outside_the_vocabulary_never_reaches_a_server() {
    let _turn = one_at_a_time();
    let host = Host::new(1.0, 5.0);
    let checkpoint = host.path().join("checkpoint");
    std::fs::create_dir(&checkpoint).unwrap();
    for entry in std::fs::read_dir(workspace().join("demo/checkpoint-a")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), checkpoint.join(entry.file_name())).unwrap();
    }
    let path = checkpoint.join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    // The model has 676 embeddings, and the tokenizer as many tokens: one more is beyond. Every problem asks "How many".
    let token = serde_json::json!({"id": 676, "content": "How many", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": false});
    tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let published = host.run(&["publish-checkpoint", checkpoint.to_str().unwrap(), "--max-tokens", "192"]);
    assert_eq!(published.code, 0, "{}", published.stderr);
    let mut miner = host.start(&["run"]);
    let status = host.await_status("refused prompts", &mut miner, 120, |status| {
        status["window"]["dropped"]["prompt failed"].as_u64() >= Some(3)
    });
    assert_eq!(status["window"]["generated"], 0, "{status:#}");
    assert_eq!(status["children"]["generation"]["progress"], 0, "nothing was asked of the server: {status:#}");
    miner.signal(nix::sys::signal::Signal::SIGTERM);
    let finished = miner.finish(Duration::from_secs(120));
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert!(finished.stderr.contains("the tokenizer gives id 676, the model has 676"), "{}", finished.stderr);
}
