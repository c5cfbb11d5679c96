//! Handshakes between the peers of this engine: who may ask, how often, and what comes of an answer.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::Rng;

use super::counters::Reason;
use super::peer::{Context, Control, Peer};
use super::sessions::Sessions;
use super::sockets::Line;
use super::state::State;
use crate::clock::Millis;
use crate::noise::cookie::Refused;
use crate::noise::handshake::{self, Initiated, Keys, Stamp};
use crate::noise::primitives::Forged;
use crate::noise::session::Session;
use crate::noise::{COOKIE_LENGTH, INITIATION_LENGTH, Kind, REKEY_TIMEOUT, RESPONSE_LENGTH, receiver};

/// Between two initiations of one peer (the kernel's `INITIATIONS_PER_SECOND`).
const BETWEEN: Duration = Duration::from_millis(20);
/// Added to retries, so that two ends that ask at the same time stop doing so (§6.1).
const JITTER: u64 = 334;

/// A handshake that waits for its answer.
pub(crate) struct Pending {
    pub(super) initiated: Initiated,
    /// The first try's time.
    pub(super) first: Millis,
    pub(super) again: Millis,
}

impl Peer {
    /// Sends an initiation; of one that is under way a new try.
    pub(super) fn initiate(self: &Arc<Self>, control: &mut Control, context: &mut Context<'_>) {
        let Some(at) = control.endpoint.filter(|_| !control.is_removed()) else { return };
        let first = control.pending.as_ref().map_or(context.now, |pending| pending.first);
        control.drop_pending(context.sessions);
        let index = context.sessions.reserve(self);
        let mut message = [0; INITIATION_LENGTH];
        control.stamped = Stamp::after(control.stamped, SystemTime::now());
        let stamp = control.stamped;
        let initiated = control.keys(context.own, &self.key).and_then(|(statics, _)| {
            handshake::initiate(context.own, &self.key, &statics, self.lane, index, stamp, &mut message)
        });
        // What keeps this from working (a peer's key of low order) will keep it from working.
        let Ok(initiated) = initiated else {
            context.sessions.remove(index);
            return context.counters.count(Reason::HandshakeRefused);
        };
        control.jar.stamp(&mut message, context.now);
        let jitter = Duration::from_millis(rand::rng().random_range(0..JITTER));
        let again = context.now + REKEY_TIMEOUT + jitter;
        control.pending = Some(Box::new(Pending { initiated, first, again }));
        control.asked = context.now;
        self.put(context, &message, Line { lane: self.lane, at });
    }

    fn put(&self, context: &mut Context<'_>, message: &[u8], to: Line) {
        context.put(message, to);
        self.note_sent(message.len(), false, context.now);
    }

    /// For the lane that it came by, which is made only once the peer has shown who it is.
    fn answer(
        self: &Arc<Self>,
        context: &mut Context<'_>,
        opened: handshake::Opened,
        from: Line,
    ) -> Result<(), Reason> {
        let (statics, _) = self.lock().keys(context.own, &self.key).map_err(refused)?;
        let verified = opened.verify(&statics).map_err(refused)?;
        self.lane(from.lane).ok_or(Reason::HandshakeRefused)?.respond(context, verified, from)
    }

    fn respond(
        self: &Arc<Self>,
        context: &mut Context<'_>,
        verified: handshake::Verified,
        from: Line,
    ) -> Result<(), Reason> {
        let mut control = self.lock();
        let (_, preshared) = control.keys(context.own, &self.key).map_err(refused)?;
        let soon = context.now.since(control.was_asked) < BETWEEN;
        if control.is_removed() || verified.stamp <= control.newest || soon {
            return Err(Reason::HandshakeRefused);
        }
        (control.newest, control.was_asked) = (verified.stamp, context.now);
        let index = context.sessions.reserve(self);
        let mut message = [0; RESPONSE_LENGTH];
        let keys = handshake::respond(verified, &preshared, index, &mut message);
        let session = match keys.and_then(|keys| make(context.sessions, keys, false, context.now)) {
            Ok(session) => session,
            Err(forged) => {
                context.sessions.remove(index);
                return Err(refused(forged));
            }
        };
        self.offer(&mut control, context.sessions, session);
        control.jar.stamp(&mut message, context.now);
        self.relocate(&mut control, from.at);
        self.note_received(INITIATION_LENGTH, false, context.now);
        self.put(context, &message, from);
        Ok(())
    }

    fn finish(
        self: &Arc<Self>,
        context: &mut Context<'_>,
        message: &[u8; RESPONSE_LENGTH],
        from: Line,
    ) -> Result<(), Reason> {
        if from.lane != self.lane {
            return Err(Reason::HandshakeRefused);
        }
        let mut control = self.lock();
        let (_, preshared) = control.keys(context.own, &self.key).map_err(refused)?;
        let pending = control.pending.as_ref();
        let index = receiver(message, Kind::Response);
        let pending = pending.filter(|pending| pending.initiated.index == index).ok_or(Reason::NoSession)?;
        let keys =
            handshake::finish(&pending.initiated, context.own, &preshared, message).map_err(refused)?;
        let session = make(context.sessions, keys, true, context.now).map_err(refused)?;
        // Its index is the session's now.
        control.pending = None;
        self.moved(&mut control, Some(from.at));
        self.note_received(RESPONSE_LENGTH, false, context.now);
        self.begin(&mut control, context, session);
        Ok(())
    }
}

/// A handshake message or a cookie, of nobody in particular. Costs a hash for a stranger, and up to four curve operations
/// for a peer.
pub(super) fn receive(
    state: &State,
    context: &mut Context<'_>,
    kind: Kind,
    datagram: &[u8],
    from: Line,
) -> Result<(), Reason> {
    if kind == Kind::Cookie {
        let reply: &[u8; COOKIE_LENGTH] = datagram.try_into().map_err(|_| Reason::Malformed)?;
        let peer = context.sessions.peer(receiver(datagram, kind)).ok_or(Reason::NoSession)?;
        let taken = peer.lock().jar.take(reply, context.now);
        return taken.map_err(refused);
    }
    match state.guard.check(datagram, from.at, context.now) {
        Ok(()) => {}
        Err(Refused::Stranger) => return Err(Reason::HandshakeRefused),
        Err(Refused::TooOften) => return Err(Reason::RateLimited),
        Err(Refused::ShowCookie(reply)) => {
            context.put(&reply, from);
            return Err(Reason::RateLimited);
        }
    }
    if kind == Kind::Initiation {
        let message = datagram.try_into().map_err(|_| Reason::Malformed)?;
        let opened = handshake::open(context.own, message, from.lane).map_err(refused)?;
        let peer = state.peers.get(&opened.claims).ok_or(Reason::HandshakeRefused)?;
        peer.answer(context, opened, from)
    } else {
        let message = datagram.try_into().map_err(|_| Reason::Malformed)?;
        let peer = context.sessions.peer(receiver(datagram, kind)).ok_or(Reason::NoSession)?;
        peer.finish(context, message, from)
    }
}

fn make(sessions: &Sessions, keys: Keys, initiator: bool, now: Millis) -> Result<Arc<Session>, Forged> {
    let session = Arc::new(Session::new(keys, initiator, now)?);
    sessions.fulfil(&session);
    Ok(session)
}

fn refused(Forged: Forged) -> Reason {
    Reason::HandshakeRefused
}
