//! Users' connections as the first probe: what the kernel's TCP callbacks say about a node of another cluster.
//!
//! | callback | in state | counts as |
//! | --- | --- | --- |
//! | connect | | begun |
//! | state | SYN_SENT to ESTABLISHED | established: a packet went there and one came back |
//! | round trip | | spoke: data was acknowledged |
//! | retransmission timeout, the first | SYN_SENT | late: nothing came back for a second |
//! | retransmission timeout, the third in a row | any other | stalled: nothing was acknowledged for more than a second |
//! | state | to CLOSE, from what was established | closed |
//!
//! A refused connection (RST) is the application's: it counts as begun and as nothing else.

use hawser_ebpf_abi::{Addr, NodeTraffic};

// `enum` of `bpf_sock_ops.op` (include/uapi/linux/bpf.h).
pub const TCP_CONNECT: u32 = 3;
pub const RTO: u32 = 8;
pub const STATE: u32 = 10;
pub const RTT: u32 = 12;
/// `BPF_SOCK_OPS_RTO_CB_FLAG`, `_STATE_CB_FLAG`, `_RTT_CB_FLAG`.
pub const CALLBACKS: u32 = 1 | 4 | 8;

// include/net/tcp_states.h
const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const CLOSE: u32 = 7;

/// Timeouts in a row before the one that makes a connection stalled: 0.2, 0.4 and 0.8 s on a short path.
const STALLS_AFTER: u32 = 2;
/// A client is remembered for one to two epochs of 2^4 ticks, 4.3 s.
pub const EPOCH_SHIFT: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Begun,
    Established,
    Spoke,
    Late,
    Stalled,
    /// Another retransmission timeout of an established connection.
    Repeated,
    Closed,
}

/// Whether a callback can be about anything here; the others of a handshake are many.
#[inline(always)]
pub const fn is_ours(op: u32) -> bool {
    op == TCP_CONNECT || op == RTO || op == STATE || op == RTT
}

/// `state` is the socket's; `first` and `second` are the callback's arguments.
#[inline(always)]
pub const fn event(op: u32, state: u32, first: u32, second: u32) -> Option<Event> {
    match op {
        TCP_CONNECT => Some(Event::Begun),
        RTT => Some(Event::Spoke),
        // From and to.
        STATE if first == SYN_SENT && second == ESTABLISHED => Some(Event::Established),
        STATE if first != SYN_SENT && second == CLOSE => Some(Event::Closed),
        // Timeouts before this one since something was acknowledged.
        RTO if state == SYN_SENT && first == 0 => Some(Event::Late),
        RTO if state == SYN_SENT => None,
        RTO if first == STALLS_AFTER => Some(Event::Stalled),
        RTO => Some(Event::Repeated),
        _ => None,
    }
}

/// One of 32 marks for a client, so that many attempts of one client can be told from attempts of many.
#[inline(always)]
pub const fn mark(client: &Addr) -> u32 {
    let [a, b, c, d] = client.words();
    // Knuth's multiplicative hash; the highest bits are the best.
    1 << ((a ^ b ^ c ^ d).wrapping_mul(0x9e37_79b1) >> 27)
}

/// The marks after a late attempt of a client: of this epoch and the one before. Two CPUs at once may lose a mark, which is
/// made again by the next attempt.
#[inline(always)]
pub const fn marked(marked_at: u32, marks: u32, before: u32, epoch: u32, mark: u32) -> (u32, u32) {
    match epoch.wrapping_sub(marked_at) {
        0 => (marks | mark, before),
        1 => (mark, marks),
        _ => (mark, 0),
    }
}

/// How many clients at least had late attempts in this epoch or the one before.
pub const fn late_clients(seen: &NodeTraffic, epoch: u32) -> u32 {
    match epoch.wrapping_sub(seen.marked_at) {
        0 => (seen.marks | seen.marks_before).count_ones(),
        1 => seen.marks.count_ones(),
        _ => 0,
    }
}
