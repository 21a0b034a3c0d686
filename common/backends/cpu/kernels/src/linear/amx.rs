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
use std::marker::PhantomData;
use std::sync::OnceLock;

use crate::isa::Isa;
use crate::simd::{Avx512, Simd};
use crate::weight::WeightRows;
use crate::{Elements, QuantizedFormat};

use super::decode::{E4m3, Int4, Int8};
use super::gemm::{Engine, Output};
use pack::{Bf16Panel, F16Panel, Panel, QuantizedPanel, pack_tile};

/// Columns of a tile of the left matrix.
const STEP: usize = 32;

/// Rows of a tile of either.
const ROWS: usize = 16;

/// How many steps of a panel are in memory where none is needed twice.
const RING: usize = 4;

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

    fn panel_len(self, k: usize, tiles: usize) -> usize {
        // Two tiles of rows in two terms, and two results of four tiles.
        (packed_steps(k, tiles) * 4 + 8) * TILE
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
        let tiles_of_output = to.rows.div_ceil(ROWS);
        assert!(to.columns <= 2 * ROWS && fits && panel.len() >= self.panel_len(k, tiles_of_output));
        assert!(tiles.len() >= tiles_of_output * self.packed_tile_len(k));
        let (result, panel) = panel.split_at_mut(8 * TILE);
        let rows = to.columns;
        // SAFETY: the slices are as long as was checked, `self` is proof of the features, and the caller promises the
        // output's elements and that the tiles are set up.
        unsafe {
            match weight {
                WeightRows::Plain(Elements::F16(weight)) => {
                    multiply(&F16Panel { weight, rows, k }, k, tiles, to, result, panel);
                }
                WeightRows::Plain(Elements::Bf16(weight)) => {
                    multiply(&Bf16Panel { weight, rows, k }, k, tiles, to, result, panel);
                }
                // The other way of multiplying is chosen for these.
                WeightRows::Plain(Elements::F32(_)) => {}
                WeightRows::Quantized(rows) => match rows.format {
                    QuantizedFormat::Int8 => {
                        let weight = QuantizedPanel::<Int8> { rows, format: PhantomData };
                        multiply(&weight, k, tiles, to, result, panel);
                    }
                    QuantizedFormat::Int4 => {
                        let weight = QuantizedPanel::<Int4> { rows, format: PhantomData };
                        multiply(&weight, k, tiles, to, result, panel);
                    }
                    QuantizedFormat::E4m3 => {
                        let weight = QuantizedPanel::<E4m3> { rows, format: PhantomData };
                        multiply(&weight, k, tiles, to, result, panel);
                    }
                },
            }
        }
    }
}

/// How many steps of a panel with `k` columns are in memory, to be multiplied with so many tiles of activations.
const fn packed_steps(k: usize, tiles: usize) -> usize {
    if tiles <= 2 { RING } else { k.div_ceil(STEP) }
}

/// Multiplies a panel with packed tiles of activations, two at a time. With the first two a step of the panel is packed while
/// the unit works on the one before it, so that the weights come from memory all the time.
///
/// # Safety
/// The panel has `k` columns and the tiles are packed for them, `packed` has room for [`packed_steps`], `result` for eight
/// tiles, nothing else uses the elements of the output meanwhile, and the tile registers are set up.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn multiply<P: Panel>(
    panel: &P,
    k: usize,
    tiles: &[f32],
    to: &Output<'_>,
    result: &mut [f32],
    packed: &mut [f32],
) {
    let steps = k.div_ceil(STEP);
    let (tile_len, step_len) = (steps * 2 * TILE, P::TERMS * 2 * TILE);
    let ring = packed_steps(k, to.rows.div_ceil(ROWS));
    let packed = packed.as_mut_ptr();
    let at = |step: usize| packed.wrapping_add(step % ring * step_len);
    // The result of one pair of tiles is stored while the unit still works on the next one.
    let (mut result, mut pending) = result.split_at_mut(4 * TILE);
    let mut pending_row = None;
    for row in (0..to.rows).step_by(2 * ROWS) {
        let x = tiles[row / ROWS * tile_len..].as_ptr();
        let pair = row + ROWS < to.rows;
        // SAFETY: the panel, the tiles and the packed steps are as the caller promises, and the result is four tiles.
        unsafe {
            clear();
            if row == 0 && steps > 0 {
                panel.pack(0, at(0));
            }
            for step in 0..steps {
                if row == 0 && step + 1 < steps {
                    panel.pack(step + 1, at(step + 1));
                }
                let b = x.add(step * 2 * TILE);
                match (P::TERMS, pair) {
                    (2, true) => multiply_step::<2, 2>(at(step), [b, b.add(tile_len)]),
                    (2, false) => multiply_step::<2, 1>(at(step), [b, b]),
                    (_, true) => multiply_step::<1, 2>(at(step), [b, b.add(tile_len)]),
                    (_, false) => multiply_step::<1, 1>(at(step), [b, b]),
                }
            }
            finish(result.as_mut_ptr());
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

/// Sets the four tiles of the result to zero. They are the registers `tmm0` to `tmm3`, which no code but this module's uses.
///
/// # Safety
/// The tile registers are set up.
#[inline(always)]
unsafe fn clear() {
    // SAFETY: the caller has set up the registers.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// Writes the four tiles of the result: those of the first rows of the panel, then those of the second.
///
/// # Safety
/// The result has room for them, and the tile registers are set up.
#[inline(always)]
unsafe fn finish(result: *mut f32) {
    // SAFETY: the caller promises the memory.
    unsafe {
        asm!(
            "tilestored [{result} + {row}], tmm0",
            "tilestored [{result} + {row} + 1024], tmm1",
            "tilestored [{result} + {row} + 2048], tmm2",
            "tilestored [{result} + {row} + 3072], tmm3",
            result = in(reg) result,
            row = in(reg) 64usize,
            options(nostack, preserves_flags),
        );
    }
}

/// Adds the product of a packed step of a panel, in `TERMS` terms, and that of one or two tiles of activations to the result.
/// The high terms of the weights are multiplied with the low and the high ones of the activations, the low ones with the high
/// ones. Meanwhile it asks for the next activations, which come from the second-level cache.
///
/// # Safety
/// The panel and the tiles have the step, and the tile registers are set up.
#[inline(always)]
unsafe fn multiply_step<const TERMS: usize, const TILES: usize>(a: *const f32, b: [*const f32; 2]) {
    // SAFETY: only tiles that the caller promises are read, and prefetches need nothing readable.
    unsafe {
        asm!(
            "tileloadd tmm4, [{a0} + {row}]",
            "tileloadd tmm6, [{b0} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            ".irp offset, 2048, 2112, 2176, 2240, 2304, 2368, 2432, 2496",
            "prefetcht0 [{b0} + \\offset]",
            ".endr",
            ".if {tiles} == 2",
            ".irp offset, 2048, 2112, 2176, 2240, 2304, 2368, 2432, 2496",
            "prefetcht0 [{b1} + \\offset]",
            ".endr",
            "tileloadd tmm7, [{b1} + {row} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            ".endif",
            "tileloadd tmm5, [{a1} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            ".irp offset, 2560, 2624, 2688, 2752, 2816, 2880, 2944, 3008",
            "prefetcht0 [{b0} + \\offset]",
            ".endr",
            ".if {tiles} == 2",
            "tdpbf16ps tmm3, tmm5, tmm7",
            ".irp offset, 2560, 2624, 2688, 2752, 2816, 2880, 2944, 3008",
            "prefetcht0 [{b1} + \\offset]",
            ".endr",
            ".endif",
            "tileloadd tmm6, [{b0} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            ".irp offset, 3072, 3136, 3200, 3264, 3328, 3392, 3456, 3520",
            "prefetcht0 [{b0} + \\offset]",
            ".endr",
            ".if {tiles} == 2",
            "tileloadd tmm7, [{b1} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            ".irp offset, 3072, 3136, 3200, 3264, 3328, 3392, 3456, 3520",
            "prefetcht0 [{b1} + \\offset]",
            ".endr",
            ".endif",
            "tdpbf16ps tmm2, tmm5, tmm6",
            ".irp offset, 3584, 3648, 3712, 3776, 3840, 3904, 3968, 4032",
            "prefetcht0 [{b0} + \\offset]",
            ".endr",
            ".if {tiles} == 2",
            "tdpbf16ps tmm3, tmm5, tmm7",
            ".irp offset, 3584, 3648, 3712, 3776, 3840, 3904, 3968, 4032",
            "prefetcht0 [{b1} + \\offset]",
            ".endr",
            ".endif",
            ".if {terms} == 2",
            "tileloadd tmm4, [{a0} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            ".if {tiles} == 2",
            "tdpbf16ps tmm1, tmm4, tmm7",
            ".endif",
            "tileloadd tmm5, [{a1} + {row} + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            ".if {tiles} == 2",
            "tdpbf16ps tmm3, tmm5, tmm7",
            ".endif",
            ".endif",
            a0 = in(reg) a,
            a1 = in(reg) a.wrapping_add(TERMS * TILE),
            b0 = in(reg) b[0],
            b1 = in(reg) b[1],
            row = in(reg) 64usize,
            terms = const TERMS,
            tiles = const TILES,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly, preserves_flags),
        );
    }
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
