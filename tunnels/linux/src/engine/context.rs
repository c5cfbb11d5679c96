//! What changes of sessions need around them: the engine's parts, for as long as one thread uses them.

use super::counters::Counters;
use super::mmsg::SendBatch;
use super::sessions::Sessions;
use super::sockets::{Line, Sockets};
use crate::PrivateKey;
use crate::clock::Millis;

pub(crate) struct Context<'a> {
    pub(crate) own: &'a PrivateKey,
    pub(crate) sessions: &'a Sessions,
    pub(crate) out: &'a mut SendBatch,
    pub(crate) sockets: &'a Sockets,
    pub(crate) counters: &'a Counters,
    pub(crate) now: Millis,
}

impl Context<'_> {
    /// A batch with room for another datagram.
    pub(super) fn room(&mut self) -> &mut SendBatch {
        if !self.out.has_room() {
            self.out.flush(self.sockets, self.counters);
        }
        self.out
    }

    pub(super) fn put(&mut self, message: &[u8], to: Line) {
        let out = self.room();
        out.space()[..message.len()].copy_from_slice(message);
        out.push(message.len(), to);
    }
}
