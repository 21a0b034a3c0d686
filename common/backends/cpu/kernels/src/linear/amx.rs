//! The blocked product on the matrix unit (AMX), which multiplies bfloat16 and adds in fp32.
//!
//! Activations go in as two terms, `x = high + low`, each rounded to bfloat16, which keeps 16 bits of the significand;
//! an fp16 weight is exactly the sum of two such terms, a bfloat16 weight one. A quantised weight is decoded and goes in as two
//! terms too; with four bits or E4M3 and a scale of 16 bits they are exact. All products of terms are summed but that of the two
//! low ones, so that the result is that of fp32 activations within about 2⁻¹⁶ of each product, or 2⁻¹⁵ where the weight has more
//! than 16 bits. Terms below the normal numbers, 10⁻³⁸, count as zero.
//!
//! The weights are the left matrix, in their own order, so that packing a panel is only a conversion; the activations are
//! the right one, in pairs of columns; the tiles of the result are transposed when they are stored.

mod pack;

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use crate::isa::Isa;
use crate::simd::{Avx512, Simd};
use crate::weight::WeightRows;
use crate::{Elements, QuantizedFormat};

use super::decode::{E4m3, Int4, Int8};
use super::gemm::{Engine, Output};
use pack::{pack_bf16, pack_f16, pack_quantized, pack_tile};

/// Columns of a tile of the left matrix.
const STEP: usize = 32;

/// Rows of a tile of either.
const ROWS: usize = 16;

/// Length of a tile, in `f32`s: 16 rows of 64 bytes.
const TILE: usize = 256;

/// Whether this machine has the unit and the system lets this process use it.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
        Avx512::is_available()
            && is_x86_feature_detected!("avx512bf16")
            && __cpuid(0).eax >= 7
            && __cpuid_count(7, 0).edx & BF16_AND_TILES == BF16_AND_TILES
            && request_tiles()
    })
}

/// Asks Linux to let the threads of this process use the tile registers.
fn request_tiles() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: the call takes two numbers and touches no memory of this process; the kernel clobbers rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Products on the matrix unit: proof that the machine has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Amx(());

impl Amx {
    /// # Panics
    /// If the instruction set is another.
    pub(super) fn new(isa: Isa) -> Self {
        assert!(isa.has_amx());
        Self(())
    }
}

/// The tile registers of this thread, set up; released when dropped, so that no thread switch has to save them.
struct Tiles;

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: made only where the unit is available; nothing uses the tiles between two products.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
    }
}

/// The layout that `ldtilecfg` reads.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Engine for Amx {
    fn panel_rows(self) -> usize {
        2 * ROWS
    }

    fn tile_rows(self) -> usize {
        ROWS
    }

    fn packed_tile_len(self, k: usize) -> usize {
        k.div_ceil(STEP) * 2 * TILE
    }

    fn panel_len(self, k: usize, _: usize) -> usize {
        // Two tiles of rows in two terms, and two results of four tiles.
        (k.div_ceil(STEP) * 4 + 8) * TILE
    }

    fn enter(self) -> impl Sized {
        let mut config =
            TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill(64);
        config.rows[..8].fill(16);
        // SAFETY: `self` is proof of the unit; the configuration is a valid one.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly, preserves_flags))
        }
        Tiles
    }

    fn pack_tile(self, x: &[f32], stride: usize, rows: usize, k: usize, packed: &mut [f32]) {
        assert!(rows <= ROWS && (rows == 0 || x.len() >= (rows - 1) * stride + k));
        assert!(packed.len() >= self.packed_tile_len(k));
        // SAFETY: the slices are as long as was checked, and `self` is proof of the features.
        unsafe { pack_tile(x.as_ptr(), stride, rows, k, packed.as_mut_ptr()) }
    }

    unsafe fn multiply(
        self,
        weight: &WeightRows<'_>,
        k: usize,
        tiles: &[f32],
        to: &Output<'_>,
        panel: &mut [f32],
    ) {
        let fits = match weight {
            WeightRows::Plain(weight) => weight.len() == to.columns * k,
            WeightRows::Quantized(rows) => {
                rows.check();
                rows.rows == to.columns && rows.columns == k
            }
        };
        assert!(to.columns <= 2 * ROWS && fits && panel.len() >= self.panel_len(k, 0));
        assert!(tiles.len() >= to.rows.div_ceil(ROWS) * self.packed_tile_len(k));
        let (result, panel) = panel.split_at_mut(8 * TILE);
        // SAFETY: the slices are as long as was checked, `self` is proof of the features, and the caller promises the
        // output's elements and that the tiles are set up.
        unsafe {
            let terms = match weight {
                WeightRows::Plain(Elements::F16(weight)) => {
                    pack_f16(weight, to.columns, k, panel.as_mut_ptr());
                    2
                }
                WeightRows::Plain(Elements::Bf16(weight)) => {
                    pack_bf16(weight, to.columns, k, panel.as_mut_ptr());
                    1
                }
                // The other way of multiplying is chosen for these.
                WeightRows::Plain(Elements::F32(_)) => return,
                WeightRows::Quantized(rows) => {
                    let panel = panel.as_mut_ptr();
                    match rows.format {
                        QuantizedFormat::Int8 => pack_quantized::<Int8>(rows, panel),
                        QuantizedFormat::Int4 => pack_quantized::<Int4>(rows, panel),
                        QuantizedFormat::E4m3 => pack_quantized::<E4m3>(rows, panel),
                    }
                    2
                }
            };
            multiply(panel, terms, k.div_ceil(STEP), tiles, to, result);
        }
    }
}

/// Multiplies a packed panel with packed tiles of activations, two at a time.
///
/// # Safety
/// The panel and the tiles are packed for `steps`, nothing else uses the elements of the output meanwhile, and the tile
/// registers are set up.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn multiply(
    panel: &[f32],
    terms: usize,
    steps: usize,
    tiles: &[f32],
    to: &Output<'_>,
    result: &mut [f32],
) {
    let tile_len = steps * 2 * TILE;
    let lower = steps * terms * TILE;
    // The result of one pair of tiles is stored while the unit still works on the next one.
    let (mut result, mut pending) = result.split_at_mut(4 * TILE);
    let mut pending_row = None;
    for row in (0..to.rows).step_by(2 * ROWS) {
        let x = tiles[row / ROWS * tile_len..].as_ptr();
        // A second tile that is not there is the first one again; its result is not stored.
        let second = if row + ROWS < to.rows { tile_len } else { 0 };
        // SAFETY: the panel and the tiles have `steps` steps, and the result is four tiles.
        unsafe {
            let a = [panel.as_ptr(), panel.as_ptr().add(lower)];
            let b = [x, x.add(second)];
            if terms == 2 {
                multiply_two_terms(a, b, steps, result.as_mut_ptr());
            } else {
                multiply_one_term(a, b, steps, result.as_mut_ptr());
            }
            if let Some(row) = pending_row {
                store(pending, row, to);
            }
        }
        pending_row = Some(row);
        std::mem::swap(&mut result, &mut pending);
    }
    if let Some(row) = pending_row {
        // SAFETY: the pending result is four tiles.
        unsafe { store(pending, row, to) }
    }
}

/// Defines a function that makes the four tiles of the product of two tiles of rows of weights and two tiles of activations:
/// those of the first rows, then those of the second. Each step multiplies the high terms of the weights with the low and the
/// high ones of the activations, and then does what `$low_weights` says; meanwhile it asks for the next activations, which
/// come from the second-level cache.
macro_rules! multiply_tiles {
    ($(#[$doc:meta])* $name:ident, $weight_bytes:literal, [$($low_weights:literal,)*]) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The weights and activations have `steps` steps, the result is four tiles, and the tile registers are set up.
        unsafe fn $name(a: [*const f32; 2], b: [*const f32; 2], steps: usize, result: *mut f32) {
            // SAFETY: only tiles that the caller promises are read or written, prefetches need nothing readable, and the
            // tile registers are declared.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "test {steps}, {steps}",
                    "jz 3f",
                    "2:",
                    "tileloadd tmm4, [{a0} + {row}]",
                    "tileloadd tmm6, [{b0} + {row} + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    ".irp offset, 2048, 2112, 2176, 2240, 2304, 2368, 2432, 2496",
                    "prefetcht0 [{b0} + \\offset]",
                    "prefetcht0 [{b1} + \\offset]",
                    ".endr",
                    "tileloadd tmm7, [{b1} + {row} + 1024]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{a1} + {row}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    ".irp offset, 2560, 2624, 2688, 2752, 2816, 2880, 2944, 3008",
                    "prefetcht0 [{b0} + \\offset]",
                    "prefetcht0 [{b1} + \\offset]",
                    ".endr",
                    "tileloadd tmm6, [{b0} + {row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b1} + {row}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    ".irp offset, 3072, 3136, 3200, 3264, 3328, 3392, 3456, 3520",
                    "prefetcht0 [{b0} + \\offset]",
                    "prefetcht0 [{b1} + \\offset]",
                    ".endr",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    ".irp offset, 3584, 3648, 3712, 3776, 3840, 3904, 3968, 4032",
                    "prefetcht0 [{b0} + \\offset]",
                    "prefetcht0 [{b1} + \\offset]",
                    ".endr",
                    $($low_weights,)*
                    concat!("add {a0}, ", $weight_bytes),
                    concat!("add {a1}, ", $weight_bytes),
                    "add {b0}, 2048",
                    "add {b1}, 2048",
                    "dec {steps}",
                    "jnz 2b",
                    "3:",
                    "tilestored [{result} + {row}], tmm0",
                    "tilestored [{result} + {row} + 1024], tmm1",
                    "tilestored [{result} + {row} + 2048], tmm2",
                    "tilestored [{result} + {row} + 3072], tmm3",
                    a0 = inout(reg) a[0] => _,
                    a1 = inout(reg) a[1] => _,
                    b0 = inout(reg) b[0] => _,
                    b1 = inout(reg) b[1] => _,
                    steps = inout(reg) steps => _,
                    row = in(reg) 64usize,
                    result = in(reg) result,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

multiply_tiles! {
    /// Weights in one term.
    multiply_one_term, "1024", []
}

multiply_tiles! {
    /// Weights in two terms, of which the low one is multiplied with the high one of the activations.
    multiply_two_terms, "2048", [
        "tileloadd tmm4, [{a0} + {row} + 1024]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm5, [{a1} + {row} + 1024]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
    ]
}

/// Stores the four tiles of a result, transposed, from row `row` of the output on.
///
/// # Safety
/// Nothing else uses the elements of the output meanwhile, and the machine has AVX-512 F.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn store(result: &[f32], row: usize, to: &Output<'_>) {
    // SAFETY: the caller vouches for the feature.
    let s = unsafe { Avx512::assume_available() };
    for (index, tile) in result.chunks_exact(TILE).enumerate().take(4) {
        let (column, row) = (index / 2 * ROWS, row + index % 2 * ROWS);
        if column >= to.columns || row >= to.rows {
            continue;
        }
        let n = (to.columns - column).min(ROWS);
        // SAFETY: a tile is 16 rows of 16; n elements of the bias and of each row of the output follow the column.
        unsafe {
            let mut from = [_mm512_setzero_ps(); ROWS];
            for (i, vector) in from.iter_mut().enumerate() {
                *vector = _mm512_loadu_ps(tile.as_ptr().add(i * 16));
            }
            let rows = crate::simd::transpose_16(from);
            let bias = to.bias.map(|bias| s.load_partial(bias[column..column + n].as_ptr(), n));
            for (i, mut sum) in rows.into_iter().enumerate().take(to.rows - row) {
                let start = to.start + (row + i) * to.stride + column;
                let out = to.out.slice(start..start + n).as_mut_ptr();
                if let Some(bias) = bias {
                    sum = _mm512_add_ps(sum, bias);
                }
                if to.accumulate {
                    sum = _mm512_add_ps(sum, s.load_partial(out, n));
                }
                s.store_partial(out, n, sum);
            }
        }
    }
}
