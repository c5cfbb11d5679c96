//! BFD held against RFC 5880: every transition, every discard, and two ends that talk over a path of the test's making.

mod packets;
mod pair;
mod table;
mod timing;

use std::num::{NonZeroU8, NonZeroU32};
use std::time::Duration;

use hawser_model::Time;

use super::*;

fn ms(ms: u64) -> Time {
    Time::from_millis(ms)
}

fn interval(ms: u64) -> Interval {
    Interval::from_duration(Duration::from_millis(ms))
}

fn config(discriminator: u32) -> SessionConfig {
    SessionConfig {
        local_discriminator: NonZeroU32::new(discriminator).unwrap(),
        desired_min_tx: interval(300),
        required_min_rx: interval(300),
        detect_mult: NonZeroU8::new(3).unwrap(),
        seed: u64::from(discriminator),
    }
}

/// From the peer whose discriminator is 2 to a session whose discriminator is 1.
fn says(state: State) -> ControlPacket {
    ControlPacket {
        diagnostic: Diagnostic::NONE,
        state,
        poll: false,
        is_final: false,
        control_plane_independent: false,
        demand: false,
        detect_mult: NonZeroU8::new(3).unwrap(),
        my_discriminator: NonZeroU32::new(2).unwrap(),
        your_discriminator: 1,
        desired_min_tx: interval(300),
        required_min_rx: interval(300),
        required_min_echo_rx: Interval::ZERO,
    }
}

fn drain(session: &mut Session) -> (Vec<ControlPacket>, Vec<Change>) {
    let (mut sent, mut changed) = (Vec::new(), Vec::new());
    while let Some(output) = session.poll_output() {
        match output {
            Output::Send(packet) => sent.push(packet),
            Output::Changed(change) => changed.push(change),
        }
    }
    (sent, changed)
}

/// A session in this state at `ms(0)`, with nothing left to say.
fn session_in(state: State) -> Session {
    let mut session = Session::new(config(1), ms(0));
    match state {
        State::Down => {}
        State::AdminDown => session.handle_admin(Admin::Down, ms(0)),
        State::Init => session.handle_packet(&says(State::Down), ms(0)).unwrap(),
        State::Up => session.handle_packet(&says(State::Init), ms(0)).unwrap(),
    }
    assert_eq!(session.state(), state);
    drain(&mut session);
    session
}
