//! Opening checkpoints: what callers of this crate can rely on.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod checkpoint_files;
mod directory;
mod gguf_architectures;
mod gguf_file;
mod gguf_files;
mod gguf_hostile;
mod gguf_packed;
mod gguf_reference;
mod gguf_tokenizers;
mod hub;
mod hub_failures;
mod hub_resume;
mod hub_server;
mod mutation;
mod object_store;
mod quantised;
mod quantised_hostile;
mod safetensors_hostile;
