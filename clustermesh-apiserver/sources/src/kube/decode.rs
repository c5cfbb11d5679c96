//! What the API server says, read: list heads, watch events, `Status`, and the objects in them.

use serde::Deserialize;
use serde::de::DeserializeSeed;
use serde::{Deserializer, de};

use super::follow::{Event, Failure, Listed, Page};
use crate::fields::Meta;
use crate::{Kind, Object, convert};

/// How much of a message is kept.
const MAX_MESSAGE: usize = 300;

fn malformed(what: &str, error: &serde_json::Error) -> Failure {
    Failure::Malformed(format!("{what}: {error}"))
}

pub(crate) fn bounded(text: &str) -> String {
    let mut bounded: String = text.chars().take(MAX_MESSAGE).filter(|c| !c.is_control()).collect();
    if text.chars().nth(MAX_MESSAGE).is_some() {
        bounded.push('…');
    }
    bounded
}

/// An object whose kind is known.
struct Of(Kind);

impl<'de> DeserializeSeed<'de> for Of {
    type Value = Object;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Object, D::Error> {
        convert::read(self.0, from)
    }
}

/// What names any object.
#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    metadata: Meta,
}

/// An item of a list. One that cannot be read is still one that is there.
pub(crate) fn item(kind: Kind, text: &[u8]) -> Result<Listed, Failure> {
    let mut from = serde_json::Deserializer::from_slice(text);
    match Of(kind).deserialize(&mut from) {
        Ok(object) => Ok(Listed { name: name_of(&object), object: Ok(object) }),
        Err(error) => {
            let named: Named =
                serde_json::from_slice(text).map_err(|error| malformed("an item of the list", &error))?;
            Ok(Listed { name: name(&named.metadata)?, object: Err(bounded(&error.to_string())) })
        }
    }
}

/// `namespace/name`, or the name alone: unique within a kind.
fn name_of(object: &Object) -> Box<str> {
    let reference = object.reference();
    match reference.namespace.is_empty() {
        true => (*reference.name).into(),
        false => format!("{}/{}", reference.namespace, reference.name).into(),
    }
}

fn name(meta: &Meta) -> Result<Box<str>, Failure> {
    let missing = || Failure::Malformed("an object without a name".into());
    let name = meta.name.as_deref().filter(|name| !name.is_empty()).ok_or_else(missing)?;
    Ok(match meta.namespace.as_deref() {
        Some(namespace) if !namespace.is_empty() => format!("{namespace}/{name}").into(),
        _ => name.into(),
    })
}

/// The head of a list.
pub(crate) fn page(text: &[u8]) -> Result<Page, Failure> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(default)]
        kind: String,
        metadata: ListMeta,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ListMeta {
        #[serde(default)]
        resource_version: String,
        #[serde(default, rename = "continue")]
        continue_token: String,
    }
    let head: Head = serde_json::from_slice(text).map_err(|error| malformed("the list", &error))?;
    if !head.kind.ends_with("List") {
        return Err(Failure::Malformed(format!("a list was asked for, and {:?} came", bounded(&head.kind))));
    }
    if head.metadata.resource_version.is_empty() {
        return Err(Failure::Malformed("the list has no resourceVersion".into()));
    }
    let token = head.metadata.continue_token;
    Ok(Page { version: head.metadata.resource_version, more: (!token.is_empty()).then_some(token) })
}

/// One line of a watch.
pub(crate) fn event(kind: Kind, line: &[u8]) -> Result<Event, Failure> {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "type")]
        type_: String,
        object: Inside,
    }
    // An object, or a Status: no field of the one is a field of the other beside the metadata.
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Inside {
        metadata: Option<Meta>,
        code: u16,
        reason: String,
        message: String,
        details: Option<Details>,
    }
    let envelope: Envelope = serde_json::from_slice(line).map_err(|error| malformed("an event", &error))?;
    let Inside { metadata, code, reason, message, details } = envelope.object;
    let meta = metadata.unwrap_or_default();
    let version = meta.resource_version.clone().filter(|version| !version.is_empty());
    let no_version = || Failure::Malformed("an event without a resourceVersion".into());
    Ok(match envelope.type_.as_str() {
        "ADDED" | "MODIFIED" => Event::Is {
            listed: Listed { name: name(&meta)?, object: object_of(kind, line) },
            version: version.ok_or_else(no_version)?,
        },
        "DELETED" => Event::Gone { name: name(&meta)?, version: version.ok_or_else(no_version)? },
        "BOOKMARK" => Event::Bookmark { version: version.ok_or_else(no_version)? },
        "ERROR" => return Err(StatusText { code, reason, message, details }.failure(None)),
        other => return Err(Failure::Malformed(format!("an event of the type {:?}", bounded(other)))),
    })
}

fn object_of(kind: Kind, line: &[u8]) -> Result<Object, String> {
    struct Envelope(Kind);
    impl<'de> de::Visitor<'de> for Envelope {
        type Value = Option<Object>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a watch event")
        }
        fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut object = None;
            while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                if key == "object" {
                    object = Some(map.next_value_seed(Of(self.0))?);
                } else {
                    map.next_value::<de::IgnoredAny>()?;
                }
            }
            Ok(object)
        }
    }
    let mut from = serde_json::Deserializer::from_slice(line);
    let read = from.deserialize_map(Envelope(kind)).map_err(|error| bounded(&error.to_string()))?;
    read.ok_or_else(|| "an event without an object".to_owned())
}

/// `meta/v1.Status`, as a refusal or as the object of an ERROR event.
#[derive(Default, Deserialize)]
#[serde(default)]
struct StatusText {
    code: u16,
    reason: String,
    message: String,
    details: Option<Details>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Details {
    retry_after_seconds: Option<u64>,
}

impl StatusText {
    fn failure(self, retry_after: Option<u64>) -> Failure {
        // 410 with either reason: what was asked for is compacted away.
        if self.code == 410 || matches!(self.reason.as_str(), "Expired" | "Gone") {
            return Failure::Expired;
        }
        let told = self.details.and_then(|details| details.retry_after_seconds);
        Failure::Refused {
            code: self.code,
            reason: bounded(&self.reason),
            message: bounded(&self.message),
            retry_after: retry_after.or(told),
        }
    }
}

/// An answer that is no success. What stands before an API server may answer with anything: the code alone counts then.
pub(crate) fn refusal(code: u16, retry_after: Option<u64>, body: &[u8]) -> Failure {
    let mut status: StatusText = serde_json::from_slice(body).unwrap_or_else(|_| StatusText {
        message: String::from_utf8_lossy(body).trim().to_owned(),
        ..StatusText::default()
    });
    status.code = code;
    status.failure(retry_after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_events_of_a_watch_are_read_and_an_object_that_cannot_be_is_named() {
        let line = br#"{"type":"ADDED","object":{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"shop","resourceVersion":"7"}}}"#;
        let Event::Is { listed, version } = event(Kind::Namespace, line).unwrap() else { panic!() };
        assert_eq!((&*listed.name, version.as_str(), listed.object.is_ok()), ("shop", "7", true));
        let line = br#"{"type":"MODIFIED","object":{"metadata":{"name":"cart","namespace":"shop","resourceVersion":"8"},"spec":{"clusterIP":"no"}}}"#;
        let Event::Is { listed, .. } = event(Kind::Service, line).unwrap() else { panic!() };
        assert_eq!(&*listed.name, "shop/cart");
        assert!(listed.object.unwrap_err().contains("\"no\" is not an IP address"));
        let line = br#"{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"9","creationTimestamp":null},"spec":{"containers":null},"status":{}}}"#;
        assert!(matches!(event(Kind::Pod, line), Ok(Event::Bookmark { version }) if version == "9"));
        let line = br#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version: 1 (5)","reason":"Expired","code":410}}"#;
        assert_eq!(event(Kind::Pod, line).unwrap_err(), Failure::Expired);
    }

    #[test]
    fn what_is_no_event_is_refused_and_never_panics() {
        let line = r#"{"type":"ADDED","object":{"metadata":{"name":"shop","resourceVersion":"7"}}}"#;
        for end in 0..line.len() {
            assert!(event(Kind::Namespace, &line.as_bytes()[..end]).is_err());
        }
        for wrong in [
            line.replace("ADDED", "SEEN"),
            line.replace("\"7\"", "\"\""),
            line.replace("\"shop\"", "null"),
            line.replace("\"resourceVersion\":\"7\"", "\"x\":1"),
        ] {
            assert!(
                matches!(event(Kind::Namespace, wrong.as_bytes()), Err(Failure::Malformed(_))),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_refusal_is_read_as_a_status_or_as_whatever_it_is() {
        let body = br#"{"kind":"Status","status":"Failure","message":"slow down","reason":"TooManyRequests","code":429,"details":{"retryAfterSeconds":3}}"#;
        let Failure::Refused { code, retry_after, .. } = refusal(429, None, body) else { panic!() };
        assert_eq!((code, retry_after), (429, Some(3)));
        assert_eq!(refusal(410, None, b"{}"), Failure::Expired);
        let failure = refusal(502, None, b"<html>\nBad Gateway");
        assert!(
            failure.to_string().contains("502") && failure.to_string().contains("Bad Gateway"),
            "{failure}"
        );
    }
}
