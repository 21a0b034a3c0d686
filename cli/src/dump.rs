//! The graphs of an engine, for people to read.

use std::path::Path;

use anyhow::Context as _;
use roundhouse_engine::blob_names;
use roundhouse_graph::Graph;
use roundhouse_proto::compiler::{Engine, GetEngineFileRequest};

use crate::clients::Compiler;

/// Writes an engine's graphs to a folder, each as text (`.txt`), DOT (`.dot`) and JSON: the model's own before any pass,
/// and the one that the backend built; of a TensorRT engine also its network, as JSON.
pub(crate) async fn graphs(compiler: &mut Compiler, engine: &Engine, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for name in [blob_names::SOURCE_GRAPH, blob_names::GRAPH, blob_names::NETWORK] {
        if !engine.blobs.iter().any(|blob| blob.name == name) {
            continue;
        }
        let request = GetEngineFileRequest { key: engine.key.clone(), name: name.to_owned() };
        let content = compiler.client.get_engine_file(request).await?.into_inner().content;
        write(&folder.join(name), &content)?;
        if name != blob_names::NETWORK {
            let json = String::from_utf8(content).with_context(|| name.to_owned())?;
            let graph = Graph::from_json(&json).with_context(|| name.to_owned())?;
            write(&folder.join(name).with_extension("txt"), graph.to_text().as_bytes())?;
            write(&folder.join(name).with_extension("dot"), graph.to_dot().as_bytes())?;
        }
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, content).with_context(|| path.display().to_string())
}
