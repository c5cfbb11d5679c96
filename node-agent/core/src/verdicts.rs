//! What the verdicts about a cluster come to: its control plane, its data plane, and its nodes, in one word for people.
//!
//! Health words follow from the data plane and the nodes alone: a cluster that cannot be read keeps its traffic (decision 8).

use std::fmt;

use hawser_model::ClusterHealth;

/// All that is known about one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// Can its keyspace be read?
    pub control_plane: ClusterHealth,
    /// Do packets arrive?
    pub data_plane: ClusterHealth,
    pub nodes: usize,
    pub nodes_down: usize,
    /// Up, and yet users fail there, or large packets do not arrive.
    pub nodes_grey: usize,
    /// Every other cluster is down, and there are several.
    pub cut_off: bool,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not listed yet, or none of its nodes has answered yet: nothing is refused on a guess.
    Unknown,
    Serving,
    /// Some of its nodes are down; the others serve.
    Degraded {
        down: usize,
        of: usize,
    },
    /// None is down, but some get less of what is new.
    Grey {
        grey: usize,
        of: usize,
    },
    /// It cannot be read: it serves as it was last known.
    Kept,
    /// New connections go elsewhere, established ones are ended.
    Down,
    /// As down, but nothing is ended: it is probably this node that is cut off.
    CutOff,
}

/// The worst of what holds comes first: packets before knowledge, a cluster before its nodes.
pub fn combine(verdicts: &Verdicts) -> Standing {
    use ClusterHealth::{Down, Unknown, Up};
    match (verdicts.data_plane, verdicts.control_plane) {
        (Down, _) if verdicts.cut_off => Standing::CutOff,
        (Down, _) => Standing::Down,
        (Unknown, _) | (Up, Unknown) => Standing::Unknown,
        (Up, Down) => Standing::Kept,
        (Up, Up) if verdicts.nodes_down > 0 => {
            Standing::Degraded { down: verdicts.nodes_down, of: verdicts.nodes }
        }
        (Up, Up) if verdicts.nodes_grey > 0 => {
            Standing::Grey { grey: verdicts.nodes_grey, of: verdicts.nodes }
        }
        (Up, Up) => Standing::Serving,
    }
}

impl Standing {
    /// Stable: what scripts look for.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Serving => "serving",
            Self::Degraded { .. } | Self::Grey { .. } => "degraded",
            Self::Kept => "kept",
            Self::Down => "down",
            Self::CutOff => "cut-off",
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("not known yet"),
            Self::Serving => f.write_str("serving"),
            Self::Degraded { down, of } => write!(f, "{down} of its {of} nodes are down, the others serve"),
            Self::Grey { grey, of } => {
                write!(f, "{grey} of its {of} nodes answer probes and fail users: they get less of what is new")
            }
            Self::Kept => f.write_str("its keyspace cannot be read: it serves as it was last known"),
            Self::Down => f.write_str("new connections go to other clusters, established ones are ended"),
            Self::CutOff => f.write_str(
                "every other cluster is down: it is probably this node that is cut off, and no connection is ended",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ClusterHealth::{Down, Unknown, Up};

    #[test]
    fn every_pair_of_verdicts_comes_to_one_standing() {
        let table = [
            (Up, Up, Standing::Serving),
            (Up, Down, Standing::Kept),
            (Up, Unknown, Standing::Unknown),
            (Unknown, Up, Standing::Unknown),
            (Unknown, Down, Standing::Unknown),
            (Unknown, Unknown, Standing::Unknown),
            (Down, Up, Standing::Down),
            (Down, Down, Standing::Down),
            (Down, Unknown, Standing::Down),
        ];
        for (data_plane, control_plane, expected) in table {
            let verdicts = Verdicts {
                control_plane,
                data_plane,
                nodes: 3,
                nodes_down: 0,
                nodes_grey: 0,
                cut_off: false,
            };
            assert_eq!(combine(&verdicts), expected, "{data_plane} {control_plane}");
            let cut_off = combine(&Verdicts { cut_off: true, ..verdicts });
            assert_eq!(cut_off == Standing::CutOff, data_plane == Down);
            let one_down = combine(&Verdicts { nodes_down: 1, ..verdicts });
            let degraded = Standing::Degraded { down: 1, of: 3 };
            assert_eq!(one_down, if expected == Standing::Serving { degraded } else { expected });
            let one_grey = combine(&Verdicts { nodes_grey: 1, ..verdicts });
            let grey = Standing::Grey { grey: 1, of: 3 };
            assert_eq!(one_grey, if expected == Standing::Serving { grey } else { expected });
            assert_eq!(combine(&Verdicts { nodes_grey: 1, nodes_down: 1, ..verdicts }), one_down);
        }
    }
}
