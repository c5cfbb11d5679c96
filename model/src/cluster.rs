//! Cluster names and ids, with Cilium's rules (`pkg/clustermesh/types`), so that a Cilium cluster can be a member.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// 1 to 32 lower-case alphanumerics and `-`, alphanumeric at both ends, not `default`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(Arc<str>);

impl ClusterName {
    pub const MAX_LEN: usize = 32;

    pub fn parse(name: &str) -> Result<Self, ParseClusterError> {
        let bad = |why| Err(ParseClusterError::Name { name: shorten(name), why });
        let bytes = name.as_bytes();
        let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
            return bad("is empty");
        };
        if bytes.len() > Self::MAX_LEN {
            return bad("is longer than 32 characters");
        }
        if name == "default" {
            return bad("is reserved");
        }
        if !bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-') {
            return bad("may hold only lower-case letters, digits and '-'");
        }
        if *first == b'-' || *last == b'-' {
            return bad("must begin and end with a letter or digit");
        }
        Ok(Self(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for ClusterName {
    type Err = ParseClusterError;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::parse(name)
    }
}

/// How many bits of a 24-bit identity name the cluster. Equal in the whole mesh; cannot change live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum ClusterIdWidth {
    /// Up to 255 clusters of 65,535 identities.
    #[default]
    Bits8,
    /// Up to 511 clusters of 32,767 identities.
    Bits9,
}

impl ClusterIdWidth {
    /// From `maxConnectedClusters`, which Cilium allows to be 255 or 511.
    pub fn from_max_clusters(max: u32) -> Result<Self, ParseClusterError> {
        match max {
            255 => Ok(Self::Bits8),
            511 => Ok(Self::Bits9),
            other => Err(ParseClusterError::MaxClusters { max: other }),
        }
    }

    pub fn max_clusters(self) -> u16 {
        match self {
            Self::Bits8 => 255,
            Self::Bits9 => 511,
        }
    }

    pub fn bits(self) -> u32 {
        match self {
            Self::Bits8 => 8,
            Self::Bits9 => 9,
        }
    }
}

/// 1 to 255, or 1 to 511 in wide mode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(u16);

impl ClusterId {
    /// The bound of the widest mode: a table indexed by cluster id has `MAX + 1` rows.
    pub const MAX: u16 = 511;

    pub fn new(id: u32, width: ClusterIdWidth) -> Result<Self, ParseClusterError> {
        let max = width.max_clusters();
        match u16::try_from(id) {
            Ok(id) if (1..=max).contains(&id) => Ok(Self(id)),
            _ => Err(ParseClusterError::Id { id, max }),
        }
    }

    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A cluster as it is named in a mesh: both halves, which are unique each for itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterRef {
    pub name: ClusterName,
    pub id: ClusterId,
}

impl fmt::Display for ClusterRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (id {})", self.name, self.id)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseClusterError {
    #[error("cluster name {name:?} {why}")]
    Name { name: String, why: &'static str },
    #[error("cluster id {id} is out of range 1..={max}")]
    Id { id: u32, max: u16 },
    #[error("maxConnectedClusters {max} is neither 255 nor 511")]
    MaxClusters { max: u32 },
}

/// Hostile input is quoted in errors, but not all of it.
pub(crate) fn shorten(text: &str) -> String {
    const KEEP: usize = 64;
    match text.char_indices().nth(KEEP) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_follows_ciliums_rules() {
        for good in ["a", "us-east", "c1", "0", &"x".repeat(32)] {
            assert_eq!(ClusterName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "default", "-a", "a-", "A", "a_b", "a.b", "a/b", &"x".repeat(33)] {
            assert!(ClusterName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_id_fits_its_width() {
        assert_eq!(ClusterId::new(255, ClusterIdWidth::Bits8).unwrap().get(), 255);
        assert_eq!(ClusterId::new(511, ClusterIdWidth::Bits9).unwrap().get(), 511);
        for (id, width) in [
            (0, ClusterIdWidth::Bits8),
            (256, ClusterIdWidth::Bits8),
            (512, ClusterIdWidth::Bits9),
            (70_000, ClusterIdWidth::Bits9),
        ] {
            assert!(ClusterId::new(id, width).is_err(), "{id}");
        }
    }

    #[test]
    fn an_error_names_the_value_and_is_bounded() {
        let error = ClusterName::parse(&"Z".repeat(10_000)).unwrap_err().to_string();
        assert!(error.len() < 200, "{error}");
        assert_eq!(
            ClusterId::new(256, ClusterIdWidth::Bits8).unwrap_err().to_string(),
            "cluster id 256 is out of range 1..=255"
        );
    }
}
