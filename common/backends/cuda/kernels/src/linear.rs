//! Products with weights.

use roundhouse_graph::{DType, WeightFormat};
use serde::{Deserialize, Serialize};

use crate::element::{c_type, flag};
use crate::parameter::{Parameter, float, int, pointer};
use crate::source::Header;
use crate::{Launch, kernel::Specialization};

mod warpgroups;

/// Warps of a block.
const WARPS: u32 = 8;
/// Rows of the weight of a block of [`Method::Tiles`].
const TILE_OUTPUTS: u32 = 128;
/// Columns of a stage of [`Method::Tiles`].
const TILE_COLUMNS: u32 = 64;
/// Stages of [`Method::Tiles`] in shared memory.
const TILE_STAGES: u32 = 4;
/// Blocks of [`Method::Tiles`] of few rows that a multiprocessor should have.
const TILE_BLOCKS: u32 = 2;
/// The most blocks that share a tile, and the fewest stages that one of them has.
const MAX_TILE_SPLIT: u32 = 16;
const MIN_TILE_STEPS: u32 = 4;

/// How a weight is stored. All are row-major `[outputs, columns]`, as in [`roundhouse_graph::Op::Linear`] and
/// [`roundhouse_graph::Op::QuantizedLinear`]: nothing is packed anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Weight {
    /// In the activations' type.
    Float,
    /// Of few bits.
    Quantized {
        /// The format of its bytes.
        format: WeightFormat,
        /// Columns that share a scale.
        group_size: u32,
        /// Whether there are offsets.
        offsets: bool,
        /// Type of scales and offsets.
        scales: DType,
    },
}

impl Weight {
    /// Whether weights in groups of so many columns are multiplied with otherwise than an element at a time.
    #[must_use]
    pub const fn has_fast_groups(group_size: u32) -> bool {
        group_size > 0 && group_size.is_multiple_of(8)
    }
}

/// How the product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Method {
    /// An element at a time: for columns that the others do not take.
    Any,
    /// Fused multiply-adds, the weight read once for each `rows` rows of activations: decode steps; fp32. Columns are a
    /// multiple of 32 and groups of 8.
    Rows {
        /// 1, 2, 4 or 8.
        rows: u32,
        /// Warps that share outputs, each taking a part of the columns: 1, 2, 4 or 8.
        split: u32,
    },
    /// Tensor cores, the weight read once for each `rows` rows: batches of decode steps. fp16 and bf16; columns and groups
    /// as for `Rows`.
    Tensor {
        /// 8, 16, 32 or 64.
        rows: u32,
        /// As of `Rows`.
        split: u32,
    },
    /// Tensor cores, tiles of so many rows by 128 outputs in shared memory: large batches and prefill. fp16 and bf16;
    /// columns and groups as for `Rows`.
    Tiles {
        /// 32, 64 or 128.
        rows: u32,
    },
    /// The same with the tensor cores of groups of four warps, which compute capability 9.0 has: tiles of 128 rows.
    Warpgroups {
        /// 128 or 256.
        outputs: u32,
    },
}

/// The device that kernels are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nominal {
    /// Multiprocessors that share the work.
    pub multiprocessors: u32,
    /// Whether it has [`Method::Warpgroups`].
    pub warpgroups: bool,
}

impl Method {
    /// The method for `rows` rows of activations and a weight `[outputs, columns]` on a device of the usual kind.
    /// `outputs` counts weight rows: twice the outputs where gated. `normed` is whether there is a prologue.
    #[must_use]
    pub fn choose(
        dtype: DType,
        weight: Weight,
        rows: u32,
        outputs: u32,
        columns: u32,
        normed: bool,
        Nominal { multiprocessors, warpgroups }: Nominal,
    ) -> Self {
        let halves = matches!(dtype, DType::F16 | DType::Bf16);
        let whole_groups = match weight {
            Weight::Float => true,
            Weight::Quantized { group_size, .. } => Weight::has_fast_groups(group_size),
        };
        if columns < 256 || !columns.is_multiple_of(32) || !whole_groups {
            return Self::Any;
        }
        // Few bits take more work than multiply-adds leave time for.
        let rows = if halves && weight != Weight::Float { rows.max(2) } else { rows };
        match rows {
            0..=1 => Self::Rows { rows: 1, split: rows_split(outputs, columns, normed, multiprocessors) },
            2.. if !halves => Self::Rows {
                rows: rows.next_power_of_two().min(8),
                split: rows_split(outputs, columns, normed, multiprocessors),
            },
            2..=16 => {
                let rows = rows.next_power_of_two().max(8);
                // More rows are more work between a warp's loads, so fewer warps keep the memory busy.
                let blocks = multiprocessors * if rows > 8 { 2 } else { 4 };
                let split = (blocks * 16 * WARPS * 9 / 10).div_ceil(outputs.max(1)).next_power_of_two();
                Self::Tensor { rows, split: split.clamp(1, WARPS).min(prev_power_of_two(columns / 128)) }
            }
            17..=32 => Self::Tiles { rows: 32 },
            65.. if warpgroups && warpgroups::pays(rows, outputs, columns) => {
                Self::Warpgroups { outputs: warpgroups::outputs(rows, outputs, columns, multiprocessors) }
            }
            33..=1023 => Self::Tiles { rows: 64 },
            _ => Self::Tiles { rows: 128 },
        }
    }
}

const fn prev_power_of_two(number: u32) -> u32 {
    if number == 0 { 1 } else { 1 << number.ilog2() }
}

/// How many of a block's warps share outputs in [`Method::Rows`].
fn rows_split(outputs: u32, columns: u32, normed: bool, multiprocessors: u32) -> u32 {
    let most = prev_power_of_two(columns / 256).min(WARPS);
    if !normed {
        return most;
    }
    // Every block normalises the row for itself: as few blocks as keep all multiprocessors busy.
    let blocks = outputs.div_ceil(2 * WARPS);
    if blocks >= multiprocessors { 1 } else { most.min(2) }
}

/// What is done to the activations while they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Prologue {
    /// Nothing.
    None,
    /// RMSNorm. Only [`Method::Rows`], [`Method::Any`] and, of one row, [`Method::Tensor`].
    RmsNorm {
        /// Whether the factor is `1 + weight`.
        unit_offset: bool,
    },
    /// LayerNorm, its bias 0 where the address is. Only with the same methods.
    LayerNorm,
}

impl Prologue {
    const fn code(self) -> i32 {
        match self {
            Self::None => 0,
            Self::RmsNorm { unit_offset: false } => 1,
            Self::RmsNorm { unit_offset: true } => 2,
            Self::LayerNorm => 3,
        }
    }
}

/// A function of each output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Activation {
    /// None.
    None,
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`.
    Gelu,
    /// GELU by tanh.
    GeluTanh,
}

impl Activation {
    const fn code(self) -> i32 {
        match self {
            Self::None => 0,
            Self::Silu => 1,
            Self::Gelu => 2,
            Self::GeluTanh => 3,
        }
    }
}

/// What is done to the products before they are stored, in this order: `+ bias`, activation, `· output_scale`, soft cap,
/// `+ residual`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Epilogue {
    /// Whether there is a bias `[weight rows]`.
    pub bias: bool,
    /// The function.
    pub activation: Activation,
    /// Whether the weight has `2n` rows, `n` of a gate and then `n` more: `y = activation(gate) · up`.
    pub gated: bool,
    /// Whether `y = cap · tanh(y / cap)`.
    pub soft_cap: bool,
    /// Whether a residual `[rows, n]` is added. It may be `y`.
    pub residual: bool,
    /// Whether `y` is fp32 whatever the activations' type: logits.
    pub float_output: bool,
}

impl Epilogue {
    /// Nothing.
    pub const NONE: Self = Self {
        bias: false,
        activation: Activation::None,
        gated: false,
        soft_cap: false,
        residual: false,
        float_output: false,
    };
}

/// `y[r, j] = epilogue(Σ_k prologue(x)[r, k] · w[j, k])`.
///
/// `x` has rows `x_stride` elements apart, `y` `y_stride`, the residual `residual_stride`. `n` is the outputs of a row
/// (half the weight's rows where gated), and `flags` is [`Linear::flags`]. `counters`
/// and `scratch` are as [`Linear::scratch_bytes`] says. Arguments that a specialisation does not use are 0.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Linear {
    /// Type of the activations.
    pub dtype: DType,
    /// The weight.
    pub weight: Weight,
    /// Columns of the weight.
    pub columns: u32,
    /// How.
    pub method: Method,
    /// What is done to `x`.
    pub prologue: Prologue,
    /// What is done to the products.
    pub epilogue: Epilogue,
}

impl Linear {
    /// How many blocks share a tile of [`Method::Tiles`], so that all multiprocessors have work.
    fn tile_split(&self, tiles: u32, tile_rows: u32, multiprocessors: u32) -> u32 {
        let blocks = if tile_rows > 64 { 1 } else { TILE_BLOCKS };
        let steps = self.columns.div_ceil(TILE_COLUMNS);
        (blocks * multiprocessors / tiles.max(1)).min(steps / MIN_TILE_STEPS).clamp(1, MAX_TILE_SPLIT)
    }

    /// Bytes of `scratch` that the launch for so many rows and outputs needs, up to [`Linear::most_scratch_bytes`]. If
    /// any, it needs `counters` too: an `int` for each block of x and y, up to [`Linear::counters`], which are zeros
    /// before and after. Launches of one stream may share both.
    #[must_use]
    pub fn scratch_bytes(&self, rows: u32, n: u32, multiprocessors: u32) -> u64 {
        let (tile_rows, outputs) = match self.method {
            Method::Tiles { rows } => (rows, TILE_OUTPUTS),
            Method::Warpgroups { outputs } => (warpgroups::ROWS, outputs),
            _ => return 0,
        };
        let [x, y, z] = self.launch(rows, n, multiprocessors).grid;
        let sums = u64::from(x) * u64::from(y) * u64::from(z) * u64::from(tile_rows * outputs) * 4;
        if z == 1 { 0 } else { sums }
    }

    /// The most counters that a launch needs.
    #[must_use]
    pub const fn counters(multiprocessors: u32) -> u32 {
        TILE_BLOCKS * multiprocessors
    }

    /// The most scratch memory that a launch needs.
    #[must_use]
    pub fn most_scratch_bytes(multiprocessors: u32) -> u64 {
        // One block of 128 rows by 256 outputs, or two of half as much.
        u64::from(TILE_BLOCKS * multiprocessors) * 128 * 128 * 4
    }

    /// The launch for `rows` rows and `n` outputs of a row on a device with so many multiprocessors.
    #[must_use]
    pub fn launch(&self, rows: u32, n: u32, multiprocessors: u32) -> Launch {
        let weight_rows = if self.epilogue.gated { 2 * n } else { n };
        match self.method {
            Method::Any => Launch {
                grid: [n.div_ceil(WARPS), rows, 1],
                block: WARPS * 32,
                shared_bytes: (32 + self.columns) * 4,
            },
            Method::Rows { rows: tile, split } => Launch {
                grid: [weight_rows.div_ceil(2 * (WARPS / split)), rows.div_ceil(tile), 1],
                block: WARPS * 32,
                shared_bytes: self.staged_bytes(tile) + 4 * WARPS * (2 * tile).max(2),
            },
            Method::Tensor { rows: tile, split } => Launch {
                grid: [weight_rows.div_ceil(16 * (WARPS / split)), rows.div_ceil(tile), 1],
                block: WARPS * 32,
                shared_bytes: match (split, self.prologue) {
                    (1, Prologue::None) => 0,
                    (1, _) => self.staged_bytes(1) + 4 * WARPS * 2,
                    _ => self.staged_bytes(1) + 4 * WARPS * 16 * tile,
                },
            },
            Method::Warpgroups { outputs } => {
                let (x, y) = (rows.div_ceil(warpgroups::ROWS), weight_rows.div_ceil(outputs));
                let split = warpgroups::split(x * y, outputs, self.columns, multiprocessors);
                Launch {
                    grid: [x, y, split],
                    block: WARPS * 32,
                    shared_bytes: warpgroups::stages(outputs)
                        * (warpgroups::ROWS + outputs)
                        * TILE_COLUMNS
                        * 2,
                }
            }
            Method::Tiles { rows: tile_rows } => {
                let (x, y) = (rows.div_ceil(tile_rows), weight_rows.div_ceil(TILE_OUTPUTS));
                Launch {
                    grid: [x, y, self.tile_split(x * y, tile_rows, multiprocessors)],
                    block: WARPS * 32,
                    shared_bytes: TILE_STAGES * (tile_rows + TILE_OUTPUTS) * TILE_COLUMNS * 2,
                }
            }
        }
    }

    /// The argument `flags`: the prologue and the epilogue, which only [`Method::Any`] reads.
    #[must_use]
    pub fn flags(&self) -> i32 {
        let Epilogue { bias, activation, gated, soft_cap, residual, float_output } = self.epilogue;
        let bits = [bias, gated, soft_cap, residual, float_output];
        let mut flags = self.prologue.code() | activation.code() << 2;
        for (bit, set) in bits.into_iter().enumerate() {
            flags |= i32::from(set) << (4 + bit);
        }
        flags
    }

    /// Bytes of the normalised rows.
    fn staged_bytes(&self, rows: u32) -> u32 {
        let element = self.dtype.size() as u32;
        if self.prologue == Prologue::None { 0 } else { rows * self.columns * element }
    }
}

impl Specialization for Linear {
    fn name(&self) -> String {
        let weight = match self.weight {
            Weight::Float => String::new(),
            Weight::Quantized { format, group_size, offsets, scales } => {
                format!("_{}g{group_size}{}{scales}", format.name(), if offsets { "o" } else { "s" })
            }
        };
        let mut name = match self.method {
            // The prologue and the epilogue are flags there.
            Method::Any => return format!("linear_any_{}{weight}", self.dtype),
            Method::Rows { rows, split } => {
                format!("linear_rows{rows}x{split}_{}{weight}_k{}", self.dtype, self.columns)
            }
            Method::Tensor { rows, split } => {
                let columns = if self.prologue == Prologue::None {
                    String::new()
                } else {
                    format!("_k{}", self.columns)
                };
                format!("linear_tensor{rows}x{split}_{}{weight}{columns}", self.dtype)
            }
            Method::Warpgroups { outputs } => format!("linear_warpgroups{outputs}_{}{weight}", self.dtype),
            Method::Tiles { rows } => format!("linear_tiles{rows}_{}{weight}", self.dtype),
        };
        name.push_str(match self.prologue {
            Prologue::None => "",
            Prologue::RmsNorm { unit_offset: false } => "_rms",
            Prologue::RmsNorm { unit_offset: true } => "_rms1",
            Prologue::LayerNorm => "_layer",
        });
        let Epilogue { bias, gated, soft_cap, residual, float_output, .. } = self.epilogue;
        for (flag, part) in [(bias, "_bias"), (gated, "_gated")] {
            name.push_str(if flag { part } else { "" });
        }
        name.push_str(match self.epilogue.activation {
            Activation::None => "",
            Activation::Silu => "_silu",
            Activation::Gelu => "_gelu",
            Activation::GeluTanh => "_gelu_tanh",
        });
        for (flag, part) in [(soft_cap, "_cap"), (residual, "_residual"), (float_output, "_f32")] {
            name.push_str(if flag { part } else { "" });
        }
        name
    }

    fn header(&self) -> Header {
        match self.method {
            Method::Any => Header::LinearAny,
            Method::Rows { .. } => Header::LinearRows,
            Method::Tensor { .. } => Header::LinearTensor,
            Method::Tiles { .. } => Header::LinearTiles,
            Method::Warpgroups { .. } => Header::LinearWarpgroups,
        }
    }

    fn instantiation(&self) -> String {
        let activation = c_type(self.dtype);
        let weight = match self.weight {
            Weight::Float => format!("FloatWeight<{activation}>"),
            Weight::Quantized { format, group_size, offsets, scales } => format!(
                "{}Weight<{group_size}, {}, {}>",
                match format {
                    WeightFormat::Int8 => "Int8",
                    WeightFormat::Int4 => "Int4",
                    WeightFormat::Fp8 => "Fp8",
                },
                flag(offsets),
                c_type(scales)
            ),
        };
        let (prologue, function) = (self.prologue.code(), self.epilogue.activation.code());
        let epilogue = self.epilogue;
        let (macro_name, shape) = match self.method {
            Method::Any => {
                return format!("INSTANTIATE_LINEAR_ANY({}, {activation}, ({weight}))", self.name());
            }
            Method::Rows { rows, split } => {
                ("INSTANTIATE_LINEAR_ROWS", format!("{}, {rows}, {split}, {prologue}", self.columns))
            }
            Method::Tensor { rows, split } => {
                // Without a prologue any number of columns.
                let columns = if self.prologue == Prologue::None { 0 } else { self.columns };
                ("INSTANTIATE_LINEAR_TENSOR", format!("{rows}, {split}, {prologue}, {columns}"))
            }
            Method::Warpgroups { outputs } => {
                ("INSTANTIATE_LINEAR_WARPGROUPS", format!("{outputs}, {}", warpgroups::stages(outputs)))
            }
            Method::Tiles { rows } => {
                ("INSTANTIATE_LINEAR_TILES", format!("{rows}, {TILE_OUTPUTS}, {TILE_STAGES}"))
            }
        };
        let output = if epilogue.float_output { "float" } else { activation };
        format!(
            "{macro_name}({}, {activation}, ({weight}), {shape}, \
             (Epilogue<{output}, {}, {function}, {}, {}, {}>))",
            self.name(),
            flag(epilogue.bias),
            flag(epilogue.gated),
            flag(epilogue.soft_cap),
            flag(epilogue.residual)
        )
    }

    fn parameters(&self) -> &'static [Parameter] {
        const {
            &[
                pointer("x"),
                int("x_stride"),
                pointer("norm_weight"),
                pointer("norm_bias"),
                float("epsilon"),
                pointer("weight"),
                pointer("scales"),
                pointer("offsets"),
                pointer("bias"),
                pointer("residual"),
                int("residual_stride"),
                pointer("y"),
                int("y_stride"),
                int("n"),
                int("columns"),
                int("rows"),
                float("output_scale"),
                float("soft_cap"),
                int("flags"),
                pointer("counters"),
                pointer("scratch"),
            ]
        }
    }
}
