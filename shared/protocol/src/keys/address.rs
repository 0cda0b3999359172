//! SS58 addresses of format 42 (grail-protocol 7).

use blake2::{Blake2b512, Digest};

const FORMAT: u8 = 42;
const CHECKSUM_DOMAIN: &[u8] = b"SS58PRE";
const CHECKSUM_BYTES: usize = 2;
const PAYLOAD_BYTES: usize = 1 + 32 + CHECKSUM_BYTES;
/// Longest text that is decoded; an address has 48 characters.
const MAX_CHARACTERS: usize = 64;

/// A text is not an address of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not base58, or another length than an address has.
    #[error("The text is not the base58 form of 35 bytes; an address has 48 characters and begins with 5.")]
    Form,
    /// Another network's format.
    #[error("The address has format {found}; the network uses 42.")]
    Format {
        /// First byte of the address.
        found: u8,
    },
    /// A character is wrong.
    #[error("The checksum of the address is wrong; was a character mistyped?")]
    Checksum,
}

/// The SS58 address of a public key.
#[must_use]
pub fn address_of(public_key: &[u8; 32]) -> String {
    let mut payload = vec![FORMAT];
    payload.extend_from_slice(public_key);
    let checksum = checksum(&payload);
    payload.extend_from_slice(&checksum);
    bs58::encode(payload).into_string()
}

/// The public key behind an SS58 address.
///
/// # Errors
/// [`AddressError`] for a text that is no address of format 42.
pub fn public_key_of(address: &str) -> Result<[u8; 32], AddressError> {
    if address.len() > MAX_CHARACTERS {
        return Err(AddressError::Form);
    }
    let payload = bs58::decode(address).into_vec().map_err(|_| AddressError::Form)?;
    let payload: [u8; PAYLOAD_BYTES] = payload.try_into().map_err(|_| AddressError::Form)?;
    if payload[0] != FORMAT {
        return Err(AddressError::Format { found: payload[0] });
    }
    let (body, given) = payload.split_at(PAYLOAD_BYTES - CHECKSUM_BYTES);
    if checksum(body) != given {
        return Err(AddressError::Checksum);
    }
    let mut public_key = [0; 32];
    public_key.copy_from_slice(&body[1..]);
    Ok(public_key)
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = Blake2b512::new().chain_update(CHECKSUM_DOMAIN).chain_update(body).finalize();
    [digest[0], digest[1]]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mistyped_address_is_refused() {
        let alice = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
        assert_eq!(hex::encode(public_key_of(alice).unwrap())[..8], *"d43593c7");
        assert_eq!(public_key_of(&alice.replace("Grw", "Gsw")), Err(AddressError::Checksum));
        assert_eq!(public_key_of(""), Err(AddressError::Form));
        assert_eq!(public_key_of("0OIl"), Err(AddressError::Form));
    }

    proptest! {
        #[test]
        fn an_address_reads_back(public_key in any::<[u8; 32]>()) {
            let address = address_of(&public_key);
            prop_assert_eq!(address.len(), 48);
            prop_assert!(address.starts_with('5'));
            prop_assert_eq!(public_key_of(&address), Ok(public_key));
        }
    }
}
