//! `identities/v1`: a label string under a decimal number (cilium-facts §1.5).

use bytes::Bytes;
use hawser_model::{Identity, IdentityId, Labels};

use crate::entry::Context;
use crate::error::{Fault, Reason, within};
use crate::limits;

pub(crate) fn decode(id: IdentityId, value: &str, cx: &Context) -> Result<Identity, Fault> {
    let cluster = || cx.cluster.to_string();
    if !id.belongs_to(cx.cluster.id, cx.width) {
        return Err(Reason::ForeignIdentity { id: id.get(), cluster: cluster() }.at("key"));
    }
    let count = value.bytes().filter(|b| *b == b';').count();
    if count > limits::LABELS {
        return Err(Reason::TooMany { count, max: limits::LABELS }.at("labels"));
    }
    let labels = Labels::parse(value).map_err(|why| Reason::from(why).at("labels"))?;
    for (key, label) in labels.iter() {
        let too_large = |len, max| Err(Reason::TooLarge { len, max }.at(within("labels", key)));
        if key.len() > limits::LABEL_KEY_BYTES {
            return too_large(key.len(), limits::LABEL_KEY_BYTES);
        }
        let len = label.value.len().max(label.source.len());
        if len > limits::LABEL_VALUE_BYTES {
            return too_large(len, limits::LABEL_VALUE_BYTES);
        }
    }
    if !labels.speak_for(&cx.cluster.name) {
        let found = labels.cluster().map(str::to_owned);
        let expected = cx.cluster.name.to_string();
        return Err(Reason::ForeignLabels { found, expected }.at(within("labels", Labels::CLUSTER_KEY)));
    }
    Ok(Identity { id, labels })
}

pub fn encode(identity: &Identity) -> Bytes {
    identity.labels.to_string().into_bytes().into()
}
