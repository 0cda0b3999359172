//! TCP ports of this host: which are free, and who has the others.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::ops::Range;

use crate::proc::{self, ProcessFacts};

/// State `LISTEN` in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// A port of 127.0.0.1 that nobody listens on, from `from` on and round through `range`.
///
/// # Errors
/// When none of them is free.
pub fn free(range: Range<u16>, from: u16) -> io::Result<u16> {
    let (before, after) = (range.start..from.clamp(range.start, range.end), from.clamp(range.start, range.end)..range.end);
    let found = after.chain(before).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    found.ok_or_else(|| io::Error::other(format!("no port of 127.0.0.1 from {} to {} is free", range.start, range.end - 1)))
}

/// Whether `address` can be listened on.
///
/// # Errors
/// Why not, with the process that has it where this user may see that.
pub fn listen(address: SocketAddr) -> Result<(), String> {
    TcpListener::bind(address).map(drop).map_err(|error| match listener(address.port()) {
        Some(process) => format!("{error}; process {} ({}) listens there", process.pid, process.name),
        None => error.to_string(),
    })
}

/// A process that listens on `port`, as far as `/proc` shows it: other users' processes keep theirs to themselves.
pub fn listener(port: u16) -> Option<ProcessFacts> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|table| std::fs::read_to_string(table).ok());
    let sockets: Vec<String> = tables.flat_map(|table| sockets(&table, port)).collect();
    let has = |process: &ProcessFacts| {
        let Ok(open) = std::fs::read_dir(format!("/proc/{}/fd", process.pid)) else { return false };
        let mut links = open.flatten().filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
        links.any(|link| link.to_str().is_some_and(|link| sockets.iter().any(|socket| socket == link)))
    };
    if sockets.is_empty() { None } else { proc::all().ok()?.into_iter().find(has) }
}

/// The sockets of a table that listen on `port`, as descriptors name them.
fn sockets(table: &str, port: u16) -> Vec<String> {
    let ending = format!(":{port:04X}");
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(1)?.ends_with(&ending) && *fields.get(3)? == LISTENING;
        listens.then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))?
    };
    table.lines().skip(1).filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_on_a_port_is_told() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(listener(address.port()).map(|process| process.pid), Some(std::process::id()));
        assert!(listen(address).unwrap_err().contains(&format!("process {} (", std::process::id())));
        assert!(free(address.port()..address.port() + 1, 0).is_err());
        drop(taken);
        assert_eq!(listener(address.port()), None);
    }

    #[test]
    fn a_free_port_is_looked_for_all_round() {
        let found = free(20_000..32_000, 31_990).unwrap();
        assert!((20_000..32_000).contains(&found));
        assert!(free(20_000..20_000, 5).is_err());
    }
}
