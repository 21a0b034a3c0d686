//! Flags that say what to compile and how.

use std::str::FromStr;

use clap::Args;
use roundhouse_engine::{
    AttentionForm, BackendKind, CacheKind, ComputeCapability, Precision, Profiles, UnknownName,
    WeightPlacement,
};
use roundhouse_proto::compiler::{self, CompileEngineRequest, CompileOptions};
use roundhouse_proto::executor;

use crate::quantization::QuantizationArgs;

/// What to compile and how.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// A hub ID, a folder or GGUF file, or an object-store URL.
    #[arg(long)]
    pub(crate) model: String,
    /// A branch, tag or commit of a hub ID.
    #[arg(long)]
    pub(crate) revision: Option<String>,
    /// fp32, fp16 or bf16.
    #[arg(long, alias = "model-precision", default_value = "fp16", ignore_case = true)]
    pub(crate) precision: Precision,
    /// none, static_v1, static_v2 or in_place.
    #[arg(long, default_value = "in_place")]
    pub(crate) cache: CacheKind,
    /// tensorrt, cuda, cpu or auto: what --target and TensorRT's own flags ask for, else what the executor runs best.
    #[arg(long, default_value = "auto")]
    pub(crate) backend: BackendChoice,
    /// Prompt and new tokens of one sequence together.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) max_seq_len: Option<u32>,
    /// Sequences in one step.
    #[arg(long, value_name = "SEQUENCES")]
    pub(crate) max_batch_size: Option<u32>,
    /// GPUs to build for, by compute capability, comma-separated: sm_89,sm_120. Without it the executor's, or all that
    /// the backend can build for.
    #[arg(long, value_delimiter = ',', value_name = "SM,…")]
    pub(crate) target: Vec<ComputeCapability>,
    #[command(flatten)]
    pub(crate) quantization: QuantizationArgs,
    #[command(flatten)]
    pub(crate) tensorrt: TensorRtArgs,
}

/// What only TensorRT engines have.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "TensorRT engines")]
pub(crate) struct TensorRtArgs {
    /// auto, fused or decomposed.
    #[arg(long)]
    attention: Option<AttentionForm>,
    /// auto, embedded in the plan, or separate: shared with the model's other engines, and refitted at load.
    #[arg(long)]
    weights: Option<WeightPlacement>,
    /// Let the executor stream weights from host memory when they do not fit its GPU.
    #[arg(long)]
    weight_streaming: bool,
    /// one or two optimization profiles.
    #[arg(long)]
    profiles: Option<Profiles>,
    /// Compute matrix products in fp32 whatever the precision; true by default.
    #[arg(long, value_name = "BOOL")]
    fp32_accumulation: Option<bool>,
    /// As --fp32-accumulation true. Other backends always do.
    #[arg(long, conflicts_with = "fp32_accumulation")]
    use_fp32_acc: bool,
}

/// The backend asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BackendChoice {
    /// The best that can be.
    Auto,
    /// This one.
    Named(BackendKind),
}

impl FromStr for BackendChoice {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        if name.eq_ignore_ascii_case("auto") {
            return Ok(Self::Auto);
        }
        let named = name.parse().map(Self::Named);
        named.map_err(|error: UnknownName| UnknownName {
            expected: format!("auto, {}", error.expected),
            ..error
        })
    }
}

impl ModelArgs {
    /// The request, with the backend left to the compiler where none is asked for.
    pub(crate) fn request(&self) -> CompileEngineRequest {
        let backend = match self.backend {
            BackendChoice::Named(backend) => Some(backend),
            BackendChoice::Auto if self.asks_for_tensorrt() => Some(BackendKind::TensorRt),
            BackendChoice::Auto => None,
        };
        self.request_for(backend, self.target.clone())
    }

    /// The request for an engine that this executor can run: without a backend for the best of `runtimes`, without
    /// targets for its GPUs.
    pub(crate) fn request_to_run(&self, runtimes: &[executor::Runtime]) -> CompileEngineRequest {
        let best = || runtimes.iter().find_map(|runtime| runtime.backend.parse().ok());
        let backend = match self.backend {
            BackendChoice::Named(backend) => backend,
            BackendChoice::Auto if self.asks_for_tensorrt() => BackendKind::TensorRt,
            BackendChoice::Auto => best().unwrap_or(BackendKind::Cpu),
        };
        let mut targets = self.target.clone();
        if targets.is_empty() {
            let runtime = runtimes.iter().find(|runtime| runtime.backend == backend.name());
            let names = runtime.map(|runtime| runtime.compute_capabilities.as_slice()).unwrap_or_default();
            targets = names.iter().filter_map(|name| name.parse().ok()).collect();
        }
        self.request_for(Some(backend), targets)
    }

    /// Whether a flag is given that only TensorRT engines have.
    fn asks_for_tensorrt(&self) -> bool {
        !self.target.is_empty() || self.tensorrt.is_specific()
    }

    fn request_for(
        &self,
        backend: Option<BackendKind>,
        targets: Vec<ComputeCapability>,
    ) -> CompileEngineRequest {
        let precision = match self.precision {
            Precision::Fp32 => compiler::Precision::Fp32,
            Precision::Fp16 => compiler::Precision::Fp16,
            Precision::Bf16 => compiler::Precision::Bf16,
        };
        let cache = match self.cache {
            CacheKind::None => compiler::CacheKind::None,
            CacheKind::StaticV1 => compiler::CacheKind::StaticV1,
            CacheKind::StaticV2 => compiler::CacheKind::StaticV2,
            CacheKind::InPlace => compiler::CacheKind::InPlace,
        };
        let message = backend.map(|backend| match backend {
            BackendKind::TensorRt => compiler::Backend::Tensorrt,
            BackendKind::Cuda => compiler::Backend::Cuda,
            BackendKind::Cpu => compiler::Backend::Cpu,
        });
        // Flags that do not fit the backend are the compiler's to refuse.
        let tensorrt = backend == Some(BackendKind::TensorRt) || self.tensorrt.is_specific();
        CompileEngineRequest {
            model: self.model.clone(),
            revision: self.revision.clone(),
            options: Some(CompileOptions {
                precision: Some(precision.into()),
                cache: Some(cache.into()),
                backend: message.map(Into::into),
                max_seq_len: self.max_seq_len,
                max_batch_size: self.max_batch_size,
                all_logits: None,
                targets: targets.iter().map(ToString::to_string).collect(),
                tensorrt: tensorrt.then(|| self.tensorrt.message()),
                quantization: self.quantization.message(),
            }),
            validate_only: None,
            force: None,
        }
    }
}

impl TensorRtArgs {
    /// Whether one is given that asks for something else than what every backend does.
    fn is_specific(&self) -> bool {
        self.attention.is_some()
            || self.weights.is_some()
            || self.weight_streaming
            || self.profiles.is_some()
            || self.fp32_accumulation.is_some()
    }

    fn message(&self) -> compiler::TensorRtOptions {
        let attention = self.attention.map(|attention| match attention {
            AttentionForm::Auto => compiler::AttentionForm::Unspecified,
            AttentionForm::Fused => compiler::AttentionForm::Fused,
            AttentionForm::Decomposed => compiler::AttentionForm::Decomposed,
        });
        let weights = self.weights.map(|weights| match weights {
            WeightPlacement::Auto => compiler::WeightPlacement::Unspecified,
            WeightPlacement::Embedded => compiler::WeightPlacement::Embedded,
            WeightPlacement::Separate => compiler::WeightPlacement::Separate,
        });
        let profiles = self.profiles.map(|profiles| match profiles {
            Profiles::One => compiler::Profiles::One,
            Profiles::Two => compiler::Profiles::Two,
        });
        compiler::TensorRtOptions {
            fp32_accumulation: self.fp32_accumulation.or(self.use_fp32_acc.then_some(true)),
            attention: attention.map(Into::into),
            weights: weights.map(Into::into),
            weight_streaming: self.weight_streaming.then_some(true),
            profiles: profiles.map(Into::into),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        model: ModelArgs,
    }

    fn parse(flags: &[&str]) -> ModelArgs {
        let arguments = ["command", "--model", "m"].iter().chain(flags);
        Command::try_parse_from(arguments).unwrap().model
    }

    fn gpu() -> [executor::Runtime; 2] {
        let tensorrt = executor::Runtime {
            backend: "tensorrt".to_owned(),
            compute_capabilities: vec!["sm_89".to_owned()],
        };
        [tensorrt, cpu()]
    }

    fn cpu() -> executor::Runtime {
        executor::Runtime { backend: "cpu".to_owned(), compute_capabilities: Vec::new() }
    }

    /// Backend, targets and whether there are TensorRT options.
    fn asked(request: CompileEngineRequest) -> (compiler::Backend, Vec<String>, bool) {
        let options = request.options.unwrap();
        (options.backend(), options.targets.clone(), options.tensorrt.is_some())
    }

    #[test]
    fn automatic_is_the_executors_best_backend_and_its_gpu() {
        let args = parse(&[]);
        assert_eq!(
            asked(args.request_to_run(&gpu())),
            (compiler::Backend::Tensorrt, vec!["sm_89".to_owned()], true)
        );
        assert_eq!(asked(args.request_to_run(&[cpu()])), (compiler::Backend::Cpu, Vec::new(), false));
        assert_eq!(asked(args.request_to_run(&[])), (compiler::Backend::Cpu, Vec::new(), false));
        assert_eq!(asked(args.request()), (compiler::Backend::Unspecified, Vec::new(), false));
    }

    #[test]
    fn what_is_asked_for_comes_before_what_the_executor_has() {
        let args = parse(&["--target", "sm_120,8.6"]);
        let targets = vec!["sm_120".to_owned(), "sm_86".to_owned()];
        let expected = (compiler::Backend::Tensorrt, targets, true);
        assert_eq!(asked(args.request_to_run(&gpu())), expected);
        assert_eq!(asked(args.request_to_run(&[cpu()])), expected);
        assert_eq!(asked(args.request()), expected);
        let args = parse(&["--backend", "cpu"]);
        assert_eq!(asked(args.request_to_run(&gpu())), (compiler::Backend::Cpu, Vec::new(), false));
        let args = parse(&["--profiles", "two"]);
        assert_eq!(asked(args.request_to_run(&[cpu()])), (compiler::Backend::Tensorrt, Vec::new(), true));
    }

    #[test]
    fn fp32_accumulation_as_the_original_asks_for_it_fits_every_backend() {
        let args = parse(&["--use-fp32-acc"]);
        assert_eq!(asked(args.request_to_run(&[cpu()])), (compiler::Backend::Cpu, Vec::new(), false));
        let options = args.request_to_run(&gpu()).options.unwrap().tensorrt.unwrap();
        assert_eq!(options.fp32_accumulation, Some(true));
        let off = parse(&["--fp32-accumulation", "false", "--backend", "tensorrt"]);
        assert_eq!(off.request().options.unwrap().tensorrt.unwrap().fp32_accumulation, Some(false));
        let both = ["command", "--model", "m", "--use-fp32-acc", "--fp32-accumulation", "false"];
        assert!(Command::try_parse_from(both).is_err());
    }

    #[test]
    fn every_tensorrt_flag_reaches_the_request() {
        let args = parse(&[
            "--attention",
            "decomposed",
            "--weights",
            "separate",
            "--weight-streaming",
            "--profiles",
            "two",
        ]);
        let options = args.request().options.unwrap().tensorrt.unwrap();
        assert_eq!(options.attention(), compiler::AttentionForm::Decomposed);
        assert_eq!(options.weights(), compiler::WeightPlacement::Separate);
        assert_eq!(options.profiles(), compiler::Profiles::Two);
        assert_eq!((options.weight_streaming, options.fp32_accumulation), (Some(true), None));
    }

    #[test]
    fn a_backend_that_is_none_lists_those_that_are() {
        let error = "metal".parse::<BackendChoice>().unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"unknown backend "metal": expected one of auto, tensorrt, cuda, cpu"#
        );
    }
}
