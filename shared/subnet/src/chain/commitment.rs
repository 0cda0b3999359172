//! The 128 characters by which a hotkey publishes its bucket (grail-miner 2).

use grail_settings::Secret;

const ACCOUNT: usize = 32;
const KEY_ID: usize = 32;
const SECRET: usize = 64;

/// Account, which is also the bucket's name for everybody else, and the read pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketCommitment {
    /// Account id, at most 32 characters.
    pub account_id: String,
    /// Read key id, at most 32 characters.
    pub access_key_id: String,
    /// Read secret, at most 64 characters. Published, but kept out of logs all the same.
    pub secret_access_key: Secret,
}

/// A bucket that cannot be published, or a publication that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommitmentError {
    /// A part would be cut silently, so that nobody could read the bucket.
    #[error("the {part} has {length} characters, the chain holds {limit}; copy it again from the storage provider")]
    TooLong {
        /// Which part.
        part: &'static str,
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// Only printable ASCII survives.
    #[error("the {part} is empty or holds characters other than printable ASCII")]
    Characters {
        /// Which part.
        part: &'static str,
    },
    /// Not 128 characters.
    #[error("a bucket commitment has 128 characters, this one has {0}")]
    Length(usize),
}

impl BucketCommitment {
    /// The text that goes on chain.
    ///
    /// # Errors
    /// When a part is empty, too long or not ASCII.
    pub fn encode(&self) -> Result<String, CommitmentError> {
        let account = padded("account id", &self.account_id, ACCOUNT)?;
        let key_id = padded("read access key id", &self.access_key_id, KEY_ID)?;
        let secret = padded("read secret access key", self.secret_access_key.reveal(), SECRET)?;
        Ok(account + &key_id + &secret)
    }

    /// Reads the text of the chain as validators do: 32, 32 and 64 characters, blanks around them stripped.
    ///
    /// # Errors
    /// When it is not 128 characters.
    pub fn decode(text: &str) -> Result<Self, CommitmentError> {
        let characters: Vec<char> = text.chars().collect();
        if characters.len() != ACCOUNT + KEY_ID + SECRET {
            return Err(CommitmentError::Length(characters.len()));
        }
        let part = |from: usize, length: usize| -> String {
            let text: String = characters[from..from + length].iter().collect();
            text.trim_matches(is_python_blank).to_owned()
        };
        Ok(Self {
            account_id: part(0, ACCOUNT),
            access_key_id: part(ACCOUNT, KEY_ID),
            secret_access_key: Secret::new(part(ACCOUNT + KEY_ID, SECRET)),
        })
    }
}

/// What Python's `str.strip` takes away.
fn is_python_blank(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

fn padded(part: &'static str, text: &str, limit: usize) -> Result<String, CommitmentError> {
    if text.len() > limit {
        return Err(CommitmentError::TooLong { part, length: text.len(), limit });
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(CommitmentError::Characters { part });
    }
    Ok(format!("{text:<limit$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_limits() {
        let bucket =
            BucketCommitment { account_id: "acct".into(), access_key_id: "AK".into(), secret_access_key: Secret::new("SK") };
        let text = bucket.encode().unwrap();
        assert_eq!(text.len(), 128);
        assert_eq!(BucketCommitment::decode(&text).unwrap(), bucket);
        let long = BucketCommitment { account_id: "a".repeat(33), ..bucket.clone() };
        assert!(matches!(long.encode(), Err(CommitmentError::TooLong { length: 33, .. })));
        assert!(BucketCommitment { access_key_id: String::new(), ..bucket }.encode().is_err());
        assert_eq!(BucketCommitment::decode("short"), Err(CommitmentError::Length(5)));
    }
}
