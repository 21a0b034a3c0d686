use roundhouse_tensorrt_library::testing;

use super::*;

const ADA: ComputeCapability = ComputeCapability::new(8, 9);
const HOPPER: ComputeCapability = ComputeCapability::new(9, 0);

fn facts(capabilities: &[ComputeCapability], device: usize) -> Facts {
    let capabilities = match capabilities {
        [] => Err(NoDevice::NoDevice),
        _ => Ok(capabilities.to_vec()),
    };
    Facts { capabilities, device, flavour: Flavour::Rtx }
}

fn targets(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn hopper_is_refused_by_name_with_what_runs_there() {
    let refusal = facts(&[HOPPER], 0).target(&targets(&["sm_90"])).unwrap_err();
    assert_eq!(refusal, Refusal::UnsupportedGpu { device: 0, found: HOPPER, flavour: Flavour::Rtx });
    let text = refusal.to_string();
    for part in
        ["GPU 0 has compute capability 9.0", "TensorRT for RTX", "8.9", "cpu backend", "tensorrt-enterprise"]
    {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_gpu_that_an_engine_was_not_built_for_is_refused_with_the_target_to_add() {
    let refusal = facts(&[ADA], 0).target(&targets(&["sm_80", "sm_86"])).unwrap_err();
    assert_eq!(refusal, Refusal::OtherTarget { device: 0, found: ADA });
    assert!(refusal.to_string().contains("with sm_89 among its targets"), "{refusal}");
}

#[test]
fn the_device_asked_for_is_the_one_that_is_checked() {
    let two = [HOPPER, ADA];
    assert_eq!(facts(&two, 1).target(&targets(&["sm_89"])), Ok(()));
    assert_eq!(facts(&two, 1).target(&[]), Ok(()), "no target is any GPU");
    assert_eq!(facts(&two, 2).gpu(), Err(Refusal::NoSuchGpu { device: 2, count: 2 }));
    assert_eq!(facts(&[], 0).gpu(), Err(Refusal::NoGpu(NoDevice::NoDevice)));
}

#[test]
fn an_engine_of_another_version_is_refused_with_ours() {
    let own = roundhouse_tensorrt_library::backend_version();
    assert_eq!(check_version(&own), Ok(()));
    let refusal = check_version("0.0.1").unwrap_err();
    assert!(refusal.to_string().contains(&own), "{refusal}");
}

/// Runs on machines with and without a GPU.
#[test]
fn this_machine_runs_an_engine_or_says_what_it_needs() {
    let config = CudaConfig { library: testing::library_search(), ..CudaConfig::default() };
    let all = ComputeCapability::ALL.iter().map(ToString::to_string).collect::<Vec<_>>();
    let supported = Cuda::new(config.clone()).supports(&all, &roundhouse_tensorrt_library::backend_version());
    match (supported, device::compute_capabilities()) {
        (Err(Refusal::NoGpu(found)), Err(expected)) => assert_eq!(found, expected),
        (Err(Refusal::UnsupportedGpu { found, .. }), Ok(capabilities)) => assert_eq!(found, capabilities[0]),
        (Ok(()), Ok(_)) => {}
        (supported, capabilities) => panic!("{supported:?} with {capabilities:?}"),
    }
    match (Cuda::new(config).open(), device::compute_capabilities()) {
        (Err(error), Err(missing)) => {
            let text = error.to_string();
            assert!(
                text.starts_with("this machine needs an NVIDIA GPU") && text.contains(&missing.to_string()),
                "{text}"
            );
        }
        (opened, capabilities) => {
            assert_eq!(opened.is_ok(), Flavour::COMPILED.supported().contains(capabilities.unwrap()[0]));
        }
    }
}

#[test]
fn doctor_tells_of_driver_and_library_whatever_is_missing() {
    let config = CudaConfig { library: testing::library_search(), ..CudaConfig::default() };
    let checks = doctor(&config);
    let outcome = |name: &str| checks.iter().find(|check| check.name == name).map(|check| &check.outcome);
    let driver = outcome("NVIDIA driver and GPUs").unwrap();
    assert_eq!(driver.is_ok(), device::compute_capabilities().is_ok(), "{driver:?}");
    let library = outcome("TensorRT").unwrap().as_ref().unwrap();
    assert!(library.contains(&Library::version().to_string()), "{library}");

    let nowhere = LibrarySearch { path: Some("/nowhere/libtensorrt_rtx.so.1".into()), folders: Vec::new() };
    let checks = doctor(&CudaConfig { library: nowhere, ..CudaConfig::default() });
    let missing = checks.iter().find(|check| check.name == "TensorRT").unwrap().outcome.as_ref().unwrap_err();
    assert!(missing.contains("/nowhere/libtensorrt_rtx.so.1"), "{missing}");
}
