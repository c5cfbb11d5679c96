//! What one kind's list and watch make of every answer, step by step.

use super::*;

const PACE: Pace = Pace { first: Duration::from_secs(1), most: Duration::from_secs(8) };

fn follow() -> Follow {
    Follow::new(Kind::Namespace, "/api/v1/namespaces", PACE)
}

fn listed(name: &str) -> Listed {
    let text = format!(r#"{{"metadata":{{"name":"{name}"}}}}"#);
    crate::kube::decode::item(Kind::Namespace, text.as_bytes()).unwrap()
}

fn unreadable(name: &str) -> Listed {
    Listed { name: name.into(), object: Err("odd".into()) }
}

fn page(version: &str, more: Option<&str>) -> Page {
    Page { version: version.into(), more: more.map(str::to_owned) }
}

fn is(name: &str, version: &str) -> Event {
    Event::Is { listed: listed(name), version: version.into() }
}

/// What was said since the last time, a word each.
fn said(follow: &mut Follow) -> Vec<String> {
    std::iter::from_fn(|| follow.poll_output())
        .map(|output| match output {
            Output::Say(SourceEvent::Upsert(object)) => format!("+{}", object.reference().name),
            Output::Say(SourceEvent::Remove(reference)) => format!("-{}", reference.name),
            Output::Say(SourceEvent::Problem(p)) => {
                format!("problem {}{}", p.file, if p.blind { " blind" } else { "" })
            }
            Output::Say(SourceEvent::Healed { file }) => format!("healed {file}"),
            Output::Say(SourceEvent::Synced) => unreachable!(),
            Output::Listed => "listed".into(),
        })
        .collect()
}

fn watch(version: &str) -> Ask {
    Ask::Watch { version: version.into() }
}

fn fresh_list() -> Ask {
    Ask::List { limit: Some(PAGE), token: None }
}

/// After a first list of a and b at version 10.
fn synced() -> Follow {
    let mut follow = follow();
    for name in ["a", "b"] {
        follow.handle_item(listed(name));
    }
    follow.handle_page(page("10", None));
    said(&mut follow);
    follow
}

fn fail(follow: &mut Follow, failure: Failure) -> Duration {
    let now = Instant::now();
    follow.handle_failure(failure, now, u32::MAX);
    follow.poll_deadline().map_or(Duration::ZERO, |at| at - now)
}

fn refused(code: u16, retry_after: Option<u64>) -> Failure {
    Failure::Refused { code, reason: "X".into(), message: "no".into(), retry_after }
}

#[test]
fn the_first_list_is_complete_after_its_last_page() {
    let mut follow = follow();
    assert_eq!(*follow.ask(), fresh_list());
    follow.handle_item(listed("a"));
    follow.handle_page(page("10", Some("t/1")));
    assert_eq!(said(&mut follow), ["+a"]);
    assert_eq!(*follow.ask(), Ask::List { limit: Some(PAGE), token: Some("t/1".into()) });
    follow.handle_item(listed("b"));
    follow.handle_page(page("10", None));
    assert_eq!(said(&mut follow), ["+b", "listed"]);
    assert_eq!(*follow.ask(), watch("10"));
}

#[test]
fn a_watch_goes_on_from_the_last_version_it_was_told() {
    let mut follow = synced();
    follow.handle_event(is("c", "11"));
    follow.handle_event(Event::Gone { name: "a".into(), version: "12".into() });
    follow.handle_event(Event::Gone { name: "never-seen".into(), version: "13".into() });
    follow.handle_event(Event::Bookmark { version: "20".into() });
    assert_eq!(said(&mut follow), ["+c", "-a"]);
    assert_eq!(fail(&mut follow, Failure::Ended), Duration::ZERO, "an ordinary end is gone on from at once");
    assert_eq!(*follow.ask(), watch("20"));
}

#[test]
fn what_a_new_list_does_not_hold_is_gone_and_what_is_new_is_told() {
    let mut follow = synced();
    fail(&mut follow, Failure::Expired);
    assert_eq!(*follow.ask(), fresh_list());
    follow.handle_item(listed("b"));
    follow.handle_item(listed("c"));
    follow.handle_page(page("30", None));
    assert_eq!(said(&mut follow), ["+b", "+c", "-a"], "and it is not the first list again");
    assert_eq!(*follow.ask(), watch("30"));
}

#[test]
fn a_list_that_breaks_off_removes_nothing_and_what_it_showed_does_not_count() {
    let mut follow = synced();
    fail(&mut follow, Failure::Expired);
    follow.handle_item(listed("a"));
    fail(&mut follow, Failure::Unreachable("reset".into()));
    assert_eq!(said(&mut follow), ["+a"]);
    // By now a is gone: seen in the list that broke off, not in the one that counts.
    follow.handle_item(listed("b"));
    follow.handle_page(page("31", None));
    assert_eq!(said(&mut follow), ["+b", "-a"]);
}

#[test]
fn an_answer_that_is_lost_between_pages_is_asked_for_again_with_its_token() {
    let mut follow = synced();
    fail(&mut follow, Failure::Expired);
    follow.handle_item(listed("a"));
    follow.handle_page(page("30", Some("t")));
    fail(&mut follow, refused(500, None));
    assert_eq!(*follow.ask(), Ask::List { limit: Some(PAGE), token: Some("t".into()) });
    follow.handle_item(listed("b"));
    follow.handle_page(page("30", None));
    assert_eq!(said(&mut follow), ["+a", "+b"]);
}

#[test]
fn a_list_whose_tokens_always_expire_is_asked_for_whole() {
    let mut follow = follow();
    for _ in 0..EXPIRED_PAGES {
        assert_eq!(*follow.ask(), fresh_list());
        follow.handle_page(page("1", Some("t")));
        fail(&mut follow, Failure::Expired);
    }
    assert_eq!(*follow.ask(), Ask::List { limit: None, token: None });
}

#[test]
fn waits_double_to_their_most_and_heed_the_server() {
    let mut follow = synced();
    let down = || Failure::Unreachable("down".into());
    let waits: Vec<_> = (0..6).map(|_| fail(&mut follow, down()).as_secs()).collect();
    assert_eq!(waits, [1, 2, 4, 8, 8, 8]);
    assert_eq!(fail(&mut follow, refused(429, Some(60))).as_secs(), 60);
    assert_eq!(fail(&mut follow, refused(429, Some(1_000_000))), MAX_RETRY_AFTER);
    let now = Instant::now();
    follow.handle_failure(down(), now, 0);
    assert_eq!(follow.poll_deadline(), Some(now + PACE.most / 2), "half of it is random");
    follow.handle_item(listed("a"));
    follow.handle_page(page("40", None));
    assert_eq!((follow.poll_deadline(), fail(&mut follow, down()).as_secs()), (None, 1));
}

#[test]
fn a_watch_that_only_ever_fails_becomes_a_list() {
    let mut follow = synced();
    for _ in 0..DEAF {
        assert_eq!(*follow.ask(), watch("10"));
        fail(&mut follow, Failure::Malformed("x".into()));
    }
    assert_eq!(*follow.ask(), fresh_list());
    let mut quiet = synced();
    for _ in 0..10 {
        quiet.handle_silence();
        assert_eq!(fail(&mut quiet, Failure::Ended), Duration::ZERO);
        assert_eq!(*quiet.ask(), watch("10"), "nothing happens in this cluster, and that is fine");
    }
}

#[test]
fn a_failure_is_told_when_it_lasts_and_a_refusal_at_once() {
    let mut first = follow();
    let what = "kubernetes /api/v1/namespaces";
    fail(&mut first, refused(403, None));
    assert_eq!(said(&mut first), [format!("problem {what} blind")]);
    first.handle_page(page("1", None));
    assert_eq!(said(&mut first), [format!("healed {what}"), "listed".into()]);
    let mut later = synced();
    for _ in 1..TOLD_AFTER {
        fail(&mut later, Failure::Unreachable("down".into()));
    }
    assert_eq!(said(&mut later), [""; 0]);
    for _ in 0..3 {
        fail(&mut later, Failure::Unreachable("down".into()));
    }
    assert_eq!(said(&mut later), [format!("problem {what}")], "once, and what was read is known");
}

#[test]
fn an_object_that_cannot_be_read_is_there_all_the_same() {
    let mut follow = synced();
    let title = "kubernetes Namespace a";
    follow.handle_event(Event::Is { listed: unreadable("a"), version: "11".into() });
    assert_eq!(said(&mut follow), [format!("problem {title}")]);
    fail(&mut follow, Failure::Expired);
    follow.handle_item(unreadable("a"));
    follow.handle_page(page("30", None));
    assert_eq!(said(&mut follow), [format!("problem {title}"), "-b".into()], "its last good state stays");
    follow.handle_event(is("a", "31"));
    assert_eq!(said(&mut follow), ["+a".to_owned(), format!("healed {title}")]);
    follow.handle_event(Event::Is { listed: unreadable("new"), version: "32".into() });
    follow.handle_event(Event::Gone { name: "new".into(), version: "33".into() });
    let new = "kubernetes Namespace new";
    assert_eq!(said(&mut follow), [format!("problem {new}"), format!("healed {new}")], "nothing was told");
}
