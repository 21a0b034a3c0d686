//! What is built: family × backend × precision × cache, and the quantised weights that are multiplied with as they are.
//!
//! `ListModelFamilies` answers with this table, docs/models.md shows it, the pipeline refuses what is not in it, and the
//! end-to-end tests compare every engine of it with Transformers.

use roundhouse_backend::Builder;
use roundhouse_engine::{
    BackendKind, CacheKind, ComputeCapabilities, EngineOptions, Precision, WeightQuantization,
};
use roundhouse_graph::{Quantization, QuantizedLinearAttributes, WeightFormat};
use roundhouse_models::{FAMILIES, ModelFamily};

use crate::backends::Backends;

/// The columns that share a scale where a request does not say; `WeightQuantization.group_size` of the interface.
const fn group_size(format: WeightFormat) -> u32 {
    match format {
        WeightFormat::Int8 | WeightFormat::Fp8 => 128,
        WeightFormat::Int4 => 32,
    }
}

/// Engines that are not built, and why. What is `None` is any.
#[derive(Debug, Clone, Copy)]
pub struct Refusal {
    /// Of a family.
    pub architecture: Option<&'static str>,
    /// For a backend.
    pub backend: Option<BackendKind>,
    /// In a precision.
    pub precision: Option<Precision>,
    /// With a cache.
    pub cache: Option<CacheKind>,
    /// Why, and what there is instead.
    pub reason: &'static str,
}

/// The table.
#[derive(Debug, Clone, Copy)]
pub struct SupportTable {
    /// What is left out of all families × backends × precisions × caches.
    refusals: &'static [Refusal],
}

/// What is built.
pub const SUPPORT: SupportTable = SupportTable::without(&[
    only_cpu("Eagle2ChatModel", BackendKind::Cuda),
    only_cpu("Eagle2ChatModel", BackendKind::TensorRt),
    only_cpu("Qwen2_5_VLForConditionalGeneration", BackendKind::Cuda),
    only_cpu("Qwen2_5_VLForConditionalGeneration", BackendKind::TensorRt),
]);

/// A family with images, which a backend does not build.
const fn only_cpu(architecture: &'static str, backend: BackendKind) -> Refusal {
    Refusal {
        architecture: Some(architecture),
        backend: Some(backend),
        precision: None,
        cache: None,
        reason: "models with images are built for the cpu backend alone",
    }
}

/// A family, and what is built of it.
#[derive(Debug, Clone)]
pub struct FamilySupport {
    /// The family.
    pub family: &'static ModelFamily,
    /// Backends that build something.
    pub backends: Vec<BackendSupport>,
}

/// What a backend builds of a family.
#[derive(Debug, Clone)]
pub struct BackendSupport {
    /// The backend.
    pub backend: BackendKind,
    /// Precisions in which it builds something.
    pub precisions: Vec<PrecisionSupport>,
}

/// What a backend builds of a family in a precision.
#[derive(Debug, Clone)]
pub struct PrecisionSupport {
    /// The precision.
    pub precision: Precision,
    /// With which caches; not empty.
    pub caches: Vec<CacheKind>,
    /// The quantised weights that it multiplies with; others are decoded to the precision.
    pub quantized: Vec<QuantizedForm>,
}

/// A form of quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantizedForm {
    /// The format of its bytes.
    pub format: WeightFormat,
    /// Whether groups have an offset beside their scale.
    pub has_offsets: bool,
}

impl QuantizedForm {
    /// Those that checkpoints have or the compiler makes.
    pub const ALL: [Self; 5] = [
        Self { format: WeightFormat::Int8, has_offsets: false },
        Self { format: WeightFormat::Int8, has_offsets: true },
        Self { format: WeightFormat::Int4, has_offsets: false },
        Self { format: WeightFormat::Int4, has_offsets: true },
        Self { format: WeightFormat::Fp8, has_offsets: false },
    ];
}

impl SupportTable {
    /// Everything but for this.
    #[must_use]
    pub const fn without(refusals: &'static [Refusal]) -> Self {
        Self { refusals }
    }

    /// Why an engine is not built; `None` if it is.
    #[must_use]
    pub fn refusal(
        &self,
        architecture: &str,
        backend: BackendKind,
        precision: Precision,
        cache: CacheKind,
    ) -> Option<&'static str> {
        let fits = |refusal: &&Refusal| {
            refusal.architecture.is_none_or(|refused| refused == architecture)
                && refusal.backend.is_none_or(|refused| refused == backend)
                && refusal.precision.is_none_or(|refused| refused == precision)
                && refusal.cache.is_none_or(|refused| refused == cache)
        };
        self.refusals.iter().find(fits).map(|refusal| refusal.reason)
    }

    /// What is built by the backends that can be had, by family. Blocks as [`Backends::builder`].
    #[must_use]
    pub fn families(&self, backends: &Backends) -> Vec<FamilySupport> {
        let available = backends.available();
        let builders: Vec<_> =
            available.iter().filter_map(|&backend| backends.builder(backend).ok()).collect();
        let family = |family: &'static ModelFamily| FamilySupport {
            family,
            backends: builders
                .iter()
                .map(|builder| self.backend(family, &**builder))
                .filter(|support| !support.precisions.is_empty())
                .collect(),
        };
        FAMILIES.iter().map(family).collect()
    }

    fn backend(&self, family: &ModelFamily, builder: &dyn Builder) -> BackendSupport {
        let backend = builder.kind();
        let support = |&precision: &Precision| {
            let refused = |cache| self.refusal(family.architecture, backend, precision, cache).is_some();
            let caches = CacheKind::ALL.iter().copied().filter(|&cache| !refused(cache)).collect();
            PrecisionSupport { precision, caches, quantized: quantized(builder, precision) }
        };
        let mut precisions: Vec<_> = Precision::ALL.iter().map(support).collect();
        precisions.retain(|support| !support.caches.is_empty());
        BackendSupport { backend, precisions }
    }
}

/// The forms that a backend multiplies with in an engine of a precision whose request leaves all else open.
fn quantized(builder: &dyn Builder, precision: Precision) -> Vec<QuantizedForm> {
    let multiplies = |form: &QuantizedForm| {
        let quantization = Quantization { format: form.format, group_size: group_size(form.format) };
        let attributes = QuantizedLinearAttributes { quantization, has_offsets: form.has_offsets };
        let options = EngineOptions {
            precision,
            cache: CacheKind::InPlace,
            backend: builder.kind(),
            max_seq_len: 1,
            max_batch_size: 1,
            all_logits: false,
            quantization: WeightQuantization::Compiler(attributes),
            targets: ComputeCapabilities::default(),
            tensorrt: None,
        };
        builder.multiplies_quantized(attributes, &options)
    };
    QuantizedForm::ALL.into_iter().filter(multiplies).collect()
}

#[cfg(test)]
mod tests {
    use roundhouse_backend::LibrarySearch;

    use super::*;

    const REFUSALS: &[Refusal] = &[
        Refusal {
            architecture: Some("GPT2LMHeadModel"),
            backend: Some(BackendKind::Cpu),
            precision: Some(Precision::Bf16),
            cache: None,
            reason: "no bf16",
        },
        Refusal {
            architecture: None,
            backend: Some(BackendKind::Cpu),
            precision: Some(Precision::Fp16),
            cache: Some(CacheKind::StaticV1),
            reason: "no fp16 in static_v1",
        },
    ];

    fn cpu() -> Backends {
        let nowhere = LibrarySearch { path: Some("/nowhere".into()), folders: Vec::new() };
        Backends::new(nowhere.clone(), nowhere)
    }

    #[test]
    fn what_is_refused_is_not_in_the_table_and_the_rest_is() {
        let families = SupportTable::without(REFUSALS).families(&cpu());
        assert_eq!(families.len(), FAMILIES.len());
        for FamilySupport { family, backends } in families {
            let [cpu] = &backends[..] else { unreachable!("{backends:?}") };
            for &precision in Precision::ALL {
                let caches = cpu.precisions.iter().find(|support| support.precision == precision);
                let caches = caches.map_or(&[][..], |support| &support.caches);
                let expected: Vec<CacheKind> = match (family.architecture, precision) {
                    ("GPT2LMHeadModel", Precision::Bf16) => Vec::new(),
                    (_, Precision::Fp16) => {
                        vec![CacheKind::None, CacheKind::StaticV2, CacheKind::InPlace]
                    }
                    _ => CacheKind::ALL.to_vec(),
                };
                assert_eq!(caches, expected, "{} {precision}", family.architecture);
            }
        }
    }

    #[test]
    fn a_refusal_says_why() {
        let table = SupportTable::without(REFUSALS);
        let refusal = |precision, cache| table.refusal("GPT2LMHeadModel", BackendKind::Cpu, precision, cache);
        assert_eq!(refusal(Precision::Bf16, CacheKind::InPlace), Some("no bf16"));
        assert_eq!(refusal(Precision::Fp16, CacheKind::StaticV1), Some("no fp16 in static_v1"));
        assert_eq!(refusal(Precision::Fp16, CacheKind::InPlace), None);
    }
}
