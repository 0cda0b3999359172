//! Which bucket is whose: our own to write, the trainer's to read, and the local S3 server where there is no remote one.

use std::net::SocketAddr;
use std::time::Duration;

use grail_settings::{Storage, is_r2_account_id, r2_address};
use grail_store::bucket::{Bucket, BucketError, BucketSettings, Secret, TransferLimits};
use grail_store::local_server::{KeyPair as ServerKeyPair, LocalBucketServer, LocalBucketSettings};
use grail_supervision::exit::Failure;

use crate::chain::BucketCommitment;

/// The miner's bucket on the local server.
const LOCAL_MINER: &str = "grail-miner";
/// The trainer's bucket on the local server.
const LOCAL_TRAINER: &str = "grail-trainer";
/// The local server listens on loopback only; these keys keep nobody out, they make requests look like real ones.
const LOCAL_WRITE: (&str, &str) = ("local-write", "local-write-secret");
const LOCAL_READ: (&str, &str) = ("local-read", "local-read-secret");

/// Access to object storage.
#[derive(Debug)]
pub struct Buckets {
    /// Where all accounts are read; `None` means each at its own address at R2.
    endpoint: Option<String>,
    region: String,
    /// Ours, with the write pair.
    pub own: Bucket,
    /// What we publish on chain: our account and the read pair.
    pub commitment: BucketCommitment,
    limits: TransferLimits,
    /// Runs for as long as this value lives.
    _server: Option<LocalBucketServer>,
}

impl Buckets {
    /// Connects to the remote bucket, or starts the local server: on its configured address for the miner, on any free port
    /// for a command that runs beside a miner over the same folder.
    ///
    /// # Errors
    /// When the local address is taken or the settings cannot make a client. Nothing remote is asked yet.
    pub async fn open(storage: &Storage, attempt: Duration, configured_port: bool) -> Result<Self, Failure> {
        let limits = TransferLimits { send: attempt, ..TransferLimits::default() };
        match storage {
            Storage::Local { folder, address } => {
                let address = if configured_port { *address } else { SocketAddr::new(address.ip(), 0) };
                let pair = |(id, secret): (&str, &str)| ServerKeyPair {
                    access_key_id: id.into(),
                    secret_access_key: Secret::new(secret),
                };
                let settings = LocalBucketSettings {
                    folder: folder.clone(),
                    address,
                    writer: pair(LOCAL_WRITE),
                    reader: Some(pair(LOCAL_READ)),
                    buckets: vec![LOCAL_MINER.into(), LOCAL_TRAINER.into()],
                };
                let server =
                    LocalBucketServer::start_with(&settings).await.map_err(|error| Failure::Unavailable(error.to_string()))?;
                let endpoint = server.endpoint();
                let own = client(&endpoint, "auto", LOCAL_MINER, LOCAL_WRITE, &limits)?;
                Ok(Self {
                    own,
                    endpoint: Some(endpoint),
                    region: "auto".into(),
                    commitment: local_commitment(LOCAL_MINER),
                    limits,
                    _server: Some(server),
                })
            }
            Storage::Remote { endpoint, region, account_id, bucket, read, write } => {
                let key = (write.access_key_id.reveal(), write.secret_access_key.reveal());
                let address = endpoint.clone().unwrap_or_else(|| r2_address(account_id));
                let own = client(&address, region, bucket, key, &limits)?;
                let commitment = BucketCommitment {
                    account_id: account_id.clone(),
                    access_key_id: read.access_key_id.reveal().into(),
                    secret_access_key: read.secret_access_key.clone(),
                };
                Ok(Self { own, endpoint: endpoint.clone(), region: region.clone(), commitment, limits, _server: None })
            }
        }
    }

    /// The bucket that the local chain's trainer publishes to.
    pub fn local_trainer() -> BucketCommitment {
        local_commitment(LOCAL_TRAINER)
    }

    /// From now on every account is read at its own address at R2, as validators of finney and test do.
    pub fn read_each_at_its_own_address(&mut self) {
        self.endpoint = None;
    }

    /// Somebody's bucket, with the read pair that they published, where everybody on this network reads it.
    ///
    /// # Errors
    /// When the publication cannot make a client, or names another host.
    pub fn published(&self, commitment: &BucketCommitment) -> Result<Bucket, Failure> {
        let account = &commitment.account_id;
        if self.endpoint.is_none() && !is_r2_account_id(account) {
            return Err(Failure::Unavailable(format!(
                "the chain names the bucket of an account {account:?}, which is none of R2's (32 lower-case hexadecimal digits); \
                 nothing is asked at such an address, whoever published it has to publish another"
            )));
        }
        let key = (commitment.access_key_id.as_str(), commitment.secret_access_key.reveal());
        client(&self.address(&commitment.account_id), &self.region, &commitment.account_id, key, &self.limits)
    }

    /// The local trainer's bucket with the write pair, for publishing a checkpoint.
    ///
    /// # Errors
    /// When the settings cannot make a client.
    pub fn local_trainer_to_write(&self) -> Result<Bucket, Failure> {
        client(&self.address(LOCAL_TRAINER), &self.region, LOCAL_TRAINER, LOCAL_WRITE, &self.limits)
    }

    fn address(&self, account_id: &str) -> String {
        self.endpoint.clone().unwrap_or_else(|| r2_address(account_id))
    }
}

/// Writes, reads back and deletes a small object, so that a bucket that cannot be used is found before anything starts.
///
/// # Errors
/// What the bucket said, with what to do.
pub async fn preflight(bucket: &Bucket) -> Result<(), Failure> {
    bucket
        .probe_write()
        .await
        .map_err(|error: BucketError| Failure::Unavailable(format!("the bucket cannot be used, nothing was started: {error}")))
}

fn local_commitment(account: &str) -> BucketCommitment {
    BucketCommitment {
        account_id: account.into(),
        access_key_id: LOCAL_READ.0.into(),
        secret_access_key: Secret::new(LOCAL_READ.1),
    }
}

fn client(endpoint: &str, region: &str, bucket: &str, key: (&str, &str), limits: &TransferLimits) -> Result<Bucket, Failure> {
    let settings = BucketSettings {
        endpoint: endpoint.into(),
        region: region.into(),
        bucket: bucket.into(),
        access_key_id: key.0.into(),
        secret_access_key: Secret::new(key.1),
        limits: limits.clone(),
    };
    Bucket::new(&settings).map_err(|error| Failure::Unavailable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use grail_settings::KeyPair;

    use super::*;

    fn remote(account: &str, endpoint: Option<&str>) -> Storage {
        let pair = || KeyPair { access_key_id: Secret::new("id"), secret_access_key: Secret::new("secret") };
        Storage::Remote {
            endpoint: endpoint.map(str::to_owned),
            region: "auto".into(),
            account_id: account.into(),
            bucket: account.into(),
            read: pair(),
            write: pair(),
        }
    }

    fn somebody(account: &str) -> BucketCommitment {
        BucketCommitment { account_id: account.into(), access_key_id: "id".into(), secret_access_key: Secret::new("secret") }
    }

    #[tokio::test]
    async fn accounts_are_read_where_everybody_on_the_network_reads_them() {
        let (ours, trainer) = ("0123456789abcdef".repeat(2), "fedcba9876543210".repeat(2));
        let own = r2_address(&ours);
        for endpoint in [None, Some(own.as_str()), Some("https://s3.example")] {
            let mut buckets = Buckets::open(&remote(&ours, endpoint), Duration::from_secs(1), false).await.unwrap();
            let wanted = endpoint.map_or_else(|| r2_address(&trainer), str::to_owned);
            assert_eq!(buckets.published(&somebody(&trainer)).unwrap().endpoint(), wanted);
            assert_eq!(buckets.own.endpoint(), endpoint.unwrap_or(&own));
            buckets.read_each_at_its_own_address();
            let bucket = buckets.published(&somebody(&trainer)).unwrap();
            assert_eq!((bucket.endpoint(), bucket.name()), (r2_address(&trainer).as_str(), trainer.as_str()));
            for stranger in ["evil.example/0000000000000000000", "gggggggggggggggggggggggggggggggg", "short", ""] {
                let refused = buckets.published(&somebody(stranger)).unwrap_err().to_string();
                assert!(refused.contains("none of R2's"), "{refused}");
            }
        }
    }
}
