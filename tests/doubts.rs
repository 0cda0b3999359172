//! A verdict on groups, and what is in the bucket already: a second run of a window finds out that something must not be judged,
//! and what the first one has brought there is taken out, whatever the reason and whatever came before.

use std::path::PathBuf;
use std::time::Duration;

use axum::http::Method;
use grail_fakes::{BucketCue, BucketLie, LyingBucket, Script, WorkerCue, WorkerLie};
use grail_mining::spool::GroupRecord;
use grail_protocol::keys::Hotkey;
use grail_protocol::window::object_key;
use grail_store::window_file::{encode_group, read_window};
use grail_tests::side_by_side::Scenario;
use grail_tests::{Cast, Host, Running, oracle, points};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Long windows: hardly anything here waits for the end of one.
const BLOCK_SECONDS: f64 = 3.0;
const LEAD: f64 = 4.0;
const WINDOW: u64 = 30;

/// What the second run finds out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    /// One of three workers is wrong.
    OneLies,
    /// Two workers disagree, and nothing tells who is wrong.
    Undecided,
    /// The only worker contradicts itself.
    AloneAndWrong,
    /// A group that the first run kept does not pass the gate.
    KeptAndRefused,
}

/// What the first run leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    NoFile,
    File,
    /// Killed between sending the file and writing that down.
    FileOfAKilledRun,
    /// The bucket does not let it be removed, until a third run is there.
    FileThatStays,
}

pub fn scenarios() -> Vec<Scenario> {
    use Before::*;
    use Doubt::*;
    let doubts = [(OneLies, "one-lies"), (Undecided, "undecided"), (AloneAndWrong, "alone"), (KeptAndRefused, "refused")];
    // The one that is validated takes longest.
    let befores = [(File, "file"), (FileThatStays, "delete-denied"), (FileOfAKilledRun, "killed-run"), (NoFile, "no-file")];
    let pairs = befores.iter().flat_map(|before| doubts.iter().map(move |doubt| (*doubt, *before)));
    let of_pair = |((doubt, one), (before, other))| Scenario::new(format!("doubt-{one}-{other}"), move || play(doubt, before));
    pairs.map(of_pair).chain([Scenario::new("doubt-another-checkpoint-file", another_checkpoint_is_ready)]).collect()
}

struct Stage {
    host: Host,
    bucket: LyingBucket,
    doubt: Doubt,
}

fn play(doubt: Doubt, before: Before) -> Result<String, String> {
    let stage = stage(doubt)?;
    stage.play(before).map_err(|why| format!("{why}\n{:#}\n{}", stage.host.status(), stage.host.log()))
}

/// A READY marker comes when the window has long begun: what is mined and what the first run has sent are of another checkpoint.
fn another_checkpoint_is_ready() -> Result<String, String> {
    let stage = stage(Doubt::Undecided)?;
    stage.first_run(Before::File)?;
    let mut miner = stage.host.start(&["run"]);
    let pid = miner.pid();
    let more = |status: &Value| status["pid"] == pid && status["window"]["spooled"].as_u64() >= Some(5);
    stage.host.await_status("a group of the second run", &mut miner, 120, more);
    let folder = stage.host.path().join("buckets/grail-trainer/grail/checkpoints/checkpoint-29");
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(folder.join("READY-29"), ""))
        .map_err(|error| error.to_string())?;
    miner.signal(Signal::SIGTERM);
    let code = miner.finish(Duration::from_secs(120)).code;
    let (log, object) = (stage.host.log(), stage.object());
    if code != 0 || object.is_some() || !log.contains("checkpoint 29 became the newest for this window") {
        return Err(format!("it ended with {code}, a file is in the bucket: {}\n{log}", object.is_some()));
    }
    Ok("the file of the first run was taken out".into())
}

fn stage(doubt: Doubt) -> Result<Stage, String> {
    let workers = match doubt {
        Doubt::OneLies => 3,
        Doubt::AloneAndWrong => 1,
        Doubt::Undecided | Doubt::KeptAndRefused => 2,
    };
    let host = Host::new(BLOCK_SECONDS, LEAD).cast(Cast::Fakes, &script(Vec::new())).with_failpoints();
    let bucket = LyingBucket::start(&host.path().join("buckets"), Vec::new()).map_err(|error| error.to_string())?;
    let host = host.with_bucket(&bucket).set("proof.cpu_slots", &workers.to_string());
    assert_eq!(host.publish("checkpoint-a", &[]).code, 0);
    Ok(Stage { host, bucket, doubt })
}

fn script(worker: Vec<WorkerCue>) -> Script {
    Script { job_seconds: 0.1, completion_seconds: 0.05, load_seconds: 0.1, worker, ..Script::default() }
}

impl Stage {
    fn play(&self, before: Before) -> Result<String, String> {
        let earlier = self.first_run(before)?;
        self.come_to_doubt()?;
        if earlier.is_some() {
            // Validators read this one first, so without the file it would be judged.
            std::fs::write(self.twin(), "of somebody else").map_err(|error| error.to_string())?;
        }
        if before == Before::FileThatStays {
            let denied = BucketCue { method: Method::DELETE, path: "window-30.parquet", count: u32::MAX, lie: BucketLie::Denied };
            self.bucket.lie(vec![denied]);
        }
        let mut miner = self.host.start(&["run"]);
        self.await_verdict(&mut miner);
        if before == Before::FileThatStays {
            miner = self.goes_on_in_a_third_run(miner)?;
        }
        if earlier.is_some() {
            let gone = |status: &Value| status["events"]["file_withdrawn"].as_u64() >= Some(1) && self.object() != earlier;
            self.host.await_status("the earlier file taken out", &mut miner, 120, gone);
            if before == Before::FileThatStays {
                let told = |_: &Value| self.twin().exists() && self.host.log().contains("window-30.parquet.gz in its place");
                self.host.await_status("what lies beside it in the log", &mut miner, 120, told);
                self.bucket.lie(Vec::new());
            }
            self.host.await_status("nothing beside it", &mut miner, 120, |_| !self.twin().exists());
        }
        miner.signal(Signal::SIGTERM);
        let code = miner.finish(Duration::from_secs(120)).code;
        self.host.rewrite(&Script::default());
        if code != 0 || (earlier.is_some() && self.object() == earlier) {
            return Err(format!("it ended with {code}, and the bucket holds what it held: {}", self.object() == earlier));
        }
        self.judge(before)
    }

    /// Mines a few groups with honest workers. What it leaves in the bucket.
    fn first_run(&self, before: Before) -> Result<Option<Vec<u8>>, String> {
        let mut miner = self.host.start(&["run"]);
        let spooled = |status: &Value| status["window"]["window"] == WINDOW && status["window"]["spooled"].as_u64() >= Some(4);
        self.host.await_status("four durable groups", &mut miner, 120, spooled);
        match before {
            Before::NoFile => miner.signal(Signal::SIGKILL),
            Before::FileOfAKilledRun => {
                points::arm(&self.host, "read-back");
                miner.signal(Signal::SIGTERM);
                points::await_reached(&self.host, "read-back", Duration::from_secs(120))?;
                miner.signal(Signal::SIGKILL);
            }
            Before::File | Before::FileThatStays => miner.signal(Signal::SIGTERM),
        }
        miner.finish(Duration::from_secs(120));
        points::release(&self.host, "read-back");
        oracle::no_process_is_left(&self.host)?;
        let object = self.object();
        if object.is_some() == (before != Before::NoFile) {
            Ok(object)
        } else {
            Err(format!("{before:?}, and in the bucket: {:?}", self.host.uploaded()))
        }
    }

    /// From the next run on there is a reason for doubt.
    fn come_to_doubt(&self) -> Result<(), String> {
        let lie = |slot, lie| script(vec![WorkerCue { slot: Some(slot), life: Some(2), job: 1, count: u64::MAX, lie }]);
        match self.doubt {
            Doubt::OneLies => self.host.rewrite(&lie(2, WorkerLie::OtherSketches)),
            Doubt::Undecided => self.host.rewrite(&lie(1, WorkerLie::OtherSketches)),
            Doubt::AloneAndWrong => self.host.rewrite(&lie(0, WorkerLie::Unsteady)),
            Doubt::KeptAndRefused => self.spoil_a_kept_group().map_err(|error| error.to_string())?,
        }
        Ok(())
    }

    /// A record in order, of a group with a signature that is not.
    fn spoil_a_kept_group(&self) -> Result<(), Box<dyn std::error::Error>> {
        let folder = self.host.path().join(format!("state/spool/{WINDOW}"));
        let paths =
            std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<PathBuf>, _>>()?;
        let path = paths.into_iter().find(|path| path.to_string_lossy().contains("/group-")).ok_or("no group is in the spool")?;
        let mut record = GroupRecord::decode(&std::fs::read(&path)?.into())?;
        let mut file = read_window(record.file.clone())?;
        file.rows[3].signature = file.rows[2].signature.clone();
        record.file = encode_group(&file.metadata, &file.rows)?.into();
        Ok(std::fs::write(path, record.encode()?)?)
    }

    fn await_verdict(&self, miner: &mut Running) {
        let kind = match self.doubt {
            Doubt::OneLies | Doubt::AloneAndWrong => "worker_distrusted",
            Doubt::Undecided => "workers_disagree",
            Doubt::KeptAndRefused => "spooled_group_unusable",
        };
        let pid = miner.pid();
        let found = |status: &Value| status["pid"] == pid && status["events"][kind].as_u64() >= Some(1);
        self.host.await_status(kind, miner, 120, found);
    }

    /// The second run cannot remove the file and is killed; its workers were the fault.
    fn goes_on_in_a_third_run(&self, mut miner: Running) -> Result<Running, String> {
        let told = |_: &Value| self.host.log().contains("A file that must not be judged is still in the bucket");
        self.host.await_status("the refusal in the log", &mut miner, 120, told);
        miner.signal(Signal::SIGKILL);
        miner.finish(Duration::from_secs(120));
        oracle::no_process_is_left(&self.host)?;
        let denied = BucketCue { method: Method::DELETE, path: "window-30.parquet.gz", count: u32::MAX, lie: BucketLie::Denied };
        self.bucket.lie(vec![denied]);
        self.host.rewrite(&script(Vec::new()));
        Ok(self.host.start(&["run"]))
    }

    /// What validators read before the window's file.
    fn twin(&self) -> PathBuf {
        let address = Hotkey::from_uri("//Alice").unwrap().address().to_owned();
        self.host.miner_bucket().join(object_key(&address, WINDOW) + ".gz")
    }

    fn object(&self) -> Option<Vec<u8>> {
        std::fs::read(self.host.uploaded().first()?).ok()
    }

    /// What is in the bucket at last holds no group that is not believed, and everything else is accounted for.
    fn judge(&self, before: Before) -> Result<String, String> {
        // The validator waits for the end of the window, so it is asked once for all.
        let validated = self.doubt == Doubt::OneLies && before == Before::File;
        let account = if validated { oracle::judge(&self.host, &[])? } else { oracle::account(&self.host)? };
        let journal =
            grail_supervision::journal::read(&self.host.path().join("state/journal")).map_err(|error| error.to_string())?;
        let events = |kind: &'static str| journal.entries.iter().filter(move |entry| entry.kind == kind);
        let liar = events("worker_distrusted").filter_map(|entry| entry.data["worker"].as_u64()).next();
        let verdict_at = ["worker_distrusted", "workers_disagree", "spooled_group_unusable"]
            .into_iter()
            .filter_map(|kind| events(kind).map(|entry| entry.seq).next())
            .min()
            .unwrap_or(0);
        let before = events("group_kept").filter(|entry| entry.seq < verdict_at);
        let kept: Vec<(u64, i64)> =
            before.filter_map(|entry| Some((entry.data["worker"].as_u64()?, entry.data["group"].as_i64()?))).collect();
        let refused: Vec<i64> = events("spooled_group_unusable").filter_map(|entry| entry.data["group"].as_i64()).collect();
        let bad = |(worker, group): &(u64, i64)| match self.doubt {
            Doubt::OneLies => Some(*worker) == liar,
            Doubt::Undecided | Doubt::AloneAndWrong => true,
            Doubt::KeptAndRefused => refused.contains(group),
        };
        let uploaded = match self.object() {
            Some(bytes) => read_window(bytes).map_err(|error| error.to_string())?.rows,
            None => Vec::new(),
        };
        match kept.iter().find(|kept| bad(kept) && uploaded.iter().any(|row| row.rollout_group == kept.1)) {
            Some((worker, group)) => Err(format!("group {group} of worker {worker} is in the bucket: {account}")),
            None => Ok(account.to_string()),
        }
    }
}
