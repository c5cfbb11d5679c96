//! A NetworkPolicy that comes when clusters are connected already: nothing can refuse it, so it is told.

use crate::cluster::{Cluster, SHOP, eventually, open_shop};
use hawser_api::admin::ConnectRequest;

#[tokio::test]
async fn a_policy_that_comes_after_connect_is_told_until_it_is_accepted_or_gone() {
    let (mut us, mut eu) = (Cluster::with_shop("us-east", 1), Cluster::with_shop("eu-west", 2));
    us.start(&[]).await;
    eu.start(&[]).await;
    us.connect_with(&eu).await;
    assert_eq!(us.status().await.source_errors, Vec::<String>::new());
    let told = async |expected: bool| {
        eventually(&format!("told: {expected}"), async || {
            let errors = us.status().await.source_errors;
            let told = errors.iter().any(|error| {
                ["eu-west", "NetworkPolicy shop/only-shop", "fix:"].iter().all(|word| error.contains(word))
            });
            if told == expected { Ok(()) } else { Err(format!("{errors:?}")) }
        })
        .await;
    };
    us.manifest("shop.yaml", SHOP);
    told(true).await;
    us.manifest("shop.yaml", &open_shop());
    told(false).await;
    us.manifest("shop.yaml", SHOP);
    told(true).await;
    let warned = us.log().lines().filter(|line| line.contains("WARN") && line.contains("guards")).count();
    assert_eq!(warned, 2, "once each time it came");
    let bundle = eu.bundle_for("us-east").await;
    let accept = ConnectRequest { bundle, policy_bypass_accepted: true, ..Default::default() };
    us.admin().await.connect(accept).await.unwrap();
    told(false).await;
}
