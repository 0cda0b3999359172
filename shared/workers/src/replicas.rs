//! The generation servers as their client sees them: who serves which weights, and who has least to do.
//!
//! All requests of a group go to one server, where their common prompt is computed once and its keys and values are shared; the
//! group goes to the server with the fewest requests promised to it. Where that one ends, what is left of the group goes on
//! elsewhere.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::stream::{FuturesUnordered, StreamExt};
use grail_link::message::Revision;
use grail_protocol::constants::ROLLOUTS_PER_PROBLEM;
use grail_secrets::Address;
use tokio::sync::watch;

use super::serving::Serving;
use super::traffic::Traffic;

/// One server.
#[derive(Debug)]
pub struct Replica {
    /// What it serves, if it does.
    pub serving: watch::Receiver<Option<Serving>>,
    /// Requests under way to it.
    pub traffic: Traffic,
}

/// All servers of a host. Clone it freely.
#[derive(Debug, Clone)]
pub struct Replicas {
    all: Arc<[Replica]>,
    /// Requests of groups that have chosen each server and are not answered.
    promised: Arc<Mutex<Vec<usize>>>,
}

impl Replicas {
    /// These servers, with nothing to do.
    pub fn new(all: Vec<Replica>) -> Self {
        let promised = Arc::new(Mutex::new(vec![0; all.len()]));
        Self { all: all.into(), promised }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// What those that serve are serving.
    pub fn serving(&self) -> Vec<Serving> {
        self.all.iter().filter_map(|replica| replica.serving.borrow().clone()).collect()
    }

    /// Whether any serves these weights.
    pub fn serves(&self, revision: &Revision) -> bool {
        self.all.iter().any(|replica| replica.holds(revision))
    }

    /// Waits until any serves these weights; `None` when none ever will.
    pub async fn awaited(&self, revision: &Revision) -> Option<Serving> {
        let waits: FuturesUnordered<_> =
            self.all.iter().map(|replica| Serving::awaited(replica.serving.clone(), revision)).collect();
        std::pin::pin!(waits.filter_map(std::future::ready)).next().await
    }

    /// A place for a group that is about to send its requests.
    pub fn home(&self) -> AssignedServer {
        let state = State { at: None, left: ROLLOUTS_PER_PROBLEM };
        AssignedServer { replicas: self.clone(), state: Mutex::new(state) }
    }

    fn promised(&self) -> MutexGuard<'_, Vec<usize>> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replica {
    fn holds(&self, revision: &Revision) -> bool {
        self.serving.borrow().as_ref().is_some_and(|serving| serving.revision == *revision)
    }
}

#[derive(Debug)]
struct State {
    at: Option<usize>,
    /// Requests that are not answered.
    left: usize,
}

/// The server of one group. Dropping it takes back what was promised.
#[derive(Debug)]
pub struct AssignedServer {
    replicas: Replicas,
    state: Mutex<State>,
}

impl AssignedServer {
    /// The group's server, as long as it serves these weights; else the one with least to do, waited for where none serves.
    /// `None` when none ever will.
    pub async fn server(&self, revision: &Revision) -> Option<(Serving, Traffic)> {
        loop {
            if let Some(found) = self.choose(revision, None) {
                return Some(found);
            }
            self.replicas.awaited(revision).await?;
        }
    }

    /// A request to the server at `url` failed: the group leaves it, if it is still there and another one serves.
    pub fn leave(&self, url: &Address, revision: &Revision) {
        let at = self.state().at;
        let there = |place: &usize| self.replicas.all[*place].serving.borrow().as_ref().is_none_or(|serving| serving.url == *url);
        if let Some(place) = at.filter(there) {
            self.choose(revision, Some(place));
        }
    }

    /// One request of the group is answered, or will never be.
    pub fn ended(&self) {
        let mut state = self.state();
        if state.left > 0 {
            state.left -= 1;
            if let Some(at) = state.at {
                self.replicas.promised()[at] -= 1;
            }
        }
    }

    fn choose(&self, revision: &Revision, not: Option<usize>) -> Option<(Serving, Traffic)> {
        let mut state = self.state();
        let serves = |place: &usize| self.replicas.all[*place].holds(revision);
        let stays = state.at.filter(|place| Some(*place) != not).filter(serves);
        let place = match stays {
            Some(place) => place,
            None => {
                let mut promised = self.replicas.promised();
                let others = (0..promised.len()).filter(|place| Some(*place) != not);
                let place = others.filter(serves).min_by_key(|place| promised[*place])?;
                if let Some(before) = state.at.replace(place) {
                    promised[before] -= state.left;
                }
                promised[place] += state.left;
                place
            }
        };
        let replica = &self.replicas.all[place];
        let serving = replica.serving.borrow().clone()?;
        Some((serving, replica.traffic.clone()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AssignedServer {
    fn drop(&mut self) {
        let state = self.state();
        if let Some(at) = state.at {
            self.replicas.promised()[at] -= state.left;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision() -> Revision {
        Revision { window: 30, weights_hash: "ab".into() }
    }

    fn two() -> (Vec<watch::Sender<Option<Serving>>>, Replicas) {
        let serving =
            |port: u32| Serving { revision: revision(), url: format!("http://127.0.0.1:{port}").into(), context_length: 64 };
        let channels = (1..=2).map(|port| watch::channel(Some(serving(port))));
        let (senders, receivers): (Vec<_>, Vec<_>) = channels.unzip();
        let replica = |serving| Replica { serving, traffic: Traffic::default() };
        (senders, Replicas::new(receivers.into_iter().map(replica).collect()))
    }

    async fn port(home: &AssignedServer) -> char {
        home.server(&revision()).await.unwrap().0.url.reveal().chars().last().unwrap()
    }

    #[tokio::test]
    async fn a_group_stays_with_its_server_and_the_next_goes_to_the_least_loaded() {
        let (_senders, replicas) = two();
        let (first, second, third) = (replicas.home(), replicas.home(), replicas.home());
        assert_eq!((port(&first).await, port(&second).await), ('1', '2'));
        (0..12).for_each(|_| second.ended());
        assert_eq!((port(&first).await, port(&third).await), ('1', '2'));
        drop((first, second, third));
        assert_eq!(*replicas.promised(), [0, 0]);
    }

    #[tokio::test]
    async fn a_group_whose_server_ends_goes_elsewhere_and_waits_where_none_is_there() {
        let (senders, replicas) = two();
        let home = replicas.home();
        assert_eq!(port(&home).await, '1');
        let was = senders[0].send_replace(None);
        assert_eq!(port(&home).await, '2');
        assert_eq!(*replicas.promised(), [0, 16]);
        senders[1].send_replace(None);
        let wanted = revision();
        let waiting = home.server(&wanted);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        senders[0].send_replace(was);
        assert!(waiting.await.unwrap().0.url.reveal().ends_with('1'));
        home.leave(&"http://127.0.0.1:1".into(), &revision());
        assert_eq!(*replicas.promised(), [16, 0], "there is nowhere else to go");
        drop(senders);
        assert!(replicas.awaited(&Revision { window: 60, ..revision() }).await.is_none(), "nobody will ever serve it");
    }
}
