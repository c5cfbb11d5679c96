//! UAPI text to values and back. The parser takes what root writes, but it is bounded and total all the same.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use hawser_model::PublicKey;
use ipnet::IpNet;
use nix::errno::Errno;

use crate::PrivateKey;

/// A whole `set=1`. What is not mentioned stays as it is.
#[derive(Clone, Debug, Default)]
pub struct SetDevice {
    pub private_key: Option<PrivateKey>,
    pub port: Option<u16>,
    pub mark: Option<u32>,
    pub replace_peers: bool,
    /// In the order given: a prefix that is named twice goes to the last.
    pub peers: Vec<SetPeer>,
}

#[derive(Clone, Debug)]
pub struct SetPeer {
    pub public_key: PublicKey,
    pub remove: bool,
    pub update_only: bool,
    /// Zero takes it away.
    pub preshared_key: Option<[u8; 32]>,
    pub endpoint: Option<SocketAddr>,
    /// Zero turns it off.
    pub keepalive: Option<u16>,
    pub replace_allowed: bool,
    /// True adds (and takes from whoever has it), false takes away.
    pub allowed: Vec<(IpNet, bool)>,
}

/// Parses the lines after `set=1`, up to the empty one. Nothing is done of a request that cannot be read whole.
pub fn parse_set(lines: &str) -> Result<SetDevice, Errno> {
    let mut set = SetDevice::default();
    for line in lines.lines().take_while(|line| !line.is_empty()) {
        let (key, value) = line.split_once('=').ok_or(Errno::EINVAL)?;
        match (key, set.peers.last_mut()) {
            ("public_key", _) => set.peers.push(SetPeer::new(public_key(value)?)),
            (_, None) => device_line(&mut set, key, value)?,
            (_, Some(peer)) => peer_line(peer, key, value)?,
        }
    }
    Ok(set)
}

fn device_line(set: &mut SetDevice, key: &str, value: &str) -> Result<(), Errno> {
    match key {
        "private_key" => {
            set.private_key = Some(PrivateKey::from_bytes(hex(value)?).ok_or(Errno::EINVAL)?);
        }
        "listen_port" => set.port = Some(number(value)?),
        "fwmark" => set.mark = Some(number(value)?),
        "replace_peers" => set.replace_peers = yes(value)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

fn peer_line(peer: &mut SetPeer, key: &str, value: &str) -> Result<(), Errno> {
    match key {
        "remove" => peer.remove = yes(value)?,
        "update_only" => peer.update_only = yes(value)?,
        "preshared_key" => peer.preshared_key = Some(hex(value)?),
        "endpoint" => peer.endpoint = Some(number(value)?),
        "persistent_keepalive_interval" => peer.keepalive = Some(number(value)?),
        "replace_allowed_ips" => peer.replace_allowed = yes(value)?,
        "allowed_ip" => {
            let (add, prefix) = match value.strip_prefix('-') {
                Some(prefix) => (false, prefix),
                None => (true, value),
            };
            let prefix: IpNet = number(prefix)?;
            peer.allowed.push((prefix.trunc(), add));
        }
        "protocol_version" if value == "1" => {}
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

impl SetPeer {
    pub(crate) fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            keepalive: None,
            replace_allowed: false,
            allowed: Vec::new(),
        }
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, Errno> {
    text.parse().map_err(|_| Errno::EINVAL)
}

fn yes(text: &str) -> Result<bool, Errno> {
    if text == "true" { Ok(true) } else { Err(Errno::EINVAL) }
}

pub(crate) fn public_key(text: &str) -> Result<PublicKey, Errno> {
    PublicKey::new(hex(text)?).map_err(|_| Errno::EINVAL)
}

fn hex(text: &str) -> Result<[u8; 32], Errno> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut key = [0; 32];
    if text.len() != 2 * key.len() {
        return Err(Errno::EINVAL);
    }
    for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let (high, low) = (digit(pair[0]).ok_or(Errno::EINVAL)?, digit(pair[1]).ok_or(Errno::EINVAL)?);
        *byte = high << 4 | low;
    }
    Ok(key)
}

/// The answer to `get=1`.
pub(crate) struct Snapshot {
    pub(crate) private_key: PrivateKey,
    pub(crate) port: u16,
    pub(crate) mark: u32,
    pub(crate) peers: Vec<PeerSnapshot>,
}

pub(crate) struct PeerSnapshot {
    pub(crate) public_key: PublicKey,
    pub(crate) preshared_key: Option<[u8; 32]>,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) last_handshake: Option<SystemTime>,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) keepalive: Option<u16>,
    pub(crate) allowed: BTreeSet<IpNet>,
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "private_key={}", Hex(&self.private_key.to_bytes()))?;
        writeln!(f, "listen_port={}", self.port)?;
        if self.mark != 0 {
            writeln!(f, "fwmark={}", self.mark)?;
        }
        self.peers.iter().try_for_each(|peer| write!(f, "{peer}"))?;
        write!(f, "errno=0\n\n")
    }
}

impl fmt::Display for PeerSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "public_key={}", Hex(self.public_key.as_bytes()))?;
        if let Some(key) = &self.preshared_key {
            writeln!(f, "preshared_key={}", Hex(key))?;
        }
        writeln!(f, "protocol_version=1")?;
        if let Some(endpoint) = self.endpoint {
            writeln!(f, "endpoint={endpoint}")?;
        }
        let since = self.last_handshake.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        writeln!(f, "last_handshake_time_sec={}", since.as_secs())?;
        writeln!(f, "last_handshake_time_nsec={}", since.subsec_nanos())?;
        writeln!(f, "tx_bytes={}", self.tx_bytes)?;
        writeln!(f, "rx_bytes={}", self.rx_bytes)?;
        writeln!(f, "persistent_keepalive_interval={}", self.keepalive.unwrap_or(0))?;
        self.allowed.iter().try_for_each(|prefix| writeln!(f, "allowed_ip={prefix}"))
    }
}

struct Hex<'a>(&'a [u8; 32]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";

    #[test]
    fn a_set_is_read_line_by_line() {
        let text = format!(
            "private_key={KEY}\nlisten_port=12912\nfwmark=7\nreplace_peers=true\npublic_key={KEY}\n\
             endpoint=[abcd:23::33]:51820\nreplace_allowed_ips=true\nallowed_ip=192.168.4.4/24\nallowed_ip=-10.0.0.0/8\n\
             persistent_keepalive_interval=25\nprotocol_version=1\n\n"
        );
        let set = parse_set(&text).unwrap();
        assert_eq!((set.port, set.mark, set.replace_peers), (Some(12912), Some(7), true));
        let peer = &set.peers[0];
        assert_eq!(peer.endpoint.unwrap().to_string(), "[abcd:23::33]:51820");
        assert_eq!(peer.keepalive, Some(25));
        let nets: Vec<_> = peer.allowed.iter().map(|(net, add)| (net.to_string(), *add)).collect();
        assert_eq!(nets, [("192.168.4.0/24".to_owned(), true), ("10.0.0.0/8".to_owned(), false)]);
    }

    #[test]
    fn a_request_that_cannot_be_read_whole_is_refused() {
        let zero = "0".repeat(64);
        for bad in [
            "listen_port=65536",
            "listen_port",
            "fwmark=-1",
            "replace_peers=yes",
            "endpoint=1.2.3.4:5",
            "public_key=00",
            &format!("public_key={zero}"),
            &format!("private_key={zero}"),
            &format!("public_key={KEY}\nallowed_ip=10.0.0.0/33"),
            &format!("public_key={KEY}\nlisten_port=1"),
            &format!("public_key={}ä", "0".repeat(62)),
        ] {
            assert_eq!(parse_set(bad).unwrap_err(), Errno::EINVAL, "{bad}");
        }
    }
}
