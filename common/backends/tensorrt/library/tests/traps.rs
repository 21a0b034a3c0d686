//! What `trtx` leaves to its caller, and this crate does not.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use roundhouse_engine::{ComputeCapabilities, ComputeCapability};
use roundhouse_tensorrt_library::{
    BuildFlags, BuildMonitor, BuildSession, Library, LogSink, Severity, TensorHandle, TensorRtError,
    process_logger, testing, with_log_sink,
};
use roundhouse_tensorrt_network::{DataType, InputRange, Profile};
use trtx::{ActivationType, ElementWiseOperation, MatrixOperation};

fn targets() -> ComputeCapabilities {
    [ComputeCapability::new(8, 6)].into_iter().collect()
}

fn rows(max: i64) -> Profile {
    let range = InputRange::Dimensions { min: vec![1, 4], opt: vec![2, 4], max: vec![max, 4] };
    Profile { inputs: [("x".to_owned(), range)].into() }
}

/// `y = x · w`, with `x` of `[-1, 4]`.
fn defined<'w>(library: &Library, weights: &'w [u8]) -> BuildSession<'w> {
    let mut session = BuildSession::new(library).unwrap();
    let x = session.add_input("x", DataType::Float, &[-1, 4]).unwrap();
    let w = session.add_constant("w", &[4, 4], DataType::Float, weights, Some("w")).unwrap();
    let plain = MatrixOperation::kNONE;
    let y = session.add_matrix_multiply("product", (x, plain), (w, plain)).unwrap();
    session.mark_output(y, "y").unwrap();
    session.set_targets(targets()).unwrap();
    session.add_profile(&rows(8)).unwrap();
    session
}

fn weights() -> Vec<u8> {
    (0..16_u8).flat_map(|value| f32::from(value).to_le_bytes()).collect()
}

fn build(session: BuildSession<'_>) -> Result<Vec<u8>, TensorRtError> {
    let mut plan = Vec::new();
    session.build(&mut |piece| {
        plan.extend_from_slice(piece);
        ControlFlow::Continue(())
    })?;
    Ok(plan)
}

fn message(result: Result<impl Sized, TensorRtError>) -> String {
    match result {
        Ok(_) => "no error".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_plan_is_streamed_whole() {
    let weights = weights();
    let plan = build(defined(&testing::library(), &weights)).unwrap();
    assert_eq!(&plan[..4], b"vtrt", "{:02x?}", &plan[..32]);
    let text = String::from_utf8_lossy(&plan);
    assert!(text.contains("accelerators={sm86 }"), "the plan names its target");
}

#[test]
fn constants_of_the_wrong_length_are_errors() {
    let mut session = BuildSession::new(&testing::library()).unwrap();
    let short = vec![0; 15];
    for result in [
        session.add_constant("a", &[2, 2], DataType::Float, &short, None),
        session.add_constant_owned("b", &[2, 2], DataType::Float, vec![0; 17]),
        session.add_constant_owned("c", &[2, -2], DataType::Float, vec![0; 16]),
        session.add_constant_owned("d", &[i64::MAX, 8], DataType::Float, vec![0; 16]),
        session.add_constant_placeholder("e", &[-1], DataType::Float, "e"),
        session.add_constant_owned("f", &[1; 9], DataType::Float, vec![0; 4]),
    ] {
        assert!(matches!(result, Err(TensorRtError::Misuse { .. })), "{result:?}");
    }
    // The session is as good as before.
    session.add_constant_owned("g", &[2, 2], DataType::Float, vec![0; 16]).unwrap();
}

#[test]
fn handles_of_another_session_are_errors() {
    let library = testing::library();
    let mut other = BuildSession::new(&library).unwrap();
    let foreign = other.add_input("x", DataType::Float, &[1]).unwrap();
    let mut session = BuildSession::new(&library).unwrap();
    session.add_input("x", DataType::Float, &[1]).unwrap();
    let result = session.add_activation("a", foreign, ActivationType::kTANH);
    assert!(message(result).contains("another network's"));
}

#[test]
fn ranges_of_inputs_that_do_not_exist_are_errors() {
    let mut session = BuildSession::new(&testing::library()).unwrap();
    let x = session.add_input("x", DataType::Float, &[-1, 4]).unwrap();
    let y = session.add_activation("y", x, ActivationType::kTANH).unwrap();
    session.mark_output(y, "out").unwrap();
    let mut profile = rows(8);
    let range = InputRange::Values { min: vec![0], opt: vec![0], max: vec![1] };
    profile.inputs.insert("start_index".to_owned(), range);
    assert!(message(session.add_profile(&profile)).contains("\"start_index\", which is no input"));
    assert!(message(session.add_profile(&Profile::default())).contains("lacks the dimensions of \"x\""));
    assert!(message(session.add_profile(&rows(1))).contains("1 ≤ 2 ≤ 1"));
    session.add_profile(&rows(8)).unwrap();
}

#[test]
fn a_shape_tensor_needs_values_in_the_profile() {
    let mut session = BuildSession::new(&testing::library()).unwrap();
    let x = session.add_input("x", DataType::Float, &[8]).unwrap();
    let end = session.add_input("end", DataType::Int64, &[1]).unwrap();
    use roundhouse_tensorrt_library::DimsOperand::{Given, Tensor};
    let cut = session.add_slice("cut", x, Given(&[0]), Tensor(end, 1)).unwrap();
    session.mark_output(cut, "y").unwrap();
    assert!(session.is_shape_tensor(end).unwrap() && !session.is_shape_tensor(x).unwrap());
    assert!(message(session.add_profile(&Profile::default())).contains("lacks the values of \"end\""));
}

#[test]
fn what_tensorrt_refuses_comes_in_its_own_words() {
    let mut session = BuildSession::new(&testing::library()).unwrap();
    let a = session.add_input("a", DataType::Half, &[4]).unwrap();
    let b = session.add_input("b", DataType::Float, &[4]).unwrap();
    let sum = session.add_elementwise("sum of two dtypes", [a, b], ElementWiseOperation::kSUM);
    let error = sum.and_then(|sum| session.inferred(sum)).unwrap_err();
    let TensorRtError::Refused { errors, .. } = &error else { panic!("{error:?}") };
    let text = error.to_string();
    assert!(!errors.is_empty() && text.contains("sum of two dtypes"), "{text}");
    assert!(text.contains("Half") && text.contains("Float"), "{text}");
    assert!(!text.contains("cudaError"), "{text}");
}

#[test]
fn targets_that_tensorrt_does_not_build_for_are_errors_that_name_those_it_does() {
    let mut session = BuildSession::new(&testing::library()).unwrap();
    let hopper = ComputeCapability::new(9, 0);
    let text = message(session.set_targets([hopper, ComputeCapability::new(8, 0)].into_iter().collect()));
    assert!(text.contains("sm_90") && text.contains("sm_75, sm_80, sm_86, sm_89, sm_120, sm_121"), "{text}");
    assert!(matches!(session.set_targets(ComputeCapabilities::NONE), Err(TensorRtError::Misuse { .. })));
    session.set_targets(targets()).unwrap();
}

/// Counts steps and does something at one of them.
struct At<F>(usize, Arc<AtomicUsize>, F);

impl<F: Fn() -> ControlFlow<()> + Send + Sync> BuildMonitor for At<F> {
    fn phase_start(&self, _: &str, _: u32) {}
    fn phase_end(&self, _: &str) {}
    fn step(&self, _: &str, _: u32) -> ControlFlow<()> {
        let step = self.1.fetch_add(1, Ordering::Relaxed);
        if step == self.0 { (self.2)() } else { ControlFlow::Continue(()) }
    }
}

#[test]
fn a_panic_in_a_monitor_is_an_error_and_stops_the_build() {
    let (library, weights, steps) = (testing::library(), weights(), Arc::new(AtomicUsize::new(0)));
    let mut session = defined(&library, &weights);
    session.set_monitor(Box::new(At(3, steps.clone(), || panic!("in the monitor")))).unwrap();
    let error = build(session).unwrap_err();
    assert_eq!(error, TensorRtError::Panicked { message: "in the monitor".to_owned() });
    assert_eq!(steps.load(Ordering::Relaxed), 4, "no step after the panic");
    assert!(build(defined(&library, &weights)).is_ok(), "the library works on");
}

#[test]
fn a_panic_in_a_monitor_s_phases_is_an_error() {
    struct Phases;
    impl BuildMonitor for Phases {
        fn phase_start(&self, _: &str, _: u32) {
            panic!("at a start")
        }
        fn phase_end(&self, _: &str) {
            panic!("at an end")
        }
        fn step(&self, _: &str, _: u32) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }
    }
    let weights = weights();
    let mut session = defined(&testing::library(), &weights);
    session.set_monitor(Box::new(Phases)).unwrap();
    assert_eq!(build(session).unwrap_err(), TensorRtError::Panicked { message: "at a start".to_owned() });
}

#[test]
fn a_panic_in_a_sink_is_an_error() {
    let weights = weights();
    let session = defined(&testing::library(), &weights);
    let error = session.build(&mut |_| panic!("in the sink")).unwrap_err();
    assert_eq!(error, TensorRtError::Panicked { message: "in the sink".to_owned() });
}

#[test]
fn a_monitor_or_a_sink_can_cancel() {
    let (library, weights) = (testing::library(), weights());
    let mut session = defined(&library, &weights);
    session.set_monitor(Box::new(At(2, Arc::default(), || ControlFlow::Break(())))).unwrap();
    let mut written = 0;
    let result = session.build(&mut |piece| {
        written += piece.len();
        ControlFlow::Continue(())
    });
    assert_eq!((result, written), (Err(TensorRtError::Cancelled), 0));
    let result = defined(&library, &weights).build(&mut |_| ControlFlow::Break(()));
    assert_eq!(result, Err(TensorRtError::Cancelled));
}

#[test]
fn a_second_monitor_is_an_error() {
    let weights = weights();
    let mut session = defined(&testing::library(), &weights);
    let monitor = || Box::new(At(usize::MAX, Arc::default(), || ControlFlow::Continue(())));
    session.set_monitor(monitor()).unwrap();
    assert!(matches!(session.set_monitor(monitor()), Err(TensorRtError::Misuse { .. })));
    build(session).unwrap();
}

#[test]
fn sessions_can_be_dropped_at_any_point_and_in_any_order() {
    let (library, weights) = (testing::library(), weights());
    let mut sessions: Vec<_> = (0..4).map(|_| defined(&library, &weights)).collect();
    sessions.push(BuildSession::new(&library).unwrap());
    drop(sessions.remove(0));
    sessions.swap(0, 2);
    let last = sessions.pop().unwrap();
    let built = build(sessions.remove(1));
    drop(sessions);
    assert!(built.is_ok());
    drop(last);
    // Parts of two sessions change places only as a whole.
    let (mut a, mut b) = (defined(&library, &weights), BuildSession::new(&library).unwrap());
    std::mem::swap(&mut a, &mut b);
    drop(a);
    assert!(build(b).is_ok());
}

#[test]
fn builds_run_in_parallel() {
    let (library, weights) = (testing::library(), weights());
    let plans = std::thread::scope(|scope| {
        let builds = [(); 3].map(|()| scope.spawn(|| build(defined(&library, &weights)).unwrap().len()));
        builds.map(|build| build.join().unwrap())
    });
    assert!(plans.iter().all(|&bytes| bytes == plans[0] && bytes > 1000), "{plans:?}");
}

/// Lines of a build's log.
#[derive(Default)]
struct Lines(Mutex<Vec<(Severity, String)>>);

impl LogSink for Lines {
    fn line(&self, severity: Severity, message: &str) {
        self.0.lock().push((severity, message.to_owned()));
    }
}

#[test]
fn the_process_has_one_logger_and_builds_have_their_own_lines() {
    let (library, weights) = (testing::library(), weights());
    assert!(std::ptr::eq(process_logger().unwrap(), process_logger().unwrap()));
    let lines = Arc::new(Lines::default());
    let first = defined(&library, &weights);
    with_log_sink(lines.clone(), || build(defined(&library, &weights))).unwrap();
    drop(first);
    let lines = lines.0.lock();
    assert!(lines.iter().any(|(_, line)| line.contains("Total Weights Memory")), "{lines:?}");
    // TensorRT says so when a builder brings another logger than the first one's.
    assert!(!lines.iter().any(|(_, line)| line.contains("logger passed into")), "{lines:?}");
}

#[test]
fn weight_less_plans_are_small_and_name_their_weights() {
    let library = testing::library();
    let sizes = [false, true].map(|separate| {
        let bytes = vec![1; 4 << 20];
        let mut session = BuildSession::new(&library).unwrap();
        let x = session.add_input("x", DataType::Float, &[1, 1024]).unwrap();
        let dims = [1024, 1024];
        let w: TensorHandle = if separate {
            session.add_constant_placeholder("w", &dims, DataType::Float, "model.w").unwrap()
        } else {
            session.add_constant("w", &dims, DataType::Float, &bytes, Some("model.w")).unwrap()
        };
        let plain = MatrixOperation::kNONE;
        let y = session.add_matrix_multiply("y", (x, plain), (w, plain)).unwrap();
        session.mark_output(y, "out").unwrap();
        session.set_targets(targets()).unwrap();
        session.set_flags(BuildFlags { separate_weights: separate, weight_streaming: false });
        let plan = build(session).unwrap();
        assert_eq!(separate, String::from_utf8_lossy(&plan).contains("model.w"));
        plan.len()
    });
    assert!(sizes[0] > sizes[1] + (4 << 20) - (64 << 10), "{sizes:?}");
}

/// TensorRT fails with such a plan, and with every other without weights that the process builds after it.
#[test]
fn weight_less_plans_are_for_one_target() {
    let library = testing::library();
    let mut results = Vec::new();
    for minors in [&[0, 6][..], &[6]] {
        let mut session = BuildSession::new(&library).unwrap();
        let x = session.add_input("x", DataType::Float, &[4]).unwrap();
        let w = session.add_constant_placeholder("w", &[4], DataType::Float, "w").unwrap();
        let y = session.add_elementwise("sum", [x, w], ElementWiseOperation::kSUM).unwrap();
        session.mark_output(y, "y").unwrap();
        let targets = minors.iter().map(|&minor| ComputeCapability::new(8, minor));
        session.set_targets(targets.collect()).unwrap();
        session.set_flags(BuildFlags { separate_weights: true, weight_streaming: false });
        results.push(build(session));
    }
    assert!(matches!(&results[0], Err(TensorRtError::Misuse { what }) if what.contains("sm_80, sm_86")));
    assert!(results[1].is_ok(), "{:?}", results[1].as_ref().err());
}

/// The GPUs that a plan says it is for.
fn accelerators(plan: &[u8]) -> String {
    let text = String::from_utf8_lossy(plan).into_owned();
    let (_, rest) = text.split_once("accelerators={").unwrap();
    rest.split_once('}').unwrap().0.trim().to_owned()
}

fn defined_for<'w>(library: &Library, weights: &'w [u8], target: (u8, u8)) -> BuildSession<'w> {
    let mut session = defined(library, weights);
    session.set_targets([ComputeCapability::new(target.0, target.1)].into_iter().collect()).unwrap();
    session
}

#[test]
fn sessions_for_different_targets_can_exist_at_once() {
    let (library, weights) = (testing::library(), weights());
    let sessions = [(8, 0), (8, 9), (12, 0)].map(|target| defined_for(&library, &weights, target));
    let plans = sessions.map(|session| accelerators(&build(session).unwrap()));
    assert_eq!(plans, ["sm80", "sm89", "sm120"]);
}

#[test]
fn parallel_builds_for_different_targets_keep_them_apart() {
    let (library, weights) = (testing::library(), weights());
    let build_one = |target| build(defined_for(&library, &weights, target)).map(|plan| accelerators(&plan));
    std::thread::scope(|scope| {
        let threads = [((8, 0), "sm80"), ((8, 9), "sm89"), ((12, 0), "sm120")].map(|(target, name)| {
            let build_one = &build_one;
            scope.spawn(move || {
                for _ in 0..8 {
                    assert_eq!(build_one(target), Ok(name.to_owned()));
                }
            })
        });
        for thread in threads {
            thread.join().unwrap();
        }
    });
}
