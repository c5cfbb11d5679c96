//! Nodes: Cilium's `nodes/v1`, and `hawser/state/nodes/v1` for tunnels.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawser_model::{AddressKind, Node, Time, TunnelNode};
use hawser_sources::Node as Given;
use hawser_wire::Entry;

use super::{Export, Part};
use crate::events::{Misread, Subject};
use crate::node_annotations::Public;
use crate::objects::Objects;

/// Where a Cilium reader finds a node's key besides the field made for it.
const KEY_ANNOTATION: &str = "network.cilium.io/wg-pub-key";

impl Export {
    pub(super) fn export_nodes(&mut self, objects: &Objects, settle: bool, now: Time) -> Part {
        let mut part = Part::default();
        if settle {
            self.indices.settle(|name| objects.nodes.contains_key(name), now);
            self.reports.retain(|name, _| objects.nodes.contains_key(name));
        }
        self.misread.retain(|subject, _| !matches!(subject, Subject::Node(_)));
        for given in objects.nodes.values() {
            let public = self.public(given, &mut part);
            let node = self.node(given, &mut part);
            part.add(&self.record, &Entry::Node(node));
            match self.indices.index_for(&given.name, now) {
                Err(error) => part.problems.push(format!("node {}: {error}", given.name)),
                Ok(index) => {
                    let report = self.reports.get(&given.name);
                    let tunnel = TunnelNode {
                        cluster: self.cluster.clone(),
                        name: given.name.clone(),
                        index,
                        mesh: self.record.mesh.addresses(self.cluster.id, index, &given.name),
                        boot_id: report.and_then(|r| r.boot_id.clone()).or_else(|| given.boot_id.clone()),
                        wireguard: report.and_then(|r| r.wireguard),
                        public_endpoint: public.endpoint,
                        gateway: public.gateway,
                    };
                    part.add(&self.record, &Entry::TunnelNode(tunnel));
                }
            }
        }
        part
    }

    /// What is not understood is told: here, and by an Event.
    fn public(&mut self, given: &Given, part: &mut Part) -> Public {
        let (public, texts) = Public::read(&given.annotations, &self.record.node_cidrs);
        part.problems.extend(texts.iter().map(|text| format!("node {}: {text}", given.name)));
        if !texts.is_empty() {
            let uid = given.uid.to_string().into();
            self.misread.insert(Subject::Node(given.name.clone()), Misread { uid, texts });
        }
        public
    }

    /// As peers admit it: an InternalIP outside our own ranges would have them refuse the whole node.
    fn node(&self, given: &Given, part: &mut Part) -> Node {
        let report = self.reports.get(&given.name);
        let wireguard_key = report.and_then(|report| report.wireguard).map(|end| end.public_key);
        let annotations: BTreeMap<_, _> = wireguard_key
            .map(|key| (KEY_ANNOTATION.to_owned(), STANDARD.encode(key.as_bytes())))
            .into_iter()
            .collect();
        let mut addresses = given.addresses.clone();
        addresses.retain(|address| {
            let inside = address.kind != AddressKind::InternalIp
                || self.record.node_cidrs.iter().any(|net| net.contains(&address.ip));
            if !inside {
                part.problems.push(format!(
                    "node {}: InternalIP {} is in none of this cluster's nodeCIDRs and not exported; \
                     fix: add its range to nodeCIDRs, and give every peer a new bundle",
                    given.name, address.ip
                ));
            }
            inside
        });
        Node {
            cluster: self.cluster.clone(),
            name: given.name.clone(),
            addresses,
            pod_cidrs: given.pod_cidrs.clone(),
            boot_id: report.and_then(|r| r.boot_id.clone()).or_else(|| given.boot_id.clone()),
            wireguard_key,
            labels: given.labels.to_map(),
            annotations,
        }
    }
}
