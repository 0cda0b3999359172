//! Where buckets are read (grail-miner 2). Validators of finney and test know one address for every account, at R2, whatever
//! they are told elsewhere; so block 0 decides what the settings of the bucket may be, not the name of the network.

use super::{Chain, ConfigError, ConfigErrors, Settings, Storage, Wallet};

/// Networks by name: address of their nodes, and hash of block 0 (chain 1).
pub(super) const NETWORKS: [(&str, &str, &str); 2] = [
    ("finney", "wss://entrypoint-finney.opentensor.ai:443", "2f0555cc76fc2840a25a6ea3b9637146806f1f44b090c175ffde2a7e5ab36c03"),
    ("test", "wss://test.finney.opentensor.ai:443", "8f9cf856bf558a14440e75569c9e58594757048d7b3a84b5d25f6bd978263105"),
];
/// Characters of an account id and of a key id at R2, and of a secret.
const R2_ID: usize = 32;
const R2_SECRET: usize = 64;
const R2_HOST: &str = ".r2.cloudflarestorage.com";
/// Parts of the address of a bucket that is kept in one jurisdiction.
const JURISDICTIONS: [&str; 2] = [".eu", ".fedramp"];

/// A setting, and what is wrong with it.
pub(super) type Mistake = (&'static str, String);

/// The network with this block 0, if its validators read every account at its own address.
pub fn network_of(genesis: &[u8; 32]) -> Option<&'static str> {
    let genesis = hex::encode(genesis);
    NETWORKS.iter().find(|(.., known)| *known == genesis).map(|(name, ..)| *name)
}

/// An account's own address.
pub fn r2_address(account_id: &str) -> String {
    format!("https://{account_id}{R2_HOST}")
}

/// Whether R2 has accounts of such names. Anything else would make an address of another host of it.
pub fn is_r2_account_id(text: &str) -> bool {
    text.len() == R2_ID && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The origin that an address is, in its one spelling: scheme and host in lower case, no default port, nothing after it.
///
/// # Errors
/// Why it is none, and what to do.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let text = text.trim();
    let scheme = ["https", "http"].into_iter().find(|scheme| {
        text.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme))
            && text[scheme.len()..].starts_with("://")
    });
    let scheme = scheme.ok_or("is no address that begins with https:// (or http://)")?;
    let rest = text[scheme.len() + 3..].to_ascii_lowercase();
    if rest.contains('@') {
        return Err(
            "holds a user: keys belong into storage.read_… and storage.write_…; leave everything before the host out".into()
        );
    }
    let rest = rest.strip_suffix('/').unwrap_or(&rest);
    if rest.contains(['/', '\\']) {
        return Err("has a path, and the bucket is named in storage.bucket: leave everything after the host out".into());
    }
    if rest.contains(['?', '#']) {
        return Err("has a query: leave everything after the host out".into());
    }
    let (host, port) = authority(rest).ok_or("names no host that could be asked, such as s3.example or 10.0.0.1:9000")?;
    let usual = if scheme == "https" { 443 } else { 80 };
    let port = port.filter(|port| *port != usual).map(|port| format!(":{port}")).unwrap_or_default();
    Ok(format!("{scheme}://{host}{port}"))
}

/// Host and port.
fn authority(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.find(']')) {
        Some(end) => (&text[..end + 2], &text[end + 2..]),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => {
            Some(port.parse::<u16>().ok().filter(|number| *number > 0 && port.bytes().all(|byte| byte.is_ascii_digit()))?)
        }
        None if port.is_empty() => None,
        None => return None,
    };
    let plain = match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let label = |label: &str| {
                !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            };
            host.split('.').all(label)
        }
    };
    plain.then_some((host, port))
}

/// What is wrong with a bucket for readers of a network: of the one that is `known` by its block 0, or of one whose readers
/// are configured like this host.
pub(super) fn mistakes(storage: &Storage, known: Option<&str>) -> Vec<Mistake> {
    let Storage::Remote { endpoint, account_id, bucket, read, write, .. } = storage else {
        let reason = "cannot be read by validators of a network; set storage.account_id and the keys of a bucket";
        return vec![("storage.local_folder", reason.into())];
    };
    let own = r2_address(account_id);
    let r2 = known.is_some() || endpoint.as_ref().is_none_or(|endpoint| *endpoint == own);
    let mut found: Vec<Mistake> = Vec::new();
    let texts = [
        ("storage.account_id", account_id.as_str(), R2_ID),
        ("storage.read_access_key_id", read.access_key_id.reveal(), R2_ID),
        ("storage.read_secret_access_key", read.secret_access_key.reveal(), R2_SECRET),
        ("storage.write_access_key_id", write.access_key_id.reveal(), R2_ID),
        ("storage.write_secret_access_key", write.secret_access_key.reveal(), R2_SECRET),
    ];
    found.extend(texts.into_iter().filter_map(|(key, text, characters)| length(key, text, characters, r2)));
    let is_account = is_r2_account_id(account_id);
    if r2 && found.is_empty() && !account_id.is_empty() && !is_account {
        let reason =
            "is no account id of R2, which has 32 lower-case hexadecimal digits; copy it again from the storage provider";
        found.push(("storage.account_id", reason.into()));
    }
    if !bucket.is_empty() && bucket != account_id {
        let reason = "is not the account id (storage.account_id): the chain holds no bucket names, so validators look for a \
                      bucket named like the account and would find nothing; make one with that name";
        found.push(("storage.bucket", reason.into()));
    }
    // One that is refused already is empty.
    if let (Some(network), Some(endpoint), true) = (known, endpoint, is_account)
        && *endpoint != own
        && !endpoint.is_empty()
    {
        found.push(("storage.endpoint", elsewhere(network, endpoint, account_id)));
    }
    found
}

/// Longer values would be cut on chain, shorter ones are copied wrongly where the provider is R2.
fn length(key: &'static str, text: &str, characters: usize, r2: bool) -> Option<Mistake> {
    let length = text.chars().count();
    let fits = if r2 { length == characters } else { length <= characters || key.starts_with("storage.write") };
    if length == 0 || (fits && text.bytes().all(|byte| byte.is_ascii_graphic())) {
        return None;
    }
    let bound = if r2 { "exactly" } else { "at most" };
    let reason = format!(
        "has {length} characters where {bound} {characters} of plain ASCII are right; copy it again from the storage provider"
    );
    Some((key, reason))
}

/// Why an address that is not the account's own is none on a network that is known.
fn elsewhere(network: &str, endpoint: &str, account_id: &str) -> String {
    let own = r2_address(account_id);
    let jurisdiction = JURISDICTIONS.iter().any(|one| endpoint.contains(&format!("{account_id}{one}{R2_HOST}")));
    let more = if jurisdiction {
        "; a bucket that is kept in a jurisdiction is not there: make one without"
    } else if endpoint.ends_with(R2_HOST) && !endpoint.contains(account_id) {
        "; this one is another account's than storage.account_id"
    } else {
        ""
    };
    format!(
        "is not where validators of {network} look: they read every account at its own address only, {own} for this one; leave the setting out{more}"
    )
}

impl Settings {
    /// Judges the bucket by the network's block 0, and says which network that is, if it is one whose validators read every
    /// account at its own address.
    ///
    /// # Errors
    /// Every mistake that keeps that network's validators from reading the bucket.
    pub fn judged_on(&self, genesis: &[u8; 32]) -> Result<Option<&'static str>, ConfigErrors> {
        let Some(network) = network_of(genesis) else { return Ok(None) };
        let error = |(key, reason): Mistake| ConfigError { key: key.into(), value: None, origin: None, reason };
        let mut found = mistakes(&self.storage, Some(network));
        if matches!(self.wallet, Wallet::Development(_)) {
            found.push(("wallet.development", format!("is a key that everybody knows, and the node's block 0 is {network}'s")));
        }
        let errors: Vec<ConfigError> = found.into_iter().map(error).collect();
        if errors.is_empty() { Ok(Some(network)) } else { Err(ConfigErrors(errors)) }
    }

    /// What cannot be judged before a node has told its block 0.
    pub fn doubt(&self) -> Option<String> {
        let Chain::Network { genesis: None, .. } = &self.chain else { return None };
        let (what, why) = match &self.storage {
            Storage::Local { .. } => ("storage.local_folder".to_owned(), "this folder"),
            Storage::Remote { endpoint: Some(endpoint), account_id, .. } if *endpoint != r2_address(account_id) => {
                (format!("storage.endpoint = {endpoint}"), "this address")
            }
            Storage::Remote { .. } => return None,
        };
        Some(format!(
            "{what}: only the node (chain.endpoint) can tell whether it is right. Where its block 0 is finney's or test's, validators \
             never look at {why}, and a start refuses it."
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_one_spelling() {
        for (text, origin_of_it) in [
            ("https://S3.Example", "https://s3.example"),
            (" HTTPS://s3.example:443/ ", "https://s3.example"),
            ("http://10.0.0.1:9000", "http://10.0.0.1:9000"),
            ("http://[::1]:80", "http://[::1]"),
            ("https://s3_one.example:8443", "https://s3_one.example:8443"),
        ] {
            assert_eq!(origin(text).as_deref(), Ok(origin_of_it), "{text}");
        }
        for (text, word) in [
            ("s3.example", "begins with"),
            ("ftp://s3.example", "begins with"),
            ("https:/s3.example", "begins with"),
            ("https://", "no host"),
            ("https:///", "no host"),
            ("https://:443", "no host"),
            ("https://s3.example:0", "no host"),
            ("https://s3.example:+80", "no host"),
            ("https://s3.example:https", "no host"),
            ("https://s3..example", "no host"),
            ("https://s3.example.", "no host"),
            ("https://s3 .example", "no host"),
            ("https://[::1", "no host"),
            ("https://[::1]x", "no host"),
            ("https://s3.example//", "path"),
            ("https://s3.example/bucket", "path"),
            ("https://s3.example\\bucket", "path"),
            ("https://s3.example?x=1", "query"),
            ("https://s3.example#x", "query"),
            ("https://key@s3.example", "user"),
            ("https://key:secret@s3.example/bucket", "user"),
        ] {
            let reason = origin(text).unwrap_err();
            assert!(reason.contains(word), "{text}: {reason}");
        }
    }

    #[test]
    fn known_networks_are_known_by_block_0() {
        let genesis = |text: &str| <[u8; 32]>::try_from(hex::decode(text).unwrap()).unwrap();
        for (name, _, hash) in NETWORKS {
            assert_eq!(network_of(&genesis(hash)), Some(name));
        }
        assert_eq!(network_of(&[0x45; 32]), None);
    }
}
