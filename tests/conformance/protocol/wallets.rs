//! Wallet files, signatures, bindings.

use grail_protocol::binding::{Binding, verify_commit};
use grail_protocol::commitment::hash_commitments;
use grail_protocol::derivation::{challenge_text, hash_tokens};
use grail_protocol::keys::{Hotkey, KeyScheme, address_of, public_key_of, verify};
use grail_protocol::validation::head::verify_challenge;
use serde_json::Value;

use super::values::{bytes, integers, items, text};
use crate::report::{Case, Cases, Report, json};

const SR25519: KeyScheme = KeyScheme::Sr25519;

pub fn run(report: &mut Report) {
    report.check("grail/signatures.json", |path, cases| {
        let file = json(path);
        keys(&file, cases);
        bindings(&file, cases);
        raw(&file, cases);
        challenges(&file, cases);
        commits(&file, cases);
    });
    report.check("grail/wallet.json", |path, cases| wallets(&json(path), cases));
}

/// The key has the public key and address of the vector, and what it signs verifies.
fn is_key(hotkey: Result<Hotkey, impl std::fmt::Display>, want: &Value) -> Case {
    let hotkey = hotkey.map_err(|error| error.to_string())?;
    let signature = hex::encode(hotkey.sign(b"a message"));
    let agrees = hotkey.public_key().to_vec() == bytes(&want["public_key_hex"])
        && Some(hotkey.address()) == want["ss58_address"].as_str()
        && public_key_of(hotkey.address()) == Ok(hotkey.public_key())
        && address_of(&hotkey.public_key()) == hotkey.address()
        && verify(SR25519, hotkey.address(), b"a message", &signature);
    if agrees { Ok(()) } else { Err(format!("got {hotkey:?}")) }
}

fn keys(file: &Value, cases: &mut Cases) {
    for key in items(&file["keys"]) {
        let seed: [u8; 32] = bytes(&key["mini_secret_seed_hex"]).try_into().expect("32 bytes");
        cases.case(format!("key {}", key["id"]), || is_key(Hotkey::from_seed(SR25519, &seed), key));
    }
    let mnemonic = &file["mnemonic"];
    if mnemonic.is_object() {
        cases.case("mnemonic", || is_key(Hotkey::from_mnemonic(text(&mnemonic["phrase"])), mnemonic));
    }
    for uri in items(&file["uris"]) {
        cases.case(text(&uri["uri"]), || is_key(Hotkey::from_uri(text(&uri["uri"])), uri));
    }
}

fn bindings(file: &Value, cases: &mut Cases) {
    for (index, case) in items(&file["commit_binding"]).iter().enumerate() {
        let name = |what: &str| format!("binding {index} {what}");
        let tokens_hash = hash_tokens(&integers(&case["tokens"]));
        let commitments_hash = hash_commitments(&case["commitments"]);
        cases.equal(name("tokens"), Some(hex::encode(tokens_hash).as_str()), case["tokens_sha256"].as_str());
        cases.equal(name("commitments"), Some(hex::encode(commitments_hash).as_str()), case["commitments_sha256"].as_str());
        let binding = Binding {
            tokens_hash: &tokens_hash,
            randomness: text(&case["randomness"]),
            model_name: text(&case["model_name"]),
            layer_index: i32::try_from(case["layer_index"].as_i64().expect("a layer")).expect("a layer"),
            commitments_hash: &commitments_hash,
        };
        cases.equal(name("preimage"), binding.preimage().map(hex::encode).ok().as_deref(), case["preimage_hex"].as_str());
        let digest = binding.digest().expect("hex");
        cases.equal(name("digest"), Some(hex::encode(digest).as_str()), case["binding_hex"].as_str());
        let valid = verify(SR25519, text(&case["ss58_address"]), &digest, text(&case["signature_hex"]));
        cases.equal(name("signature"), Some(valid), case["verify_commit_signature"].as_bool());
    }
}

fn raw(file: &Value, cases: &mut Cases) {
    for (index, case) in items(&file["raw_verify"]).iter().enumerate() {
        let valid = verify(SR25519, text(&case["ss58_address"]), &bytes(&case["message_hex"]), text(&case["signature_hex"]));
        cases.equal(format!("raw {index} {}", case["note"]), Some(valid), case["valid"].as_bool());
    }
}

fn challenges(file: &Value, cases: &mut Cases) {
    for (index, case) in items(&file["rollout_challenge"]).iter().enumerate() {
        let name = format!("challenge {index} {}", case["note"]);
        let challenge = text(&case["challenge"]);
        let valid = verify_challenge(SR25519, text(&case["hotkey"]), challenge, text(&case["signature"]));
        cases.equal(&name, Some(valid), case["valid"].as_bool());
        if case["note"].is_null() {
            let built = challenge_text(text(&case["block_hash"]), case["nonce"].as_i64().expect("a nonce"));
            // Older rows carried a seed in front; only its place is left.
            cases.equal(format!("{name} text"), challenge.ends_with(&built), true);
        }
    }
}

fn commits(file: &Value, cases: &mut Cases) {
    for (index, case) in items(&file["verify_commit_signature"]).iter().enumerate() {
        let valid = verify_commit(SR25519, text(&case["ss58_address"]), &case["commit"]).is_ok();
        cases.equal(format!("commit {index} {}", case["note"]), Some(valid), case["valid"].as_bool());
    }
}

fn wallets(file: &Value, cases: &mut Cases) {
    for (path, want) in file["expected_ss58"].as_object().into_iter().flatten() {
        let content = text(&file["files"][path]);
        let address = |content: &str| Hotkey::from_file_text(content).map(|hotkey| hotkey.address().to_owned());
        cases.equal(path, address(content), Ok(text(want).to_owned()));
        // The other secret of the file, on its own, is the same key.
        let mut without: Value = serde_json::from_str(content).expect("JSON");
        if without.as_object_mut().is_some_and(|object| object.remove("secretSeed").is_some()) {
            cases.equal(format!("{path} privateKey"), address(&without.to_string()), Ok(text(want).to_owned()));
        }
    }
    let hot = file["expected_ss58"].as_object().and_then(|all| all.iter().find(|(path, _)| path.ends_with("/hot")));
    if let Some((_, address)) = hot {
        let message = bytes(&file["message_hex"]);
        let holds = verify(SR25519, text(address), &message, text(&file["signature_by_hot_hex"]));
        cases.equal("signature_by_hot", holds, true);
    }
}
