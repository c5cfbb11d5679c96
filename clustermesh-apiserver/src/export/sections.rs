//! The export's sections, made one at a time: a change makes only its own anew, and what is large comes in pieces.

use std::collections::btree_map;
use std::sync::Arc;

use bytes::Bytes;
use hawser_model::{ServiceKey, Time};
use hawser_sources::Service;
use hawser_wire::prefix;

use super::{Export, Part};
use crate::exports::NAMESPACES;
use crate::objects::{Objects, Touched};

/// Entries of a piece, about: what is held of a section beside what is in the keyspace.
const PIECE: usize = 1_000;

/// A part of the export that is made from the same objects, and the keys that are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    Namespaces,
    Nodes,
    Endpoints,
    Services,
}

impl Section {
    pub const ALL: [Self; 4] = [Self::Namespaces, Self::Nodes, Self::Endpoints, Self::Services];

    /// What export writes and deletes there, whoever wrote it before. Peers, tokens, canaries and what Cilium may add are
    /// nobody's here.
    pub fn prefixes(self) -> &'static [&'static str] {
        match self {
            Self::Namespaces => &[NAMESPACES],
            Self::Nodes => &[prefix::NODES, prefix::TUNNEL_NODES],
            Self::Endpoints => &[prefix::IDENTITIES, prefix::IPS],
            Self::Services => {
                &[prefix::SERVICES, prefix::ENDPOINT_SLICES, prefix::SERVICE_EXPORTS, prefix::LOCAL_SERVICES]
            }
        }
    }

    pub fn is_touched(self, touched: Touched) -> bool {
        match self {
            Self::Nodes => touched.nodes,
            Self::Namespaces | Self::Endpoints => touched.endpoints,
            Self::Services => touched.services,
        }
    }
}

/// A section's keys with their values, as they are asked for.
#[derive(Debug)]
pub struct Pieces<'a> {
    export: &'a mut Export,
    objects: &'a Objects,
    settle: bool,
    now: Time,
    rest: Rest<'a>,
}

#[derive(Debug)]
enum Rest<'a> {
    Whole(Section),
    Services(btree_map::Values<'a, ServiceKey, Arc<Service>>),
    Nothing,
}

impl Export {
    /// Everything that the keyspace should hold of a section; `settle`: what is absent may be taken for gone.
    /// Cost: the section's objects.
    pub fn pieces<'a>(
        &'a mut self,
        section: Section,
        objects: &'a Objects,
        settle: bool,
        now: Time,
    ) -> Pieces<'a> {
        self.problems.remove(&section);
        Pieces { export: self, objects, settle, now, rest: Rest::Whole(section) }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Vec<(String, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        let Self { objects, settle, now, .. } = *self;
        let (section, part) = match std::mem::replace(&mut self.rest, Rest::Nothing) {
            Rest::Nothing => return None,
            Rest::Whole(section) => {
                let part = match section {
                    Section::Namespaces => Export::export_namespaces(objects),
                    Section::Nodes => self.export.export_nodes(objects, settle, now),
                    Section::Endpoints => self.export.export_endpoints(objects, settle, now),
                    Section::Services => {
                        self.rest = Rest::Services(objects.services.values());
                        self.export.export_service_exports(objects)
                    }
                };
                (section, part)
            }
            Rest::Services(mut rest) => {
                let part = self.export.export_services(objects, &mut rest, PIECE);
                if rest.len() > 0 {
                    self.rest = Rest::Services(rest);
                }
                (Section::Services, part)
            }
        };
        let Part { entries, problems } = part;
        if !problems.is_empty() {
            self.export.problems.entry(section).or_default().extend(problems);
        }
        Some(entries)
    }
}
