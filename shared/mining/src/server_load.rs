//! What a generation server says about its load: `/metrics` in Prometheus' text form, as SGLang and vLLM write it
//! (generation-servers 1.7 and 2.1).

use std::time::Duration;

use grail_secrets::Address;

use crate::schedule::ServerLoad;

/// A server that is slower than this says nothing.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer that is read, in bytes.
const MOST: usize = 4 << 20;
/// Names of requests running, requests waiting and the share of the cache in use.
const NAMES: [[&str; 3]; 2] = [
    ["sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage"],
    ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"],
];

/// Asks the server at `url`; `None` where it does not tell.
pub async fn ask(http: &reqwest::Client, url: &Address) -> Option<ServerLoad> {
    let mut answer =
        http.get(format!("{}/metrics", url.reveal())).timeout(PATIENCE).send().await.ok()?.error_for_status().ok()?;
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        body.extend_from_slice(&chunk);
        if body.len() > MOST {
            return None;
        }
    }
    read(std::str::from_utf8(&body).ok()?)
}

/// Reads an exposition. Counts of several ranks or models are added, of the shares the largest counts.
pub fn read(text: &str) -> Option<ServerLoad> {
    let values = |name: &str| {
        let lines = text.lines().filter_map(move |line| line.strip_prefix(name));
        let of_name = lines.filter(|rest| rest.starts_with(['{', ' ']));
        of_name
            .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
            .filter(|value| value.is_finite())
            .collect::<Vec<_>>()
    };
    let [running, queued, cache] = NAMES.into_iter().map(|names| names.map(values)).find(|[running, ..]| !running.is_empty())?;
    let cache_use = cache.into_iter().fold(0.0, f64::max);
    Some(ServerLoad { running: running.iter().sum(), queued: queued.iter().sum(), cache_use })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_servers_are_read_and_nothing_else() {
        let sglang = "# HELP sglang:num_running_reqs x\nsglang:num_running_reqs{model_name=\"a b\",tp_rank=\"0\"} 512.0\n\
            sglang:num_running_reqs_offline_batch{} 3.0\nsglang:num_queue_reqs{x=\"y\"} 40\nsglang:token_usage 0.81\n";
        assert_eq!(read(sglang), Some(ServerLoad { running: 512.0, queued: 40.0, cache_use: 0.81 }));
        let vllm = "vllm:num_requests_running{engine=\"0\"} 10.0\nvllm:num_requests_running{engine=\"1\"} 12.0\n\
            vllm:num_requests_waiting{engine=\"0\"} 0.0\nvllm:kv_cache_usage_perc{engine=\"0\"} NaN\n";
        assert_eq!(read(vllm), Some(ServerLoad { running: 22.0, queued: 0.0, cache_use: 0.0 }));
        assert_eq!(read("<html>"), None);
    }
}
