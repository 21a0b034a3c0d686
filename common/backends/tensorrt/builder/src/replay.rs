//! A network into TensorRT, one call a layer.

use roundhouse_tensorrt_library::{BuildSession, DimsOperand, TensorHandle};
use roundhouse_tensorrt_network::{
    Constant, DataType, FillDims, Layer, LayerKind, Network, Reshape, SliceOperand, Tensor, TensorId,
};
use roundhouse_weights::MappedWeights;

use crate::ReplayError;

mod enums;
mod operands;

use operands::Operands;

/// Where the bytes of weights are.
#[derive(Clone, Copy)]
pub enum Weights<'w> {
    /// In a mapped file, which the network refers to until it is built.
    Mapped(&'w MappedWeights),
    /// Nowhere: they are placeholders to be refitted by their names in the graph.
    Placeholders,
}

/// Defines a network, its inputs, outputs and profiles in a new session, and checks that TensorRT infers for every layer
/// what the network says.
///
/// # Errors
/// [`ReplayError`] names the first layer that does not fit.
pub fn replay<'w>(
    session: &mut BuildSession<'w>,
    network: &Network,
    weights: Weights<'w>,
) -> Result<(), ReplayError> {
    let mut replay = Replay { session, network, weights, handles: Vec::new() };
    for &input in network.inputs() {
        let Tensor { name, dtype, dims } = network.tensor(input);
        let handle = replay.session.add_input(name, *dtype, dims)?;
        replay.bind(input, handle);
    }
    for layer in network.layers() {
        let output = replay.add(layer)?;
        replay.check(layer, output)?;
        replay.bind(layer.output, output);
    }
    for output in network.outputs() {
        let name = &network.tensor(output.tensor).name;
        let handle = replay.handle(output.tensor).ok_or_else(|| ReplayError::Malformed {
            layer: name.clone(),
            what: "an output of no layer".to_owned(),
        })?;
        replay.session.mark_output(handle, name)?;
    }
    for profile in &network.profiles {
        session.add_profile(profile)?;
    }
    Ok(())
}

struct Replay<'a, 'w> {
    session: &'a mut BuildSession<'w>,
    network: &'a Network,
    weights: Weights<'w>,
    /// TensorRT's tensors, by the network's IDs.
    handles: Vec<Option<TensorHandle>>,
}

impl<'w> Replay<'_, 'w> {
    fn bind(&mut self, id: TensorId, handle: TensorHandle) {
        let index = id.0 as usize;
        if self.handles.len() <= index {
            self.handles.resize(index + 1, None);
        }
        self.handles[index] = Some(handle);
    }

    fn handle(&self, id: TensorId) -> Option<TensorHandle> {
        self.handles.get(id.0 as usize).copied().flatten()
    }

    /// Makes the one call, with its setters, that adds a layer.
    fn add(&mut self, layer: &Layer) -> Result<TensorHandle, ReplayError> {
        let operands = layer.inputs.iter().map(|&input| self.handle(input));
        let operands = operands.collect::<Option<Vec<_>>>().ok_or_else(|| ReplayError::Malformed {
            layer: layer.name.clone(),
            what: "an operand that no earlier layer makes".to_owned(),
        })?;
        let mut operands = Operands::new(&layer.name, operands);
        let name = layer.name.as_str();
        let added = match &layer.kind {
            LayerKind::Constant(constant) => return self.constant(name, constant),
            LayerKind::Activation { function } => {
                self.session.add_activation(name, operands.next()?, enums::activation(*function))
            }
            LayerKind::Unary { function } => {
                self.session.add_unary(name, operands.next()?, enums::unary(*function))
            }
            LayerKind::ElementWise { operation } => {
                let pair = [operands.next()?, operands.next()?];
                self.session.add_elementwise(name, pair, enums::elementwise(*operation))
            }
            LayerKind::Cast { to } => self.session.add_cast(name, operands.next()?, *to),
            LayerKind::Shuffle { first_transpose, reshape, second_transpose } => {
                let x = operands.next()?;
                let dims = match reshape {
                    Some(Reshape::Static(dims)) => Some(DimsOperand::Given(dims)),
                    Some(Reshape::Input { expected }) => {
                        Some(DimsOperand::Tensor(operands.next()?, expected.len()))
                    }
                    None => None,
                };
                let (first, second) = (first_transpose.as_deref(), second_transpose.as_deref());
                self.session.add_shuffle(name, x, first, dims, second)
            }
            LayerKind::Slice { start, size } => {
                let x = operands.next()?;
                let (start, size) =
                    (slice_operand(start, &mut operands)?, slice_operand(size, &mut operands)?);
                self.session.add_slice(name, x, start, size)
            }
            LayerKind::Concatenation { axis } => {
                let parts = operands.rest();
                self.session.add_concatenation(name, &parts, *axis)
            }
            LayerKind::MatrixMultiply { op_a, op_b } => {
                let a = (operands.next()?, enums::matrix_op(*op_a));
                let b = (operands.next()?, enums::matrix_op(*op_b));
                self.session.add_matrix_multiply(name, a, b)
            }
            LayerKind::Gather { axis } => {
                let (x, indices) = (operands.next()?, operands.next()?);
                self.session.add_gather(name, x, indices, *axis)
            }
            LayerKind::Reduce { operation, axes } => {
                self.session.add_reduce(name, operands.next()?, enums::reduce(*operation), axes)
            }
            LayerKind::SoftMax { axis } => self.session.add_softmax(name, operands.next()?, *axis),
            LayerKind::Shape => self.session.add_shape(name, operands.next()?),
            LayerKind::Iota { length, dtype } => {
                let length = match length {
                    FillDims::Static(length) => DimsOperand::Given(std::slice::from_ref(length)),
                    FillDims::Input => DimsOperand::Tensor(operands.next()?, 1),
                };
                self.session.add_iota(name, length, *dtype)
            }
            LayerKind::Select => {
                let three = [operands.next()?, operands.next()?, operands.next()?];
                self.session.add_select(name, three)
            }
            LayerKind::RotaryEmbedding { interleaved, dim } => {
                let four = [operands.next()?, operands.next()?, operands.next()?, operands.next()?];
                self.session.add_rotary_embedding(name, four, *interleaved, *dim)
            }
            LayerKind::KvCacheUpdate => {
                let three = [operands.next()?, operands.next()?, operands.next()?];
                self.session.add_kv_cache_update(name, three)
            }
            LayerKind::Attention { causal, decomposable, has_mask, has_kv_lengths } => {
                let attention = operands.attention(*has_mask, *has_kv_lengths)?;
                self.session.add_attention(name, attention, enums::causal_mask(*causal), *decomposable)
            }
        };
        operands.end()?;
        Ok(added?)
    }

    fn constant(&mut self, name: &str, constant: &Constant) -> Result<TensorHandle, ReplayError> {
        let Constant { dtype, dims, .. } = constant;
        if let Some(bytes) = constant.bytes() {
            return Ok(self.session.add_constant_owned(name, dims, *dtype, bytes)?);
        }
        let Some(weight) = constant.weight() else {
            let what = "a constant without values".to_owned();
            return Err(ReplayError::Malformed { layer: name.to_owned(), what });
        };
        let Weights::Mapped(file) = self.weights else {
            return Ok(self.session.add_constant_placeholder(name, dims, *dtype, weight)?);
        };
        let refuse =
            |what: String| ReplayError::Weight { layer: name.to_owned(), weight: weight.to_owned(), what };
        let tensor = file.tensor(weight).ok_or_else(|| refuse("is not in the weights file".to_owned()))?;
        if DataType::from(tensor.dtype) != *dtype {
            return Err(refuse(format!("is {} in the weights file, {dtype} here", tensor.dtype)));
        }
        Ok(self.session.add_constant(name, dims, *dtype, file.bytes(tensor), Some(weight))?)
    }

    /// TensorRT infers for a layer's output what the network says.
    fn check(&self, layer: &Layer, output: TensorHandle) -> Result<(), ReplayError> {
        let ours = self.network.tensor(layer.output);
        let theirs = self.session.inferred(output)?;
        if (theirs.dtype, &theirs.dims) == (ours.dtype, &ours.dims) {
            return Ok(());
        }
        Err(ReplayError::Output {
            layer: layer.name.clone(),
            ours: format!("{} {:?}", ours.dtype, ours.dims),
            theirs: format!("{} {:?}", theirs.dtype, theirs.dims),
        })
    }
}

fn slice_operand<'a>(
    operand: &'a SliceOperand,
    operands: &mut Operands<'_>,
) -> Result<DimsOperand<'a>, ReplayError> {
    Ok(match operand {
        SliceOperand::Static(dims) => DimsOperand::Given(dims),
        SliceOperand::Input { expected } => DimsOperand::Tensor(operands.next()?, expected.len()),
    })
}
