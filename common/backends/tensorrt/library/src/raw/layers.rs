//! Reading a network back: what TensorRT holds, by its own getters, in its own words.

use std::collections::{BTreeMap, HashSet};
use std::ffi::CStr;
use std::fmt::Debug;
use std::pin::Pin;

use trtx::LayerType;
use trtx::network::NetworkDefinition;
use trtx::trtx_sys::{self, Dims64, nvinfer1};

use super::Inner as _;
use crate::TensorRtError;

/// A tensor of TensorRT's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorView {
    /// Its name.
    pub name: String,
    /// `DataType`, e.g. `kHALF`.
    pub dtype: String,
    /// Its dimensions as TensorRT inferred them, −1 where they are dynamic.
    pub dims: Vec<i64>,
}

/// A layer of TensorRT's. The two layers of an attention are one here, with the inputs of `IAttention`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerView<'a> {
    /// `LayerType`, e.g. `kELEMENTWISE`; `kATTENTION_OUTPUT` for an attention.
    pub layer_type: String,
    /// Its name.
    pub name: String,
    /// The names of its inputs; `None` for one that is left out.
    pub inputs: Vec<Option<String>>,
    /// Its first output.
    pub output: Option<TensorView>,
    /// Its attributes, by the getter's name without `get`: enum values as TensorRT names them, numbers and lists as text.
    pub attributes: BTreeMap<&'static str, String>,
    /// The bytes of a constant, where they are; `None` for other layers and for placeholders.
    pub constant: Option<&'a [u8]>,
}

/// All layers of a network in its order. `placeholders` are the names of constants without bytes, whose pointers
/// TensorRT fills with something else.
///
/// # Errors
/// [`TensorRtError::Binding`].
pub(crate) fn layers<'a>(
    network: &'a NetworkDefinition<'_>,
    placeholders: &HashSet<String>,
) -> Result<Vec<LayerView<'a>>, TensorRtError> {
    let network = network.object()?;
    let mut views = Vec::new();
    for index in 0..network.getNbLayers() {
        // SAFETY: TensorRT returns a layer of the network, which is borrowed for as long as the reference is used, or
        // null.
        let Some(layer) = (unsafe { network.getLayer(index).as_ref() }) else { continue };
        views.extend(view(layer, placeholders)?);
    }
    Ok(views)
}

/// The layer as the class that its type says it is.
///
/// # Safety
/// The layer's type is that of class `T`, a subclass of `ILayer` by single inheritance.
unsafe fn as_class<T>(layer: &nvinfer1::ILayer) -> &T {
    // SAFETY: with single inheritance an object of the class has the address of its base.
    unsafe { &*std::ptr::from_ref(layer).cast::<T>() }
}

/// The layer's description; `None` for the first of an attention's two layers.
fn view<'a>(
    layer: &'a nvinfer1::ILayer,
    placeholders: &HashSet<String>,
) -> Result<Option<LayerView<'a>>, TensorRtError> {
    let layer_type = LayerType::from(layer.getType());
    let mut view = LayerView {
        layer_type: format!("{layer_type:?}"),
        name: text(layer.getName()),
        inputs: (0..layer.getNbInputs()).map(|index| tensor_name(layer.getInput(index))).collect(),
        output: tensor(layer.getOutput(0)),
        attributes: BTreeMap::new(),
        constant: None,
    };
    if layer_type == LayerType::kATTENTION_INPUT {
        return Ok(None);
    }
    if layer_type == LayerType::kCONSTANT {
        // SAFETY: a layer of this type is an IConstantLayer.
        let layer = unsafe { as_class::<nvinfer1::IConstantLayer>(layer) };
        let has_bytes = !placeholders.contains(&view.name);
        constant(layer, has_bytes, &mut view);
    } else {
        attributes(layer, layer_type, &mut view)?;
    }
    Ok(Some(view))
}

fn attributes(
    layer: &nvinfer1::ILayer,
    layer_type: LayerType,
    view: &mut LayerView<'_>,
) -> Result<(), TensorRtError> {
    // Evaluates an expression over the layer as its own class.
    macro_rules! with {
        ($class:ident, |$layer:ident| { $($name:literal: $value:expr),+ $(,)? }) => {{
            // SAFETY: the match below names the class of each layer type, as NvInfer.h documents them.
            let $layer = unsafe { as_class::<nvinfer1::$class>(layer) };
            $(view.attributes.insert($name, $value);)+
        }};
    }
    let input_rank = tensor(layer.getInput(0)).map_or(0, |tensor| tensor.dims.len());
    let has_dims = view.inputs.first().is_some_and(Option::is_some);
    let output_rank = view.output.as_ref().map_or(0, |tensor| tensor.dims.len());
    match layer_type {
        LayerType::kACTIVATION => with!(IActivationLayer, |layer| {
            "ActivationType": named(trtx_sys::ActivationType::from(layer.getActivationType())),
        }),
        LayerType::kUNARY => with!(IUnaryLayer, |layer| {
            "Operation": named(trtx_sys::UnaryOperation::from(layer.getOperation())),
        }),
        LayerType::kELEMENTWISE => with!(IElementWiseLayer, |layer| {
            "Operation": named(trtx_sys::ElementWiseOperation::from(layer.getOperation())),
        }),
        LayerType::kCAST => with!(ICastLayer, |layer| {
            "ToType": named(trtx_sys::DataType::from(layer.getToType())),
        }),
        LayerType::kSHUFFLE => with!(IShuffleLayer, |layer| {
            "FirstTranspose": order_text(&layer.getFirstTranspose(), input_rank),
            "ReshapeDimensions": dims_text(&layer.getReshapeDimensions()),
            "SecondTranspose": order_text(&layer.getSecondTranspose(), output_rank),
            "ZeroIsPlaceholder": layer.getZeroIsPlaceholder().to_string(),
        }),
        LayerType::kSLICE => with!(ISliceLayer, |layer| {
            "Start": dims_text(&layer.getStart()),
            "Size": dims_text(&layer.getSize()),
            "Stride": dims_text(&layer.getStride()),
            "Mode": named(trtx_sys::SampleMode::from(layer.getMode())),
        }),
        LayerType::kCONCATENATION => {
            with!(IConcatenationLayer, |layer| { "Axis": layer.getAxis().to_string() })
        }
        LayerType::kMATRIX_MULTIPLY => with!(IMatrixMultiplyLayer, |layer| {
            "Operation0": named(trtx_sys::MatrixOperation::from(layer.getOperation(0))),
            "Operation1": named(trtx_sys::MatrixOperation::from(layer.getOperation(1))),
        }),
        LayerType::kGATHER => with!(IGatherLayer, |layer| {
            "GatherAxis": layer.getGatherAxis().to_string(),
            "NbElementWiseDims": layer.getNbElementWiseDims().to_string(),
            "Mode": named(trtx_sys::GatherMode::from(layer.getMode())),
        }),
        LayerType::kREDUCE => with!(IReduceLayer, |layer| {
            "Operation": named(trtx_sys::ReduceOperation::from(layer.getOperation())),
            "ReduceAxes": axes_text(layer.getReduceAxes()),
            "KeepDimensions": layer.getKeepDimensions().to_string(),
        }),
        LayerType::kSOFTMAX => with!(ISoftMaxLayer, |layer| { "Axes": axes_text(layer.getAxes()) }),
        LayerType::kFILL => with!(IFillLayer, |layer| {
            "Operation": named(trtx_sys::FillOperation::from(layer.getOperation())),
            // Asked for dimensions that an input gives, TensorRT warns.
            "Dimensions": if has_dims { "an input".to_owned() } else { dims_text(&layer.getDimensions()) },
            "Alpha": if layer.isAlphaBetaInt64() { layer.getAlphaInt64().to_string() } else { layer.getAlpha().to_string() },
            "Beta": if layer.isAlphaBetaInt64() { layer.getBetaInt64().to_string() } else { layer.getBeta().to_string() },
            "ToType": named(trtx_sys::DataType::from(layer.getToType())),
        }),
        LayerType::kROTARY_EMBEDDING => with!(IRotaryEmbeddingLayer, |layer| {
            "Interleaved": layer.getInterleaved().to_string(),
            "RotaryEmbeddingDim": layer.getRotaryEmbeddingDim().to_string(),
        }),
        LayerType::kKVCACHE_UPDATE => with!(IKVCacheUpdateLayer, |layer| {
            "CacheMode": named(trtx_sys::KVCacheMode::from(layer.getCacheMode())),
        }),
        LayerType::kATTENTION_OUTPUT => {
            // SAFETY: a layer of this type is an IAttentionOutputLayer, derived from IAttentionBoundaryLayer.
            let boundary = unsafe { as_class::<nvinfer1::IAttentionBoundaryLayer>(layer) };
            attention(boundary, view)?;
        }
        // SHAPE and SELECT have none; of others the type says that they are not expected.
        _ => {}
    }
    Ok(())
}

fn constant<'a>(layer: &'a nvinfer1::IConstantLayer, has_bytes: bool, view: &mut LayerView<'a>) {
    let weights = layer.getWeights();
    let dtype = trtx_sys::DataType::from(weights.type_.clone());
    view.attributes.insert("Dimensions", dims_text(&layer.getDimensions()));
    view.attributes.insert("Type", named(dtype));
    view.attributes.insert("Count", weights.count.to_string());
    let length = usize::try_from(weights.count).unwrap_or(0) * dtype.size_bits() / 8;
    if !has_bytes || weights.values.is_null() {
        return;
    }
    // SAFETY: not a placeholder, so `count` elements that whoever added the constant lent to the network, which is
    // borrowed here.
    let bytes = unsafe { std::slice::from_raw_parts(weights.values.cast::<u8>(), length) };
    view.constant = Some(bytes);
}

fn attention(
    boundary: &nvinfer1::IAttentionBoundaryLayer,
    view: &mut LayerView<'_>,
) -> Result<(), TensorRtError> {
    let missing =
        || TensorRtError::Binding { what: "an attention's output layer without its attention".to_owned() };
    let pointer = boundary.getAttention();
    // SAFETY: TensorRT returns the attention of the layer's network, which is borrowed here, or null.
    let attention = unsafe { pointer.as_ref() }.ok_or_else(missing)?;
    view.name = text(attention.getName());
    view.inputs = (0..3).map(|index| tensor_name(attention.getInput(index))).collect();
    // SAFETY: the same object; `getMask` is not declared const but changes nothing, and no other reference is used during
    // the call.
    let mask = unsafe { Pin::new_unchecked(&mut *pointer) }.getMask();
    // SAFETY: as above.
    let attention = unsafe { pointer.as_ref() }.ok_or_else(missing)?;
    view.inputs.extend([tensor_name(mask), tensor_name(attention.getKeyValueLengths())]);
    view.attributes.extend([
        (
            "NormalizationOperation",
            named(trtx_sys::AttentionNormalizationOp::from(attention.getNormalizationOperation())),
        ),
        ("CausalKind", named(trtx_sys::CausalMaskKind::from(attention.getCausalKind()))),
        ("Decomposable", attention.getDecomposable().to_string()),
        ("QueryLengths", format!("{:?}", tensor_name(attention.getQueryLengths()))),
    ]);
    Ok(())
}

fn named(value: impl Debug) -> String {
    format!("{value:?}")
}

/// A C string of TensorRT's, copied.
fn text(pointer: *const std::ffi::c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: TensorRT's getters return C strings of the object, which is borrowed by the caller.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

fn tensor(pointer: *mut nvinfer1::ITensor) -> Option<TensorView> {
    // SAFETY: TensorRT returns a tensor of the network that the caller borrows, or null.
    let tensor = unsafe { pointer.as_ref() }?;
    Some(TensorView {
        name: text(tensor.getName()),
        dtype: named(trtx_sys::DataType::from(tensor.getType())),
        dims: dims(&tensor.getDimensions()),
    })
}

fn tensor_name(pointer: *mut nvinfer1::ITensor) -> Option<String> {
    tensor(pointer).map(|tensor| tensor.name)
}

/// The dimensions; none if there are fewer than 0, which stands for unset or invalid.
fn dims(dims: &Dims64) -> Vec<i64> {
    usize::try_from(dims.nbDims)
        .ok()
        .and_then(|rank| dims.d.get(..rank))
        .map(<[i64]>::to_vec)
        .unwrap_or_default()
}

fn dims_text(value: &Dims64) -> String {
    if value.nbDims < 0 { "unset".to_owned() } else { format!("{:?}", dims(value)) }
}

/// The first axes of a permutation; the rest has no meaning.
fn order_text(permutation: &nvinfer1::Permutation, rank: usize) -> String {
    format!("{:?}", permutation.order.get(..rank).unwrap_or_default())
}

fn axes_text(bits: u32) -> String {
    let axes: Vec<_> = (0..u32::BITS).filter(|axis| bits & (1 << axis) != 0).collect();
    format!("{axes:?}")
}
