//! Whole models with quantised weights.

use roundhouse_backend::LogitsRequest::All;
use roundhouse_engine::CacheKind;
use roundhouse_graph::{Quantization, QuantizedLinearAttributes, WeightFormat};

use super::compare::{Expected, equal};
use super::engine::{Engine, Source, options, step_together};
use super::failure::InCase as _;
use super::{Backend, Failure};
use crate::Rng;
use crate::quantized_models::quantize;
use crate::tiny_models::TinyModel;

/// Wide enough for what backends do with wide products.
fn model() -> TinyModel {
    TinyModel {
        name: "quantized",
        hidden_size: 256,
        head_dim: 64,
        rotary_dim: 64,
        intermediate_size: 512,
        ..TinyModel::llama()
    }
}

/// As tools mix them: other formats for what loses most. One layer has a format for each of its products, the other one for
/// what runs together.
fn mixed(name: &str) -> Option<QuantizedLinearAttributes> {
    use WeightFormat::{Fp8, Int4, Int8};

    let (format, group_size, has_offsets) = match name.strip_prefix("model.layers.") {
        None => (Int8, 64, false),
        Some(layer) => match layer.split_once('.')? {
            ("0", "self_attn.q_proj.weight") => (Int4, 32, true),
            ("0", "self_attn.k_proj.weight") => (Int8, 64, false),
            ("0", "self_attn.v_proj.weight") => (Fp8, 128, false),
            ("0", "self_attn.o_proj.weight") => (Int8, 16, true),
            ("0", "mlp.up_proj.weight") => return None,
            ("0", "mlp.down_proj.weight") => (Fp8, 128, false),
            _ => (Int4, 32, true),
        },
    };
    Some(QuantizedLinearAttributes { quantization: Quantization { format, group_size }, has_offsets })
}

/// A model with weights of every format that the builder [multiplies
/// with](roundhouse_backend::Builder::multiplies_quantized), several of them in one layer, computes the interpreter's logits
/// in every precision: of a prompt, of tokens one by one, and of both in one step.
///
/// # Errors
/// When it does not.
pub fn quantized_models_equal_the_reference(backend: &Backend<'_>) -> Result<(), Failure> {
    let model = model();
    for &precision in &backend.precisions {
        let options = options(backend, precision, CacheKind::InPlace, true);
        let multiplies =
            |form: &QuantizedLinearAttributes| backend.builder.multiplies_quantized(*form, &options);
        let mut source = Source::tiny(&model)?;
        let form = |name: &str| mixed(name).filter(multiplies);
        source.graph = quantize(source.graph, &mut source.weights, &form)?;
        let engine = Engine::new(backend, model.name, &source, &options)?;
        let expected = Expected::new(&engine.case, &source.graph, &source.weights, precision)?;
        let mut rng = Rng::new(11);
        let sequences = [rng.tokens(37, model.vocab_size), rng.tokens(20, model.vocab_size)];
        let (mut first, mut second) = (engine.session()?, engine.session()?);
        let mut found = [first.step(&sequences[0][..33], All)?, Vec::new()];
        found[0].extend(first.step(&sequences[0][33..34], All)?);
        // The first goes on while the second begins, then both go on.
        for [a, b] in [[34..35, 0..17], [35..36, 17..18], [36..37, 18..20]] {
            let mut batch = [(&mut first, &sequences[0][a], All), (&mut second, &sequences[1][b], All)];
            let logits = step_together(&engine, &mut batch).in_case(&engine.case)?;
            found.iter_mut().zip(logits).for_each(|(found, logits)| found.extend(logits));
        }
        for (found, tokens) in found.iter().zip(&sequences) {
            equal(&engine.case, precision, found, &expected.logits(&engine.case, tokens)?)?;
        }
    }
    Ok(())
}
