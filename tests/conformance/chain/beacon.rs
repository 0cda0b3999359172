//! Rounds of drand.

use grail_chain::beacon::{CHAIN_HASH, Round, RoundError, round_at};
use serde_json::Value;

use crate::report::{Case, Cases, Report, json};

pub fn run(report: &mut Report) {
    report.check("chain/drand.json", |path, cases| {
        let file = json(path);
        cases.equal("chain", Some(CHAIN_HASH), file["info"]["chain_hash"].as_str());
        for case in file["rounds"].as_array().expect("rounds") {
            cases.case(format!("round {}", case["round"]), || judged(case, true));
        }
        for case in file["tampered"].as_array().expect("tampered") {
            let good = case["signature_valid"] == true && case["randomness_valid"] != false;
            cases.case(format!("tampered: {}", case["note"]), || judged(case, good));
        }
        for case in file["round_at"].as_array().expect("round_at") {
            let time = case["time"].as_f64().expect("a time");
            cases.equal(format!("round at {time}"), Some(round_at(time)), case["round"].as_u64());
        }
        times(&file["rounds"][1], cases);
    });
}

fn judged(case: &Value, good: bool) -> Case {
    let round: Round = serde_json::from_value(case.clone()).map_err(|error| error.to_string())?;
    match (round.verified(), good) {
        (Ok(randomness), true) if case["randomness"] == randomness.as_str() => Ok(()),
        (Err(_), false) => Ok(()),
        (got, _) => Err(format!("got {got:?}")),
    }
}

/// A real round of another time is refused.
fn times(case: &Value, cases: &mut Cases) {
    let round: Round = serde_json::from_value(case.clone()).expect("a round");
    let time = case["time"].as_f64().expect("a time");
    cases.case("served in time", || round.verified_at(time + 3.0).map(|_| ()).map_err(|error| error.to_string()));
    cases.case("served late", || match round.verified_at(time + 600.0) {
        Err(RoundError::Time { .. }) => Ok(()),
        other => Err(format!("got {other:?}")),
    });
}
