//! The protobuf interfaces of Roundhouse and their generated code. The `.proto` files beside this crate are the
//! documentation of every field.

#![forbid(unsafe_code)]

/// The encoded `FileDescriptorSet` of every interface here, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

mod packages {
    #![expect(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated from the documented protos"
    )]
    include!(concat!(env!("OUT_DIR"), "/packages.rs"));
}

pub use packages::google;
pub use packages::roundhouse::{compiler::v1 as compiler, executor::v1 as executor};
