//! The middle of a window: groups are begun while they fit, finished ones are kept, and random rollouts of them are proved
//! again, until the cut-off.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use grail_link::message::{ProofSequence, Revision};
use grail_process::clock;
use grail_protocol::constants::{MAX_FILE_BYTES, ROLLOUTS_PER_PROBLEM, UNIQUE_ROLLOUTS_CAP};
use grail_protocol::row::{Commitments, WindowRow};
use grail_subnet::terms::Terms;
use grail_supervision::shutdown::FINISH_SHARE;
use grail_workers::ProofPool;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::harvest::Harvest;
use super::{CHAIN_PATIENCE, Miner};
use crate::clockwork::Clockwork;
use crate::events::{GroupDropped, GroupKept, SpotCheckMissed, SpotChecked, WorkerDistrusted, WorkersDisagree};
use crate::gate::{Claim, Finding, Scope, SecondOpinion, SpotPlan, check};
use crate::groups::{self, Dropped, Group, Milestone, WindowFacts};
use crate::schedule::{Choice, ServerLoad};
use crate::server_load;
use crate::spool::Indices;

/// Beyond the cap only insurance is gained: a tenth more covers one lost window of a period of twelve.
pub const ROLLOUT_TARGET: usize = (UNIQUE_ROLLOUTS_CAP + UNIQUE_ROLLOUTS_CAP / 10) as usize;
/// Room that the footer of a full window takes, and then some.
pub(super) const FOOTER_BYTES: usize = 8 * 1024 * 1024;
/// Wait before another group after one that failed at a server or worker, so that a lasting fault does not burn indices.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Pause between two looks at the server's load.
const SERVER_LOOK: Duration = Duration::from_secs(2);
/// Checks under way at once; what comes beyond is not checked.
const CHECKS_AT_ONCE: usize = 4;
/// Longest wait for groups that are being encoded or are not yet on disk, and the share of a block that it may take.
const LAST_KEEPS: (f64, f64) = (1.0, 0.25);
/// Longest wait for the last checks, and the share of a block that they may take.
const LAST_CHECKS: (f64, f64) = (2.0, 0.25);

/// What a window works with.
pub(super) struct WindowContext {
    pub clockwork: Clockwork,
    pub terms: Arc<Terms>,
    pub facts: Arc<WindowFacts>,
    pub harvest: Arc<Harvest>,
}

/// What the middle of a window leaves for its end.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Why nothing may be uploaded.
    pub doubt: Option<String>,
    /// Rollouts that were proved again and agree.
    pub agreed: usize,
}

/// What the schedule learns from beside groups that end.
enum News {
    Group(i64, Milestone),
    Server(ServerLoad),
}

/// The groups and checks under way in one window.
struct MiningLoop {
    jobs: JoinSet<Ended>,
    /// Index of every task: one that ends abnormally cannot say it.
    begun: HashMap<Id, i64>,
    handles: HashMap<i64, AbortHandle>,
    news: mpsc::UnboundedReceiver<News>,
    tell: mpsc::UnboundedSender<News>,
    checks: JoinSet<Checked>,
    plan: SpotPlan,
    indices: Indices,
    blocked_until: f64,
    findings: Findings,
    /// The cut-off: a group that is not complete is abandoned, one that is being kept is kept.
    over: CancellationToken,
}

struct Ended {
    index: i64,
    seconds: f64,
    result: Result<Done, Dropped>,
}

/// A group that is kept, with one rollout of it that may be proved again.
struct Done {
    worker: u32,
    durable: bool,
    sample: Option<Sample>,
}

struct Sample {
    rollout: usize,
    /// Of the whole group, in its order.
    sequences: Vec<ProofSequence>,
    claim: Claim,
}

struct Checked {
    group: i64,
    rollout: usize,
    worker: u32,
    found: Result<Finding, String>,
}

impl Miner {
    /// Starts groups while they fit and keeps each finished one, until the cut-off.
    pub(super) async fn generate(&mut self, site: &WindowContext, indices: Indices, stop: &CancellationToken) -> Findings {
        let plan = SpotPlan::new(self.gate.spot_checks, ROLLOUT_TARGET / ROLLOUTS_PER_PROBLEM);
        let (tell, news) = mpsc::unbounded_channel();
        let _watch = self.watch_server(tell.clone());
        self.schedule.open(&site.clockwork, clock::unix_seconds());
        say(self.schedule.choice());
        let mut shift = MiningLoop {
            jobs: JoinSet::new(),
            begun: HashMap::new(),
            handles: HashMap::new(),
            news,
            tell,
            checks: JoinSet::new(),
            plan,
            indices,
            blocked_until: 0.0,
            findings: Findings::default(),
            over: CancellationToken::new(),
        };
        let mut stopped_at = None;
        while shift.findings.doubt.is_none() {
            self.withdraw_condemned(&site.harvest);
            let now = clock::unix_seconds();
            let block = self.block(site, now).await;
            if stop.is_cancelled() {
                stopped_at.get_or_insert(now);
            }
            let finishing = stopped_at.map_or(f64::INFINITY, |at| at + self.shutdown_budget * FINISH_SHARE);
            let kept = site.harvest.groups() * ROLLOUTS_PER_PROBLEM;
            let planned = kept + shift.jobs.len().max(1) * ROLLOUTS_PER_PROBLEM;
            let cut_off = self.schedule.cut_off(&site.clockwork, planned).min(finishing);
            self.give_up(site, &shift, kept, now);
            let fits = self.schedule.fits(&site.clockwork, block, now, kept);
            let open = stopped_at.is_none() && kept < ROLLOUT_TARGET && has_room(&site.harvest) && fits;
            // Without a server an index would be burnt for nothing.
            let served = self.resources.generator.replicas().serves(&site.terms.revision);
            let places = self.schedule.places();
            if open && served && now >= shift.blocked_until && places > 0 {
                self.begin(site, &mut shift, block, places).await;
            }
            self.show(&shift, open, served);
            if (shift.jobs.is_empty() && !open) || now >= cut_off {
                break;
            }
            let tick =
                Duration::from_secs_f64((cut_off - now).clamp(0.01, (self.schedule.block_seconds() / 4.0).clamp(0.05, 1.0)));
            tokio::select! {
                Some(ended) = shift.jobs.join_next() => self.record(ended, site, &mut shift),
                Some(news) = shift.news.recv() => self.hear(news),
                Some(checked) = shift.checks.join_next() => self.settle(checked, site, &mut shift).await,
                () = tokio::time::sleep(tick) => {}
                () = stop.cancelled(), if stopped_at.is_none() => {}
            }
        }
        self.end(site, shift).await
    }

    /// The newest block, by the clock where the chain does not say.
    async fn block(&mut self, site: &WindowContext, now: f64) -> u64 {
        let clockwork = &site.clockwork;
        // A node that hangs must not hold up the end of the window.
        let left = self.schedule.cut_off(clockwork, site.harvest.groups() * ROLLOUTS_PER_PROBLEM) - now;
        let patience = CHAIN_PATIENCE.min(Duration::try_from_secs_f64(left).unwrap_or_default());
        if let Ok(block) = self.head(patience).await {
            self.schedule.observe_block(block, now);
        }
        let block = self.heads.block(clockwork.block_at(now, self.schedule.block_seconds()));
        self.board.update(|status| status.block = block);
        block
    }

    /// What the servers say about themselves, until the handle is dropped. While one of them is away, the others carry more than
    /// is theirs, which says nothing about what all of them sustain.
    fn watch_server(&self, tell: mpsc::UnboundedSender<News>) -> AbortOnDropHandle<()> {
        let resources = self.resources.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                tokio::time::sleep(SERVER_LOOK).await;
                let replicas = resources.generator.replicas();
                let serving = replicas.serving();
                if serving.len() < replicas.count() {
                    continue;
                }
                let asked = serving.iter().map(|serving| server_load::ask(resources.completions.http(), &serving.url));
                let told: Option<Vec<ServerLoad>> = futures::future::join_all(asked).await.into_iter().collect();
                if let Some(load) = told.map(ServerLoad::of_all)
                    && tell.send(News::Server(load)).is_err()
                {
                    return;
                }
            }
        }))
    }

    fn hear(&mut self, news: News) {
        let now = clock::unix_seconds();
        let changed = match news {
            News::Server(load) => self.schedule.server_said(now, load),
            News::Group(index, Milestone::Completed(tokens)) => self.schedule.completed(index, now, tokens),
            News::Group(index, Milestone::Prompted(tokens)) => {
                self.schedule.prompted(index, tokens);
                None
            }
        };
        changed.into_iter().for_each(say);
    }

    /// Ends groups that would be too late; their requests end with them.
    fn give_up(&mut self, site: &WindowContext, shift: &MiningLoop, kept: usize, now: f64) {
        for index in self.schedule.hopeless(&site.clockwork, now, kept) {
            if let Some(handle) = shift.handles.get(&index) {
                handle.abort();
            }
            self.schedule.dropped(index, now, false);
        }
    }

    /// Begins so many groups, with indices that are reserved durably first.
    async fn begin(&mut self, site: &WindowContext, shift: &mut MiningLoop, block: u64, places: usize) {
        if let Some(bound) = shift.indices.wanted_bound(places) {
            match site.harvest.on_willing_disk(move |spool| spool.reserve(bound)).await {
                Some(()) => shift.indices.raise(bound),
                None => {
                    let milliseconds =
                        site.clockwork.milliseconds_into(clock::unix_seconds(), self.chain.nominal_block_seconds());
                    shift.indices.take_from_the_clock(milliseconds, places);
                }
            }
        }
        for index in (0..places).map_while(|_| shift.indices.take()) {
            let kept = site.harvest.groups() * ROLLOUTS_PER_PROBLEM;
            self.schedule.begin(index, &site.clockwork, clock::unix_seconds(), kept);
            let tell = shift.tell.clone();
            let tell = move |milestone| _ = tell.send(News::Group(index, milestone));
            let group = groups::make(self.resources.clone(), site.terms.clone(), site.facts.clone(), index, block, tell);
            let (harvest, over) = (site.harvest.clone(), shift.over.clone());
            let task = shift.jobs.spawn(async move {
                let begun = clock::monotonic();
                let result = finish(group, &harvest, &over).await;
                Ended { index, seconds: begun.elapsed().as_secs_f64(), result }
            });
            shift.begun.insert(task.id(), index);
            shift.handles.insert(index, task);
        }
    }

    fn show(&self, shift: &MiningLoop, open: bool, served: bool) {
        let phase = match (open, served) {
            (true, true) => "mining",
            (true, false) => "waiting for the generation server",
            (false, _) => "finishing groups",
        };
        self.board.update(|status| {
            status.window.phase = phase.into();
            status.window.in_flight = shift.jobs.len() as u32;
        });
    }

    fn record(&mut self, ended: Result<Ended, JoinError>, site: &WindowContext, shift: &mut MiningLoop) {
        // What the group told before it ended comes first.
        while let Ok(news) = shift.news.try_recv() {
            self.hear(news);
        }
        let now = clock::unix_seconds();
        let Ended { index, seconds, result } = match ended {
            Ok(ended) => ended,
            Err(error) => return self.broken_off(&error, site, shift, now),
        };
        shift.handles.remove(&index);
        match result {
            Ok(Done { worker, durable, sample }) => {
                self.schedule.kept(index, now);
                let window = site.clockwork.window;
                self.journal.record(&GroupKept { window, group: index, worker, durable, seconds });
                if let Some(sample) = sample.filter(|_| shift.plan.wants(worker) && shift.checks.len() < CHECKS_AT_ONCE) {
                    shift.checks.spawn(self.spot_check(site, index, worker, sample));
                }
            }
            Err(dropped) => {
                self.schedule.dropped(index, now, matches!(dropped, Dropped::ShortCompletion));
                if !dropped.detail().is_empty() || matches!(dropped, Dropped::Revision | Dropped::Distrusted) {
                    shift.blocked_until = clock::unix_seconds() + PAUSE_AFTER_FAILURE.as_secs_f64();
                }
                self.drop_group(site, index, &dropped);
            }
        }
    }

    /// A group's task ended before it could say how. What is kept by then stays kept: it waited for the disk only.
    fn broken_off(&mut self, error: &JoinError, site: &WindowContext, shift: &MiningLoop, now: f64) {
        let index = shift.begun.get(&error.id()).copied().unwrap_or(-1);
        if let Some(worker) = site.harvest.worker_of(index) {
            site.harvest.count(index);
            self.schedule.kept(index, now);
            let (window, durable, seconds) = (site.clockwork.window, false, 0.0);
            return self.journal.record(&GroupKept { window, group: index, worker, durable, seconds });
        }
        self.schedule.dropped(index, now, false);
        let why = if error.is_cancelled() { Dropped::TooLate } else { Dropped::Internal(error.to_string()) };
        self.drop_group(site, index, &why);
    }

    fn drop_group(&self, site: &WindowContext, group: i64, dropped: &Dropped) {
        let (cause, detail) = (dropped.to_string(), dropped.detail().to_owned());
        self.count_drops(&cause, 1);
        self.journal.record(&GroupDropped { window: site.clockwork.window, group, cause, detail });
    }

    fn count_drops(&self, cause: &str, count: usize) {
        self.board.window(|status| *status.dropped.entry(cause.to_owned()).or_default() += count as u32);
    }

    fn spot_check(&self, site: &WindowContext, group: i64, worker: u32, sample: Sample) -> impl Future<Output = Checked> + use<> {
        let (resources, revision, limits) = (self.resources.clone(), site.terms.revision.clone(), self.gate.limits);
        async move {
            let Sample { rollout, sequences, claim } = sample;
            let opinions = Opinions { pool: &resources.proofs, revision, rollout, sequences };
            let found = check(worker, &claim, &limits, &opinions).await;
            Checked { group, rollout, worker, found }
        }
    }

    /// Writes down what a check found, and acts on it.
    async fn settle(&self, checked: Result<Checked, JoinError>, site: &WindowContext, shift: &mut MiningLoop) {
        let window = site.clockwork.window;
        let Checked { group, rollout, worker, found } = match checked {
            Ok(checked) => checked,
            Err(error) => return self.journal.record(&SpotCheckMissed { window, group: -1, why: error.to_string() }),
        };
        let (by, agreement, agrees) = match &found {
            Err(why) => return self.journal.record(&SpotCheckMissed { window, group, why: why.clone() }),
            Ok(Finding::Agrees { by, agreement }) => (*by, Some(*agreement), true),
            Ok(Finding::Wrong { by, agreement, .. } | Finding::Undecided { by, agreement }) => (*by, *agreement, false),
        };
        let why = agreement.map_or("proofs of different lengths".to_owned(), |agreement| agreement.to_string());
        if let Some(agreement) = agreement {
            let (identical_share, distance_p99) = (agreement.identical_share, agreement.distance_p99);
            let logprob_p99 = agreement.logprob_p99;
            self.journal.record(&SpotChecked {
                window,
                group,
                rollout,
                worker,
                by,
                identical_share,
                distance_p99,
                logprob_p99,
                agrees,
            });
        }
        match found {
            Ok(Finding::Wrong { worker, .. }) => self.distrust(worker, &why, site, shift).await,
            Ok(Finding::Undecided { .. }) => {
                let doubt = format!("proof workers {worker} and {by} disagree ({why}), and neither can be shown to be wrong");
                self.hold_back(&doubt, site, shift).await;
                self.journal.record(&WorkersDisagree { window, worker, by, why: why.clone() });
                self.resources.proofs.renew(&[worker, by], &format!("workers {worker} and {by} disagree: {why}"));
            }
            _ => {
                shift.findings.agreed += 1;
                self.board.window(|status| status.spot_checks += 1);
            }
        }
    }

    async fn distrust(&self, worker: u32, why: &str, site: &WindowContext, shift: &mut MiningLoop) {
        let told = format!("proof worker {worker} is not believed: its proofs differ from another worker's ({why})");
        // On disk first: after a crash the groups must not come back.
        let mut groups = site.harvest.distrust(worker, shift.indices.above(), &told).await;
        let quarantined = self.resources.proofs.quarantine(worker, &format!("its proofs differ from another worker's: {why}"));
        if !quarantined {
            let doubt = format!("proof worker {worker}, the only one there is, does not prove the same twice ({why})");
            groups += self.hold_back(&doubt, site, shift).await;
        }
        self.count_drops(&Dropped::Distrusted.to_string(), groups);
        let window = site.clockwork.window;
        self.journal.record(&WorkerDistrusted { window, worker, why: why.to_owned(), groups, quarantined });
    }

    /// Nothing of this window may be uploaded, by this run or another. Says how many groups there were.
    async fn hold_back(&self, doubt: &str, site: &WindowContext, shift: &mut MiningLoop) -> usize {
        let groups = site.harvest.hold_back(shift.indices.above(), doubt).await;
        shift.findings.doubt = Some(format!("{doubt}; {groups} groups are left out"));
        groups
    }

    /// Abandons what is not finished, and gives complete groups that are on their way to the disk, and the last checks, a moment.
    async fn end(&mut self, site: &WindowContext, mut shift: MiningLoop) -> Findings {
        shift.over.cancel();
        let patience = Duration::from_secs_f64(LAST_KEEPS.0.min(LAST_KEEPS.1 * self.schedule.block_seconds()));
        let limit = clock::monotonic() + patience;
        while let Ok(Some(ended)) = tokio::time::timeout_at(limit.into(), shift.jobs.join_next()).await {
            self.record(ended, site, &mut shift);
        }
        // A disk that hangs.
        shift.jobs.abort_all();
        while let Some(ended) = shift.jobs.join_next().await {
            self.record(ended, site, &mut shift);
        }
        self.board.window(|status| status.in_flight = 0);
        let patience = LAST_CHECKS.0.min(LAST_CHECKS.1 * self.schedule.block_seconds());
        let limit = clock::monotonic() + Duration::from_secs_f64(patience);
        while let Ok(Some(checked)) = tokio::time::timeout_at(limit.into(), shift.checks.join_next()).await {
            self.settle(checked, site, &mut shift).await;
        }
        for _ in 0..shift.checks.len() {
            let why = "the window was closed first".into();
            self.journal.record(&SpotCheckMissed { window: site.clockwork.window, group: -1, why });
        }
        shift.findings
    }
}

fn say(choice: Choice) {
    let Choice { groups, reason } = choice;
    tracing::info!(groups, requests = groups * ROLLOUTS_PER_PROBLEM, %reason, "Groups in flight are set.");
}

/// Validators look at files of limited size only.
fn has_room(harvest: &Harvest) -> bool {
    harvest.bytes() + FOOTER_BYTES < MAX_FILE_BYTES as usize
}

async fn finish(
    group: impl Future<Output = Result<Group, Dropped>>,
    harvest: &Arc<Harvest>,
    over: &CancellationToken,
) -> Result<Done, Dropped> {
    let group = over.run_until_cancelled(group).await.unwrap_or(Err(Dropped::TooLate))?;
    let (worker, sample) = (group.worker, sample(&group.rows));
    let durable = harvest.keep(group).await?;
    Ok(Done { worker, durable, sample })
}

/// One rollout, drawn at random, as it was claimed, with what a worker needs to prove its group again.
fn sample(rows: &[WindowRow]) -> Option<Sample> {
    let rollout = rand::random_range(0..rows.len().max(1));
    let row = rows.get(rollout)?;
    let Commitments::Sketches(sketches) = &row.commit.commitments else { return None };
    let prompt = usize::try_from(row.commit.rollout.prompt_length).ok()?;
    let logprobs = row.commit.rollout.token_logprobs.get(prompt..)?.to_vec();
    let sequences = rows.iter().map(sequence).collect::<Option<_>>()?;
    Some(Sample { rollout, sequences, claim: Claim { sketches: sketches.clone(), logprobs } })
}

fn sequence(row: &WindowRow) -> Option<ProofSequence> {
    let tokens = row.commit.tokens.iter().map(|token| u32::try_from(*token).ok()).collect::<Option<_>>()?;
    let prompt_length = u32::try_from(row.commit.rollout.prompt_length).ok()?;
    let coefficients = grail_protocol::sketch::coefficients(&row.randomness).ok()?;
    Some(ProofSequence { tokens, prompt_length, coefficients })
}

/// The proof pool as a second opinion on one rollout.
struct Opinions<'a> {
    pool: &'a ProofPool,
    revision: Revision,
    rollout: usize,
    sequences: Vec<ProofSequence>,
}

impl SecondOpinion for Opinions<'_> {
    fn ask(&self, scope: Scope, not: Vec<u32>) -> BoxFuture<'_, Result<(u32, Claim), String>> {
        async move {
            let (sequences, place) = match scope {
                Scope::Rollout => (self.sequences.get(self.rollout..=self.rollout).unwrap_or_default().to_vec(), 0),
                Scope::Group => (self.sequences.clone(), self.rollout),
            };
            let batch = self.pool.prove_elsewhere(not, self.revision.clone(), sequences).await;
            let mut batch = batch.map_err(|error| error.to_string())?;
            if place >= batch.proofs.len() {
                return Err("the worker gave no proof of it".into());
            }
            let proof = batch.proofs.swap_remove(place);
            Ok((batch.worker, Claim { sketches: proof.sketches, logprobs: proof.logprobs }))
        }
        .boxed()
    }
}
