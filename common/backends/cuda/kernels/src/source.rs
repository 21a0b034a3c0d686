//! The sources and how they are put together.

use std::collections::BTreeSet;

use crate::Kernel;

macro_rules! headers {
    ($($name:ident = $file:literal needs [$($needs:ident),*];)*) => {
        /// One source file.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Header {
            $($name),*
        }

        impl Header {
            const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => include_str!(concat!("../cu/", $file))),*
                }
            }

            const fn file(self) -> &'static str {
                match self {
                    $(Self::$name => $file),*
                }
            }

            const fn needs(self) -> &'static [Self] {
                match self {
                    $(Self::$name => &[$(Self::$needs),*]),*
                }
            }
        }
    };
}

headers! {
    Elements = "elements.cuh" needs [];
    Reductions = "reductions.cuh" needs [];
    Step = "step.cuh" needs [];
    Weights = "weights.cuh" needs [Elements];
    Epilogue = "epilogue.cuh" needs [Activation, Elements];
    Activation = "activation.cuh" needs [];
    Elementwise = "elementwise.cuh" needs [Elements, Activation, Step];
    Softmax = "softmax.cuh" needs [Elements, Reductions];
    Embedding = "embedding.cuh" needs [Elements];
    Norm = "norm.cuh" needs [Elements, Reductions];
    Rotary = "rotary.cuh" needs [Elements, Reductions, Step];
    Experts = "experts.cuh" needs [Activation, Elements, Reductions];
    Sampling = "sampling.cuh" needs [];
    LinearAny = "linear_any.cuh" needs [Weights, Epilogue, Reductions];
    Normalizer = "normalizer.cuh" needs [Elements, Reductions];
    LinearRows = "linear_rows.cuh" needs [Weights, Epilogue, Normalizer];
    LinearTensor = "linear_tensor.cuh" needs [Weights, Epilogue, Normalizer];
    LinearTiles = "linear_tiles.cuh" needs [Weights, Epilogue];
    LinearWarpgroups = "linear_warpgroups.cuh" needs [LinearTiles];
    AttentionSplit = "attention_split.cuh" needs [Elements, Reductions, Step];
    AttentionDecodeTensor = "attention_decode_tensor.cuh" needs [AttentionSplit];
    AttentionDecodeFma = "attention_decode_fma.cuh" needs [AttentionSplit];
    AttentionCombine = "attention_combine.cuh" needs [AttentionSplit];
    AttentionPrefill = "attention_prefill.cuh" needs [Elements, Step];
}

fn add(header: Header, texts: &mut String, done: &mut BTreeSet<Header>) {
    if done.insert(header) {
        for &needed in header.needs() {
            add(needed, texts, done);
        }
        texts.push_str("#line 1 \"");
        texts.push_str(header.file());
        texts.push_str("\"\n");
        texts.push_str(header.text());
        texts.push('\n');
    }
}

/// What kernels need of a device: `cu/intrinsics.cuh` and, of those that have them, its groups of four warps.
const DEVICE: &str = concat!(include_str!("../cu/intrinsics.cuh"), include_str!("../cu/warpgroups.cuh"));

/// The CUDA C++ text that defines `kernels`, each once, in the order of their names.
#[must_use]
pub fn translation_unit(kernels: &[Kernel]) -> String {
    translation_unit_on(DEVICE, kernels)
}

/// The same over other intrinsics than the device's: `prelude` defines what `cu/intrinsics.cuh`
/// and `cu/warpgroups.cuh` do.
#[must_use]
pub fn translation_unit_on(prelude: &str, kernels: &[Kernel]) -> String {
    let mut texts = format!("{prelude}\n");
    let mut done = BTreeSet::new();
    let mut lines = BTreeSet::new();
    for kernel in kernels {
        let specialization = kernel.specialization();
        add(specialization.header(), &mut texts, &mut done);
        lines.insert((specialization.name(), specialization.instantiation()));
    }
    texts.push_str("#line 1 \"instantiations\"\n");
    for (_, line) in lines {
        texts.push_str(&line);
        texts.push('\n');
    }
    texts
}
