//! From words and junctions to keys, in substrate's way (grail-protocol 7).

use blake2::Blake2b;
use blake2::digest::consts::U32;
use hmac::{Hmac, KeyInit, Mac};
use schnorrkel::derive::{ChainCode, Derivation};
use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey, SecretKey};
use sha2::{Digest, Sha512};
use zeroize::Zeroizing;

use super::{KeyError, KeyScheme};

/// The published phrase behind `//Alice` and its kin.
const DEVELOPMENT_PHRASE: &str = "bottom drive obey lake curtain smoke basket hold race lonely fit walk";
const ROUNDS: usize = 2048;
const MAX_URI_BYTES: usize = 1024;

/// The mini secret of a mnemonic: PBKDF2-HMAC-SHA512 over the **entropy** (not the words), salt `mnemonic` and password,
/// 2048 rounds, the first 32 bytes.
pub(super) fn seed_of_mnemonic(phrase: &str, password: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let words = Zeroizing::new(phrase.split_whitespace().collect::<Vec<_>>().join(" "));
    let mnemonic = bip39::Mnemonic::parse_in_normalized(bip39::Language::English, &words).map_err(|_| KeyError::Mnemonic)?;
    let (entropy, length) = mnemonic.to_entropy_array();
    let entropy = Zeroizing::new(entropy);
    let prf = Hmac::<Sha512>::new_from_slice(&entropy[..length]).map_err(|_| KeyError::Mnemonic)?;
    Ok(first_block(&prf, password))
}

/// The first half of PBKDF2's first block; no more is needed.
fn first_block(prf: &Hmac<Sha512>, password: &str) -> Zeroizing<[u8; 32]> {
    let first = prf.clone().chain_update(b"mnemonic").chain_update(password).chain_update([0, 0, 0, 1]);
    let mut round = Zeroizing::new(<[u8; 64]>::from(first.finalize().into_bytes()));
    let mut block = round.clone();
    for _ in 1..ROUNDS {
        let next = prf.clone().chain_update(round.as_slice()).finalize().into_bytes();
        round.copy_from_slice(&next);
        for (sum, byte) in block.iter_mut().zip(round.iter()) {
            *sum ^= byte;
        }
    }
    let mut seed = Zeroizing::new([0; 32]);
    seed.copy_from_slice(&block[..32]);
    seed
}

struct Junction {
    hard: bool,
    chain_code: [u8; 32],
}

/// The key of `phrase//hard/soft///password`; an empty phrase is the development one.
pub(super) fn keypair_of_uri(uri: &str) -> Result<Keypair, KeyError> {
    if uri.len() > MAX_URI_BYTES {
        return Err(KeyError::Uri);
    }
    let (path, password) = uri.split_once("///").unwrap_or((uri, ""));
    let (phrase, junctions) = path.split_at(path.find('/').unwrap_or(path.len()));
    let scheme = KeyScheme::Sr25519;
    let mini = MiniSecretKey::from_bytes(&*seed_of_phrase(phrase, password)?).map_err(|_| KeyError::Secret { scheme })?;
    let mut secret = mini.expand(ExpansionMode::Ed25519);
    for junction in parse_junctions(junctions)? {
        secret = derive(&secret, &junction);
    }
    Ok(secret.to_keypair())
}

fn seed_of_phrase(phrase: &str, password: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let Some(digits) = phrase.strip_prefix("0x") else {
        let phrase = if phrase.is_empty() { DEVELOPMENT_PHRASE } else { phrase };
        return seed_of_mnemonic(phrase, password);
    };
    let mut seed = Zeroizing::new([0; 32]);
    hex::decode_to_slice(digits, seed.as_mut_slice()).map_err(|_| KeyError::Uri)?;
    Ok(seed)
}

fn parse_junctions(mut rest: &str) -> Result<Vec<Junction>, KeyError> {
    let mut junctions = Vec::new();
    while let Some(after) = rest.strip_prefix('/') {
        let (hard, after) = after.strip_prefix('/').map_or((false, after), |after| (true, after));
        let (name, next) = after.split_at(after.find('/').unwrap_or(after.len()));
        if name.is_empty() {
            return Err(KeyError::Uri);
        }
        junctions.push(Junction { hard, chain_code: chain_code(name) });
        rest = next;
    }
    Ok(junctions)
}

/// A number is a little-endian 64-bit word; a name is its SCALE form, hashed if it is longer than 32 bytes.
fn chain_code(name: &str) -> [u8; 32] {
    let encoded = name.parse::<u64>().map_or_else(|_| scale_text(name), |number| number.to_le_bytes().to_vec());
    if encoded.len() > 32 {
        return Blake2b::<U32>::digest(&encoded).into();
    }
    let mut code = [0; 32];
    code[..encoded.len()].copy_from_slice(&encoded);
    code
}

/// A string behind its compact length; a URI is too short for the third form of lengths.
fn scale_text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    let mut encoded = match u8::try_from(length) {
        Ok(short) if short < 64 => vec![short << 2],
        _ => (length << 2 | 1).to_le_bytes().to_vec(),
    };
    encoded.extend_from_slice(text.as_bytes());
    encoded
}

fn derive(secret: &SecretKey, junction: &Junction) -> SecretKey {
    let chain_code = ChainCode(junction.chain_code);
    if junction.hard {
        return secret.hard_derive_mini_secret_key(Some(chain_code), b"").0.expand(ExpansionMode::Ed25519);
    }
    secret.derived_key_simple(chain_code, b"").0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Hotkey;

    #[test]
    fn a_mnemonic_gives_the_wallets_key() {
        let phrase = "legal winner thank year wave sausage worth useful legal winner thank yellow";
        let seed = seed_of_mnemonic(phrase, "").unwrap();
        assert_eq!(hex::encode(*seed), "6fa2796b0071cac425d8a7851038318c2c37dcebfe4bae73197ce93e75909bd2");
        assert!(matches!(seed_of_mnemonic("legal winner", ""), Err(KeyError::Mnemonic)));
        assert!(matches!(seed_of_mnemonic(&phrase.replace("yellow", "zoo"), ""), Err(KeyError::Mnemonic)));
    }

    #[test]
    fn junctions_and_passwords_change_the_key() {
        let address = |uri| Hotkey::from_uri(uri).unwrap().address().to_owned();
        let all = ["", "//1", "/1", "//one", "//1/1", "//1///password"].map(address);
        let distinct: std::collections::HashSet<&String> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn a_soft_junction_commutes_with_the_public_key() {
        let parent = keypair_of_uri("//Alice").unwrap();
        let child = keypair_of_uri("//Alice/soft").unwrap();
        let (public, _) = parent.public.derived_key_simple(ChainCode(chain_code("soft")), b"");
        assert_eq!(public, child.public);
    }

    #[test]
    fn malformed_uris_are_refused() {
        for uri in ["//", "/a//", "0x12", "0xzz//a", "not a phrase"] {
            assert!(keypair_of_uri(uri).is_err(), "{uri}");
        }
    }
}
