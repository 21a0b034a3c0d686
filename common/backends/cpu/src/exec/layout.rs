//! Steps that move elements.

use roundhouse_backend::BackendError;
use roundhouse_cpu_kernels::{self as kernels, Elements, Isa};

use super::strided::{Run, for_each_run};
use super::{Active, Executor, Workspace};
use crate::plan::{BufferId, Root, View, WeightId};

impl Executor {
    /// A [`Step::Copy`](crate::plan::Step::Copy).
    pub(super) fn copy(&self, from: &View, to: &View, batch: &[Active<'_>], workspace: &mut Workspace) {
        let isa = self.pool.isa();
        workspace.write(&self.plan, to, |workspace, memory| {
            let (to, layout) = (workspace.layout(to), workspace.layout(from));
            let from = self.elements(from.root, batch, workspace);
            for_each_run([&to, &layout], |Run { offsets: [to, start], length, strides }| match strides {
                [1, 1] => kernels::load(isa, from.slice(start..start + length), &mut memory[to..to + length]),
                _ => {
                    for index in 0..length {
                        memory[to + index * strides[0]] = get(&from, start + index * strides[1]);
                    }
                }
            });
        });
    }

    /// A [`Step::CopyIntegers`](crate::plan::Step::CopyIntegers).
    pub(super) fn copy_integers(&self, from: &View, to: &View, workspace: &mut Workspace) {
        let (Root::Integers(source), Root::Integers(target)) = (from.root, to.root) else { return };
        let (to, from) = (workspace.layout(to), workspace.layout(from));
        let mut memory = std::mem::take(&mut workspace.integers[target]);
        for_each_run([&to, &from], |Run { offsets: [to, from], length, strides }| {
            for index in 0..length {
                memory[to + index * strides[0]] = workspace.integers[source][from + index * strides[1]];
            }
        });
        workspace.integers[target] = memory;
    }

    /// A [`Step::IntegersToFloat`](crate::plan::Step::IntegersToFloat).
    pub(super) fn integers_to_float(&self, from: &View, to: &View, truth: bool, workspace: &mut Workspace) {
        let Root::Integers(source) = from.root else { return };
        workspace.write(&self.plan, to, |workspace, memory| {
            let (to, from) = (workspace.layout(to), workspace.layout(from));
            let integers = &workspace.integers[source];
            for_each_run([&to, &from], |Run { offsets: [to, from], length, strides }| {
                for index in 0..length {
                    let value = integers[from + index * strides[1]];
                    memory[to + index * strides[0]] =
                        if truth { f32::from(value != 0) } else { value as f32 };
                }
            });
        });
    }

    /// A [`Step::FloatToIntegers`](crate::plan::Step::FloatToIntegers).
    pub(super) fn float_to_integers(&self, from: &View, to: &View, workspace: &mut Workspace) {
        let Root::Integers(target) = to.root else { return };
        let (to, layout) = (workspace.layout(to), workspace.layout(from));
        let mut memory = std::mem::take(&mut workspace.integers[target]);
        let from = self.floats(from.root, workspace);
        for_each_run([&to, &layout], |Run { offsets: [to, start], length, strides }| {
            for index in 0..length {
                memory[to + index * strides[0]] = from[start + index * strides[1]] as i64;
            }
        });
        workspace.integers[target] = memory;
    }

    /// A [`Step::Embedding`](crate::plan::Step::Embedding).
    ///
    /// # Errors
    /// [`BackendError::InvalidArgument`] for an ID that is no row of the table.
    pub(super) fn embedding(
        &self,
        ids: &View,
        table: WeightId,
        to: BufferId,
        workspace: &mut Workspace,
    ) -> Result<(), BackendError> {
        let Root::Integers(source) = ids.root else { return Ok(()) };
        let ids = workspace.layout(ids);
        let table = self.matrix(table);
        let mut memory = workspace.take(&self.plan, to);
        let width = table.columns.max(1);
        let ids = &workspace.integers[source][ids.offset..ids.offset + ids.elements()];
        let mut outside = None;
        for (&id, row) in ids.iter().zip(memory.chunks_exact_mut(width)) {
            match usize::try_from(id).ok().filter(|&id| id < table.rows) {
                Some(id) => {
                    kernels::load(self.pool.isa(), table.elements.slice(id * width..(id + 1) * width), row)
                }
                None => outside = Some(id),
            }
        }
        workspace.put(&self.plan, to, memory);
        outside.map_or(Ok(()), |id| Err(no_row(id, table.rows)))
    }

    /// A [`Step::Gather`](crate::plan::Step::Gather).
    ///
    /// # Errors
    /// [`BackendError::InvalidArgument`] for an index outside of the axis.
    pub(super) fn gather(
        &self,
        x: &View,
        ids: &View,
        axis: usize,
        to: &View,
        workspace: &mut Workspace,
    ) -> Result<(), BackendError> {
        let Root::Integers(source) = ids.root else { return Ok(()) };
        let (x_layout, ids) = (workspace.layout(x), workspace.layout(ids));
        let (rows, stride) = (x_layout.dims()[axis], x_layout.strides()[axis]);
        let range = ids.offset..ids.offset + ids.elements();
        let outside =
            workspace.integers[source][range.clone()].iter().find(|&&id| id < 0 || id >= rows as i64);
        if let Some(&id) = outside {
            return Err(no_row(id, rows));
        }
        workspace.write(&self.plan, to, |workspace, memory| {
            let x = self.floats(x.root, workspace);
            let inner_dims = &x_layout.dims()[axis + 1..];
            let inner: usize = inner_dims.iter().product();
            let outer: usize = x_layout.dims()[..axis].iter().product();
            let inner_strides = &x_layout.strides()[axis + 1..];
            if is_row_major(inner_dims, inner_strides) {
                let ids = &workspace.integers[source][range.clone()];
                let mut rows = memory.chunks_exact_mut(inner.max(1));
                for outer in 0..outer {
                    let before = place(outer, &x_layout.dims()[..axis], x_layout.strides());
                    for (&id, row) in ids.iter().zip(&mut rows) {
                        // The check above: it is not negative.
                        let start = x_layout.offset + before + id.unsigned_abs() as usize * stride;
                        row.copy_from_slice(&x[start..start + inner]);
                    }
                }
                return;
            }
            let mut out = memory.iter_mut();
            for outer in 0..outer {
                let before = place(outer, &x_layout.dims()[..axis], x_layout.strides());
                for &id in &workspace.integers[source][range.clone()] {
                    // The check above: it is not negative.
                    let start = x_layout.offset + before + id.unsigned_abs() as usize * stride;
                    for (inner, out) in (0..inner).zip(&mut out) {
                        *out = x[start + place(inner, inner_dims, inner_strides)];
                    }
                }
            }
        });
        Ok(())
    }

    /// A [`Step::ImageRows`](crate::plan::Step::ImageRows): `to` is contiguous.
    pub(super) fn image_rows(&self, to: &View, batch: &[Active<'_>], workspace: &mut Workspace) {
        if batch.iter().all(|active| active.cache.images().is_empty()) {
            return;
        }
        workspace.write(&self.plan, to, |workspace, memory| {
            let to = workspace.layout(to);
            let width = to.dims()[2];
            let mut first = to.offset;
            for active in batch {
                let tokens = self.run_tokens(active);
                for (token, row) in active.cache.images().rows(tokens.clone()) {
                    let start = first + token * width;
                    memory[start..start + width].copy_from_slice(row);
                }
                first += tokens.len() * width;
            }
        });
    }

    /// A [`Step::ReplaceRows`](crate::plan::Step::ReplaceRows): `to` and `indices` are contiguous.
    ///
    /// # Errors
    /// [`BackendError::InvalidArgument`] for an index beyond the rows.
    pub(super) fn replace_rows(
        &self,
        rows: &View,
        indices: &View,
        to: &View,
        workspace: &mut Workspace,
    ) -> Result<(), BackendError> {
        let Root::Integers(source) = indices.root else { return Ok(()) };
        let indices = workspace.layout(indices);
        let indices = indices.offset..indices.offset + indices.elements();
        let count = workspace.layout(rows).dims()[0];
        let row = |index: &i64| usize::try_from(*index).ok();
        if let Some(outside) =
            workspace.integers[source][indices.clone()].iter().find(|index| row(index) >= Some(count))
        {
            return Err(no_row(*outside, count));
        }
        workspace.write(&self.plan, to, |workspace, memory| {
            let (to, layout) = (workspace.layout(to), workspace.layout(rows));
            let rows = self.floats(rows.root, workspace);
            let (width, stride) = (to.dims()[2].max(1), layout.strides()[0]);
            let memory = memory[to.offset..].chunks_exact_mut(width);
            for (index, out) in workspace.integers[source][indices].iter().zip(memory) {
                if let Some(index) = row(index) {
                    let start = layout.offset + index * stride;
                    out.copy_from_slice(&rows[start..start + width]);
                }
            }
        });
        Ok(())
    }

    /// A [`Step::SelectRows`](crate::plan::Step::SelectRows): `from` is `[1, tokens, width]` with contiguous rows.
    pub(super) fn select_rows(&self, from: &View, to: &View, workspace: &mut Workspace) {
        workspace.write(&self.plan, to, |workspace, memory| {
            let layout = workspace.layout(from);
            let (width, stride) = (layout.dims()[2], layout.strides()[1]);
            let from = self.floats(from.root, workspace);
            for (&row, out) in workspace.selected.iter().zip(memory.chunks_exact_mut(width.max(1))) {
                let start = layout.offset + row * stride;
                out.copy_from_slice(&from[start..start + width]);
            }
        });
    }

    /// A [`Step::StoreCache`](crate::plan::Step::StoreCache): `from` is contiguous.
    pub(super) fn store_cache(
        &self,
        tensor: usize,
        from: &View,
        batch: &mut [Active<'_>],
        workspace: &Workspace,
    ) {
        let tensor = batch.first_mut().and_then(|active| active.cache.tensors_mut().get_mut(tensor));
        if let Some(tensor) = tensor {
            let layout = workspace.layout(from);
            let from = &self.floats(from.root, workspace)[layout.offset..layout.offset + layout.elements()];
            kernels::store(self.pool.isa(), from, tensor.elements_mut());
        }
    }
}

/// All elements as fp32.
pub(super) fn load(from: Elements<'_>, to: &mut [f32]) {
    kernels::load(Isa::detect(), from, to);
}

fn get(elements: &Elements<'_>, index: usize) -> f32 {
    match elements {
        Elements::F32(values) => values[index],
        Elements::F16(values) => values[index].to_f32(),
        Elements::Bf16(values) => values[index].to_f32(),
    }
}

/// Where element `index` of a row-major walk over `dims` is.
fn place(mut index: usize, dims: &[usize], strides: &[usize]) -> usize {
    let mut place = 0;
    for (&dim, &stride) in dims.iter().zip(strides).rev() {
        place += index % dim * stride;
        index /= dim;
    }
    place
}

/// Whether strides are those of a tensor without gaps; an axis of one element may have any.
fn is_row_major(dims: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    dims.iter().zip(strides).rev().all(|(&dim, &stride)| {
        let fits = dim == 1 || stride == expected;
        expected *= dim;
        fits
    })
}

fn no_row(id: i64, rows: usize) -> BackendError {
    BackendError::InvalidArgument(format!("index {id} is outside of a table of {rows} rows"))
}
