//! The builder of interpreted engines: the converters' network and the weights file, with a plan that is the network
//! again.

use std::path::Path;

use roundhouse_backend::{BackendError, BuildProgress, Builder, BuiltFile, WeightSource};
use roundhouse_engine::{
    BackendKind, EngineOptions, MemoryPlan, Profiles, Target, TensorRtOptions, blob_names,
};
use roundhouse_graph::{Graph, PassReport};
use roundhouse_tensorrt_converters::convert;
use roundhouse_tensorrt_network::Network;
use roundhouse_weights::{PartialFile, WeightsLayout, write_weights};

/// Builds engines for [`crate::HostMachine`].
#[derive(Debug, Clone, Copy)]
pub struct NetworkBuilder {
    /// How many optimization profiles its engines have.
    pub profiles: Profiles,
}

impl Default for NetworkBuilder {
    fn default() -> Self {
        Self { profiles: Profiles::One }
    }
}

/// What a plan of a network is here.
pub(crate) fn plan_of(network: &Network) -> Vec<u8> {
    [&b"a plan for the interpreter\n"[..], &network.to_json().unwrap()].concat()
}

impl NetworkBuilder {
    /// The version of its engines.
    pub const VERSION: &'static str = "interpreted-1";

    fn network(self, graph: &Graph, options: &EngineOptions) -> Result<Network, BackendError> {
        let tensorrt = TensorRtOptions { profiles: self.profiles, ..options.tensorrt.unwrap_or_default() };
        Ok(convert(graph, &EngineOptions { tensorrt: Some(tensorrt), ..*options })?.network)
    }
}

impl Builder for NetworkBuilder {
    fn kind(&self) -> BackendKind {
        BackendKind::TensorRt
    }

    fn version(&self) -> String {
        Self::VERSION.to_owned()
    }

    fn target(&self, _options: &EngineOptions) -> Target {
        Target {
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            compute_capabilities: Vec::new(),
        }
    }

    fn lower(&self, graph: Graph, options: &EngineOptions) -> Result<(Graph, Vec<PassReport>), BackendError> {
        self.network(&graph, options)?;
        Ok((graph, Vec::new()))
    }

    fn memory_plan(&self, _graph: &Graph, _options: &EngineOptions) -> MemoryPlan {
        MemoryPlan { weight_bytes: 1, kv_bytes_per_token: 2, workspace_bytes: 3, ..MemoryPlan::default() }
    }

    fn build(
        &self,
        graph: &Graph,
        options: &EngineOptions,
        weights: &dyn WeightSource,
        directory: &Path,
        progress: &dyn BuildProgress,
    ) -> Result<Vec<BuiltFile>, BackendError> {
        let network = self.network(graph, options)?;
        let layout = WeightsLayout::new(graph)?;
        let files = [
            (blob_names::NETWORK, network.to_json().unwrap()),
            (blob_names::PLAN, plan_of(&network)),
            (blob_names::GRAPH, graph.to_json()?.into_bytes()),
        ];
        let small = files.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        let total = small + layout.file_bytes();
        let mut built = Vec::new();
        for (name, bytes) in files {
            let path = directory.join(name);
            std::fs::write(&path, bytes).unwrap();
            built.push(BuiltFile { name: name.to_owned(), path });
        }
        let path = directory.join(blob_names::WEIGHTS);
        let mut file = PartialFile::create(&path)?;
        write_weights(&layout, weights, &mut file, &|done| progress.bytes(small + done, total))?;
        file.finish()?;
        built.push(BuiltFile { name: blob_names::WEIGHTS.to_owned(), path });
        Ok(built)
    }
}
