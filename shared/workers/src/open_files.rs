//! How the descriptors that this process may have are divided: requests to the generation servers are many and can wait, uploads,
//! downloads, the spool and the children are few and cannot. Pure.

use grail_process::limits;
use grail_settings::Settings;

/// Descriptors for everything but requests: links, pipes and handles of children, logs and records, the chain, buckets.
pub const BESIDE_REQUESTS: u64 = 192;
/// Of a small limit that is not for requests, in quarters.
const LEAST_QUARTERS: u64 = 3;
/// What one request may have: its connection, and one that was begun while it waited for another to become free.
pub const PER_REQUEST: u64 = 2;

/// Requests that may be in flight at once where so many descriptors are allowed, at most `wanted` and at least one.
pub fn requests(allowed: u64, wanted: u32) -> u32 {
    let kept = BESIDE_REQUESTS.min(allowed / 4 * LEAST_QUARTERS);
    let left = allowed.saturating_sub(kept) / PER_REQUEST;
    u32::try_from(left).unwrap_or(u32::MAX).clamp(1, wanted.max(1))
}

/// The setting, or fewer where the limit of open files allows no more (see [`requests`]).
pub fn requests_at_once(settings: &Settings) -> u32 {
    let wanted = settings.generation.max_concurrent;
    let allowed = match limits::open_files() {
        Ok(allowed) => allowed,
        Err(error) => {
            tracing::warn!(%error, "The limit of open files cannot be read.");
            return wanted;
        }
    };
    let requests = requests(allowed, wanted);
    if requests < wanted {
        tracing::warn!(
            allowed,
            wanted,
            requests,
            "The hard limit of open files allows fewer requests at once than generation.max_concurrent (systemd: LimitNOFILE=, Docker: \
             --ulimit nofile=)."
        );
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_take_what_the_others_leave() {
        let of = |allowed| requests(allowed, 1920);
        assert_eq!([64, 256, 1024, 4096, 1 << 20, u64::MAX].map(of), [8, 32, 416, 1920, 1920, 1920]);
        assert_eq!((requests(0, 64), requests(8, 64), requests(1 << 20, 0)), (1, 1, 1));
    }
}
