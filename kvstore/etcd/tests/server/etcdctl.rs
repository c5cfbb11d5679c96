//! The same `etcdctl` scripts against a real etcd and against us: the same answers, but for the headers' ids.

use crate::harness::{RealEtcd, Running, TestServer, etcdctl, etcdctl_with_input};
use std::net::SocketAddr;
use std::process::Output;

/// One line of a script: what is typed, and what is typed into it. `{lease}` is the first lease that was granted.
struct Step {
    args: &'static str,
    input: Option<&'static str>,
}

const fn run(args: &'static str) -> Step {
    Step { args, input: None }
}

const fn txn(input: &'static str) -> Step {
    Step { args: "txn", input: Some(input) }
}

#[derive(Debug, PartialEq)]
struct Answer {
    args: String,
    code: Option<i32>,
    stdout: String,
    errors: Vec<String>,
}

/// Replaces what may differ: the ids in headers, the lease's random id, and how many of its seconds are left.
fn normalised(text: &str, lease: &str) -> String {
    let mut text = text.to_owned();
    let json = ["\"cluster_id\":", "\"member_id\":", "\"raft_term\":"];
    let fields = ["\"ClusterID\" : ", "\"MemberID\" : ", "\"RaftTerm\" : "];
    for field in json.into_iter().chain(fields) {
        text = without_number_after(&text, field);
    }
    text = without_number_after(&text, "remaining(");
    if !lease.is_empty() {
        let decimal = i64::from_str_radix(lease, 16).unwrap().to_string();
        text = text.replace(lease, "LEASE").replace(&decimal, "LEASE");
    }
    in_order(&text, "attached keys([", "])")
}

/// etcd keeps a lease's keys in a map of Go's, which has no order.
fn in_order(text: &str, begin: &str, end: &str) -> String {
    let Some((before, (list, after))) =
        text.split_once(begin).and_then(|(before, rest)| Some((before, rest.split_once(end)?)))
    else {
        return text.to_owned();
    };
    let mut keys: Vec<_> = list.split(' ').collect();
    keys.sort_unstable();
    format!("{before}{begin}{}{end}{after}", keys.join(" "))
}

fn without_number_after(text: &str, field: &str) -> String {
    let mut parts = text.split(field);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(field);
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    out
}

fn answers(endpoint: SocketAddr, script: &[Step]) -> Vec<Answer> {
    let mut lease = String::new();
    let mut answers = Vec::new();
    for step in script {
        let typed = step.args.replace("{lease}", &lease);
        let args: Vec<&str> =
            typed.split_whitespace().map(|arg| if arg == "''" { "" } else { arg }).collect();
        let Output { status, stdout, stderr } = match step.input {
            Some(input) => etcdctl_with_input(endpoint, &args, input),
            None => etcdctl(endpoint, &args),
        };
        let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        if lease.is_empty() && step.args.starts_with("lease grant") {
            // "lease 694d7a2b granted with TTL(60s)"
            stdout.split_whitespace().nth(1).unwrap_or_default().clone_into(&mut lease);
        }
        let errors = stderr.lines().filter(|line| line.starts_with("Error:"));
        answers.push(Answer {
            args: step.args.to_owned(),
            code: status.code(),
            stdout: normalised(&stdout, &lease),
            errors: errors.map(|line| normalised(line, &lease)).collect(),
        });
    }
    answers
}

async fn same_answers<const N: usize>(script: [Step; N]) {
    let server = TestServer::start().await;
    let addr = server.addr;
    let (theirs, ours) = tokio::task::spawn_blocking(move || {
        let etcd = RealEtcd::start();
        (answers(etcd.addr, &script), answers(addr, &script))
    })
    .await
    .unwrap();
    for (theirs, ours) in theirs.iter().zip(&ours) {
        assert_eq!(ours, theirs, "left is ours, right is etcd's");
    }
    assert!(theirs.iter().any(|answer| answer.code == Some(0)), "etcd itself answered nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_put_read_and_deleted_as_in_etcd() {
    same_answers([
        run("get nothing -w json"),
        run("put ship/a one"),
        run("put ship/b two -w json"),
        run("put ship/c three"),
        run("put ship/a four --prev-kv"),
        run("put ship/a five --prev-kv -w json"),
        run("put shore/x six"),
        run("get ship/a"),
        run("get ship/a -w json"),
        run("get ship/a -w fields --rev=2"),
        run("get ship/ --prefix"),
        run("get ship/ --prefix -w json"),
        run("get ship/ --prefix --limit=2 -w json"),
        run("get ship/ --prefix --keys-only"),
        run("get ship/ --prefix --keys-only -w json"),
        run("get ship/ --prefix --rev=3 -w json"),
        run("get ship/ --prefix --sort-by=MODIFY --order=DESCEND"),
        run("get ship/ --prefix --sort-by=VALUE --order=ASCEND"),
        run("get ship/ --prefix --sort-by=VERSION --order=DESCEND --limit=1 -w json"),
        run("get ship/ --prefix --sort-by=CREATE"),
        run("get ship/ --prefix --order=DESCEND"),
        run("get ship/b --from-key"),
        run("get '' --prefix --keys-only"),
        run("get ship/a ship/c"),
        run("get z a -w json"),
        run("get ship/a --rev=100"),
        run("put ship/a --ignore-value"),
        run("put ship/never --ignore-value"),
        run("get ship/a -w json"),
        run("del ship/a --prev-kv"),
        run("del ship/a -w json"),
        run("get ship/a -w json"),
        run("get ship/a --rev=6 -w json"),
        run("put ship/a again"),
        run("get ship/a -w json"),
        run("del ship/ --prefix -w json"),
        run("del '' --from-key --prev-kv -w json"),
        run("get '' --prefix -w json"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_compare_and_branch_as_in_etcd() {
    same_answers([
        run("put a 1"),
        run("put b 2"),
        txn("value(\"a\") = \"1\"\n\nput a 10\nget a\n\nput a 20\n\n"),
        txn("value(\"a\") = \"1\"\n\nput a 10\n\nget b\ndel b\n\n"),
        txn("create(\"missing\") = \"0\"\n\nput missing here\n\n\n"),
        txn("value(\"never\") = \"\"\n\nput x 1\n\nput y 1\n\n"),
        txn("mod(\"a\") > \"2\"\nversion(\"a\") < \"9\"\nmod(\"b\") != \"3\"\n\nget a\nget b\n\n\n"),
        txn("lease(\"a\") = \"0\"\n\nput a 30\n\n\n"),
        txn("\nput twice 1\nput twice 2\n\n\n"),
        txn("\nput k 1\ndel k\n\n\n"),
        txn("\nput k1 1\nput k2 2\nput k3 3\ndel a\n\n\n"),
        run("get '' --prefix -w json"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_hold_keys_as_in_etcd() {
    same_answers([
        run("lease list"),
        run("lease grant 600"),
        run("lease list"),
        run("put boat/1 a --lease={lease}"),
        run("put boat/2 b --lease={lease}"),
        run("put boat/1 a2 --ignore-lease"),
        run("get boat/1 -w json"),
        run("lease timetolive {lease}"),
        run("lease timetolive {lease} --keys"),
        run("lease keep-alive {lease} --once"),
        run("put boat/2 free"),
        run("lease timetolive {lease} --keys"),
        run("put boat/3 c --lease=7b"),
        run("lease revoke {lease}"),
        run("get boat/ --prefix -w json"),
        run("lease timetolive {lease}"),
        run("lease revoke {lease}"),
        run("lease keep-alive {lease} --once"),
        run("lease list"),
        run("lease grant 10000000000"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_forgets_the_past_as_in_etcd() {
    same_answers([
        run("put a 1"),
        run("put a 2"),
        run("del a"),
        run("put a 3"),
        run("put b 1"),
        run("compaction 4"),
        run("get a --rev=3"),
        run("get a --rev=4 -w json"),
        run("get a --rev=5 -w json"),
        run("compaction 4"),
        run("compaction 100"),
        run("compaction 6"),
        run("get '' --prefix -w json"),
        run("get '' --prefix --rev=5"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_shows_the_same_events_as_in_etcd() {
    fn script(endpoint: SocketAddr) -> Vec<String> {
        for args in [
            ["put", "w/a", "1"].as_slice(),
            &["put", "w/b", "1"],
            &["put", "x", "unseen"],
            &["put", "w/a", "2"],
            &["del", "w/", "--prefix"],
        ] {
            assert!(etcdctl(endpoint, args).status.success());
        }
        let mut seen = Running::start(endpoint, &["watch", "w/", "--prefix", "--rev=2"]).lines(5 * 3);
        seen.extend(Running::start(endpoint, &["watch", "w/a", "--rev=3", "--prev-kv"]).lines(5 + 5));
        seen.push(normalised(
            &Running::start(endpoint, &["watch", "w/", "w0", "--rev=1", "-w", "json"]).lines(1)[0],
            "",
        ));
        seen
    }
    let server = TestServer::start().await;
    let addr = server.addr;
    let (theirs, ours) = tokio::task::spawn_blocking(move || {
        let etcd = RealEtcd::start();
        (script(etcd.addr), script(addr))
    })
    .await
    .unwrap();
    assert_eq!(ours, theirs, "left is ours, right is etcd's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interactive_watch_is_told_of_progress_and_of_live_writes() {
    let server = TestServer::start().await;
    let addr = server.addr;
    tokio::task::spawn_blocking(move || {
        assert!(etcdctl(addr, &["put", "k", "v"]).status.success());
        let mut watching = Running::start(addr, &["watch", "-i"]);
        watching.type_line("watch k --rev=2");
        watching.type_line("progress");
        assert_eq!(watching.lines(4), ["PUT", "k", "v", "progress notify: 2"]);
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_from_a_compacted_revision_ends_as_in_etcd() {
    fn script(endpoint: SocketAddr) -> Vec<String> {
        for value in ["1", "2", "3", "4"] {
            assert!(etcdctl(endpoint, &["put", "k", value]).status.success());
        }
        assert!(etcdctl(endpoint, &["compaction", "4"]).status.success());
        let ended = etcdctl(endpoint, &["watch", "k", "--rev=2"]);
        let mut seen: Vec<String> =
            String::from_utf8(ended.stderr).unwrap().lines().map(str::to_owned).collect();
        seen.extend(Running::start(endpoint, &["watch", "k", "--rev=4"]).lines(6));
        seen
    }
    let server = TestServer::start().await;
    let addr = server.addr;
    let (theirs, ours) = tokio::task::spawn_blocking(move || {
        let etcd = RealEtcd::start();
        (script(etcd.addr), script(addr))
    })
    .await
    .unwrap();
    assert_eq!(ours, theirs, "left is ours, right is etcd's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_finds_the_endpoint_healthy_and_a_member_of_its_own() {
    let server = TestServer::start().await;
    let addr = server.addr;
    tokio::task::spawn_blocking(move || {
        let status = String::from_utf8(etcdctl(addr, &["endpoint", "status"]).stdout).unwrap();
        assert!(status.contains(hawser_etcd::server::ETCD_VERSION) && status.contains("true"), "{status}");
        let health = etcdctl(addr, &["endpoint", "health"]);
        assert!(health.status.success(), "{health:?}");
        let members = String::from_utf8(etcdctl(addr, &["member", "list"]).stdout).unwrap();
        assert!(members.contains("started, us-east") && members.contains(&addr.to_string()), "{members}");
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_lease_takes_its_keys_and_the_watcher_sees_it() {
    let server = TestServer::start().await;
    let addr = server.addr;
    tokio::task::spawn_blocking(move || {
        let granted = String::from_utf8(etcdctl(addr, &["lease", "grant", "1"]).stdout).unwrap();
        assert!(granted.contains("TTL(2s)"), "etcd's shortest lease has 2 s: {granted}");
        let lease = granted.split_whitespace().nth(1).unwrap();
        assert!(etcdctl(addr, &["put", "mortal", "v", "--lease", lease]).status.success());
        let seen = Running::start(addr, &["watch", "mortal", "--rev=2"]).lines(6);
        assert_eq!(seen, ["PUT", "mortal", "v", "DELETE", "mortal", ""]);
    })
    .await
    .unwrap();
}
