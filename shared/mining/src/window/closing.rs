//! The end of a window: the file is put together from groups that are encoded and judged, and brought into the bucket.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use grail_process::clock;
use grail_protocol::constants::{MAX_FILE_BYTES, ROLLOUTS_PER_PROBLEM};
use grail_protocol::window::object_key;
use grail_store::retention::keep_last;
use grail_store::window_file::{WindowMetadata, splice};
use sha2::{Digest, Sha256};

use super::finality_watch::ObjectPresence;
use super::harvest::{Harvest, Kept};
use super::mining_loop::{FOOTER_BYTES, Findings};
use super::sending::Dispatch;
use super::{Miner, NoFile, OpenWindow, Opened};
use crate::events::{FileClosed, FileFound, LocalCopyFailed};
use crate::gate::JudgedGroup;
use crate::spool::{Sent, Uploaded};
use crate::status::FinishedWindow;
use crate::upload::holds;

/// Local copies of window files that are kept.
const KEPT_WINDOWS: usize = 3;

/// Longest wait for the disk to take one.
const COPY_PATIENCE: Duration = Duration::from_secs(10);

/// What a closed window put into the bucket.
pub(super) struct Closed {
    pub rollouts: u32,
    pub bytes: u64,
    pub mean_reward: f64,
    pub seconds: f64,
}

/// How far a window's file has come.
pub(super) enum Ending {
    /// An earlier run has brought it into the bucket.
    AlreadyThere(Closed),
    /// It is to be sent.
    OnItsWay(Box<(Dispatch, Closed)>),
}

/// A file that has passed the gate.
struct File {
    bytes: Bytes,
    sha256: [u8; 32],
}

impl Miner {
    /// The file from the groups, through the gate, into the bucket. `why_not` is why nothing more was mined.
    pub(super) async fn close(
        &mut self,
        opened: &Opened,
        mut gathering: OpenWindow,
        findings: Findings,
        why_not: Option<NoFile>,
    ) -> Result<Ending, NoFile> {
        let begun = clock::monotonic();
        let window = opened.clockwork.window;
        self.board.window(|status| status.phase = "closing".into());
        let kept = self.gathered(opened, &mut gathering).await;
        // Before anything else: no way out of here may leave in the bucket what must not be judged.
        self.withdraw_condemned(&gathering.harvest);
        if let Some(doubt) = findings.doubt {
            return Err(NoFile::HeldBack(doubt));
        }
        let key = object_key(self.resources.hotkey.address(), window);
        let earlier = if gathering.harvest.is_tainted() { None } else { self.brought(opened, &gathering, &key).await };
        let fuller = earlier.as_ref().filter(|earlier| earlier.groups >= kept.len());
        if let Some(earlier) = fuller {
            let unchanged = self.still_judged_alike(&opened.clockwork, gathering.harvest.judge()).await;
            self.let_pass(unchanged, &gathering.harvest).await?;
            // An earlier run has brought all of it there; nothing was added and nothing taken out.
            let rollouts = (earlier.groups * ROLLOUTS_PER_PROBLEM) as u32;
            return Ok(Ending::AlreadyThere(Closed { rollouts, bytes: earlier.bytes, ..Closed::of(&kept) }));
        }
        if kept.is_empty() {
            return Err(why_not.unwrap_or_else(|| NoFile::Empty(self.why_empty())));
        }
        grail_supervision::failpoint::pass("closing").await;
        let total = Closed::of(&kept);
        let groups = kept.len();
        let judge = gathering.harvest.judge();
        let looking = self.still_judged_alike(&opened.clockwork, judge);
        let (file, unchanged) = tokio::join!(make_file(kept, &gathering.harvest), looking);
        let file = file.map_err(NoFile::HeldBack)?;
        let seconds = begun.elapsed().as_secs_f64();
        self.schedule.closed(groups * ROLLOUTS_PER_PROBLEM, seconds);
        let bytes = file.bytes.len() as u64;
        self.journal.record(&FileClosed { window, groups, bytes, seconds, spot_checks: findings.agreed });
        self.let_pass(unchanged, &gathering.harvest).await?;
        self.board.window(|status| status.phase = "uploading".into());
        let copy = tokio::spawn(self.keep_copy(window, &key, file.bytes.clone()));
        let dispatch = Dispatch {
            bucket: self.bucket.clone(),
            journal: self.journal.clone(),
            window,
            deadline: opened.clockwork.deadline,
            harvest: gathering.harvest,
            place: self.place(window),
            file: Uploaded { key, groups, bytes, sha256: hex::encode(file.sha256), sheet: gathering.sheet },
            bytes: file.bytes,
            sha256: file.sha256,
            ahead: gathering.ahead,
            earlier: earlier.and_then(|earlier| digest_of(&earlier.sha256)),
            begun,
            copy,
        };
        Ok(Ending::OnItsWay(Box::new((dispatch, Closed { bytes, ..total }))))
    }

    /// Nothing passes that validators would judge by something else than it was made from; what an earlier run has sent was made from
    /// the same.
    async fn let_pass(&mut self, unchanged: Result<(), NoFile>, harvest: &Harvest) -> Result<(), NoFile> {
        if let Err(NoFile::HeldBack(why)) = &unchanged {
            harvest.condemn_sent(why).await;
            self.withdraw_condemned(harvest);
        }
        unchanged
    }

    /// What there is, once everything that an earlier run left was looked at, or there is no more time for it.
    async fn gathered(&self, opened: &Opened, gathering: &mut OpenWindow) -> Vec<Kept> {
        let expected = self.schedule.closing_seconds(opened.left.groups.len() * ROLLOUTS_PER_PROBLEM);
        let spare = opened.clockwork.deadline - clock::unix_seconds() - self.schedule.upload_seconds() - expected;
        // Near the deadline the estimates leave nothing; then half of what is left goes to reading, the other half to the upload.
        let half = (opened.clockwork.deadline - clock::unix_seconds()) / 2.0;
        let patience = Duration::try_from_secs_f64(spare.max(half)).unwrap_or_default();
        let all = tokio::time::timeout(patience, &mut gathering.recovery).await.is_ok();
        let kept = match &gathering.ahead {
            Some(ahead) => beginning_with(gathering.harvest.close(), &ahead.close()),
            None => gathering.harvest.close(),
        };
        if !all {
            let (window, found, read) = (opened.clockwork.window, opened.left.groups.len(), kept.len());
            tracing::warn!(
                window,
                found,
                read,
                "Not all of the spool could be read before the deadline; other groups are left out."
            );
        }
        kept
    }

    /// What an earlier run of this window has brought into the bucket and is judged alike, by its own record; where it ended in the
    /// middle of sending, by what the bucket says.
    async fn brought(&self, opened: &Opened, gathering: &OpenWindow, key: &str) -> Option<Uploaded> {
        let Sent { uploaded, sending, condemned } = &opened.left.sent;
        let counts = |file: &&Uploaded| file.key == key && file.sheet.judges_like(&gathering.sheet) && !condemned.holds(file);
        let uploaded = uploaded.as_ref().filter(counts);
        let sending = sending.as_ref().filter(counts).filter(|sending| Some(*sending) != uploaded);
        if (uploaded, sending) == (None, None) {
            return None;
        }
        // Whoever holds the key may be removing what lies there, from a bucket that hangs.
        let quarter = Duration::try_from_secs_f64((opened.clockwork.deadline - clock::unix_seconds()) / 4.0).unwrap_or_default();
        let place = self.place(opened.clockwork.window);
        match tokio::time::timeout(quarter, place.lock()).await {
            Ok(there) if *there != ObjectPresence::Removed => {}
            _ => return None,
        }
        let Some((sending, sha256)) = sending.and_then(|sending| Some((sending, digest_of(&sending.sha256)?))) else {
            return uploaded.cloned();
        };
        if !holds(&self.bucket, key, sha256, opened.clockwork.deadline).await {
            return uploaded.cloned();
        }
        let Uploaded { groups, bytes, sha256, .. } = sending.clone();
        self.journal.record(&FileFound { window: opened.clockwork.window, groups, bytes, sha256 });
        let uploaded = sending.clone();
        gathering.harvest.on_disk(move |spool| spool.mark_uploaded(&uploaded)).await;
        Some(sending.clone())
    }

    /// Writes the local copy beside the upload. It serves people; a disk that refuses it costs nothing else.
    fn keep_copy(&self, window: u64, key: &str, bytes: Bytes) -> impl Future<Output = ()> + use<> {
        let path = self.windows.join(key.rsplit('/').next().unwrap_or(key));
        let journal = self.journal.clone();
        let disk = self.copies_disk.clone();
        async move {
            let why = match disk.ask(COPY_PATIENCE, move || copy(&path, &bytes)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            journal.record(&LocalCopyFailed { window, why });
        }
    }

    fn why_empty(&self) -> String {
        let dropped = self.board.snapshot().window.dropped;
        let causes: Vec<String> = dropped.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
        if causes.is_empty() {
            "no group was finished in time".into()
        } else {
            format!("every group was dropped: {}", causes.join(", "))
        }
    }
}

impl Closed {
    /// Into the window's record.
    pub(super) fn tell(&self, finished: &mut FinishedWindow) {
        finished.rollouts = self.rollouts;
        finished.bytes = self.bytes;
        finished.mean_reward = self.mean_reward;
        finished.close_seconds = self.seconds;
    }

    fn of(kept: &[Kept]) -> Self {
        let rollouts = kept.len() * ROLLOUTS_PER_PROBLEM;
        let rewards: f64 = kept.iter().map(|kept| kept.record.header.reward_sum).sum();
        Self { rollouts: rollouts as u32, bytes: 0, mean_reward: rewards / rollouts.max(1) as f64, seconds: 0.0 }
    }
}

/// The groups, those of `first` before the others and in that order.
pub(super) fn beginning_with(mut kept: Vec<Kept>, first: &[i64]) -> Vec<Kept> {
    let places: HashMap<i64, usize> = first.iter().enumerate().map(|(place, index)| (*index, place)).collect();
    kept.sort_by_key(|kept| places.get(&kept.record.header.index).copied().unwrap_or(usize::MAX));
    kept
}

/// Puts the file together, then passes it through the gate and hashes it, side by side.
async fn make_file(kept: Vec<Kept>, harvest: &Harvest) -> Result<File, String> {
    let (metadata, judge) = (harvest.metadata(clock::unix_seconds()), harvest.judge().clone());
    let assembled = blocking(move || assemble(&metadata, kept).map_err(|error| error.to_string()));
    let (bytes, judged) = assembled.await??;
    let (seen, hashed) = (bytes.clone(), bytes.clone());
    let gate = blocking(move || judge.judge_file(&seen, &judged));
    let hash = blocking(move || Sha256::digest(&hashed));
    let (passed, sha256) = tokio::join!(gate, hash);
    passed?.map_err(|doubt| format!("the gate holds the file back: {doubt}"))?;
    Ok(File { sha256: sha256?.into(), bytes })
}

/// Seconds of CPU do not belong on the threads that serve everything else.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

/// One file of as many groups as validators look at.
fn assemble(
    metadata: &WindowMetadata,
    kept: Vec<Kept>,
) -> Result<(Bytes, Vec<JudgedGroup>), grail_store::window_file::WindowFileError> {
    let mut room = (MAX_FILE_BYTES as usize).saturating_sub(FOOTER_BYTES);
    let (mut files, mut judged) = (Vec::new(), Vec::new());
    for group in kept {
        // The shift begins no group without room; this is for those that were under way together.
        let Some(rest) = room.checked_sub(group.record.file.len()) else { break };
        room = rest;
        files.push(group.record.file);
        judged.push(group.judged);
    }
    Ok((splice(metadata, &files)?.into(), judged))
}

fn copy(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder: PathBuf = path.parent().unwrap_or(Path::new(".")).into();
    std::fs::create_dir_all(&folder)?;
    let mut beside = tempfile::NamedTempFile::new_in(&folder)?;
    std::io::Write::write_all(&mut beside, bytes)?;
    beside.as_file().sync_all()?;
    beside.persist(path).map_err(|error| error.error)?;
    keep_last(&folder, KEPT_WINDOWS).map(|_| ())
}

fn digest_of(hexadecimal: &str) -> Option<[u8; 32]> {
    hex::decode(hexadecimal).ok()?.try_into().ok()
}
