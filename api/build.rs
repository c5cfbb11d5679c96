//! Compiles the protobufs with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["admin", "agent", "local", "session"].map(|name| format!("proto/hawser/{name}.proto"));
    println!("cargo:rerun-if-changed=proto");
    // Without `connect` helpers: an RPC of ours has that name, and channels are built where TLS is known.
    let descriptors = protox::compile(files, ["proto"])?;
    // `hawser -o json` prints replies as they are; maps are sorted so that it prints the same text twice.
    let json = "#[derive(serde::Serialize)]\n#[serde(rename_all = \"camelCase\")]";
    tonic_prost_build::configure()
        .build_transport(false)
        .btree_map(".")
        .type_attribute(".hawser.admin.v1", json)
        .type_attribute(".hawser.local.v1", json)
        .compile_fds(descriptors)?;
    Ok(())
}
