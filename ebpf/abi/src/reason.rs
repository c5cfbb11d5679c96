//! The one list of reasons: every way out of every program has one, and it is counted.
//!
//! Names are stable: they are metric labels and what people search for. New ones are appended.

use core::fmt;

/// What a reason means for the packet or the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It goes on, with or without our help.
    Pass,
    /// It ends here.
    Drop,
    /// Something happened to it on the way; another reason says how it ended.
    Note,
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Note => "note",
        }
    }
}

macro_rules! reasons {
    ($($(#[$meta:meta])* $variant:ident = $name:literal, $program:literal, $kind:ident, $text:literal;)*) => {
        /// Why a program let something go the way it went. The discriminant is the index in `counters`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($variant,)* }

        impl Reason {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// Kebab case; stable.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The program that says it.
            pub const fn program(self) -> &'static str {
                match self { $(Self::$variant => $program,)* }
            }

            #[inline(always)]
            pub const fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind,)* }
            }

            /// One sentence for the person on call.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

reasons! {
    ConnectOther = "connect-other", "connect", Pass,
        "The destination is no global service; the connection was left as it is.";
    ConnectChosen = "connect-chosen", "connect, sendmsg", Pass,
        "A healthy backend of a global service was chosen.";
    ConnectPanic = "connect-panic", "connect, sendmsg", Pass,
        "No backend of the service is healthy, so health was ignored: then it is usually we who are cut off.";
    ConnectOwnStale = "connect-own-stale", "connect, sendmsg", Pass,
        "The own cluster was picked while its keyspace is stale; kube-proxy or the CNI chooses the backend.";
    ConnectNoBackend = "connect-no-backend", "connect, sendmsg", Pass,
        "The global service has no backend in any cluster; left to kube-proxy or the CNI.";
    ConnectTorn = "connect-torn", "connect, sendmsg", Pass,
        "The service changed twice while it was read; left to kube-proxy or the CNI.";
    ConnectForgotten = "connect-forgotten", "connect, sendmsg", Note,
        "The original destination could not be remembered; getpeername or recvmsg will show the backend.";
    PeerRestored = "peer-restored", "getpeername", Pass,
        "The service's address was shown in place of the chosen backend's.";
    PeerOther = "peer-other", "getpeername", Pass,
        "The socket's peer was not chosen by Hawser.";
    PodFromOther = "pod-from-other", "pod_from", Pass,
        "A pod's packet to a destination that is not behind the tunnel.";
    PodFromSteered = "pod-from-steered", "pod_from", Pass,
        "A pod's packet was steered into the tunnel.";
    PodFromForgedRemote = "pod-from-forged-remote", "pod_from", Drop,
        "A local pod's interface sent a packet with a remote cluster's source address.";
    PodFromForeignSource = "pod-from-foreign-source", "pod_from", Drop,
        "A packet for the mesh came from an interface that does not own its source address.";
    PodFromFragment = "pod-from-fragment", "pod_from", Drop,
        "A fragmented packet for the mesh: ports cannot be proven, and the tunnel does not carry fragments.";
    PodFromTooBig = "pod-from-too-big", "pod_from", Drop,
        "A packet for the mesh is larger than the tunnel's MTU, and its sender could not be told: it may be cut (no DF), is an ICMP error, or has options.";
    PodFromNoTunnel = "pod-from-no-tunnel", "pod_from", Drop,
        "There is no tunnel device; a packet for the mesh never leaves in clear.";
    PodFromMalformed = "pod-from-malformed", "pod_from", Drop,
        "A packet for the mesh has a transport header that cannot be read.";
    FlowForgotten = "flow-forgotten", "pod_from", Note,
        "A flow that a pod began could not be remembered; its replies will be refused.";
    MssClamped = "mss-clamped", "pod_from, tunnel_in", Note,
        "The TCP maximum segment size was lowered to fit the tunnel.";
    TunnelInExported = "tunnel-in-exported", "tunnel_in", Pass,
        "Delivered to a pod: address and port belong to an exported global service.";
    TunnelInReply = "tunnel-in-reply", "tunnel_in", Pass,
        "Delivered to a pod: the answer to a flow the pod began.";
    TunnelInRelated = "tunnel-in-related", "tunnel_in", Pass,
        "Delivered to a pod: an ICMP error about a flow it takes part in.";
    TunnelInNode = "tunnel-in-node", "tunnel_in", Pass,
        "Given to this node's mesh address: an answer to a probe or to a program of the host network, ICMP, or for an exported port.";
    TunnelInUnknownSource = "tunnel-in-unknown-source", "tunnel_in", Drop,
        "A packet left the tunnel with a source address that no cluster of the mesh has published.";
    TunnelInOtherNode = "tunnel-in-other-node", "tunnel_in", Drop,
        "A packet came by the IPsec association of another node than the one that its source address is behind.";
    TunnelInNotExported = "tunnel-in-not-exported", "tunnel_in", Drop,
        "A packet from the mesh for a pod's port that no exported global service has, and no answer to anything.";
    TunnelInNodeNotExported = "tunnel-in-node-not-exported", "tunnel_in", Drop,
        "A packet from the mesh for a port of this node's mesh address that is not exported.";
    TunnelInNotLocal = "tunnel-in-not-local", "tunnel_in", Drop,
        "A packet left the tunnel for an address that is neither this node's mesh address nor a local pod's.";
    TunnelInFragment = "tunnel-in-fragment", "tunnel_in", Drop,
        "A fragment left the tunnel: its ports cannot be proven.";
    TunnelInMalformed = "tunnel-in-malformed", "tunnel_in", Drop,
        "What left the tunnel is not an IP packet with a readable header.";
    TunnelInUndeliverable = "tunnel-in-undeliverable", "tunnel_in", Drop,
        "The kernel had no room to put a link header before a packet for a pod.";
    PodToOther = "pod-to-other", "pod_to", Pass,
        "A packet for a pod that does not come from the mesh.";
    PodToAdmitted = "pod-to-admitted", "pod_to", Pass,
        "A packet for a pod that tunnel_in has admitted.";
    PodToOutsideTunnel = "pod-to-outside-tunnel", "pod_to", Drop,
        "A remote cluster's source address on a packet for a pod that did not come through the tunnel.";
    UnderlayOther = "underlay-other", "underlay_in", Pass,
        "A packet from the underlay that claims nothing of the mesh.";
    UnderlayForgedRemote = "underlay-forged-remote", "underlay_in", Drop,
        "A packet in clear on the underlay with a remote cluster's pod or mesh address as its source.";
    UnderlayToMeshAddress = "underlay-to-mesh-address", "underlay_in", Drop,
        "A packet in clear on the underlay for this node's mesh address, which is reached through the tunnel only.";
    SendOther = "send-other", "sendmsg", Pass,
        "The destination of a UDP message is no global service; it was left as it is.";
    PinKept = "pin-kept", "connect, sendmsg", Pass,
        "The client went to the backend that it is pinned to, by its UDP socket or by session affinity.";
    PinMade = "pin-made", "connect, sendmsg", Note,
        "A client was pinned to the backend chosen for it.";
    PinUnhealthy = "pin-unhealthy", "connect, sendmsg", Note,
        "A client's pinned backend takes nothing new, so another one was looked for.";
    PinGone = "pin-gone", "connect, sendmsg", Note,
        "A client's pinned backend is no longer one of the service's, so another one was looked for.";
    PinIdle = "pin-idle", "connect, sendmsg", Note,
        "A client's pin was not used for its time, so a backend was chosen anew.";
    PinForgotten = "pin-forgotten", "connect, sendmsg", Note,
        "A client's backend could not be remembered; its next message or connection may go to another one.";
    RecvRestored = "recv-restored", "recvmsg", Pass,
        "A UDP message was shown as coming from the service instead of the backend.";
    RecvOther = "recv-other", "recvmsg", Pass,
        "A UDP message does not come from a backend that Hawser chose for this socket.";
    TunnelInReflected = "tunnel-in-reflected", "tunnel_in", Pass,
        "A node's liveness probe (seamless BFD) was answered on the spot.";
    TunnelInProbeRefused = "tunnel-in-probe-refused", "tunnel_in", Drop,
        "A packet to the port of seamless BFD that is no probe for this node, or not from a node's mesh address.";
    PodFromReset = "pod-from-reset", "pod_from", Drop,
        "A packet of an established connection to a cluster or node that is down came back to its pod as a TCP reset.";
    PodFromUnresettable = "pod-from-unresettable", "pod_from", Drop,
        "A connection to a cluster or node that is down was to be reset, but the packet could not be turned round.";
    KeepAliveSet = "keep-alive-set", "connect", Note,
        "A connection to another cluster was given TCP keep-alive, so that one that only waits is ended too.";
    ConnectDraining = "connect-draining", "connect, sendmsg", Pass,
        "Only backends that are about to end are left of a global service, and one of them was chosen.";
    PodFromRefused = "pod-from-refused", "pod_from", Drop,
        "A UDP message of a flow to a cluster or node that is down came back to its pod as ICMP port unreachable.";
    TunnelInRefused = "tunnel-in-refused", "tunnel_in", Drop,
        "A UDP message from the mesh for a pod that is gone, or for a port that is not exported, was answered with ICMP port unreachable.";
    PinDraining = "pin-draining", "connect, sendmsg", Note,
        "A client's backend by session affinity is about to end, so another one was looked for.";
    SocketLeftOut = "socket-left-out", "connect, sendmsg", Pass,
        "The pod is left out of the socket load balancer; its packets are translated at its interface.";
    PodFromTranslated = "pod-from-translated", "pod_from", Pass,
        "A packet of a left-out pod to a global service was addressed to a backend of the own cluster.";
    PodFromNatUnknown = "pod-from-nat-unknown", "pod_from", Pass,
        "A left-out pod's TCP packet to a global service belongs to no known connection; left to kube-proxy or the CNI.";
    PodFromUntranslatable = "pod-from-untranslatable", "pod_from", Drop,
        "The kernel could not change a left-out pod's packet to a global service.";
    PodToUntranslatable = "pod-to-untranslatable", "pod_to", Drop,
        "The kernel could not change a backend's packet to a left-out pod.";
    NatMade = "nat-made", "pod_from", Note,
        "A flow of a left-out pod to a global service was given a backend.";
    NatRestored = "nat-restored", "pod_from", Note,
        "The translation of a left-out pod's connection was forgotten, and made again from what was still known.";
    NatForgotten = "nat-forgotten", "pod_from", Note,
        "The translation of a left-out pod's flow could not be remembered.";
    NatTakenOver = "nat-taken-over", "pod_from", Note,
        "A left-out pod began a flow to a backend that another flow of the same ports had reached by another service.";
    NatHairpin = "nat-hairpin", "pod_from", Note,
        "The backend chosen for a left-out pod is the pod itself; left to kube-proxy or the CNI.";
    NatShown = "nat-shown", "pod_to", Note,
        "A packet for a left-out pod was shown as coming from the service instead of the backend.";
    PodFromToldTooBig = "pod-from-told-too-big", "pod_from", Drop,
        "A packet for the mesh is larger than the tunnel's MTU; it came back to its pod as an ICMP error that says so.";
    FlowMade = "flow-made", "pod_from", Note,
        "A flow that a pod began was remembered.";
    ReplyMade = "reply-made", "sendmsg", Note,
        "For a UDP message to a global service it was remembered whose answer is to be shown as the service's.";
    ClientPinMade = "client-pin-made", "connect, sendmsg", Note,
        "A client was pinned by session affinity to the backend chosen for it.";
    UplinkInOther = "uplink-in-other", "uplink_in", Pass,
        "A packet from outside to no global service and of no known flow; left to kube-proxy or the stack.";
    UplinkInOwn = "uplink-in-own", "uplink_in", Pass,
        "A packet from outside was addressed to a backend of the own cluster.";
    UplinkInSteered = "uplink-in-steered", "uplink_in", Pass,
        "A packet from outside was sent into the tunnel to another cluster's backend, in this node's name.";
    UplinkInLeft = "uplink-in-left", "uplink_in", Pass,
        "The backend chosen for a client outside is on another node of the own cluster, and nodePort.masqueradeMark is 0; left to kube-proxy.";
    UplinkInNoPort = "uplink-in-no-port", "uplink_in", Drop,
        "No free port of this node's mesh address was found for a client outside; its next try looks elsewhere.";
    UplinkInNoTunnel = "uplink-in-no-tunnel", "uplink_in", Drop,
        "There is no tunnel to the backend of a client outside.";
    UplinkInUntranslatable = "uplink-in-untranslatable", "uplink_in", Drop,
        "The kernel could not change a packet from outside to a global service.";
    UplinkInTooBig = "uplink-in-too-big", "uplink_in", Drop,
        "A packet from outside is larger than the tunnel's MTU, and its sender could not be told: it may be cut (no DF), is an ICMP error, or has options.";
    UplinkInToldTooBig = "uplink-in-told-too-big", "uplink_in", Drop,
        "A packet from outside is larger than the tunnel's MTU; it went back to its sender as an ICMP error that says so.";
    UplinkInReset = "uplink-in-reset", "uplink_in", Drop,
        "A packet from outside to a cluster or node that is down went back to its sender as a TCP reset or as ICMP port unreachable.";
    EnterMade = "enter-made", "uplink_in", Note,
        "A flow from outside to a global service was given a backend.";
    EnterRestored = "enter-restored", "uplink_in", Note,
        "The way back of a flow from outside was forgotten, and made again.";
    EnterForgotten = "enter-forgotten", "uplink_in", Note,
        "A flow from outside could not be remembered.";
    UplinkOutOther = "uplink-out-other", "uplink_out", Pass,
        "A packet that leaves by an uplink and answers nobody who came in there to a global service.";
    UplinkOutShown = "uplink-out-shown", "uplink_out", Pass,
        "An answer of the own cluster to a client outside was shown as coming from the service.";
    UplinkOutUntranslatable = "uplink-out-untranslatable", "uplink_out", Drop,
        "The kernel could not change an answer to a client outside.";
    TunnelInAnswered = "tunnel-in-answered", "tunnel_in", Pass,
        "An answer of another cluster to a client outside was sent to it by the uplink that it came in by.";
    TunnelInUnanswerable = "tunnel-in-unanswerable", "tunnel_in", Drop,
        "The kernel could not change another cluster's answer to a client outside.";
    GuardInOther = "guard-in-other", "guard_in", Pass,
        "A packet from a device that is neither the underlay's nor a pod's, with a source that is no remote cluster's.";
    GuardInForgedRemote = "guard-in-forged-remote", "guard_in", Drop,
        "A remote cluster's source address on a packet from a device that is neither the tunnel nor a pod's.";
    GuardOutOther = "guard-out-other", "guard_out", Pass,
        "A packet that leaves by a device of the node and is not for the mesh.";
    GuardOutInClear = "guard-out-in-clear", "guard_out", Drop,
        "A packet for the mesh was about to leave outside the tunnel: somebody else's route leads there (`ip route get` the address), and should be taken away.";
    TunnelInCarried = "tunnel-in-carried", "tunnel_in", Pass,
        "A gateway sent a packet on between a node of another cluster and one of its own, from the tunnel into the tunnel.";
    TunnelInCarriedTooBig = "tunnel-in-carried-too-big", "tunnel_in", Drop,
        "A packet that a gateway was to send on is larger than its tunnel's MTU, which should be the same on all nodes; its sender was told so where that can be.";
    TunnelOutOther = "tunnel-out-other", "tunnel_out", Pass,
        "A packet of this node itself went into the tunnel that is a liveness probe, or not from the node's mesh address: nothing is remembered of it.";
    TunnelOutNode = "tunnel-out-node", "tunnel_out", Pass,
        "A packet of a program of the host network, or of the kernel, went into the tunnel; what answers its flow may come in.";
    TunnelOutReset = "tunnel-out-reset", "tunnel_out", Drop,
        "A connection of a program of the host network to what is down was ended: its own packet came back as a reset.";
    TunnelOutRefused = "tunnel-out-refused", "tunnel_out", Drop,
        "A UDP message of a program of the host network to what is down came back as ICMP port unreachable.";
    TunnelOutUnresettable = "tunnel-out-unresettable", "tunnel_out", Drop,
        "A packet of a connection that is over could not be turned into its end; the next one is tried again.";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
