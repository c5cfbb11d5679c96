//! What a Node's annotations ask for: where it is reached from outside, and whether it is a gateway. An unknown value is a
//! problem, and never a guess.

use std::net::SocketAddr;

use hawser_model::IpNet;
use hawser_sources::Pairs;

const GATEWAY: &str = "hawser.io/gateway";
const PUBLIC_ENDPOINT: &str = "hawser.io/public-endpoint";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Public {
    pub endpoint: Option<SocketAddr>,
    /// Only with an endpoint.
    pub gateway: bool,
}

impl Public {
    /// What is meant, and what could not be understood: that is not done.
    pub fn read(annotations: &Pairs, node_cidrs: &[IpNet]) -> (Self, Vec<String>) {
        let mut problems = Vec::new();
        let endpoint = annotations.get(PUBLIC_ENDPOINT).and_then(|text| {
            let endpoint = endpoint(text, node_cidrs);
            endpoint.map_err(|why| problems.push(odd(PUBLIC_ENDPOINT, text, &why))).ok()
        });
        let wanted = match annotations.get(GATEWAY) {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                let why = "is not \"true\" or \"false\"; until it is fixed the node is no gateway";
                problems.push(odd(GATEWAY, other, why));
                false
            }
        };
        if wanted && endpoint.is_none() {
            problems.push(format!(
                "annotation {GATEWAY} does nothing without {PUBLIC_ENDPOINT}; fix: add that, like \"203.0.113.7:51871\", or leave it out"
            ));
        }
        for (name, _) in annotations.iter().filter(|(name, _)| ![GATEWAY, PUBLIC_ENDPOINT].contains(name)) {
            let name: String = name.chars().take(64).collect();
            problems.push(format!(
                "annotation {name} is unknown on a node; fix: see docs/src/reference/annotations.md for the names"
            ));
        }
        (Self { endpoint, gateway: wanted && endpoint.is_some() }, problems)
    }
}

/// Peers aim tunnels inside the node CIDRs that they admitted, and nowhere else.
fn endpoint(text: &str, node_cidrs: &[IpNet]) -> Result<SocketAddr, String> {
    let endpoint = text.parse::<SocketAddr>().ok().filter(|endpoint| endpoint.port() != 0);
    let meanwhile = "until it is fixed the node has no public endpoint";
    let endpoint = endpoint.ok_or_else(|| format!("is not address:port; {meanwhile}"))?;
    if !node_cidrs.iter().any(|net| net.contains(&endpoint.ip())) {
        return Err(format!(
            "is in none of this cluster's nodeCIDRs, so no peer would send there; {meanwhile}; fix: add {}/{} to nodeCIDRs, and give every peer a new bundle",
            endpoint.ip(),
            if endpoint.is_ipv4() { 32 } else { 128 }
        ));
    }
    Ok(endpoint)
}

fn odd(name: &str, value: &str, why: &str) -> String {
    let value: String = value.chars().take(64).collect();
    format!("annotation {name}: {value:?} {why}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (Public, Vec<String>) {
        let map: BTreeMap<String, String> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Public::read(
            &Pairs::from(&map),
            &["172.16.1.0/24".parse().unwrap(), "203.0.113.7/32".parse().unwrap()],
        )
    }

    #[test]
    fn a_gateway_says_where_it_is() {
        let at = (PUBLIC_ENDPOINT, "203.0.113.7:4500");
        let endpoint = Some("203.0.113.7:4500".parse().unwrap());
        assert_eq!(read(&[(GATEWAY, "true"), at]), (Public { endpoint, gateway: true }, vec![]));
        assert_eq!(read(&[at]), (Public { endpoint, gateway: false }, vec![]));
        assert_eq!(read(&[(GATEWAY, "false")]), (Public::default(), vec![]));
        assert_eq!(read(&[]), (Public::default(), vec![]));
    }

    #[test]
    fn what_is_odd_is_told_and_not_done() {
        for (pairs, says) in [
            (vec![(GATEWAY, "yes")], "is not \"true\" or \"false\""),
            (vec![(GATEWAY, "true")], "does nothing without hawser.io/public-endpoint"),
            (vec![(PUBLIC_ENDPOINT, "203.0.113.7")], "is not address:port"),
            (vec![(PUBLIC_ENDPOINT, "203.0.113.7:0")], "is not address:port"),
            (vec![(PUBLIC_ENDPOINT, "gw.example:1")], "is not address:port"),
            (vec![(PUBLIC_ENDPOINT, "8.8.8.8:51871")], "add 8.8.8.8/32 to nodeCIDRs"),
            (vec![("hawser.io/gatway", "true")], "hawser.io/gatway is unknown"),
        ] {
            let (public, problems) = read(&pairs);
            assert_eq!(public, Public::default(), "{pairs:?}");
            assert!(problems.len() == 1 && problems[0].contains(says), "{problems:?}");
        }
    }
}
