//! The rotary angles are those that Transformers computes (`golden/make_rope.py`).

use roundhouse_models::{Config, RopeForm, RopeParameters};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Case {
    name: String,
    config: Value,
    max_seq_len: u32,
    inv_freq: Vec<f32>,
    attention_factor: f64,
}

/// Representable numbers between two positive ones.
fn ulps(a: f32, b: f32) -> u32 {
    assert!(a > 0.0 && b > 0.0, "{a} {b}");
    a.to_bits().abs_diff(b.to_bits())
}

#[test]
fn angles_agree_with_transformers_to_the_last_bits() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("golden/rope.json")).unwrap();
    assert_eq!(cases.len(), 24);
    for Case { name, config, max_seq_len, inv_freq, attention_factor } in cases {
        let head_dim = u32::try_from(config["head_dim"].as_u64().unwrap()).unwrap();
        let config = Config::new(&config).unwrap();
        let found = RopeParameters::read(&config, &RopeForm::new(10_000.0), head_dim).unwrap();
        let found = found.attributes(max_seq_len);
        assert_eq!(found.inv_freq.len(), inv_freq.len(), "{name}");
        assert_eq!(found.rotary_dim(), head_dim as usize, "{name}");
        for (index, (&found, &expected)) in found.inv_freq.iter().zip(&inv_freq).enumerate() {
            // Vectorised fp32 pow is allowed its last bit; the rest follows operation by operation. The product with
            // longrope's factor may round the difference to two bits.
            let allowed = if name.starts_with("longrope") { 2 } else { 1 };
            assert!(
                ulps(found, expected) <= allowed,
                "{name}[{index}]: {found:e}, Transformers has {expected:e}"
            );
        }
        assert!(ulps(found.attention_factor, attention_factor as f32) <= 1, "{name}");
        assert!(!found.interleaved);
    }
}
