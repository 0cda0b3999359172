//! `vectors/settings`: where a bucket may be. The network is known by its name or by block 0 that an operator's own node tells:
//! both must come to the same verdict.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use grail_settings::{Settings, Sources, dotenv, load};
use grail_workers::plan::{Installed, VisibleGpus};
use serde_json::Value;

use crate::report::{Cases, Report, json};

/// Block 0 of the networks whose validators read R2, and of one that is another.
const FINNEY: &str = "2f0555cc76fc2840a25a6ea3b9637146806f1f44b090c175ffde2a7e5ab36c03";
const TEST: &str = "8f9cf856bf558a14440e75569c9e58594757048d7b3a84b5d25f6bd978263105";
const OTHER: &str = "4545454545454545454545454545454545454545454545454545454545454545";
/// A node of the operator's; nobody asks it.
const NODE: (&str, &str) = ("BT_CHAIN_ENDPOINT", "ws://127.0.0.1:1");

/// Checks the whole folder.
pub fn run(report: &mut Report) {
    report.check("settings/r2_endpoint.json", |path, cases| {
        each(path, cases, |case| (case["endpoint"].as_str(), case["account_id"].as_str()));
    });
    report.check("settings/dotenv.json", dotenv);
    report.check("settings/cuda_visible_devices.json", visible);
    report.check("settings/r2_account_id.json", |path, cases| each(path, cases, |case| (None, case["account_id"].as_str())));
}

/// What a `.env` sets; where a case wants more than the reference does, that.
fn dotenv(path: &Path, cases: &mut Cases) {
    for case in json(path)["cases"].as_array().into_iter().flatten() {
        let name = case["name"].as_str().unwrap_or_default();
        let bytes = BASE64.decode(case["text_base64"].as_str().expect("a text")).expect("base64");
        let read = String::from_utf8(bytes).map(|text| dotenv::parse(&text, &BTreeMap::new()).values);
        let wanted = case.get("wanted").or_else(|| case.get("values")).filter(|_| case.get("error").is_none());
        let read = read.ok().map(|values| values.into_iter().collect::<BTreeMap<_, _>>());
        let wanted = wanted.map(|values| serde_json::from_value(values.clone()).expect("names and values"));
        cases.equal(name, read, wanted);
    }
}

/// The devices in order, or refused.
fn visible(path: &Path, cases: &mut Cases) {
    for case in json(path)["cases"].as_array().into_iter().flatten() {
        let value = case["value"].as_str();
        let devices = VisibleGpus::new(value, Installed::default).ok().map(|visible| visible.gpus);
        let wanted = case.get("devices").map(|devices| serde_json::from_value::<Vec<String>>(devices.clone()).expect("devices"));
        cases.equal(format!("{value:?}"), devices, wanted);
    }
}

fn each(path: &Path, cases: &mut Cases, of: impl Fn(&Value) -> (Option<&str>, Option<&str>)) {
    for (index, case) in json(path)["cases"].as_array().into_iter().flatten().enumerate() {
        let (endpoint, account) = of(case);
        let account = account.expect("an account");
        let network = case["network"].as_str().unwrap_or("finney");
        let name = format!("{index}: {endpoint:?} {account} on {network}");
        let want = case["accepted"].as_bool().expect("a verdict");
        let block_0 = match network {
            "finney" => FINNEY,
            "test" => TEST,
            _ => OTHER,
        };
        if block_0 != OTHER {
            let named = settings(endpoint, account, &[("BT_NETWORK", network)]);
            cases.equal(format!("{name}, by name"), named.is_ok(), want);
        }
        let told = settings(endpoint, account, &[("BT_NETWORK", "custom"), NODE]);
        let genesis = <[u8; 32]>::try_from(hex::decode(block_0).expect("hex")).expect("32 bytes");
        let told = told.and_then(|settings| settings.judged_on(&genesis).map_err(|errors| errors.to_string()));
        cases.equal(format!("{name}, by block 0"), told.is_ok(), want);
    }
}

fn settings(endpoint: Option<&str>, account: &str, more: &[(&str, &str)]) -> Result<Settings, String> {
    let (id, secret) = ("b".repeat(32), "d".repeat(64));
    let (write_id, write_secret) = ("c".repeat(32), "e".repeat(64));
    let mut variables = vec![
        ("R2_ACCOUNT_ID", account),
        ("R2_BUCKET_ID", account),
        ("R2_READ_ACCESS_KEY_ID", &id),
        ("R2_READ_SECRET_ACCESS_KEY", &secret),
        ("R2_WRITE_ACCESS_KEY_ID", &write_id),
        ("R2_WRITE_SECRET_ACCESS_KEY", &write_secret),
    ];
    variables.extend(endpoint.map(|endpoint| ("R2_ENDPOINT_URL", endpoint)));
    variables.extend(more);
    let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    load(&Sources { environment, ..Sources::default() }).map(|loaded| loaded.settings).map_err(|errors| errors.to_string())
}
