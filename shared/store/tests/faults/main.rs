//! What the client makes of a service that errs: a proxy before the local server that answers as R2 and AWS do on bad days.

// The lints spare test functions only, not what they share.
#![allow(clippy::unwrap_used)]

mod proxy;

use std::time::Duration;

use grail_process::Meter;
use grail_store::bucket::{Bucket, BucketError, BucketSettings, RetryPolicy, Secret, TransferLimits};
use grail_store::checkpoint::{CheckpointError, FetchLimits, Fetcher, PublishTerms, checkpoint_dir, publish_full, verify_dir};
use grail_store::local_server::LocalBucketServer;
use proxy::{Fault, Proxy};

struct TestBucket {
    bucket: Bucket,
    proxy: Proxy,
    folder: tempfile::TempDir,
    _server: LocalBucketServer,
}

impl TestBucket {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        let buckets = folder.path().join("buckets");
        let server = LocalBucketServer::start(&buckets, address, "key", "secret", &["miner"]).await.unwrap();
        let proxy = Proxy::start(server.endpoint()).await;
        let limits = TransferLimits { part_bytes: 5 << 20, reply: Duration::from_secs(2), ..TransferLimits::default() };
        let bucket = Bucket::new(&BucketSettings {
            endpoint: proxy.endpoint(),
            region: "auto".into(),
            bucket: "miner".into(),
            access_key_id: "key".into(),
            secret_access_key: Secret::new("secret"),
            limits,
        })
        .unwrap();
        Self { bucket, proxy, folder, _server: server }
    }
}

fn quickly() -> RetryPolicy {
    let milliseconds = Duration::from_millis;
    RetryPolicy { first_wait: milliseconds(20), first_wait_throttled: milliseconds(400), ..RetryPolicy::default() }
}

#[tokio::test]
async fn errors_that_pass_are_tried_again_and_throttling_more_slowly() {
    let site = TestBucket::start().await;
    for (fault, slow) in [(Fault::Internal, false), (Fault::SlowDown, true), (Fault::Reset, false)] {
        site.proxy.next([fault, fault]);
        let began = tokio::time::Instant::now();
        site.bucket.put("k", "value", &quickly()).await.unwrap();
        // Waits are spread by a quarter: 400 and 800 ms become 900 at least, 20 and 40 ms stay far below where nothing hangs.
        assert!(!slow || began.elapsed() > Duration::from_millis(850), "{fault:?}");
        assert_eq!(site.proxy.take_count("PUT"), 3, "{fault:?}");
        site.proxy.next([fault]);
        assert_eq!(site.bucket.get("k", 10).await.unwrap(), "value");
    }
    site.proxy.next([Fault::Truncated]);
    assert_eq!(site.bucket.get("k", 10).await.unwrap(), "value", "half an object is none");
    site.proxy.next([Fault::Internal; 3]);
    let error = site.bucket.put("k", "value", &quickly()).await.unwrap_err();
    assert!(matches!(error, BucketError::Other { status: 500, .. }), "{error}");
    site.proxy.next([Fault::SlowDown; 3]);
    let error = site.bucket.put("k", "value", &quickly()).await.unwrap_err();
    assert!(error.is_throttled(), "{error}");
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_told_at_once() {
    let site = TestBucket::start().await;
    site.proxy.next([Fault::Skewed]);
    let error = site.bucket.put("k", "value", &quickly()).await.unwrap_err();
    let BucketError::Clock { skew_seconds: Some(skew), .. } = &error else { panic!("{error}") };
    assert!((1170.0..1230.0).contains(skew) && error.to_string().contains("s ahead). Set this machine's clock"), "{error}");
    assert_eq!(site.proxy.take_count("PUT"), 1, "no second attempt can help");
}

/// R2 knows none of the newer SDKs' checksums; every kind of request has to do without them.
#[tokio::test]
async fn no_request_carries_what_r2_refuses() {
    let site = TestBucket::start().await;
    site.proxy.refuse_checksums();
    let large = vec![7_u8; 11 << 20];
    let (up, down) = (site.folder.path().join("up"), site.folder.path().join("down"));
    std::fs::write(&up, &large).unwrap();
    site.bucket.probe_write().await.unwrap();
    site.bucket.put_bytes("small", &vec![1; 100].into(), &quickly()).await.unwrap();
    site.bucket.put_file("large", &up, &quickly()).await.unwrap();
    assert_eq!(site.bucket.list("").await.unwrap(), ["large", "small"]);
    let head = site.bucket.head("large").await.unwrap().unwrap();
    let digest = site.bucket.download("large", &down, &head, &|_| ()).await.unwrap();
    assert_eq!(digest.size, large.len() as u64);
    assert!(site.proxy.take_count("PUT") >= 5, "three parts are among them");
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_and_another_object_is_not_mixed_in() {
    let site = TestBucket::start().await;
    let content: Vec<u8> = (0..20_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    site.bucket.put_bytes("object", &content.clone().into(), &quickly()).await.unwrap();
    let head = site.bucket.head("object").await.unwrap().unwrap();
    let path = site.folder.path().join("down");
    // Bodies that end early, with the length of a whole one announced.
    site.proxy.next([Fault::Truncated, Fault::Truncated]);
    let digest = site.bucket.download("object", &path, &head, &|_| ()).await.unwrap();
    assert_eq!((digest.size, std::fs::read(&path).unwrap() == content), (content.len() as u64, true));
    // Whatever comes under another tag is another object's.
    std::fs::write(&path, &content[..1000]).unwrap();
    site.proxy.next([Fault::WrongTag]);
    let error = site.bucket.download("object", &path, &head, &|_| ()).await.unwrap_err();
    assert!(matches!(error, BucketError::Replaced(_)), "{error}");
    let kept = std::fs::read(&path).unwrap();
    assert!(kept.len() >= 1000 && content.starts_with(&kept), "what lies in the file is still a beginning");
    let digest = site.bucket.download("object", &path, &head, &|_| ()).await.unwrap();
    assert_eq!(digest.size, content.len() as u64);
}

#[tokio::test]
async fn a_service_that_accepts_and_says_nothing_costs_one_attempt() {
    let site = TestBucket::start().await;
    site.bucket.put("k", "value", &quickly()).await.unwrap();
    site.proxy.next([Fault::Silent]);
    let began = tokio::time::Instant::now();
    assert_eq!(site.bucket.get("k", 10).await.unwrap(), "value");
    assert!(began.elapsed() >= Duration::from_secs(2), "the first attempt had its time");
}

/// What lies in the bucket is sound, and every download of it gives other bytes: nobody else is told to refuse it, nothing of it is
/// believed, and it is had as soon as the way is steady.
#[tokio::test]
async fn bytes_that_change_on_the_way_are_not_blamed_on_the_checkpoint() {
    let site = TestBucket::start().await;
    let model = site.folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let header = r#"{"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}}"#;
    let weights = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), b"first"].concat();
    let files = [
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("tokenizer_config.json", br#"{"chat_template": "x"}"#.to_vec()),
        ("model.safetensors", weights),
    ];
    files.iter().for_each(|(name, bytes)| std::fs::write(model.join(name), bytes).unwrap());
    let terms = PublishTerms {
        window: 30,
        ready_window: 30,
        model_name: "model".into(),
        env_id: "gsm8k".into(),
        env_params: serde_json::json!({}),
        generation_params: serde_json::json!({
            "max_tokens": 128, "temperature": 0.7, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.0
        }),
        thinking_mode: "instructed".into(),
        training_config: serde_json::json!({}),
        git_commit: "unknown".into(),
        created_at: 0.0,
        parent_window: None,
    };
    publish_full(&site.bucket, &model, &terms, None, &Meter::default()).await.unwrap();
    let (cache, limits) = (site.folder.path().join("cache"), FetchLimits::default());
    let fetcher = Fetcher { bucket: &site.bucket, cache_root: &cache, limits: &limits, observer: &|_| () };
    site.proxy.unsteady(Some("model.safetensors"));
    for _ in 0..2 {
        let error = fetcher.fetch(30).await.unwrap_err();
        let CheckpointError::Unsteady { window: 30, name, before, got, want } = &error else { panic!("{error}") };
        assert_eq!(name, "model.safetensors");
        assert!(before != got && before != want && got != want, "{error}");
        assert!(!checkpoint_dir(&cache, 30).exists());
    }
    site.proxy.unsteady(None);
    let fetched = fetcher.fetch(30).await.unwrap();
    assert!(verify_dir(&fetched.dir).unwrap().is_some());
}

/// How a service that never comes to an end answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endless {
    /// Any status, with a body that goes on for ever.
    Body(u16),
    /// Pages without keys, each with another one behind it.
    Pages,
    /// Headers that go on for ever.
    Headers,
}

/// Serves one connection after another; counts what was taken of it.
async fn endless(listener: tokio::net::TcpListener, how: Endless, taken: std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    use std::sync::atomic::Ordering::Relaxed;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut pages = 0_u32;
    while let Ok((mut socket, _)) = listener.accept().await {
        let mut request = vec![0; 16 << 10];
        let mut have = 0;
        while !request[..have].windows(4).any(|end| end == b"\r\n\r\n") {
            match socket.read(&mut request[have..]).await {
                Ok(more) if more > 0 => have += more,
                _ => break,
            }
        }
        let piece = vec![b' '; 64 << 10];
        let (begin, piece) = match how {
            Endless::Body(status) => (format!("HTTP/1.1 {status} X\r\ncontent-type: application/xml\r\n\r\n"), piece),
            Endless::Headers => ("HTTP/1.1 200 OK\r\n".into(), format!("x-amz-meta-x: {}\r\n", "x".repeat(8000)).into_bytes()),
            Endless::Pages => {
                pages += 1;
                let page = format!(
                    "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>{pages}</NextContinuationToken></ListBucketResult>"
                );
                (format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}", page.len()), Vec::new())
            }
        };
        if socket.write_all(begin.as_bytes()).await.is_err() {
            continue;
        }
        while !piece.is_empty() && socket.write_all(&piece).await.is_ok() {
            taken.fetch_add(piece.len(), Relaxed);
        }
        taken.fetch_add(1, Relaxed);
    }
}

/// Only an object's own bytes may be many, and who reads them says how many.
#[tokio::test]
async fn answers_that_never_end_are_broken_off() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    for how in [Endless::Body(200), Endless::Body(404), Endless::Body(500), Endless::Headers, Endless::Pages] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (endpoint, taken) = (format!("http://{}", listener.local_addr().unwrap()), Arc::new(AtomicUsize::new(0)));
        let serving = tokio::spawn(endless(listener, how, taken.clone()));
        let limits = TransferLimits { reply: Duration::from_secs(60), ..TransferLimits::default() };
        let settings = BucketSettings {
            endpoint,
            region: "auto".into(),
            bucket: "miner".into(),
            access_key_id: "key".into(),
            secret_access_key: Secret::new("secret"),
            limits,
        };
        let bucket = Bucket::new(&settings).unwrap();
        let once = RetryPolicy::once(Duration::from_secs(120));
        // What the bound allows, and what lies in the buffers of both sockets.
        let most = |requests: usize, what: &str| {
            let taken = taken.swap(0, Ordering::Relaxed);
            assert!(taken < requests * (48 << 20), "{how:?}: {taken} bytes of {what}");
        };
        let asked = async {
            let listed = bucket.list("grail/").await.unwrap_err();
            most(3, "LIST");
            if how == Endless::Pages {
                return assert!(listed.to_string().contains("pages"), "{listed}");
            }
            let written = bucket.put("key", "value", &once).await;
            most(1, &format!("PUT {written:?}"));
            let got = bucket.get("key", 1000).await.unwrap_err();
            most(3, &format!("GET {got}"));
            let text = format!("{listed} {got}");
            assert!(how != Endless::Body(500) || text.contains("its answer has more than"), "{how:?}: {text}");
        };
        // Without bounds nothing of this ever ends.
        tokio::time::timeout(Duration::from_secs(300), asked).await.unwrap_or_else(|_| panic!("{how:?} is read for ever"));
        serving.abort();
    }
}
