//! Which form an attention takes, and why.

use roundhouse_backend_conformance::tiny_models::TinyModel;
use roundhouse_engine::{AttentionForm, CacheKind, EngineOptions, Precision, TensorRtOptions};
use roundhouse_tensorrt_converters::{AttentionChoice, ConvertError, coverage};
use roundhouse_tensorrt_network::LayerKind;

use crate::support::{convert, lowered, options};

fn with(options: EngineOptions, attention: AttentionForm) -> EngineOptions {
    EngineOptions { tensorrt: Some(TensorRtOptions { attention, ..TensorRtOptions::default() }), ..options }
}

fn choices(model: &TinyModel, options: &EngineOptions) -> Vec<AttentionChoice> {
    let converted = convert(&lowered(model, options), options);
    let fused = converted.attention.iter().filter(|choice| choice.form == AttentionForm::Fused).count();
    let layers = converted.network.layers().iter();
    let found = layers.filter(|layer| matches!(layer.kind, LayerKind::Attention { .. })).count();
    assert_eq!(found, fused, "the layers are what the choices say");
    converted.attention
}

#[test]
fn the_form_and_its_reason() {
    use AttentionForm::{Auto, Decomposed, Fused};
    use Precision::{Bf16, Fp16, Fp32};
    let narrow = TinyModel { head_dim: 8, rotary_dim: 8, ..TinyModel::llama() };
    let odd = TinyModel { head_dim: 20, rotary_dim: 20, ..TinyModel::llama() };
    let wide = TinyModel { head_dim: 264, rotary_dim: 264, ..TinyModel::llama() };
    let widest = TinyModel { head_dim: 256, rotary_dim: 256, ..TinyModel::llama() };
    let llama = TinyModel::llama();
    let mistral = TinyModel::mistral();
    let gemma2 = TinyModel::gemma2();
    let cases = [
        (&llama, Fp16, Auto, Fused, "there are fused kernels for f16 and heads of 16"),
        (&llama, Bf16, Auto, Fused, "there are fused kernels for bf16 and heads of 16"),
        (&llama, Fp32, Auto, Decomposed, "there are no fused fp32 kernels"),
        (&mistral, Fp16, Auto, Fused, "there are fused kernels for f16"),
        (&widest, Fp16, Auto, Fused, "heads of 256"),
        (
            &narrow,
            Fp16,
            Auto,
            Decomposed,
            "no fused kernels for heads of 8: they take multiples of 8 from 16 to 256",
        ),
        (&odd, Fp16, Auto, Decomposed, "no fused kernels for heads of 20"),
        (&wide, Fp16, Auto, Decomposed, "no fused kernels for heads of 264"),
        (&gemma2, Fp16, Auto, Decomposed, "IAttention has no soft cap"),
        (&llama, Fp16, Decomposed, Decomposed, "asked for"),
        (&gemma2, Fp16, Decomposed, Decomposed, "asked for"),
        (&llama, Fp32, Fused, Fused, "asked for"),
        (&narrow, Fp16, Fused, Fused, "asked for"),
    ];
    for (model, precision, asked, form, reason) in cases {
        for &cache in CacheKind::ALL {
            let options = with(options(precision, cache), asked);
            let choices = choices(model, &options);
            assert_eq!(choices.len(), model.num_hidden_layers);
            for choice in choices {
                assert_eq!(
                    choice.form, form,
                    "{} {precision} {asked} {cache}: {}",
                    model.name, choice.reason
                );
                assert!(choice.reason.contains(reason), "{:?} is not in {:?}", reason, choice.reason);
                assert!(choice.node.contains("scaled_dot_product_attention"), "{}", choice.node);
            }
        }
    }
}

#[test]
fn a_fused_form_that_cannot_be_is_refused_with_every_node() {
    let options = with(options(Precision::Fp16, CacheKind::InPlace), AttentionForm::Fused);
    let model = TinyModel::gemma2();
    let graph = lowered(&model, &options);
    let uncovered = coverage(&graph, &options);
    assert_eq!(uncovered.len(), model.num_hidden_layers);
    for node in &uncovered {
        assert_eq!(node.op, "scaled_dot_product_attention");
        assert_eq!(node.reason, "fused attention is asked for: IAttention has no soft cap");
    }
    let error = roundhouse_tensorrt_converters::convert(&graph, &options).unwrap_err();
    assert_eq!(error, ConvertError::Unsupported(uncovered));
}
