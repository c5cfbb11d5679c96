//! One session: the state machine of RFC 5880 §6.2, with its timers (§6.8.2 to §6.8.4), poll sequences (§6.5) and jitter (§6.8.7).
//!
//! Names are the RFC's state variables (§6.8.1). Cost: every input is O(1).

use std::collections::VecDeque;
use std::num::{NonZeroU8, NonZeroU32};
use std::time::Duration;

use hawser_model::Time;

use super::{ControlPacket, Diagnostic, Interval, Random, State};

/// Not up, a session sends no faster than this (§6.8.3).
const SLOW: Interval = Interval::from_micros(1_000_000);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    pub local_discriminator: NonZeroU32,
    /// While up; before that the session is slower (§6.8.3).
    pub desired_min_tx: Interval,
    pub required_min_rx: Interval,
    pub detect_mult: NonZeroU8,
    /// Of jitter.
    pub seed: u64,
}

/// The operator's hand (§6.8.16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admin {
    Down,
    Up,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub from: State,
    pub to: State,
    /// Ours: why.
    pub diagnostic: Diagnostic,
    /// What the other end said last. When that is AdminDown, this is no sign of a dead path (RFC 5882 §4.2).
    pub remote_state: State,
    pub at: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Send(ControlPacket),
    Changed(Change),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    Detect,
    Transmit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    pub at: Time,
    pub timer: Timer,
}

/// Why a well-formed packet was not for this session (§6.8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Discard {
    #[error("your discriminator {theirs} names no session here, ours is {ours}")]
    Discriminator { theirs: u32, ours: NonZeroU32 },
    #[error("the session is administratively down")]
    AdminDown,
}

#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    state: State,
    since: Time,
    diagnostic: Diagnostic,
    remote_state: State,
    remote_discriminator: u32,
    remote_min_rx: Interval,
    remote_demand: bool,
    /// None before the first packet.
    remote_desired_min_tx: Option<Interval>,
    remote_detect_mult: u8,
    /// What packets say, and what is in force: they differ during a poll sequence (§6.8.3).
    desired_min_tx: Interval,
    tx_in_force: Interval,
    rx_in_force: Interval,
    polling: bool,
    /// Something changed during a poll sequence: its final bit may have answered the old values (§6.5).
    poll_again: bool,
    last_packet: Option<Time>,
    last_sent: Option<Time>,
    transmit_at: Option<Time>,
    random: Random,
    outputs: VecDeque<Output>,
}

impl Session {
    /// Down, and sending at once: both ends take the active role (§6.1).
    pub fn new(config: SessionConfig, now: Time) -> Self {
        let desired_min_tx = config.desired_min_tx.max(SLOW);
        Self {
            state: State::Down,
            since: now,
            diagnostic: Diagnostic::NONE,
            remote_state: State::Down,
            remote_discriminator: 0,
            // §6.8.1: 1 until the other end has spoken.
            remote_min_rx: Interval::from_micros(1),
            remote_demand: false,
            remote_desired_min_tx: None,
            remote_detect_mult: 0,
            desired_min_tx,
            tx_in_force: desired_min_tx,
            rx_in_force: config.required_min_rx,
            polling: false,
            poll_again: false,
            last_packet: None,
            last_sent: None,
            transmit_at: Some(now),
            random: Random::seeded(config.seed),
            outputs: VecDeque::new(),
            config,
        }
    }

    /// A packet that [`ControlPacket::parse`] let through, from this session's peer, in the order of §6.8.6.
    pub fn handle_packet(&mut self, packet: &ControlPacket, now: Time) -> Result<(), Discard> {
        let ours = self.config.local_discriminator;
        if packet.your_discriminator != 0 && packet.your_discriminator != ours.get() {
            return Err(Discard::Discriminator { theirs: packet.your_discriminator, ours });
        }
        let rate = self.transmit_interval();
        self.remote_discriminator = packet.my_discriminator.get();
        self.remote_state = packet.state;
        self.remote_demand = packet.demand;
        self.remote_min_rx = packet.required_min_rx;
        self.remote_desired_min_tx = Some(packet.desired_min_tx);
        self.remote_detect_mult = packet.detect_mult.get();
        if self.polling && packet.is_final {
            self.end_poll();
        }
        if self.state == State::AdminDown {
            return Err(Discard::AdminDown);
        }
        self.last_packet = Some(now);
        if let Some((to, diagnostic)) = after_packet(self.state, packet.state) {
            self.change(to, diagnostic, now);
        }
        if packet.poll {
            // At once and whatever the transmit timer says; never a poll itself (§6.5).
            self.send(true, now);
        }
        if self.transmit_interval() != rate || self.transmit_at.is_none() {
            self.schedule(now);
        }
        Ok(())
    }

    /// Fires what is due. One packet at most: intervals that were slept through are not made up for.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.detect_at().is_some_and(|at| at <= now) {
            // Whoever was silent for so long may be another one when it speaks again (§6.8.1, bfd.RemoteDiscr).
            self.last_packet = None;
            self.remote_discriminator = 0;
            self.remote_demand = false;
            if matches!(self.state, State::Init | State::Up) {
                self.change(State::Down, Diagnostic::DETECTION_TIME_EXPIRED, now);
            }
        }
        if self.transmit_at.is_some_and(|at| at <= now) {
            self.transmit_at = None;
            if self.may_transmit() {
                self.send(false, now);
            }
            self.schedule(now);
        }
    }

    /// Taken down on purpose, or given free again (§6.8.16). AdminDown goes on being said, so the other end learns that
    /// this is no failure.
    pub fn handle_admin(&mut self, admin: Admin, now: Time) {
        match (admin, self.state) {
            (Admin::Down, State::AdminDown) => {}
            (Admin::Down, _) => self.change(State::AdminDown, Diagnostic::ADMINISTRATIVELY_DOWN, now),
            (Admin::Up, State::AdminDown) => self.change(State::Down, Diagnostic::NONE, now),
            (Admin::Up, _) => {}
        }
    }

    /// Other intervals, agreed upon by a poll sequence while up (§6.8.3).
    pub fn handle_intervals(&mut self, desired_min_tx: Interval, required_min_rx: Interval, now: Time) {
        self.config.desired_min_tx = desired_min_tx;
        let changed = required_min_rx != self.config.required_min_rx;
        self.config.required_min_rx = required_min_rx;
        let before = self.transmit_interval();
        let wanted = if self.state == State::Up { desired_min_tx } else { desired_min_tx.max(SLOW) };
        let changed = changed || wanted != self.desired_min_tx;
        self.desired_min_tx = wanted;
        if self.state == State::Up {
            // A slower sender and a faster receiver wait until the other end knows.
            self.tx_in_force = self.tx_in_force.min(wanted);
            self.rx_in_force = self.rx_in_force.max(required_min_rx);
        } else {
            (self.tx_in_force, self.rx_in_force) = (wanted, required_min_rx);
        }
        if changed {
            self.poll();
        }
        if self.transmit_interval() != before {
            self.schedule(now);
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn poll_deadline(&self) -> Option<Deadline> {
        let detect = self.detect_at().map(|at| Deadline { at, timer: Timer::Detect });
        let transmit = self.transmit_at.map(|at| Deadline { at, timer: Timer::Transmit });
        detect.into_iter().chain(transmit).min()
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn since(&self) -> Time {
        self.since
    }

    pub fn diagnostic(&self) -> Diagnostic {
        self.diagnostic
    }

    pub fn remote_state(&self) -> State {
        self.remote_state
    }

    pub fn local_discriminator(&self) -> NonZeroU32 {
        self.config.local_discriminator
    }

    /// Silence of this length is Down (§6.8.4); None before the other end has spoken.
    pub fn detection_time(&self) -> Option<Duration> {
        let theirs = self.remote_desired_min_tx?;
        Some(self.rx_in_force.max(theirs).duration() * u32::from(self.remote_detect_mult))
    }

    /// Before jitter (§6.8.7); None: nothing is sent periodically.
    pub fn transmit_interval(&self) -> Option<Duration> {
        let wanted = self.remote_min_rx != Interval::ZERO;
        wanted.then(|| self.tx_in_force.max(self.remote_min_rx).duration())
    }

    fn detect_at(&self) -> Option<Time> {
        Some(self.last_packet? + self.detection_time()?)
    }

    fn change(&mut self, to: State, diagnostic: Diagnostic, now: Time) {
        let from = std::mem::replace(&mut self.state, to);
        self.since = now;
        self.diagnostic = diagnostic;
        if to == State::Up {
            // The faster rate begins at once, and the other end is told of it (§6.8.3).
            if self.desired_min_tx != self.config.desired_min_tx {
                self.desired_min_tx = self.config.desired_min_tx;
                self.tx_in_force = self.desired_min_tx;
                self.poll();
            }
        } else {
            self.desired_min_tx = self.config.desired_min_tx.max(SLOW);
            self.tx_in_force = self.desired_min_tx;
            self.rx_in_force = self.config.required_min_rx;
            (self.polling, self.poll_again) = (false, false);
        }
        let remote_state = self.remote_state;
        self.outputs.push_back(Output::Changed(Change { from, to, diagnostic, remote_state, at: now }));
        // What is new is said at once (§6.8.7).
        if self.may_transmit() {
            self.send(false, now);
        }
        self.schedule(now);
    }

    fn poll(&mut self) {
        if self.polling {
            self.poll_again = true;
        }
        self.polling = true;
    }

    fn end_poll(&mut self) {
        self.polling = std::mem::take(&mut self.poll_again);
        if !self.polling {
            self.tx_in_force = self.desired_min_tx;
            self.rx_in_force = self.config.required_min_rx;
        }
    }

    /// §6.8.7: not while the other end wants none, nor in its demand mode unless something is being polled.
    fn may_transmit(&self) -> bool {
        let demanded = self.remote_demand && self.state == State::Up && self.remote_state == State::Up;
        self.remote_min_rx != Interval::ZERO && (!demanded || self.polling)
    }

    /// The next periodic packet, counted from the last one.
    fn schedule(&mut self, now: Time) {
        self.transmit_at = self.transmit_interval().map(|interval| {
            // §6.8.7: up to a quarter less; with a detect mult of 1 at least a tenth less.
            let most = if self.config.detect_mult.get() == 1 { 900 } else { 1_000 };
            let jittered = interval * self.random.between(750, most) / 1_000;
            self.last_sent.map_or(now, |sent| sent + jittered)
        });
    }

    fn send(&mut self, is_final: bool, now: Time) {
        if !is_final {
            self.last_sent = Some(now);
        }
        self.outputs.push_back(Output::Send(ControlPacket {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: self.polling && !is_final,
            is_final,
            control_plane_independent: false,
            demand: false,
            detect_mult: self.config.detect_mult,
            my_discriminator: self.config.local_discriminator,
            your_discriminator: self.remote_discriminator,
            desired_min_tx: self.desired_min_tx,
            required_min_rx: self.config.required_min_rx,
            required_min_echo_rx: Interval::ZERO,
        }));
    }
}

/// The state machine of §6.2, as §6.8.6 spells it out; None: stay. Never asked for AdminDown, which discards before.
fn after_packet(local: State, received: State) -> Option<(State, Diagnostic)> {
    use State::{AdminDown, Down, Init, Up};
    match (local, received) {
        (AdminDown, _) | (Down, AdminDown | Up) | (Init, Down) | (Up, Init | Up) => None,
        (Init | Up, AdminDown) | (Up, Down) => Some((Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN)),
        (Down, Down) => Some((Init, Diagnostic::NONE)),
        (Down, Init) | (Init, Init | Up) => Some((Up, Diagnostic::NONE)),
    }
}
