//! One window file to the bucket, and the proof that it is there.
//!
//! ```text
//!  the rest of what has left already, else PUT (attempts until the deadline) ─▶ HEAD and GET, as a validator would
//!    same bytes, in time ─▶ is there a <key>.gz, which validators read first? removed ─▶ uploaded
//!    other bytes or none ─▶ once more while there is time; at last what must not be judged is removed
//!    too late            ─▶ removed: validators ignore it, and nobody else shall take it for this window's file
//!    no answer           ─▶ not confirmed: it stays, because what was sent has passed the gate
//! ```
//!
//! The look decides, never the answer to the PUT: an answer may be lost, or be wrong.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use grail_process::clock;
use grail_protocol::constants::MAX_FILE_BYTES;
use grail_store::bucket::{Bucket, BucketError, GrowingObject, ObjectHead, RetryPolicy};
use sha2::{Digest, Sha256};

/// Times that the whole file is sent when what is read back is something else.
const ROUNDS: u32 = 3;
/// Time for the look after the deadline; the next window waits meanwhile.
const LOOK_LIMIT: Duration = Duration::from_secs(15);
/// Between two looks at the clock while a file is sent.
const DEADLINE_LOOK: Duration = Duration::from_secs(1);
/// Time to remove an object.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);

/// A finished file that is to be uploaded.
#[derive(Debug)]
pub struct WindowObject<'a> {
    /// Object key.
    pub key: &'a str,
    /// The file.
    pub bytes: &'a Bytes,
    /// Its SHA-256.
    pub sha256: [u8; 32],
    /// SHA-256 of the file that an earlier run of this window has uploaded or sent: it may stay where the new one does not get there.
    pub earlier: Option<[u8; 32]>,
}

/// How an upload went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Receipt {
    /// Time of the sending alone.
    pub spent: Duration,
    /// Times that the whole file was sent.
    pub rounds: u32,
}

/// Why a window is not in the bucket, as far as can be told.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// There was no time to begin, or to end.
    #[error("the deadline was {late:.1} s ago before anything was sent whole")]
    TooLate {
        /// Seconds since the deadline.
        late: f64,
    },
    /// The bucket refused or did not answer, and holds no file of this window.
    #[error("the upload failed: {0}")]
    Bucket(#[from] BucketError),
    /// The bucket refused or did not answer, and still holds the file that an earlier run has uploaded.
    #[error("the upload failed ({0}); the smaller file that an earlier run uploaded is still there")]
    EarlierStays(BucketError),
    /// What lies in the bucket is not what was sent.
    #[error("the object read back is not the file that was sent ({what}); {removed}")]
    Different {
        /// What differs.
        what: String,
        /// What became of it.
        removed: String,
        /// Whether it is still there, and must not be judged.
        stays: bool,
    },
    /// A validator treats the object as absent.
    #[error("the object's time of {late:.1} s after the deadline makes validators ignore it; {removed}")]
    Ignored {
        /// Seconds after the deadline.
        late: f64,
        /// What became of it.
        removed: String,
        /// Whether it, or what validators would judge in its place, is still there.
        stays: bool,
    },
    /// Validators read another object before this one.
    #[error(
        "the file is there, but validators read {key} instead of it, and that could not be removed ({why}); it is tried again in every \
         block: better remove it by hand"
    )]
    Shadowed {
        /// What lies beside the file.
        key: String,
        /// Why it is still there.
        why: String,
    },
    /// It was sent, and the bucket does not say what it holds.
    #[error("the file was sent, but could not be read back ({0}); it stays, and may count")]
    NotConfirmed(String),
}

/// What the bucket holds.
#[derive(Debug)]
enum ObjectCheck {
    Same,
    Absent,
    Earlier,
    Different(String),
    Late(f64),
    Shadowed(String),
    NoAnswer(String),
}

/// Uploads, then asks the bucket what it holds. Only after that may anybody say "uploaded". `deadline` is in Unix seconds; no
/// attempt to send goes on beyond it. `ahead` is what is there already of these bytes.
///
/// # Errors
/// See [`UploadError`].
pub async fn upload(
    bucket: &Bucket,
    object: &WindowObject<'_>,
    mut ahead: Option<GrowingObject>,
    deadline: f64,
) -> Result<Receipt, UploadError> {
    let left = || deadline - clock::unix_seconds();
    let mut rounds = 0;
    loop {
        let overall = Duration::try_from_secs_f64(left()).map_err(|_| UploadError::TooLate { late: -left() })?;
        rounds += 1;
        let begun = clock::monotonic();
        grail_supervision::failpoint::pass("uploading").await;
        let sent = tokio::select! {
            biased;
            () = over(deadline) => None,
            sent = send(bucket, object, ahead.take(), overall) => Some(sent),
        };
        let spent = begun.elapsed();
        grail_supervision::failpoint::pass("read-back").await;
        let look = look(bucket, object, deadline).await;
        if matches!(look, ObjectCheck::Same) {
            return Ok(Receipt { spent, rounds });
        }
        let again = rounds < ROUNDS && left() > spent.as_secs_f64();
        let was_sent = sent.as_ref().is_some_and(Result::is_ok);
        if again && was_sent && matches!(look, ObjectCheck::Absent | ObjectCheck::Earlier | ObjectCheck::Different(_)) {
            tracing::warn!(rounds, ?look, "The bucket does not hold what was sent; it is sent once more.");
            continue;
        }
        if sent.is_none() && matches!(look, ObjectCheck::Absent) {
            return Err(UploadError::TooLate { late: -left() });
        }
        return Err(give_up(bucket, object, sent.and_then(Result::err), look).await);
    }
}

/// Makes the object of what has left already, in half of the time; the other half, or all of it, is for the file as a whole.
async fn send(
    bucket: &Bucket,
    object: &WindowObject<'_>,
    ahead: Option<GrowingObject>,
    overall: Duration,
) -> Result<(), BucketError> {
    let begun = clock::monotonic();
    if let Some(ahead) = ahead {
        match ahead.finish(object.bytes, &RetryPolicy::until(overall / 2)).await {
            Ok(()) => return Ok(()),
            Err(error) => tracing::warn!(%error, "What had left of the file comes to nothing; it is sent as a whole."),
        }
    }
    let left = overall.saturating_sub(begun.elapsed());
    bucket.put_bytes(object.key, object.bytes, &RetryPolicy::until(left)).await
}

/// Returns at the deadline, also where the machine was suspended meanwhile and timers stood still.
async fn over(deadline: f64) {
    while let Ok(left) = Duration::try_from_secs_f64(deadline - clock::unix_seconds()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(DEADLINE_LOOK)).await;
    }
}

/// What validators read before an object, whatever is in it.
pub fn twin(key: &str) -> String {
    format!("{key}.gz")
}

/// Removes what lies beside an object of ours and would be judged instead of it. Says why it is still there, if it is.
pub async fn remove_twin(bucket: &Bucket, key: &str) -> Result<Option<String>, BucketError> {
    let twin = twin(key);
    if bucket.head(&twin).await?.is_none() {
        return Ok(None);
    }
    tracing::warn!(
        key = twin,
        "Validators would read this object instead of the window's file; it is removed. What made it has the write pair."
    );
    if let Err(error) = bucket.delete(&twin).await {
        return Ok(Some(error.to_string()));
    }
    Ok(bucket.head(&twin).await?.map(|_| "the bucket says that it is removed, and has it".to_owned()))
}

/// Whether the bucket holds this file, in time. A bucket that does not say within a quarter of what is left has said no.
pub async fn holds(bucket: &Bucket, key: &str, sha256: [u8; 32], deadline: f64) -> bool {
    let quarter = (deadline - clock::unix_seconds()) / 4.0;
    let patience = Duration::try_from_secs_f64(quarter).unwrap_or_default().min(LOOK_LIMIT);
    let asked = tokio::time::timeout(patience, async {
        let head = bucket.head(key).await.ok()??;
        let bytes = bucket.get(key, MAX_FILE_BYTES).await.ok()?;
        let same = <[u8; 32]>::from(Sha256::digest(&bytes)) == sha256 && written(&head) <= deadline;
        Some(same && remove_twin(bucket, key).await.ok()?.is_none())
    });
    asked.await.ok().flatten().unwrap_or(false)
}

async fn give_up(bucket: &Bucket, object: &WindowObject<'_>, failed: Option<BucketError>, look: ObjectCheck) -> UploadError {
    let different =
        |what: &str, removed: &str| UploadError::Different { what: what.into(), removed: removed.into(), stays: false };
    match (look, failed) {
        (ObjectCheck::Late(late), _) => match remove(bucket, object.key).await {
            Ok(removed) => UploadError::Ignored { late, removed, stays: false },
            Err(removed) => UploadError::Ignored { late, removed, stays: true },
        },
        (ObjectCheck::Different(what), _) => match remove(bucket, object.key).await {
            Ok(removed) => different(&what, &removed),
            Err(removed) => UploadError::Different { what, removed, stays: true },
        },
        (ObjectCheck::Earlier, Some(error)) => UploadError::EarlierStays(error),
        (ObjectCheck::Absent | ObjectCheck::NoAnswer(_), Some(error)) => UploadError::Bucket(error),
        (ObjectCheck::Shadowed(why), _) => UploadError::Shadowed { key: twin(object.key), why },
        (ObjectCheck::NoAnswer(why), None) => UploadError::NotConfirmed(why),
        (ObjectCheck::Earlier, None) => different("it is still the earlier one", "it stays"),
        (ObjectCheck::Absent | ObjectCheck::Same, None) => different("it is absent", "there is nothing to remove"),
        (ObjectCheck::Same, Some(error)) => UploadError::Bucket(error),
    }
}

/// What became of it, either way, and of what validators would judge in its place.
async fn remove(bucket: &Bucket, key: &str) -> Result<String, String> {
    let both = async { tokio::join!(bucket.delete(key), remove_twin(bucket, key)) };
    let why = match tokio::time::timeout(REMOVE_LIMIT, both).await {
        Ok((Ok(()), Ok(None))) => return Ok("it was removed".into()),
        Ok((Ok(()), Ok(Some(why)))) => return Err(format!("it was removed, but not {}: {why}", twin(key))),
        Ok((Err(error), _) | (_, Err(error))) => error.to_string(),
        Err(_) => format!("no answer within {} s", REMOVE_LIMIT.as_secs()),
    };
    Err(format!("it could not be removed: {why}"))
}

/// HEAD and GET, as a validator would.
async fn look(bucket: &Bucket, object: &WindowObject<'_>, deadline: f64) -> ObjectCheck {
    let left = Duration::try_from_secs_f64(deadline - clock::unix_seconds()).unwrap_or_default();
    match tokio::time::timeout(left + LOOK_LIMIT, ask(bucket, object, deadline)).await {
        Ok(Ok(look)) => look,
        Ok(Err(error)) => ObjectCheck::NoAnswer(error.to_string()),
        Err(_) => ObjectCheck::NoAnswer(format!("no answer until {} s after the deadline", LOOK_LIMIT.as_secs())),
    }
}

async fn ask(bucket: &Bucket, object: &WindowObject<'_>, deadline: f64) -> Result<ObjectCheck, BucketError> {
    let Some(head) = bucket.head(object.key).await? else { return Ok(ObjectCheck::Absent) };
    let bytes = match bucket.get(object.key, MAX_FILE_BYTES).await {
        Err(BucketError::TooLarge { .. }) => return Ok(ObjectCheck::Different(format!("{} bytes", head.size))),
        bytes => bytes?,
    };
    let found = <[u8; 32]>::from(Sha256::digest(&bytes));
    if Some(found) == object.earlier && found != object.sha256 {
        return Ok(ObjectCheck::Earlier);
    }
    let wanted = object.bytes.len();
    if bytes.len() != wanted || head.size != wanted as u64 {
        return Ok(ObjectCheck::Different(format!("{} bytes, announced as {}, instead of {wanted}", bytes.len(), head.size)));
    }
    if found != object.sha256 {
        return Ok(ObjectCheck::Different("its SHA-256 differs".into()));
    }
    let written = written(&head);
    if written > deadline {
        return Ok(ObjectCheck::Late(written - deadline));
    }
    Ok(remove_twin(bucket, object.key).await?.map_or(ObjectCheck::Same, ObjectCheck::Shadowed))
}

/// A bucket that keeps no times leaves the time of this look, which is later than the object's.
fn written(head: &ObjectHead) -> f64 {
    head.last_modified.map_or_else(clock::unix_seconds, unix_seconds)
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use grail_store::bucket::{BucketSettings, Secret, TransferLimits};
    use grail_store::local_server::{KeyPair, LocalBucketServer, LocalBucketSettings};

    use super::*;

    const KEY: &str = "grail/windows/5x-window-30.parquet";

    struct Fixture {
        folder: tempfile::TempDir,
        server: LocalBucketServer,
        bucket: Bucket,
    }

    impl Fixture {
        async fn start() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let pair = |id: &str| KeyPair { access_key_id: id.into(), secret_access_key: Secret::new("secret") };
            let settings = LocalBucketSettings {
                folder: folder.path().into(),
                address: "127.0.0.1:0".parse().unwrap(),
                writer: pair("key"),
                reader: Some(pair("reader")),
                buckets: vec!["miner".into()],
            };
            let server = LocalBucketServer::start_with(&settings).await.unwrap();
            Self { folder, bucket: client(&server, "key"), server }
        }

        /// The same bucket, with a pair that may only read.
        fn read_only(&self) -> Bucket {
            client(&self.server, "reader")
        }

        fn path(&self) -> std::path::PathBuf {
            self.folder.path().join("miner").join(KEY)
        }
    }

    fn client(server: &LocalBucketServer, id: &str) -> Bucket {
        let settings = BucketSettings {
            endpoint: server.endpoint(),
            region: "auto".into(),
            bucket: "miner".into(),
            access_key_id: id.into(),
            secret_access_key: Secret::new("secret"),
            limits: TransferLimits::default(),
        };
        Bucket::new(&settings).unwrap()
    }

    fn digest(bytes: &[u8]) -> [u8; 32] {
        Sha256::digest(bytes).into()
    }

    #[tokio::test]
    async fn what_was_read_back_is_uploaded() {
        let fixture = Fixture::start().await;
        let bytes = Bytes::from(vec![7; 100_000]);
        let object = WindowObject { key: KEY, bytes: &bytes, sha256: digest(&bytes), earlier: None };
        let receipt = upload(&fixture.bucket, &object, None, clock::unix_seconds() + 60.0).await.unwrap();
        assert_eq!(receipt.rounds, 1);
        assert_eq!(std::fs::read(fixture.path()).unwrap(), bytes);
    }

    #[tokio::test]
    async fn what_validators_would_read_instead_is_removed() {
        let fixture = Fixture::start().await;
        let bytes = Bytes::from_static(b"the file");
        let object = WindowObject { key: KEY, bytes: &bytes, sha256: digest(&bytes), earlier: None };
        let (deadline, beside) = (clock::unix_seconds() + 600.0, fixture.path().with_extension("parquet.gz"));
        let lay = || async { fixture.bucket.put(&twin(KEY), "of somebody else", &RetryPolicy::default()).await.unwrap() };
        lay().await;
        upload(&fixture.bucket, &object, None, deadline).await.unwrap();
        assert!(fixture.path().exists() && !beside.exists());
        // What an earlier run has sent counts only without it.
        lay().await;
        assert!(holds(&fixture.bucket, KEY, object.sha256, deadline).await && !beside.exists());
        // One that cannot be removed: the window is lost, and the file stays for the case that somebody removes it in time.
        lay().await;
        let ObjectCheck::Shadowed(why) = look(&fixture.read_only(), &object, deadline).await else {
            panic!("it may not be removed")
        };
        let error = give_up(&fixture.read_only(), &object, None, ObjectCheck::Shadowed(why)).await.to_string();
        assert!(error.contains(&format!("{KEY}.gz")) && error.contains("by hand") && error.contains("denied"), "{error}");
        assert!(fixture.path().exists() && beside.exists());
        assert!(!holds(&fixture.read_only(), KEY, object.sha256, deadline).await);
        // What is removed leaves nothing that would be judged in its place.
        let late = give_up(&fixture.read_only(), &object, None, ObjectCheck::Late(1.0)).await;
        assert!(matches!(late, UploadError::Ignored { stays: true, .. }) && fixture.path().exists() && beside.exists(), "{late}");
        let late = give_up(&fixture.bucket, &object, None, ObjectCheck::Late(1.0)).await;
        assert!(
            matches!(late, UploadError::Ignored { stays: false, .. }) && !fixture.path().exists() && !beside.exists(),
            "{late}"
        );
    }

    #[tokio::test]
    async fn after_the_deadline_nothing_is_sent() {
        let fixture = Fixture::start().await;
        let bytes = Bytes::from_static(b"late");
        let object = WindowObject { key: KEY, bytes: &bytes, sha256: digest(&bytes), earlier: None };
        let error = upload(&fixture.bucket, &object, None, clock::unix_seconds() - 1.0).await.unwrap_err();
        assert!(matches!(error, UploadError::TooLate { .. }), "{error}");
        assert!(!fixture.path().exists());
    }

    #[tokio::test]
    async fn an_object_whose_bytes_are_others_is_sent_again_and_then_removed() {
        let fixture = Fixture::start().await;
        let bytes = Bytes::from_static(b"what is sent");
        // As if the bucket had changed it: the file is said to be another one.
        let object = WindowObject { key: KEY, bytes: &bytes, sha256: digest(b"what is meant"), earlier: None };
        let error = upload(&fixture.bucket, &object, None, clock::unix_seconds() + 60.0).await.unwrap_err().to_string();
        assert!(error.contains("SHA-256 differs") && error.contains("it was removed"), "{error}");
        assert!(!fixture.path().exists());
    }

    #[tokio::test]
    async fn looks_tell_late_absent_earlier_and_different_objects_apart() {
        let fixture = Fixture::start().await;
        let bytes = Bytes::from_static(b"the file");
        let mut object = WindowObject { key: KEY, bytes: &bytes, sha256: digest(&bytes), earlier: None };
        let now = clock::unix_seconds();
        assert!(matches!(look(&fixture.bucket, &object, now + 60.0).await, ObjectCheck::Absent));
        fixture.bucket.put(KEY, bytes.clone(), &RetryPolicy::default()).await.unwrap();
        assert!(matches!(look(&fixture.bucket, &object, now + 60.0).await, ObjectCheck::Same));
        assert!(holds(&fixture.bucket, KEY, object.sha256, now + 60.0).await);
        assert!(!holds(&fixture.bucket, KEY, object.sha256, now - 60.0).await, "it is too late for validators");
        assert!(!holds(&fixture.bucket, KEY, digest(b"another"), now + 60.0).await);
        assert!(matches!(look(&fixture.bucket, &object, now - 60.0).await, ObjectCheck::Late(late) if late > 50.0));
        fixture.bucket.put(KEY, "an older one", &RetryPolicy::default()).await.unwrap();
        assert!(matches!(look(&fixture.bucket, &object, now + 60.0).await, ObjectCheck::Different(_)));
        object.earlier = Some(digest(b"an older one"));
        assert!(matches!(look(&fixture.bucket, &object, now + 60.0).await, ObjectCheck::Earlier));
        let denied = || Some(BucketError::Settings("refused".into()));
        let stays = give_up(&fixture.bucket, &object, denied(), ObjectCheck::Earlier).await;
        assert!(matches!(stays, UploadError::EarlierStays(_)) && fixture.path().exists(), "{stays}");
        let late = give_up(&fixture.bucket, &object, None, ObjectCheck::Late(2.0)).await.to_string();
        assert!(late.contains("it was removed") && !fixture.path().exists(), "{late}");
    }
}
