//! `cluster-config`: what a cluster says about its keyspace (cilium-facts §1.3).

use bytes::Bytes;
use hawser_model::{ClusterConfig, ClusterId, ClusterIdWidth, ClusterRef, ExportMode, NodePath};
use serde::{Deserialize, Serialize};

use crate::entry::{Context, same};
use crate::error::{Fault, Reason, short};
use crate::json::{Text, parse, print};

#[derive(Deserialize)]
struct In<'a> {
    #[serde(default)]
    id: u32,
    #[serde(default, borrow)]
    capabilities: CapabilitiesIn<'a>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct CapabilitiesIn<'a> {
    synced_canaries: bool,
    cached: bool,
    max_connected_clusters: u32,
    service_exports_enabled: Option<bool>,
    #[serde(borrow)]
    endpoint_slices_export_mode: Option<Text<'a>>,
    #[serde(borrow)]
    hawser_path: Option<Text<'a>>,
}

#[derive(Serialize)]
struct Out {
    id: u16,
    capabilities: CapabilitiesOut,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CapabilitiesOut {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    synced_canaries: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cached: bool,
    max_connected_clusters: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_exports_enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint_slices_export_mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hawser_path: Option<&'static str>,
}

const BOTH: &str = "services-and-endpointslices";
const SLICES: &str = "endpointslices-only";

pub(crate) fn decode(value: &[u8], cx: &Context) -> Result<ClusterConfig, Fault> {
    let raw: In<'_> = parse(value)?;
    let id = ClusterId::new(raw.id, cx.width).map_err(|why| Reason::from(why).at("id"))?;
    same("id", &id.to_string(), &cx.cluster.id.to_string(), "the bundle it was admitted with")?;
    let field = |name| format!("capabilities.{name}");
    let capabilities = raw.capabilities;
    // Publishers from before the option existed say nothing, and mean 255.
    let max = match capabilities.max_connected_clusters {
        0 => u32::from(ClusterIdWidth::Bits8.max_clusters()),
        max => max,
    };
    let width = ClusterIdWidth::from_max_clusters(max)
        .map_err(|why| Reason::from(why).at(field("maxConnectedClusters")))?;
    // Another width reads other clusters out of the same identities (facts §1.13).
    let ours = cx.width.max_clusters().to_string();
    same(&field("maxConnectedClusters"), &max.to_string(), &ours, "this mesh")?;
    let endpoint_slices = match capabilities.endpoint_slices_export_mode.as_deref() {
        None | Some("") => ExportMode::ServicesOnly,
        Some(BOTH) => ExportMode::ServicesAndSlices,
        Some(SLICES) => ExportMode::SlicesOnly,
        Some(other) => {
            let reason = Reason::ExportMode { text: short(other) };
            return Err(reason.at(field("endpointSlicesExportMode")));
        }
    };
    let path = capabilities.hawser_path.as_deref().map_or(Ok(NodePath::Direct), |text| {
        let odd = |_| Reason::Word { text: short(text), of: "direct, gateways" }.at(field("hawserPath"));
        NodePath::parse(text).map_err(odd)
    })?;
    Ok(ClusterConfig {
        cluster: ClusterRef { name: cx.cluster.name.clone(), id },
        width,
        synced_canaries: capabilities.synced_canaries,
        cached: capabilities.cached,
        service_exports: capabilities.service_exports_enabled,
        endpoint_slices,
        path,
    })
}

pub fn encode(config: &ClusterConfig) -> Bytes {
    print(&Out {
        id: config.cluster.id.get(),
        capabilities: CapabilitiesOut {
            synced_canaries: config.synced_canaries,
            cached: config.cached,
            max_connected_clusters: config.width.max_clusters(),
            service_exports_enabled: config.service_exports,
            endpoint_slices_export_mode: match config.endpoint_slices {
                ExportMode::ServicesOnly => None,
                ExportMode::ServicesAndSlices => Some(BOTH),
                ExportMode::SlicesOnly => Some(SLICES),
            },
            hawser_path: (config.path != NodePath::Direct).then(|| config.path.as_str()),
        },
    })
}
