//! Random rollouts are proved again by another worker while the window runs, and disagreement is settled.
//!
//! ```text
//!  proof of worker A ── compared with ── proof of worker B
//!     agree ─▶ nothing to do
//!     differ ─▶ a third worker decides; without one, A and B prove it once more:
//!                 who contradicts itself, or stands alone, is wrong ─▶ distrusted, its groups left out
//!                 nobody does ─▶ undecided: the window is held back
//! ```

use std::collections::{BTreeMap, BTreeSet};

use futures::future::BoxFuture;

use super::agreement::{Agreement, AgreementLimits, Claim};

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

/// Who can prove a rollout again.
pub trait SecondOpinion: Sync {
    /// Proves it on a slot that is not in `not`, if another one has the weights, else on any; says on which.
    fn ask(&self, not: Vec<u32>) -> BoxFuture<'_, Result<(u32, Claim), String>>;
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
    let (by, second) = opinions.ask(vec![prover]).await?;
    let agreement = Agreement::between(claim, &second);
    if let Some(agreement) = agreement.filter(|agreement| agreement.is_within(limits)) {
        return Ok(Finding::Agrees { by, agreement });
    }
    let mut said = vec![(prover, claim.clone()), (by, second)];
    for not in [vec![prover, by], vec![by], vec![prover]] {
        if let Some(worker) = wrong_one(&said, limits) {
            return Ok(Finding::Wrong { worker, by, agreement });
        }
        if let Ok(opinion) = opinions.ask(not).await {
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

    /// Workers that say, one after the other, what the script has for them.
    struct Pool(Mutex<BTreeMap<u32, Vec<u32>>>);

    impl Pool {
        fn new(script: &[(u32, &[u32])]) -> Self {
            Self(Mutex::new(script.iter().map(|(worker, truths)| (*worker, truths.to_vec())).collect()))
        }
    }

    impl SecondOpinion for Pool {
        fn ask(&self, not: Vec<u32>) -> BoxFuture<'_, Result<(u32, Claim), String>> {
            let mut script = self.0.lock().unwrap();
            let worker = script.keys().copied().find(|worker| !not.contains(worker)).or(script.keys().copied().next());
            let said = worker.and_then(|worker| {
                let truths = script.get_mut(&worker)?;
                let truth = if truths.len() > 1 { truths.remove(0) } else { *truths.first()? };
                Some((worker, claim(truth)))
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
