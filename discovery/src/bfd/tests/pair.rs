//! Two sessions over a path with a delay, a loss and a cut.

use super::*;

struct Pair {
    ends: [Session; 2],
    now: Time,
    delay: Duration,
    cut: bool,
    /// Of a hundred packets.
    lost: u32,
    random: Random,
    flying: Vec<(Time, usize, ControlPacket)>,
    changes: Vec<(usize, Change)>,
    sent: [u32; 2],
}

impl Pair {
    fn new(first: SessionConfig, second: SessionConfig) -> Self {
        Self {
            ends: [Session::new(first, ms(0)), Session::new(second, ms(0))],
            now: ms(0),
            delay: Duration::from_millis(20),
            cut: false,
            lost: 0,
            random: Random::seeded(7),
            flying: Vec::new(),
            changes: Vec::new(),
            sent: [0; 2],
        }
    }

    fn up() -> Self {
        let mut pair = Self::new(config(1), config(2));
        pair.run(10_000);
        assert_eq!(pair.states(), [State::Up; 2]);
        pair.changes.clear();
        pair
    }

    fn drain(&mut self) {
        for end in 0..2 {
            let (sent, changed) = drain(&mut self.ends[end]);
            self.changes.extend(changed.into_iter().map(|change| (end, change)));
            for packet in sent {
                self.sent[end] += 1;
                if !self.cut && self.random.between(0, 99) >= self.lost {
                    self.flying.push((self.now + self.delay, 1 - end, packet));
                }
            }
        }
    }

    fn run(&mut self, for_ms: u64) {
        let end = self.now + Duration::from_millis(for_ms);
        self.drain();
        loop {
            let timers = self.ends.iter().filter_map(Session::poll_deadline).map(|deadline| deadline.at);
            let Some(next) =
                timers.chain(self.flying.iter().map(|(at, ..)| *at)).min().filter(|at| *at <= end)
            else {
                break;
            };
            self.now = self.now.max(next);
            let (due, later): (Vec<_>, Vec<_>) = self.flying.drain(..).partition(|(at, ..)| *at <= self.now);
            self.flying = later;
            for (_, to, packet) in due {
                let _ = self.ends[to].handle_packet(&packet, self.now);
            }
            for session in &mut self.ends {
                session.handle_timeout(self.now);
            }
            self.drain();
        }
        self.now = end;
    }

    fn states(&self) -> [State; 2] {
        [self.ends[0].state(), self.ends[1].state()]
    }
}

#[test]
fn two_ends_come_up_and_agree_on_the_slower_of_their_wishes() {
    let slow = SessionConfig {
        required_min_rx: interval(500),
        detect_mult: NonZeroU8::new(5).unwrap(),
        ..config(2)
    };
    let mut pair = Pair::new(config(1), slow);
    pair.run(10_000);
    assert_eq!(pair.states(), [State::Up; 2]);
    assert_eq!(
        pair.ends[0].transmit_interval(),
        Some(Duration::from_millis(500)),
        "as slow as the other wants it"
    );
    assert_eq!(pair.ends[1].transmit_interval(), Some(Duration::from_millis(300)));
    assert_eq!(pair.ends[0].detection_time(), Some(Duration::from_millis(300 * 5)), "their multiplier");
    assert_eq!(pair.ends[1].detection_time(), Some(Duration::from_millis(500 * 3)));
}

#[test]
fn a_cut_is_seen_by_both_within_the_detection_time_and_healed() {
    let mut pair = Pair::up();
    pair.cut = true;
    pair.run(900 + 20);
    assert_eq!(pair.states(), [State::Down; 2]);
    let why: Vec<_> = pair.changes.iter().map(|(_, change)| change.diagnostic).collect();
    assert!(why.contains(&Diagnostic::DETECTION_TIME_EXPIRED), "{why:?}");
    pair.cut = false;
    pair.run(5_000);
    assert_eq!(pair.states(), [State::Up; 2]);
}

#[test]
fn a_one_way_cut_is_down_at_both_ends() {
    let mut pair = Pair::up();
    // What end 0 says is lost; end 1 goes down and says so.
    for _ in 0..200 {
        pair.flying.retain(|(_, to, _)| *to == 0);
        pair.run(10);
    }
    assert_ne!(pair.states()[1], State::Up);
    assert_ne!(pair.states()[0], State::Up);
}

#[test]
fn taken_down_on_purpose_and_given_free_again() {
    let mut pair = Pair::up();
    pair.ends[0].handle_admin(Admin::Down, pair.now);
    pair.run(100);
    assert_eq!(pair.states(), [State::AdminDown, State::Down]);
    let (_, change) = pair.changes.iter().find(|(end, _)| *end == 1).unwrap();
    assert_eq!(change.remote_state, State::AdminDown);
    pair.run(60_000);
    assert_eq!(pair.states(), [State::AdminDown, State::Down]);
    pair.ends[0].handle_admin(Admin::Up, pair.now);
    pair.run(5_000);
    assert_eq!(pair.states(), [State::Up; 2]);
}

#[test]
fn an_hour_at_one_percent_loss_with_a_multiplier_of_five_flips_nothing() {
    let five =
        |discriminator| SessionConfig { detect_mult: NonZeroU8::new(5).unwrap(), ..config(discriminator) };
    let mut pair = Pair::new(five(1), five(2));
    pair.run(10_000);
    pair.changes.clear();
    pair.lost = 1;
    pair.run(3_600_000);
    assert_eq!(pair.changes, []);
}

#[test]
fn another_interval_is_agreed_upon_without_a_flap() {
    let mut pair = Pair::up();
    for (desired, required) in [(2_000, 300), (100, 2_000), (50, 50), (3_000, 3_000), (300, 300)] {
        let now = pair.now;
        pair.ends[0].handle_intervals(interval(desired), interval(required), now);
        pair.run(30_000);
        assert_eq!((pair.states(), pair.changes.len()), ([State::Up; 2], 0), "{desired} {required}");
        assert_eq!(pair.ends[0].transmit_interval(), Some(Duration::from_millis(desired.max(300))));
        assert_eq!(pair.ends[1].transmit_interval(), Some(Duration::from_millis(required.max(300))));
    }
}

#[test]
fn a_restarted_end_with_another_discriminator_comes_up_again() {
    let mut pair = Pair::up();
    pair.ends[1] = Session::new(config(77), pair.now);
    pair.run(10_000);
    assert_eq!(pair.states(), [State::Up; 2]);
}

#[test]
fn packets_leave_within_the_jitter_of_the_rfc() {
    let mut pair = Pair::up();
    pair.sent = [0; 2];
    pair.run(300_000);
    // 1,000 intervals shortened by 0 to 25 %: 1,143 on average.
    for sent in pair.sent {
        assert!((1_100..=1_190).contains(&sent), "{sent}");
    }
}
