//! The checker finds what is planted, and finds nothing where nothing is wrong.

use std::time::Duration;

use super::check::check;
use super::record::{Change, Final, Heard, History, Outcome, Revision, State, Watcher, Write};
use super::violation::Violation;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn write(began: u64, ended: u64, outcome: Outcome, changes: Vec<Change>) -> Write {
    Write { writer: "w0".into(), changes, began: ms(began), ended: ms(ended), outcome }
}

fn unknown() -> Outcome {
    Outcome::Unknown("no answer".into())
}

fn event(revision: Revision, change: Change, version: i64) -> Heard {
    Heard::Event { revision, change, version }
}

fn list(revision: Revision, keys: &[(&str, &str, Revision)]) -> Heard {
    let state = keys.iter().map(|(key, value, at)| ((*key).to_owned(), ((*value).to_owned(), *at)));
    Heard::Listed { revision, state: state.collect() }
}

fn reset(excused: bool) -> Heard {
    Heard::Reset { reason: "test".into(), excused }
}

/// Heard from 100 ms on, one thing each millisecond.
fn watcher(name: &str, heard: Vec<Heard>) -> Watcher {
    let heard = heard.into_iter().enumerate().map(|(i, heard)| (ms(100 + i as u64), heard)).collect();
    Watcher { name: name.into(), heard }
}

/// a = 1 at 5, b = 2 at 6, a and b in one transaction at 7, a deleted at 8, an unknown c = 4.
fn writes() -> Vec<Write> {
    vec![
        write(0, 1, Outcome::Acked(5), vec![Change::put("a", "1")]),
        write(2, 3, Outcome::Acked(6), vec![Change::put("b", "2")]),
        write(4, 5, Outcome::Acked(7), vec![Change::put("a", "3"), Change::put("b", "3b")]),
        write(6, 7, Outcome::Acked(8), vec![Change::delete("a")]),
        write(8, 90, unknown(), vec![Change::put("c", "4")]),
    ]
}

fn events() -> Vec<Heard> {
    vec![
        list(4, &[]),
        event(5, Change::put("a", "1"), 1),
        event(6, Change::put("b", "2"), 1),
        event(7, Change::put("a", "3"), 2),
        event(7, Change::put("b", "3b"), 2),
        event(8, Change::delete("a"), 0),
    ]
}

fn with_unknown() -> Vec<Heard> {
    let mut heard = events();
    heard.push(event(9, Change::put("c", "4"), 1));
    heard
}

fn found(watchers: Vec<Watcher>) -> Vec<Violation> {
    found_in(writes(), watchers, 9)
}

fn found_in(writes: Vec<Write>, watchers: Vec<Watcher>, until: Revision) -> Vec<Violation> {
    check(&History { writes, watchers, until, ..History::default() })
}

fn one(found: &[Violation]) -> String {
    assert_eq!(found.len(), 1, "{found:#?}");
    found[0].to_string()
}

#[test]
fn a_run_in_which_all_is_well_has_no_violation_whether_the_unknown_write_happened_or_not() {
    assert_eq!(found(vec![watcher("x", events()), watcher("y", events())]), []);
    assert_eq!(found(vec![watcher("x", with_unknown()), watcher("y", with_unknown())]), []);
}

#[test]
fn a_lost_event_is_found_in_the_middle_and_at_the_end() {
    for gone in 1..events().len() {
        let mut heard = events();
        heard.remove(gone);
        let found = found(vec![watcher("x", heard)]);
        let lost = |v: &&Violation| matches!(v, Violation::Lost { .. });
        assert_eq!(found.iter().filter(lost).count(), 1, "{gone}: {found:#?}");
    }
}

#[test]
fn a_doubled_event_is_found() {
    let mut heard = events();
    heard.push(event(8, Change::delete("a"), 0));
    assert!(one(&found(vec![watcher("x", heard)])).starts_with("doubled: x saw revision 8 again"));
}

#[test]
fn reordered_events_are_found() {
    let mut heard = events();
    heard.swap(1, 2);
    assert!(one(&found(vec![watcher("x", heard)])).starts_with("reordered: x saw revision 5 after 6"));
}

#[test]
fn an_invented_event_is_found_whatever_it_claims() {
    for (change, says) in [
        (Change::put("z", "never written"), "nobody wrote this value"),
        (Change::delete("b"), "nobody deleted it"),
        (Change::put("b", "3"), "to another key"),
        (Change::put("a", "1"), "w0's write is at revision 5"),
    ] {
        let mut heard = events();
        heard.push(event(9, change, 1));
        let found = found(vec![watcher("x", heard)]);
        assert!(found.iter().any(|v| v.to_string().contains(says)), "{says}: {found:#?}");
    }
}

#[test]
fn a_changed_value_is_found() {
    let mut heard = events();
    heard[2] = event(6, Change::put("b", "1"), 1);
    let found = found(vec![watcher("x", heard), watcher("y", events())]);
    assert!(
        found.iter().any(|v| matches!(v, Violation::Invented { place, .. } if place == "x")),
        "{found:#?}"
    );
}

#[test]
fn an_unknown_write_that_one_watcher_saw_is_due_to_all() {
    let found = found(vec![watcher("x", with_unknown()), watcher("y", events())]);
    assert_eq!(one(&found), "lost: y never saw revision 9: c = 4");
}

#[test]
fn an_unknown_write_happens_once() {
    let mut heard = with_unknown();
    heard.push(event(10, Change::put("c", "4"), 2));
    let found = found(vec![watcher("x", heard)]);
    assert!(one(&found).contains("w0's write is at revision 9"), "{found:#?}");
}

#[test]
fn an_unknown_transaction_happens_whole() {
    let mut writes = writes();
    writes[4] = write(8, 90, unknown(), vec![Change::put("c", "4"), Change::put("d", "5")]);
    let found = found_in(writes, vec![watcher("x", with_unknown())], 9);
    assert_eq!(one(&found), "lost: x never saw revision 9: d = 5");
}

#[test]
fn an_unknown_delete_explains_one_delete_and_no_more() {
    let mut writes = writes();
    writes[4] = write(8, 90, unknown(), vec![Change::delete("b")]);
    let mut heard = events();
    heard.push(event(9, Change::delete("b"), 0));
    assert_eq!(found_in(writes.clone(), vec![watcher("x", heard.clone())], 9), []);
    heard.push(event(10, Change::delete("b"), 0));
    assert!(one(&found_in(writes, vec![watcher("x", heard)], 9)).contains("nobody deleted it there"));
}

#[test]
fn a_refused_write_never_appears() {
    let mut writes = writes();
    writes[4] = write(8, 90, Outcome::Refused("not allowed".into()), vec![Change::put("c", "4")]);
    let found = found_in(writes, vec![watcher("x", with_unknown())], 9);
    assert!(one(&found).contains("the write was refused: not allowed"));
}

#[test]
fn progress_that_overtakes_an_event_is_found() {
    let mut heard = events();
    heard.insert(2, Heard::Progress(6));
    assert!(one(&found(vec![watcher("x", heard)])).starts_with("overtaken: x was told that all up to 6"));
    let mut heard = events();
    heard.insert(3, Heard::Progress(6));
    assert_eq!(found(vec![watcher("x", heard)]), []);
}

#[test]
fn a_version_that_skips_a_change_nobody_saw_is_found() {
    let mut heard = events();
    heard[3] = event(7, Change::put("a", "3"), 3);
    assert!(one(&found(vec![watcher("x", heard)])).contains("saw version 3 of a at revision 7, due is 2"));
}

#[test]
fn a_relist_is_a_violation_unless_nobody_could_have_kept_the_events() {
    let relisted = |excused| {
        let mut heard = events();
        heard.splice(2..4, [reset(excused), list(7, &[("a", "3", 7), ("b", "3b", 7)])]);
        heard.remove(4);
        heard
    };
    assert_eq!(found(vec![watcher("x", relisted(true))]), []);
    assert!(one(&found(vec![watcher("x", relisted(false))])).starts_with("relisted: x had to list"));
}

#[test]
fn what_was_lost_before_a_relist_is_still_lost() {
    let heard =
        vec![list(4, &[]), event(6, Change::put("b", "2"), 1), reset(true), list(8, &[("b", "3b", 7)])];
    assert_eq!(one(&found(vec![watcher("x", heard)])), "lost: x never saw revision 5: a = 1");
}

#[test]
fn a_list_that_is_not_the_state_of_its_revision_is_found() {
    let mut heard = events();
    heard.splice(1..6, [reset(true), list(8, &[("a", "3", 7), ("b", "3b", 7)])]);
    let found = found(vec![watcher("x", heard)]);
    assert_eq!(one(&found), "state: x at revision 8 holds of a: 3 of revision 7; due is: nothing");
}

#[test]
fn a_key_that_vanished_with_nobody_deleting_it_is_found_at_the_end() {
    let state: State = State::new();
    let finals = vec![Final { place: "origin".into(), revision: 9, state }];
    let history = History {
        writes: writes(),
        watchers: vec![watcher("x", events())],
        finals,
        until: 9,
        faults: vec![],
    };
    assert_eq!(
        one(&check(&history)),
        "state: origin at revision 9 holds of b: nothing; due is: 3b of revision 7"
    );
}

#[test]
fn an_unknown_write_that_only_the_last_read_shows_was_lost_by_every_watcher() {
    let state = [("b", "3b", 7), ("c", "4", 9)];
    let state = state.map(|(key, value, at)| (key.to_owned(), (value.to_owned(), at))).into();
    let finals = vec![Final { place: "origin".into(), revision: 9, state }];
    let history = History {
        writes: writes(),
        watchers: vec![watcher("x", events())],
        finals,
        until: 9,
        faults: vec![],
    };
    assert_eq!(one(&check(&history)), "lost: x never saw revision 9: c = 4");
}

#[test]
fn acknowledgements_follow_real_time_and_share_no_revision() {
    let mut writes = writes();
    writes[1].outcome = Outcome::Acked(5);
    let found = found_in(writes, vec![], 9);
    assert!(found.iter().any(|v| matches!(v, Violation::SameRevision { revision: 5, .. })), "{found:#?}");
    assert!(found.iter().any(|v| matches!(v, Violation::BackInTime { later: 5, .. })), "{found:#?}");
}
