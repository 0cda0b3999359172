//! The client against two services that know nothing of each other: the repository's own (s3s) and moto's, which verifies
//! signatures and policies in Python. One set of expectations for both.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic, and starts a program of its own")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use futures::{StreamExt, TryStreamExt};
use grail_store::bucket::{Bucket, BucketError, BucketSettings, ObjectHead, RetryPolicy, Secret, TransferLimits};
use grail_store::checkpoint::file_sha256;
use grail_store::local_server::{KeyPair, LocalBucketServer, LocalBucketSettings};
use serde::Deserialize;

/// A service with a bucket, a pair that may do everything in it and one that may only read.
#[derive(Deserialize)]
struct Peer {
    endpoint: String,
    bucket: String,
    writer: (String, String),
    reader: (String, String),
}

impl Peer {
    fn client(&self, bucket: &str, (id, secret): &(String, String)) -> Bucket {
        Bucket::new(&BucketSettings {
            endpoint: self.endpoint.clone(),
            region: "us-east-1".into(),
            bucket: bucket.into(),
            access_key_id: id.clone(),
            secret_access_key: Secret::new(secret),
            limits: TransferLimits { part_bytes: 5 << 20, ..TransferLimits::default() },
        })
        .unwrap()
    }

    fn writer(&self) -> Bucket {
        self.client(&self.bucket, &self.writer)
    }

    fn reader(&self) -> Bucket {
        self.client(&self.bucket, &self.reader)
    }
}

fn policy() -> RetryPolicy {
    RetryPolicy::default()
}

/// Everything that the client relies on.
async fn conforms(peer: &Peer) {
    objects(peer).await;
    large_objects(peer).await;
    growing_objects(peer).await;
    listings(peer).await;
    rights(peer).await;
}

async fn objects(peer: &Peer) {
    let (writer, reader) = (peer.writer(), peer.reader());
    let before = SystemTime::now() - std::time::Duration::from_secs(2);
    for (key, content) in
        [("grail/windows/5F-window-30.parquet", vec![7_u8; 300_000]), ("empty", Vec::new()), ("a b+c%/ü", vec![1])]
    {
        writer.put(key, content.clone(), &policy()).await.unwrap();
        assert_eq!(reader.get(key, 300_000).await.unwrap(), content, "{key}");
        let head = reader.head(key).await.unwrap().unwrap();
        assert_eq!(head.size, content.len() as u64, "{key}");
        assert!(head.last_modified.unwrap() >= before && head.etag.is_some(), "{key}: {head:?}");
        assert_eq!(reader.list(key).await.unwrap(), [key]);
    }
    let key = "grail/windows/5F-window-30.parquet";
    assert!(matches!(reader.get(key, 299_999).await, Err(BucketError::TooLarge { .. })));
    let first = reader.head(key).await.unwrap();
    writer.put(key, "another", &policy()).await.unwrap();
    assert_ne!(reader.head(key).await.unwrap().unwrap().etag, first.unwrap().etag);
    assert_eq!(reader.get(key, 100).await.unwrap(), "another");
    for key in [key, key, "empty", "a b+c%/ü"] {
        writer.delete(key).await.unwrap();
        assert_eq!(reader.head(key).await.unwrap(), None);
        assert!(matches!(reader.get(key, 10).await, Err(BucketError::NotFound(_))));
    }
    assert!(reader.list("").await.unwrap().is_empty());
}

/// In parts upwards; in ranges of one and the same object downwards, from where a file ends.
async fn large_objects(peer: &Peer) {
    let (writer, reader, folder) = (peer.writer(), peer.reader(), tempfile::tempdir().unwrap());
    let content: Vec<u8> = (0..12_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (up, down) = (folder.path().join("up"), folder.path().join("down"));
    std::fs::write(&up, &content).unwrap();
    writer.put_file("large", &up, &policy()).await.unwrap();
    writer.put_bytes("memory", &content.clone().into(), &policy()).await.unwrap();
    assert!(reader.get("memory", content.len() as u64).await.unwrap() == content);
    let head = reader.head("large").await.unwrap().unwrap();
    assert_eq!(head.size, content.len() as u64);
    for beginning in [0, 5_000_000, content.len()] {
        std::fs::write(&down, &content[..beginning]).unwrap();
        let digest = reader.download("large", &down, &head, &|_| ()).await.unwrap();
        assert_eq!((digest.size, digest.sha256), (head.size, file_sha256(&up).unwrap()), "from {beginning}");
        assert!(std::fs::read(&down).unwrap() == content, "from {beginning}");
    }
    let other = ObjectHead { etag: Some("\"0123456789abcdef0123456789abcdef\"".into()), ..head };
    std::fs::write(&down, &content[..1000]).unwrap();
    assert!(matches!(reader.download("large", &down, &other, &|_| ()).await, Err(BucketError::Replaced(_))));
    let absent = reader.download("nothing", &down, &other, &|_| ()).await;
    assert!(matches!(absent, Err(BucketError::NotFound(_))), "{absent:?}");
    writer.delete("large").await.unwrap();
    writer.delete("memory").await.unwrap();
}

/// Nobody sees anything of a growing object before it is whole.
async fn growing_objects(peer: &Peer) {
    const PART: usize = 5 << 20;
    let (writer, reader) = (peer.writer(), peer.reader());
    let content: bytes::Bytes = (0..12_000_000_u32).map(|at| (at.wrapping_mul(2_246_822_519) >> 24) as u8).collect();
    let mut object = writer.grow("growing", PART, &policy()).await.unwrap();
    object.send(&content.slice(..PART), &policy()).await.unwrap();
    assert_eq!((reader.head("growing").await.unwrap(), object.sent_bytes()), (None, PART));
    object.send(&content.slice(PART..2 * PART), &policy()).await.unwrap();
    assert!(object.begins(&content) && !object.begins(&content[..2 * PART - 1]) && !object.begins(&content[1..]));
    object.finish(&content, &policy()).await.unwrap();
    assert!(reader.get("growing", content.len() as u64).await.unwrap() == content);
    writer.delete("growing").await.unwrap();
    // Before its first part, the whole of it is what is left.
    writer.grow("growing", PART, &policy()).await.unwrap().finish(&content.slice(..100), &policy()).await.unwrap();
    assert_eq!(reader.get("growing", 100).await.unwrap(), content.slice(..100));
    writer.delete("growing").await.unwrap();
    let mut object = writer.grow("growing", PART, &policy()).await.unwrap();
    object.send(&content.slice(..PART), &policy()).await.unwrap();
    let upload = object.upload_id().to_owned();
    writer.abort_parts("growing", &upload).await.unwrap();
    assert!(object.finish(&content, &policy()).await.is_err(), "its parts are gone");
    assert_eq!(reader.head("growing").await.unwrap(), None);
}

/// More keys than a page holds.
async fn listings(peer: &Peer) {
    let (writer, reader) = (peer.writer(), peer.reader());
    let keys: Vec<String> = (0..1_003).map(|index| format!("many/{index:05}")).collect();
    let put = |key: String| {
        let writer = writer.clone();
        async move { writer.put(&key, "", &policy()).await }
    };
    futures::stream::iter(keys.clone()).map(put).buffer_unordered(16).try_collect::<Vec<()>>().await.unwrap();
    assert_eq!(reader.list("many/").await.unwrap(), keys);
    assert_eq!(reader.list("many/0100").await.unwrap(), &keys[1_000..]);
    assert!(reader.list("few/").await.unwrap().is_empty());
}

async fn rights(peer: &Peer) {
    let (writer, reader) = (peer.writer(), peer.reader());
    writer.probe_write().await.unwrap();
    writer.put("kept", "value", &policy()).await.unwrap();
    let denied = |result: Result<(), BucketError>| assert!(matches!(result, Err(BucketError::Denied { .. })), "{result:?}");
    denied(reader.put("kept", "other", &policy()).await);
    denied(reader.delete("kept").await);
    let read_only = reader.probe_write().await;
    assert!(matches!(read_only, Err(BucketError::ReadOnly { .. })), "{read_only:?}");
    let wrong_secret = (peer.writer.0.clone(), "a-secret-that-was-mistyped".to_owned());
    let stranger = ("AKIA0000000000000000".to_owned(), "nobody".to_owned());
    for pair in [wrong_secret, stranger] {
        let client = peer.client(&peer.bucket, &pair);
        denied(client.put("kept", "other", &policy()).await);
        denied(client.get("kept", 10).await.map(drop));
        denied(client.head("kept").await.map(drop));
        denied(client.list("").await.map(drop));
        denied(client.delete("kept").await);
    }
    assert_eq!(reader.get("kept", 10).await.unwrap(), "value");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_own_server_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let pair = |id: &str| (id.to_owned(), format!("{id}-secret"));
    let served = |(id, secret): (String, String)| KeyPair { access_key_id: id, secret_access_key: Secret::new(secret) };
    let settings = LocalBucketSettings {
        folder: folder.path().to_owned(),
        address: "127.0.0.1:0".parse().unwrap(),
        writer: served(pair("writer")),
        reader: Some(served(pair("reader"))),
        buckets: vec!["miner".into()],
    };
    let server = LocalBucketServer::start_with(&settings).await.unwrap();
    let peer = Peer { endpoint: server.endpoint(), bucket: "miner".into(), writer: pair("writer"), reader: pair("reader") };
    conforms(&peer).await;
}

/// A server that ends with its standard input.
struct Moto(Child);

impl Drop for Moto {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The Python that has moto: of the set-up, or named by `GRAIL_MOTO_PYTHON`.
fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = std::env::var_os("GRAIL_MOTO_PYTHON").map_or_else(|| root.join(".venv-reference/bin/python"), PathBuf::from);
    let imports = Command::new(&python).args(["-c", "import moto, flask, boto3"]).stderr(Stdio::null()).status();
    imports.is_ok_and(|status| status.success()).then_some(python)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn motos_server_conforms() {
    let Some(python) = python() else {
        // Around the harness, which keeps what a test that passes prints.
        let _ = std::io::Write::write_all(
            &mut std::io::stderr(),
            b"SKIPPED moto: nothing is compared with its server, .venv-reference has no moto (scripts/setup.py --reference).\n",
        );
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/moto_server.py");
    let child = Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut moto = Moto(child);
    let mut line = String::new();
    BufReader::new(moto.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let peer: Peer = serde_json::from_str(&line).unwrap_or_else(|error| panic!("moto's server did not start: {error}"));
    conforms(&peer).await;
}
