//! Compiles the protos with protox, so that no `protoc` is needed on the machine.

use std::path::PathBuf;

use prost::Message as _;

const PROTOS: &[&str] = &[
    "google/longrunning/operations.proto",
    "roundhouse/compiler/v1/compiler.proto",
    "roundhouse/executor/v1/executor.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=google");
    println!("cargo:rerun-if-changed=roundhouse");
    let descriptors = protox::compile(PROTOS, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().include_file("packages.rs").compile_fds(descriptors)?;
    Ok(())
}
