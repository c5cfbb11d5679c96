//! Intervals, polls and silence, one rule of RFC 5880 §6.5, §6.8.3, §6.8.4 and §6.8.7 at a time.

use super::*;

fn next_send(session: &mut Session) -> (Time, Vec<ControlPacket>) {
    loop {
        let at = session.poll_deadline().unwrap().at;
        session.handle_timeout(at);
        let sent = drain(session).0;
        if !sent.is_empty() {
            return (at, sent);
        }
    }
}

#[test]
fn not_up_it_says_and_keeps_a_second() {
    let mut session = Session::new(config(1), ms(0));
    let (_, sent) = next_send(&mut session);
    assert_eq!(sent[0].desired_min_tx, interval(1_000));
    assert_eq!(session.transmit_interval(), Some(Duration::from_secs(1)));
    assert!(!sent[0].poll);
}

#[test]
fn up_it_polls_for_its_faster_interval_until_the_final_comes() {
    let mut session = Session::new(config(1), ms(0));
    drain(&mut session);
    session.handle_packet(&says(State::Init), ms(10)).unwrap();
    let (sent, _) = drain(&mut session);
    assert!(sent[0].poll && sent[0].desired_min_tx == interval(300), "{sent:?}");
    assert_eq!(session.transmit_interval(), Some(Duration::from_millis(300)), "faster at once");
    assert!(next_send(&mut session).1[0].poll, "until it is answered");
    session.handle_packet(&ControlPacket { is_final: true, ..says(State::Up) }, ms(400)).unwrap();
    assert!(!next_send(&mut session).1[0].poll);
}

#[test]
fn a_slower_sender_keeps_its_pace_and_a_faster_receiver_its_patience_until_the_poll_ends() {
    let mut session = session_in(State::Up);
    session
        .handle_packet(
            &ControlPacket { is_final: true, desired_min_tx: interval(100), ..says(State::Up) },
            ms(1),
        )
        .unwrap();
    session.handle_intervals(interval(2_000), interval(100), ms(2));
    assert_eq!(session.transmit_interval(), Some(Duration::from_millis(300)));
    assert_eq!(session.detection_time(), Some(Duration::from_millis(900)));
    let (_, sent) = next_send(&mut session);
    assert!(
        sent[0].poll && sent[0].desired_min_tx == interval(2_000) && sent[0].required_min_rx == interval(100)
    );
    session
        .handle_packet(
            &ControlPacket { is_final: true, desired_min_tx: interval(100), ..says(State::Up) },
            ms(400),
        )
        .unwrap();
    assert_eq!(session.transmit_interval(), Some(Duration::from_millis(2_000)));
    assert_eq!(session.detection_time(), Some(Duration::from_millis(300)));
}

#[test]
fn a_change_during_a_poll_polls_once_more() {
    let mut session = session_in(State::Up);
    session.handle_packet(&ControlPacket { is_final: true, ..says(State::Up) }, ms(1)).unwrap();
    session.handle_intervals(interval(400), interval(300), ms(2));
    session.handle_intervals(interval(500), interval(300), ms(3));
    session.handle_packet(&ControlPacket { is_final: true, ..says(State::Up) }, ms(4)).unwrap();
    assert!(next_send(&mut session).1[0].poll, "the final may have answered the first change");
    session.handle_packet(&ControlPacket { is_final: true, ..says(State::Up) }, ms(600)).unwrap();
    assert!(!next_send(&mut session).1[0].poll);
    assert_eq!(session.transmit_interval(), Some(Duration::from_millis(500)));
}

#[test]
fn a_peer_that_wants_nothing_gets_nothing_but_the_answer_to_its_poll() {
    let mut session = session_in(State::Up);
    let quiet = ControlPacket { required_min_rx: Interval::ZERO, ..says(State::Up) };
    session.handle_packet(&quiet, ms(1)).unwrap();
    assert_eq!(session.poll_deadline().map(|deadline| deadline.timer), Some(Timer::Detect));
    assert_eq!(drain(&mut session).0, []);
    session.handle_packet(&ControlPacket { poll: true, ..quiet }, ms(2)).unwrap();
    assert!(drain(&mut session).0.iter().all(|packet| packet.is_final));
    session.handle_packet(&says(State::Up), ms(3)).unwrap();
    assert!(session.poll_deadline().is_some_and(|deadline| deadline.timer == Timer::Transmit));
}

#[test]
fn in_the_peers_demand_mode_only_polls_are_sent() {
    let mut session = session_in(State::Up);
    session.handle_packet(&ControlPacket { demand: true, is_final: true, ..says(State::Up) }, ms(1)).unwrap();
    session.handle_timeout(ms(500));
    assert_eq!(drain(&mut session).0, []);
    session.handle_intervals(interval(200), interval(200), ms(501));
    session.handle_timeout(ms(801));
    assert!(drain(&mut session).0.iter().all(|packet| packet.poll));
}

#[test]
fn after_a_silence_the_other_ends_discriminator_is_forgotten() {
    let mut session = session_in(State::Up);
    let before = next_send(&mut session).1;
    assert_eq!(before[0].your_discriminator, 2);
    session.handle_timeout(ms(5_000));
    assert_eq!(session.state(), State::Down);
    assert!(drain(&mut session).0.iter().all(|packet| packet.your_discriminator == 0));
}

#[test]
fn a_detect_mult_of_one_leaves_room_for_jitter() {
    let mut session = Session::new(SessionConfig { detect_mult: NonZeroU8::MIN, ..config(1) }, ms(0));
    let mut last = next_send(&mut session).0;
    for _ in 0..500 {
        let at = next_send(&mut session).0;
        let step = at.since(last).as_millis();
        assert!((750..=900).contains(&step), "{step}");
        last = at;
    }
}
