//! What the real runtime says of an engine on a machine that cannot run it.

use roundhouse_backend::{BackendError, Runtime as _};
use roundhouse_engine::{BackendKind, CacheKind, EngineFiles};
use roundhouse_tensorrt_library::{backend_version, device, testing};
use roundhouse_tensorrt_runtime::{CudaConfig, TensorRtRuntime};
use tempfile::TempDir;

use crate::engine::{build, options};

fn runtime() -> TensorRtRuntime {
    TensorRtRuntime::new(CudaConfig { library: testing::library_search(), ..CudaConfig::default() })
}

/// An engine as the real builder's, for Ada GPUs.
fn engine() -> (EngineFiles, TempDir) {
    let (mut files, directory) = build(&options(CacheKind::InPlace));
    files.manifest.backend_version = backend_version();
    files.manifest.target.compute_capabilities = vec!["sm_89".to_owned()];
    (files, directory)
}

/// Runs on machines with and without a GPU.
#[test]
fn an_engine_is_refused_from_its_manifest_with_both_sides_named() {
    let (files, _directory) = engine();
    let refusal = runtime().check(&files.manifest);
    let gpu = device::compute_capabilities().map(|capabilities| capabilities[0].to_string());
    match (refusal, gpu) {
        (Ok(()), Ok(gpu)) => assert_eq!(gpu, "sm_89"),
        (Err(BackendError::Incompatible { key, found, needed }), gpu) => {
            assert_eq!(key, files.manifest.key.to_string());
            assert!(found.ends_with("sm_89"), "{found}");
            match gpu {
                Ok(gpu) => {
                    assert!(needed.contains(&gpu) || needed.contains("compute capability"), "{needed}")
                }
                Err(missing) => {
                    let expected = format!("an NVIDIA GPU: {missing}");
                    assert_eq!(needed, expected);
                }
            }
        }
        (refusal, gpu) => panic!("{refusal:?} with {gpu:?}"),
    }
}

#[test]
fn what_is_refused_is_not_loaded_either() {
    let (mut files, _directory) = engine();
    files.manifest.options.backend = BackendKind::Cpu;
    assert!(matches!(runtime().load(&files), Err(BackendError::Incompatible { .. })));
    let (mut files, _directory) = engine();
    files.manifest.backend_version = "rtx-1.0.0+engine.0".to_owned();
    assert!(matches!(runtime().load(&files), Err(BackendError::Incompatible { .. })));
}
