//! `sock_diag(7)`: the TCP sockets of a network namespace, and the end of one of them (include/uapi/linux/inet_diag.h).

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use hawser_ebpf::Connection;
use hawser_ebpf_abi::{Addr, Port};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const IPPROTO_TCP: u8 = 6;
/// Of `enum tcp_state` what still talks to its peer: ESTABLISHED, SYN_SENT, FIN_WAIT1, CLOSE_WAIT, LAST_ACK, CLOSING.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 8 | 1 << 9 | 1 << 11;
/// `struct nlmsghdr`, and of `struct inet_diag_msg` what comes before and in `struct inet_diag_sockid`.
const HEADER: usize = 16;
const ID_AT: usize = HEADER + 4;
const ID_LEN: usize = 48;
/// More sockets than this are not looked at in one namespace: a million connections.
const MOST: usize = 1 << 20;

/// One socket: what it is connected to, and how the kernel knows it.
#[derive(Clone, Debug)]
pub(crate) struct Socket {
    pub connection: Connection,
    family: u8,
    id: [u8; ID_LEN],
}

/// Of the namespace that the calling thread was in when this was opened.
#[derive(Debug)]
pub(crate) struct SockDiag(OwnedFd);

impl SockDiag {
    pub(crate) fn open() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkSockDiag;
        Ok(Self(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?))
    }

    /// IPv4 and IPv6, v4-mapped ones among the latter.
    pub(crate) fn connections(&self) -> io::Result<Vec<Socket>> {
        let mut found = Vec::new();
        for family in [nix::libc::AF_INET as u8, nix::libc::AF_INET6 as u8] {
            self.ask(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, family, &[0; ID_LEN])?;
            self.answers(|kind, message| {
                if kind == SOCK_DIAG_BY_FAMILY && found.len() < MOST {
                    found.extend(parse(message));
                }
            })?;
        }
        Ok(found)
    }

    /// False when it had ended already.
    pub(crate) fn destroy(&self, socket: &Socket) -> io::Result<bool> {
        self.ask(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, socket.family, &socket.id)?;
        match self.answers(|_, _| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether this kernel can end a socket (CONFIG_INET_DIAG_DESTROY): asked about one that does not exist.
    pub(crate) fn can_destroy(&self) -> io::Result<bool> {
        self.ask(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, nix::libc::AF_INET as u8, &[0; ID_LEN])?;
        match self.answers(|_, _| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Ok(false),
            Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => Err(error),
            Err(_) => Ok(true),
        }
    }

    /// `struct inet_diag_req_v2` behind its header.
    fn ask(&self, kind: u16, flags: u16, family: u8, id: &[u8; ID_LEN]) -> io::Result<()> {
        let len = (HEADER + 8 + ID_LEN) as u32;
        let mut message = len.to_ne_bytes().to_vec();
        message.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        message.extend([0; 8]); // sequence, port: one question at a time
        message.extend([family, IPPROTO_TCP, 0, 0]);
        message.extend(STATES.to_ne_bytes());
        message.extend(id);
        send(self.0.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// Every message of the answer, up to its end or an acknowledgement.
    fn answers(&self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let len = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..len).unwrap_or_default();
            while let Some((length, kind)) = header(rest) {
                let message = rest.get(..length).ok_or(io::ErrorKind::InvalidData)?;
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return outcome(message),
                    _ => each(kind, message),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// Length and type of the next message.
fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    (length >= HEADER).then_some((length, kind))
}

/// `struct nlmsgerr`: zero is an acknowledgement.
fn outcome(message: &[u8]) -> io::Result<()> {
    let code = message.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// `struct inet_diag_msg`.
fn parse(message: &[u8]) -> Option<Socket> {
    let family = *message.get(HEADER)?;
    let id: [u8; ID_LEN] = message.get(ID_AT..ID_AT + ID_LEN)?.try_into().ok()?;
    let port = |at: usize| Port::new(u16::from_be_bytes([id[at], id[at + 1]]));
    let address = |at: usize| {
        let bytes: [u8; 16] = id.get(at..at + 16)?.try_into().ok()?;
        let [a, b, c, d, ..] = bytes;
        let v4 = i32::from(family) == nix::libc::AF_INET;
        let ip: std::net::IpAddr = if v4 { [a, b, c, d].into() } else { bytes.into() };
        Some(Addr::from(ip.to_canonical()))
    };
    let connection =
        Connection { local: address(4)?, local_port: port(0), remote: address(20)?, remote_port: port(2) };
    Some(Socket { connection, family, id })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_is_found_and_ended_and_others_go_on() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut streams: Vec<_> =
            (0..2).map(|_| TcpStream::connect(listener.local_addr().unwrap()).unwrap()).collect();
        let _others: Vec<_> = (0..2).map(|_| listener.accept().unwrap()).collect();
        let diag = SockDiag::open().unwrap();
        assert!(
            diag.can_destroy().unwrap(),
            "this kernel has CONFIG_INET_DIAG_DESTROY, and this test root's rights"
        );
        let (found, ours) = (diag.connections().unwrap(), streams[0].local_addr().unwrap());
        let is_ours = |socket: &&Socket| {
            socket.connection.local == Addr::from(ours.ip())
                && socket.connection.local_port.get() == ours.port()
        };
        let socket = found.iter().find(is_ours).expect("listed");
        assert_eq!(socket.connection.remote_port.get(), listener.local_addr().unwrap().port());
        assert!(diag.destroy(socket).unwrap());
        assert!(!diag.destroy(socket).unwrap(), "it has ended already");
        let error = streams[0].read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        streams[1].set_nonblocking(true).unwrap();
        assert_eq!(streams[1].read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock, "untouched");
    }

    #[test]
    fn what_is_cut_short_is_no_socket() {
        for len in 0..HEADER + 4 + ID_LEN {
            assert!(parse(&vec![2; len]).is_none());
        }
        assert!(parse(&[2; HEADER + 4 + ID_LEN]).is_some());
        assert!(header(&[1, 0, 0, 0, 0, 0]).is_none(), "shorter than its own header");
        assert!(outcome(&[0; HEADER]).is_err());
    }
}
