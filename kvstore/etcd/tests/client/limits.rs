//! Limits of a mirror: what is too much is refused and said, what is too fast comes later, and nothing is lost.

use hawser_etcd::client::HeldBy;
use hawser_etcd::mirror::{Intake, KEY_LIMIT, Mirror, MirrorConfig, MirrorState, VALUE_LIMIT};

use crate::harness::{TestServer, eventually, memory};
use crate::mirrors::{admit_all, exported, held, mirror_of};

#[tokio::test]
async fn a_peer_that_is_too_fast_is_read_later_and_nothing_of_it_is_lost() {
    let origin = TestServer::serving(memory("us-east", 7)).await;
    let here = TestServer::serving(memory("eu-west", 8)).await;
    for n in 0..200 {
        origin.put(&format!("cilium/state/{n}"), "listed").await;
    }
    let intake = Intake { keys: 250, events_per_second: 1000, ..Intake::default() };
    let config = MirrorConfig { intake, ..mirror_of(origin.addr, admit_all) };
    let mirror = Mirror::start(config, &here.keyspaces).unwrap();
    eventually("the list has come", || held(&here) == exported(&origin)).await;
    assert_eq!(mirror.status().held, None, "a list that fits is not slowed");
    for n in 0..1500 {
        origin.put(&format!("cilium/state/{}", n % 200), &n.to_string()).await;
    }
    eventually("it is held", || mirror.status().held.is_some_and(|(_, by)| by == HeldBy::Events)).await;
    eventually("everything has come", || held(&here) == exported(&origin)).await;
    let status = mirror.status();
    assert!(!status.held_for.is_zero() && status.refused.is_empty(), "{status:?}");
    assert_eq!((status.state, status.relists, status.reconnects), (MirrorState::Synced, 0, 0));
}

#[tokio::test]
async fn what_is_beyond_the_key_limit_is_refused_by_name_and_comes_when_there_is_room() {
    let origin = TestServer::serving(memory("us-east", 7)).await;
    let here = TestServer::serving(memory("eu-west", 8)).await;
    for n in 10..18 {
        origin.put(&format!("cilium/state/{n}"), "early").await;
    }
    let config = MirrorConfig {
        intake: Intake { keys: 10, ..Intake::default() },
        ..mirror_of(origin.addr, admit_all)
    };
    let mirror = Mirror::start(config, &here.keyspaces).unwrap();
    eventually("the list has come", || held(&here) == exported(&origin)).await;
    for n in 18..24 {
        origin.put(&format!("cilium/state/{n}"), "late").await;
    }
    origin.put("cilium/state/10", "changed").await;
    eventually("what is there can be changed", || held(&here)[0].value == "changed").await;
    let keys = held(&here).into_iter().map(|kv| String::from_utf8_lossy(&kv.key[13..]).into_owned());
    assert_eq!(keys.collect::<Vec<_>>(), (10..20).map(|n| n.to_string()).collect::<Vec<_>>());
    let status = mirror.status();
    assert_eq!((status.keys, status.refused[KEY_LIMIT]), (10, 4));
    let crowded = status.crowded.unwrap();
    assert!(crowded.contains("cilium/state/23: the mirror of us-east may hold 10 keys"), "{crowded}");
    assert!(crowded.contains("fix: "), "{crowded}");

    origin.delete("cilium/state/11").await;
    eventually("one less is not yet room", || held(&here).len() == 9).await;
    for n in 12..18 {
        origin.delete(&format!("cilium/state/{n}")).await;
    }
    eventually("everything is there", || held(&here) == exported(&origin)).await;
    eventually("nothing is missing any more", || mirror.status().crowded.is_none()).await;
    assert!(mirror.status().relists > 0);
}

#[tokio::test]
async fn a_value_that_is_too_large_leaves_the_one_before_it() {
    let origin = TestServer::serving(memory("us-east", 7)).await;
    let here = TestServer::serving(memory("eu-west", 8)).await;
    let intake = Intake { value_bytes: 10, ..Intake::default() };
    let config = MirrorConfig { intake, ..mirror_of(origin.addr, admit_all) };
    let mirror = Mirror::start(config, &here.keyspaces).unwrap();
    eventually("synced", || mirror.status().state == MirrorState::Synced).await;
    origin.put("cilium/state/a", "short").await;
    origin.put("cilium/state/a", "too long a value").await;
    origin.put("cilium/state/b", "after it").await;
    eventually("b has come", || held(&here).len() == 2).await;
    assert_eq!(held(&here)[0].value, "short");
    assert_eq!(mirror.status().refused[VALUE_LIMIT], 1);
    let why = mirror.status().last_refusal.unwrap();
    assert!(why.contains("16 bytes") && why.contains("valueBytes"), "{why}");
}
