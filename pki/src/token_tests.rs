//! A token joins one node, once, for a day.

use super::*;

fn now() -> Timestamp {
    Timestamp::parse("2026-11-20T21:44:55Z").unwrap()
}

fn node(text: &str) -> NodeName {
    NodeName::parse(text).unwrap()
}

fn token() -> Token {
    Token::create(&mut rand::rng())
}

#[test]
fn a_token_joins_its_node_within_a_day() {
    let token = token();
    let stored = StoredToken::from_json(&token.stored(node("node-1"), now()).to_json()).unwrap();
    let presented = Token::parse(&format!("{}\n", token.reveal())).unwrap();
    assert_eq!(presented, token);
    assert_eq!(stored.verify(&presented, &node("node-1"), now()), Ok(()));
    assert_eq!(stored.verify(&presented, &node("node-1"), stored.expires), Ok(()));
}

#[test]
fn expired_other_node_and_unknown_are_told_apart() {
    let one = token();
    let stored = one.stored(node("node-1"), now());
    let late = now().plus(Token::LIFETIME).plus(Duration::from_secs(1));
    let error = stored.verify(&one, &node("node-1"), late).unwrap_err();
    assert!(matches!(error, TokenError::Expired { .. }), "{error}");
    let error = stored.verify(&one, &node("node-2"), now()).unwrap_err();
    assert!(error.to_string().contains("bound to node node-1, not to node-2"), "{error}");
    // The right id with the wrong secret learns neither the node nor the time.
    let forged = Token { id: one.id.clone(), ..token() };
    let error = stored.verify(&forged, &node("node-2"), late).unwrap_err();
    assert!(matches!(error, TokenError::Unknown { .. }), "{error}");
}

#[test]
fn a_secret_is_never_stored_or_printed() {
    let token = token();
    let secret = token.reveal().split('.').nth(2).unwrap().to_owned();
    let stored = token.stored(node("node-1"), now());
    let shown = format!("{token:?} {stored:?} {}", String::from_utf8(stored.to_json()).unwrap());
    assert!(!shown.contains(&secret));
    assert!(shown.contains(token.id()));
}

#[test]
fn a_given_random_source_gives_a_given_token() {
    use rand::SeedableRng;
    let token = || Token::create(&mut rand::rngs::StdRng::seed_from_u64(7)).reveal();
    assert_eq!(token(), token());
    assert!(token().starts_with("hwt1.") && token().len() == 5 + 12 + 1 + 43, "{}", token());
}

#[test]
fn malformed_tokens_and_records_are_refused() {
    let good = token().reveal();
    for bad in [
        "",
        "hwt1",
        "hwt2.AAAAAAAAAAAA.x",
        &good[..good.len() - 1],
        &format!("{good}A"),
        &format!("{good}.x"),
        &good.replace('.', "!"),
        &format!("hwt1.../{}", &good[8..]),
    ] {
        assert_eq!(Token::parse(bad), Err(TokenError::Malformed), "{bad}");
    }
    let json = String::from_utf8(token().stored(node("node-1"), now()).to_json()).unwrap();
    for bad in [
        "",
        "{}",
        &json.replace("node-1", "Node"),
        &json.replace("2026", "26"),
        &json.replace("\"hash\":\"", "\"hash\":\"AA"),
    ] {
        assert_eq!(StoredToken::from_json(bad.as_bytes()), Err(TokenError::Stored), "{bad}");
    }
}
