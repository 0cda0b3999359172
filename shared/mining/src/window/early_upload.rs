//! The beginning of a window's file, on its way into the bucket while the window runs.
//!
//! ```text
//!  kept group ─▶ its bytes in the file ─▶ a part is full ─▶ sent          (nobody sees an object yet)
//!  window closed ─▶ those groups first, then the others ─▶ gate ─▶ the file begins with what was sent?
//!     yes ─▶ the rest is sent, and the object is there
//!     no  ─▶ it is aborted, and the file is sent as a whole
//! ```
//!
//! What is left for the end is one part and the footer, whatever the window holds. It is an advance only: where a part is
//! refused, a group was taken out, or the bucket knows no parts, the file goes its usual way.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use grail_process::clock;
use grail_store::bucket::{Bucket, BucketError, GrowingObject, RetryPolicy};
use grail_store::window_file::{MAGIC, row_groups};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::harvest::Harvest;

/// Attempts to send a part: a bucket that does not want it shall have the whole file.
const ATTEMPTS: u32 = 5;
/// At the end, a part under way is waited for so many times as long as the slowest one took, and two seconds more.
const SLOWER: f64 = 3.0;
const MOMENT: f64 = 2.0;

/// Where the parts go, and how large they are.
pub(super) struct Destination {
    pub bucket: Bucket,
    pub key: String,
    /// Bytes of a part.
    pub part_bytes: usize,
    /// Unix seconds at which it is too late for anything.
    pub deadline: f64,
}

/// Groups whose bytes were taken, until the window is closed.
#[derive(Debug, Default)]
struct SentPrefix {
    groups: Vec<i64>,
    closed: bool,
    /// Seconds of the slowest part.
    slowest: f64,
}

/// The sending of one window's parts. Dropped, what was sent is aborted.
pub(super) struct EarlyUpload {
    taken: Arc<Mutex<SentPrefix>>,
    over: DropGuard,
    sent: oneshot::Receiver<Option<Sent>>,
}

/// What has arrived.
pub(super) struct Sent {
    pub object: GrowingObject,
    /// Seconds that its parts took.
    pub seconds: f64,
}

impl EarlyUpload {
    /// Begins to send what `harvest` keeps from now on.
    pub fn begin(harvest: &Arc<Harvest>, destination: Destination) -> Self {
        let (taken, over) = (Arc::<Mutex<SentPrefix>>::default(), CancellationToken::new());
        let (tell, sent) = oneshot::channel();
        let sender = Sender {
            harvest: harvest.clone(),
            destination,
            taken: taken.clone(),
            over: over.clone(),
            pending: BytesMut::from(MAGIC),
            sent: None,
        };
        let groups = harvest.listen();
        // Whoever wanted it may be gone; then it ends here.
        tokio::spawn(async move { drop(tell.send(sender.run(groups).await)) });
        Self { taken, over: over.drop_guard(), sent }
    }

    /// Takes no more groups. Returns those that the file must begin with, in their order.
    pub fn close(&self) -> Vec<i64> {
        let mut taken = lock(&self.taken);
        taken.closed = true;
        std::mem::take(&mut taken.groups)
    }

    /// What has arrived of a file of these bytes, once the part under way is there too. `None` where nothing was sent, something was
    /// refused, the file does not begin like that, or the part takes much longer than others did, or than `limit` seconds.
    pub async fn sent(self, file: &[u8], limit: f64) -> Option<Sent> {
        let Self { over, sent, taken } = self;
        drop(over);
        let patience = MOMENT + SLOWER * lock(&taken).slowest;
        let patience = Duration::try_from_secs_f64(patience.min(limit)).unwrap_or_default();
        let sent = tokio::time::timeout(patience, sent).await.ok()?.ok()??;
        let begins = sent.object.begins(file);
        if !begins {
            tracing::info!("Groups that had left ahead of the file were taken out of it; it is sent as a whole.");
        }
        begins.then_some(sent)
    }
}

/// The task.
struct Sender {
    harvest: Arc<Harvest>,
    destination: Destination,
    taken: Arc<Mutex<SentPrefix>>,
    over: CancellationToken,
    /// Bytes of the file behind the last part.
    pending: BytesMut,
    sent: Option<Sent>,
}

impl Sender {
    async fn run(mut self, mut groups: mpsc::UnboundedReceiver<(i64, Bytes)>) -> Option<Sent> {
        while let Some(Some((index, file))) = self.over.clone().run_until_cancelled(groups.recv()).await {
            let Ok(body) = row_groups(&file) else { continue };
            if !self.take(index) {
                break;
            }
            self.pending.extend_from_slice(&body);
            while self.pending.len() >= self.destination.part_bytes && !self.over.is_cancelled() {
                if let Err(error) = self.send_part().await {
                    let window = self.harvest.judge().window;
                    tracing::warn!(%error, window, "The window's file cannot be sent while it grows; it is sent as a whole at the end.");
                    return None;
                }
            }
        }
        self.sent
    }

    fn take(&self, index: i64) -> bool {
        let mut taken = lock(&self.taken);
        if !taken.closed {
            taken.groups.push(index);
        }
        !taken.closed
    }

    async fn send_part(&mut self) -> Result<(), BucketError> {
        let Destination { bucket, key, part_bytes, deadline } = &self.destination;
        let left = Duration::try_from_secs_f64(deadline - clock::unix_seconds()).unwrap_or_default();
        let policy = RetryPolicy { attempts: ATTEMPTS, ..RetryPolicy::until(left) };
        let begun = clock::monotonic();
        let sent = match &mut self.sent {
            Some(sent) => sent,
            None => {
                let object = bucket.grow(key, *part_bytes, &policy).await?;
                let upload = object.upload_id().to_owned();
                // What is begun costs storage for ever, should this process be killed.
                self.harvest.on_willing_disk(move |spool| spool.mark_growing(&upload)).await;
                self.sent.insert(Sent { object, seconds: 0.0 })
            }
        };
        let part = self.pending.split_to(*part_bytes).freeze();
        sent.object.send(&part, &policy).await?;
        let seconds = begun.elapsed().as_secs_f64();
        sent.seconds += seconds;
        let mut taken = lock(&self.taken);
        taken.slowest = taken.slowest.max(seconds);
        Ok(())
    }
}

fn lock(taken: &Mutex<SentPrefix>) -> MutexGuard<'_, SentPrefix> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use grail_store::bucket::{BucketSettings, Secret, TransferLimits};
    use grail_store::local_server::LocalBucketServer;
    use grail_store::window_file::splice;
    use sha2::{Digest, Sha256};

    use super::super::harvest::tests::{group, harvest};
    use super::*;
    use crate::upload::{WindowObject, upload};

    const KEY: &str = "grail/windows/5x-window-600.parquet";
    /// The least that services take.
    const PART: usize = 5 << 20;
    /// Groups of half a megabyte that fill two parts.
    const TWO_PARTS: i64 = 21;

    struct Fixture {
        folder: tempfile::TempDir,
        _server: LocalBucketServer,
        bucket: Bucket,
        harvest: Arc<Harvest>,
    }

    impl Fixture {
        async fn start() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let address = "127.0.0.1:0".parse().unwrap();
            let server = LocalBucketServer::start(&folder.path().join("s3"), address, "key", "secret", &["miner"]).await.unwrap();
            let settings = BucketSettings {
                endpoint: server.endpoint(),
                region: "auto".into(),
                bucket: "miner".into(),
                access_key_id: "key".into(),
                secret_access_key: Secret::new("secret"),
                limits: TransferLimits::default(),
            };
            let (harvest, _) = harvest(&folder.path().join("spool"), u64::MAX);
            Self { bucket: Bucket::new(&settings).unwrap(), _server: server, harvest, folder }
        }

        fn ahead(&self) -> EarlyUpload {
            let deadline = clock::unix_seconds() + 600.0;
            let (bucket, key) = (self.bucket.clone(), KEY.to_owned());
            EarlyUpload::begin(&self.harvest, Destination { bucket, key, part_bytes: PART, deadline })
        }

        /// Parts that the bucket keeps and nobody sees.
        fn parts(&self) -> usize {
            let is_part = |name: &str| name.starts_with(".upload_id-");
            let files = std::fs::read_dir(self.folder.path().join("s3")).unwrap();
            files.filter(|file| is_part(&file.as_ref().unwrap().file_name().to_string_lossy())).count()
        }

        async fn keep(&self, indices: impl Iterator<Item = i64>) {
            let hotkey = grail_protocol::keys::Hotkey::from_uri("//Alice").unwrap();
            for index in indices {
                let rows = crate::gate::tests::rows_of(&hotkey, index, 4000);
                self.harvest.keep(crate::groups::Group { index, worker: 0, rows }).await.unwrap();
            }
        }

        async fn until_parts(&self, wanted: usize) {
            let reached = async {
                while self.parts() != wanted {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(120), reached).await.unwrap_or_else(|_| panic!("{} parts", self.parts()));
        }

        /// The closed window's file.
        fn close(&self, ahead: &EarlyUpload) -> Bytes {
            let first = ahead.close();
            let kept = super::super::closing::beginning_with(self.harvest.close(), &first);
            let files: Vec<Bytes> = kept.into_iter().map(|kept| kept.record.file).collect();
            splice(&self.harvest.metadata(7.0), &files).unwrap().into()
        }

        async fn upload(&self, file: &Bytes, sent: Option<Sent>) {
            let object = WindowObject { key: KEY, bytes: file, sha256: Sha256::digest(file).into(), earlier: None };
            let deadline = clock::unix_seconds() + 600.0;
            upload(&self.bucket, &object, sent.map(|sent| sent.object), deadline).await.unwrap();
            assert_eq!(std::fs::read(self.folder.path().join("s3/miner").join(KEY)).unwrap(), *file);
        }
    }

    /// As at the end of a window whose parts were slow: a machine that stands still makes none of it late.
    async fn sent(ahead: EarlyUpload, file: &[u8]) -> Option<Sent> {
        lock(&ahead.taken).slowest = 120.0;
        ahead.sent(file, 120.0).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_left_while_the_window_ran_is_the_beginning_of_its_file() {
        let fixture = Fixture::start().await;
        let ahead = fixture.ahead();
        // Not in order of the indices: the file has them as they came.
        fixture.keep((0..TWO_PARTS).rev()).await;
        fixture.until_parts(2).await;
        assert_eq!(fixture.bucket.head(KEY).await.unwrap(), None, "nobody sees it before its end");
        let file = fixture.close(&ahead);
        let sent = sent(ahead, &file).await.unwrap();
        assert!(sent.object.sent_bytes() == 2 * PART && 2 * PART < file.len() && sent.seconds > 0.0, "{}", file.len());
        fixture.upload(&file, Some(sent)).await;
        fixture.until_parts(0).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_group_that_was_taken_out_makes_it_a_file_that_is_sent_as_a_whole() {
        let fixture = Fixture::start().await;
        let ahead = fixture.ahead();
        fixture.harvest.keep(group(100, 7)).await.unwrap();
        fixture.keep(0..TWO_PARTS / 2 + 1).await;
        fixture.until_parts(1).await;
        fixture.harvest.distrust(7, 200, "it lies").await;
        let file = fixture.close(&ahead);
        assert!(sent(ahead, &file).await.is_none());
        fixture.until_parts(0).await;
        fixture.upload(&file, None).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn parts_that_the_bucket_has_lost_cost_the_advance_and_not_the_window() {
        let fixture = Fixture::start().await;
        let ahead = fixture.ahead();
        fixture.keep(0..TWO_PARTS / 2 + 1).await;
        fixture.until_parts(1).await;
        let file = fixture.close(&ahead);
        let sent = sent(ahead, &file).await.unwrap();
        fixture.bucket.abort_parts(KEY, sent.object.upload_id()).await.unwrap();
        fixture.upload(&file, Some(sent)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_window_that_comes_to_nothing_leaves_nothing_in_the_bucket() {
        let fixture = Fixture::start().await;
        let ahead = fixture.ahead();
        fixture.keep(0..TWO_PARTS / 2 + 1).await;
        fixture.until_parts(1).await;
        let spool = fixture.folder.path().join("spool");
        for window in [600, 630] {
            assert_eq!(growing(&spool, window).len(), 1, "a start in window {window} after kill -9 is told of them");
        }
        drop(ahead);
        fixture.until_parts(0).await;
    }

    /// What the next run is told.
    fn growing(spool: &Path, window: u64) -> Vec<crate::spool::Growing> {
        let disk = Arc::new(crate::spool::FileSystem);
        let hotkey = grail_protocol::keys::Hotkey::from_uri("//Alice").unwrap();
        crate::spool::Spool::open(disk, spool, hotkey.address(), window, &crate::spool::UnderWay::default(), u64::MAX)
            .unwrap()
            .1
            .growing
    }
}
