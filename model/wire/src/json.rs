//! JSON under limits: text borrowed from the value, maps and lists that refuse the entry past their bound while reading.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;

use bytes::Bytes;
use hawser_model::{PortMap, PortName, Protocol, ServicePort};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize as Derive, Serialize};

use crate::error::{Fault, Reason, short, within};
use crate::limits;

/// Parses a whole value. The fast path knows no field names; a failure is read again to find out where.
pub(crate) fn parse<'de, T: Deserialize<'de>>(value: &'de [u8]) -> Result<T, Fault> {
    let plain = match serde_json::from_slice(value) {
        Ok(parsed) => return Ok(parsed),
        Err(error) => error,
    };
    let mut reader = serde_json::Deserializer::from_slice(value);
    match serde_path_to_error::deserialize::<_, T>(&mut reader) {
        Ok(_) => Err(json(&plain).at("")),
        Err(error) => {
            let path = error.path().to_string();
            let field = if path == "." { String::new() } else { short(&path) };
            Err(json(error.inner()).at(field))
        }
    }
}

fn json(error: &serde_json::Error) -> Reason {
    Reason::Json { message: short(&error.to_string()) }
}

/// Serializing our own structs into memory has nothing to fail on: string keys, no custom errors.
pub(crate) fn print(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("structs with string keys always print").into()
}

/// Text that borrows from the value when it holds no escapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text<'de>(Cow<'de, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(V)
    }
}

/// A map's entries in the order written; `null` is empty.
#[derive(Debug, Clone)]
pub(crate) struct Pairs<'de, V, const MAX: usize>(pub(crate) Vec<(Text<'de>, V)>);

impl<V, const MAX: usize> Default for Pairs<'_, V, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de: 'a, 'a, V: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Pairs<'a, V, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct P<V, const MAX: usize>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>, const MAX: usize> Visitor<'de> for P<V, MAX> {
            type Value = Pairs<'de, V, MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a map of at most {MAX} entries or null")
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Pairs::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(key) = map.next_key()? {
                    if pairs.len() == MAX {
                        return Err(de::Error::custom(format_args!("more than {MAX} entries")));
                    }
                    pairs.push((key, map.next_value()?));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_any(P(PhantomData))
    }
}

/// A list; `null` is empty.
#[derive(Debug, Clone)]
pub(crate) struct List<T, const MAX: usize>(pub(crate) Vec<T>);

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct L<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for L<T, MAX> {
            type Value = List<T, MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX} entries or null")
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(List::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = seq.next_element()? {
                    if list.len() == MAX {
                        return Err(de::Error::custom(format_args!("more than {MAX} entries")));
                    }
                    list.push(item);
                }
                Ok(List(list))
            }
        }
        deserializer.deserialize_any(L(PhantomData))
    }
}

/// An address in its one spelling: no zone, no brackets, no IPv4 in IPv6 clothes.
pub(crate) fn ip(text: &str) -> Result<IpAddr, Reason> {
    match text.parse::<IpAddr>() {
        Ok(ip) if ip.to_canonical() == ip => Ok(ip),
        _ => Err(Reason::Address { text: short(text) }),
    }
}

/// Text of at most `max` bytes; absent is empty.
pub(crate) fn bounded(text: Option<&str>, field: &str, max: usize) -> Result<String, Fault> {
    let text = text.unwrap_or_default();
    if text.len() > max {
        return Err(Reason::TooLarge { len: text.len(), max }.at(field));
    }
    Ok(text.to_owned())
}

/// A Kubernetes map of labels or annotations.
pub(crate) fn strings<const MAX: usize>(
    pairs: Pairs<'_, Text<'_>, MAX>,
    field: &str,
    value_max: usize,
) -> Result<BTreeMap<String, String>, Fault> {
    pairs
        .0
        .into_iter()
        .map(|(key, value)| {
            let at = || within(field, &key);
            if key.len() > limits::LABEL_KEY_BYTES {
                return Err(Reason::TooLarge { len: key.len(), max: limits::LABEL_KEY_BYTES }.at(at()));
            }
            if value.len() > value_max {
                return Err(Reason::TooLarge { len: value.len(), max: value_max }.at(at()));
            }
            Ok((key.to_string(), value.to_string()))
        })
        .collect()
}

/// Go's `null` for what is empty.
pub(crate) fn or_null<T>(map: &BTreeMap<String, T>) -> Option<&BTreeMap<String, T>> {
    (!map.is_empty()).then_some(map)
}

/// `{"Protocol":"TCP","Port":8080}`, capitals as Go writes a struct without tags.
#[derive(Derive)]
pub(crate) struct PortIn<'a> {
    #[serde(rename = "Protocol", borrow)]
    protocol: Text<'a>,
    #[serde(rename = "Port")]
    port: u16,
}

#[derive(Serialize)]
pub(crate) struct PortOut {
    #[serde(rename = "Protocol")]
    protocol: &'static str,
    #[serde(rename = "Port")]
    port: u16,
}

impl From<&ServicePort> for PortOut {
    fn from(port: &ServicePort) -> Self {
        Self { protocol: port.protocol.as_str(), port: port.port }
    }
}

pub(crate) type PortMapIn<'a, const MAX: usize> = Pairs<'a, Pairs<'a, PortIn<'a>, { limits::PORTS }>, MAX>;
pub(crate) type PortMapOut<'a> = BTreeMap<String, BTreeMap<&'a str, PortOut>>;

/// A port number that something can listen on.
pub(crate) fn port(number: u16) -> Result<u16, Reason> {
    match number {
        0 => Err(Reason::OutOfRange { number: 0, min: 1, max: 65_535 }),
        port => Ok(port),
    }
}

pub(crate) fn port_map<const MAX: usize>(pairs: PortMapIn<'_, MAX>, field: &str) -> Result<PortMap, Fault> {
    let mut map = PortMap::new();
    for (address, ports) in pairs.0 {
        let at = || within(field, &address);
        let ip = ip(&address).map_err(|why| why.at(at()))?;
        let mut named = BTreeMap::new();
        for (name, raw) in ports.0 {
            let at = || within(&at(), &name);
            let protocol = Protocol::parse(&raw.protocol).map_err(|why| Reason::from(why).at(at()))?;
            let port = port(raw.port).map_err(|why| why.at(at()))?;
            let key = PortName::parse(&name).map_err(|why| Reason::from(why).at(at()))?;
            if named.insert(key, ServicePort { protocol, port }).is_some() {
                return Err(Reason::Duplicate { text: short(&name) }.at(at()));
            }
        }
        if map.insert(ip, named).is_some() {
            return Err(Reason::Duplicate { text: short(&address) }.at(field));
        }
    }
    Ok(map)
}

/// Sorted as text, like Go prints maps.
pub(crate) fn port_map_out(map: &PortMap) -> PortMapOut<'_> {
    map.iter()
        .map(|(ip, ports)| {
            (ip.to_string(), ports.iter().map(|(name, port)| (name.as_str(), port.into())).collect())
        })
        .collect()
}
