//! Running a network, layer by layer.

use std::collections::BTreeMap;

use roundhouse_backend_conformance::{Rounding, Tensor};
use roundhouse_tensorrt_network::{Layer, LayerKind, Network};

use crate::inputs::{TensorValues, bind, matches};
use crate::layers::{Operand, compute};
use crate::{InterpreterError, constants, elements};

/// Runs a network. What it does not check is what TensorRT does not: it is one step, without any memory of others.
#[derive(Debug)]
pub struct Interpreter {
    network: Network,
    constants: TensorValues,
    rounding: Rounding,
}

impl Interpreter {
    /// An interpreter of a network with its weights, which it asks for by name: as many elements, row-major, as their
    /// constant has. Weights are rounded to their dtypes. With [`Rounding::Weights`] all else stays fp32; with
    /// [`Rounding::Stored`] inputs, constants and what every layer makes are rounded to their dtypes, as TensorRT stores
    /// them where it fuses nothing.
    ///
    /// # Errors
    /// [`InterpreterError::Network`] when the network does not verify, [`InterpreterError::Weight`].
    pub fn new(
        network: &Network,
        rounding: Rounding,
        weights: impl Fn(&str) -> Option<Vec<f32>>,
    ) -> Result<Self, InterpreterError> {
        network.verify()?;
        let mut values = TensorValues::new();
        for layer in network.layers() {
            if let LayerKind::Constant(constant) = &layer.kind {
                values.insert(layer.output, constants::constant(&layer.name, constant, rounding, &weights)?);
            }
        }
        Ok(Self { network: network.clone(), constants: values, rounding })
    }

    /// The network it runs.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The outputs, by name, of these inputs. Integers and truth values (0 and 1) are [`Data::Int`](crate::Data::Int).
    ///
    /// # Errors
    /// [`InterpreterError::Input`], [`InterpreterError::Profile`] when no profile allows the inputs together, and
    /// [`InterpreterError::Layer`] for what TensorRT refuses or leaves undefined when it runs.
    pub fn run<'n>(
        &self,
        inputs: impl IntoIterator<Item = (&'n str, Tensor)>,
    ) -> Result<BTreeMap<String, Tensor>, InterpreterError> {
        let mut values = bind(&self.network, inputs, self.rounding)?;
        for layer in self.network.layers() {
            if !matches!(layer.kind, LayerKind::Constant(_)) {
                let output = self
                    .layer(layer, &values)
                    .map_err(|what| InterpreterError::Layer { layer: layer.name.clone(), what })?;
                values.insert(layer.output, output);
            }
        }
        self.outputs(&values)
    }

    fn layer(&self, layer: &Layer, values: &TensorValues) -> Result<Tensor, String> {
        let operand = |id| {
            let value =
                self.constants.get(id).or_else(|| values.get(id)).ok_or("an operand is not there yet")?;
            Ok(Operand { declared: self.network.tensor(*id), value })
        };
        let operands = layer.inputs.iter().map(operand).collect::<Result<Vec<_>, String>>()?;
        let mut output = compute(&layer.kind, &operands)?;
        let declared = self.network.tensor(layer.output);
        if !matches(&declared.dims, &output.shape) {
            return Err(format!("it makes {:?}: it must make {:?}", output.shape, declared.dims));
        }
        elements::store(declared.dtype, &mut output.data, self.rounding)?;
        Ok(output)
    }

    fn outputs(&self, values: &TensorValues) -> Result<BTreeMap<String, Tensor>, InterpreterError> {
        let mut outputs = BTreeMap::new();
        for output in self.network.outputs() {
            let name = &self.network.tensor(output.tensor).name;
            let wrong = |what: String| InterpreterError::Output { name: name.clone(), what };
            let find = |id| self.constants.get(id).or_else(|| values.get(id));
            let tensor = find(&output.tensor).ok_or_else(|| wrong("it is not made".to_owned()))?;
            if let Some(aliased) = &output.aliases {
                let is_aliased = |id: &&_| self.network.tensor(**id).name == *aliased;
                let input = self.network.inputs().iter().find(is_aliased).and_then(find);
                if input.is_none_or(|input| input.shape != tensor.shape) {
                    return Err(wrong(format!("shape {:?} in the place of {aliased:?}", tensor.shape)));
                }
            }
            outputs.insert(name.clone(), tensor.clone());
        }
        Ok(outputs)
    }
}
