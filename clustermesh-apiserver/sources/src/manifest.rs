//! One manifest file's text to objects: multi-document YAML, or JSON, and `kind: List` as kubectl prints it.
//!
//! A document is read for its kinds, then straight into the type of each kind, so that an error has the line of the
//! field that is wrong. Cost: linear in the text.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::io::Read;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::kube::{Failure, ListSplitter};
use crate::object;
use crate::{Kind, Object, convert};

/// Why a file says nothing: the first thing wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ManifestError {
    /// Counted from 1; 0 when the file as a whole is meant.
    pub line: u64,
    pub reason: String,
}

/// All objects of a file that a mesh has a use for, in order. One bad object is the whole file's error: what a file
/// says is taken together or not at all.
pub fn parse(text: &str) -> Result<Vec<Object>, ManifestError> {
    let mut objects = Vec::new();
    let mut seen = BTreeSet::new();
    let mut documents = 0;
    for (first_line, document) in documents_of(text) {
        if is_blank(document) {
            continue;
        }
        documents += 1;
        for object in parse_document(document).map_err(|error| at(first_line, &error))? {
            if !seen.insert(object.reference()) {
                let reason = format!("{} is in this file twice", object.reference());
                return Err(ManifestError { line: first_line, reason });
            }
            objects.push(object);
        }
    }
    if documents == 0 {
        let reason = "holds no object; fix: remove the file to remove what it held".into();
        return Err(ManifestError { line: 0, reason });
    }
    Ok(objects)
}

/// The objects of a JSON `kind: List`, read item by item: neither its text nor its items are ever held together. None for
/// anything else and for whatever is wrong: [`parse`] finds it again, and says where.
pub(crate) fn read_json_list(mut from: impl Read) -> Option<Vec<Object>> {
    let (mut objects, mut splitter, mut known) =
        (Vec::new(), ListSplitter::default(), object::Known::default());
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer).ok()?;
        if count == 0 {
            break;
        }
        let taken = splitter.feed(&buffer[..count], |text| {
            if let Some(mut object) = item(text)? {
                object.share(&mut known);
                objects.push(object);
            }
            Ok(())
        });
        taken.ok()?;
    }
    let list: Head = serde_json::from_slice(splitter.head().ok()?).ok()?;
    let is_list = list.api_version.as_deref() == Some("v1") && list.kind.as_deref() == Some("List");
    let mut seen = HashSet::with_capacity(objects.len());
    let alone = objects.iter().all(|object: &Object| seen.insert(object.reference()));
    (is_list && alone).then_some(objects)
}

/// One item, if a mesh has a use for its kind.
fn item(text: &[u8]) -> Result<Option<Object>, Failure> {
    let wrong = |error: serde_json::Error| Failure::Malformed(error.to_string());
    let head: ItemHead = serde_json::from_slice(text).map_err(wrong)?;
    let (Some(version), Some(kind)) = (head.api_version, head.kind) else {
        return Err(Failure::Malformed("no Kubernetes object".into()));
    };
    let Some(kind) = Kind::of(&version, &kind) else { return Ok(None) };
    convert::read(kind, &mut serde_json::Deserializer::from_slice(text)).map(Some).map_err(wrong)
}

fn at(first_line: u64, error: &serde_saphyr::Error) -> ManifestError {
    let line = error.location().map_or(1, |location| location.line().max(1));
    let text = error.without_snippet().to_string();
    // Its own position counts from the document's first line, not the file's.
    let reason = text.lines().next().unwrap_or_default();
    let reason = reason.split(" at line ").next().unwrap_or_default();
    ManifestError { line: first_line + line - 1, reason: reason.into() }
}

/// The documents and the number of their first line. A line that begins with `---` is a document's start wherever it
/// stands (YAML 1.2 §9.1.2: no content may contain it).
fn documents_of(text: &str) -> Vec<(u64, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut first_line, mut offset) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.trim().is_empty() || rest.starts_with(' '));
        if marker {
            documents.push((first_line, &text[start..offset]));
            start = offset;
            first_line = index as u64 + 1;
        }
        offset += line.len();
    }
    documents.push((first_line, &text[start..]));
    documents
}

fn is_blank(document: &str) -> bool {
    document.lines().all(|line| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        line.is_empty() || line.starts_with('#') || line == "..."
    })
}

#[derive(Deserialize)]
struct Head {
    #[serde(rename = "apiVersion")]
    api_version: Option<String>,
    kind: Option<String>,
    #[serde(default)]
    items: Option<Vec<ItemHead>>,
}

/// The head of a document as kubectl prints one object: `apiVersion: x` and `kind: x` as whole lines in the first column,
/// where nothing but a key of the document itself can stand. None sends the document to the YAML parser, which is
/// twice the work; should it ever be wrong, the reader of the kind says so.
fn head_of_block(text: &str) -> Option<Head> {
    let plain = |value: &str| {
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/' | b'-');
        let value = value.trim();
        (!value.is_empty() && value.bytes().all(word)).then(|| value.to_owned())
    };
    let mut head = Head { api_version: None, kind: None, items: None };
    for line in text.lines() {
        let found = if let Some(value) = line.strip_prefix("apiVersion: ") {
            head.api_version.replace(plain(value)?)
        } else if let Some(value) = line.strip_prefix("kind: ") {
            head.kind.replace(plain(value)?)
        } else {
            continue;
        };
        if found.is_some() {
            return None;
        }
    }
    let whole = head.api_version.is_some() && head.kind.as_deref().is_some_and(|kind| kind != "List");
    whole.then_some(head)
}

#[derive(Deserialize)]
struct ItemHead {
    #[serde(rename = "apiVersion")]
    api_version: Option<String>,
    kind: Option<String>,
}

fn parse_document(text: &str) -> Result<Vec<Object>, Box<serde_saphyr::Error>> {
    use serde::de::Error as _;
    if text.trim_start().starts_with('{')
        && let Some(objects) = parse_json(text)
    {
        return Ok(objects);
    }
    let options = || {
        serde_saphyr::options! {
            // Files are the operator's own and bounded by size; aliases stay bounded by their own limits.
            budget: None,
            // `true` without quotes is no string, for kubectl and for us.
            no_schema: true,
            with_snippet: false,
        }
    };
    let head = match head_of_block(text) {
        Some(head) => head,
        None => serde_saphyr::from_str_with_options(text, options())?,
    };
    let plan = plan_of(head);
    if plan.nameless() {
        let reason = "apiVersion or kind is missing: not a Kubernetes object";
        return Err(Box::new(serde_saphyr::Error::custom(reason)));
    }
    if matches!(plan, Plan::Skip) {
        return Ok(Vec::new());
    }
    let read = |from: serde_saphyr::Deserializer<'_, '_>| plan.deserialize(from);
    Ok(serde_saphyr::with_deserializer_from_str_with_options(text, options(), read)?)
}

/// The same for JSON, an order of magnitude faster. None for whatever is wrong: the YAML parser finds it again, and says
/// where.
fn parse_json(text: &str) -> Option<Vec<Object>> {
    let plan = plan_of(serde_json::from_str(text).ok()?);
    if plan.nameless() {
        return None;
    }
    let mut from = serde_json::Deserializer::from_str(text);
    let objects = plan.deserialize(&mut from).ok()?;
    from.end().ok()?;
    Some(objects)
}

fn plan_of(head: Head) -> Plan {
    let kind_of = |version: &Option<String>, kind: &Option<String>| match (version, kind) {
        (Some(version), Some(kind)) => Kind::of(version, kind).map_or(Plan::Skip, Plan::One),
        _ => Plan::Nameless,
    };
    match (head.api_version.as_deref(), head.kind.as_deref()) {
        (Some("v1"), Some("List")) => {
            let items = head.items.unwrap_or_default();
            Plan::Items(items.iter().map(|item| kind_of(&item.api_version, &item.kind)).collect())
        }
        _ => kind_of(&head.api_version, &head.kind),
    }
}

/// What is to be read at one place of the document.
enum Plan {
    Skip,
    Nameless,
    One(Kind),
    Items(Vec<Plan>),
}

impl Plan {
    fn nameless(&self) -> bool {
        match self {
            Self::Nameless => true,
            Self::Items(items) => items.iter().any(|item| matches!(item, Self::Nameless)),
            Self::Skip | Self::One(_) => false,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Plan {
    type Value = Vec<Object>;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        match self {
            Self::One(kind) => Ok(vec![convert::read(kind, from)?]),
            Self::Items(plans) => from.deserialize_map(ListVisitor(plans)),
            Self::Skip | Self::Nameless => IgnoredAny::deserialize(from).map(|_| Vec::new()),
        }
    }
}

/// The `items` of a List, each as its plan says.
struct ListVisitor(Vec<Plan>);

impl<'de> Visitor<'de> for ListVisitor {
    type Value = Vec<Object>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a List")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut objects = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                objects = map.next_value_seed(Items(std::mem::take(&mut self.0)))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(objects)
    }
}

struct Items(Vec<Plan>);

impl<'de> DeserializeSeed<'de> for Items {
    type Value = Vec<Object>;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items {
    type Value = Vec<Object>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut objects = Vec::new();
        for plan in self.0 {
            match seq.next_element_seed(plan)? {
                Some(read) => objects.extend(read),
                None => break,
            }
        }
        Ok(objects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"apiVersion":"v1","items":[
        {"apiVersion":"v1","kind":"Service","metadata":{"name":"cart","namespace":"shop"},"spec":{"clusterIP":"10.96.0.80"}},
        {"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"cart"}},
        {"kind":"Namespace","apiVersion":"v1","metadata":{"name":"shop","labels":{"a":"]},{"}}}
    ],"kind":"List","metadata":{"resourceVersion":""}}"#;

    #[test]
    fn a_list_read_item_by_item_says_what_it_says_as_a_whole() {
        let objects = read_json_list(LIST.as_bytes()).unwrap();
        assert_eq!(objects.len(), 2);
        assert_eq!(objects, parse(LIST).unwrap());
        let none = r#"{"apiVersion":"v1","kind":"List","items":[]}"#;
        assert_eq!(read_json_list(none.as_bytes()).unwrap(), parse(none).unwrap());
    }

    #[test]
    fn whatever_is_no_good_list_is_left_to_the_reader_that_says_where() {
        let twice = LIST.replace(
            "},\n",
            "},{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"shop\"}},\n",
        );
        let texts = [
            LIST[..LIST.len() - 1].to_owned(),
            LIST.replace("\"List\"", "\"ServiceList\""),
            LIST.replace("\"kind\":\"Service\",", ""),
            LIST.replace("10.96.0.80", "10.96.0.800"),
            twice,
            "kind: List".to_owned(),
        ];
        for text in texts {
            assert!(read_json_list(text.as_bytes()).is_none(), "{text}");
        }
    }
}
