//! Compiles the protobufs with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/hawser/admin.proto", "proto/hawser/agent.proto", "proto/hawser/local.proto"];
    println!("cargo:rerun-if-changed=proto");
    // Without `connect` helpers: an RPC of ours has that name, and channels are built where TLS is known.
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
