//! Grey failures: probes are answered, users are not. What users' connections to a node came to, as a weight for it.
//!
//! A node whose users fail is not Down: it answers. It gets less of what is new, in steps ([`STEPS`]), never nothing: what
//! it gets still is how its recovery shows. A step down takes [`LEAST`] failures and two thirds of what was tried in
//! [`WINDOW`], and a window between two steps. Attempts that nobody answered count only when two clients at least made them:
//! one that is not let out by a policy must not speak for a node. A refused connection is the application's and never counts.
//!
//! A step up takes [`REST`] without failures, twice as long after each fall, up to five minutes: so in a time T there are at
//! most `6 + T / 320 s` falls, whatever the connections do.

use std::fmt;
use std::time::Duration;

use hawser_model::{HealthWord, Time};

use crate::NodeId;

/// What became of users' connections to one node: counters since whenever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Users {
    pub begun: u64,
    pub established: u64,
    /// Round trips with data.
    pub spoke: u64,
    /// Attempts without an answer for a second.
    pub late: u64,
    /// Established connections without an acknowledgement for more than a second.
    pub stalled: u64,
    pub closed: u64,
    /// Not a counter: clients that had late attempts in the last seconds.
    pub late_clients: u32,
}

/// Weights, from all of it downwards.
pub const STEPS: [u16; 3] = [HealthWord::FULL_WEIGHT, 64, 16];
/// What is looked at for a step.
pub const WINDOW: Duration = Duration::from_secs(5);
/// Fewer failures are no ground for a step.
pub const LEAST: u64 = 5;
/// Clients that attempts must have failed for.
const LEAST_CLIENTS: u32 = 2;
/// Without failures, for a step up.
pub const REST: Duration = Duration::from_secs(10);
const DOUBLINGS: u32 = 5;
/// So long without a fall, and one is forgotten.
const FORGIVEN: Duration = Duration::from_secs(320);
/// What users did this recently is evidence about their node.
pub(crate) const EVIDENCE: Duration = Duration::from_secs(60);
/// Parts of the window.
const PARTS: usize = 5;

/// Why a node has the weight that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    UsersFail {
        failed: u64,
        of: u64,
    },
    /// No probe of this many octets is answered.
    BlackHole {
        octets: u16,
    },
    /// A step back up.
    Quiet(Duration),
    /// By an earlier run, for a reason that it took along.
    Left,
    Well,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UsersFail { failed, of } => write!(
                f,
                "users' connections time out ({failed} of {of} in {} s), probes are answered",
                WINDOW.as_secs()
            ),
            Self::BlackHole { octets } => write!(
                f,
                "packets of {octets} octets do not arrive, small ones do (an MTU black hole on the way). fix: lower `mtu` in agent.yaml at both ends"
            ),
            Self::Quiet(d) => write!(f, "no user's connection failed for {} s", d.as_secs()),
            Self::Left => {
                f.write_str("the agent's last run found it so, and nothing has shown otherwise since")
            }
            Self::Well => f.write_str("users' connections and packets of every size arrive"),
        }
    }
}

/// A node's weight, as it follows from all that is known besides its liveness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greyness {
    pub node: NodeId,
    /// In 256ths; never 0.
    pub weight: u16,
    pub why: Why,
    pub at: Time,
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    failed: u64,
    succeeded: u64,
}

/// What one look at the counters shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Something came back from there since this moment at the latest.
    pub(crate) alive_since: Option<Time>,
    /// Users tried something.
    pub(crate) used: bool,
}

/// One node's users. O(1) per look.
#[derive(Clone, Debug)]
pub(crate) struct Grey {
    /// The counters at the last look; none before the first.
    last: Option<(Users, Time)>,
    parts: [Part; PARTS],
    /// The part that is being filled, counted since [`Time::ZERO`].
    part: u64,
    step: usize,
    /// The newest failures that were more than successes' noise.
    failing: Time,
    fell: Time,
    /// The last step down.
    lowered: Time,
    falls: u32,
    evidence: Option<Time>,
    pub(crate) why: Why,
}

impl Grey {
    /// The counters as they are now: what was before is not known.
    pub(crate) fn new(users: Users, now: Time) -> Self {
        Self { last: Some((users, now)), ..Self::unseen(now) }
    }

    /// With the weight that an earlier run left. It goes as any other: by [`REST`] without failures.
    pub(crate) fn left(weight: u16, now: Time) -> Self {
        let step = STEPS.iter().rposition(|step| *step >= weight).unwrap_or_default();
        Self { step, falls: 1, why: Why::Left, ..Self::unseen(now) }
    }

    fn unseen(now: Time) -> Self {
        Self {
            last: None,
            parts: Default::default(),
            part: Self::part_of(now),
            step: 0,
            failing: now,
            fell: now,
            lowered: now,
            falls: 0,
            evidence: None,
            why: Why::Well,
        }
    }

    fn part_of(now: Time) -> u64 {
        let part = (WINDOW / PARTS as u32).as_nanos();
        u64::try_from(now.since(Time::ZERO).as_nanos() / part).unwrap_or(u64::MAX)
    }

    pub(crate) fn weight(&self) -> u16 {
        STEPS[self.step]
    }

    /// Whether users said anything lately.
    pub(crate) fn is_evidence(&self, now: Time) -> bool {
        self.evidence.is_some_and(|at| now.since(at) < EVIDENCE)
    }

    /// It was down, and is judged anew. How often it fell is remembered.
    pub(crate) fn forget(&mut self) {
        (self.parts, self.step, self.why, self.evidence) = (Default::default(), 0, Why::Well, None);
    }

    pub(crate) fn look(&mut self, users: Users, now: Time) -> Seen {
        let Some((before, at)) = self.last.replace((users, now)) else {
            return Seen { alive_since: None, used: false };
        };
        let grown = |of: fn(&Users) -> u64| of(&users).saturating_sub(of(&before));
        let (begun, established, spoke) = (grown(|u| u.begun), grown(|u| u.established), grown(|u| u.spoke));
        let late = if users.late_clients >= LEAST_CLIENTS { grown(|u| u.late) } else { 0 };
        let failed = late + grown(|u| u.stalled);
        // A round trip stands for one connection, and no more of them than there are.
        let open = users.established.saturating_sub(users.closed);
        self.turn(now);
        let part = &mut self.parts[(self.part % PARTS as u64) as usize];
        part.failed += failed;
        part.succeeded += established + spoke.min(open);
        let used = begun + established + spoke + failed > 0;
        if established + spoke + failed > 0 {
            self.evidence = Some(now);
        }
        Seen { alive_since: (established + spoke > 0).then_some(at), used }
    }

    /// Parts that were left behind are empty.
    fn turn(&mut self, now: Time) {
        let part = Self::part_of(now);
        for passed in 0..part.saturating_sub(self.part).min(PARTS as u64) {
            self.parts[((part - passed) % PARTS as u64) as usize] = Part::default();
        }
        self.part = self.part.max(part);
    }

    /// Takes the step that is due; true when it did.
    pub(crate) fn judge(&mut self, now: Time) -> bool {
        self.turn(now);
        let failed: u64 = self.parts.iter().map(|part| part.failed).sum();
        let of = failed + self.parts.iter().map(|part| part.succeeded).sum::<u64>();
        if failed * 3 > of {
            self.failing = now;
        }
        let rested = self.step == 0 || now.since(self.lowered) >= WINDOW;
        if rested && failed >= LEAST && failed * 3 >= of * 2 && self.step + 1 < STEPS.len() {
            if self.step == 0 {
                let forgiven = now.since(self.fell).as_secs() / FORGIVEN.as_secs();
                let forgiven = u32::try_from(forgiven).unwrap_or(u32::MAX);
                self.falls = (self.falls.saturating_sub(forgiven) + 1).min(DOUBLINGS + 1);
                self.fell = now;
            }
            self.step += 1;
            self.lowered = now;
            self.why = Why::UsersFail { failed, of };
            return true;
        }
        let rest = REST * (1 << self.falls.saturating_sub(1).min(DOUBLINGS));
        if self.step > 0 && now.since(self.failing) >= rest {
            self.step -= 1;
            self.failing = now;
            self.why = if self.step == 0 { Why::Well } else { Why::Quiet(rest) };
            return true;
        }
        false
    }
}
