//! The one place that reads the key. It stays in this process: children get hashes to compute, never a key to sign with.

use std::io::Read;
use std::path::Path;

use grail_protocol::keys::Hotkey;
use grail_settings::Wallet;
use grail_supervision::exit::Failure;
use zeroize::Zeroizing;

/// A hotkey file has less than 1 KiB.
const FILE_LIMIT: u64 = 64 * 1024;

/// Reads the hotkey.
///
/// # Errors
/// When the file is missing, unreadable, encrypted, or does not hold the address it states.
pub fn load(wallet: &Wallet) -> Result<Hotkey, Failure> {
    match wallet {
        Wallet::Development(uri) => {
            Hotkey::from_uri(uri).map_err(|error| Failure::Wallet(format!("wallet.development is no key: {error}")))
        }
        Wallet::File(path) => from_file(path),
    }
}

fn from_file(path: &Path) -> Result<Hotkey, Failure> {
    let mut text = Zeroizing::new(String::new());
    let file = std::fs::File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::Wallet(format!(
            "there is no hotkey file {path:?}; set wallet.path, wallet.cold and wallet.hot (BT_WALLET_COLD, BT_WALLET_HOT), \
             or make one with: btcli wallet new_hotkey"
        )),
        _ => Failure::Wallet(format!("the hotkey file {path:?} cannot be opened: {error}; run as its owner")),
    })?;
    file.take(FILE_LIMIT)
        .read_to_string(&mut text)
        .map_err(|error| Failure::Wallet(format!("the hotkey file {path:?} cannot be read: {error}")))?;
    // The error's text names the field, never its value.
    Hotkey::from_file_text(&text)
        .map_err(|error| Failure::Wallet(format!("the hotkey file {path:?} holds no usable key: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_has_its_own_words_and_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let missing = load(&Wallet::File(folder.path().join("none"))).unwrap_err();
        assert_eq!(missing.code(), 77);
        assert!(missing.to_string().contains("btcli wallet new_hotkey"), "{missing}");
        let path = folder.path().join("hot");
        std::fs::write(&path, r#"{"secretSeed":"0xdeadbeef","ss58Address":"5x"}"#).unwrap();
        let unreadable = load(&Wallet::File(path.clone())).unwrap_err().to_string();
        assert!(unreadable.contains("hot") && !unreadable.contains("deadbeef"), "{unreadable}");
        std::fs::write(&path, "$NACL....").unwrap();
        assert!(load(&Wallet::File(path)).is_err());
        assert!(load(&Wallet::Development("//Alice".into())).is_ok());
    }
}
