//! What is built, as messages.

use roundhouse_engine::{CacheKind, Precision};
use roundhouse_graph::WeightFormat;
use roundhouse_proto::compiler as proto;

use super::{backend_message, cache_message, precision_message};
use crate::support::{BackendSupport, FamilySupport, PrecisionSupport, QuantizedForm};

pub(crate) fn family(support: &FamilySupport) -> proto::ModelFamily {
    let any = |fits: &dyn Fn(&PrecisionSupport) -> bool| {
        support.backends.iter().flat_map(|backend| &backend.precisions).any(fits)
    };
    let precisions = Precision::ALL.iter().filter(|&&precision| any(&|found| found.precision == precision));
    let caches = CacheKind::ALL.iter().filter(|&cache| any(&|found| found.caches.contains(cache)));
    proto::ModelFamily {
        model_type: support.family.model_type.to_owned(),
        architecture: support.family.architecture.to_owned(),
        backends: support.backends.iter().map(|found| backend_message(found.backend).into()).collect(),
        precisions: precisions.map(|&precision| precision_message(precision).into()).collect(),
        caches: caches.map(|&cache| cache_message(cache).into()).collect(),
        support: support.backends.iter().map(backend).collect(),
    }
}

fn backend(support: &BackendSupport) -> proto::BackendSupport {
    proto::BackendSupport {
        backend: backend_message(support.backend).into(),
        precisions: support.precisions.iter().map(precision).collect(),
    }
}

fn precision(support: &PrecisionSupport) -> proto::PrecisionSupport {
    proto::PrecisionSupport {
        precision: precision_message(support.precision).into(),
        caches: support.caches.iter().map(|&cache| cache_message(cache).into()).collect(),
        quantized_weights: support.quantized.iter().map(quantized).collect(),
    }
}

fn quantized(form: &QuantizedForm) -> proto::QuantizedWeights {
    let format = match form.format {
        WeightFormat::Int8 => proto::WeightFormat::Int8,
        WeightFormat::Int4 => proto::WeightFormat::Int4,
        WeightFormat::Fp8 => proto::WeightFormat::Fp8,
    };
    proto::QuantizedWeights { format: format.into(), offsets: form.has_offsets }
}
