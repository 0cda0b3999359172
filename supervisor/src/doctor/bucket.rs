//! Our own bucket: what the write pair may do, what validators see, and that their pair can do no more than that. Only keys of
//! our own are touched, and none is left behind.

use std::future::Future;

use grail_protocol::constants::WINDOW_LENGTH;
use grail_protocol::window::object_key;
use grail_settings::Settings;
use grail_store::bucket::{Bucket, BucketError, RetryPolicy};
use grail_subnet::buckets::Buckets;
use grail_subnet::chain::BucketCommitment;
use grail_subnet::configured::settle_on;

use super::row::Row;
use super::{PATIENCE, within};

const WRITE: &str = "bucket write";
const READ: &str = "bucket read";
const RIGHTS: &str = "read-only pair";
const BESIDE: &str = "window files";
/// Blocks after a window's end in which its file may still be judged.
const JUDGED_FOR: u64 = 2 * WINDOW_LENGTH;
/// What is written.
const CONTENT: &[u8] = b"grail-supervisor doctor writes this and removes it.\n";

/// Whether it is known where validators read.
#[derive(Debug)]
pub(super) enum Readers {
    /// It is, and our bucket is there.
    Known,
    /// It is, and our bucket is not: what is to be mended.
    Elsewhere(String),
    /// Only block 0 would tell, and the chain does not.
    Unknown,
}

impl Readers {
    /// Lets block 0 decide, as a start does. `told` is what the chain says of it, if it says anything.
    pub(super) fn learn(settings: &Settings, told: Option<Option<[u8; 32]>>, buckets: &mut Buckets) -> Self {
        match settle_on(settings, told.flatten(), buckets) {
            Err(errors) => Self::Elsewhere(errors.to_string()),
            // Where the account's own address is set, it is the same on every network.
            Ok(()) if told.is_some() || settings.doubt().is_none() => Self::Known,
            Ok(()) => Self::Unknown,
        }
    }

    /// Why nothing is asked as a validator asks.
    fn why_not(&self) -> Option<&'static str> {
        match self {
            Self::Known => None,
            Self::Elsewhere(_) => Some("validators do not look where the settings say; mend those first"),
            Self::Unknown => {
                Some("the chain does not tell its block 0, and where validators look depends on it (storage.endpoint)")
            }
        }
    }
}

/// What came of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// It was carried out.
    Done,
    /// It was answered with other bytes than were written.
    Other,
    /// There is no such object.
    Missing,
    /// The pair may not do that.
    Denied(String),
    /// Anything else, with what to do.
    Trouble(String),
}

impl From<BucketError> for Answer {
    fn from(error: BucketError) -> Self {
        match error {
            BucketError::NotFound(_) => Self::Missing,
            BucketError::Denied { detail, .. } => Self::Denied(detail),
            BucketError::Unreachable { request, detail } => Self::Trouble(format!(
                "{} gives no answer ({detail}); check storage.endpoint or storage.account_id, the network and DNS",
                request.endpoint
            )),
            error => Self::Trouble(error.to_string()),
        }
    }
}

async fn answer(asked: impl Future<Output = Result<Answer, BucketError>>) -> Answer {
    match within(asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => error.into(),
        Err(late) => Answer::Trouble(late),
    }
}

async fn put(bucket: &Bucket, key: &str) -> Answer {
    answer(async { bucket.put(key, CONTENT, &RetryPolicy::within(PATIENCE)).await.map(|()| Answer::Done) }).await
}

async fn head(bucket: &Bucket, key: &str) -> Answer {
    let judge = |size| if size == CONTENT.len() as u64 { Answer::Done } else { Answer::Other };
    answer(async { Ok(bucket.head(key).await?.map_or(Answer::Missing, |head| judge(head.size))) }).await
}

async fn get(bucket: &Bucket, key: &str) -> Answer {
    let judge = |bytes: bytes::Bytes| if bytes == CONTENT { Answer::Done } else { Answer::Other };
    answer(async { bucket.get(key, 1024).await.map(judge) }).await
}

async fn delete(bucket: &Bucket, key: &str) -> Answer {
    answer(async { bucket.delete(key).await.map(|()| Answer::Done) }).await
}

/// Requests in their order, by S3's verb.
type Answers = Vec<(&'static str, Answer)>;

/// Where a read pair comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The chain, and it is the configured one.
    Published,
    /// The chain, which holds another one than the settings.
    Outdated,
    /// The settings: the chain holds none, or could not be asked.
    Configured,
}

impl Source {
    fn words(self) -> &'static str {
        match self {
            Self::Published => "the pair published on chain",
            Self::Outdated => "the other pair that the chain still holds",
            Self::Configured => "the configured pair, which is not on chain yet",
        }
    }
}

/// Read pairs to look with: what the chain holds, and what the next start will publish.
fn readers(published: Option<&BucketCommitment>, configured: &BucketCommitment) -> Vec<(Source, BucketCommitment)> {
    match published {
        Some(published) if published == configured => vec![(Source::Published, configured.clone())],
        Some(published) => vec![(Source::Outdated, published.clone()), (Source::Configured, configured.clone())],
        None => vec![(Source::Configured, configured.clone())],
    }
}

/// Writes an object, looks at it as everybody does, and removes it.
pub(super) async fn rows(buckets: &Buckets, published: Option<&BucketCommitment>, asked_by: &Readers) -> Vec<Row> {
    let own = &buckets.own;
    if let Readers::Elsewhere(why) = asked_by {
        let not_asked = asked_by.why_not().unwrap_or_default();
        return vec![Row::failed_as_told(WRITE, why), Row::not_asked(READ, not_asked), Row::not_asked(RIGHTS, not_asked)];
    }
    let key = format!("grail/doctor-{:016x}", rand::random::<u64>());
    let not_ours = format!("{key}-by-the-read-pair");
    let mut written = vec![("PUT", put(own, &key).await)];
    let stored = written[0].1 == Answer::Done;
    if stored {
        written.push(("HEAD", head(own, &key).await));
        written.push(("GET", get(own, &key).await));
    }
    let (mut seen, mut tried) = (Vec::new(), Vec::new());
    let readers = readers(published, &buckets.commitment);
    // Every further question to a service that gives no answer would wait as long.
    let silent = matches!(written[0].1, Answer::Trouble(_));
    let why_not = asked_by.why_not().or(silent.then_some("the bucket gives no usable answer"));
    let asked = if why_not.is_some() { &[] } else { readers.as_slice() };
    for (source, commitment) in asked {
        seen.push(match buckets.published(commitment) {
            Ok(reader) => {
                read_row(*source, stored, &vec![("HEAD", head(&reader, &key).await), ("GET", get(&reader, &key).await)])
            }
            Err(error) => Row::failed_as_told(READ, &error),
        });
    }
    // After every look, for one of them may take away what the others look at.
    for (source, commitment) in asked {
        tried.push(match buckets.published(commitment) {
            Ok(reader) => {
                rights_row(*source, &vec![("PUT", put(&reader, &not_ours).await), ("DELETE", delete(&reader, &key).await)])
            }
            Err(_) => Row::not_asked(RIGHTS, "the pair makes no client"),
        });
    }
    if let Some(why) = why_not {
        seen.push(Row::not_asked(READ, why));
        tried.push(Row::not_asked(RIGHTS, why));
    }
    // Whatever was or was not written: nothing stays.
    written.push(("DELETE", delete(own, &key).await));
    if !asked.is_empty() {
        let _ = delete(own, &not_ours).await;
    }
    std::iter::once(write_row(&written)).chain(seen).chain(tried).collect()
}

/// Whether something lies beside our windows' files that validators read instead of them.
pub(super) async fn beside(buckets: &Buckets, hotkey: Option<&str>, window: Option<u64>, asked_by: &Readers) -> Row {
    let Some(hotkey) = hotkey else { return Row::not_asked(BESIDE, "there is no hotkey whose files they are") };
    if let Readers::Elsewhere(_) = asked_by {
        return Row::not_asked(BESIDE, asked_by.why_not().unwrap_or_default());
    }
    let prefix = object_key(hotkey, 0);
    let prefix = prefix.trim_end_matches("0.parquet");
    match within(buckets.own.list(prefix)).await {
        Ok(Ok(keys)) => beside_row(prefix, &keys, window),
        Ok(Err(error)) => Row::not_asked(BESIDE, format!("they cannot be listed with the write pair: {error}")),
        Err(late) => Row::not_asked(BESIDE, late),
    }
}

fn beside_row(prefix: &str, keys: &[String], window: Option<u64>) -> Row {
    let of = |key: &str| key.strip_prefix(prefix)?.strip_suffix(".parquet.gz")?.parse::<u64>().ok();
    let found: Vec<(&String, u64)> = keys.iter().filter_map(|key| Some((key, of(key)?))).collect();
    if found.is_empty() {
        return Row::ok(BESIDE, "nothing lies beside them that validators would read instead");
    }
    let judged = |of: u64| window.is_none_or(|window| of + JUDGED_FOR >= window);
    let names: Vec<&str> = found.iter().rev().take(3).map(|(key, _)| key.as_str()).collect();
    let more = if found.len() > names.len() { format!(" and {} more", found.len() - names.len()) } else { String::new() };
    let text = format!("validators read {}{more} instead of the file without .gz", names.join(", "));
    let remedy =
        "remove it, and look for what made it: it has the write pair; a miner removes what lies beside a file that it uploads";
    if found.iter().any(|(_, of)| judged(*of)) { Row::failed(BESIDE, text, remedy) } else { Row::warning(BESIDE, text, remedy) }
}

fn write_row(written: &Answers) -> Row {
    let remedy = "validators and the trainer read from here; set storage.endpoint, storage.account_id and storage.bucket right";
    let Some((verb, answer)) = written.iter().find(|(_, answer)| *answer != Answer::Done) else {
        return Row::ok(WRITE, "PUT, HEAD, GET and DELETE of an object of our own with the write pair");
    };
    match answer {
        Answer::Denied(detail) => Row::failed(
            WRITE,
            format!("the write pair may not {verb} ({detail})"),
            "make a pair with Object Read & Write on this bucket; set storage.write_access_key_id and \
             storage.write_secret_access_key (R2_WRITE_…)",
        ),
        Answer::Missing => Row::failed(WRITE, format!("{verb} finds nothing of what was just written"), remedy),
        Answer::Other => Row::failed(WRITE, format!("{verb} gives other bytes than were just written"), remedy),
        Answer::Trouble(error) => Row::failed_as_told(WRITE, error),
        Answer::Done => Row::ok(WRITE, ""),
    }
}

fn read_row(source: Source, stored: bool, seen: &Answers) -> Row {
    let pair = source.words();
    let Some((verb, answer)) = seen.iter().find(|(_, answer)| *answer != Answer::Done) else {
        return Row::ok(READ, format!("HEAD and GET as a validator does, with {pair}"));
    };
    if !stored && seen.iter().all(|(_, answer)| *answer == Answer::Missing) {
        return Row::not_asked(READ, format!("nothing could be written to be read; {pair} is let in"));
    }
    let found = match answer {
        Answer::Denied(detail) => format!("{pair} may not {verb} ({detail})"),
        Answer::Missing => format!("{verb} with {pair} does not find what was just written"),
        Answer::Other => format!("{verb} with {pair} gives other bytes than were just written"),
        Answer::Trouble(error) => format!("{verb} with {pair}: {error}"),
        Answer::Done => String::new(),
    };
    match source {
        Source::Outdated => {
            Row::warning(READ, found, "validators find nothing of ours until the next start publishes the configured pair")
        }
        Source::Published | Source::Configured => Row::failed(
            READ,
            found,
            "validators would find nothing; make a pair with Object Read on this bucket (or mend it there) and set \
             storage.read_access_key_id and storage.read_secret_access_key (R2_READ_…)",
        ),
    }
}

fn rights_row(source: Source, tried: &Answers) -> Row {
    let pair = source.words();
    let done: Vec<&str> = tried.iter().filter(|(_, answer)| *answer == Answer::Done).map(|(verb, _)| *verb).collect();
    if !done.is_empty() {
        return Row::failed(
            RIGHTS,
            format!("{pair} may {}: everybody can read it there, so everybody may", done.join(" and ")),
            "revoke it at the storage provider at once, make one with Object Read only, and set storage.read_access_key_id and \
             storage.read_secret_access_key (R2_READ_…)",
        );
    }
    let unknown = tried.iter().find_map(|(verb, answer)| match answer {
        Answer::Denied(_) => None,
        Answer::Trouble(error) => Some(format!("{verb} with {pair}: {error}")),
        Answer::Done | Answer::Missing | Answer::Other => Some(format!("{verb} with {pair} was neither carried out nor denied")),
    });
    match unknown {
        None => Row::ok(RIGHTS, format!("PUT and DELETE are denied to {pair}")),
        Some(found) => Row::not_asked(RIGHTS, found),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn commitment(key: &str) -> BucketCommitment {
        BucketCommitment {
            account_id: "account".into(),
            access_key_id: key.into(),
            secret_access_key: grail_settings::Secret::new("secret"),
        }
    }

    #[test]
    fn a_bucket_is_looked_at_with_what_the_chain_holds_and_what_it_will_hold() {
        let sources = |published: Option<&BucketCommitment>| {
            readers(published, &commitment("now"))
                .into_iter()
                .map(|(source, pair)| (source, pair.access_key_id))
                .collect::<Vec<_>>()
        };
        assert_eq!(sources(Some(&commitment("now"))), [(Source::Published, "now".to_owned())]);
        assert_eq!(sources(None), [(Source::Configured, "now".to_owned())]);
        assert_eq!(
            sources(Some(&commitment("old"))),
            [(Source::Outdated, "old".to_owned()), (Source::Configured, "now".to_owned())]
        );
    }

    #[test]
    fn a_twin_of_a_file_that_may_still_be_judged_is_a_fault() {
        let prefix = "grail/windows/5x-window-";
        let judged = |names: &[&str], window| {
            let keys: Vec<String> = names.iter().map(|name| format!("{prefix}{name}")).collect();
            beside_row(prefix, &keys, window)
        };
        let plain = ["30.parquet", "60.parquet", "x.parquet.gz", "60.parquet.gz.old"];
        assert_eq!(judged(&plain, Some(90)).verdict, Verdict::Ok);
        for (window, verdict) in
            [(Some(60), Verdict::Failed), (Some(120), Verdict::Failed), (None, Verdict::Failed), (Some(150), Verdict::Warning)]
        {
            let row = judged(&["30.parquet", "60.parquet.gz"], window);
            assert!(row.verdict == verdict && row.found.contains("60.parquet.gz"), "{window:?}: {row:?}");
        }
        let many = ["30.parquet.gz", "60.parquet.gz", "90.parquet.gz", "120.parquet.gz", "150.parquet.gz"];
        assert!(judged(&many, None).found.contains("and 2 more"));
    }

    #[test]
    fn every_answer_has_its_verdict() {
        let denied = || Answer::Denied("AccessDenied".into());
        let trouble = || Answer::Trouble("no way".into());
        let all = |answer: Answer| vec![("HEAD", answer.clone()), ("GET", answer)];
        for (answer, verdict) in [
            (Answer::Done, Verdict::Ok),
            (denied(), Verdict::Failed),
            (Answer::Missing, Verdict::Failed),
            (Answer::Other, Verdict::Failed),
            (trouble(), Verdict::Failed),
        ] {
            assert_eq!(write_row(&all(answer.clone())).verdict, verdict, "{answer:?}");
            assert_eq!(read_row(Source::Published, true, &all(answer.clone())).verdict, verdict, "{answer:?}");
        }
        assert_eq!(read_row(Source::Outdated, true, &all(Answer::Missing)).verdict, Verdict::Warning);
        assert_eq!(read_row(Source::Published, false, &all(Answer::Missing)).verdict, Verdict::NotAsked);
        assert_eq!(read_row(Source::Published, false, &all(denied())).verdict, Verdict::Failed);
        assert_eq!(rights_row(Source::Published, &all(denied())).verdict, Verdict::Ok);
        assert_eq!(rights_row(Source::Published, &vec![("PUT", denied()), ("DELETE", Answer::Done)]).verdict, Verdict::Failed);
        assert_eq!(rights_row(Source::Published, &vec![("PUT", denied()), ("DELETE", trouble())]).verdict, Verdict::NotAsked);
    }
}
