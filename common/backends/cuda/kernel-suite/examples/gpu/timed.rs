//! What is timed: products of models, their variants, and heads of attention.

use roundhouse_cuda_kernels::{
    Activation, AttentionCombine, AttentionDecode, AttentionPrefill, Epilogue, HeadNorm, Kernel, Linear,
    Method, Nominal, Prologue, RotaryAppend, Weight,
};
use roundhouse_graph::{DType, WeightFormat};

pub(super) const DTYPE: DType = DType::F16;
pub(super) const POOL_BYTES: usize = 3 << 30;
pub(super) const MULTIPROCESSORS: u32 = 132;
pub(super) const NOMINAL: Nominal = Nominal { multiprocessors: MULTIPROCESSORS, warpgroups: true };
const RESIDUAL: Epilogue = Epilogue { residual: true, ..Epilogue::NONE };
const GATED: Epilogue = Epilogue { gated: true, activation: Activation::Silu, ..Epilogue::NONE };
const LOGITS: Epilogue = Epilogue { float_output: true, ..Epilogue::NONE };
const RMS: Prologue = Prologue::RmsNorm { unit_offset: false };

/// A product of a model's decode step.
pub(super) struct Product {
    pub(super) name: &'static str,
    pub(super) n: u32,
    pub(super) columns: u32,
    pub(super) prologue: Prologue,
    pub(super) epilogue: Epilogue,
}

const fn product(
    name: &'static str,
    n: u32,
    columns: u32,
    prologue: Prologue,
    epilogue: Epilogue,
) -> Product {
    Product { name, n, columns, prologue, epilogue }
}

pub(super) const PRODUCTS: &[Product] = &[
    product("1b qkv", 3072, 2048, RMS, Epilogue::NONE),
    product("1b o", 2048, 2048, Prologue::None, RESIDUAL),
    product("1b gate_up", 8192, 2048, RMS, GATED),
    product("1b down", 2048, 8192, Prologue::None, RESIDUAL),
    product("1b head", 128_256, 2048, RMS, LOGITS),
    product("8b qkv", 6144, 4096, RMS, Epilogue::NONE),
    product("8b o", 4096, 4096, Prologue::None, RESIDUAL),
    product("8b gate_up", 14_336, 4096, RMS, GATED),
    product("8b down", 4096, 14_336, Prologue::None, RESIDUAL),
    product("0.5b qkv", 1152, 896, RMS, Epilogue::NONE),
    product("0.5b o", 896, 896, Prologue::None, RESIDUAL),
    product("0.5b gate_up", 4864, 896, RMS, GATED),
    product("0.5b down", 896, 4864, Prologue::None, RESIDUAL),
];
const SPLITS: [u32; 4] = [1, 2, 4, 8];

impl Product {
    pub(super) fn weight_rows(&self) -> u32 {
        if self.epilogue.gated { 2 * self.n } else { self.n }
    }

    pub(super) fn linear(&self, rows: u32, method: Method, weight: Weight) -> Linear {
        let normalises = matches!(method, Method::Rows { .. } | Method::Tensor { .. } if rows == 1);
        let prologue = if normalises { self.prologue } else { Prologue::None };
        Linear { dtype: DTYPE, weight, columns: self.columns, method, prologue, epilogue: self.epilogue }
    }

    pub(super) fn bytes(&self, weight: Weight) -> usize {
        let elements = self.weight_rows() as usize * self.columns as usize;
        match weight {
            Weight::Float => elements * 2,
            Weight::Quantized { format, group_size, offsets, .. } => {
                let of_groups = elements / group_size as usize * if offsets { 4 } else { 2 };
                elements * format.bits() as usize / 8 + of_groups
            }
        }
    }
}

/// What is timed of products: rows of activations, the method, the weight.
pub(super) fn variants() -> Vec<(usize, u32, Method, Weight)> {
    let mut variants = Vec::new();
    let formats = [WeightFormat::Int4, WeightFormat::Int8, WeightFormat::Fp8].map(quantized);
    for (index, product) in PRODUCTS.iter().enumerate() {
        for split in SPLITS.into_iter().filter(|split| split * 256 <= product.columns) {
            variants.push((index, 1, Method::Rows { rows: 1, split }, Weight::Float));
        }
        if product.name.starts_with("1b") {
            for rows in [8, 16] {
                for split in [1, 2, 4, 8] {
                    variants.push((index, rows, Method::Tensor { rows, split }, Weight::Float));
                }
            }
            for (rows, tile) in [(16, 32), (32, 32), (64, 64), (64, 128)] {
                variants.push((index, rows, Method::Tiles { rows: tile }, Weight::Float));
            }
            for (rows, split) in [(32, 4), (64, 4), (32, 8), (64, 8)] {
                variants.push((index, rows, Method::Tensor { rows, split }, Weight::Float));
            }
        }
        if (product.name.starts_with("8b") || product.name.starts_with("1b")) && product.n < 100_000 {
            for weight in formats {
                for split in SPLITS {
                    variants.push((index, 1, Method::Tensor { rows: 8, split }, weight));
                }
                for split in [2, 8] {
                    variants.push((index, 16, Method::Tensor { rows: 16, split }, weight));
                }
                variants.push((index, 64, Method::Tiles { rows: 64 }, weight));
                for rows in [64, 128] {
                    variants.push((index, 512, Method::Tiles { rows }, weight));
                }
                for outputs in [128, 256] {
                    variants.push((index, 512, Method::Warpgroups { outputs }, weight));
                }
            }
        }
        if product.name.starts_with("8b") {
            variants.push((index, 64, Method::Tiles { rows: 64 }, Weight::Float));
        }
        if product.n < 100_000 {
            for rows in [64, 128] {
                variants.push((index, 512, Method::Tiles { rows }, Weight::Float));
            }
            for outputs in [128, 256] {
                variants.push((index, 512, Method::Warpgroups { outputs }, Weight::Float));
            }
        }
    }
    variants
}

/// As the compiler makes them.
const fn quantized(format: WeightFormat) -> Weight {
    let (group_size, offsets) = match format {
        WeightFormat::Int4 => (32, true),
        WeightFormat::Int8 | WeightFormat::Fp8 => (128, false),
    };
    Weight::Quantized { format, group_size, offsets, scales: DType::F16 }
}

pub(super) struct Heads {
    pub(super) name: &'static str,
    pub(super) head_dim: u32,
    pub(super) group: u32,
    pub(super) kv_heads: u32,
}
pub(super) const HEADS: [Heads; 3] = [
    Heads { name: "D64 G4", head_dim: 64, group: 4, kv_heads: 8 },
    Heads { name: "D128 G7", head_dim: 128, group: 7, kv_heads: 4 },
    Heads { name: "D128 G4", head_dim: 128, group: 4, kv_heads: 8 },
];

pub(super) fn decode(heads: &Heads) -> AttentionDecode {
    AttentionDecode::new(DTYPE, heads.head_dim, heads.group)
}

pub(super) const ROTARY: RotaryAppend = RotaryAppend { dtype: DTYPE, head_norm: HeadNorm::None };

/// All kernels that are timed.
pub(crate) fn kernels() -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = vec![ROTARY.into(), AttentionCombine { dtype: DTYPE }.into()];
    for (index, rows, method, weight) in variants() {
        kernels.push(PRODUCTS[index].linear(rows, method, weight).into());
    }
    for heads in &HEADS {
        kernels.push(decode(heads).into());
        kernels.push(AttentionPrefill { dtype: DTYPE, head_dim: heads.head_dim }.into());
    }
    for product in &PRODUCTS[..9] {
        let method = Method::choose(
            DTYPE,
            Weight::Float,
            1,
            product.weight_rows(),
            product.columns,
            product.prologue != Prologue::None,
            NOMINAL,
        );
        kernels.push(product.linear(1, method, Weight::Float).into());
    }
    kernels
}
