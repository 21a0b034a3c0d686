//! An execution, with TensorRT's rules.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use roundhouse_tensorrt_interpreter::{Interpreter, Tensor};
use roundhouse_tensorrt_network::{DYNAMIC, InputRange, Network, Tensor as Declared};
use roundhouse_tensorrt_runtime::DeviceError;
use roundhouse_tensorrt_runtime::device::{ALIGNMENT, Execution};

use crate::bytes::{decode, encode};
use crate::device::{HostMemory, HostState};

/// A context: bindings and shapes of the runs to come.
pub struct HostExecution {
    interpreter: Rc<Interpreter>,
    profile: usize,
    dims: BTreeMap<String, Vec<i64>>,
    values: BTreeMap<String, Vec<i64>>,
    bound: BTreeMap<String, (Rc<HostMemory>, usize)>,
    state: Arc<HostState>,
}

fn refuse<T>(tensor: &str, what: impl Into<String>) -> Result<T, DeviceError> {
    Err(DeviceError::Tensor { tensor: tensor.to_owned(), what: what.into() })
}

/// Whether numbers are within a range, element by element.
fn inside(found: &[i64], min: &[i64], max: &[i64]) -> bool {
    found.len() == min.len()
        && found.iter().zip(min.iter().zip(max)).all(|(at, (min, max))| (min..=max).contains(&at))
}

impl HostExecution {
    /// A context of one of the network's profiles.
    #[must_use]
    pub fn new(interpreter: Rc<Interpreter>, profile: usize, state: Arc<HostState>) -> Self {
        assert!(profile < interpreter.network().profiles.len(), "there is no profile {profile}");
        let [dims, values] = [BTreeMap::new(), BTreeMap::new()];
        Self { interpreter, profile, dims, values, bound: BTreeMap::new(), state }
    }

    fn network(&self) -> &Network {
        self.interpreter.network()
    }

    fn output(&self, name: &str) -> Option<&Declared> {
        let outputs = self.network().outputs().iter().map(|output| self.network().tensor(output.tensor));
        outputs.into_iter().find(|tensor| tensor.name == name)
    }

    fn bind(&mut self, name: &str, buffer: &Rc<HostMemory>, offset: usize) -> Result<(), DeviceError> {
        if !(buffer.address + offset as u64).is_multiple_of(ALIGNMENT as u64) {
            return refuse(name, format!("byte {offset} is not aligned"));
        }
        self.bound.insert(name.to_owned(), (Rc::clone(buffer), offset));
        Ok(())
    }

    /// The bytes of a tensor in the buffer that it is bound to, which has room for them.
    fn range(&self, tensor: &Declared, dims: &[i64]) -> Result<(Rc<HostMemory>, Range<usize>), DeviceError> {
        let Some((buffer, offset)) = self.bound.get(&tensor.name) else {
            return refuse(&tensor.name, "it is not bound");
        };
        let elements: i64 = dims.iter().product();
        let range = *offset..*offset + usize::try_from(elements).unwrap() * tensor.dtype.size();
        if range.end > buffer.bytes.borrow().len() {
            return refuse(&tensor.name, format!("{range:?} of {} bytes", buffer.bytes.borrow().len()));
        }
        Ok((Rc::clone(buffer), range))
    }

    /// The addresses of a tensor.
    fn addresses(&self, tensor: &Declared, dims: &[i64]) -> Result<Range<u64>, DeviceError> {
        let (buffer, range) = self.range(tensor, dims)?;
        Ok(buffer.address + range.start as u64..buffer.address + range.end as u64)
    }

    fn input_dims(&self, tensor: &Declared) -> Result<Vec<i64>, DeviceError> {
        if !tensor.dims.contains(&DYNAMIC) {
            return Ok(tensor.dims.clone());
        }
        self.dims
            .get(&tensor.name)
            .cloned()
            .map_or_else(|| refuse(&tensor.name, "its dimensions are not set"), Ok)
    }

    /// The inputs, read where they are bound.
    fn inputs(&self) -> Result<BTreeMap<String, Tensor>, DeviceError> {
        let mut inputs = BTreeMap::new();
        for &id in self.network().inputs() {
            let declared = self.network().tensor(id);
            let tensor = if self.network().is_shape_tensor(&declared.name) {
                let Some(values) = self.values.get(&declared.name) else {
                    return refuse(&declared.name, "its values are not set");
                };
                Tensor::int(&[], values.clone())
            } else {
                let dims = self.input_dims(declared)?;
                let (buffer, range) = self.range(declared, &dims)?;
                let dims: Vec<usize> = dims.iter().map(|&dim| usize::try_from(dim).unwrap()).collect();
                decode(declared.dtype, &dims, &buffer.bytes.borrow()[range])
            };
            inputs.insert(declared.name.clone(), tensor);
        }
        Ok(inputs)
    }

    /// Nothing is written behind the end of a cache.
    fn check_writes(&self, inputs: &BTreeMap<String, Tensor>) -> Result<(), DeviceError> {
        let (Some(indices), Some(ids)) = (inputs.get("write_indices"), inputs.get("input_ids")) else {
            return Ok(());
        };
        let length = inputs.get("key_cache_0").map_or(0, |cache| cache.shape[2]);
        let last = indices.ints().iter().map(|&index| usize::try_from(index).unwrap() + ids.shape[1]).max();
        match last {
            Some(last) if last > length => {
                refuse("write_indices", format!("{last} tokens in a cache of {length}"))
            }
            _ => Ok(()),
        }
    }

    /// Writes the outputs where they are bound.
    fn write(&self, made: &BTreeMap<String, Tensor>) -> Result<(), DeviceError> {
        let as_dims = |tensor: &Tensor| tensor.shape.iter().map(|&dim| dim as i64).collect::<Vec<_>>();
        for output in self.network().outputs() {
            let declared = self.network().tensor(output.tensor);
            let dims = as_dims(&made[&declared.name]);
            let own = self.addresses(declared, &dims)?;
            for &id in self.network().inputs() {
                let input = self.network().tensor(id);
                if self.network().is_shape_tensor(&input.name) {
                    continue;
                }
                let other = self.addresses(input, &self.input_dims(input)?)?;
                let aliased = output.aliases.as_deref() == Some(input.name.as_str());
                if aliased && own != other {
                    return refuse(&declared.name, format!("it is not where {:?} is", input.name));
                }
                if !aliased && own.start < other.end && other.start < own.end {
                    return refuse(&declared.name, format!("it is written over {:?}", input.name));
                }
            }
        }
        for output in self.network().outputs() {
            let declared = self.network().tensor(output.tensor);
            let tensor = &made[&declared.name];
            let (buffer, range) = self.range(declared, &as_dims(tensor))?;
            buffer.bytes.borrow_mut()[range].copy_from_slice(&encode(declared.dtype, tensor));
        }
        Ok(())
    }
}

impl Drop for HostExecution {
    fn drop(&mut self) {
        self.state.dropped.lock().push("execution");
    }
}

impl Execution for HostExecution {
    type Buffer = Rc<HostMemory>;

    fn set_input_shape(&mut self, input: &str, dims: &[i64]) -> Result<(), DeviceError> {
        let Some(declared) = self.network().input(input) else {
            return refuse(input, "there is no such input");
        };
        let fits = declared.dims.len() == dims.len()
            && declared.dims.iter().zip(dims).all(|(declared, dim)| *declared == DYNAMIC || declared == dim);
        let allowed = match self.network().profiles[self.profile].inputs.get(input) {
            Some(InputRange::Dimensions { min, max, .. }) => inside(dims, min, max),
            _ => true,
        };
        if !fits || !allowed {
            return refuse(input, format!("{dims:?} is outside of profile {}", self.profile));
        }
        self.dims.insert(input.to_owned(), dims.to_vec());
        Ok(())
    }

    fn set_shape_values(&mut self, input: &str, values: &[i64]) -> Result<(), DeviceError> {
        let allowed = match self.network().profiles[self.profile].inputs.get(input) {
            Some(InputRange::Values { min, max, .. }) => inside(values, min, max),
            _ => return refuse(input, "it is no shape tensor"),
        };
        if !allowed {
            return refuse(input, format!("{values:?} is outside of profile {}", self.profile));
        }
        self.values.insert(input.to_owned(), values.to_vec());
        Ok(())
    }

    fn bind_input(&mut self, input: &str, buffer: &Rc<HostMemory>, offset: usize) -> Result<(), DeviceError> {
        if self.network().input(input).is_none() || self.network().is_shape_tensor(input) {
            return refuse(input, "there is no such input on the device");
        }
        self.bind(input, buffer, offset)
    }

    fn bind_output(
        &mut self,
        output: &str,
        buffer: &Rc<HostMemory>,
        offset: usize,
    ) -> Result<(), DeviceError> {
        if self.output(output).is_none() {
            return refuse(output, "there is no such output");
        }
        self.bind(output, buffer, offset)
    }

    fn enqueue(&mut self) -> Result<(), DeviceError> {
        let inputs = self.inputs()?;
        self.check_writes(&inputs)?;
        let run = self.state.enqueued.fetch_add(1, Ordering::SeqCst);
        self.state.rows.fetch_add(inputs["input_ids"].shape[0], Ordering::SeqCst);
        if run == self.state.fails_at.load(Ordering::SeqCst) {
            assert!(!self.state.panics.load(Ordering::SeqCst), "asked to panic");
            return Err(DeviceError::Driver { call: "enqueue".to_owned(), what: "asked to fail".to_owned() });
        }
        let made = self.interpreter.run(inputs.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())));
        self.write(&made.map_err(|error| DeviceError::Engine(error.to_string()))?)
    }
}
