//! What the settings accept, refuse and explain.

use grail_chain::patience::Patience;

use super::*;

fn environment(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

const LOCAL: &str = "[chain]\nnetwork = 'local'\n[storage]\nlocal_folder = 'bucket'\n[wallet]\ndevelopment = '//Alice'\n";

fn load_text(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, String> {
    let (_folder, path) = file(text);
    let sources = Sources { file: Some(path), environment: environment(variables), ..Sources::default() };
    load(&sources).map_err(|errors| errors.to_string())
}

#[test]
fn the_table_is_consistent() {
    let (_folder, path) = file(LOCAL);
    let loaded = load(&Sources { file: Some(path.clone()), ..Sources::default() }).unwrap();
    assert_eq!(loaded.settings.state, path.parent().unwrap().join("state"));
    for (index, setting) in TABLE.iter().enumerate() {
        assert!(TABLE[..index].iter().all(|other| other.key != setting.key), "{} stands twice", setting.key);
        assert!(setting.default.is_empty() || loaded.values.contains_key(setting.key), "{}: bad default", setting.key);
    }
}

#[test]
fn all_mistakes_come_at_once_with_suggestions() {
    let text = format!(
        "{LOCAL}[proof]\ndevise = 'cpu'\ngpus = 'all'\n[generation]\nbackend = 'sglagn'\n[upload]\ntimeout_seconds = 0\n"
    );
    let error = load_text(&text, &[]).unwrap_err();
    for part in [
        "did you mean proof.device?",
        "proof.gpus",
        "a list of whole numbers",
        "none of sglang, vllm, embedded",
        "upload.timeout_seconds",
    ] {
        assert!(error.contains(part), "{part:?} is missing in\n{error}");
    }
    assert!(error.starts_with("4 mistake(s)"), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_is_the_only_mistake_told() {
    let (_folder, broken) = file("[chain\n");
    for path in [PathBuf::from("/no/such/host.toml"), broken] {
        let error = load(&Sources { file: Some(path), ..Sources::default() }).unwrap_err().to_string();
        assert!(error.starts_with("1 mistake(s)"), "{error}");
    }
}

#[test]
fn a_key_in_the_wrong_section_is_found() {
    let error = load_text(&format!("{LOCAL}[miner]\nsafety_blocks = 3\n"), &[]).unwrap_err();
    assert!(error.contains("did you mean schedule.safety_blocks?"), "{error}");
}

#[test]
fn the_guides_variables_win_over_the_file_and_dot_env_over_the_shell() {
    let (folder, path) = file(LOCAL);
    let dot_env = folder.path().join("dot.env");
    std::fs::write(
        &dot_env,
        "# a comment\nGRAIL_PIPELINE_MAX_CONCURRENT=\"64\"\nGRAIL_PIPELINE_PROOF_GPU_IDS=4,5\nR2_FORCE_PATH_STYLE=true\n",
    )
    .unwrap();
    let sources = Sources {
        file: Some(path),
        environment: environment(&[
            ("GRAIL_PIPELINE_MAX_CONCURRENT", "32"),
            ("BT_NETUID", "7"),
            ("NETUID", ""),
            ("GRAIL_NONSENSE", "1"),
            ("BT_CLOSE_TIMEOUT", "60"),
        ]),
        dot_env: Some(dot_env),
        overrides: vec![("schedule.safety_blocks".into(), "2".into())],
    };
    let loaded = load(&sources).unwrap();
    assert_eq!(loaded.settings.generation.max_concurrent, 64);
    assert_eq!(loaded.settings.proof.slots, ProofSlots::Gpus(vec![4, 5]));
    assert_eq!(loaded.settings.safety_blocks, 2.0);
    let text = explain(&loaded);
    for part in [
        "environment BT_NETUID",
        "dot.env GRAIL_PIPELINE_MAX_CONCURRENT",
        "command line",
        "GRAIL_NONSENSE                     no setting is made of it",
        "BT_CLOSE_TIMEOUT                   nothing waits for a connection",
        "R2_FORCE_PATH_STYLE                addresses are always path style",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
}

#[test]
fn secrets_are_never_shown() {
    let variables = [
        ("R2_ACCOUNT_ID", "account"),
        ("R2_BUCKET_ID", "account"),
        ("R2_READ_ACCESS_KEY_ID", "hushhush1"),
        ("R2_READ_SECRET_ACCESS_KEY", "hushhush2"),
        ("R2_WRITE_ACCESS_KEY_ID", "hushhush3"),
        ("R2_WRITE_SECRET_ACCESS_KEY", "hushhush4"),
    ];
    let loaded = load_text("[chain]\nnetwork = 'local'\n", &variables).unwrap();
    let texts = [explain(&loaded), format!("{:?}", loaded.settings)];
    assert!(texts.iter().all(|text| !text.contains("hushhush")), "{texts:?}");
    let mut same = variables;
    same[2].1 = "hushhush3";
    same[3].1 = "hushhush4";
    let error = load_text("[chain]\nnetwork = 'local'\n", &same).unwrap_err();
    assert!(error.contains("it would be published on chain") && !error.contains("hushhush"), "{error}");
}

#[test]
fn missing_credentials_are_all_named() {
    let error = load_text("[chain]\nnetwork = 'local'\n", &[]).unwrap_err();
    for name in ["R2_ACCOUNT_ID", "R2_BUCKET_ID", "R2_READ_ACCESS_KEY_ID", "R2_WRITE_SECRET_ACCESS_KEY"] {
        assert!(error.contains(name), "{name} is missing in\n{error}");
    }
}

#[test]
fn development_keys_and_outside_addresses_are_refused() {
    let error =
        load_text("[wallet]\ndevelopment = '//Alice'\n[storage]\nlocal_folder = 'b'\nlocal_address = '0.0.0.0:9000'\n", &[])
            .unwrap_err();
    assert!(error.contains("local\" only") && error.contains("not a loopback address"), "{error}");
}

#[test]
fn a_seed_is_no_development_key_and_is_not_shown() {
    let text = LOCAL.replace("//Alice", "0x5ec2e75ec2e7");
    let error = load_text(&text, &[]).unwrap_err();
    assert!(error.contains("belongs in a wallet file") && !error.contains("5ec2e7"), "{error}");
}

#[test]
fn numerics_are_judged_with_everything_else() {
    let numerics = |text: &str, variables: &[(&str, &str)]| {
        let text = format!("{LOCAL}[proof]\n{text}\n");
        load_text(&text, variables).map(|loaded| loaded.settings.proof.numerics)
    };
    let mode = ProofMode::PackedShared;
    let plain = WorkerNumerics { mode, ..WorkerNumerics::default() };
    assert_eq!(numerics("", &[]).unwrap(), plain);
    assert_eq!(numerics("mode = 'exact'", &[]).unwrap(), WorkerNumerics::default());
    let asked = numerics("precision_tuning = 1", &[("GRAIL_FORCE_EAGER_ATTENTION", "1")]).unwrap();
    assert_eq!(asked, WorkerNumerics { mode, precision_tuning: 1, force_eager_attention: true });
    let asked = numerics("force_eager_attention = true", &[("GRAIL_PRECISION_TUNING", "2")]).unwrap();
    assert_eq!(asked, WorkerNumerics { mode, precision_tuning: 2, force_eager_attention: true });
    assert_eq!(numerics("", &[("GRAIL_FORCE_EAGER_ATTENTION", "no")]).unwrap(), plain);

    let error =
        numerics("gpus = 'all'", &[("GRAIL_PRECISION_TUNING", "3"), ("GRAIL_FORCE_EAGER_ATTENTION", "maybe")]).unwrap_err();
    for part in [
        "3 mistake(s)",
        "proof.precision_tuning = 3 (environment GRAIL_PRECISION_TUNING) is outside 0 to 2",
        "proof.force_eager_attention = maybe (environment GRAIL_FORCE_EAGER_ATTENTION) is not true or false",
    ] {
        assert!(error.contains(part), "{part:?} is missing in\n{error}");
    }
    let error = numerics("force_eager_attention = 1", &[]).unwrap_err();
    assert!(error.contains("proof.force_eager_attention") && error.contains("not true or false"), "{error}");
    let error = numerics("precision_tuning = 2\nforce_eager_attention = false", &[]).unwrap_err();
    assert!(error.contains("contradicts proof.precision_tuning = 2"), "{error}");
}

/// What an operator sets for the network, with lengths as R2 gives them.
fn joining(changes: &[(&str, &str)]) -> Result<Loaded, String> {
    let (account, key) = ("a".repeat(32), "b".repeat(32));
    let (write_key, secret, write_secret) = ("c".repeat(32), "d".repeat(64), "e".repeat(64));
    let mut variables = vec![
        ("R2_ACCOUNT_ID", account.as_str()),
        ("R2_BUCKET_ID", account.as_str()),
        ("R2_READ_ACCESS_KEY_ID", key.as_str()),
        ("R2_READ_SECRET_ACCESS_KEY", secret.as_str()),
        ("R2_WRITE_ACCESS_KEY_ID", write_key.as_str()),
        ("R2_WRITE_SECRET_ACCESS_KEY", write_secret.as_str()),
    ];
    variables.retain(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
    variables.extend(changes);
    load_text("", &variables)
}

#[test]
fn networks_are_known_by_name_and_endpoints_win() {
    let chain = |changes: &[(&str, &str)]| joining(changes).map(|loaded| loaded.settings.chain);
    for (name, host, genesis) in [("finney", "entrypoint-finney", "2f0555cc"), ("test", "test.finney", "8f9cf856")] {
        let Chain::Network { endpoints, genesis: Some(hash), .. } = chain(&[("BT_NETWORK", name)]).unwrap() else {
            panic!("{name} is a network with a known block 0");
        };
        assert!(endpoints[0].reveal().contains(host) && hex::encode(hash).starts_with(genesis));
    }
    let own = "ws://10.0.0.1:9944, wss://node.example:443";
    for network in ["finney", "local", "custom"] {
        let Chain::Network { endpoints, genesis: None, .. } =
            chain(&[("BT_NETWORK", network), ("BT_CHAIN_ENDPOINT", own)]).unwrap()
        else {
            panic!("{network}: the endpoint wins, and its network is learnt from it");
        };
        assert_eq!(endpoints, ["ws://10.0.0.1:9944", "wss://node.example:443"].map(Address::from));
    }
    assert!(chain(&[("BT_NETWORK", "custom")]).unwrap_err().contains("needs the address of a node"));
    assert!(chain(&[("BT_CHAIN_ENDPOINT", "https://node.example")]).unwrap_err().contains("ws:// or wss://"));
    assert_eq!(joining(&[]).unwrap().settings.netuid, 81);
    assert_eq!(joining(&[("BT_NETUID", "429")]).unwrap().settings.netuid, 429);
    assert!(joining(&[("NETUID", "65536")]).unwrap_err().contains("outside 0 to 65535"));
}

#[test]
fn the_guides_limits_of_the_chain_have_their_meaning() {
    let patience = |changes: &[(&str, &str)]| joining(changes).map(|loaded| loaded.settings.patience);
    assert_eq!(patience(&[]).unwrap(), Patience::default());
    let guide = [("BT_CALL_TIMEOUT", "20"), ("BT_CALL_RETRIES", "5"), ("BT_CALL_BACKOFF", "2.5"), ("BT_INIT_TIMEOUT", "120")];
    let asked = patience(&guide).unwrap();
    assert_eq!((asked.request.as_secs(), asked.metadata.as_secs(), asked.tries), (20, 80, 5));
    assert_eq!((asked.connect.as_secs(), asked.backoff.first.as_millis()), (120, 2500));
    for (variable, value) in
        [("BT_CALL_TIMEOUT", "0"), ("BT_CALL_RETRIES", "0"), ("BT_CALL_BACKOFF", "31"), ("BT_INIT_TIMEOUT", "-1")]
    {
        let error = patience(&[(variable, value)]).unwrap_err();
        assert!(error.contains(variable) && error.contains("outside"), "{error}");
    }
}

#[test]
fn a_beacon_is_asked_on_networks_unless_told_otherwise() {
    assert_eq!(joining(&[]).unwrap().settings.beacon.len(), 3);
    assert!(load_text("[beacon]\ndrand = false\n", &[]).is_err_and(|error| !error.contains("beacon")));
    assert!(load_text(LOCAL, &[]).unwrap().settings.beacon.is_empty(), "the local chain needs no network");
    let relays = load_text(&format!("{LOCAL}[beacon]\nrelays = 'http://127.0.0.1:1'\n"), &[]).unwrap().settings.beacon;
    assert_eq!(relays, [Address::from("http://127.0.0.1:1")]);
}

#[test]
fn credentials_that_would_cost_money_are_refused_before_anything_else() {
    let write = "c".repeat(32);
    let short = "d".repeat(63);
    for (changes, part) in [
        (vec![("R2_READ_ACCESS_KEY_ID", write.as_str())], "would be published on chain"),
        (vec![("R2_READ_SECRET_ACCESS_KEY", &"e".repeat(64))], "would be published on chain"),
        (vec![("R2_READ_ACCESS_KEY_ID", "")], "storage.read_access_key_id is not set"),
        (vec![("R2_READ_SECRET_ACCESS_KEY", short.as_str())], "has 63 characters where exactly 64"),
        (vec![("R2_WRITE_ACCESS_KEY_ID", "hush")], "has 4 characters where exactly 32"),
        (vec![("R2_REGION", "ENAM")], "is the place that R2 shows"),
        (vec![("R2_BUCKET_ID", "grail")], "validators look for a bucket named like the account"),
    ] {
        let error = joining(&changes).unwrap_err();
        assert!(error.contains(part), "{part:?} is missing in\n{error}");
        assert!(!error.contains("hush") && !error.contains(&short) && !error.contains(&write), "{error}");
    }
    // Another provider's keys are shorter; what is too long for the chain is refused everywhere.
    let other = [("BT_CHAIN_ENDPOINT", "ws://10.0.0.1:9944"), ("R2_ENDPOINT_URL", "https://s3.example")];
    let with = |name: &str, value: &str| joining(&[&other[..], &[(name, value)]].concat());
    assert!(with("R2_READ_ACCESS_KEY_ID", "AKIA0000000000000000").is_ok());
    let error = with("R2_READ_SECRET_ACCESS_KEY", &"f".repeat(65)).unwrap_err();
    assert!(error.contains("has 65 characters where at most 64"), "{error}");
}

/// A network whose block 0 is `genesis`, behind a node of the operator's.
fn behind_a_node(genesis: &str, changes: &[(&str, &str)]) -> Result<Option<&'static str>, String> {
    let genesis = <[u8; 32]>::try_from(hex::decode(genesis).unwrap()).unwrap();
    let loaded = joining(&[&[("BT_CHAIN_ENDPOINT", "ws://10.0.0.1:9944")], changes].concat())?;
    loaded.settings.judged_on(&genesis).map_err(|errors| errors.to_string())
}

#[test]
fn block_0_decides_where_validators_look() {
    let (finney, other) = (endpoint::NETWORKS[0].2, "45".repeat(32));
    let account = "a".repeat(32);
    let own = r2_address(&account);
    let eu = format!("https://{account}.eu.r2.cloudflarestorage.com");
    let another = r2_address(&"f".repeat(32));
    let wrong = [
        (eu.as_str(), "is kept in a jurisdiction"),
        (another.as_str(), "another account's"),
        ("https://s3.example", "is not where validators of finney look"),
        (&own.replace("https", "http"), "is not where validators of finney look"),
    ];
    for (address, part) in wrong {
        // By its name, or by what a node of the operator's tells, whatever the settings call the network.
        let named = joining(&[("R2_ENDPOINT_URL", address)]).unwrap_err();
        assert!(named.contains("1 mistake(s)") && named.contains(part) && named.contains(&own), "{named}");
        for network in ["finney", "local", "custom"] {
            let changes = [("R2_ENDPOINT_URL", address), ("BT_NETWORK", network)];
            let told = behind_a_node(finney, &changes).unwrap_err();
            assert!(told.contains(part), "{told}");
            assert_eq!(behind_a_node(&other, &changes), Ok(None));
            let doubt =
                joining(&[&changes[..], &[("BT_CHAIN_ENDPOINT", "ws://10.0.0.1:9944")]].concat()).unwrap().settings.doubt();
            assert!(doubt.is_some_and(|doubt| doubt.contains(address)));
        }
    }
    for right in ["", &own, &format!(" {}:443/ ", own.to_uppercase())] {
        assert!(joining(&[("R2_ENDPOINT_URL", right)]).is_ok_and(|loaded| loaded.settings.doubt().is_none()), "{right}");
        assert_eq!(behind_a_node(finney, &[("R2_ENDPOINT_URL", right)]), Ok(Some("finney")), "{right}");
    }
    // What nobody could read there is refused whatever the network is called.
    let settings = load_text(LOCAL, &[("BT_CHAIN_ENDPOINT", "ws://10.0.0.1:9944")]).unwrap().settings;
    assert!(settings.doubt().is_some_and(|doubt| doubt.contains("storage.local_folder")));
    let genesis = <[u8; 32]>::try_from(hex::decode(finney).unwrap()).unwrap();
    let error = settings.judged_on(&genesis).unwrap_err().to_string();
    assert!(error.contains("storage.local_folder cannot be read by validators"), "{error}");
    assert!(error.contains("wallet.development is a key that everybody knows"), "{error}");
    let error = behind_a_node(finney, &[("BT_NETWORK", "local"), ("R2_BUCKET_ID", "grail")]).unwrap_err();
    assert!(error.contains("look for a bucket named like the account"), "{error}");
    for (changes, part) in [
        ([("R2_ENDPOINT_URL", "https://key:hush@s3.example")], "holds a user"),
        ([("R2_ENDPOINT_URL", "https://s3.example/bucket")], "has a path"),
        ([("R2_ACCOUNT_ID", "evil.example/0000000000000000000")], "no account id of R2"),
    ] {
        let error = joining(&changes).unwrap_err();
        assert!(error.contains(part) && !error.contains("hush"), "{error}");
    }
}

#[test]
fn a_folder_of_this_host_serves_no_network() {
    let error = load_text("[storage]\nlocal_folder = 'b'\n", &[]).unwrap_err();
    assert!(error.contains("cannot be read by validators"), "{error}");
}

#[test]
fn what_lets_somebody_into_a_server_is_on_no_command_line() {
    let load = |backend: &str| {
        let generation = "extra_arguments = '--api-key k1 --x 1 --hf-token=k2 --random-seed 7'";
        load_text(&format!("{LOCAL}[generation]\nbackend = '{backend}'\n{generation}\n"), &[]).unwrap().settings.generation
    };
    for (backend, exposed) in [("sglang", None), ("vllm", Some("the values of --hf-token in")), ("embedded", None)] {
        let generation = load(backend);
        let words: Vec<String> = generation.launcher_arguments().iter().map(|word| word.display().to_string()).collect();
        let words = words.join(" ");
        assert!(!words.contains("k1") && !words.contains("k2") && !words.contains("--api-key"), "{words}");
        let warning = generation.exposed();
        assert_eq!(warning.is_some(), exposed.is_some(), "{backend}: {warning:?}");
        assert!(exposed.is_none_or(|part| warning.is_some_and(|warning| warning.contains(part) && !warning.contains("k2"))));
        if backend != "embedded" {
            assert!(words.contains("--extra --x --extra 1 --extra --random-seed --extra 7"), "{words}");
            let variable = ("GRAIL_SERVER_SECRETS".into(), "--api-key\nk1\n--hf-token\nk2".into());
            assert_eq!(generation.launcher_variable(), Some(variable));
        }
    }
}

/// Every variable of the guide's pipeline, with the meaning that the guide gives it.
#[test]
fn every_variable_of_the_pipeline_has_its_meaning_or_is_refused_with_the_reason() {
    let variables = [
        ("GRAIL_PIPELINE_BACKEND", "vllm"),
        ("GRAIL_PIPELINE_VLLM_GPU", "1"),
        ("GRAIL_PIPELINE_VLLM_TP", "2"),
        ("GRAIL_PIPELINE_PROOF_GPU", "3"),
        ("GRAIL_PIPELINE_PROOF_GPU_IDS", "4,5"),
        ("GRAIL_PIPELINE_PROOF_SUBPROCESS", "yes"),
        ("GRAIL_PIPELINE_PROOF_FLASH_ATTN", "0"),
        ("GRAIL_PIPELINE_GROUPS_PER_BATCH", "72"),
        ("GRAIL_PIPELINE_DISABLE_CUDA_GRAPH", "1"),
        ("GRAIL_PIPELINE_GPU_MEM_UTIL", "0.8"),
        ("GRAIL_PIPELINE_MAX_MODEL_LEN", "4096"),
        ("GRAIL_PIPELINE_MAX_NUM_SEQS", "256"),
        ("GRAIL_PIPELINE_MAX_CONCURRENT", "1152"),
        ("GRAIL_PIPELINE_SERVER_TIMEOUT", "900"),
        ("GRAIL_PIPELINE_SYMLINK_DIR", "/links"),
        ("GRAIL_VLLM_PYTHON", "/opt/vllm/bin/python"),
        ("GRAIL_TRAIN_MODEL_ID", "Qwen/Qwen2.5-7B"),
    ];
    let settings = load_text(LOCAL, &variables).unwrap().settings;
    let generation = &settings.generation;
    assert_eq!((generation.backend.as_str(), generation.gpu, generation.tensor_parallel), ("vllm", 1, 2));
    assert_eq!((generation.groups_in_flight, generation.disable_cuda_graph), (GroupsInFlight::Fixed(72), true));
    assert_eq!((generation.memory_share, generation.max_model_length, generation.server_timeout), (Some(0.8), 4096, 900.0));
    assert_eq!((generation.max_running, generation.max_concurrent), (256, 1152));
    assert_eq!(generation.link_folder.as_deref(), Some(Path::new("/links")));
    assert_eq!(generation.python, Path::new("/opt/vllm/bin/python"));
    assert_eq!(generation.tokenizer.as_deref(), Some("Qwen/Qwen2.5-7B"));
    assert_eq!(settings.proof.slots, ProofSlots::Gpus(vec![4, 5]));
    let words: Vec<String> = generation.launcher_arguments().iter().map(|word| word.display().to_string()).collect();
    let words = words.join(" ");
    for pair in [
        "--tensor-parallel 2",
        "--max-running-requests 256",
        "--memory-share 0.8",
        "--context-length 4096",
        "--disable-cuda-graph",
    ] {
        assert!(words.contains(pair), "{pair} is missing in {words}");
    }

    let unset = load_text(LOCAL, &[("GRAIL_PIPELINE_PROOF_GPU", "3")]).unwrap().settings;
    assert_eq!(unset.proof.slots, ProofSlots::Gpus(vec![3]), "the one GPU counts where there is no list");
    assert_eq!((unset.generation.groups_in_flight, unset.generation.max_concurrent), (GroupsInFlight::Auto, 8192));
    for (name, value, reason) in [
        ("GRAIL_PIPELINE_PROOF_SUBPROCESS", "0", "every proof worker is a process of its own"),
        ("GRAIL_PIPELINE_PROOF_FLASH_ATTN", "1", "libtorch's own attention"),
        ("GRAIL_PIPELINE_BACKEND", "tgi", "is none of sglang, vllm, embedded"),
        ("GRAIL_PIPELINE_GROUPS_PER_BATCH", "0", "is outside 1 to 4096"),
        ("GRAIL_PIPELINE_GPU_MEM_UTIL", "1.5", "is outside 0.05 to 1"),
    ] {
        let error = load_text(LOCAL, &[(name, value)]).unwrap_err();
        assert!(error.contains(name) && error.contains(reason), "{name}: {error}");
    }
}

#[test]
fn servers_elsewhere_are_a_list_or_one_text_and_are_judged() {
    let with = |lines: &str| load_text(&format!("{LOCAL}[generation]\n{lines}"), &[]);
    let two = ["http://10.0.0.2:30000", "http://10.0.0.3:30000"].map(Address::from);
    for lines in [
        "servers = ['http://10.0.0.2:30000/', 'http://10.0.0.3:30000']",
        "servers = 'http://10.0.0.2:30000, http://10.0.0.3:30000'\nservers_cache = '/mnt/grail'",
    ] {
        assert_eq!(with(lines).unwrap().settings.generation.servers, two);
    }
    for (lines, reason) in [
        ("servers = ['10.0.0.2:30000']", "is no address that begins with http"),
        ("servers = [1]", "is array, not a list of addresses"),
        ("backend = 'embedded'\nservers = 'http://a:1'", "need generation.backend"),
        ("replicas = 2\nservers = 'http://a:1'", "none is where generation.servers names some"),
        ("servers = 'http://a:1'\nservers_cache = 'grail'", "is no absolute path"),
    ] {
        let error = with(lines).unwrap_err();
        assert!(error.contains(reason), "{lines}: {error}");
    }
}

const CANARY: &str = "c4n4ry-0123456789";

#[test]
fn addresses_and_command_lines_hide_what_is_secret_in_them() {
    let text = format!(
        "[chain]\nnetwork = 'custom'\nendpoint = ['wss://node.example:443/v1/{CANARY}', 'wss://other.example?key={CANARY}']\n\
         [beacon]\nrelays = 'https://user:{CANARY}@relay.example'\n[storage]\nendpoint = 'https://s3.example'\n\
         [generation]\nservers = 'http://10.0.0.2:30000/{CANARY}'\nextra_arguments = '--api-key {CANARY} --mem 0.8'\n"
    );
    let keys = [("read", "a"), ("read", "b"), ("write", "c"), ("write", "d")];
    let keys = keys.iter().enumerate().map(|(at, (kind, letter))| {
        format!("{kind}_{}access_key{} = '{letter}-{CANARY}'\n", ["", "secret_"][at % 2], ["_id", ""][at % 2])
    });
    let text =
        text.replace("[storage]\n", &format!("[storage]\naccount_id = 'acct'\nbucket = 'acct'\n{}", keys.collect::<String>()));
    // Whatever else is judged, here it is about what is shown.
    let shown = match load_text(&text, &[]) {
        Ok(loaded) => {
            assert!(loaded.secrets().iter().any(|secret| secret == CANARY), "{:?}", loaded.secrets());
            let Chain::Network { endpoints, .. } = &loaded.settings.chain else { panic!("a network") };
            assert_eq!(endpoints[0].reveal(), format!("wss://node.example:443/v1/{CANARY}"), "who connects has the whole");
            assert_eq!(loaded.settings.generation.extra.reveal()[1], CANARY);
            format!("{}\n{:?}", explain(&loaded), loaded.settings)
        }
        Err(mistakes) => mistakes,
    };
    assert!(!shown.contains("c4n4ry"), "{shown}");
    for text in [
        format!("[chain]\nendpoint = 'node.example/{CANARY}'\n[storage]\nregion = 'weur'\n"),
        format!("[chain]\nendpoint = 'user:{CANARY}@node.example'\n"),
        format!("[chain]\nendpoint = [1, 'wss://node.example/{CANARY}']\n"),
        format!("[generation]\nservers = 'ftp://{CANARY}@host'\nextra_arguments = ['--api-key', '{CANARY}']\n"),
        format!("[beacon]\nrelays = 'wss://{CANARY}@host/{CANARY}'\n"),
        format!("[storage]\naccount_id = '{CANARY}'\nbucket = 'grail'\n"),
        format!("[storage]\nendpoint = 'https://user:{CANARY}@s3.example/{CANARY}'\n"),
    ] {
        let mistakes = load_text(&text, &[]).unwrap_err();
        assert!(!mistakes.contains("c4n4ry"), "{text}: {mistakes}");
    }
}

#[test]
fn a_line_that_is_no_toml_is_named_and_not_repeated() {
    for (line, place) in [
        (format!("write_secret_access_key = {CANARY}"), "line 2"),
        (format!("write_secret_access_key = '{CANARY}"), "line 2"),
        (format!("write_secret_access_key '{CANARY}'"), "line 2"),
        (format!("write_secret_access_key = \"{CANARY}\\q\""), "line 2"),
        (format!("a = 1\nwrite_secret_access_key = '{CANARY}' '{CANARY}'"), "line 3"),
        (format!("write_secret_access_key = 'x'\nwrite_secret_access_key = '{CANARY}'"), "line 3"),
        (CANARY.to_owned(), "line"),
        (format!("[{CANARY}"), "line 2"),
        (format!("x = [\n'{CANARY}'\n"), "line"),
        (format!("x = {{ y = '{CANARY}'"), "line 2"),
    ] {
        let error = load_text(&format!("[storage]\n{line}\n"), &[]).unwrap_err();
        assert!(error.contains("host.toml is not TOML: ") && error.contains(place), "{line}: {error}");
        assert!(!error.contains("c4n4ry"), "{line}: {error}");
    }
}

#[test]
fn secrets_are_refused_on_the_command_line_and_their_place_is_named() {
    let (_folder, path) = file(LOCAL);
    let set = |key: &str, value: &str| {
        let sources = Sources { file: Some(path.clone()), overrides: vec![(key.into(), value.into())], ..Sources::default() };
        load(&sources).map(|_| ()).map_err(|errors| errors.to_string())
    };
    for (key, value, place) in [
        ("storage.write_secret_access_key", CANARY.to_owned(), "R2_WRITE_SECRET_ACCESS_KEY"),
        ("storage.read_access_key_id", CANARY.to_owned(), "R2_READ_ACCESS_KEY_ID"),
        ("wallet.development", format!("//{CANARY}"), "TOML file"),
        ("chain.endpoint", format!("wss://node.example/{CANARY}"), "BT_CHAIN_ENDPOINT"),
        ("storage.endpoint", format!("https://user:{CANARY}@s3.example"), "R2_ENDPOINT_URL"),
        ("generation.extra_arguments", format!("--api-key {CANARY}"), "TOML file"),
    ] {
        let error = set(key, &value).unwrap_err();
        assert!(error.contains(key) && error.contains(place) && error.contains("command line"), "{key}: {error}");
        assert!(!error.contains("c4n4ry"), "{error}");
    }
    for (key, value) in [
        ("storage.write_secret_access_key", ""),
        ("chain.endpoint", "ws://127.0.0.1:9944/"),
        ("generation.extra_arguments", "--mem-fraction-static 0.8"),
    ] {
        set(key, value).unwrap();
    }
}

#[test]
fn what_is_wrong_has_its_place_and_the_rest_can_be_looked_at() {
    let (_folder, path) = file("[chain]\nnetwork = 'local'\n[wallet]\ncold = 'a/b'\n[state]\nfolder = '/srv/state'\n");
    let loaded = read(&Sources { file: Some(path), ..Sources::default() });
    assert!(!loaded.without_file && loaded.settings.state == Path::new("/srv/state"));
    let keys = |sections: &[&str]| loaded.mistakes.of(sections).map(|error| error.key.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&["wallet"]), ["wallet.cold"]);
    assert!(keys(&["storage"]).contains(&"storage.bucket".to_owned()) && loaded.mistakes.concern(&["proof", "storage"]));
    assert!(!loaded.mistakes.concern(&["proof", "generation"]));
    assert!(loaded.judged().is_err());
}

#[test]
fn a_file_that_is_no_toml_gives_its_secrets_to_the_filter() {
    let text = "[storage\nwrite_secret_access_key = 'hushhush1' # mine\nstorage.read_secret_access_key=\"hushhush2\"\nbucket = 'plain'\n";
    let (_folder, path) = file(text);
    let loaded = read(&Sources { file: Some(path), ..Sources::default() });
    assert!(loaded.without_file && loaded.mistakes.0.len() == 1, "{:?}", loaded.mistakes);
    assert_eq!(loaded.secrets(), ["hushhush1", "hushhush2"]);
}

#[test]
fn parts_are_as_long_as_s3_takes_them() {
    let parts = |kib: u32| {
        load_text(&format!("{LOCAL}[upload]\npart_kib = {kib}\n"), &[]).map(|loaded| loaded.settings.upload_part_bytes)
    };
    assert_eq!((parts(0), parts(5120)), (Ok(0), Ok(5 << 20)));
    for kib in [1, 5119] {
        let error = parts(kib).unwrap_err();
        assert!(error.contains(&format!("upload.part_kib = {kib} (")) && error.contains("5120 or more, or 0"), "{error}");
    }
}

#[test]
fn gpus_beside_proofs_on_the_cpu_are_remarked() {
    let remarks = |text: &str, variables: &[(&str, &str)]| {
        load_text(&format!("{LOCAL}[proof]\n{text}\n"), variables).unwrap().settings.remarks.join("\n")
    };
    assert_eq!(remarks("device = 'cpu'", &[]), "");
    assert_eq!(remarks("gpus = [1]", &[]), "");
    let told = remarks("device = 'cpu'\ngpu = 3", &[("GRAIL_PIPELINE_PROOF_GPU_IDS", "1,2")]);
    assert!(told.contains("proof.gpus = [1, 2] (environment GRAIL_PIPELINE_PROOF_GPU_IDS) changes nothing"), "{told}");
    assert!(told.contains("proof.gpu = 3 (") && told.lines().count() == 2, "{told}");
}

#[test]
fn what_dot_env_says_for_the_process_counts_and_wins() {
    let (folder, path) = file(LOCAL);
    let dot_env = folder.path().join("dot.env");
    std::fs::write(&dot_env, "TMPDIR=/fast\nHF_HOME=/hub\nHF_TOKEN=x\nhttps_proxy=http://a:hushhush@b.example\n").unwrap();
    let environment = environment(&[("TMPDIR", "/slow"), ("HTTPS_PROXY", "http://c.example"), ("http_proxy", "")]);
    let sources = Sources { file: Some(path), environment, dot_env: Some(dot_env.clone()), ..Sources::default() };
    let loaded = load(&sources).unwrap();
    assert_eq!(loaded.settings.temporary, Some("/fast".into()));
    assert_eq!(loaded.settings.proxies.keys().collect::<Vec<_>>(), [&"HTTPS_PROXY", &"https_proxy"]);
    assert!(
        explain(&loaded).ends_with("as if it were exported, for children and the log: HF_HOME, TMPDIR\n"),
        "{}",
        explain(&loaded)
    );
    assert!(!format!("{loaded:?}").contains("hushhush") && loaded.secrets().contains(&"hushhush".to_owned()));
    std::fs::write(&dot_env, "HF_HOME=/h\0ub\n").unwrap();
    assert!(load(&sources).unwrap_err().to_string().contains("NUL byte"));
}
