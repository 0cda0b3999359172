//! Hotkeys: loading, signing, verifying, addresses (grail-protocol 7).

mod address;
mod derive;
mod file;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey};

pub use address::{AddressError, address_of, public_key_of};
pub use file::MAX_FILE_BYTES;

/// Context of every sr25519 signature of the network.
const SIGNING_CONTEXT: &[u8] = b"substrate";
const WRAP_START: &[u8] = b"<Bytes>";
const WRAP_END: &[u8] = b"</Bytes>";

/// How a key signs. The network verifies sr25519 only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyScheme {
    /// `cryptoType` 0.
    Ed25519,
    /// `cryptoType` 1.
    Sr25519,
}

/// Why a hotkey cannot be loaded. No variant carries secret text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The file starts as an encrypted one.
    #[error("The hotkey file is encrypted ({form}); write it unencrypted, as a miner must sign without a password.")]
    Encrypted {
        /// How it is encrypted, from its first characters.
        form: &'static str,
    },
    /// More text than any hotkey file has.
    #[error("The hotkey file has {length} bytes, more than {MAX_FILE_BYTES}; is it another file?")]
    TooLong {
        /// Length in bytes.
        length: usize,
    },
    /// The file is not the JSON object of a bittensor hotkey.
    #[error("The hotkey file is not the JSON object that bittensor writes (line {line}, column {column}).")]
    NotJson {
        /// Line of the first fault.
        line: usize,
        /// Column of the first fault.
        column: usize,
    },
    /// A field is not hexadecimal of the right length.
    #[error("The field {field} of the hotkey file is not 0x and {bytes} bytes of hex.")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Bytes that are due.
        bytes: usize,
    },
    /// None of the three secrets is there.
    #[error("The hotkey file holds neither secretSeed nor privateKey nor secretPhrase; is it the public half only?")]
    NoSecret,
    /// Nothing says which address the key should have.
    #[error("The hotkey file holds neither ss58Address nor publicKey, so the key cannot be checked.")]
    NoAddress,
    /// The secret belongs to another address.
    #[error("The hotkey file says {claimed}, but its secret gives {derived}; restore the file from its backup.")]
    AddressMismatch {
        /// Address in the file.
        claimed: String,
        /// Address of the secret.
        derived: String,
    },
    /// `cryptoType` is neither 0 nor 1.
    #[error("The hotkey file has cryptoType {found}; 0 (ed25519) and 1 (sr25519) are known.")]
    CryptoType {
        /// The value.
        found: i64,
    },
    /// The bytes are no secret key of the scheme.
    #[error("The secret is not a valid {scheme:?} key.")]
    Secret {
        /// The scheme.
        scheme: KeyScheme,
    },
    /// The words are no BIP-39 mnemonic.
    #[error("The secret phrase is not a BIP-39 mnemonic in English: a word, the count of words or the checksum is wrong.")]
    Mnemonic,
    /// The text is no secret URI.
    #[error("The secret URI is not of the form phrase//hard/soft///password.")]
    Uri,
}

/// A secret key that signs for one address. It is wiped when dropped, and shows only its address.
pub struct Hotkey {
    secret: Secret,
    address: String,
}

enum Secret {
    Ed25519(Box<SigningKey>),
    Sr25519(Box<Keypair>),
}

impl std::fmt::Debug for Hotkey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Hotkey").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Hotkey {
    /// Loads the text of an unencrypted bittensor hotkey file: `secretSeed` first, else `privateKey`, else `secretPhrase`;
    /// the derived address must be the file's (grail-protocol 7).
    ///
    /// # Errors
    /// [`KeyError`] says what is wrong with the file, without its content.
    pub fn from_file_text(text: &str) -> Result<Self, KeyError> {
        file::load(text)
    }

    /// The key of a 32-byte mini secret (`secretSeed`), expanded in Ed25519 mode for sr25519.
    ///
    /// # Errors
    /// [`KeyError::Secret`] if the library refuses the bytes.
    pub fn from_seed(scheme: KeyScheme, seed: &[u8; 32]) -> Result<Self, KeyError> {
        match scheme {
            KeyScheme::Ed25519 => Ok(Self::from_ed25519(SigningKey::from_bytes(seed))),
            KeyScheme::Sr25519 => {
                let secret = MiniSecretKey::from_bytes(seed).map_err(|_| KeyError::Secret { scheme })?;
                Ok(Self::from_sr25519(secret.expand_to_keypair(ExpansionMode::Ed25519)))
            }
        }
    }

    /// The key of the 64 bytes of `privateKey`: scalar and nonce for sr25519, seed and public key for ed25519.
    ///
    /// # Errors
    /// [`KeyError::Secret`] if the bytes are no key of the scheme.
    pub fn from_private_key(scheme: KeyScheme, bytes: &[u8; 64]) -> Result<Self, KeyError> {
        match scheme {
            KeyScheme::Ed25519 => {
                Ok(Self::from_ed25519(SigningKey::from_keypair_bytes(bytes).map_err(|_| KeyError::Secret { scheme })?))
            }
            KeyScheme::Sr25519 => {
                let secret = schnorrkel::SecretKey::from_bytes(bytes).map_err(|_| KeyError::Secret { scheme })?;
                Ok(Self::from_sr25519(secret.to_keypair()))
            }
        }
    }

    /// The sr25519 key of a BIP-39 mnemonic without a password, in substrate's way (grail-protocol 7).
    ///
    /// # Errors
    /// [`KeyError::Mnemonic`] for words that are none.
    pub fn from_mnemonic(phrase: &str) -> Result<Self, KeyError> {
        Self::from_seed(KeyScheme::Sr25519, &*derive::seed_of_mnemonic(phrase, "")?)
    }

    /// The sr25519 key of a secret URI: a mnemonic, a `0x` seed or nothing (the development phrase), then `//hard` and
    /// `/soft` junctions and at last `///password`. `//Alice` is the best known one.
    ///
    /// # Errors
    /// [`KeyError::Uri`], [`KeyError::Mnemonic`] or [`KeyError::Secret`].
    pub fn from_uri(uri: &str) -> Result<Self, KeyError> {
        Ok(Self::from_sr25519(derive::keypair_of_uri(uri)?))
    }

    fn from_sr25519(keypair: Keypair) -> Self {
        let address = address_of(&keypair.public.to_bytes());
        Self { secret: Secret::Sr25519(Box::new(keypair)), address }
    }

    fn from_ed25519(key: SigningKey) -> Self {
        let address = address_of(&key.verifying_key().to_bytes());
        Self { secret: Secret::Ed25519(Box::new(key)), address }
    }

    /// The SS58 address, format 42.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// How this key signs.
    #[must_use]
    pub fn scheme(&self) -> KeyScheme {
        match self.secret {
            Secret::Ed25519(_) => KeyScheme::Ed25519,
            Secret::Sr25519(_) => KeyScheme::Sr25519,
        }
    }

    /// The 32 bytes behind the address.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        match &self.secret {
            Secret::Ed25519(key) => key.verifying_key().to_bytes(),
            Secret::Sr25519(keypair) => keypair.public.to_bytes(),
        }
    }

    /// Signs a message as it is. sr25519 signatures are randomised: verify them, never compare them.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        match &self.secret {
            Secret::Ed25519(key) => key.sign(message).to_bytes(),
            Secret::Sr25519(keypair) => keypair.sign_simple(SIGNING_CONTEXT, message).to_bytes(),
        }
    }
}

/// Whether `signature_hex` (128 hex digits of any case, no `0x`) is the signature of `address` over `message`, or over
/// `message` within `<Bytes>` and `</Bytes>` as wallets wrap it (grail-protocol 7). Anything unreadable is no signature.
#[must_use]
pub fn verify(scheme: KeyScheme, address: &str, message: &[u8], signature_hex: &str) -> bool {
    let mut signature = [0; 64];
    let Ok(public_key) = public_key_of(address) else { return false };
    if hex::decode_to_slice(signature_hex, &mut signature).is_err() {
        return false;
    }
    let wrapped = [WRAP_START, message, WRAP_END].concat();
    verify_bytes(scheme, &public_key, message, &signature) || verify_bytes(scheme, &public_key, &wrapped, &signature)
}

fn verify_bytes(scheme: KeyScheme, public_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    match scheme {
        KeyScheme::Ed25519 => VerifyingKey::from_bytes(public_key)
            .is_ok_and(|key| key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()),
        KeyScheme::Sr25519 => {
            let key = schnorrkel::PublicKey::from_bytes(public_key);
            let signature = schnorrkel::Signature::from_bytes(signature);
            key.is_ok_and(|key| signature.is_ok_and(|signature| key.verify_simple(SIGNING_CONTEXT, message, &signature).is_ok()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_schemes_sign_what_they_verify() {
        for scheme in [KeyScheme::Ed25519, KeyScheme::Sr25519] {
            let hotkey = Hotkey::from_seed(scheme, &[7; 32]).unwrap();
            let signature = hex::encode(hotkey.sign(b"message"));
            assert!(verify(scheme, hotkey.address(), b"message", &signature));
            assert!(verify(scheme, hotkey.address(), b"message", &signature.to_uppercase()));
            assert!(!verify(scheme, hotkey.address(), b"messagf", &signature));
            assert!(!verify(scheme, hotkey.address(), b"message", &format!("0x{signature}")));
            assert_eq!(hotkey.scheme(), scheme);
        }
    }

    #[test]
    fn a_wrapped_message_is_accepted_but_not_unwrapped() {
        let alice = Hotkey::from_uri("//Alice").unwrap();
        let over_wrapped = hex::encode(alice.sign(b"<Bytes>m</Bytes>"));
        assert!(verify(KeyScheme::Sr25519, alice.address(), b"m", &over_wrapped));
        let over_plain = hex::encode(alice.sign(b"m"));
        assert!(!verify(KeyScheme::Sr25519, alice.address(), b"<Bytes>m</Bytes>", &over_plain));
    }

    #[test]
    fn a_hotkey_shows_only_its_address() {
        let alice = Hotkey::from_uri("//Alice").unwrap();
        let shown = format!("{alice:?}");
        assert_eq!(shown, r#"Hotkey { address: "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY", .. }"#);
    }

    #[test]
    fn the_development_keys_are_the_known_ones() {
        let known = [
            ("//Bob", "8eaf04151687736326c9fea17e25fc5287613693c912909cb226aa4794f26a48"),
            // The two junctions of the documentation of substrate's key tool.
            ("//Alice//stash", "be5ddb1579b72e84524fc29e78609e3caf42e85aa118ebfe0b0ad404b5bdd25f"),
        ];
        for (uri, public_key) in known {
            assert_eq!(hex::encode(Hotkey::from_uri(uri).unwrap().public_key()), public_key, "{uri}");
        }
    }
}
