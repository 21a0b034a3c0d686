//! The network itself.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::stored::Stored;
use crate::{DataType, LayerKind, NetworkError, Profile, infer};

/// Dimensions, outermost first; [`DYNAMIC`] where they are known only when the engine runs.
pub type Dims = Vec<i64>;

/// A dimension that is known only when the engine runs.
pub const DYNAMIC: i64 = -1;

/// Which tensor of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TensorId(pub u32);

/// An `ITensor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Unique in the network.
    pub name: String,
    /// Its element type.
    pub dtype: DataType,
    /// Its dimensions.
    pub dims: Dims,
}

/// A layer with its operands. Every layer here has one output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// Unique in the network; the name of its output tensor, too, unless that is renamed as a network output.
    pub name: String,
    /// What it computes.
    #[serde(flatten)]
    pub kind: LayerKind,
    /// Its operands, in TensorRT's order.
    pub inputs: Vec<TensorId>,
    /// What it makes.
    pub output: TensorId,
}

/// An output of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The tensor.
    pub tensor: TensorId,
    /// The input that it must share its memory with: the cache that it is, changed in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aliases: Option<String>,
}

/// An `INetworkDefinition` and the optimization profiles that go with it. Layers are in an order in which they can run.
///
/// Read from JSON with [`Network::from_json`], or by any other way of `serde`, it is built again layer by layer: what
/// does not fit is refused, as it would have been when it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub struct Network {
    /// For messages, e.g. the model ID.
    pub name: String,
    /// The optimization profiles, in order.
    pub profiles: Vec<Profile>,
    tensors: Vec<Tensor>,
    layers: Vec<Layer>,
    inputs: Vec<TensorId>,
    outputs: Vec<Output>,
    #[serde(skip)]
    names: HashSet<String>,
}

impl Network {
    /// An empty network.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            profiles: Vec::new(),
            tensors: Vec::new(),
            layers: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            names: HashSet::new(),
        }
    }

    /// A new input, last in order. A 0-d or 1-d Int64 input whose profile gives values is a shape tensor.
    ///
    /// # Errors
    /// [`NetworkError::Duplicate`], [`NetworkError::Input`].
    pub fn add_input(
        &mut self,
        name: impl Into<String>,
        dtype: DataType,
        dims: &[i64],
    ) -> Result<TensorId, NetworkError> {
        let name = name.into();
        infer::check_dims(dims).map_err(|what| NetworkError::Input { input: name.clone(), what })?;
        let id = self.add_tensor(name, dtype, dims.to_vec())?;
        self.inputs.push(id);
        Ok(id)
    }

    /// A new layer, last in order; the dtype and dimensions of its output are inferred.
    ///
    /// # Errors
    /// [`NetworkError::Layer`] when the operands or attributes do not fit, [`NetworkError::Duplicate`],
    /// [`NetworkError::NoSuchTensor`].
    pub fn add_layer(
        &mut self,
        name: impl Into<String>,
        kind: LayerKind,
        inputs: &[TensorId],
    ) -> Result<TensorId, NetworkError> {
        let name = name.into();
        let operands = inputs.iter().map(|&id| self.get(id)).collect::<Result<Vec<&Tensor>, _>>()?;
        let (dtype, dims) = infer::infer(&kind, &operands)
            .map_err(|what| NetworkError::Layer { layer: name.clone(), what })?;
        let output = self.add_tensor(name.clone(), dtype, dims)?;
        self.layers.push(Layer { name, kind, inputs: inputs.to_vec(), output });
        Ok(output)
    }

    /// Makes the output of a layer an output of the network, last in order, under this name. What it `aliases` is the
    /// name of an input with its dtype and dimensions.
    ///
    /// # Errors
    /// [`NetworkError::Duplicate`], [`NetworkError::NoSuchTensor`], [`NetworkError::Output`].
    pub fn mark_output(
        &mut self,
        tensor: TensorId,
        name: impl Into<String>,
        aliases: Option<String>,
    ) -> Result<(), NetworkError> {
        let name = name.into();
        let found = self.get(tensor)?;
        let misfit = |what: String| Err(NetworkError::Output { output: name.clone(), what });
        if self.inputs.contains(&tensor) {
            return misfit(format!("{:?} is an input: it has no layer", found.name));
        }
        if self.outputs.iter().any(|output| output.tensor == tensor) {
            return misfit(format!("{:?} is an output already", found.name));
        }
        if let Some(aliased) = &aliases {
            let Some(input) = self.input(aliased) else {
                return misfit(format!("it aliases {aliased:?}, which is no input"));
            };
            if (input.dtype, &input.dims) != (found.dtype, &found.dims) {
                return misfit(format!(
                    "{} {:?} aliases {aliased:?}, which is {} {:?}",
                    found.dtype, found.dims, input.dtype, input.dims
                ));
            }
        }
        if !self.names.insert(name.clone()) {
            return Err(NetworkError::Duplicate(name));
        }
        if let Some(tensor) = self.tensors.get_mut(tensor.0 as usize) {
            tensor.name = name;
        }
        self.outputs.push(Output { tensor, aliases });
        Ok(())
    }

    /// The input of this name.
    #[must_use]
    pub fn input(&self, name: &str) -> Option<&Tensor> {
        self.inputs.iter().map(|&id| self.tensor(id)).find(|input| input.name == name)
    }

    fn get(&self, id: TensorId) -> Result<&Tensor, NetworkError> {
        self.tensors.get(id.0 as usize).ok_or(NetworkError::NoSuchTensor(id))
    }

    fn add_tensor(&mut self, name: String, dtype: DataType, dims: Dims) -> Result<TensorId, NetworkError> {
        if !self.names.insert(name.clone()) {
            return Err(NetworkError::Duplicate(name));
        }
        let id = TensorId(u32::try_from(self.tensors.len()).unwrap_or(u32::MAX));
        self.tensors.push(Tensor { name, dtype, dims });
        Ok(id)
    }

    /// The tensor of this ID.
    ///
    /// # Panics
    /// If the ID is another network's.
    #[must_use]
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.0 as usize]
    }

    /// All tensors.
    pub fn tensors(&self) -> impl Iterator<Item = (TensorId, &Tensor)> {
        (0..).map(TensorId).zip(&self.tensors)
    }

    /// All layers in order.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The inputs in order.
    #[must_use]
    pub fn inputs(&self) -> &[TensorId] {
        &self.inputs
    }

    /// The outputs in order.
    #[must_use]
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// The names of the graph's weights that it reads, in order of first use.
    pub fn weights(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().filter_map(|layer| match &layer.kind {
            LayerKind::Constant(constant) => constant.weight(),
            _ => None,
        })
    }
}
