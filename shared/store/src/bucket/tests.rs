//! The client against the local server.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::{Bucket, BucketError, BucketSettings, ObjectHead, RetryPolicy, Secret, TransferLimits};
use crate::local_server::{KeyPair, LocalBucketServer, LocalBucketSettings, LocalServerError};

/// A server over a temporary folder with one bucket `miner`.
pub(crate) struct Fixture {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) server: LocalBucketServer,
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pair = |id: &str| KeyPair { access_key_id: id.into(), secret_access_key: Secret::new(format!("{id}-secret")) };
        let settings = LocalBucketSettings {
            folder: folder.path().to_owned(),
            address: "127.0.0.1:0".parse().unwrap(),
            writer: pair("writer"),
            reader: Some(pair("reader")),
            buckets: vec!["miner".into()],
        };
        let server = LocalBucketServer::start_with(&settings).await.unwrap();
        Self { folder, server }
    }

    pub(crate) fn bucket(&self, id: &str) -> Bucket {
        bucket(&self.server.endpoint(), "miner", id, &format!("{id}-secret"))
    }
}

fn bucket(endpoint: &str, name: &str, id: &str, secret: &str) -> Bucket {
    let limits = TransferLimits { part_bytes: 5 << 20, reply: Duration::from_secs(60), ..TransferLimits::default() };
    let settings = BucketSettings {
        endpoint: endpoint.into(),
        region: "us-east-1".into(),
        bucket: name.into(),
        access_key_id: id.into(),
        secret_access_key: Secret::new(secret),
        limits,
    };
    assert!(!format!("{settings:?}").contains("-secret"));
    Bucket::new(&settings).unwrap()
}

fn once() -> RetryPolicy {
    RetryPolicy::once(Duration::from_secs(120))
}

#[tokio::test]
async fn objects_come_back_as_they_were_put() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    let key = "grail/windows/5F-window-30.parquet";
    bucket.put(key, vec![7_u8; 300_000], &once()).await.unwrap();
    assert_eq!(bucket.get(key, 300_000).await.unwrap(), vec![7_u8; 300_000]);
    assert!(matches!(bucket.get(key, 299_999).await, Err(BucketError::TooLarge { .. })));
    let head = bucket.head(key).await.unwrap().unwrap();
    assert_eq!(head.size, 300_000);
    assert!(head.last_modified.unwrap() > SystemTime::UNIX_EPOCH && head.etag.is_some());
    assert_eq!(bucket.head("nothing").await.unwrap(), None);
    assert!(matches!(bucket.get("nothing", 10).await, Err(BucketError::NotFound(_))));
    bucket.put("grail/empty", "", &once()).await.unwrap();
    assert_eq!(bucket.list("grail/").await.unwrap(), ["grail/empty", key]);
    bucket.delete(key).await.unwrap();
    bucket.delete(key).await.unwrap();
    assert_eq!(bucket.list("grail/").await.unwrap(), ["grail/empty"]);
}

#[tokio::test]
async fn listings_span_pages() {
    let fixture = Fixture::start().await;
    let folder = fixture.folder.path().join("miner/many");
    std::fs::create_dir(&folder).unwrap();
    for index in 0..2_345 {
        std::fs::write(folder.join(format!("{index:05}")), "").unwrap();
    }
    let keys = fixture.bucket("reader").list("many/").await.unwrap();
    assert_eq!((keys.len(), keys.first().unwrap().as_str()), (2_345, "many/00000"));
}

#[tokio::test]
async fn large_files_travel_in_parts_and_back_to_disk() {
    let fixture = Fixture::start().await;
    let bucket = fixture.bucket("writer");
    let content: Vec<u8> = (0..12_000_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (up, down) = (fixture.folder.path().join("up"), fixture.folder.path().join("down"));
    for (size, name) in [(content.len(), "large"), (1_000, "small"), (0, "none")] {
        std::fs::write(&up, &content[..size]).unwrap();
        bucket.put_file(name, &up, &once()).await.unwrap();
        bucket.put_bytes("memory", &content[..size].to_vec().into(), &once()).await.unwrap();
        assert_eq!(bucket.get("memory", size as u64).await.unwrap(), content[..size]);
        let head = bucket.head(name).await.unwrap().unwrap();
        let told = std::sync::atomic::AtomicU64::new(0);
        let received = |bytes| {
            told.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        };
        let digest = bucket.download(name, &down, &head, &received).await.unwrap();
        assert_eq!(told.into_inner(), size as u64);
        assert_eq!((digest.size, std::fs::read(&down).unwrap()), (size as u64, content[..size].to_vec()));
        assert_eq!(digest.sha256, crate::checkpoint::file_sha256(&up).unwrap());
        std::fs::remove_file(&down).unwrap();
    }
    // A beginning is gone on with, and a wrong one shows in the hash.
    let head = bucket.head("large").await.unwrap().unwrap();
    for (beginning, same) in [(&content[..5_000_000], true), (&content[1..100], false), (&content[..], true)] {
        std::fs::write(&down, beginning).unwrap();
        let digest = bucket.download("large", &down, &head, &|_| ()).await.unwrap();
        assert_eq!(digest.sha256 == crate::checkpoint::file_sha256(&up.with_file_name("miner/large")).unwrap(), same);
    }
    let other = ObjectHead { size: head.size + 1, ..head };
    std::fs::remove_file(&down).unwrap();
    assert!(matches!(bucket.download("large", &down, &other, &|_| ()).await, Err(BucketError::Replaced(_))));
    let missing = bucket.put_file("x", &fixture.folder.path().join("absent"), &once()).await;
    assert!(matches!(missing, Err(BucketError::Local { .. })));
}

#[tokio::test]
async fn the_preflight_tells_apart_what_an_operator_has_to_mend() {
    let fixture = Fixture::start().await;
    fixture.bucket("writer").probe_write().await.unwrap();
    assert!(fixture.bucket("writer").list("").await.unwrap().is_empty(), "the probe is removed");
    let read_only = fixture.bucket("reader").probe_write().await.unwrap_err();
    assert!(matches!(read_only, BucketError::ReadOnly { .. }), "{read_only}");
    let endpoint = fixture.server.endpoint();
    let denied = bucket(&endpoint, "miner", "writer", "wrong-secret").probe_write().await.unwrap_err();
    assert!(matches!(denied, BucketError::Denied { .. }), "{denied}");
    let stranger = bucket(&endpoint, "miner", "nobody", "x-secret").probe_write().await.unwrap_err();
    assert!(matches!(stranger, BucketError::Denied { .. }), "{stranger}");
    let absent = bucket(&endpoint, "other", "writer", "writer-secret").list("").await.unwrap_err();
    assert!(matches!(absent, BucketError::NoBucket(_)), "{absent}");
    for part in ["writer-secret", "wrong-secret"] {
        assert!(!denied.to_string().contains(part));
    }
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_reported_in_bounded_time() {
    let fixture = Fixture::start().await;
    let (endpoint, bucket) = (fixture.server.endpoint(), fixture.bucket("writer"));
    fixture.server.stop().await;
    let policy = RetryPolicy { overall: Duration::from_secs(2), ..RetryPolicy::default() };
    let put = tokio::time::timeout(Duration::from_secs(60), bucket.put("k", "v", &policy)).await.expect("within its time");
    let error = put.unwrap_err();
    assert!(matches!(error, BucketError::Unreachable { .. }) && error.to_string().contains(&endpoint), "{error}");
}

#[tokio::test]
async fn an_endpoint_that_accepts_and_never_answers_is_reported_in_bounded_time() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = bucket(&format!("http://{}", listener.local_addr().unwrap()), "miner", "writer", "writer-secret");
    let policy = RetryPolicy::once(Duration::from_millis(300));
    let put = silent.put("k", "v", &policy);
    let error = tokio::time::timeout(Duration::from_secs(60), put).await.expect("within its time").unwrap_err();
    assert!(matches!(error, BucketError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let fixture = Fixture::start().await;
    let address = fixture.server.address();
    let error = LocalBucketServer::start(fixture.folder.path(), address, "a", "b", &["miner"]).await.unwrap_err();
    assert!(matches!(error, LocalServerError::Address { .. }) && error.to_string().contains(&address.port().to_string()));
    let start = LocalBucketServer::start(fixture.folder.path(), address, "a", "b", &["../up"]);
    assert!(matches!(start.await, Err(LocalServerError::BucketName(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_never_sees_half_an_object() {
    let fixture = Fixture::start().await;
    let writer = fixture.bucket("writer");
    let body = |value: u8| Bytes::from(vec![value; 2_000_000]);
    writer.put("object", body(0), &once()).await.unwrap();
    let reader = fixture.bucket("reader");
    let reading = tokio::spawn(async move {
        for _ in 0..40 {
            let bytes = reader.get("object", 2_000_000).await.unwrap();
            assert_eq!(bytes.len(), 2_000_000);
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a mixture of two writes");
        }
    });
    let mut value = 0_u8;
    while !reading.is_finished() {
        value = value.wrapping_add(1);
        writer.put("object", body(value), &once()).await.unwrap();
    }
    reading.await.unwrap();
}

#[test]
fn wrong_settings_are_refused_at_once() {
    let good = BucketSettings {
        endpoint: "https://account.example.com".into(),
        region: "auto".into(),
        bucket: "b".into(),
        access_key_id: "k".into(),
        secret_access_key: Secret::new("s"),
        limits: TransferLimits::default(),
    };
    assert!(Bucket::new(&good).is_ok(), "a TLS client can be made");
    for wrong in [
        BucketSettings { endpoint: "account.example.com".into(), ..good.clone() },
        BucketSettings { endpoint: "https://".into(), ..good.clone() },
        BucketSettings { bucket: " ".into(), ..good.clone() },
        BucketSettings { secret_access_key: Secret::new(""), ..good.clone() },
    ] {
        assert!(matches!(Bucket::new(&wrong), Err(BucketError::Settings(_))));
    }
}
