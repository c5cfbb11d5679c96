//! Which CAs a cluster wants to be believed by, and by which it believes its peers (contracts.md).

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hawser_model::{ClusterName, Timestamp, TrustNotice, TrustReceipt};
use serde::{Deserialize, Serialize};

use crate::error::{Fault, Reason};
use crate::json::{List, Text, bounded, parse, print};
use crate::limits;

#[derive(Deserialize)]
struct NoticeIn<'a> {
    #[serde(borrow)]
    cas: Text<'a>,
    #[serde(borrow)]
    issued: Text<'a>,
    #[serde(borrow)]
    signature: Text<'a>,
}

#[derive(Serialize)]
struct NoticeOut<'a> {
    cas: &'a str,
    issued: String,
    signature: String,
}

pub(crate) fn decode_notice(value: &[u8]) -> Result<TrustNotice, Fault> {
    let raw: NoticeIn<'_> = parse(value)?;
    let signature = bounded(Some(&raw.signature), "signature", limits::SIGNATURE_BYTES)?;
    Ok(TrustNotice {
        cas: bounded(Some(&raw.cas), "cas", limits::CA_BYTES)?,
        issued: Timestamp::parse(&raw.issued).map_err(|why| Reason::from(why).at("issued"))?,
        signature: STANDARD.decode(&signature).map_err(|_| Reason::Base64.at("signature"))?,
    })
}

pub(crate) fn encode_notice(notice: &TrustNotice) -> Bytes {
    let (issued, signature) = (notice.issued.to_string(), STANDARD.encode(&notice.signature));
    print(&NoticeOut { cas: &notice.cas, issued, signature })
}

#[derive(Deserialize)]
struct ReceiptIn<'a> {
    #[serde(borrow)]
    cas: List<Text<'a>, { limits::CAS }>,
}

#[derive(Serialize)]
struct ReceiptOut<'a> {
    cas: &'a BTreeSet<String>,
}

pub(crate) fn decode_receipt(peer: &ClusterName, value: &[u8]) -> Result<TrustReceipt, Fault> {
    let raw: ReceiptIn<'_> = parse(value)?;
    let fingerprint = |text: &Text<'_>| bounded(Some(text), "cas", limits::FINGERPRINT_BYTES);
    let cas = raw.cas.0.iter().map(fingerprint).collect::<Result<_, _>>()?;
    Ok(TrustReceipt { peer: peer.clone(), cas })
}

pub(crate) fn encode_receipt(receipt: &TrustReceipt) -> Bytes {
    print(&ReceiptOut { cas: &receipt.cas })
}
