//! The rotary angles are those that Transformers computes (`golden/make_rope.py`).

use roundhouse_models::{Config, RopeParameters};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Case {
    name: String,
    config: Value,
    inv_freq: Vec<f32>,
    attention_factor: f64,
}

/// Representable numbers between two positive ones.
fn ulps(a: f32, b: f32) -> u32 {
    assert!(a > 0.0 && b > 0.0, "{a} {b}");
    a.to_bits().abs_diff(b.to_bits())
}

#[test]
fn angles_agree_with_transformers_to_the_last_bit_but_one() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("golden/rope.json")).unwrap();
    assert_eq!(cases.len(), 20);
    for Case { name, config, inv_freq, attention_factor } in cases {
        let head_dim = u32::try_from(config["head_dim"].as_u64().unwrap()).unwrap();
        let config = Config::new(&config).unwrap();
        let found = RopeParameters::read(&config, 10_000.0).unwrap().attributes(head_dim);
        assert_eq!(found.inv_freq.len(), inv_freq.len(), "{name}");
        assert_eq!(found.rotary_dim(), head_dim as usize, "{name}");
        for (index, (&found, &expected)) in found.inv_freq.iter().zip(&inv_freq).enumerate() {
            // Vectorised fp32 pow is allowed its last bit; the rest follows operation by operation.
            assert!(ulps(found, expected) <= 1, "{name}[{index}]: {found:e}, Transformers has {expected:e}");
        }
        assert!(ulps(found.attention_factor, attention_factor as f32) <= 1, "{name}");
        assert!(!found.interleaved);
    }
}
