//! Networks as JSON.

use serde::Deserialize;

use crate::{Layer, Network, NetworkError, Output, Profile, Tensor, TensorId};

/// A network as it was read, of which nothing is known yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stored {
    name: String,
    profiles: Vec<Profile>,
    tensors: Vec<Tensor>,
    layers: Vec<Layer>,
    inputs: Vec<TensorId>,
    outputs: Vec<Output>,
}

impl Network {
    /// The network as JSON.
    ///
    /// # Errors
    /// [`NetworkError::Json`].
    pub fn to_json(&self) -> Result<Vec<u8>, NetworkError> {
        serde_json::to_vec(self).map_err(|error| NetworkError::Json(error.to_string()))
    }

    /// The network that [`Network::to_json`] wrote. The bytes may come from anywhere: a network is built again from
    /// them, and its inferred dtypes and dimensions are compared with those stored.
    ///
    /// # Errors
    /// [`NetworkError::Json`] for what is no network, [`NetworkError::Stored`] for one that does not hang together, and
    /// those of [`Network::add_input`], [`Network::add_layer`], [`Network::mark_output`] and
    /// [`Network::verify`].
    pub fn from_json(json: &[u8]) -> Result<Self, NetworkError> {
        let stored: Stored =
            serde_json::from_slice(json).map_err(|error| NetworkError::Json(error.to_string()))?;
        stored.try_into()
    }
}

impl TryFrom<Stored> for Network {
    type Error = NetworkError;

    fn try_from(stored: Stored) -> Result<Self, NetworkError> {
        let mut network = Self::new(stored.name);
        let mut inputs = stored.inputs.into_iter().peekable();
        let mut layers = stored.layers.into_iter().peekable();
        // Every tensor is the next input or what the next layer makes; operands that come later do not exist yet.
        for (id, tensor) in (0..).map(TensorId).zip(&stored.tensors) {
            let made = if inputs.next_if_eq(&id).is_some() {
                network.add_input(tensor.name.clone(), tensor.dtype, &tensor.dims)?
            } else if let Some(Layer { name, kind, inputs, .. }) = layers.next_if(|layer| layer.output == id)
            {
                network.add_layer(name, kind, &inputs)?
            } else {
                return Err(NetworkError::Stored(format!(
                    "tensor {:?} is of no input and no layer in order",
                    tensor.name
                )));
            };
            let found = network.tensor(made);
            if (found.dtype, &found.dims) != (tensor.dtype, &tensor.dims) {
                return Err(NetworkError::Stored(format!(
                    "tensor {:?} is stored as {} {:?} and inferred as {} {:?}",
                    tensor.name, tensor.dtype, tensor.dims, found.dtype, found.dims
                )));
            }
        }
        if let Some(layer) = layers.next() {
            return Err(NetworkError::Stored(format!("layer {:?} makes no tensor in order", layer.name)));
        }
        if let Some(id) = inputs.next() {
            return Err(NetworkError::Stored(format!("input {} is no tensor in order", id.0)));
        }
        for Output { tensor, aliases } in stored.outputs {
            let named = stored.tensors.get(tensor.0 as usize).ok_or(NetworkError::NoSuchTensor(tensor))?;
            network.mark_output(tensor, named.name.clone(), aliases)?;
        }
        for ((_, found), tensor) in network.tensors().zip(&stored.tensors) {
            if found.name != tensor.name {
                return Err(NetworkError::Stored(format!(
                    "tensor {:?} is named {:?}",
                    found.name, tensor.name
                )));
            }
        }
        network.profiles = stored.profiles;
        network.verify()?;
        Ok(network)
    }
}
