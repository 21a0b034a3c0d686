//! The device refuses what TensorRT would: a test of it that could not fail would prove nothing.

use std::rc::Rc;

use roundhouse_engine::CacheKind;
use roundhouse_tensorrt_converters::convert;
use roundhouse_tensorrt_interpreter::{Interpreter, Rounding};
use roundhouse_tensorrt_runtime::DeviceError;
use roundhouse_tensorrt_runtime::device::{Device as _, Execution as _, Machine as _};

use roundhouse_backend_conformance::tiny_models::TinyModel;

use crate::engine::options;
use roundhouse_tensorrt_host_device::HostExecution;
use roundhouse_tensorrt_host_device::{HostDevice, HostMachine, HostMemory};

/// An execution of a tiny Llama with everything bound as it should be, for two rows of three new tokens.
struct Ready {
    execution: HostExecution,
    device: HostDevice,
    inputs: Vec<(String, Rc<HostMemory>)>,
}

const TOKENS: [i64; 2] = [2, 3];

fn ready(kind: CacheKind) -> Ready {
    let tiny = TinyModel::llama();
    let (graph, _) = roundhouse_lowering::lower(tiny.graph().unwrap(), &options(kind)).unwrap();
    let network = convert(&graph, &options(kind)).unwrap().network;
    let weight = |name: &str| {
        let shape = &graph.value(graph.find(name)?).shape;
        let elements: i64 = shape.iter().filter_map(roundhouse_graph::Dim::as_constant).product();
        Some(vec![0.5; usize::try_from(elements).unwrap()])
    };
    let interpreter = Interpreter::new(&network, Rounding::Stored, weight).unwrap();
    let machine = HostMachine::default();
    let mut device = machine.open().unwrap();
    let mut execution = HostExecution::new(Rc::new(interpreter), 0, machine.0);
    let rows = if kind == CacheKind::InPlace { TOKENS[0] } else { 1 };
    let mut inputs = Vec::new();
    for &id in network.inputs() {
        let tensor = network.tensor(id);
        if network.is_shape_tensor(&tensor.name) {
            execution
                .set_shape_values(&tensor.name, &[if tensor.name == "start_idx" { 0 } else { 3 }])
                .unwrap();
            continue;
        }
        let mut dims = tensor.dims.clone();
        dims[0] = rows;
        if tensor.name.ends_with("_ids") {
            dims[1] = TOKENS[1];
        }
        execution.set_input_shape(&tensor.name, &dims).unwrap();
        let bytes = usize::try_from(dims.iter().product::<i64>()).unwrap() * tensor.dtype.size();
        let buffer = device.allocate(bytes + 512).unwrap();
        // Of lengths, 3: past and new tokens together.
        let number = i64::from(tensor.name.ends_with("_lengths")) * 3;
        if tensor.dims.len() == 1 {
            device.upload(&buffer, 0, &number.to_le_bytes().repeat(usize::try_from(rows).unwrap())).unwrap();
        }
        execution.bind_input(&tensor.name, &buffer, 0).unwrap();
        inputs.push((tensor.name.clone(), buffer));
    }
    for output in network.outputs() {
        let name = &network.tensor(output.tensor).name;
        let aliased = inputs.iter().find(|(input, _)| output.aliases.as_ref() == Some(input));
        let own = device.allocate(1 << 16).unwrap();
        let buffer = aliased.map_or(&own, |(_, buffer)| buffer);
        execution.bind_output(name, buffer, 0).unwrap();
    }
    Ready { execution, device, inputs }
}

impl Ready {
    fn buffer(&self, name: &str) -> Rc<HostMemory> {
        Rc::clone(&self.inputs.iter().find(|(input, _)| input == name).unwrap().1)
    }
}

fn refused(result: Result<(), DeviceError>, why: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn what_is_bound_as_it_should_be_runs() {
    for &kind in CacheKind::ALL {
        ready(kind).execution.enqueue().unwrap();
    }
}

#[test]
fn addresses_are_aligned() {
    let mut ready = ready(CacheKind::InPlace);
    let buffer = ready.buffer("key_cache_0");
    refused(ready.execution.bind_input("key_cache_0", &buffer, 8), "not aligned");
    refused(ready.execution.bind_output("logits", &buffer, 128), "not aligned");
}

#[test]
fn shapes_and_shape_values_are_within_the_profile() {
    let mut ready = ready(CacheKind::StaticV2);
    refused(ready.execution.set_input_shape("input_ids", &[1, 33]), "outside of profile 0");
    refused(ready.execution.set_input_shape("key_cache_0", &[1, 2, 31, 16]), "outside of profile 0");
    refused(ready.execution.set_shape_values("start_idx", &[32]), "outside of profile 0");
    refused(ready.execution.set_shape_values("input_ids", &[1]), "no shape tensor");
}

#[test]
fn tensors_are_bound_to_memory_that_is_large_enough() {
    let mut ready = ready(CacheKind::None);
    let small = ready.device.allocate(23).unwrap();
    ready.execution.bind_input("input_ids", &small, 0).unwrap();
    refused(ready.execution.enqueue(), "input_ids");
    let names = ["start_idx", "no_such_input"];
    names.iter().for_each(|name| refused(ready.execution.bind_input(name, &small, 0), "no such input"));
}

#[test]
fn an_alias_is_at_its_inputs_address() {
    let mut ready = ready(CacheKind::InPlace);
    let other = ready.device.allocate(1 << 16).unwrap();
    ready.execution.bind_output("key_cache_0_out", &other, 0).unwrap();
    refused(ready.execution.enqueue(), "it is not where \"key_cache_0\" is");
}

#[test]
fn other_outputs_are_not_written_over_inputs() {
    for kind in [CacheKind::StaticV1, CacheKind::StaticV2] {
        let mut ready = ready(kind);
        let buffer = ready.buffer("value_cache_1");
        ready.execution.bind_output("value_cache_1_out", &buffer, 256).unwrap();
        refused(ready.execution.enqueue(), "it is written over \"value_cache_1\"");
    }
}

#[test]
fn nothing_is_written_behind_a_cache() {
    let mut ready = ready(CacheKind::InPlace);
    let indices = ready.buffer("write_indices");
    ready.device.upload(&indices, 8, &30_i64.to_le_bytes()).unwrap();
    refused(ready.execution.enqueue(), "33 tokens in a cache of 32");
}
