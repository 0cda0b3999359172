//! Random rollouts are proved again by another worker while the window runs, and disagreement is settled.
//!
//! ```text
//!  proof of worker A, made within its group ── compared with ── proof of the rollout alone, by worker B
//!     agree ─▶ nothing to do
//!     differ ─▶ the whole group again, by worker B: the same shapes, so no drift is left but the hardware's
//!        agree ─▶ nothing to do
//!        differ ─▶ a third worker decides; without one, A and B prove the group once more:
//!                    who contradicts itself, or stands alone, is wrong ─▶ distrusted, its groups left out
//!                    nobody does ─▶ undecided: the window is held back
//! ```
//!
//! One rollout costs a sixteenth of its group. Computed alone it may drift in bf16: one of 29 on the demo's model was outside
//! the limits (distance p99 472), and would have convicted an honest worker if it were not for the second question.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::BoxFuture;
use grail_settings::AgreementLimits;

use super::agreement::{Agreement, Claim};

/// Which groups get a check: the first of every worker, so that a wrong one is found early, then every n-th.
#[derive(Debug)]
pub struct SpotPlan {
    every: Option<usize>,
    groups: BTreeMap<u32, usize>,
}

impl SpotPlan {
    /// A plan for about `checks` checks in `groups` groups; none for 0.
    pub fn new(checks: usize, groups: usize) -> Self {
        Self { every: groups.checked_div(checks).map(|every| every.max(1)), groups: BTreeMap::new() }
    }

    /// A group of `worker` is complete: shall one of its rollouts be checked?
    pub fn wants(&mut self, worker: u32) -> bool {
        let count = self.groups.entry(worker).or_default();
        *count += 1;
        self.every.is_some_and(|every| (*count - 1).is_multiple_of(every))
    }
}

/// What is proved again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The rollout alone.
    Rollout,
    /// The rollout within its group, as it was proved at first.
    Group,
}

/// Who can prove a rollout again.
pub trait SecondOpinion: Sync {
    /// Proves it on a slot that is not in `not`, if another one has the weights, else on any; says on which.
    fn ask(&self, scope: Scope, not: Vec<u32>) -> BoxFuture<'_, Result<(u32, Claim), String>>;
}

/// What a check found.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// The second proof agrees.
    Agrees {
        /// Who gave it.
        by: u32,
        /// How well.
        agreement: Agreement,
    },
    /// One worker is wrong.
    Wrong {
        /// It.
        worker: u32,
        /// Who was asked first.
        by: u32,
        /// How the first two proofs compare; `None` where their shapes differ.
        agreement: Option<Agreement>,
    },
    /// Two workers differ, and both stand by what they say.
    Undecided {
        /// Who was asked first.
        by: u32,
        /// How the first two proofs compare; `None` where their shapes differ.
        agreement: Option<Agreement>,
    },
}

/// Checks the claim that `prover` made about one rollout.
///
/// # Errors
/// Why there is no second proof. One that fails only when a disagreement is to be settled counts as not given.
pub async fn check(
    prover: u32,
    claim: &Claim,
    limits: &AgreementLimits,
    opinions: &dyn SecondOpinion,
) -> Result<Finding, String> {
    let (by, alone) = opinions.ask(Scope::Rollout, vec![prover]).await?;
    if let Some(agreement) = Agreement::between(claim, &alone).filter(|agreement| agreement.is_within(limits)) {
        return Ok(Finding::Agrees { by, agreement });
    }
    let (by, second) = opinions.ask(Scope::Group, vec![prover]).await?;
    let agreement = Agreement::between(claim, &second);
    if let Some(agreement) = agreement.filter(|agreement| agreement.is_within(limits)) {
        return Ok(Finding::Agrees { by, agreement });
    }
    let mut said = vec![(prover, claim.clone()), (by, second)];
    for not in [vec![prover, by], vec![by], vec![prover]] {
        if let Some(worker) = wrong_one(&said, limits) {
            return Ok(Finding::Wrong { worker, by, agreement });
        }
        if let Ok(opinion) = opinions.ask(Scope::Group, not).await {
            said.push(opinion);
        }
    }
    Ok(match wrong_one(&said, limits) {
        Some(worker) => Finding::Wrong { worker, by, agreement },
        None => Finding::Undecided { by, agreement },
    })
}

/// Who is wrong, if what was said so far tells: a worker that contradicts itself, or one alone against two that agree.
fn wrong_one(said: &[(u32, Claim)], limits: &AgreementLimits) -> Option<u32> {
    let agree = |one: &Claim, other: &Claim| Agreement::between(one, other).is_some_and(|agreement| agreement.is_within(limits));
    let pairs = || said.iter().enumerate().flat_map(|(place, one)| said[place + 1..].iter().map(move |other| (one, other)));
    let contradicting = pairs().find(|(one, other)| one.0 == other.0 && !agree(&one.1, &other.1));
    if let Some(((worker, _), _)) = contradicting {
        return Some(*worker);
    }
    let supporters = |claim: &Claim| -> BTreeSet<u32> {
        said.iter().filter(|(_, other)| agree(claim, other)).map(|(worker, _)| *worker).collect()
    };
    let support: Vec<(u32, BTreeSet<u32>)> = said.iter().map(|(worker, claim)| (*worker, supporters(claim))).collect();
    let majority = support.iter().any(|(_, supporters)| supporters.len() >= 2);
    let alone = support.iter().find(|(_, supporters)| supporters.len() == 1);
    alone.filter(|_| majority).map(|(worker, _)| *worker)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::FutureExt;

    use super::*;

    const LIMITS: AgreementLimits = AgreementLimits { identical_share: 0.9, distance_p99: 300, logprob_p99: 0.1 };

    fn claim(truth: u32) -> Claim {
        Claim { sketches: vec![truth * 1000; 50], logprobs: vec![-1.0; 40] }
    }

    /// Workers that say, one after the other, what the script has for them; alone, rollouts may drift.
    struct Pool {
        script: Mutex<BTreeMap<u32, Vec<u32>>>,
        drifts: bool,
    }

    impl Pool {
        fn new(script: &[(u32, &[u32])]) -> Self {
            let script = script.iter().map(|(worker, truths)| (*worker, truths.to_vec())).collect();
            Self { script: Mutex::new(script), drifts: false }
        }
    }

    impl SecondOpinion for Pool {
        fn ask(&self, scope: Scope, not: Vec<u32>) -> BoxFuture<'_, Result<(u32, Claim), String>> {
            let mut script = self.script.lock().unwrap();
            let worker = script.keys().copied().find(|worker| !not.contains(worker)).or(script.keys().copied().next());
            let said = worker.and_then(|worker| {
                let truths = script.get_mut(&worker)?;
                // What is said of the rollout alone is said of its group once more.
                let truth = if truths.len() > 1 && scope == Scope::Group { truths.remove(0) } else { *truths.first()? };
                let drift = u32::from(self.drifts && scope == Scope::Rollout) * 7;
                Some((worker, claim(truth + drift)))
            });
            std::future::ready(said.ok_or_else(|| "nobody is there".into())).boxed()
        }
    }

    async fn found(script: &[(u32, &[u32])]) -> Finding {
        check(0, &claim(1), &LIMITS, &Pool::new(script)).await.unwrap()
    }

    fn wrong(finding: Finding) -> Option<u32> {
        match finding {
            Finding::Wrong { worker, .. } => Some(worker),
            _ => None,
        }
    }

    #[tokio::test]
    async fn agreement_asks_once() {
        assert!(matches!(found(&[(0, &[9]), (1, &[1])]).await, Finding::Agrees { by: 1, .. }));
        assert!(matches!(found(&[(0, &[1])]).await, Finding::Agrees { by: 0, .. }), "one worker alone checks itself");
    }

    #[tokio::test]
    async fn drift_of_a_rollout_alone_convicts_nobody() {
        for script in [&[(0, &[1][..]), (1, &[1])][..], &[(0, &[1])]] {
            let pool = Pool { drifts: true, ..Pool::new(script) };
            let finding = check(0, &claim(1), &LIMITS, &pool).await.unwrap();
            assert!(matches!(finding, Finding::Agrees { .. }), "{finding:?}");
        }
    }

    #[tokio::test]
    async fn a_third_worker_decides() {
        assert_eq!(wrong(found(&[(0, &[1]), (1, &[2]), (2, &[2])]).await), Some(0));
        assert_eq!(wrong(found(&[(0, &[1]), (1, &[2]), (2, &[1])]).await), Some(1));
    }

    #[tokio::test]
    async fn of_two_workers_the_one_that_contradicts_itself_is_wrong() {
        assert_eq!(wrong(found(&[(0, &[2]), (1, &[2])]).await), Some(0));
        assert_eq!(wrong(found(&[(0, &[1]), (1, &[2, 1])]).await), Some(1));
        assert_eq!(wrong(found(&[(0, &[5])]).await), Some(0), "one worker alone contradicts itself");
    }

    #[tokio::test]
    async fn a_standoff_is_undecided() {
        assert!(matches!(found(&[(0, &[1]), (1, &[2])]).await, Finding::Undecided { by: 1, .. }));
        let three = found(&[(0, &[1]), (1, &[2]), (2, &[3])]).await;
        assert!(matches!(three, Finding::Undecided { .. }), "{three:?}");
        assert!(check(0, &claim(1), &LIMITS, &Pool::new(&[])).await.is_err());
    }

    #[test]
    fn the_first_group_of_every_worker_is_checked_and_then_every_nth() {
        let mut plan = SpotPlan::new(32, 344);
        let wanted: Vec<usize> = (0..30).filter(|_| plan.wants(0)).collect();
        assert_eq!(wanted, [0, 10, 20]);
        assert!(plan.wants(3));
        assert!(!SpotPlan::new(0, 344).wants(0));
        assert!((0..5).all(|_| SpotPlan::new(900, 344).wants(1)));
    }
}
