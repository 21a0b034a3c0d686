//! Between the messages of the interface and the types of the engine.

pub(crate) mod quantization;
pub(crate) mod support;
pub(crate) mod tensorrt;

use std::time::SystemTime;

use roundhouse_engine::{BackendKind, CacheKind, EngineOptions, Manifest, Precision};
use roundhouse_proto::compiler as proto;
use roundhouse_rpc::Failure;

pub(crate) fn pass_report(report: &roundhouse_graph::PassReport) -> proto::PassReport {
    proto::PassReport {
        pass: report.pass.clone(),
        counts: report.counts.iter().map(|(name, count)| (name.clone(), *count)).collect(),
    }
}

pub(crate) fn memory_plan(plan: &roundhouse_engine::MemoryPlan) -> proto::MemoryPlan {
    proto::MemoryPlan {
        weight_bytes: plan.weight_bytes,
        kv_bytes_per_token: plan.kv_bytes_per_token,
        workspace_bytes: plan.workspace_bytes,
        kv_rings: plan
            .kv_rings
            .iter()
            .map(|ring| proto::KvRing { tokens: ring.tokens, bytes_per_token: ring.bytes_per_token })
            .collect(),
    }
}

/// An engine, with no time and no blobs when it is not built.
pub(crate) fn engine(manifest: &Manifest) -> proto::Engine {
    let built = !manifest.blobs.is_empty();
    proto::Engine {
        key: manifest.key.to_string(),
        model: manifest.model.clone(),
        revision: manifest.revision.clone().unwrap_or_default(),
        architecture: manifest.info.architecture.clone(),
        options: Some(options(&manifest.options)),
        target: manifest.target.to_string(),
        blobs: manifest
            .blobs
            .iter()
            .map(|blob| proto::Blob { name: blob.name.clone(), sha256: blob.sha256.clone(), size: blob.size })
            .collect(),
        create_time: built.then(|| {
            timestamp(SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(manifest.created_unix_ms))
        }),
        compiler_version: manifest.compiler_version.clone(),
    }
}

pub(crate) fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    prost_types::Timestamp::from(time)
}

fn options(options: &EngineOptions) -> proto::CompileOptions {
    proto::CompileOptions {
        precision: Some(precision_message(options.precision).into()),
        cache: Some(cache_message(options.cache).into()),
        backend: Some(backend_message(options.backend).into()),
        max_seq_len: Some(options.max_seq_len),
        max_batch_size: Some(options.max_batch_size),
        all_logits: Some(options.all_logits),
        targets: options.targets.names(),
        tensorrt: options.tensorrt.as_ref().map(tensorrt::message),
        quantization: Some(quantization::message(options.quantization)),
    }
}

pub(crate) const fn precision_message(precision: Precision) -> proto::Precision {
    match precision {
        Precision::Fp32 => proto::Precision::Fp32,
        Precision::Fp16 => proto::Precision::Fp16,
        Precision::Bf16 => proto::Precision::Bf16,
    }
}

pub(crate) const fn cache_message(cache: CacheKind) -> proto::CacheKind {
    match cache {
        CacheKind::None => proto::CacheKind::None,
        CacheKind::StaticV1 => proto::CacheKind::StaticV1,
        CacheKind::StaticV2 => proto::CacheKind::StaticV2,
        CacheKind::InPlace => proto::CacheKind::InPlace,
    }
}

pub(crate) const fn backend_message(backend: BackendKind) -> proto::Backend {
    match backend {
        BackendKind::TensorRt => proto::Backend::Tensorrt,
        BackendKind::Cuda => proto::Backend::Cuda,
        BackendKind::Cpu => proto::Backend::Cpu,
    }
}

/// The precision asked for; fp16 where none is.
pub(crate) fn precision(value: Option<i32>) -> Result<Precision, Failure> {
    let unknown = || unknown_value("options.precision", value);
    match value
        .map_or(Ok(proto::Precision::Unspecified), proto::Precision::try_from)
        .map_err(|_| unknown())?
    {
        proto::Precision::Unspecified | proto::Precision::Fp16 => Ok(Precision::Fp16),
        proto::Precision::Fp32 => Ok(Precision::Fp32),
        proto::Precision::Bf16 => Ok(Precision::Bf16),
    }
}

/// The cache asked for; `in_place` where none is.
pub(crate) fn cache(value: Option<i32>) -> Result<CacheKind, Failure> {
    let unknown = || unknown_value("options.cache", value);
    match value
        .map_or(Ok(proto::CacheKind::Unspecified), proto::CacheKind::try_from)
        .map_err(|_| unknown())?
    {
        proto::CacheKind::Unspecified | proto::CacheKind::InPlace => Ok(CacheKind::InPlace),
        proto::CacheKind::None => Ok(CacheKind::None),
        proto::CacheKind::StaticV1 => Ok(CacheKind::StaticV1),
        proto::CacheKind::StaticV2 => Ok(CacheKind::StaticV2),
    }
}

/// The backend asked for. Where none is, what only GPUs or TensorRT have asks for TensorRT.
pub(crate) fn backend(options: &proto::CompileOptions) -> Result<BackendKind, Failure> {
    let value = options.backend;
    let unknown = || unknown_value("options.backend", value);
    Ok(
        match value
            .map_or(Ok(proto::Backend::Unspecified), proto::Backend::try_from)
            .map_err(|_| unknown())?
        {
            proto::Backend::Unspecified if options.targets.is_empty() && options.tensorrt.is_none() => {
                BackendKind::Cpu
            }
            proto::Backend::Unspecified | proto::Backend::Tensorrt => BackendKind::TensorRt,
            proto::Backend::Cuda => BackendKind::Cuda,
            proto::Backend::Cpu => BackendKind::Cpu,
        },
    )
}

pub(crate) fn unknown_value(field: &str, value: Option<i32>) -> Failure {
    Failure::invalid_field(field, format!("{field} has the unknown value {}", value.unwrap_or_default()))
}
