//! `exports:` of cluster.yaml: label selectors as Kubernetes writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hawser_model::{ClusterName, ServiceKey};
use hawser_sources::{Expression, Selector};
use serde::Deserialize;

use super::{ExportFilter, Exports, Namespaces};

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct ExportsText {
    #[serde(default)]
    default: Option<FilterText>,
    #[serde(default)]
    peers: BTreeMap<String, FilterText>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FilterText {
    namespaces: Option<Vec<String>>,
    namespace_selector: Option<SelectorText>,
    service_selector: Option<SelectorText>,
    pod_selector: Option<SelectorText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SelectorText {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
    #[serde(default)]
    match_expressions: Vec<RequirementText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequirementText {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl ExportsText {
    /// What cannot be meant is refused with its place below `exports`.
    pub fn into_exports(self, own: &ClusterName) -> Result<Exports, String> {
        let default = match self.default {
            Some(filter) => filter.into_filter().map_err(|why| format!("default.{why}"))?,
            None => ExportFilter::default(),
        };
        let mut peers = BTreeMap::new();
        for (name, filter) in self.peers {
            let peer = ClusterName::parse(&name).map_err(|why| format!("peers: {why}"))?;
            if peer == *own {
                return Err(format!(
                    "peers.{peer}: that is this cluster; fix: name the cluster that reads it"
                ));
            }
            let filter = filter.into_filter().map_err(|why| format!("peers.{peer}.{why}"))?;
            peers.insert(peer, Arc::new(filter));
        }
        Ok(Exports { default: Arc::new(default), peers })
    }
}

impl FilterText {
    fn into_filter(self) -> Result<ExportFilter, String> {
        let selector = |key: &str, text: Option<SelectorText>| {
            text.map(SelectorText::into_selector).transpose().map_err(|why| format!("{key}.{why}"))
        };
        let namespaces = match (self.namespaces, selector("namespaceSelector", self.namespace_selector)?) {
            (None, None) => Namespaces::All,
            (Some(names), None) => Namespaces::Named(named(names)?),
            (None, Some(selector)) => Namespaces::Labelled(selector),
            (Some(_), Some(_)) => {
                let fix = "fix: leave one out; the label kubernetes.io/metadata.name is a namespace's name";
                return Err(format!("namespaces: stands beside namespaceSelector; {fix}"));
            }
        };
        let services = selector("serviceSelector", self.service_selector)?.unwrap_or_default();
        let pods = selector("podSelector", self.pod_selector)?;
        Ok(ExportFilter { namespaces, services, pods })
    }
}

fn named(names: Vec<String>) -> Result<BTreeSet<String>, String> {
    for name in &names {
        // A namespace is a label like a service's name.
        if ServiceKey::new(name, "x").is_err() {
            return Err(format!("namespaces: {name:?} is no namespace's name; fix: correct it"));
        }
    }
    Ok(names.into_iter().collect())
}

impl SelectorText {
    /// In one order, whatever order it was written in: the same selector is the same view.
    fn into_selector(self) -> Result<Selector, String> {
        let mut expressions = Vec::new();
        for (key, value) in self.match_labels {
            check("matchLabels", &key)?;
            check("matchLabels", &value)?;
            expressions.push(Expression::In { key, values: vec![value] });
        }
        for RequirementText { key, operator, values } in self.match_expressions {
            let place = "matchExpressions";
            check(place, &key)?;
            values.iter().try_for_each(|value| check(place, value))?;
            let values: Vec<String> = values.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
            let takes_values = matches!(operator, Operator::In | Operator::NotIn);
            if takes_values == values.is_empty() {
                let what = if takes_values { "needs values" } else { "takes no values" };
                return Err(format!("{place}: {key}: {operator:?} {what}; fix: see kubectl explain"));
            }
            expressions.push(match operator {
                Operator::In => Expression::In { key, values },
                Operator::NotIn => Expression::NotIn { key, values },
                Operator::Exists => Expression::Exists { key },
                Operator::DoesNotExist => Expression::DoesNotExist { key },
            });
        }
        if expressions.iter().any(|expression| key_of(expression).is_empty()) {
            return Err("matchExpressions: a key is empty; fix: name a label".into());
        }
        expressions.sort_by(|a, b| format!("{a:?}").cmp(&format!("{b:?}")));
        expressions.dedup();
        Ok(Selector { expressions })
    }
}

fn key_of(expression: &Expression) -> &str {
    match expression {
        Expression::In { key, .. }
        | Expression::NotIn { key, .. }
        | Expression::Exists { key }
        | Expression::DoesNotExist { key } => key,
    }
}

/// The characters of label keys and values.
fn check(place: &str, text: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if text.len() > 317 || !text.chars().all(fits) {
        let text: String = text.chars().take(64).collect();
        return Err(format!("{place}: {text:?} is no label key or value; fix: correct it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Exports, String> {
        let options = serde_saphyr::options! { with_snippet: false };
        let read: ExportsText =
            serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
        read.into_exports(&ClusterName::parse("us-east").unwrap())
    }

    fn of(text: &str, peer: &str) -> String {
        parse(text).unwrap().of(&ClusterName::parse(peer).unwrap()).to_string()
    }

    #[test]
    fn what_is_left_out_is_every_global_service_and_no_pod_beside() {
        let all = "namespaces: all; services: all; pods: of exported services";
        assert_eq!(ExportFilter::default().to_string(), all);
        assert_eq!(of("{}", "eu-west"), all);
        assert_eq!(of("default: {}", "eu-west"), all);
        assert_eq!(of("default: {podSelector: {}}", "eu-west"), "namespaces: all; services: all; pods: all");
        assert_eq!(
            of("default: {namespaces: []}", "eu-west"),
            "namespaces: none; services: all; pods: of exported services"
        );
    }

    #[test]
    fn a_peer_has_its_own_filter_or_the_default() {
        let text = "
default: { namespaces: [shop, bank] }
peers:
  eu-west:
    namespaceSelector: { matchLabels: { team: a } }
    serviceSelector:
      matchExpressions:
      - { key: tier, operator: NotIn, values: [internal, beta] }
      - { key: app, operator: Exists }
";
        assert_eq!(
            of(text, "ap-south"),
            "namespaces: in (bank,shop); services: all; pods: of exported services"
        );
        assert_eq!(
            of(text, "eu-west"),
            "namespaces: with team=a; services: app,tier notin (beta,internal); pods: of exported services"
        );
        let exports = parse(text).unwrap();
        let place = |peer| exports.place_of(&ClusterName::parse(peer).unwrap());
        assert_eq!([place("eu-west"), place("ap-south")], ["peers.eu-west", "default"]);
    }

    #[test]
    fn the_same_filter_is_the_same_view_however_it_is_written() {
        let view = |text: &str| parse(text).unwrap().of(&ClusterName::parse("eu-west").unwrap()).view();
        let labels = view("default: {serviceSelector: {matchLabels: {a: x, b: z}}}");
        let expressions = "default: {serviceSelector: {matchExpressions: [
            {key: b, operator: In, values: [z]}, {key: a, operator: In, values: [x, x]}]}}";
        assert_eq!(labels, view(expressions));
        assert_ne!(labels, view("default: {podSelector: {matchLabels: {a: x, b: z}}}"));
        assert_ne!(labels, view("{}"));
        // It is in every reader's cluster_id: another number has every peer list everything again.
        assert_eq!(view("{}"), ExportFilter::default().view());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_place() {
        for (text, says) in [
            ("default: {namespaces: [Shop]}", "default.namespaces: \"Shop\" is no namespace's name"),
            ("default: {namespaces: [a], namespaceSelector: {}}", "stands beside namespaceSelector"),
            ("peers: {us-east: {}}", "peers.us-east: that is this cluster"),
            ("peers: {eu_west: {}}", "peers: cluster name \"eu_west\""),
            (
                "peers: {eu-west: {podSelector: {matchExpressions: [{key: a, operator: In}]}}}",
                "peers.eu-west.podSelector.matchExpressions: a: In needs values",
            ),
            (
                "default: {serviceSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
                "Exists takes no values",
            ),
            ("default: {serviceSelector: {matchLabels: {a: \"b c\"}}}", "\"b c\" is no label key or value"),
            ("default: {serviceSelector: {matchExpressions: [{key: a, operator: Is}]}}", "Is"),
            ("default: {services: {}}", "services"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
