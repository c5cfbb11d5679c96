//! The export's sections, made one at a time: a change makes only its own anew, and what is large comes in pieces.

use std::collections::{BTreeSet, btree_map};
use std::sync::Arc;

use hawser_model::{ServiceKey, SliceKey, Time};
use hawser_sources::Service;
use hawser_wire::{Key, prefix};

use super::{Entries, Export, Part};
use crate::events::{Misread, Subject};
use crate::exports::NAMESPACES;
use crate::objects::{Few, Objects, Touched};

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

    /// As a whole.
    pub fn is_touched(self, touched: &Touched) -> bool {
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
        if section == Section::Services {
            self.of_services.clear();
            self.misread.retain(|subject, _| !matches!(subject, Subject::Service(_)));
        }
        Pieces { export: self, objects, settle, now, rest: Rest::Whole(section) }
    }

    /// What the keyspace should hold of these alone, and the keys under which it may hold something of them. None where only
    /// the whole section can tell. Cost: these services' endpoints.
    pub fn few(&mut self, few: &Few, objects: &Objects) -> Option<(BTreeSet<String>, Entries)> {
        // Whose a derived service is cannot be seen from its name.
        if self.clusterset && !objects.service_exports.is_empty() {
            return None;
        }
        let cluster = || self.cluster.name.clone();
        let of_slice = |slice: &SliceKey| Key::EndpointSlice { cluster: cluster(), slice: slice.clone() };
        let of_service = |service: &ServiceKey| {
            let service = service.clone();
            let local = Key::LocalService { cluster: cluster(), service: service.clone() };
            [local, Key::Service { cluster: cluster(), service }]
        };
        let slices = few.services.iter().flat_map(|service| objects.slices_of(service));
        let mut keys: BTreeSet<String> = slices.map(|slice| of_slice(&slice.key).to_string()).collect();
        keys.extend(few.slices.iter().map(|slice| of_slice(slice).to_string()));
        keys.extend(few.services.iter().flat_map(of_service).map(|key| key.to_string()));
        let mut entries = Vec::new();
        for key in &few.services {
            match objects.services.get(key) {
                Some(service) => entries.extend(self.of_service(objects, service)),
                None => {
                    self.of_services.remove(key);
                    self.misread.remove(&Subject::Service(key.clone()));
                }
            }
        }
        Some((keys, entries))
    }

    fn of_service(&mut self, objects: &Objects, service: &Service) -> Entries {
        let Part { entries, problems, misread: texts } = self.export_service(objects, service);
        let subject = Subject::Service(service.key.clone());
        if texts.is_empty() {
            self.misread.remove(&subject);
        } else {
            let uid = service.uid.to_string().into();
            self.misread.insert(subject, Misread { uid, texts });
        }
        if problems.is_empty() {
            self.of_services.remove(&service.key);
        } else {
            self.of_services.insert(service.key.clone(), problems);
        }
        entries
    }
}

impl Iterator for Pieces<'_> {
    type Item = Entries;

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
                let mut entries = Vec::new();
                while entries.len() < PIECE {
                    let Some(service) = rest.next() else { break };
                    entries.extend(self.export.of_service(objects, service));
                }
                if rest.len() > 0 {
                    self.rest = Rest::Services(rest);
                }
                return Some(entries);
            }
        };
        let Part { entries, problems, .. } = part;
        if !problems.is_empty() {
            self.export.problems.entry(section).or_default().extend(problems);
        }
        Some(entries)
    }
}
