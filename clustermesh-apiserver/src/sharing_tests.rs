//! Agents that say what they find, and what each of them hears.

use super::*;

/// Much faster than shipped.
fn sharing() -> Arc<Sharing> {
    let Pace { stale, changed, anyway } = Pace::default();
    let pace = Pace { stale: stale / 20, changed: changed / 100, anyway: anyway / 100 };
    Arc::new(Sharing { pace, ..Sharing::default() })
}

struct Agent {
    say: mpsc::Sender<Result<ShareRequest, Status>>,
    replies: Replies,
}

fn agent(sharing: &Arc<Sharing>, name: &str) -> Agent {
    let (say, words) = mpsc::channel(4);
    let words = stream::unfold(words, |mut words: mpsc::Receiver<_>| async move {
        words.recv().await.map(|word| (word, words))
    });
    let replies = Arc::clone(sharing).serve(NodeName::parse(name).unwrap(), words.boxed());
    Agent { say, replies }
}

fn down(cluster_id: u32, nodes: &[u32]) -> ShareRequest {
    let down = NodesDown { cluster_id, nodes: nodes.to_vec() };
    ShareRequest { down: if nodes.is_empty() { Vec::new() } else { vec![down] } }
}

impl Agent {
    async fn says(&self, word: ShareRequest) {
        self.say.send(Ok(word)).await.unwrap();
    }

    /// Once the members and what they find are these.
    async fn hears(&mut self, members: &[&str], found: &[u32]) {
        loop {
            let reply = self.replies.next().await.unwrap().unwrap();
            let nodes: Vec<u32> = reply.down.iter().flat_map(|down| down.nodes.clone()).collect();
            if reply.members == members && nodes == found {
                return;
            }
        }
    }
}

#[tokio::test]
async fn each_hears_what_any_finds_and_one_that_leaves_takes_its_word_along() {
    let sharing = sharing();
    let (mut one, mut two) = (agent(&sharing, "node-1"), agent(&sharing, "node-2"));
    one.says(down(2, &[])).await;
    one.hears(&["node-1"], &[]).await;
    two.says(down(2, &[7, 9])).await;
    two.hears(&["node-1", "node-2"], &[7, 9]).await;
    one.hears(&["node-1", "node-2"], &[7, 9]).await;
    one.says(down(2, &[7, 8])).await;
    two.hears(&["node-1", "node-2"], &[7, 8, 9]).await;
    assert_eq!(sharing.counts(), (2, 3));
    drop(two);
    one.hears(&["node-1"], &[7, 8]).await;
    assert_eq!(sharing.counts(), (1, 2));
}

#[tokio::test]
async fn one_that_falls_silent_shares_nothing_any_more() {
    let sharing = sharing();
    let (mut one, two) = (agent(&sharing, "node-1"), agent(&sharing, "node-2"));
    two.says(down(2, &[7])).await;
    one.says(down(2, &[])).await;
    one.hears(&["node-1", "node-2"], &[7]).await;
    // It goes on speaking until it hears that it is alone.
    let say = one.say.clone();
    let speaking = tokio::spawn(async move {
        while say.send(Ok(down(2, &[]))).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    one.hears(&["node-1"], &[]).await;
    speaking.abort();
    drop(two);
}

#[tokio::test]
async fn a_node_that_connects_again_is_heard_on_its_newer_stream() {
    let sharing = sharing();
    let mut old = agent(&sharing, "node-1");
    old.says(down(2, &[7])).await;
    old.hears(&["node-1"], &[7]).await;
    let mut new = agent(&sharing, "node-1");
    new.says(down(2, &[8])).await;
    new.hears(&["node-1"], &[8]).await;
    old.says(down(2, &[7])).await;
    let refused = loop {
        if let Err(status) = old.replies.next().await.unwrap() {
            break status;
        }
    };
    assert_eq!(refused.code(), tonic::Code::Aborted);
    assert!(old.replies.next().await.is_none());
    new.hears(&["node-1"], &[8]).await;
}

#[tokio::test]
async fn what_no_mesh_has_is_refused() {
    let sharing = sharing();
    let many: Vec<u32> = (1..=u32::try_from(MOST_FOUND).unwrap() + 1).collect();
    for word in [down(0, &[1]), down(512, &[1]), down(2, &[0]), down(2, &[65_536]), down(2, &many)] {
        let mut one = agent(&sharing, "node-1");
        one.says(word).await;
        let status = one.replies.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    }
}
