//! The transition table of RFC 5880 §6.2 and §6.8.6, cell by cell: no state and no event is left out.

use State::{AdminDown, Down, Init, Up};

use super::*;

#[derive(Clone, Copy, Debug)]
enum Event {
    Receive(State),
    DetectionTimeExpires,
    TransmitTimeComes,
    Admin(Admin),
}

const NONE: Diagnostic = Diagnostic::NONE;
const EXPIRED: Diagnostic = Diagnostic::DETECTION_TIME_EXPIRED;
const SIGNALED: Diagnostic = Diagnostic::NEIGHBOR_SIGNALED_DOWN;
const ADMIN: Diagnostic = Diagnostic::ADMINISTRATIVELY_DOWN;

/// Row: event. Columns: AdminDown, Down, Init, Up. None: the state stays.
type Row = (Event, [Option<(State, Diagnostic)>; 4]);

const TABLE: [Row; 8] = [
    (Event::Receive(AdminDown), [None, None, Some((Down, SIGNALED)), Some((Down, SIGNALED))]),
    (Event::Receive(Down), [None, Some((Init, NONE)), None, Some((Down, SIGNALED))]),
    (Event::Receive(Init), [None, Some((Up, NONE)), Some((Up, NONE)), None]),
    (Event::Receive(Up), [None, None, Some((Up, NONE)), None]),
    (Event::DetectionTimeExpires, [None, None, Some((Down, EXPIRED)), Some((Down, EXPIRED))]),
    (Event::TransmitTimeComes, [None, None, None, None]),
    (
        Event::Admin(Admin::Down),
        [None, Some((AdminDown, ADMIN)), Some((AdminDown, ADMIN)), Some((AdminDown, ADMIN))],
    ),
    (Event::Admin(Admin::Up), [Some((Down, NONE)), None, None, None]),
];

fn act(session: &mut Session, event: Event, poll: bool, is_final: bool) {
    match event {
        Event::Receive(state) => {
            let packet = ControlPacket { poll, is_final, ..says(state) };
            let discarded = session.state() == AdminDown;
            assert_eq!(session.handle_packet(&packet, ms(1)).is_err(), discarded);
        }
        // Later than any detection time, and later than any transmit time.
        Event::DetectionTimeExpires => session.handle_timeout(ms(60_000)),
        Event::TransmitTimeComes => {
            let at = session.poll_deadline().filter(|deadline| deadline.timer == Timer::Transmit);
            session.handle_timeout(at.map_or(ms(1), |deadline| deadline.at));
        }
        Event::Admin(admin) => session.handle_admin(admin, ms(1)),
    }
}

#[test]
fn every_state_goes_where_the_rfc_says_on_every_event() {
    for (event, row) in TABLE {
        for (from, expected) in State::ALL.into_iter().zip(row) {
            for (poll, is_final) in [(false, false), (true, false), (false, true), (true, true)] {
                let mut session = session_in(from);
                act(&mut session, event, poll, is_final);
                let (sent, changed) = drain(&mut session);
                let cell = format!("{from} on {event:?}, poll {poll}, final {is_final}");
                let (to, diagnostic) = match expected {
                    Some(expected) => expected,
                    None => (from, session.diagnostic()),
                };
                assert_eq!((session.state(), session.diagnostic()), (to, diagnostic), "{cell}");
                let changes: Vec<_> = changed.iter().map(|change| (change.from, change.to)).collect();
                assert_eq!(changes, expected.iter().map(|(to, _)| (from, *to)).collect::<Vec<_>>(), "{cell}");
                // §6.8.7: what is new is said without waiting for the transmit timer.
                if expected.is_some() {
                    assert_eq!(sent.first().map(|packet| packet.state), Some(to), "{cell}");
                }
                // §6.8.6: a poll is answered at once, unless the packet was discarded; an answer is no poll.
                let polled = matches!(event, Event::Receive(_)) && poll && from != AdminDown;
                assert_eq!(
                    sent.iter().filter(|packet| packet.is_final).count(),
                    usize::from(polled),
                    "{cell}"
                );
                assert!(sent.iter().all(|packet| !(packet.poll && packet.is_final)), "{cell}");
            }
        }
    }
}

#[test]
fn the_table_has_every_event_for_every_state() {
    let received: Vec<_> = TABLE
        .iter()
        .filter_map(|(event, _)| match event {
            Event::Receive(state) => Some(*state),
            _ => None,
        })
        .collect();
    assert_eq!(received, State::ALL);
}

#[test]
fn a_packet_for_another_session_changes_nothing() {
    for from in State::ALL {
        let mut session = session_in(from);
        let packet = ControlPacket { your_discriminator: 9, poll: true, ..says(Down) };
        assert!(matches!(
            session.handle_packet(&packet, ms(1)),
            Err(Discard::Discriminator { theirs: 9, .. })
        ));
        assert_eq!((session.state(), drain(&mut session).0.len()), (from, 0));
    }
}

#[test]
fn admin_down_goes_on_being_said_and_tells_the_other_end_that_it_is_no_failure() {
    let mut session = session_in(Up);
    session.handle_admin(Admin::Down, ms(10));
    let mut said = drain(&mut session).0;
    for _ in 0..3 {
        let at = session.poll_deadline().unwrap().at;
        session.handle_timeout(at);
        said.extend(drain(&mut session).0);
    }
    assert!(said.len() >= 3);
    assert!(said.iter().all(|packet| packet.state == AdminDown && packet.diagnostic == ADMIN));
    let mut other = session_in(Up);
    other.handle_packet(&says(AdminDown), ms(10)).unwrap();
    let change = drain(&mut other).1[0];
    assert_eq!((change.to, change.remote_state), (Down, AdminDown));
}
