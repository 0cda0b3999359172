//! Relays of drand: in order, verified, and none of them believed.

use crate::common::vectors;
use axum::Router;
use axum::routing::get;
use grail_chain::beacon::CHAIN_HASH;
use grail_chain::relays::Relays;
use serde_json::Value;

/// A relay that always answers the same.
async fn relay(answer: String) -> String {
    let app = Router::new().route(&format!("/{CHAIN_HASH}/public/latest"), get(move || async move { answer }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    format!("http://{address}")
}

#[tokio::test]
async fn the_first_round_that_verifies_is_taken() {
    let file: Value = serde_json::from_slice(&std::fs::read(vectors().join("chain/drand.json")).unwrap()).unwrap();
    let (good, lie) = (&file["rounds"][1], &file["tampered"][3]);
    let time = good["time"].as_f64().unwrap() + 4.0;
    let addresses = vec![
        "http://127.0.0.1:1".to_owned(),
        relay(lie.to_string()).await,
        relay("x".repeat(100_000)).await,
        relay(good.to_string()).await,
    ];
    let relays = Relays::new(addresses.clone()).unwrap();
    assert_eq!(relays.latest(|| time).await.unwrap(), (123, good["randomness"].as_str().unwrap().to_owned()));
    let late = relays.latest(|| time + 3600.0).await.unwrap_err().to_string();
    assert!(late.contains("the relay lags") && late.contains("16384 bytes"), "{late}");
    let lying = Relays::new(addresses[..3].to_vec()).unwrap().latest(|| time).await.unwrap_err().to_string();
    assert!(lying.contains("is not drand's"), "{lying}");
}

/// Every round below is drand's own, signature and all; only it is not the one that is due.
#[tokio::test]
async fn a_real_round_that_is_not_the_one_due_is_refused() {
    let file: Value = serde_json::from_slice(&std::fs::read(vectors().join("chain/drand.json")).unwrap()).unwrap();
    let rounds = file["rounds"].as_array().unwrap();
    let due = &rounds[1];
    let time = due["time"].as_f64().unwrap() + 4.0;
    let others = rounds.iter().filter(|round| round["round"].as_u64().unwrap().abs_diff(123) > 100);
    let mut seen = 0;
    for other in others {
        let served = relay(other.to_string()).await;
        let error = Relays::new(vec![served]).unwrap().latest(|| time).await.unwrap_err().to_string();
        assert!(error.contains(&format!("round {} was served where round 124 is due", other["round"])), "{error}");
        // The same, as if it were the one that is due.
        let mut relabelled = other.clone();
        relabelled["round"] = due["round"].clone();
        let addresses = vec![relay(relabelled.to_string()).await, relay(due.to_string()).await];
        let error = Relays::new(addresses[..1].to_vec()).unwrap().latest(|| time).await.unwrap_err().to_string();
        assert!(error.contains("the signature of round 123 is not drand's"), "{error}");
        // The next relay's is taken.
        let found = Relays::new(addresses).unwrap().latest(|| time).await.unwrap();
        assert_eq!(found, (123, due["randomness"].as_str().unwrap().to_owned()));
        seen += 1;
    }
    assert!(seen > 2, "the vectors hold other rounds");
}
