//! Runs plans.

mod attention;
mod component;
mod elementwise;
mod experts;
mod layout;
mod linear;
mod memory;
mod norm;
mod rotary;
mod strided;

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use roundhouse_backend::BackendError;
use roundhouse_cpu_kernels::{Elements, Matrix, Reduction, ThreadPool};
use roundhouse_engine::CacheKind;
use roundhouse_graph::{DType, Graph};
use roundhouse_weights::{MappedWeights, Tensor};

use crate::cache::CpuCache;
use crate::error::unsupported;
use crate::plan::{Plan, Role, Root, Step, WeightId};

pub(crate) use memory::Workspace;

/// A plan with its weights.
pub(crate) struct Executor {
    plan: Plan,
    weights: MappedWeights,
    /// By [`WeightId`].
    tensors: Vec<Tensor>,
    /// Weights that are read as fp32.
    constants: Vec<Vec<f32>>,
    pool: Arc<ThreadPool>,
    /// Of matrix products.
    reduction: Reduction,
    input_vocab_size: usize,
}

/// One sequence's part of a step.
pub(crate) struct Active<'a> {
    pub(crate) cache: &'a mut CpuCache,
    /// Tokens before the new ones, those of earlier pieces of the same call included.
    pub(crate) past: usize,
    /// New tokens.
    pub(crate) tokens: &'a [u32],
    /// How many of the last new tokens' logits are wanted.
    pub(crate) rows: usize,
}

impl Executor {
    /// Binds a plan to the weights that `graph` names.
    pub(crate) fn new(
        plan: Plan,
        graph: &Graph,
        weights: MappedWeights,
        pool: Arc<ThreadPool>,
        reduction: Reduction,
    ) -> Result<Self, BackendError> {
        let tensor = |id| {
            let name = &graph.value(id).name;
            weights.tensor(name).cloned().ok_or_else(|| unsupported(format!("weight {name:?} without data")))
        };
        let tensors = plan.weights.iter().map(|&id| tensor(id)).collect::<Result<Vec<_>, _>>()?;
        let mut constants = Vec::new();
        for &id in &plan.constants {
            let elements = weight_elements(&weights, &tensor(id)?);
            let mut values = vec![0.0; elements.len()];
            layout::load(elements, &mut values);
            constants.push(values);
        }
        let ids = plan.integer_inputs.iter().position(|role| *role == Role::InputIds);
        let tables = plan.steps.iter().filter_map(|planned| match &planned.step {
            Step::Embedding { ids: view, table, .. } if Some(view.root) == ids.map(Root::Integers) => {
                tensors[table.0].shape.first().copied()
            }
            _ => None,
        });
        let input_vocab_size = tables.min().unwrap_or(plan.signature.vocab_size);
        Ok(Self { plan, weights, tensors, constants, pool, reduction, input_vocab_size })
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes of the weights that are kept as fp32.
    pub(crate) fn constant_bytes(&self) -> usize {
        self.constants.iter().map(|values| size_of_val(&values[..])).sum()
    }

    /// How many tokens there are: the rows of the embedding table.
    pub(crate) fn input_vocab_size(&self) -> usize {
        self.input_vocab_size
    }

    /// Runs one step: all sequences packed where the plan is, else the only one. New keys and values are in the caches
    /// afterwards, whose lengths are as before, and logits in the workspace.
    pub(crate) fn run(
        &self,
        batch: &mut [Active<'_>],
        workspace: &mut Workspace,
    ) -> Result<(), BackendError> {
        self.select(batch, workspace);
        let past = batch.first().map_or(0, |active| active.past);
        let tokens = match self.plan.signature.mode {
            CacheKind::None => past + batch.first().map_or(0, |active| active.tokens.len()),
            _ => batch.iter().map(|active| active.tokens.len()).sum(),
        };
        workspace.bind(&self.plan, tokens, past)?;
        self.fill_inputs(batch, workspace);
        for planned in &self.plan.steps {
            if planned.on_selected_rows && workspace.selected.is_empty() {
                continue;
            }
            self.step(&planned.step, batch, workspace)?;
        }
        Ok(())
    }

    /// Logits of the sequence `index` of the last step, `[rows, vocab_size]`.
    pub(crate) fn logits<'a>(&self, workspace: &'a Workspace, index: usize) -> &'a [f32] {
        let rows = workspace.logits_rows.get(index).cloned().unwrap_or_default();
        let width = self.plan.signature.vocab_size;
        let Root::Buffer(id) = self.plan.output.root else { return &[] };
        let offset = workspace.sizes().get(self.plan.output.offset);
        workspace
            .buffer(&self.plan, id)
            .get(offset + rows.start * width..offset + rows.end * width)
            .unwrap_or(&[])
    }

    /// Which rows' logits are wanted, and where each sequence's will be.
    fn select(&self, batch: &[Active<'_>], workspace: &mut Workspace) {
        workspace.selected.clear();
        workspace.logits_rows.clear();
        let mut end = 0;
        for active in batch {
            end += active.tokens.len();
            if self.plan.signature.mode == CacheKind::None {
                end += active.past;
            }
            let wanted: Range<usize> = end - active.rows..end;
            let first = workspace.selected.len();
            workspace.selected.extend(wanted.clone());
            let rows = if self.plan.selects_rows { first..first + active.rows } else { wanted };
            workspace.logits_rows.push(rows);
        }
    }

    fn fill_inputs(&self, batch: &[Active<'_>], workspace: &mut Workspace) {
        for (index, role) in self.plan.integer_inputs.iter().enumerate() {
            let integers = &mut workspace.integers[index];
            integers.clear();
            for active in batch {
                let (past, new) = (active.past, active.tokens.len());
                match role {
                    Role::InputIds => {
                        integers.extend(active.cache.tokens().iter().map(|&token| i64::from(token)));
                        integers.extend(active.tokens.iter().map(|&token| i64::from(token)));
                    }
                    Role::PositionIds => break,
                    Role::Start | Role::WriteIndices => integers.push(past as i64),
                    Role::End | Role::KvLengths => integers.push((past + new) as i64),
                    Role::QueryLengths => integers.push(new as i64),
                    Role::CacheTensor(_) | Role::ImageFeatures | Role::ImageIndices | Role::Tensor(_) => {}
                }
            }
            if *role == Role::PositionIds {
                self.fill_positions(batch, integers);
            }
        }
    }

    /// The positions of the tokens that a step runs over, one axis after the other.
    fn fill_positions(&self, batch: &[Active<'_>], integers: &mut Vec<i64>) {
        for axis in 0..self.plan.signature.position_axes {
            for active in batch {
                let (tokens, images) = (self.run_tokens(active), active.cache.images());
                match images.is_empty() {
                    true => integers.extend(tokens.map(|position| position as i64)),
                    false => integers.extend(images.positions(tokens).map(|position| position[axis])),
                }
            }
        }
    }

    /// The tokens of a sequence that a step runs over: without a cache all of them, else the new ones.
    fn run_tokens(&self, active: &Active<'_>) -> Range<usize> {
        let first = if self.plan.signature.mode == CacheKind::None { 0 } else { active.past };
        first..active.past + active.tokens.len()
    }

    fn step(
        &self,
        step: &Step,
        batch: &mut [Active<'_>],
        workspace: &mut Workspace,
    ) -> Result<(), BackendError> {
        match step {
            // A component's own executor has loaded it.
            Step::Load { .. } => {}
            Step::ImageRows { to } => self.image_rows(to, batch, workspace),
            Step::ReplaceRows { rows, indices, to } => {
                return self.replace_rows(rows, indices, to, workspace);
            }
            Step::Copy { from, to } => self.copy(from, to, batch, workspace),
            Step::CopyIntegers { from, to } => self.copy_integers(from, to, workspace),
            Step::IntegersToFloat { from, to, truth } => self.integers_to_float(from, to, *truth, workspace),
            Step::FloatToIntegers { from, to } => self.float_to_integers(from, to, workspace),
            Step::Embedding { ids, table, to } => return self.embedding(ids, *table, *to, workspace),
            Step::Gather { x, ids, axis, to } => return self.gather(x, ids, *axis, to, workspace),
            Step::Linear { x, parts } => self.linear(x, parts, workspace),
            Step::LinearSiluMul { x, gate, up, to } => self.linear_silu_mul(x, *gate, *up, *to, workspace),
            Step::Experts(experts) => self.experts(experts, workspace),
            Step::MatMul { a, b, to } => self.matmul(a, b, to, workspace),
            Step::Binary { op, a, b, to } => self.binary(*op, a.as_ref(), b, to, workspace),
            Step::Map { function, from, to } => self.map(*function, from.as_ref(), to, workspace),
            Step::Norm { norm, from, to } => self.norm(norm, from, to, workspace),
            Step::Softmax { to } => self.softmax(to, workspace),
            Step::RotaryTable { table, positions } => self.rotary_table(*table, positions, workspace),
            Step::Rotary { table, to } => self.rotary(*table, to, workspace),
            Step::StoreKv { tensor, from } => self.store_kv(*tensor, from, batch, workspace),
            Step::StoreCache { tensor, from } => self.store_cache(*tensor, from, batch, workspace),
            Step::CachedAttention { q, key, value, attention, to } => {
                self.cached_attention(q, [*key, *value], attention, to, batch, workspace);
            }
            Step::Attention(dense) => return self.attention(dense, workspace),
            Step::SelectRows { from, to } => self.select_rows(from, to, workspace),
        }
        Ok(())
    }

    /// A weight as a matrix `[rows, columns]`.
    fn matrix(&self, id: WeightId) -> Matrix<'_> {
        let tensor = &self.tensors[id.0];
        let (rows, columns) = match tensor.shape[..] {
            [rows, columns] => (rows, columns),
            _ => (1, tensor.shape.iter().product()),
        };
        Matrix { elements: weight_elements(&self.weights, tensor), rows, columns }
    }

    /// The elements of what a view is a view of, as fp32 or in the cache's dtype.
    fn elements<'a>(&'a self, root: Root, batch: &'a [Active<'_>], workspace: &'a Workspace) -> Elements<'a> {
        match root {
            Root::CacheTensor(tensor) => {
                let tensor = batch.first().and_then(|active| active.cache.tensors().get(tensor));
                tensor.map_or(Elements::F32(&[]), |tensor| tensor.elements())
            }
            root => Elements::F32(self.floats(root, workspace)),
        }
    }

    /// The elements of fp32 values.
    fn floats<'a>(&'a self, root: Root, workspace: &'a Workspace) -> &'a [f32] {
        match root {
            Root::Buffer(id) => workspace.buffer(&self.plan, id),
            Root::Constant(index) => &self.constants[index],
            Root::CacheTensor(_) | Root::Integers(_) => &[],
        }
    }
}

/// The elements of a weight, row-major.
fn weight_elements<'a>(weights: &'a MappedWeights, tensor: &Tensor) -> Elements<'a> {
    // Mapped weights are aligned, so the casts, which check again, do not fail.
    let bytes = weights.bytes(tensor);
    match tensor.dtype {
        DType::F16 => Elements::F16(bytemuck::try_cast_slice::<u8, f16>(bytes).unwrap_or_default()),
        DType::Bf16 => Elements::Bf16(bytemuck::try_cast_slice::<u8, bf16>(bytes).unwrap_or_default()),
        DType::F32 | DType::I64 | DType::Bool | DType::U8 => {
            Elements::F32(bytemuck::try_cast_slice(bytes).unwrap_or_default())
        }
    }
}
