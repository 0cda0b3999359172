//! The generation server's client against a server that answers as it is told, over a real socket.

// The lint spares test functions only, not what they share.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use grail_engines::Engine;
use grail_link::message::Revision;
use grail_protocol::generation_params::GenerationParams;
use grail_secrets::Secret;
use grail_workers::completions::{Completion, CompletionError, Completions};
use grail_workers::{Replica, Replicas, Serving, Traffic};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;

const PARAMS: GenerationParams =
    GenerationParams { max_new_tokens: 8, temperature: 0.7, top_p: 0.9, top_k: None, repetition_penalty: 1.0 };

fn revision() -> Revision {
    Revision { window: 30, weights_hash: "ab".into() }
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn completion(versions: &[&str], end: &str) -> String {
    let spans: Vec<String> = versions.iter().map(|version| format!("{{\"version\":\"{version}\"}}")).collect();
    let (spans, last) = (spans.join(","), versions.last().unwrap());
    format!(
        "{{\"output_ids\":[5,2],\"meta_info\":{{\"finish_reason\":{{\"type\":\"{end}\"}},\"weight_version\":\"{last}\",\
         \"weight_versions\":[{spans}]}}}}"
    )
}

/// Answers its connections with `answers` in turn (the last one for ever), and counts them. `KEYED` is left out of what is said to
/// somebody with the key.
async fn serve(answers: Vec<String>) -> (Serving, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let text = answers[seen.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)].clone();
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).await.unwrap_or(0);
                let keyed = String::from_utf8_lossy(&request[..read]).to_lowercase().contains("authorization: bearer k1\r\n");
                let text = if keyed { text.replace("KEYED", "") } else { text };
                let _ = stream.write_all(text.as_bytes()).await;
            });
        }
    });
    (Serving { revision: revision(), url: url.into(), context_length: 64 }, count)
}

async fn ask(answers: Vec<String>) -> (Result<Completion, CompletionError>, usize) {
    ask_with(&[], answers).await
}

async fn ask_with(credentials: &[(String, Secret)], answers: Vec<String>) -> (Result<Completion, CompletionError>, usize) {
    let (serving, count) = serve(answers).await;
    let client = Completions::keyed(Engine::Sglang, 4, credentials).unwrap();
    let (_server, serving) = watch::channel(Some(serving));
    let home = Replicas::new(vec![Replica { serving, traffic: Traffic::default() }]).home();
    let completion = client.complete(&home, &[1, 2, 3], &PARAMS, &revision()).await;
    (completion, count.load(Ordering::SeqCst))
}

#[tokio::test]
async fn overload_and_a_broken_connection_are_tried_again() {
    let good = revision().to_string();
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"output_ids\":[5,".to_owned();
    let full = answer("503 Service Unavailable", "{\"object\":\"error\",\"message\":\"queue full\",\"code\":503}");
    let (completion, asked) = ask(vec![full, cut, answer("200 OK", &completion(&[&good], "stop"))]).await;
    assert_eq!((completion.unwrap().ids, asked), (vec![5, 2], 3));
}

#[tokio::test]
async fn an_aborted_request_inside_a_200_is_no_completion() {
    let (completion, asked) = ask(vec![answer("200 OK", &completion(&[&revision().to_string()], "abort"))]).await;
    let error = completion.unwrap_err().to_string();
    assert!(error.contains("ended with \"abort\"") && error.contains("3 attempts"), "{error}");
    assert_eq!(asked, 3);
}

#[tokio::test]
async fn a_completion_that_crossed_an_update_is_not_taken_and_not_asked_for_again() {
    let new = revision().to_string();
    let (completion, asked) = ask(vec![answer("200 OK", &completion(&["old", &new], "stop"))]).await;
    assert!(matches!(completion, Err(CompletionError::OtherRevision { found, .. }) if found == "old"));
    assert_eq!(asked, 1);
}

#[tokio::test]
async fn requests_carry_the_key_that_the_server_was_started_with() {
    let locked = answer("200 OK", &completion(&[&revision().to_string()], "stop")).replacen("200 OK", "KEYED200 OK", 1);
    let key = ("--api-key".to_owned(), Secret::new("k1"));
    let (completion, asked) = ask_with(std::slice::from_ref(&key), vec![locked.clone()]).await;
    assert_eq!((completion.unwrap().ids, asked), (vec![5, 2], 1));
    assert!(ask(vec![locked]).await.0.is_err(), "nobody else gets anything");
}
