//! How a global service's clients are spread over clusters and backends: what its annotations ask for.

use std::collections::BTreeMap;
use std::fmt;

use crate::cluster::shorten;
use crate::{Affinity, ClusterName, ParseServiceError};

/// The wishes of one Service about its clients in its own cluster. The default is every healthy backend everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    pub affinity: Affinity,
    /// With affinity `local`: as long as fewer are healthy here, the other clusters help.
    pub min_healthy: Option<MinHealthy>,
    /// Shares of clusters. One that is not named, or has 0, is used when no named one has a healthy backend.
    pub weights: BTreeMap<ClusterName, u16>,
    /// Clusters in the order in which they are used.
    pub order: Vec<ClusterName>,
    /// What comes after those.
    pub fallback: Fallback,
    /// A client keeps its backend while it is not idle for so many seconds.
    pub session_seconds: Option<u32>,
    /// A cluster or node does not answer through the tunnel.
    pub on_data_plane_loss: OnLoss,
    /// A cluster's keyspace cannot be read.
    pub on_control_plane_loss: OnLoss,
    /// How long a backend that was withdrawn is still served to those that use it.
    pub drain_grace_seconds: u32,
    pub algorithm: Algorithm,
    /// Backends in the zone of the client's node come first.
    pub zone_affinity: ZoneAffinity,
    /// When established connections to what is lost are ended. None: as the agent's configuration says.
    pub reset_after: Option<ResetAfter>,
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            affinity: Affinity::None,
            min_healthy: None,
            weights: BTreeMap::new(),
            order: Vec::new(),
            fallback: Fallback::Any,
            session_seconds: None,
            on_data_plane_loss: OnLoss::Drain,
            on_control_plane_loss: OnLoss::Keep,
            drain_grace_seconds: 0,
            algorithm: Algorithm::Random,
            zone_affinity: ZoneAffinity::None,
            reset_after: None,
        }
    }
}

impl Routing {
    /// Weights above this are not told apart by the datapath.
    pub const MAX_WEIGHT: u16 = 4_096;
    /// A cluster id width of 9 bits has 511.
    pub const MAX_CLUSTERS: usize = 511;
    /// A day, Kubernetes' bound.
    pub const MAX_SESSION_SECONDS: u32 = 86_400;
    /// Kubernetes' default.
    pub const SESSION_SECONDS: u32 = 10_800;
    /// An hour.
    pub const MAX_DRAIN_GRACE_SECONDS: u32 = 3_600;

    /// `us-east=80,eu-west=20`.
    pub fn parse_weights(text: &str) -> Result<BTreeMap<ClusterName, u16>, ParseRoutingError> {
        let mut weights = BTreeMap::new();
        for pair in text.split(',').map(str::trim) {
            let wrong = || ParseRoutingError::Weight { text: shorten(pair), max: Self::MAX_WEIGHT };
            let (name, weight) = pair.split_once('=').ok_or_else(wrong)?;
            let name = ClusterName::parse(name.trim()).map_err(|_| wrong())?;
            let weight = weight.trim().parse().ok().filter(|weight| *weight <= Self::MAX_WEIGHT);
            if weights.insert(name, weight.ok_or_else(wrong)?).is_some() {
                return Err(ParseRoutingError::Twice { text: shorten(pair) });
            }
        }
        bounded(weights.len())?;
        Ok(weights)
    }

    /// `us-east,eu-west`.
    pub fn parse_order(text: &str) -> Result<Vec<ClusterName>, ParseRoutingError> {
        let mut order = Vec::new();
        for name in text.split(',').map(str::trim) {
            let parsed =
                ClusterName::parse(name).map_err(|_| ParseRoutingError::Cluster { text: shorten(name) })?;
            if order.contains(&parsed) {
                return Err(ParseRoutingError::Twice { text: shorten(name) });
            }
            order.push(parsed);
            bounded(order.len())?;
        }
        Ok(order)
    }

    /// `ClientIP`, `ClientIP=600s` or `None`.
    pub fn parse_session(text: &str) -> Result<Option<u32>, ParseRoutingError> {
        match text.split_once('=') {
            None if text == "ClientIP" => Ok(Some(Self::SESSION_SECONDS)),
            None if text == "None" => Ok(None),
            Some(("ClientIP", time)) => {
                let seconds = time.strip_suffix('s').and_then(|seconds| seconds.parse().ok());
                let seconds = seconds.filter(|seconds| (1..=Self::MAX_SESSION_SECONDS).contains(seconds));
                seconds.map(Some).ok_or_else(|| ParseRoutingError::Session { text: shorten(text) })
            }
            _ => Err(ParseRoutingError::Session { text: shorten(text) }),
        }
    }
}

impl Routing {
    /// `30s`, `10m` or `0s`.
    pub fn parse_drain_grace(text: &str) -> Result<u32, ParseRoutingError> {
        let wrong = || ParseRoutingError::DrainGrace { text: shorten(text) };
        let (digits, unit) = match (text.strip_suffix('s'), text.strip_suffix('m')) {
            (Some(digits), _) => (digits, 1),
            (_, Some(digits)) => (digits, 60),
            _ => return Err(wrong()),
        };
        let seconds = digits.parse().ok().and_then(|number: u32| number.checked_mul(unit));
        seconds.filter(|seconds| *seconds <= Self::MAX_DRAIN_GRACE_SECONDS).ok_or_else(wrong)
    }
}

fn bounded(clusters: usize) -> Result<(), ParseRoutingError> {
    if clusters > Routing::MAX_CLUSTERS { Err(ParseRoutingError::TooMany) } else { Ok(()) }
}

/// How many healthy backends are enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinHealthy {
    Count(u16),
    /// Of the backends of the cluster that has most.
    Percent(u8),
}

impl MinHealthy {
    /// `3` or `50%`.
    pub fn parse(text: &str) -> Result<Self, ParseRoutingError> {
        let parsed = match text.strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|p| (1..=100).contains(p)).map(Self::Percent),
            None => text.parse().ok().filter(|count| *count > 0).map(Self::Count),
        };
        parsed.ok_or_else(|| ParseRoutingError::MinHealthy { text: shorten(text) })
    }

    /// Whether `healthy` are enough where the strongest cluster has `most`.
    pub fn is_met(self, healthy: usize, most: usize) -> bool {
        match self {
            Self::Count(count) => healthy >= count.into(),
            Self::Percent(percent) => healthy * 100 >= most * usize::from(percent),
        }
    }
}

impl fmt::Display for MinHealthy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// After the clusters of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fallback {
    /// All others, as one.
    #[default]
    Any,
    /// Nothing: the other clusters are never used.
    None,
}

impl Fallback {
    pub fn parse(text: &str) -> Result<Self, ParseRoutingError> {
        match text {
            "any" => Ok(Self::Any),
            "none" => Ok(Self::None),
            other => Err(ParseRoutingError::Fallback { text: shorten(other) }),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::None => "none",
        }
    }
}

/// How a backend is chosen among equals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Algorithm {
    #[default]
    Random,
    /// A client goes to the same one every time; when one changes, only its own share of the clients moves.
    Maglev,
}

impl Algorithm {
    pub fn parse(text: &str) -> Result<Self, ParseRoutingError> {
        match text {
            "random" => Ok(Self::Random),
            "maglev" => Ok(Self::Maglev),
            other => Err(ParseRoutingError::Algorithm { text: shorten(other) }),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Maglev => "maglev",
        }
    }
}

/// Whether the zone of the client's node matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ZoneAffinity {
    #[default]
    None,
    /// Backends of the same zone, of whatever cluster, while one of them is healthy.
    Local,
}

impl ZoneAffinity {
    pub fn parse(text: &str) -> Result<Self, ParseRoutingError> {
        match text {
            "none" => Ok(Self::None),
            "local" => Ok(Self::Local),
            other => Err(ParseRoutingError::ZoneAffinity { text: shorten(other) }),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Local => "local",
        }
    }
}

/// What becomes of a cluster that is lost in one of two ways (decision 8): it does not answer through the tunnel (nor do
/// nodes of it), or its keyspace cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLoss {
    /// Go on as if nothing had happened.
    Keep,
    /// No new connections while another cluster has a healthy backend.
    Drain,
}

impl OnLoss {
    pub fn parse(text: &str) -> Result<Self, ParseRoutingError> {
        match text {
            "keep" => Ok(Self::Keep),
            "drain" => Ok(Self::Drain),
            other => Err(ParseRoutingError::OnLoss { text: shorten(other) }),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Drain => "drain",
        }
    }
}

/// How long after the verdict established connections to a lost cluster or node are ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResetAfter {
    Millis(u32),
    Never,
}

impl ResetAfter {
    /// The datapath tells no longer times apart.
    pub const MAX_MILLIS: u32 = 3_600_000;
    pub const DEFAULT: Self = Self::Millis(2_000);

    /// `2s`, `500ms`, `10m` or `never`.
    pub fn parse(text: &str) -> Result<Self, ParseRoutingError> {
        if text == "never" {
            return Ok(Self::Never);
        }
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match text.get(digits.len()..) {
            Some("ms") => 1,
            Some("s") => 1_000,
            Some("m") => 60_000,
            _ => 0,
        };
        let millis = digits.parse().ok().and_then(|number: u32| number.checked_mul(unit));
        let millis = millis.filter(|millis| unit > 0 && *millis <= Self::MAX_MILLIS);
        millis.map(Self::Millis).ok_or_else(|| ParseRoutingError::ResetAfter { text: shorten(text) })
    }
}

impl fmt::Display for ResetAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::Millis(millis) if millis % 1_000 == 0 => write!(f, "{}s", millis / 1_000),
            Self::Millis(millis) => write!(f, "{millis}ms"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseRoutingError {
    #[error("{text:?} is neither a number of backends nor a percentage (1% to 100%)")]
    MinHealthy { text: String },
    #[error("{text:?} is not cluster=weight with a weight of at most {max}")]
    Weight { text: String, max: u16 },
    #[error("{text:?} is no cluster name")]
    Cluster { text: String },
    #[error("{text:?} names a cluster a second time")]
    Twice { text: String },
    #[error("more clusters are named than a mesh can have")]
    TooMany,
    #[error("{text:?} is none of any, none")]
    Fallback { text: String },
    #[error("{text:?} is none of random, maglev")]
    Algorithm { text: String },
    #[error("{text:?} is none of none, local")]
    ZoneAffinity { text: String },
    #[error("{text:?} is no time of at most an hour (0s, 30s, 10m)")]
    DrainGrace { text: String },
    #[error("{text:?} is none of keep, drain")]
    OnLoss { text: String },
    #[error("{text:?} is neither a time of at most an hour (500ms, 2s, 10m) nor never")]
    ResetAfter { text: String },
    #[error("{text:?} is none of None, ClientIP, ClientIP=<1 to 86400>s")]
    Session { text: String },
    #[error(transparent)]
    Affinity(#[from] ParseServiceError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_odd_is_refused() {
        let weights = Routing::parse_weights("us-east=80, eu-west=0").unwrap();
        assert_eq!(weights.values().copied().collect::<Vec<_>>(), [0, 80]);
        for odd in ["", "us-east", "us-east=", "us-east=-1", "us-east=4097", "us-east=1,us-east=2", "a b=1"] {
            assert!(Routing::parse_weights(odd).is_err(), "{odd:?}");
        }
        assert_eq!(Routing::parse_order("us-east,eu-west").unwrap().len(), 2);
        for odd in ["", "us-east,", "us-east,us-east", "Us East"] {
            assert!(Routing::parse_order(odd).is_err(), "{odd:?}");
        }
        assert_eq!(Routing::parse_session("ClientIP=600s"), Ok(Some(600)));
        assert_eq!(Routing::parse_session("ClientIP"), Ok(Some(10_800)));
        assert_eq!(Routing::parse_session("None"), Ok(None));
        for odd in ["clientip", "ClientIP=600", "ClientIP=0s", "ClientIP=86401s", "ClientIP="] {
            assert!(Routing::parse_session(odd).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn a_grace_is_a_time_of_at_most_an_hour() {
        for (text, seconds) in [("0s", 0), ("30s", 30), ("10m", 600), ("3600s", 3_600)] {
            assert_eq!(Routing::parse_drain_grace(text), Ok(seconds));
        }
        for odd in ["", "30", "s", "-1s", "3601s", "61m", "30 s", "500ms", "99999999m", "1h"] {
            assert!(Routing::parse_drain_grace(odd).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn a_reset_comes_after_a_time_or_never() {
        for text in ["2s", "500ms", "0s", "3600s", "never"] {
            assert_eq!(ResetAfter::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(ResetAfter::parse("10m"), Ok(ResetAfter::Millis(600_000)));
        for odd in ["", "2", "s", "2 s", "-1s", "3601s", "99999999m", "Never", "2sec", "\u{e9}s"] {
            assert!(ResetAfter::parse(odd).is_err(), "{odd:?}");
        }
        assert!(ResetAfter::Never > ResetAfter::Millis(u32::MAX), "the longest wish wins");
    }

    #[test]
    fn enough_is_a_number_or_a_part_of_the_strongest_clusters() {
        for text in ["3", "50%", "100%"] {
            assert_eq!(MinHealthy::parse(text).unwrap().to_string(), text);
        }
        for odd in ["0", "0%", "101%", "-1", "half", "", "%"] {
            assert!(MinHealthy::parse(odd).is_err(), "{odd:?}");
        }
        assert!(MinHealthy::Percent(50).is_met(15, 30) && !MinHealthy::Percent(50).is_met(14, 30));
        assert!(MinHealthy::Count(3).is_met(3, 30) && !MinHealthy::Count(3).is_met(2, 2));
    }
}
