//! Checkpoints: Hugging Face folders, the hub, GGUF files and object stores.
