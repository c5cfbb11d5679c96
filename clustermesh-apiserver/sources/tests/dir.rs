//! A directory of manifests as an operator treats it: edited, broken, moved, wiped.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that unwraps reads better")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use hawser_sources::{DirSource, Object, SourceEvent};

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n  \
         clusterIP: 10.96.10.1\n  ports:\n  - port: {port}\n"
    )
}

/// The next event; a test that hangs says so.
async fn next(source: &mut DirSource) -> SourceEvent {
    tokio::time::timeout(Duration::from_secs(30), source.next()).await.expect("no event came").unwrap()
}

/// In one word: what a test wants to read.
fn word(event: &SourceEvent) -> String {
    match event {
        SourceEvent::Upsert(Object::Service(s)) => {
            format!("upsert {} {}", s.key.name(), s.ports[0].1.port)
        }
        SourceEvent::Upsert(other) => format!("upsert {}", other.reference()),
        SourceEvent::Remove(reference) => format!("remove {}", reference.name),
        SourceEvent::Synced => "synced".into(),
        SourceEvent::Problem(p) => {
            format!("problem {}:{}{}", p.file, p.line, if p.blind { " blind" } else { "" })
        }
        SourceEvent::Healed { file } => format!("healed {file}"),
    }
}

async fn expect(source: &mut DirSource, words: &[&str]) {
    for expected in words {
        let event = next(source).await;
        assert_eq!(word(&event), *expected, "{event:?}");
    }
}

/// As a careful editor writes: a temporary file, renamed over the old one.
fn replace(dir: &Path, name: &str, text: &str) {
    let temporary = dir.join(format!("{name}.tmp"));
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, dir.join(name)).unwrap();
}

#[tokio::test]
async fn edits_are_seen_however_they_are_made() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), service("cart", 80)).unwrap();
    let mut source = DirSource::start(dir.path()).unwrap();
    expect(&mut source, &["upsert cart 80", "synced"]).await;
    replace(dir.path(), "a.yaml", &service("cart", 81));
    expect(&mut source, &["upsert cart 81"]).await;
    fs::write(dir.path().join("a.yaml"), service("cart", 82)).unwrap();
    expect(&mut source, &["upsert cart 82"]).await;
    fs::write(dir.path().join("b.yaml"), service("till", 90)).unwrap();
    expect(&mut source, &["upsert till 90"]).await;
    fs::remove_file(dir.path().join("b.yaml")).unwrap();
    expect(&mut source, &["remove till"]).await;
}

#[tokio::test]
async fn a_broken_file_keeps_its_last_good_objects_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), service("cart", 80)).unwrap();
    fs::write(dir.path().join("z.yaml"), "kind: [\n").unwrap();
    let mut source = DirSource::start(dir.path()).unwrap();
    // What the second file held before this process began is not known.
    expect(&mut source, &["upsert cart 80", "problem z.yaml:1 blind", "synced"]).await;
    replace(dir.path(), "a.yaml", &service("cart", 80).replace("port: 80", "port: x"));
    expect(&mut source, &["problem a.yaml:9"]).await;
    replace(dir.path(), "z.yaml", &service("till", 90));
    expect(&mut source, &["upsert till 90", "healed z.yaml"]).await;
    replace(dir.path(), "a.yaml", &service("cart", 83));
    expect(&mut source, &["upsert cart 83", "healed a.yaml"]).await;
    // Emptied by mistake: nothing is removed.
    replace(dir.path(), "a.yaml", "");
    expect(&mut source, &["problem a.yaml:0"]).await;
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    expect(&mut source, &["remove cart", "healed a.yaml"]).await;
}

#[tokio::test]
async fn an_object_that_moves_between_files_never_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), service("cart", 80)).unwrap();
    let mut source = DirSource::start(dir.path()).unwrap();
    expect(&mut source, &["upsert cart 80", "synced"]).await;
    fs::write(dir.path().join("b.yaml"), service("cart", 81)).unwrap();
    expect(&mut source, &["problem b.yaml:0"]).await;
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    expect(&mut source, &["upsert cart 81", "healed b.yaml"]).await;
    fs::rename(dir.path().join("b.yaml"), dir.path().join("c.yaml")).unwrap();
    replace(dir.path(), "c.yaml", &service("cart", 82));
    expect(&mut source, &["upsert cart 82"]).await;
}

#[tokio::test]
async fn a_directory_that_vanishes_removes_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("manifests");
    let mut source = DirSource::start(&dir).unwrap();
    let problem = next(&mut source).await;
    assert!(word(&problem).ends_with("manifests:0 blind"), "{problem:?}");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), service("cart", 80)).unwrap();
    assert!(word(&next(&mut source).await).starts_with("healed"));
    // Whether the file was there at the first look or came just after it, nothing else is said.
    let mut first = [word(&next(&mut source).await), word(&next(&mut source).await)];
    first.sort();
    assert_eq!(first, ["synced", "upsert cart 80"]);
    let aside = parent.path().join("aside");
    fs::rename(&dir, &aside).unwrap();
    let problem = next(&mut source).await;
    assert!(word(&problem).ends_with("manifests:0"), "{problem:?}");
    fs::rename(&aside, &dir).unwrap();
    assert!(word(&next(&mut source).await).starts_with("healed"));
    replace(&dir, "a.yaml", &service("cart", 81));
    expect(&mut source, &["upsert cart 81"]).await;
}

#[tokio::test]
async fn what_is_not_a_manifest_is_left_alone_and_links_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("README"), "not: [yaml").unwrap();
    fs::write(dir.path().join(".a.yaml.swp"), "not: [yaml").unwrap();
    let mut source = DirSource::start(dir.path()).unwrap();
    expect(&mut source, &["synced"]).await;
    // A mounted ConfigMap: files are links into `..data`, a link to a directory that is swapped.
    for (version, port) in [("..v1", 80), ("..v2", 81)] {
        fs::create_dir(dir.path().join(version)).unwrap();
        fs::write(dir.path().join(version).join("a.yaml"), service("cart", port)).unwrap();
    }
    std::os::unix::fs::symlink("..v1", dir.path().join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
    expect(&mut source, &["upsert cart 80"]).await;
    std::os::unix::fs::symlink("..v2", dir.path().join("..new")).unwrap();
    fs::rename(dir.path().join("..new"), dir.path().join("..data")).unwrap();
    expect(&mut source, &["upsert cart 81"]).await;
}
