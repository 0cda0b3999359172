//! `make bench`: what a completion costs the supervisor's client, with 1,152 requests in flight (72 groups) to a server that
//! answers at once. CPU time of the client's thread alone; the stub has a thread of its own.
#![allow(clippy::disallowed_methods, missing_docs, reason = "a benchmark reads the clock")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use grail_engines::Engine;
use grail_link::message::Revision;
use grail_protocol::generation_params::GenerationParams;
use grail_workers::completions::Completions;
use grail_workers::{Replica, Replicas, Serving, Traffic};
use nix::sys::resource::{UsageWho, getrusage};

const IN_FLIGHT: u32 = 1152;
const ROUNDS: usize = 12;
const PROMPT: u32 = 200;
const COMPLETION: u32 = 680;

fn stub(revision: &Revision) -> std::io::Result<String> {
    let ids: Vec<String> = (0..COMPLETION).map(|id| (id * 37 % 151_936).to_string()).collect();
    let body = format!(
        "{{\"output_ids\":[{}],\"meta_info\":{{\"finish_reason\":{{\"type\":\"length\"}},\"weight_version\":\"{revision}\"}}}}",
        ids.join(",")
    );
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            // A connection costs a thread here, so that nothing of the stub runs on the client's.
            let _ = std::thread::Builder::new().stack_size(64 << 10).spawn(move || serve(stream, &answer));
        }
    });
    Ok(url)
}

/// Answers every request of a connection. Requests come one after the other, each in full before the next.
fn serve(mut stream: TcpStream, answer: &str) {
    let mut request = Vec::new();
    let mut piece = [0; 8192];
    while let Ok(read) = stream.read(&mut piece) {
        if read == 0 {
            return;
        }
        request.extend_from_slice(&piece[..read]);
        // Every body ends like this, and nothing else does.
        if request.ends_with(b"\"return_token_ids\":true}") {
            request.clear();
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

fn cpu() -> Result<Duration, nix::Error> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(Duration::from_secs_f64(seconds(usage.user_time()) + seconds(usage.system_time())))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let revision = Revision { window: 30, weights_hash: "ab".into() };
    let serving = Serving { revision: revision.clone(), url: stub(&revision)?.into(), context_length: 4096 };
    let (_server, serving) = tokio::sync::watch::channel(Some(serving));
    let replicas = Replicas::new(vec![Replica { serving, traffic: Traffic::default() }]);
    let prompt: Vec<u32> = (0..PROMPT).map(|id| id * 101 % 151_936).collect();
    let params =
        GenerationParams { max_new_tokens: 2048, temperature: 0.7, top_p: 0.9, top_k: Some(50), repetition_penalty: 1.0 };
    let client = Completions::new(Engine::Sglang, IN_FLIGHT)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut costs = Vec::new();
    for _ in 0..ROUNDS {
        let (before, begun) = (cpu()?, Instant::now());
        let done = runtime.block_on(async {
            // Sixteen requests share a home, as those of a group do.
            let homes: Vec<_> = (0..IN_FLIGHT / 16).map(|_| replicas.home()).collect();
            let homes = homes.iter().flat_map(|home| std::iter::repeat_n(home, 16));
            let requests = homes.map(|home| client.complete(home, &prompt, &params, &revision));
            requests.collect::<FuturesUnordered<_>>().filter(|done| std::future::ready(done.is_ok())).count().await
        });
        assert_eq!(done, IN_FLIGHT as usize, "every request is answered");
        costs.push(((cpu()? - before).as_secs_f64() / done as f64, begun.elapsed().as_secs_f64() / done as f64));
    }
    // The first round opens the connections.
    let opened = costs.remove(0);
    costs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (least, median) = (costs[0], costs[costs.len() / 2]);
    println!("a completion of {COMPLETION} tokens, {IN_FLIGHT} in flight, µs of the client's CPU:");
    println!("  least {:.1}   median {:.1}   with a new connection {:.1}", least.0 * 1e6, median.0 * 1e6, opened.0 * 1e6);
    println!("  median time on the clock {:.1} µs", median.1 * 1e6);
    Ok(())
}
