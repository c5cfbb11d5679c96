//! The two-level choice: first the cluster, by tier, weight and health, then a backend of its slice.
//!
//! Every slice has a *tier*: affinity, a cluster order, zones, draining and their fallbacks are nothing else by the time they
//! are here; a cluster has as many slices as its backends have tiers. The lowest tier that yields a healthy backend gets the
//! connection. Where no tier does, the choice is made once more with health ignored: *panic mode*, counted.
//!
//! One pass over the slices finds the lowest tier with a healthy cluster and draws one of its clusters by weight (a
//! reservoir of one). Then that slice's backends are probed ([`STARTS`] random looks, then in order, up to [`PROBES`]),
//! then those of the tier's next cluster, until all had their turn; then comes the next tier: **whenever a healthy backend
//! lies within those looks, a healthy one is chosen.**
//!
//! Cost: one hash look-up, two array look-ups per slice, usually two more for the backend. No locks.
//!
//! Reading while the agent writes: runs are written first, then the service entry is replaced. Every slot names its
//! service and generation, so a reader whose run was reused under it finds out, starts again once, and then gives up
//! without touching the connection.

use hawser_ebpf_abi::{
    Addr, BACKEND_DRAINING, Backend, CONFIG_OWN_STALE, Config, HEALTH_FULL_WEIGHT, MAX_SLICES, Port, Reason,
    Service, ServiceKey, Slice, TIERS,
};

use crate::pin::{Held, Wanted, held, held_in_slice};
use crate::random::{self, below};
use crate::{forgotten, weight_of};

/// Slices drawn from per [`Tables::draw`]. The verifier walks every path of every round of a loop; this many it walks in
/// milliseconds.
pub const CHUNK: u32 = 16;
/// Random places of a slice that are looked at first: the neighbours of a dead backend do not inherit its load.
pub const STARTS: u32 = 4;
/// The most backends of one slice looked at in order after that, before the next cluster gets its turn.
pub const PROBES: u32 = 64;
/// With health and without; twice, for a reader that was overtaken starts again.
const TURNS: u32 = 2 * 2 + 1;

/// Look-ups in the maps. A word that was never written is 0: callers return [`unset_is_up`] for it.
pub trait Tables {
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    fn slice(&self, at: u32) -> Option<Slice>;
    fn backend(&self, at: u32) -> Option<Backend>;
    fn cluster_word(&self, cluster: u16) -> u32;
    fn node_word(&self, slot: u32) -> u32;

    /// All tiers, one tier, and its two halves. The kernel programs override them with calls of functions that the verifier checks
    /// once each, with unknown arguments: so it neither walks them at every call nor knows how the loops around branched.
    fn pick(&self, query: Query) -> Probe {
        pick(self, query)
    }

    fn pick_in_tier(&self, query: Query) -> Probe {
        pick_in_tier(self, query)
    }

    fn draw(&self, query: Query, so_far: Draw) -> Option<Draw> {
        draw(self, query, so_far)
    }

    fn probe(&self, query: Query, drawn: Draw, turn: u16) -> Probe {
        probe(self, query, drawn.start, drawn.tier, turn)
    }

    /// Whether a service still has a backend, and whether one slice has it.
    fn held(&self, wanted: Wanted) -> Held {
        held(self, wanted)
    }

    fn held_in_slice(&self, wanted: Wanted) -> Held {
        held_in_slice(self, wanted)
    }
}

/// Slot 0 of `node_health` is "no node", and a word nobody has written yet is no verdict: both count as up.
#[inline(always)]
pub const fn unset_is_up(word: u32) -> u32 {
    if word == 0 { HEALTH_FULL_WEIGHT } else { word }
}

/// How a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Go there. The reason says whether health had to be ignored.
    Backend { addr: Addr, port: Port, cluster: u16, reason: Reason },
    /// Leave it as it is.
    Untouched(Reason),
}

/// The own cluster when its keyspace is stale; 0, which is no cluster, otherwise.
#[inline(always)]
pub(crate) const fn stale_cluster(config: &Config) -> u16 {
    if config.flags & CONFIG_OWN_STALE != 0 { config.own_cluster } else { 0 }
}

/// Chooses a backend of `key`, whose entry was `found` just now.
#[inline(always)]
pub fn choose<T: Tables + ?Sized>(
    tables: &T,
    key: &ServiceKey,
    found: Service,
    config: &Config,
    seed: u64,
) -> Choice {
    let mut service = found;
    let mut torn = service.check != key.check();
    let mut panic = 0;
    let mut overtaken = 0;
    // Each turn ignores health from now on, or starts again once.
    for _ in 0..TURNS {
        if torn {
            if overtaken == 1 {
                return Choice::Untouched(Reason::ConnectTorn);
            }
            overtaken = 1;
            panic = 0;
            let Some(again) = tables.service(key) else { return Choice::Untouched(Reason::ConnectOther) };
            service = again;
            torn = service.check != key.check();
            continue;
        }
        // Nearly always the first tier has one: the loop over the others is a call that is not made.
        let query = Query::new(&service, config, panic, seed);
        let picked = match tables.pick_in_tier(query) {
            Probe::NextTier { from } => tables.pick(Query { tier: from, ..query }),
            done => done,
        };
        match picked {
            Probe::OwnStale => return Choice::Untouched(Reason::ConnectOwnStale),
            Probe::Backend { at } => match tables.backend(at) {
                Some(b) if b.service == service.id => {
                    let reason = if panic != 0 {
                        Reason::ConnectPanic
                    } else if b.flags & BACKEND_DRAINING != 0 {
                        Reason::ConnectDraining
                    } else {
                        Reason::ConnectChosen
                    };
                    return Choice::Backend { addr: b.addr, port: b.port, cluster: b.cluster, reason };
                }
                _ => torn = true,
            },
            Probe::Torn => torn = true,
            Probe::Nothing | Probe::GoOn | Probe::NextTier { .. } => {
                if panic != 0 {
                    break;
                }
                panic = 1;
            }
        }
    }
    Choice::Untouched(if torn { Reason::ConnectTorn } else { Reason::ConnectNoBackend })
}

/// Tier by tier, the first backend.
#[inline(always)]
pub fn pick<T: Tables + ?Sized>(tables: &T, query: Query) -> Probe {
    let mut tier = query.tier;
    for _ in 0..TIERS {
        match tables.pick_in_tier(Query { tier, ..query }) {
            Probe::NextTier { from } => tier = from,
            done => return done,
        }
    }
    Probe::Nothing
}

/// One tier, the lowest from the query's on that has a healthy cluster: draw a cluster by weight, then look for a backend
/// from there on, in a circle over the tier's slices.
#[inline(always)]
pub fn pick_in_tier<T: Tables + ?Sized>(tables: &T, query: Query) -> Probe {
    let slices = query.slices_len as u32;
    let mut drawn = Draw { total: 0, tier: TIERS as u16, start: 0, next: 0 };
    for _ in 0..MAX_SLICES / CHUNK {
        if drawn.next as u32 >= slices {
            break;
        }
        let Some(further) = tables.draw(query, drawn) else { return Probe::Torn };
        drawn = further;
    }
    if drawn.total == 0 {
        return Probe::Nothing;
    }
    for turn in 0..MAX_SLICES {
        match tables.probe(query, drawn, turn as u16) {
            Probe::GoOn => {}
            done => return done,
        }
    }
    Probe::NextTier { from: drawn.tier + 1 }
}

/// What one tier needs to know, small enough to travel as four integers (see [`Tables::draw`]).
///
/// Numbers instead of flags: a condition that is the same for every slice would be hoisted out of the loops by the
/// compiler, and the verifier would then walk each loop once per combination.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    id: u32,
    generation: u32,
    slices_at: u32,
    slices_len: u16,
    /// The own cluster when its keyspace is stale; 0, which is no cluster, otherwise.
    stale: u16,
    /// Lower tiers have had their turn.
    tier: u16,
    /// The health weight that counts at least: 0, or everything when health is ignored.
    floor: u16,
    seed: u64,
}

impl Query {
    #[inline(always)]
    fn new(service: &Service, config: &Config, panic: u32, seed: u64) -> Self {
        Self {
            id: service.id,
            generation: service.generation,
            slices_at: service.slices_at,
            slices_len: service.slices_len,
            stale: stale_cluster(config),
            tier: 0,
            floor: (panic * HEALTH_FULL_WEIGHT) as u16,
            seed,
        }
    }

    #[inline(always)]
    pub const fn pack(&self) -> [u64; 4] {
        [
            (self.id as u64) << 32 | self.generation as u64,
            (self.slices_at as u64) << 32 | (self.slices_len as u64) << 16 | self.stale as u64,
            (self.tier as u64) << 16 | self.floor as u64,
            self.seed,
        ]
    }

    #[inline(always)]
    pub const fn unpack(id: u64, run: u64, tier: u64, seed: u64) -> Self {
        Self {
            id: (id >> 32) as u32,
            generation: id as u32,
            slices_at: (run >> 32) as u32,
            slices_len: (run >> 16) as u16,
            stale: run as u16,
            tier: (tier >> 16) as u16,
            floor: tier as u16,
            seed,
        }
    }

    /// The slice's weight as its cluster's health leaves it. At most 2^24.
    #[inline(always)]
    fn weight<T: Tables + ?Sized>(&self, tables: &T, slice: &Slice) -> u64 {
        slice.weight as u64 * self.health(tables.cluster_word(slice.cluster), slice)
    }

    /// How much a health word leaves of a weight of this slice.
    #[inline(always)]
    fn health(&self, word: u32, slice: &Slice) -> u64 {
        let floor = (self.floor | slice.floor) as u32;
        let left = weight_of(word);
        if left < floor { floor as u64 } else { left as u64 }
    }

    /// The slice at an offset of the run; none when the run was reused.
    #[inline(always)]
    fn slice<T: Tables + ?Sized>(&self, tables: &T, offset: u32) -> Option<Slice> {
        tables
            .slice(self.slices_at.wrapping_add(offset))
            .filter(|slice| slice.service == self.id && slice.generation == self.generation)
    }
}

/// A reservoir of one, part of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// At most 512 slices of weight 2^24: 2^33.
    total: u64,
    /// The lowest that was met; [`TIERS`] before the first.
    tier: u16,
    start: u16,
    next: u16,
}

impl Draw {
    const TORN: u64 = u64::MAX;

    #[inline(always)]
    pub const fn pack(draw: Option<Self>) -> u64 {
        match draw {
            None => Self::TORN,
            Some(draw) => {
                draw.total << 29
                    | (draw.tier as u64 & 0x1f) << 24
                    | (draw.start as u64 & 0xfff) << 12
                    | draw.next as u64 & 0xfff
            }
        }
    }

    #[inline(always)]
    pub const fn unpack(packed: u64) -> Option<Self> {
        if packed == Self::TORN {
            return None;
        }
        Some(Self {
            total: packed >> 29,
            tier: (packed >> 24 & 0x1f) as u16,
            start: (packed >> 12 & 0xfff) as u16,
            next: (packed & 0xfff) as u16,
        })
    }

    /// Where to probe, small enough to travel with a turn: start and tier.
    #[inline(always)]
    pub const fn place(&self, turn: u16) -> u64 {
        (self.tier as u64) << 32 | (self.start as u64) << 16 | turn as u64
    }
}

/// Offers the next slices to the reservoir; none when the run was reused.
#[inline(always)]
pub fn draw<T: Tables + ?Sized>(tables: &T, query: Query, so_far: Draw) -> Option<Draw> {
    let Draw { mut total, mut tier, mut start, mut next } = so_far;
    for _ in 0..CHUNK {
        if next >= query.slices_len {
            break;
        }
        let slice = query.slice(tables, next as u32)?;
        let mine = slice.tier >= query.tier && slice.tier <= tier;
        let weight = if mine { query.weight(tables, &slice) } else { 0 };
        if weight != 0 {
            // A lower tier than any before begins the draw anew.
            if slice.tier < tier {
                total = 0;
            }
            tier = slice.tier;
            total += weight;
            // The n-th candidate replaces the earlier ones with probability weight / total. The total is at most 2^33 and
            // the draw has 30 bits, so the product fits.
            // By cluster, not by place: a client that draws the same again must not mind who else is there.
            let drawn = (random::draw(query.seed, slice.cluster as u64) >> 2) as u64;
            if (drawn * total) >> 30 < weight {
                start = next;
            }
        }
        next += 1;
    }
    Some(Draw { total, tier, start, next })
}

/// The outcome of a tier, or of one slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// No tier from here on has a healthy cluster.
    Nothing,
    /// This slice has none.
    GoOn,
    /// No slice of the tier has any; tiers from this one on are left.
    NextTier { from: u16 },
    /// The own cluster's turn, and its keyspace is stale.
    OwnStale,
    /// A slot belongs to somebody else by now.
    Torn,
    /// Index in `backends`.
    Backend { at: u32 },
}

impl Probe {
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::OwnStale => 1 << 32,
            Self::Torn => 2 << 32,
            Self::Backend { at } => 3 << 32 | at as u64,
            Self::GoOn => 4 << 32,
            Self::NextTier { from } => 5 << 32 | from as u64,
        }
    }

    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        match packed >> 32 {
            1 => Self::OwnStale,
            2 => Self::Torn,
            3 => Self::Backend { at: packed as u32 },
            4 => Self::GoOn,
            5 => Self::NextTier { from: packed as u16 },
            _ => Self::Nothing,
        }
    }
}

/// Looks for a backend in the slice that is `turn` places on from `start`, if it is of this tier.
///
/// That the circle is closed is said here and not where the turns are counted, so that the count stays a constant there.
#[inline(always)]
pub fn probe<T: Tables + ?Sized>(tables: &T, query: Query, start: u16, tier: u16, turn: u16) -> Probe {
    let slices = query.slices_len as u32;
    if turn as u32 >= slices {
        return Probe::NextTier { from: tier + 1 };
    }
    let offset = start as u32 + turn as u32;
    let offset = if offset >= slices { offset - slices } else { offset };
    let Some(slice) = query.slice(tables, offset) else { return Probe::Torn };
    if slice.tier != tier || query.weight(tables, &slice) == 0 {
        return Probe::GoOn;
    }
    if slice.cluster == query.stale {
        return Probe::OwnStale;
    }
    for look in 0..STARTS + PROBES {
        let len = forgotten(slice.backends_len, query.seed);
        // Looks 0 to STARTS - 1 are at random places; the last of them begins the walk, which ends after `len`.
        if look > STARTS - 1 && look - (STARTS - 1) >= len {
            break;
        }
        let at = slice.backends_at.wrapping_add(place(query.seed, slice.cluster, look, len));
        let Some(backend) = tables.backend(at) else { return Probe::Torn };
        if backend.service != query.id || backend.generation != slice.backends_generation {
            return Probe::Torn;
        }
        let left = query.health(tables.node_word(backend.node), &slice);
        if left != 0 && (look >= STARTS - 1 || left > asked(query.seed, slice.cluster, look)) {
            return Probe::Backend { at };
        }
    }
    Probe::GoOn
}

/// What a node's weight has to exceed to be taken at one of the first random looks: so a node whose weight was lowered gets
/// about its part, and all of it where there is nothing else.
#[inline(always)]
fn asked(seed: u64, cluster: u16, look: u32) -> u64 {
    // Indices behind those of all the looks.
    let index = (MAX_SLICES * (1 + STARTS) + cluster as u32 * STARTS + look) as u64;
    (random::draw(seed, index) >> 24) as u64
}

/// Where in a slice of `len` the n-th look goes: a few random places, then on in order from the last of them.
#[inline(always)]
fn place(seed: u64, cluster: u16, look: u32, len: u32) -> u32 {
    let (start, on) = if look < STARTS { (look, 0) } else { (STARTS - 1, look - (STARTS - 1)) };
    // Indices from MAX_SLICES on belong to no cluster's weight draw.
    let index = (MAX_SLICES + cluster as u32 * STARTS + start) as u64;
    let place = below(random::draw(seed, index), len) + on;
    if place >= len { place - len } else { place }
}
