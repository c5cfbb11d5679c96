//! What a Service's annotations ask for. Every name of ours has Cilium's as an alias; an unknown value is a problem, and
//! never a guess.

use std::collections::BTreeMap;

use hawser_model::Affinity;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Wishes {
    /// One service with those of the same name in other clusters.
    pub global: bool,
    /// The others may use our backends. Without it a global service only uses theirs.
    pub shared: bool,
    pub affinity: Affinity,
    /// The others' endpoints are written back as EndpointSlices.
    pub slices: bool,
}

const GLOBAL: [&str; 2] = ["hawser.io/global", "service.cilium.io/global"];
const SHARED: [&str; 2] = ["hawser.io/shared", "service.cilium.io/shared"];
const AFFINITY: [&str; 2] = ["hawser.io/affinity", "service.cilium.io/affinity"];

const SLICES: [&str; 2] =
    ["hawser.io/global-sync-endpoint-slices", "service.cilium.io/global-sync-endpoint-slices"];

impl Wishes {
    /// What is meant, and what could not be understood. What is not understood is not done: the service is not global,
    /// or not shared, or has no affinity.
    pub fn read(annotations: &BTreeMap<String, String>) -> (Self, Vec<String>) {
        let mut problems = Vec::new();
        let mut wishes = Self::default();
        match value(annotations, GLOBAL, &mut problems) {
            None => return (wishes, problems),
            Some((_, "true")) => wishes.global = true,
            Some((_, "false")) => return (wishes, problems),
            Some((name, other)) => {
                problems.push(unknown(name, other, "\"true\" or \"false\"", "the service is not global"));
                return (wishes, problems);
            }
        }
        wishes.shared = match value(annotations, SHARED, &mut problems) {
            None | Some((_, "true")) => true,
            Some((_, "false")) => false,
            Some((name, other)) => {
                problems.push(unknown(name, other, "\"true\" or \"false\"", "the service is not shared"));
                false
            }
        };
        if let Some((name, text)) = value(annotations, AFFINITY, &mut problems) {
            match Affinity::parse(text) {
                Ok(affinity) => wishes.affinity = affinity,
                Err(_) => {
                    let known = "\"none\", \"local\" or \"remote\"";
                    problems.push(unknown(name, text, known, "the service has no affinity"));
                }
            }
        }
        wishes.slices = match value(annotations, SLICES, &mut problems) {
            None | Some((_, "false")) => false,
            Some((_, "true")) => true,
            Some((name, other)) => {
                let meanwhile = "no EndpointSlices are written for the service";
                problems.push(unknown(name, other, "\"true\" or \"false\"", meanwhile));
                false
            }
        };
        (wishes, problems)
    }

    pub fn exported(self) -> bool {
        self.global && self.shared
    }
}

fn unknown(name: &str, value: &str, known: &str, meanwhile: &str) -> String {
    let value: String = value.chars().take(64).collect();
    format!("annotation {name}: {value:?} is not {known}; until it is fixed {meanwhile}")
}

/// Ours if it is there, else the alias.
fn value<'a>(
    annotations: &'a BTreeMap<String, String>,
    [ours, alias]: [&'static str; 2],
    problems: &mut Vec<String>,
) -> Option<(&'static str, &'a str)> {
    let get = |name: &'static str| annotations.get(name).map(|value| (name, value.as_str()));
    match (get(ours), get(alias)) {
        (Some(a), Some(b)) if a.1 != b.1 => {
            let text = format!("annotations {ours}: {:?} and {alias}: {:?} contradict each other", a.1, b.1);
            problems.push(format!("{text}; {ours} counts; fix: make them equal, or leave one out"));
            Some(a)
        }
        (Some(a), _) => Some(a),
        (None, b) => b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (Wishes, Vec<String>) {
        Wishes::read(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn only_the_text_true_makes_a_service_global() {
        for name in GLOBAL {
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
        assert_eq!(read(&[global, ("service.cilium.io/affinity", "local")]).0.affinity, Affinity::Local);
        let (wishes, problems) = read(&[global, ("hawser.io/affinity", "Local")]);
        assert_eq!((wishes.affinity, problems.len()), (Affinity::None, 1));
        let (wishes, problems) = read(&[global, ("hawser.io/shared", "flase")]);
        assert!(wishes.global && !wishes.shared, "a typo never publishes");
        assert!(problems[0].contains("hawser.io/shared: \"flase\""), "{problems:?}");
    }

    #[test]
    fn endpoint_slices_are_written_where_that_is_asked_for() {
        let global = ("hawser.io/global", "true");
        for name in SLICES {
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
}
