//! The JSON of an unencrypted bittensor hotkey file (grail-protocol 7). Secrets are borrowed from the caller's text where
//! JSON allows, and decoded into memory that is wiped.

use std::borrow::Cow;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::{Hotkey, KeyError, KeyScheme, address_of};

/// Largest hotkey file that is read, in bytes; real ones have about 600.
pub const MAX_FILE_BYTES: usize = 64 * 1024;

const ENCRYPTED_FORMS: [(&str, &str); 3] = [("$NACL", "NaCl"), ("$ANSIBLE_VAULT", "Ansible vault"), ("gAAAA", "Fernet")];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyFile<'a> {
    #[serde(borrow, default)]
    secret_seed: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    private_key: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    secret_phrase: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    public_key: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    ss58_address: Option<Cow<'a, str>>,
    #[serde(default)]
    crypto_type: Option<i64>,
}

pub(super) fn load(text: &str) -> Result<Hotkey, KeyError> {
    if text.len() > MAX_FILE_BYTES {
        return Err(KeyError::TooLong { length: text.len() });
    }
    // Some editors begin a text with a mark of its byte order.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim();
    if let Some((_, form)) = ENCRYPTED_FORMS.into_iter().find(|(start, _)| text.starts_with(start)) {
        return Err(KeyError::Encrypted { form });
    }
    // The error of the JSON library may quote the text, so only the place is kept.
    let file: KeyFile<'_> =
        serde_json::from_str(text).map_err(|error| KeyError::NotJson { line: error.line(), column: error.column() })?;
    let hotkey = secret_of(&file)?;
    let claimed = claimed_address(&file)?;
    if claimed == hotkey.address() {
        return Ok(hotkey);
    }
    Err(KeyError::AddressMismatch { claimed: claimed.chars().take(64).collect(), derived: hotkey.address().to_owned() })
}

fn secret_of(file: &KeyFile<'_>) -> Result<Hotkey, KeyError> {
    let scheme = match file.crypto_type {
        None | Some(1) => KeyScheme::Sr25519,
        Some(0) => KeyScheme::Ed25519,
        Some(found) => return Err(KeyError::CryptoType { found }),
    };
    if let Some(seed) = &file.secret_seed {
        return Hotkey::from_seed(scheme, &*bytes::<32>("secretSeed", seed)?);
    }
    if let Some(key) = &file.private_key {
        return Hotkey::from_private_key(scheme, &*bytes::<64>("privateKey", key)?);
    }
    let phrase = file.secret_phrase.as_ref().ok_or(KeyError::NoSecret)?;
    Hotkey::from_seed(scheme, &*super::derive::seed_of_mnemonic(phrase, "")?)
}

fn claimed_address(file: &KeyFile<'_>) -> Result<String, KeyError> {
    if let Some(address) = &file.ss58_address {
        return Ok(address.clone().into_owned());
    }
    let public_key = file.public_key.as_ref().ok_or(KeyError::NoAddress)?;
    Ok(address_of(&*bytes::<32>("publicKey", public_key)?))
}

fn bytes<const LENGTH: usize>(field: &'static str, text: &str) -> Result<Zeroizing<[u8; LENGTH]>, KeyError> {
    let mut bytes = Zeroizing::new([0; LENGTH]);
    let digits = text.strip_prefix("0x").unwrap_or(text);
    hex::decode_to_slice(digits, bytes.as_mut_slice()).map_err(|_| KeyError::Field { field, bytes: LENGTH })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn wallet() -> Value {
        json!({
            "secretSeed": "0x6fa2796b0071cac425d8a7851038318c2c37dcebfe4bae73197ce93e75909bd2",
            "privateKey": "0xad8a44476e667ef8eab356d1d6f09303f21ba1ac44a3f8b96210bdd603d1900bb25d15f130020fffc3261f584f84168e7a6f0009f6c3abb2f3fa460f493b0595",
            "publicKey": "0x625e25364c7b68e0a83065ccb40afed43f8fe933e669b24f3d69a57eddb3b715",
            "secretPhrase": "legal winner thank year wave sausage worth useful legal winner thank yellow",
            "ss58Address": "5EHgWw2Af1pnoc7f1A8bfmM97W3DAYW8xr82RfhLL9oAabAe",
            "cryptoType": 1,
        })
    }

    fn without(keys: &[&str]) -> Value {
        let mut file = wallet();
        keys.iter().for_each(|key| drop(file.as_object_mut().unwrap().remove(*key)));
        file
    }

    #[test]
    fn each_secret_alone_gives_the_same_key() {
        let files = [
            wallet(),
            without(&["secretSeed"]),
            without(&["secretSeed", "privateKey"]),
            without(&["ss58Address"]),
            without(&["cryptoType", "secretPhrase"]),
        ];
        for file in files {
            let hotkey = load(&file.to_string()).unwrap();
            assert_eq!(hotkey.address(), "5EHgWw2Af1pnoc7f1A8bfmM97W3DAYW8xr82RfhLL9oAabAe");
        }
        let marked = load(&format!("\u{feff}{}", wallet())).unwrap();
        assert_eq!(marked.address(), "5EHgWw2Af1pnoc7f1A8bfmM97W3DAYW8xr82RfhLL9oAabAe");
    }

    #[test]
    fn what_cannot_be_loaded_is_named_without_its_content() {
        let mut other = wallet();
        other["ss58Address"] = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY".into();
        let mut short = wallet();
        short["secretSeed"] = "0xdeadbeef".into();
        let mut scheme = wallet();
        scheme["cryptoType"] = 2.into();
        let cases = [
            ("$NACL…".to_owned(), KeyError::Encrypted { form: "NaCl" }),
            (without(&["secretSeed", "privateKey", "secretPhrase"]).to_string(), KeyError::NoSecret),
            (without(&["ss58Address", "publicKey"]).to_string(), KeyError::NoAddress),
            (short.to_string(), KeyError::Field { field: "secretSeed", bytes: 32 }),
            (scheme.to_string(), KeyError::CryptoType { found: 2 }),
        ];
        for (text, error) in cases {
            assert_eq!(load(&text).unwrap_err(), error);
        }
        assert!(matches!(load(&other.to_string()), Err(KeyError::AddressMismatch { .. })));
        let broken = load(r#"{"secretSeed": deadbeef"#).unwrap_err();
        assert!(matches!(broken, KeyError::NotJson { .. }) && !broken.to_string().contains("deadbeef"));
    }
}
