//! Proof jobs that no worker has yet: who may take which, and what ends unbegun. Pure, but for the answers it sends.

use std::collections::VecDeque;

use grail_link::message::{ProofJob, Revision};
use tokio::sync::oneshot;

use super::proof::{Answer, ProofError};

/// A job and whoever waits for it.
pub(super) struct Pending {
    pub job: ProofJob,
    /// Slots that shall not do it as long as another one can.
    pub not: Vec<u32>,
    /// Workers that have died over it.
    pub tries: u8,
    pub reply: oneshot::Sender<Answer>,
}

/// Jobs in the order in which they are to be done.
#[derive(Default)]
pub(super) struct JobQueue {
    jobs: VecDeque<Pending>,
    /// What every slot shall hold.
    target: Option<Revision>,
}

impl JobQueue {
    /// Adds a job at the end, or at the head. One for weights that the pool has left behind ends at once: it would wait for ever.
    pub fn put(&mut self, pending: Pending, first: bool) {
        if self.target.as_ref().is_some_and(|target| *target != pending.job.revision) {
            return end(pending);
        }
        if first { self.jobs.push_front(pending) } else { self.jobs.push_back(pending) }
    }

    /// The pool goes over to `revision`: jobs for others end.
    pub fn supersede(&mut self, revision: &Revision) {
        self.target = Some(revision.clone());
        let (kept, ended) = std::mem::take(&mut self.jobs).into_iter().partition(|pending| pending.job.revision == *revision);
        self.jobs = kept;
        Vec::from(ended).into_iter().for_each(end);
    }

    /// The next job that `slot` can do with the weights that `holders` says it holds. Jobs nobody waits for any more are
    /// dropped on the way.
    pub fn take(&mut self, slot: u32, holders: &[(u32, Option<Revision>)]) -> Option<Pending> {
        let held = |slot: u32| holders.iter().find(|(holder, _)| *holder == slot).and_then(|(_, held)| held.as_ref());
        let resident = held(slot)?;
        let elsewhere = |not: &[u32]| holders.iter().any(|(slot, held)| !not.contains(slot) && held.as_ref() == Some(resident));
        self.jobs.retain(|pending| !pending.reply.is_closed());
        let can =
            |pending: &Pending| pending.job.revision == *resident && (!pending.not.contains(&slot) || !elsewhere(&pending.not));
        let place = self.jobs.iter().position(can)?;
        self.jobs.remove(place)
    }
}

fn end(pending: Pending) {
    let superseded = ProofError::Superseded(pending.job.revision);
    // Whoever waited may have given up.
    let _ = pending.reply.send(Err(superseded));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(window: u64) -> Revision {
        Revision { window, weights_hash: "ab".into() }
    }

    fn job(id: u64, window: u64, not: &[u32]) -> (Pending, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        let job = ProofJob { id, revision: revision(window), sequences: Vec::new(), examine: None };
        (Pending { job, not: not.to_vec(), tries: 0, reply }, answer)
    }

    fn holders(held: &[Option<u64>]) -> Vec<(u32, Option<Revision>)> {
        (0..).zip(held.iter().map(|held| held.map(revision))).collect()
    }

    fn taken(queue: &mut JobQueue, slot: u32, held: &[Option<u64>]) -> Option<u64> {
        queue.take(slot, &holders(held)).map(|pending| pending.job.id)
    }

    #[test]
    fn a_slot_gets_jobs_for_the_weights_it_holds_in_order() {
        let mut queue = JobQueue::default();
        let jobs = [job(1, 0, &[]), job(2, 30, &[]), job(3, 0, &[]), job(4, 0, &[])];
        let mut answers = Vec::new();
        for (place, (pending, answer)) in jobs.into_iter().enumerate() {
            queue.put(pending, place == 2);
            answers.push(answer);
        }
        assert_eq!(taken(&mut queue, 1, &[Some(0), None]), None, "a slot that loads gets nothing");
        assert_eq!(taken(&mut queue, 0, &[Some(0), None]), Some(3), "the one at the head");
        answers.remove(0);
        assert_eq!(taken(&mut queue, 0, &[Some(0), None]), Some(4), "nobody waits for the first any more");
        assert_eq!(taken(&mut queue, 0, &[Some(0), None]), None);
        assert_eq!(taken(&mut queue, 1, &[Some(0), Some(30)]), Some(2));
    }

    #[test]
    fn a_job_that_shall_be_done_elsewhere_is_done_on_the_same_slot_for_want_of_another() {
        let mut queue = JobQueue::default();
        let (pending, _answer) = job(1, 0, &[0]);
        queue.put(pending, true);
        assert_eq!(taken(&mut queue, 0, &[Some(0), Some(0)]), None);
        assert_eq!(taken(&mut queue, 1, &[Some(0), Some(0)]), Some(1));
        let (pending, _answer) = job(2, 0, &[0]);
        queue.put(pending, true);
        assert_eq!(taken(&mut queue, 0, &[Some(0), Some(30)]), Some(2), "the other one holds other weights");
        let (pending, _answer) = job(3, 0, &[0, 1]);
        queue.put(pending, true);
        assert_eq!(taken(&mut queue, 1, &[Some(0), Some(0)]), Some(3), "nobody is left to ask");
    }

    #[test]
    fn jobs_for_weights_that_are_left_behind_end_at_once() {
        let mut queue = JobQueue::default();
        let (old, mut old_answer) = job(1, 0, &[]);
        let (new, mut new_answer) = job(2, 30, &[]);
        queue.put(old, false);
        queue.put(new, false);
        queue.supersede(&revision(30));
        assert!(matches!(old_answer.try_recv(), Ok(Err(ProofError::Superseded(left))) if left == revision(0)));
        assert!(new_answer.try_recv().is_err(), "the other one still waits");
        let (late, mut late_answer) = job(3, 0, &[]);
        queue.put(late, true);
        assert!(matches!(late_answer.try_recv(), Ok(Err(ProofError::Superseded(_)))));
        assert_eq!(taken(&mut queue, 0, &[Some(30)]), Some(2));
    }
}
