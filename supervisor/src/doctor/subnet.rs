//! Wallet, chain, clock, registration, publication, trainer, beacon.

use grail_chain::relays::Relays;
use grail_process::clock;
use grail_protocol::keys::{Hotkey, KeyScheme};
use grail_settings as settings;
use grail_settings::{Address, Settings};
use grail_subnet::chain::{BucketCommitment, Chain, ChainError, Standing};
use grail_subnet::wallet;

use super::row::Row;
use super::within;

/// Seconds between clock and newest block that are told, and that are too many.
const SKEW: (f64, f64) = (36.0, 120.0);

pub(super) fn wallet(settings: &Settings) -> (Row, Option<Hotkey>) {
    let network = matches!(settings.chain, settings::Chain::Network { .. });
    match wallet::load(&settings.wallet) {
        Ok(hotkey) if network && hotkey.scheme() == KeyScheme::Ed25519 => {
            let found = format!("the hotkey {} is ed25519", hotkey.address());
            let remedy = "validators verify sr25519 only; make another with: btcli wallet new_hotkey";
            (Row::failed("wallet", found, remedy), Some(hotkey))
        }
        Ok(hotkey) => (Row::ok("wallet", format!("hotkey {}", hotkey.address())), Some(hotkey)),
        Err(error) => (Row::failed_as_told("wallet", &error), None),
    }
}

/// What a chain was asked, and the first block of the window under way where it answered.
pub(super) async fn chain(chain: &dyn Chain) -> (Vec<Row>, Option<u64>) {
    let look = async {
        let head = chain.head().await?;
        Ok::<_, ChainError>((head, chain.block_time(head).await?))
    };
    match within(look).await.and_then(|answer| answer.map_err(|error| error.to_string())) {
        Ok((head, time)) => {
            let rows = vec![Row::ok("chain", format!("newest block {head}")), clock_row(clock::unix_seconds() - time)];
            (rows, Some(grail_protocol::window::window_start(head)))
        }
        Err(error) => (vec![unanswered("chain", &error), Row::not_asked("clock", "the chain tells no time")], None),
    }
}

/// `age` is what the newest block is behind this machine's clock, in seconds.
fn clock_row(age: f64) -> Row {
    let found = format!("the newest block's time is {age:.1} s behind this machine's clock");
    let remedy = "set the clock (timedatectl set-ntp true), or take another node in chain.endpoint if this one lags";
    match age {
        // A block in the future is the clock's fault alone.
        age if !(-SKEW.0..=SKEW.1).contains(&age) => Row::failed("clock", found, remedy),
        age if !(-2.0..=SKEW.0).contains(&age) => Row::warning("clock", found, remedy),
        _ => Row::ok("clock", found),
    }
}

/// The subnet as the chain has it, or why it is not known.
pub(super) async fn standing(chain: &dyn Chain, address: &str) -> Result<Standing, String> {
    within(chain.standing(address)).await?.map_err(|error| error.to_string())
}

/// Registration, publication and trainer. Without a hotkey the first two are nobody's.
pub(super) fn standing_rows(
    netuid: u16,
    hotkey: Option<&Hotkey>,
    configured: Option<&BucketCommitment>,
    standing: &Result<Standing, String>,
    chain_answers: bool,
) -> Vec<Row> {
    let Ok(standing) = standing else {
        let error = standing.as_ref().err().map_or("", String::as_str);
        let silent = |what| Row::not_asked(what, "the chain gives no answer about the subnet");
        let registered = if chain_answers { unanswered("registration", error) } else { silent("registration") };
        return vec![registered, silent("publication"), silent("trainer")];
    };
    let trainer = match standing.trainer() {
        Ok((trainer, _)) => Row::ok("trainer", format!("UID 0 is {trainer} and has published its bucket")),
        Err(error) => Row::warning("trainer", error.to_string(), "a start waits until it is there"),
    };
    let nobody = "there is no hotkey to ask for";
    let registered = match hotkey {
        _ if !standing.subnet_exists => Row::failed_as_told("registration", &ChainError::NoSubnet { netuid }),
        None => Row::not_asked("registration", nobody),
        Some(hotkey) => registration(netuid, hotkey, standing),
    };
    let published = match (hotkey, configured) {
        (Some(_), Some(configured)) => publication(standing.own_bucket.as_ref(), configured),
        (None, _) => Row::not_asked("publication", nobody),
        (_, None) => Row::not_asked("publication", "there is no bucket to compare with"),
    };
    vec![registered, published, trainer]
}

fn registration(netuid: u16, hotkey: &Hotkey, standing: &Standing) -> Row {
    match standing.uid {
        Some(uid) => Row::ok("registration", format!("UID {uid} on subnet {netuid}")),
        None => Row::failed_as_told("registration", &ChainError::NotRegistered { hotkey: hotkey.address().into(), netuid }),
    }
}

fn publication(published: Option<&BucketCommitment>, configured: &BucketCommitment) -> Row {
    let writes = "the next start writes it; the chain allows a write only now and then";
    match published {
        Some(bucket) if bucket == configured => Row::ok("publication", "the chain holds this bucket's read pair"),
        Some(bucket) if bucket.account_id != configured.account_id => {
            let found = format!("the chain names the bucket {}, configured is {}", bucket.account_id, configured.account_id);
            Row::warning("publication", found, writes)
        }
        Some(_) => Row::warning("publication", "the chain holds another read pair of this bucket", writes),
        None => Row::warning("publication", "the chain holds no bucket of this hotkey", writes),
    }
}

pub(super) async fn beacon(relays: &[Address]) -> Row {
    let remedy = "windows are mined with the block hash alone; let the relays' hosts through, or set beacon.relays";
    if relays.is_empty() {
        return Row::ok("drand", "not used");
    }
    let asked = async { Relays::new(relays.to_vec()).map_err(|error| error.to_string()) };
    let asked = async { asked.await?.latest(clock::unix_seconds).await.map_err(|error| error.to_string()) };
    match within(asked).await.and_then(|answer| answer) {
        Ok((round, _)) => Row::ok("drand", format!("round {round}, its signature verified")),
        Err(error) => Row::warning("drand", error, remedy),
    }
}

fn unanswered(what: &'static str, error: &str) -> Row {
    Row::failed(what, error, "let the node's host and port through, or name another node in chain.endpoint (BT_CHAIN_ENDPOINT)")
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_clock_is_judged_by_the_newest_block() {
        for (age, verdict) in [
            (6.0, Verdict::Ok),
            (30.0, Verdict::Ok),
            (60.0, Verdict::Warning),
            (-5.0, Verdict::Warning),
            (200.0, Verdict::Failed),
            (-100.0, Verdict::Failed),
        ] {
            let row = clock_row(age);
            assert_eq!((row.verdict, row.remedy.is_some()), (verdict, verdict != Verdict::Ok), "{age}");
        }
    }

    #[test]
    fn what_the_chain_holds_is_compared_part_by_part() {
        let bucket = |account: &str, key: &str| BucketCommitment {
            account_id: account.into(),
            access_key_id: key.into(),
            secret_access_key: grail_settings::Secret::new("secret"),
        };
        let configured = bucket("a", "k");
        assert_eq!(publication(Some(&bucket("a", "k")), &configured).verdict, Verdict::Ok);
        for (published, word) in
            [(Some(bucket("b", "k")), "names the bucket b"), (Some(bucket("a", "x")), "another"), (None, "no bucket")]
        {
            let row = publication(published.as_ref(), &configured);
            assert!(row.verdict == Verdict::Warning && row.found.contains(word), "{row:?}");
        }
    }
}
