use roundhouse_tensorrt_library::testing;

use super::*;

fn io(dims: &[i64]) -> IoTensor {
    IoTensor { dtype: DataType::Half, dims: dims.to_vec(), is_input: true, on_host: false, aliases: None }
}

#[test]
fn a_dimension_that_only_one_side_knows_fits() {
    assert!(fits(&io(&[-1, 2]), &io(&[-1, 2])));
    assert!(fits(&io(&[1, 2]), &io(&[-1, 2])) && fits(&io(&[-1, 2]), &io(&[1, 2])));
    assert!(!fits(&io(&[1, 2]), &io(&[3, 2])));
    assert!(!fits(&io(&[-1]), &io(&[-1, 2])));
    assert!(!fits(&IoTensor { on_host: true, ..io(&[2]) }, &io(&[2])));
    assert!(!fits(&IoTensor { aliases: Some("key_cache_0".to_owned()), ..io(&[2]) }, &io(&[2])));
    assert!(!fits(&IoTensor { dtype: DataType::Bf16, ..io(&[2]) }, &io(&[2])));
}

/// A network of one cache that is updated in place.
fn network() -> Network {
    use roundhouse_tensorrt_network::LayerKind;

    let mut network = Network::new("cache");
    let cache = network.add_input("key_cache_0", DataType::Half, &[-1, 2, 8, 4]).unwrap();
    let update = network.add_input("update", DataType::Half, &[-1, 2, -1, 4]).unwrap();
    let indices = network.add_input("write_indices", DataType::Int32, &[-1]).unwrap();
    let written = network.add_layer("write", LayerKind::KvCacheUpdate, &[cache, update, indices]).unwrap();
    network.mark_output(written, "key_cache_0_out", Some("key_cache_0".to_owned())).unwrap();
    network
}

fn plan() -> IoTensors {
    let output = IoTensor { is_input: false, aliases: Some("key_cache_0".to_owned()), ..io(&[-1, 2, 8, 4]) };
    let indices = IoTensor { dtype: DataType::Int32, ..io(&[-1]) };
    let tensors = [
        ("key_cache_0", io(&[-1, 2, 8, 4])),
        ("update", io(&[-1, 2, -1, 4])),
        ("write_indices", indices),
        ("key_cache_0_out", output),
    ];
    tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}

#[test]
fn a_plan_is_checked_against_its_network() {
    let network = network();
    assert!(check_io(&plan(), &network).is_ok());

    let mut without_unread = plan();
    without_unread.remove("update");
    assert!(check_io(&without_unread, &network).is_ok(), "an input that nothing reads may be missing");

    let mut without_output = plan();
    without_output.remove("key_cache_0_out");
    let mut with_other = plan();
    with_other.insert("logits".to_owned(), io(&[-1]));
    let mut without_alias = plan();
    without_alias.get_mut("key_cache_0_out").unwrap().aliases = None;
    for (broken, tensor) in
        [(without_output, "key_cache_0_out"), (with_other, "logits"), (without_alias, "key_cache_0_out")]
    {
        let error = check_io(&broken, &network).unwrap_err().to_string();
        assert!(error.contains(tensor), "{error}");
    }
}

/// What TensorRT for RTX says where there is no GPU either; the other flavour cannot be asked without one.
#[test]
#[cfg(not(feature = "enterprise"))]
fn a_broken_plan_is_refused_in_the_words_of_tensorrt() {
    let _library = testing::library();
    let mut runtime = said("createInferRuntime", || Runtime::new(process_logger().unwrap())).unwrap();
    let error = said("getEngineValidity", || flavour::check_plan(&runtime, b"short")).unwrap_err();
    assert!(error.to_string().contains("the plan has 5 bytes"), "{error}");
    let error = said("getEngineValidity", || flavour::check_plan(&runtime, &[7; 4096])).unwrap_err();
    assert!(error.to_string().starts_with("getEngineValidity: "), "{error}");
    let error = said("deserializeCudaEngine", || runtime.deserialize_cuda_engine(&[7; 4096])).unwrap_err();
    let DeviceError::TensorRt { call, what } = error else { panic!("{error:?}") };
    assert_eq!(call, "deserializeCudaEngine");
    // The binding itself says no more than that it failed.
    assert!(!what.is_empty() && what != "Runtime error: Failed to deserialize engine", "{what}");
}
