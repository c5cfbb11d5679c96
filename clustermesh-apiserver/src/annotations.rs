//! What a Service's annotations ask for. Every name of ours has Cilium's as an alias where there is one; an unknown value
//! is a problem, and never a guess.

use std::collections::BTreeMap;
use std::fmt::Display;

use hawser_model::{
    Affinity, Algorithm, Fallback, MinHealthy, OnLoss, ResetAfter, Routing, SessionAffinity, ZoneAffinity,
};

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Wishes {
    /// One service with those of the same name in other clusters.
    pub global: bool,
    /// The others may use our backends. Without it a global service only uses theirs.
    pub shared: bool,
    /// But for session affinity.
    routing: Routing,
    /// None where the Service itself decides.
    session: Option<Option<u32>>,
    /// The others' endpoints are written back as EndpointSlices.
    pub slices: bool,
}

/// Our name, and Cilium's.
type Name = (&'static str, Option<&'static str>);

const GLOBAL: Name = ("hawser.io/global", Some("service.cilium.io/global"));
const SHARED: Name = ("hawser.io/shared", Some("service.cilium.io/shared"));
const AFFINITY: Name = ("hawser.io/affinity", Some("service.cilium.io/affinity"));
const SLICES: Name =
    ("hawser.io/global-sync-endpoint-slices", Some("service.cilium.io/global-sync-endpoint-slices"));
const MIN_HEALTHY: Name = ("hawser.io/affinity-min-healthy", None);
const WEIGHTS: Name = ("hawser.io/cluster-weights", None);
const ORDER: Name = ("hawser.io/cluster-order", None);
const FALLBACK: Name = ("hawser.io/fallback", None);
const SESSION: Name = ("hawser.io/session-affinity", None);
const ON_DATA_PLANE_LOSS: Name = ("hawser.io/on-data-plane-loss", None);
const ON_CONTROL_PLANE_LOSS: Name = ("hawser.io/on-control-plane-loss", None);
const DRAIN_GRACE: Name = ("hawser.io/drain-grace", None);
const ZONE_AFFINITY: Name = ("hawser.io/zone-affinity", None);
const ALGORITHM: Name = ("hawser.io/algorithm", Some("service.cilium.io/lb-algorithm"));
const RESET_AFTER: Name = ("hawser.io/reset-after", None);

impl Wishes {
    /// What is meant, and what could not be understood. What is not understood is not done: the service is not global,
    /// or not shared, or has no affinity.
    pub fn read(annotations: &BTreeMap<String, String>) -> (Self, Vec<String>) {
        let mut reader = Reader { annotations, problems: Vec::new() };
        let mut wishes = Self::default();
        match reader.value(GLOBAL) {
            None => return (wishes, reader.problems),
            Some((_, "true")) => wishes.global = true,
            Some((_, "false")) => return (wishes, reader.problems),
            Some((name, other)) => {
                reader.unknown(name, other, "is not \"true\" or \"false\"", "the service is not global");
                return (wishes, reader.problems);
            }
        }
        wishes.shared = reader.flag(SHARED, true, "the service is not shared");
        wishes.slices = reader.flag(SLICES, false, "no EndpointSlices are written for the service");
        wishes.routing = reader.routing();
        wishes.session =
            reader.parsed(SESSION, Routing::parse_session, "the Service's own sessionAffinity counts");
        reader.misspelt();
        (wishes, reader.problems)
    }

    pub fn exported(&self) -> bool {
        self.global && self.shared
    }

    /// `of_service`: what the Service says without any annotation.
    pub fn routing(&self, of_service: SessionAffinity) -> Routing {
        let of_service = match of_service {
            SessionAffinity::None => None,
            SessionAffinity::ClientIp(seconds) => Some(seconds.unwrap_or(Routing::SESSION_SECONDS)),
        };
        Routing { session_seconds: self.session.unwrap_or(of_service), ..self.routing.clone() }
    }
}

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    fn routing(&mut self) -> Routing {
        let default = Routing::default();
        let routing = Routing {
            affinity: self
                .parsed(AFFINITY, Affinity::parse, "the service has no affinity")
                .unwrap_or(default.affinity),
            min_healthy: self.parsed(MIN_HEALTHY, MinHealthy::parse, "one healthy backend here is enough"),
            weights: self
                .parsed(WEIGHTS, Routing::parse_weights, "every backend counts alike")
                .unwrap_or_default(),
            order: self
                .parsed(ORDER, Routing::parse_order, "the clusters are used as one")
                .unwrap_or_default(),
            fallback: self.parsed(FALLBACK, Fallback::parse, "it is \"any\"").unwrap_or(default.fallback),
            session_seconds: None,
            on_data_plane_loss: self
                .parsed(ON_DATA_PLANE_LOSS, OnLoss::parse, "it is \"drain\"")
                .unwrap_or(default.on_data_plane_loss),
            on_control_plane_loss: self
                .parsed(ON_CONTROL_PLANE_LOSS, OnLoss::parse, "it is \"keep\"")
                .unwrap_or(default.on_control_plane_loss),
            drain_grace_seconds: self
                .parsed(DRAIN_GRACE, Routing::parse_drain_grace, "there is none")
                .unwrap_or(default.drain_grace_seconds),
            algorithm: self
                .parsed(ALGORITHM, Algorithm::parse, "it is \"random\"")
                .unwrap_or(default.algorithm),
            zone_affinity: self
                .parsed(ZONE_AFFINITY, ZoneAffinity::parse, "zones do not count")
                .unwrap_or(default.zone_affinity),
            reset_after: self.parsed(RESET_AFTER, ResetAfter::parse, "the agents' own setting counts"),
        };
        if routing.min_healthy.is_some() && routing.affinity != Affinity::Local {
            self.idle(MIN_HEALTHY, "affinity \"local\"");
        }
        if routing.fallback != default.fallback && routing.order.is_empty() {
            self.idle(FALLBACK, ORDER.0);
        }
        routing
    }

    /// Ours if it is there, else the alias.
    fn value(&mut self, (ours, alias): Name) -> Option<(&'static str, &'a str)> {
        let get = |name: &'static str| self.annotations.get(name).map(|value| (name, value.as_str()));
        match (get(ours), alias.and_then(get)) {
            (Some(a), Some(b)) if a.1 != b.1 => {
                let text =
                    format!("annotations {ours}: {:?} and {}: {:?} contradict each other", a.1, b.0, b.1);
                self.problems.push(format!("{text}; {ours} counts; fix: make them equal, or leave one out"));
                Some(a)
            }
            (Some(a), _) => Some(a),
            (None, b) => b,
        }
    }

    /// On a typo the cautious `false` holds.
    fn flag(&mut self, name: Name, default: bool, meanwhile: &str) -> bool {
        match self.value(name) {
            None => default,
            Some((_, "true")) => true,
            Some((_, "false")) => false,
            Some((name, other)) => {
                self.unknown(name, other, "is not \"true\" or \"false\"", meanwhile);
                false
            }
        }
    }

    fn parsed<T, E: Display>(
        &mut self,
        name: Name,
        parse: impl Fn(&str) -> Result<T, E>,
        meanwhile: &str,
    ) -> Option<T> {
        let (name, text) = self.value(name)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.unknown(name, text, &format!("is not understood ({error})"), meanwhile);
                None
            }
        }
    }

    fn unknown(&mut self, name: &str, value: &str, why: &str, meanwhile: &str) {
        let value: String = value.chars().take(64).collect();
        self.problems.push(format!("annotation {name}: {value:?} {why}; until it is fixed {meanwhile}"));
    }

    fn idle(&mut self, (name, _): Name, without: &str) {
        self.problems.push(format!(
            "annotation {name} does nothing without {without}; fix: add that, or leave it out"
        ));
    }

    /// A name of ours that nobody knows is a typo: what was meant would silently not be done.
    fn misspelt(&mut self) {
        let known = [
            GLOBAL,
            SHARED,
            AFFINITY,
            SLICES,
            MIN_HEALTHY,
            WEIGHTS,
            ORDER,
            FALLBACK,
            SESSION,
            ON_DATA_PLANE_LOSS,
            ON_CONTROL_PLANE_LOSS,
            DRAIN_GRACE,
            ZONE_AFFINITY,
            ALGORITHM,
            RESET_AFTER,
        ];
        let is_known = |name: &str| known.iter().any(|(ours, _)| *ours == name);
        let odd = self.annotations.keys().filter(|name| name.starts_with("hawser.io/") && !is_known(name));
        let odd = odd.map(|name| {
            let name: String = name.chars().take(64).collect();
            format!("annotation {name} is unknown; fix: see docs/src/reference/annotations.md for the names")
        });
        self.problems.extend(odd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (Wishes, Vec<String>) {
        Wishes::read(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    fn both((ours, alias): Name) -> [&'static str; 2] {
        [ours, alias.unwrap()]
    }

    #[test]
    fn only_the_text_true_makes_a_service_global() {
        for name in both(GLOBAL) {
            assert!(read(&[(name, "true")]).0.exported());
            assert_eq!(read(&[(name, "false")]), (Wishes::default(), vec![]));
            for odd in ["True", "1", "yes", ""] {
                let (wishes, problems) = read(&[(name, odd)]);
                assert!(!wishes.global && problems.len() == 1, "{odd}: {problems:?}");
            }
        }
        assert_eq!(read(&[("hawser.io/affinity", "local")]), (Wishes::default(), vec![]));
    }

    #[test]
    fn shared_and_affinity_count_on_a_global_service() {
        let global = ("hawser.io/global", "true");
        assert!(!read(&[global, ("hawser.io/shared", "false")]).0.exported());
        assert_eq!(
            read(&[global, ("service.cilium.io/affinity", "local")]).0.routing.affinity,
            Affinity::Local
        );
        let (wishes, problems) = read(&[global, ("hawser.io/affinity", "Local")]);
        assert_eq!((wishes.routing.affinity, problems.len()), (Affinity::None, 1));
        let (wishes, problems) = read(&[global, ("hawser.io/shared", "flase")]);
        assert!(wishes.global && !wishes.shared, "a typo never publishes");
        assert!(problems[0].contains("hawser.io/shared: \"flase\""), "{problems:?}");
    }

    #[test]
    fn endpoint_slices_are_written_where_that_is_asked_for() {
        let global = ("hawser.io/global", "true");
        for name in both(SLICES) {
            assert!(read(&[global, (name, "true")]).0.slices);
            assert!(!read(&[(name, "true")]).0.slices, "only of a global service");
            assert!(!read(&[global, (name, "false")]).0.slices);
            let (wishes, problems) = read(&[global, (name, "yes")]);
            assert!(!wishes.slices && problems.len() == 1, "{problems:?}");
        }
    }

    #[test]
    fn our_name_wins_over_the_alias_and_the_contradiction_is_told() {
        let (wishes, problems) = read(&[("hawser.io/global", "true"), ("service.cilium.io/global", "false")]);
        assert!(wishes.global && problems.len() == 1, "{problems:?}");
        let (_, problems) = read(&[("hawser.io/global", "true"), ("service.cilium.io/global", "true")]);
        assert!(problems.is_empty());
    }

    #[test]
    fn every_wish_about_clients_is_read_and_every_odd_value_is_told_and_not_done() {
        let global = ("hawser.io/global", "true");
        let good = [
            global,
            ("hawser.io/affinity", "local"),
            ("hawser.io/affinity-min-healthy", "50%"),
            ("hawser.io/cluster-weights", "us-east=80,eu-west=20"),
            ("hawser.io/cluster-order", "us-east,eu-west"),
            ("hawser.io/fallback", "none"),
            ("hawser.io/session-affinity", "ClientIP=600s"),
            ("hawser.io/on-data-plane-loss", "keep"),
            ("hawser.io/on-control-plane-loss", "drain"),
            ("hawser.io/drain-grace", "30s"),
            ("hawser.io/zone-affinity", "local"),
            ("hawser.io/algorithm", "maglev"),
            ("hawser.io/reset-after", "never"),
        ];
        let (wishes, problems) = read(&good);
        assert_eq!(problems, [""; 0]);
        let routing = wishes.routing(SessionAffinity::None);
        assert_eq!(
            (routing.min_healthy, routing.session_seconds),
            (Some(MinHealthy::Percent(50)), Some(600))
        );
        assert_eq!((routing.weights.len(), routing.order.len()), (2, 2));
        assert_eq!((routing.fallback, routing.on_data_plane_loss), (Fallback::None, OnLoss::Keep));
        assert_eq!(routing.reset_after, Some(ResetAfter::Never));
        assert_eq!((routing.on_control_plane_loss, routing.drain_grace_seconds), (OnLoss::Drain, 30));
        assert_eq!((routing.zone_affinity, routing.algorithm), (ZoneAffinity::Local, Algorithm::Maglev));
        for (name, _) in &good[1..] {
            let (wishes, problems) = read(&[global, (name, "nonsense!")]);
            assert_eq!(wishes.routing(SessionAffinity::None), Routing::default(), "{name}");
            assert!(problems.len() == 1 && problems[0].contains(name), "{problems:?}");
        }
    }

    #[test]
    fn the_services_own_session_affinity_counts_unless_an_annotation_says_otherwise() {
        let global = ("hawser.io/global", "true");
        let seconds = |pairs: &[(&str, &str)], of_service| read(pairs).0.routing(of_service).session_seconds;
        assert_eq!(seconds(&[global], SessionAffinity::ClientIp(Some(60))), Some(60));
        assert_eq!(seconds(&[global], SessionAffinity::ClientIp(None)), Some(10_800));
        let off = ("hawser.io/session-affinity", "None");
        assert_eq!(seconds(&[global, off], SessionAffinity::ClientIp(None)), None);
    }

    #[test]
    fn what_does_nothing_and_what_nobody_knows_is_told() {
        let global = ("hawser.io/global", "true");
        for (name, value) in [("hawser.io/affinity-min-healthy", "3"), ("hawser.io/fallback", "none")] {
            let (_, problems) = read(&[global, (name, value)]);
            assert!(problems.len() == 1 && problems[0].contains("does nothing without"), "{problems:?}");
        }
        let (_, problems) = read(&[global, ("hawser.io/afinity", "local")]);
        assert!(problems.len() == 1 && problems[0].contains("hawser.io/afinity is unknown"), "{problems:?}");
    }
}
