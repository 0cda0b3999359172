//! The one place that reads the key. It stays in this process: children get hashes to compute, never a key to sign with.

use std::io::Read;
use std::path::Path;

use grail_protocol::keys::Hotkey;
use grail_settings::Wallet;
use grail_supervision::exit::Failure;
use zeroize::Zeroizing;

/// A hotkey file has less than 1 KiB.
const FILE_LIMIT: u64 = 64 * 1024;

/// So many names are told where one is missing.
const MOST_NAMED: usize = 20;

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
            "there is no hotkey file {path:?}; {}; set wallet.path, wallet.cold and wallet.hot (BT_WALLET_PATH, BT_WALLET_COLD, \
             BT_WALLET_HOT), or make one with: btcli wallet new_hotkey",
            what_is_there(path)
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

/// Which hotkeys lie in the folder of wallets (`<wallets>/<cold>/hotkeys/<hot>`), for somebody who has misspelt one.
fn what_is_there(path: &Path) -> String {
    let Some(wallets) = path.ancestors().nth(3) else { return "no folder of wallets is named".into() };
    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().take(MOST_NAMED);
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let hotkeys = |cold: String| {
        let hots = names(&wallets.join(&cold).join("hotkeys"));
        // Beside a hotkey lies its public part.
        hots.into_iter().filter(|hot| !hot.ends_with("pub.txt")).map(move |hot| format!("{cold}/{hot}"))
    };
    let mut found: Vec<String> = names(wallets).into_iter().flat_map(hotkeys).take(MOST_NAMED).collect();
    found.sort();
    match found.as_slice() {
        [] => format!("{wallets:?} holds no hotkey at all"),
        found => format!("{wallets:?} holds (wallet/hotkey) {}", found.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_has_its_own_words_and_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let missing = load(&Wallet::File(folder.path().join("none/hotkeys/none"))).unwrap_err();
        assert_eq!(missing.code(), 77);
        assert!(missing.to_string().contains("btcli wallet new_hotkey"), "{missing}");
        assert!(missing.to_string().contains("holds no hotkey at all"), "{missing}");
        let hotkeys = folder.path().join("main/hotkeys");
        std::fs::create_dir_all(&hotkeys).unwrap();
        for name in ["miner1", "miner2", "miner1pub.txt"] {
            std::fs::write(hotkeys.join(name), "{}").unwrap();
        }
        let misspelt = load(&Wallet::File(hotkeys.join("minor1"))).unwrap_err().to_string();
        assert!(misspelt.contains("main/miner1, main/miner2;"), "{misspelt}");
        let path = folder.path().join("hot");
        std::fs::write(&path, r#"{"secretSeed":"0xdeadbeef","ss58Address":"5x"}"#).unwrap();
        let unreadable = load(&Wallet::File(path.clone())).unwrap_err().to_string();
        assert!(unreadable.contains("hot") && !unreadable.contains("deadbeef"), "{unreadable}");
        std::fs::write(&path, "$NACL....").unwrap();
        assert!(load(&Wallet::File(path)).is_err());
        assert!(load(&Wallet::Development("//Alice".into())).is_ok());
    }
}
