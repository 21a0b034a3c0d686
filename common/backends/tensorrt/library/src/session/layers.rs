//! The layers, one method each, in TensorRT's terms. A layer and its output have the same name.

use roundhouse_tensorrt_network::DataType;
use trtx::network::{Attention, Layer};
use trtx::trtx_sys::AsLayer;
use trtx::{
    ActivationType, AttentionNormalizationOp, Axes, CausalMaskKind, ElementWiseOperation, FillOperation,
    KVCacheMode, MatrixOperation, ReduceOperation, UnaryOperation,
};

use super::{BuildSession, TensorHandle, shapes};
use crate::{TensorRtError, raw};

/// A new layer's output, or why there is none.
type Added = Result<TensorHandle, TensorRtError>;

/// Where a dimension list of a layer comes from.
#[derive(Debug, Clone, Copy)]
pub enum DimsOperand<'a> {
    /// The numbers.
    Given(&'a [i64]),
    /// A tensor of this many numbers.
    Tensor(TensorHandle, usize),
}

impl DimsOperand<'_> {
    /// The numbers to begin with: those of a tensor replace them.
    fn initial(self) -> Vec<i64> {
        match self {
            Self::Given(dims) => dims.to_vec(),
            Self::Tensor(_, length) => vec![0; length],
        }
    }
}

/// The inputs of an attention.
#[derive(Debug, Clone, Copy)]
pub struct AttentionOperands {
    /// `[batch, heads, new, head_dim]`.
    pub query: TensorHandle,
    /// `[batch, kv_heads, length, head_dim]`.
    pub key: TensorHandle,
    /// As the key.
    pub value: TensorHandle,
    /// Where to attend.
    pub mask: Option<TensorHandle>,
    /// How many keys each sequence has, `[batch]` of `kINT32`.
    pub kv_lengths: Option<TensorHandle>,
}

impl<'w> BuildSession<'w> {
    /// `IConstantLayer` whose bytes stay where they are. `weights` is the name to refit them by.
    ///
    /// # Errors
    /// [`TensorRtError::Misuse`] when the bytes are not exactly the elements', [`TensorRtError::Refused`].
    pub fn add_constant(
        &mut self,
        name: &str,
        dims: &[i64],
        dtype: DataType,
        bytes: &'w [u8],
        weights: Option<&str>,
    ) -> Added {
        check_bytes(name, dims, dtype, bytes.len())?;
        let mark = self.errors.mark();
        let layer = self.network.add_constant(dims, bytes, shapes::to_trt(dtype), weights);
        self.finish(name, layer, mark)
    }

    /// `IConstantLayer` that owns its bytes.
    ///
    /// # Errors
    /// As [`BuildSession::add_constant`].
    pub fn add_constant_owned(&mut self, name: &str, dims: &[i64], dtype: DataType, bytes: Vec<u8>) -> Added {
        check_bytes(name, dims, dtype, bytes.len())?;
        let mark = self.errors.mark();
        let layer = self.network.add_constant_owned(dims, bytes, shapes::to_trt(dtype), None);
        self.finish(name, layer, mark)
    }

    /// `IConstantLayer` without its bytes, which a plan is refitted with under the name `weights`.
    ///
    /// # Errors
    /// [`TensorRtError::Misuse`], [`TensorRtError::Refused`].
    pub fn add_constant_placeholder(
        &mut self,
        name: &str,
        dims: &[i64],
        dtype: DataType,
        weights: &str,
    ) -> Added {
        check_dims(name, dims)?;
        let mark = self.errors.mark();
        // Before the layer, so that its bytes are never looked for.
        self.placeholders.insert(name.to_owned());
        let layer = self.network.add_constant_placeholder(dims, shapes::to_trt(dtype), weights);
        self.finish(name, layer, mark)
    }

    /// `IActivationLayer`.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn add_activation(&mut self, name: &str, x: TensorHandle, function: ActivationType) -> Added {
        let (mark, x) = (self.errors.mark(), self.tensor(x)?);
        let layer = self.network.add_activation(&x, function);
        self.finish(name, layer, mark)
    }

    /// `IUnaryLayer`.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn add_unary(&mut self, name: &str, x: TensorHandle, operation: UnaryOperation) -> Added {
        let (mark, x) = (self.errors.mark(), self.tensor(x)?);
        let layer = self.network.add_unary(&x, operation);
        self.finish(name, layer, mark)
    }

    /// `IElementWiseLayer`.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn add_elementwise(
        &mut self,
        name: &str,
        [a, b]: [TensorHandle; 2],
        operation: ElementWiseOperation,
    ) -> Added {
        let (mark, a, b) = (self.errors.mark(), self.tensor(a)?, self.tensor(b)?);
        let layer = self.network.add_elementwise(&a, &b, operation);
        self.finish(name, layer, mark)
    }

    /// `ICastLayer`.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn add_cast(&mut self, name: &str, x: TensorHandle, to: DataType) -> Added {
        let (mark, x) = (self.errors.mark(), self.tensor(x)?);
        let layer = self.network.add_cast(&x, shapes::to_trt(to));
        self.finish(name, layer, mark)
    }

    /// `IShuffleLayer`: a transpose, a reshape, a transpose.
    ///
    /// # Errors
    /// [`TensorRtError::Misuse`] for an axis past the eighth, [`TensorRtError::Refused`].
    pub fn add_shuffle(
        &mut self,
        name: &str,
        x: TensorHandle,
        first_transpose: Option<&[usize]>,
        reshape: Option<DimsOperand<'_>>,
        second_transpose: Option<&[usize]>,
    ) -> Added {
        let [first, second] = [first_transpose, second_transpose].map(|order| order.map(permutation));
        let (first, second) = (first.transpose()?, second.transpose()?);
        let (mark, x) = (self.errors.mark(), self.tensor(x)?);
        let layer = self.network.add_shuffle(&x);
        let mut layer = layer.map_err(|error| self.refused(&format!("layer {name:?}"), &error, mark))?;
        let refused =
            |session: &Self, error: &trtx::Error| session.refused(&format!("layer {name:?}"), error, mark);
        if let Some(order) = first {
            let set = layer.set_first_transpose(&mut self.network, &order);
            set.map_err(|error| refused(self, &error))?;
        }
        match reshape {
            Some(DimsOperand::Given(dims)) => {
                shapes::check_rank(name, dims)?;
                let set = layer.set_reshape_dimensions(&mut self.network, dims);
                set.map_err(|error| refused(self, &error))?;
            }
            Some(DimsOperand::Tensor(shape, _)) => {
                let shape = self.tensor(shape)?;
                let set = layer.set_input(&mut self.network, 1, &shape);
                set.map_err(|error| refused(self, &error))?;
            }
            None => {}
        }
        if let Some(order) = second {
            let set = layer.set_second_transpose(&mut self.network, &order);
            set.map_err(|error| refused(self, &error))?;
        }
        self.finish(name, Ok(layer), mark)
    }

    /// `ISliceLayer` with strides of 1.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn add_slice(
        &mut self,
        name: &str,
        x: TensorHandle,
        start: DimsOperand<'_>,
        size: DimsOperand<'_>,
    ) -> Added {
        let (mark, x) = (self.errors.mark(), self.tensor(x)?);
        let (starts, sizes) = (start.initial(), size.initial());
        shapes::check_rank(name, &starts)?;
        let layer = self.network.add_slice(&x, &starts, &sizes, &vec![1; starts.len()]);
        let mut layer = layer.map_err(|error| self.refused(&format!("layer {name:?}"), &error, mark))?;
        for (index, operand) in [(1, start), (2, size)] {
            if let DimsOperand::Tensor(tensor, _) = operand {
                let tensor = self.tensor(tensor)?;
                let set = layer.set_input(&mut self.network, index, &tensor);
                set.map_err(|error| self.refused(&format!("layer {name:?}"), &error, mark))?;
            }
        }
        self.finish(name, Ok(layer), mark)
    }

    /// `IConcatenationLayer`.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn add_concatenation(&mut self, name: &str, parts: &[TensorHandle], axis: usize) -> Added {
        let axis = axis_number(axis)?;
        let mark = self.errors.mark();
        let parts = parts.iter().map(|&part| self.tensor(part)).collect::<Result<Vec<_>, _>>()?;
        let layer = self.network.add_concatenation(&parts.iter().collect::<Vec<_>>());
        let mut layer = layer.map_err(|error| self.refused(&format!("layer {name:?}"), &error, mark))?;
        layer.set_axis(&mut self.network, axis);
        self.finish(name, Ok(layer), mark)
    }

    /// `IMatrixMultiplyLayer`.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn add_matrix_multiply(
        &mut self,
        name: &str,
        (a, op_a): (TensorHandle, MatrixOperation),
        (b, op_b): (TensorHandle, MatrixOperation),
    ) -> Added {
        let (mark, a, b) = (self.errors.mark(), self.tensor(a)?, self.tensor(b)?);
        let layer = self.network.add_matrix_multiply(&a, op_a, &b, op_b);
        self.finish(name, layer, mark)
    }

    /// `IGatherLayer` in mode `kDEFAULT`.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn add_gather(&mut self, name: &str, x: TensorHandle, indices: TensorHandle, axis: usize) -> Added {
        let (mark, x, indices) = (self.errors.mark(), self.tensor(x)?, self.tensor(indices)?);
        let layer = self.network.add_gather(&x, &indices, axis_number(axis)?);
        self.finish(name, layer, mark)
    }

    /// `IReduceLayer` that keeps the reduced axes as dimensions of 1.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn add_reduce(
        &mut self,
        name: &str,
        x: TensorHandle,
        operation: ReduceOperation,
        axes: &[usize],
    ) -> Added {
        let (mark, x) = (self.errors.mark(), self.tensor(x)?);
        let layer = self.network.add_reduce(&x, operation, axis_set(axes)?, true);
        self.finish(name, layer, mark)
    }

    /// `ISoftMaxLayer`.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn add_softmax(&mut self, name: &str, x: TensorHandle, axis: usize) -> Added {
        let (mark, x) = (self.errors.mark(), self.tensor(x)?);
        let layer = self.network.add_softmax(&x, axis_set(&[axis])?);
        self.finish(name, layer, mark)
    }

    /// `IShapeLayer`.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn add_shape(&mut self, name: &str, x: TensorHandle) -> Added {
        let (mark, x) = (self.errors.mark(), self.tensor(x)?);
        let layer = self.network.add_shape(&x);
        self.finish(name, layer, mark)
    }

    /// `IFillLayer` in mode `kLINSPACE`: 0, 1, 2, ….
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn add_iota(&mut self, name: &str, length: DimsOperand<'_>, dtype: DataType) -> Added {
        let mark = self.errors.mark();
        let layer = self.network.add_fill(&length.initial(), FillOperation::kLINSPACE, shapes::to_trt(dtype));
        let mut layer = layer.map_err(|error| self.refused(&format!("layer {name:?}"), &error, mark))?;
        raw::count_from_zero(&mut layer, dtype.is_integer())?;
        if let DimsOperand::Tensor(length, _) = length {
            let length = self.tensor(length)?;
            let set = layer.set_input(&mut self.network, 0, &length);
            set.map_err(|error| self.refused(&format!("layer {name:?}"), &error, mark))?;
        }
        self.finish(name, Ok(layer), mark)
    }

    /// `ISelectLayer`.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn add_select(&mut self, name: &str, [condition, then, otherwise]: [TensorHandle; 3]) -> Added {
        let mark = self.errors.mark();
        let (condition, then, otherwise) =
            (self.tensor(condition)?, self.tensor(then)?, self.tensor(otherwise)?);
        let layer = self.network.add_select(&condition, &then, &otherwise);
        self.finish(name, layer, mark)
    }

    /// `IRotaryEmbeddingLayer` of the first `dim` elements of each head, with position IDs; a `dim` of 0 stands for all.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn add_rotary_embedding(
        &mut self,
        name: &str,
        [x, cos, sin, position_ids]: [TensorHandle; 4],
        interleaved: bool,
        dim: usize,
    ) -> Added {
        let mark = self.errors.mark();
        let (x, cos, sin) = (self.tensor(x)?, self.tensor(cos)?, self.tensor(sin)?);
        let position_ids = self.tensor(position_ids)?;
        let layer = self.network.add_rotary_embedding(&x, &cos, &sin, interleaved, axis_number(dim)?);
        let mut layer = layer.map_err(|error| self.refused(&format!("layer {name:?}"), &error, mark))?;
        let set = layer.set_input(&mut self.network, 3, &position_ids);
        set.map_err(|error| self.refused(&format!("layer {name:?}"), &error, mark))?;
        self.finish(name, Ok(layer), mark)
    }

    /// `IKVCacheUpdateLayer` in mode `kLINEAR`.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn add_kv_cache_update(
        &mut self,
        name: &str,
        [cache, update, write_indices]: [TensorHandle; 3],
    ) -> Added {
        let mark = self.errors.mark();
        let (cache, update) = (self.tensor(cache)?, self.tensor(update)?);
        let write_indices = self.tensor(write_indices)?;
        let layer = self.network.add_kv_cache_update(&cache, &update, &write_indices, KVCacheMode::kLINEAR);
        self.finish(name, layer, mark)
    }

    /// `IAttention` with softmax.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn add_attention(
        &mut self,
        name: &str,
        operands: AttentionOperands,
        causal: CausalMaskKind,
        decomposable: bool,
    ) -> Added {
        let mark = self.errors.mark();
        let (query, key) = (self.tensor(operands.query)?, self.tensor(operands.key)?);
        let value = self.tensor(operands.value)?;
        let mask = operands.mask.map(|mask| self.tensor(mask)).transpose()?;
        let kv_lengths = operands.kv_lengths.map(|lengths| self.tensor(lengths)).transpose()?;
        let softmax = AttentionNormalizationOp::kSOFTMAX;
        let mut define = || -> trtx::Result<(Attention<'w>, trtx::Tensor<'w>)> {
            let network = &mut self.network;
            let mut attention = network.add_attention_v2(&query, &key, &value, softmax, causal)?;
            attention.set_name(network, name)?;
            attention.set_decomposable(network, decomposable)?;
            if let Some(mask) = &mask {
                attention.set_mask(network, mask)?;
            }
            if let Some(lengths) = &kv_lengths {
                attention.set_key_value_lengths(network, lengths)?;
            }
            let output = attention.output(network, 0)?;
            output.set_name(network, name)?;
            Ok((attention, output))
        };
        let (_, output) = define().map_err(|error| self.refused(&format!("layer {name:?}"), &error, mark))?;
        self.nothing_refused(&format!("layer {name:?}"), mark)?;
        Ok(self.keep(output))
    }

    /// Names a new layer and its output.
    fn finish<L: AsLayer>(&mut self, name: &str, layer: trtx::Result<Layer<'w, L>>, mark: usize) -> Added {
        let network = &mut self.network;
        let output = layer.and_then(|mut layer| {
            layer.set_name(network, name)?;
            let output = layer.output(network, 0)?;
            output.set_name(network, name)?;
            Ok(output)
        });
        let output = output.map_err(|error| self.refused(&format!("layer {name:?}"), &error, mark))?;
        self.nothing_refused(&format!("layer {name:?}"), mark)?;
        Ok(self.keep(output))
    }
}

/// `trtx` panics when the bytes of a constant are not its elements'.
fn check_bytes(name: &str, dims: &[i64], dtype: DataType, found: usize) -> Result<(), TensorRtError> {
    let elements = check_dims(name, dims)?;
    let expected = elements.checked_mul(dtype.size());
    if expected == Some(found) {
        return Ok(());
    }
    let expected = expected.map_or_else(|| "more than memory".to_owned(), |expected| expected.to_string());
    Err(TensorRtError::misuse(format!(
        "constant {name:?} of {dtype} {dims:?} has {found} bytes, expected {expected}"
    )))
}

/// How many elements a constant has.
fn check_dims(name: &str, dims: &[i64]) -> Result<usize, TensorRtError> {
    shapes::check_rank(name, dims)?;
    let elements = dims.iter().try_fold(1_usize, |product, &dim| {
        usize::try_from(dim).ok().and_then(|dim| product.checked_mul(dim))
    });
    elements.ok_or_else(|| TensorRtError::misuse(format!("constant {name:?} has dimensions {dims:?}")))
}

fn axis_number(axis: usize) -> Result<i32, TensorRtError> {
    i32::try_from(axis).map_err(|_| TensorRtError::misuse(format!("there is no axis {axis}")))
}

/// The bit set of axes.
fn axis_set(axes: &[usize]) -> Result<Axes, TensorRtError> {
    let bits = axes.iter().try_fold(0_u32, |bits, &axis| {
        u32::try_from(axis).ok().and_then(|axis| 1_u32.checked_shl(axis)).map(|bit| bits | bit)
    });
    bits.map(Axes::from_bits).ok_or_else(|| TensorRtError::misuse(format!("there are no axes {axes:?}")))
}

/// A permutation as `trtx` takes it. It reads at most eight axes.
fn permutation(order: &[usize]) -> Result<Vec<i32>, TensorRtError> {
    if order.len() > 8 {
        return Err(TensorRtError::misuse(format!("a permutation of {} axes", order.len())));
    }
    order.iter().map(|&axis| axis_number(axis)).collect()
}
