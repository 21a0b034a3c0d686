//! What can be checked only when a network is complete.

use crate::{Layer, LayerKind, Network, NetworkError, TensorId};

impl Network {
    /// Checks the profiles, and that every cache is an input that one layer changes in place: what is read of it by
    /// another layer could be of before or after. No other layer has an output that aliases an input.
    ///
    /// # Errors
    /// [`NetworkError::Profile`], [`NetworkError::Cache`], [`NetworkError::Output`].
    pub fn verify(&self) -> Result<(), NetworkError> {
        self.check_profiles()?;
        for output in self.outputs() {
            let updates = |layer: &Layer| {
                layer.output == output.tensor && matches!(layer.kind, LayerKind::KvCacheUpdate)
            };
            if let Some(aliased) = &output.aliases
                && !self.layers().iter().any(updates)
            {
                let what = format!("it aliases {aliased:?} and comes of no cache update");
                return Err(NetworkError::Output { output: self.tensor(output.tensor).name.clone(), what });
            }
        }
        let updates = self.layers().iter().filter(|layer| matches!(layer.kind, LayerKind::KvCacheUpdate));
        for layer in updates {
            if let &[cache, ..] = layer.inputs.as_slice() {
                self.check_cache(layer, cache)
                    .map_err(|what| NetworkError::Cache { layer: layer.name.clone(), what })?;
            }
        }
        Ok(())
    }

    fn check_cache(&self, layer: &Layer, cache: TensorId) -> Result<(), String> {
        let name = &self.tensor(cache).name;
        if !self.inputs().contains(&cache) {
            return Err(format!("the cache {name:?} is no input of the network"));
        }
        let output = self.outputs().iter().find(|output| output.tensor == layer.output);
        let Some(output) = output else {
            return Err("it is no output of the network".to_owned());
        };
        if output.aliases.as_ref() != Some(name) {
            return Err(format!("it aliases {:?}: it must alias the cache {name:?}", output.aliases));
        }
        let reads = |other: &&Layer| other.name != layer.name && other.inputs.contains(&cache);
        if let Some(other) = self.layers().iter().find(reads) {
            return Err(format!("the cache {name:?} is read by {:?} too", other.name));
        }
        if layer.inputs.iter().filter(|&&input| input == cache).count() > 1 {
            return Err(format!("the cache {name:?} is its update"));
        }
        Ok(())
    }
}
