//! Compiles etcd's API with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/kv.proto", "proto/rpc.proto"], ["proto"])?;
    // Keys and values are `Bytes`: a decoded request shares the network buffer, an answer shares the store's.
    tonic_prost_build::configure().bytes(".").build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
