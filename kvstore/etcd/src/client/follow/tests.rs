//! What a follower decides, told as histories.

use std::time::Duration;

use bytes::Bytes;
use hawser_kvstore::KeyRange;
use hawser_model::Time;

use super::machine::{Deadline, Machine, Output};
use super::{FollowConfig, FollowEvent, FollowState, Order, Relist, Resume};
use crate::client::Trouble;
use crate::pb;

const LINEAGE: u64 = 0xa;

fn header(cluster_id: u64, revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { cluster_id, revision, ..Default::default() })
}

fn kv(key: &str, mod_revision: i64) -> pb::KeyValue {
    pb::KeyValue { key: Bytes::copy_from_slice(key.as_bytes()), mod_revision, ..Default::default() }
}

fn page(revision: i64, kvs: &[(&str, i64)], more: bool) -> pb::RangeResponse {
    let kvs = kvs.iter().map(|(key, revision)| kv(key, *revision)).collect();
    pb::RangeResponse { header: header(LINEAGE, revision), kvs, more, count: 0 }
}

fn put(key: &str, revision: i64) -> pb::Event {
    pb::Event { r#type: 0, kv: Some(kv(key, revision)), prev_kv: None }
}

fn delete(key: &str, revision: i64) -> pb::Event {
    pb::Event { r#type: 1, kv: Some(kv(key, revision)), prev_kv: None }
}

fn message(watch_id: i64, revision: i64, events: Vec<pb::Event>) -> pb::WatchResponse {
    pb::WatchResponse { header: header(LINEAGE, revision), watch_id, events, ..Default::default() }
}

fn created(watch_id: i64, revision: i64) -> pb::WatchResponse {
    pb::WatchResponse { created: true, ..message(watch_id, revision, vec![]) }
}

/// A follower and the moment it lives in.
struct Story {
    machine: Machine,
    now: Time,
}

impl Story {
    fn new(config: FollowConfig) -> Self {
        Self { machine: Machine::new(config, Time::ZERO).unwrap(), now: Time::ZERO }
    }

    /// Follows `a/`, which held `keys` at revision 10.
    fn following(keys: &[(&str, i64)]) -> Self {
        let mut story = Self::new(FollowConfig::new(vec![KeyRange::prefix("a/")]));
        story.machine.handle_page(page(10, keys, false), story.now);
        story.machine.handle_watch(created(1, 10), story.now);
        story.outputs();
        story
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.machine.poll_output()).collect()
    }

    /// What the caller is told, in short; and the requests that were made.
    fn told(&mut self) -> Vec<String> {
        self.outputs().into_iter().map(|output| short(&output)).collect()
    }

    fn hear(&mut self, message: pb::WatchResponse) -> Vec<String> {
        self.machine.handle_watch(message, self.now);
        self.told()
    }

    fn until(&mut self, deadline: impl Fn(Deadline) -> bool) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..100 {
            let next = self.machine.poll_deadline().unwrap();
            self.now = self.now.max(next.at());
            self.machine.handle_time(self.now);
            told.extend(self.told());
            if deadline(next) {
                return told;
            }
        }
        panic!("it did not happen");
    }
}

fn short(output: &Output) -> String {
    let text = |key: &Bytes| String::from_utf8_lossy(key).into_owned();
    match output {
        Output::List(list) => format!("list {} @{}", text(&list.key).escape_debug(), list.revision),
        Output::Watch(creates) => {
            let creates: Vec<_> =
                creates.iter().map(|c| format!("{}@{}", text(&c.key), c.start_revision)).collect();
            format!("watch {}", creates.join(" "))
        }
        Output::AskProgress => "ask".into(),
        Output::Close => "close".into(),
        Output::Emit(FollowEvent::Put { kv, .. }) => format!("put {}@{}", text(&kv.key), kv.mod_revision),
        Output::Emit(FollowEvent::Delete { key, mod_revision, .. }) => {
            format!("del {}@{mod_revision}", text(key))
        }
        Output::Emit(FollowEvent::Listed { range, revision }) => format!("listed {range}@{revision}"),
        Output::Emit(FollowEvent::Progress { revision }) => format!("progress {revision}"),
        Output::Emit(FollowEvent::Interrupted { .. }) => "interrupted".into(),
        Output::Emit(FollowEvent::Reset { reason, .. }) => format!("reset {reason:?}"),
    }
}

#[test]
fn it_lists_in_pages_at_one_revision_and_watches_from_the_next() {
    let mut story = Story::new(FollowConfig::new(vec![KeyRange::prefix("a/"), KeyRange::key("b")]));
    assert_eq!(story.told(), ["list a/ @0"]);
    story.machine.handle_page(page(10, &[("a/1", 3), ("a/2", 4)], true), story.now);
    assert_eq!(story.told(), ["reset Start", "put a/1@3", "put a/2@4", "list a/2\\0 @10"]);
    story.machine.handle_page(page(12, &[("a/3", 9)], false), story.now);
    assert_eq!(story.told(), ["put a/3@9", "listed 0@10", "list b @10"]);
    story.machine.handle_page(page(12, &[], false), story.now);
    assert_eq!(story.told(), ["listed 1@10", "watch a/@11 b@11"]);
    assert!(story.hear(created(1, 12)).is_empty());
    assert_eq!(story.hear(created(2, 12)), ["progress 10"]);
    assert_eq!(story.machine.state(), FollowState::Following);
}

#[test]
fn a_lost_stream_is_resumed_from_the_next_revision_and_nothing_is_listed() {
    let mut story = Story::following(&[("a/1", 3)]);
    assert_eq!(
        story.hear(message(1, 12, vec![put("a/2", 11), put("a/1", 12)])),
        ["put a/2@11", "put a/1@12", "progress 12"]
    );
    for _ in 0..5 {
        story.machine.handle_watch_ended("connection reset".into(), story.now);
        assert_eq!(story.told(), ["close", "interrupted"]);
        assert_eq!(story.until(|d| matches!(d, Deadline::Retry(_))), ["watch a/@13"]);
    }
    assert_eq!((story.machine.relists(), story.machine.reconnects()), (0, 5));
}

#[test]
fn waits_double_and_are_spread_and_bounded_and_begin_anew_after_good_news() {
    let mut story = Story::following(&[]);
    let mut waits = Vec::new();
    for _ in 0..12 {
        story.machine.handle_watch_ended("refused".into(), story.now);
        let Some(Deadline::Retry(until)) = story.machine.poll_deadline() else { panic!("no retry") };
        waits.push(until.since(story.now));
        story.until(|d| matches!(d, Deadline::Retry(_)));
    }
    for (i, wait) in waits.iter().enumerate() {
        let most = Duration::from_millis(100 << i).min(Duration::from_secs(5));
        assert!(*wait <= most && *wait >= most / 2, "{i}: {wait:?}");
    }
    story.hear(created(1, 11));
    story.hear(message(1, 11, vec![put("a/1", 11)]));
    story.machine.handle_watch_ended("refused".into(), story.now);
    let Some(Deadline::Retry(until)) = story.machine.poll_deadline() else { panic!("no retry") };
    assert!(until.since(story.now) <= Duration::from_millis(100));
}

#[test]
fn after_compaction_it_lists_again_and_tells_only_what_differs() {
    let mut story = Story::following(&[("a/1", 3), ("a/2", 4), ("a/3", 5)]);
    let told =
        story.hear(pb::WatchResponse { canceled: true, compact_revision: 40, ..message(1, 50, vec![]) });
    assert_eq!(told, ["close", "list a/ @0"]);
    story.machine.handle_page(page(50, &[("a/0", 20), ("a/1", 3)], true), story.now);
    assert_eq!(story.told(), ["reset Compacted", "put a/0@20", "list a/1\\0 @50"], "a/1 is as it was");
    story.machine.handle_page(page(55, &[("a/3", 45)], false), story.now);
    assert_eq!(story.told(), ["del a/2@50", "put a/3@45", "listed 0@50", "watch a/@51"]);
}

#[test]
fn another_lineage_is_listed_and_nothing_of_the_old_one_stays() {
    let mut story = Story::following(&[("a/1", 3), ("a/2", 4)]);
    story.machine.handle_watch_ended("gone".into(), story.now);
    story.until(|d| matches!(d, Deadline::Retry(_)));
    let wiped = pb::WatchResponse { header: header(0xb, 2), ..created(1, 2) };
    assert_eq!(story.hear(wiped), ["close", "list a/ @0"]);
    let fresh = pb::RangeResponse { header: header(0xb, 4), ..page(4, &[("a/1", 3)], false) };
    story.machine.handle_page(fresh, story.now);
    assert_eq!(
        story.told(),
        ["reset LineageChanged { from: 10 }", "del a/2@4", "put a/1@3", "listed 0@4", "watch a/@5"],
        "a/1 is told although its revision is the same: in another history that means nothing"
    );
    assert_eq!(story.machine.cluster_id(), Some(0xb));
}

#[test]
fn events_of_another_lineage_are_never_taken() {
    let mut story = Story::following(&[]);
    let foreign = pb::WatchResponse { header: header(0xb, 99), ..message(1, 99, vec![put("a/9", 99)]) };
    assert_eq!(story.hear(foreign), ["close", "list a/ @0"]);
}

#[test]
fn a_lagging_mirror_is_waited_for_and_an_older_state_is_taken_in_the_end() {
    let mut story = Story::following(&[("a/1", 3), ("a/2", 9)]);
    story.machine.handle_watch_ended("gone".into(), story.now);
    story.until(|d| matches!(d, Deadline::Retry(_)));
    story.hear(created(1, 8));
    assert!(matches!(story.machine.poll_deadline(), Some(Deadline::Behind(_) | Deadline::AskProgress(_))));
    assert_eq!(story.hear(message(-1, 10, vec![])), ["progress 10"], "it has caught up");

    story.machine.handle_watch_ended("gone".into(), story.now);
    story.until(|d| matches!(d, Deadline::Retry(_)));
    story.hear(created(1, 8));
    assert!(
        story.until(|d| matches!(d, Deadline::Behind(_))).ends_with(&["close".into(), "list a/ @0".into()])
    );
    story.machine.handle_page(page(8, &[("a/1", 3)], false), story.now);
    assert_eq!(
        story.told(),
        ["reset Behind { had: 10, has: 8 }", "del a/2@8", "put a/1@3", "listed 0@8", "watch a/@9"]
    );
}

#[test]
fn a_quiet_server_is_asked_and_a_silent_one_is_left() {
    let mut story = Story::following(&[]);
    assert_eq!(story.until(|d| matches!(d, Deadline::AskProgress(_))), ["ask"]);
    assert_eq!(story.hear(message(-1, 30, vec![])), ["progress 10"], "an untrusted answer moves no position");
    let told = story.until(|d| matches!(d, Deadline::Silent(_)));
    assert_eq!(told, ["ask", "ask", "ask", "close", "interrupted"]);
    assert_eq!(story.until(|d| matches!(d, Deadline::Retry(_))), ["watch a/@11"]);
}

#[test]
fn trusted_progress_moves_the_position_so_that_a_quiet_range_is_never_compacted_away() {
    let mut config = FollowConfig::new(vec![KeyRange::prefix("a/")]);
    config.trust_progress = true;
    config.start = Some(Resume { cluster_id: LINEAGE, revision: 10, known: vec![] });
    let mut story = Story::new(config);
    assert_eq!(story.told(), ["watch a/@11"]);
    story.hear(created(1, 10));
    assert_eq!(story.hear(message(-1, 30, vec![])), ["progress 30"]);
    story.machine.handle_watch_ended("gone".into(), story.now);
    assert!(story.until(|d| matches!(d, Deadline::Retry(_))).contains(&"watch a/@31".to_owned()));
}

#[test]
fn a_list_that_broke_off_goes_on_where_it_was_and_begins_anew_when_its_revision_is_gone() {
    let mut story = Story::new(FollowConfig::new(vec![KeyRange::prefix("a/")]));
    story.machine.handle_page(page(10, &[("a/1", 3)], true), story.now);
    story.told();
    story.machine.handle_list_failed(Trouble::Other("reset".into()), story.now);
    story.told();
    assert_eq!(story.until(|d| matches!(d, Deadline::Retry(_))), ["list a/1\\0 @10"]);
    story.machine.handle_list_failed(Trouble::Compacted, story.now);
    story.told();
    assert_eq!(story.until(|d| matches!(d, Deadline::Retry(_))), ["list a/ @0"]);
    story.machine.handle_page(page(90, &[("a/2", 80)], false), story.now);
    assert_eq!(story.told(), ["reset Start", "del a/1@90", "put a/2@80", "listed 0@90", "watch a/@91"]);
}

#[test]
fn a_page_too_large_is_asked_for_again_smaller() {
    let mut story = Story::new(FollowConfig { page: 4, ..FollowConfig::new(vec![KeyRange::prefix("a/")]) });
    story.told();
    let mut limits = Vec::new();
    for _ in 0..2 {
        story.machine.handle_list_failed(Trouble::TooLarge, story.now);
        for output in story.outputs() {
            if let Output::List(list) = output {
                limits.push(list.limit);
            }
        }
    }
    assert_eq!(limits, [2, 1]);
}

#[test]
fn in_total_order_no_revision_is_split_and_none_overtakes_another() {
    let mut config = FollowConfig::new(vec![KeyRange::prefix("a/"), KeyRange::prefix("b/")]);
    config.order = Order::Total;
    config.relist = Relist::Whole;
    config.trust_progress = true;
    config.start = Some(Resume { cluster_id: LINEAGE, revision: 10, known: vec![] });
    let mut story = Story::new(config);
    story.told();
    story.hear(created(1, 10));
    assert_eq!(story.hear(created(2, 10)), ["progress 10"]);
    assert_eq!(story.hear(message(2, 13, vec![put("b/1", 12), put("b/2", 13)])), ["progress 10"]);
    assert_eq!(
        story.hear(message(1, 13, vec![delete("a/1", 11), put("a/2", 13)])),
        ["del a/1@11", "put b/1@12", "put b/2@13", "put a/2@13", "progress 13"]
    );
    assert_eq!(story.hear(message(2, 15, vec![put("b/3", 15)])), ["progress 13"]);
    assert_eq!(story.hear(message(-1, 15, vec![])), ["put b/3@15", "progress 15"], "it says so unasked");
    story.hear(message(2, 17, vec![put("b/4", 17)]));
    for _ in 0..2 {
        assert_eq!(
            story.until(|d| matches!(d, Deadline::AskProgress(_))),
            ["ask"],
            "or it is asked, and asked again"
        );
    }
    assert_eq!(story.hear(message(-1, 17, vec![])), ["put b/4@17", "progress 17"]);
}

#[test]
fn in_total_order_what_waited_when_the_stream_broke_comes_once() {
    let mut config = FollowConfig::new(vec![KeyRange::prefix("a/"), KeyRange::prefix("b/")]);
    config.order = Order::Total;
    config.trust_progress = true;
    config.relist = Relist::Whole;
    config.start = Some(Resume { cluster_id: LINEAGE, revision: 10, known: vec![] });
    let mut story = Story::new(config);
    story.told();
    story.hear(message(2, 12, vec![put("b/1", 12)]));
    story.machine.handle_watch_ended("gone".into(), story.now);
    assert!(story.until(|d| matches!(d, Deadline::Retry(_))).contains(&"watch a/@11 b/@11".to_owned()));
    story.hear(message(2, 12, vec![put("b/1", 12)]));
    assert_eq!(story.hear(message(-1, 12, vec![])), ["put b/1@12", "progress 12"]);
}

#[test]
fn a_fragment_moves_no_position() {
    let mut story = Story::following(&[]);
    let part = pb::WatchResponse { fragment: true, ..message(1, 11, vec![put("a/1", 11)]) };
    assert_eq!(story.hear(part), ["put a/1@11", "progress 10"]);
    story.machine.handle_watch_ended("gone".into(), story.now);
    assert!(story.until(|d| matches!(d, Deadline::Retry(_))).contains(&"watch a/@11".to_owned()));
    story.hear(created(1, 11));
    let again = story.hear(message(1, 11, vec![put("a/1", 11), put("a/2", 11)]));
    assert_eq!(again, ["put a/2@11", "progress 11"], "what was told is not told twice");
}

#[test]
fn nonsense_from_a_server_is_named_and_the_stream_left() {
    for nonsense in [
        message(7, 11, vec![put("a/1", 11)]),
        message(1, 11, vec![put("z", 11)]),
        message(1, 11, vec![pb::Event::default()]),
        pb::WatchResponse {
            canceled: true,
            cancel_reason: "permission denied".into(),
            ..message(1, 11, vec![])
        },
    ] {
        let mut story = Story::following(&[("a/1", 3)]);
        assert_eq!(story.hear(nonsense), ["close", "interrupted"]);
    }
    for nonsense in
        [page(10, &[("b", 1)], false), page(10, &[], true), page(10, &[("a/2", 1), ("a/1", 1)], false)]
    {
        let mut story = Story::new(FollowConfig::new(vec![KeyRange::prefix("a/")]));
        story.told();
        story.machine.handle_page(nonsense, story.now);
        assert_eq!(story.told(), ["reset Start", "close", "interrupted"]);
    }
}

#[test]
fn a_revision_that_cannot_be_is_nonsense_and_is_never_counted_on_from() {
    for revision in [i64::MAX, i64::MIN, -1] {
        for nonsense in [message(1, revision, vec![]), message(1, 11, vec![put("a/1", revision)])] {
            let mut story = Story::following(&[("a/1", 3)]);
            assert_eq!(story.hear(nonsense), ["close", "interrupted"], "{revision}");
            assert_eq!(story.until(|d| matches!(d, Deadline::Retry(_))), ["watch a/@11"]);
        }
        for nonsense in [page(revision, &[], false), page(10, &[("a/1", revision)], false)] {
            let mut story = Story::new(FollowConfig::new(vec![KeyRange::prefix("a/")]));
            story.told();
            story.machine.handle_page(nonsense, story.now);
            assert_eq!(story.told(), ["reset Start", "close", "interrupted"], "{revision}");
        }
    }
}

#[test]
fn a_server_that_took_its_word_back_is_listed_because_what_it_left_out_is_not_known() {
    let config = FollowConfig { trust_progress: true, ..FollowConfig::new(vec![KeyRange::prefix("a/")]) };
    let mut story = Story::new(config);
    story.machine.handle_page(page(10, &[], false), story.now);
    story.machine.handle_watch(created(1, 10), story.now);
    story.told();
    assert_eq!(story.hear(message(-1, 20, vec![])), ["progress 20"]);
    assert_eq!(story.hear(message(1, 20, vec![put("a/1", 15)])), ["close", "list a/ @0"]);
}

#[test]
fn a_server_whose_events_go_back_is_listed_whatever_its_word_is_worth() {
    for trust_progress in [false, true] {
        for backward in [vec![put("a/1", 9)], vec![put("a/1", 12), put("a/2", 11)]] {
            let ranges = vec![KeyRange::prefix("a/")];
            let mut story = Story::new(FollowConfig { trust_progress, ..FollowConfig::new(ranges) });
            story.machine.handle_page(page(10, &[], false), story.now);
            story.machine.handle_watch(created(1, 10), story.now);
            story.told();
            assert_eq!(story.hear(message(1, 12, backward)), ["close", "list a/ @0"]);
        }
    }
    let mut story = Story::following(&[]);
    let part = pb::WatchResponse { fragment: true, ..message(1, 12, vec![put("a/1", 12)]) };
    story.hear(part);
    let rest = story.hear(message(1, 12, vec![put("a/2", 12)]));
    assert_eq!(rest, ["put a/2@12", "progress 12"], "one revision in two pieces does not");
}

#[test]
fn lists_that_follow_each_other_soon_wait_longer_and_longer() {
    let mut story = Story::following(&[]);
    let mut waits = Vec::new();
    for _ in 0..10 {
        let before = story.now;
        let told = story.hear(pb::WatchResponse { header: header(0xb, 1), ..message(1, 1, vec![]) });
        let told = match told.contains(&"interrupted".to_owned()) {
            true => story.until(|d| matches!(d, Deadline::Retry(_))),
            false => told,
        };
        assert_eq!(told.last().unwrap(), "list a/ @0");
        waits.push(story.now.since(before));
        story.machine.handle_page(page(10, &[], false), story.now);
        story.machine.handle_watch(created(1, 10), story.now);
        story.told();
    }
    assert_eq!(waits[0], Duration::ZERO, "the first is made at once");
    assert!(waits[9] >= Duration::from_millis(2500), "{waits:?}");
    story.now = story.now + Duration::from_secs(60);
    let told = story.hear(pb::WatchResponse { header: header(0xb, 1), ..message(1, 1, vec![]) });
    assert_eq!(told, ["close", "list a/ @0"], "and again when there was calm");
}

#[test]
fn a_delete_of_what_was_never_told_is_not_told() {
    let mut story = Story::following(&[]);
    assert_eq!(story.hear(message(1, 12, vec![delete("a/9", 12)])), ["progress 12"]);
}

#[test]
fn ranges_that_overlap_or_cannot_be_ordered_are_refused() {
    let refused = |config: FollowConfig| Machine::new(config, Time::ZERO).unwrap_err().to_string();
    assert!(refused(FollowConfig::new(vec![])).contains("at least one range"));
    let overlap = FollowConfig::new(vec![KeyRange::prefix("a/"), KeyRange::key("a/1")]);
    assert!(refused(overlap).contains("share keys"));
    let mut untrusted = FollowConfig::new(vec![KeyRange::prefix("a/"), KeyRange::prefix("b/")]);
    untrusted.order = Order::Total;
    assert!(refused(untrusted).contains("trust_progress"));
}
