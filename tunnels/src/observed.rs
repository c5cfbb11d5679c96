//! What is there, as a driver reads it back from the kernel and the engine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use hawser_model::{EspEnd, PublicKey};
use ipnet::IpNet;

use crate::Rule;

/// Only what is ours: the device of our name, routes of our protocol in the main table, rules of an earlier version. What others
/// put beside it is not seen and therefore never removed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Observed {
    pub device: Option<ObservedDevice>,
    /// On the device; link-local ones are the kernel's affair.
    pub addresses: BTreeSet<IpAddr>,
    pub rules: BTreeSet<Rule>,
    pub peers: BTreeMap<PublicKey, ObservedPeer>,
    /// Routes to the device, each with its preferred source.
    pub routes: BTreeMap<IpNet, Option<IpAddr>>,
    /// `unreachable` routes.
    pub guards: BTreeSet<IpNet>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ObservedDevice {
    pub up: bool,
    pub mtu: u32,
    pub public_key: Option<PublicKey>,
    pub port: u16,
    pub mark: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ObservedPeer {
    /// Where it was last heard from, or where it was put.
    pub endpoint: Option<SocketAddr>,
    /// Where this driver last put it, if it remembers: a peer that roamed since is left where it is.
    pub configured: Option<SocketAddr>,
    pub allowed: BTreeSet<IpNet>,
    pub keepalive: Option<u16>,
    /// None where whoever carries has one session a peer.
    pub more_ports: Option<Vec<u16>>,
    /// None where there is no such thing.
    pub slot: Option<u32>,
    /// What its associations are made for.
    pub esp: Option<EspEnd>,
}
