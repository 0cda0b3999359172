//! `doctor`: what an operator gets wrong, looked at in one go, each with what to do. Nothing is written anywhere.

use std::fmt::Write;
use std::time::Duration;

use grail_chain::relays::Relays;
use grail_process::clock;
use grail_protocol::keys::{Hotkey, KeyScheme};

use crate::buckets::Buckets;
use crate::chain::{Chain, ChainError, Standing};
use crate::exit::Failure;
use crate::mine::open_chain;
use crate::settings::{self, Settings};
use crate::wallet;

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(45);
/// Seconds between clock and newest block that are told, and that are too many.
const SKEW: (f64, f64) = (36.0, 120.0);

/// How it is with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Good,
    /// It can be mined with, not as well as it could.
    Warning,
    /// Nothing can be mined.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What.
    pub what: &'static str,
    /// How it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do, where something is to be done.
    pub remedy: Option<String>,
}

impl Row {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, state: State::Good, found: found.into(), remedy: None }
    }

    fn amiss(what: &'static str, state: State, found: impl Into<String>, remedy: &str) -> Self {
        Self { what, state, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// A table for the terminal.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let mark = match row.state {
            State::Good => "good   ",
            State::Warning => "warning",
            State::Bad => "BAD    ",
        };
        let _ = writeln!(text, "{mark} {:<13} {}", row.what, row.found);
        if let Some(remedy) = &row.remedy {
            let _ = writeln!(text, "{:>22}→ {remedy}", "");
        }
    }
    text
}

/// Looks at wallet, chain, clock, registration, published bucket, trainer and beacon.
///
/// # Errors
/// Only for what keeps it from looking: a local bucket server or a local chain file that cannot be used.
pub async fn examine(settings: &Settings) -> Result<Vec<Row>, Failure> {
    let network = matches!(settings.chain, settings::Chain::Network { .. });
    let (mut rows, hotkey) = wallet_row(settings, network);
    if let Some(hotkey) = hotkey {
        let buckets = Buckets::open(&settings.storage, PATIENCE, false).await?;
        let chain = open_chain(settings, &hotkey, &buckets)?;
        rows.extend(chain_rows(chain.as_ref()).await);
        let standing = tokio::time::timeout(PATIENCE, chain.standing(hotkey.address())).await;
        match standing {
            Ok(Ok(standing)) => rows.extend(standing_rows(settings.netuid, &hotkey, &buckets, &standing)),
            Ok(Err(error)) => rows.push(unanswered("subnet", &error.to_string())),
            Err(_) => rows.push(unanswered("subnet", &late())),
        }
    }
    rows.push(beacon_row(&settings.beacon).await);
    Ok(rows)
}

fn wallet_row(settings: &Settings, network: bool) -> (Vec<Row>, Option<Hotkey>) {
    match wallet::load(&settings.wallet) {
        Ok(hotkey) if network && hotkey.scheme() == KeyScheme::Ed25519 => {
            let found = format!("the hotkey {} is ed25519", hotkey.address());
            let remedy = "validators verify sr25519 only; make another with: btcli wallet new_hotkey";
            (vec![Row::amiss("wallet", State::Bad, found, remedy)], Some(hotkey))
        }
        Ok(hotkey) => (vec![Row::good("wallet", format!("hotkey {}", hotkey.address()))], Some(hotkey)),
        // The message says what to do itself.
        Err(error) => (vec![Row { what: "wallet", state: State::Bad, found: error.to_string(), remedy: None }], None),
    }
}

async fn chain_rows(chain: &dyn Chain) -> Vec<Row> {
    let look = async {
        let head = chain.head().await?;
        Ok::<_, ChainError>((head, chain.block_time(head).await?))
    };
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(Ok((head, time))) => {
            vec![Row::good("chain", format!("newest block {head}")), clock_row(clock::unix_seconds() - time)]
        }
        Ok(Err(error)) => vec![unanswered("chain", &error.to_string())],
        Err(_) => vec![unanswered("chain", &late())],
    }
}

/// `age` is what the newest block is behind this machine's clock, in seconds.
fn clock_row(age: f64) -> Row {
    let found = format!("the newest block's time is {age:.1} s behind this machine's clock");
    let remedy = "set the clock (timedatectl set-ntp true), or take another node in chain.endpoint if this one lags";
    match age {
        // A block in the future is the clock's fault alone.
        age if !(-SKEW.0..=SKEW.1).contains(&age) => Row::amiss("clock", State::Bad, found, remedy),
        age if !(-2.0..=SKEW.0).contains(&age) => Row::amiss("clock", State::Warning, found, remedy),
        _ => Row::good("clock", found),
    }
}

fn standing_rows(netuid: u16, hotkey: &Hotkey, buckets: &Buckets, standing: &Standing) -> Vec<Row> {
    let registered = match standing.uid {
        _ if !standing.subnet_exists => {
            let remedy = "correct chain.netuid (NETUID), which is 81 for GRAIL, or chain.network (BT_NETWORK)";
            Row::amiss("registration", State::Bad, format!("the chain has no subnet {netuid}"), remedy)
        }
        Some(uid) => Row::good("registration", format!("UID {uid} on subnet {netuid}")),
        None => {
            let error = ChainError::NotRegistered { hotkey: hotkey.address().into(), netuid };
            Row { what: "registration", state: State::Bad, found: error.to_string(), remedy: None }
        }
    };
    let published = match &standing.own_bucket {
        Some(bucket) if *bucket == buckets.commitment => Row::good("publication", "the chain holds this bucket's read pair"),
        Some(_) => {
            let remedy = "the next start writes it; the chain allows a write only now and then";
            Row::amiss("publication", State::Warning, "the chain holds another bucket or read pair", remedy)
        }
        None => Row::amiss("publication", State::Warning, "the chain holds no bucket of this hotkey", "the next start writes it"),
    };
    let trainer = match standing.trainer() {
        Ok((trainer, _)) => Row::good("trainer", format!("UID 0 is {trainer} and has published its bucket")),
        Err(error) => Row { what: "trainer", state: State::Warning, found: error.to_string(), remedy: None },
    };
    vec![registered, published, trainer]
}

async fn beacon_row(relays: &[String]) -> Row {
    let remedy = "windows are mined with the block hash alone; let the relays' hosts through, or set beacon.relays";
    if relays.is_empty() {
        return Row::good("drand", "not used");
    }
    match Relays::new(relays.to_vec()) {
        Ok(relays) => match relays.latest(clock::unix_seconds).await {
            Ok((round, _)) => Row::good("drand", format!("round {round}, its signature verified")),
            Err(error) => Row::amiss("drand", State::Warning, error.to_string(), remedy),
        },
        Err(error) => Row::amiss("drand", State::Warning, error.to_string(), remedy),
    }
}

fn unanswered(what: &'static str, error: &str) -> Row {
    Row::amiss(what, State::Bad, error, "let the node's host and port through, or name another node in chain.endpoint")
}

fn late() -> String {
    format!("no answer within {} s", PATIENCE.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_judged_by_the_newest_block() {
        for (age, state) in [
            (6.0, State::Good),
            (30.0, State::Good),
            (60.0, State::Warning),
            (-5.0, State::Warning),
            (200.0, State::Bad),
            (-100.0, State::Bad),
        ] {
            let row = clock_row(age);
            assert_eq!((row.state, row.remedy.is_some()), (state, state != State::Good), "{age}");
        }
        assert!(table(&[clock_row(200.0)]).contains("timedatectl"));
    }
}
