//! The device.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use roundhouse_cuda_device::{
    Device, DeviceError, Event, Function, Graph, Launch, Module, Properties, Stream,
};
use roundhouse_cuda_kernels::Kernel;
use roundhouse_engine::ComputeCapability;

use crate::allocations::Allocations;
use crate::compile::{Mistake, compile};
use crate::library::CompiledKernel;

const MEMORY_BYTES: u64 = 4 << 30;
/// The stream of steps.
const STEPS: Stream = Stream(0);

/// A device whose memory is the host's and whose kernels run on the processor, each launch at once.
///
/// Its images are lists of [`Kernel`] as JSON, as [`crate::EmulationCompiler`] makes them.
#[derive(Debug)]
pub struct EmulatedDevice {
    properties: Properties,
    folder: PathBuf,
    mistake: Option<Mistake>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    memory: Allocations,
    /// Kernels by name.
    modules: HashMap<u64, HashMap<String, Kernel>>,
    functions: HashMap<u64, (String, Arc<CompiledKernel>)>,
    graphs: HashMap<u64, Arc<[Work]>>,
    /// What is being recorded on a stream.
    recordings: HashMap<Stream, Vec<Work>>,
    next: u64,
    launches: u64,
    lost: Option<DeviceError>,
}

#[derive(Debug, Clone)]
enum Work {
    Launch { function: u64, grid: [u32; 3], threads: u32, shared_bytes: u32, arguments: Vec<u64> },
    Copy { to: u64, from: u64, bytes: usize },
    Fill { address: u64, byte: u8, bytes: usize },
}

impl State {
    fn handle(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Records work, or does it.
    fn enqueue(&mut self, stream: Stream, work: Work) -> Result<(), DeviceError> {
        if let Some(recording) = self.recordings.get_mut(&stream) {
            recording.push(work);
            return Ok(());
        }
        let done = self.run(&work);
        if let Err(error) = &done {
            self.lost = Some(error.clone());
        }
        done
    }

    fn run(&mut self, work: &Work) -> Result<(), DeviceError> {
        if let Some(error) = &self.lost {
            return Err(error.clone());
        }
        match work {
            Work::Launch { function, grid, threads, shared_bytes, arguments } => {
                let (name, kernel) = self.functions.get(function).ok_or_else(|| unknown("function"))?;
                self.launches += 1;
                let backwards = self.launches.is_multiple_of(2);
                let done = kernel.launch(*grid, *threads, *shared_bytes, arguments, backwards);
                done.map_err(|fault| DeviceError::Lost(format!("kernel {name}: {fault}")))?;
                match self.memory.broken_guard() {
                    Some(fault) => Err(DeviceError::Lost(format!("kernel {name}: {fault}"))),
                    None => Ok(()),
                }
            }
            Work::Copy { to, from, bytes } => inside(self.memory.copy_within(*to, *from, *bytes)),
            Work::Fill { address, byte, bytes } => inside(self.memory.fill(*address, *byte, *bytes)),
        }
    }
}

fn unknown(what: &str) -> DeviceError {
    DeviceError::Failed(format!("there is no such {what}"))
}

fn inside(inside: bool) -> Result<(), DeviceError> {
    if inside { Ok(()) } else { Err(DeviceError::Failed("a copy outside of the device's memory".to_owned())) }
}

impl EmulatedDevice {
    /// A device that keeps compiled kernels in a folder.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        let properties = Properties {
            name: "processor".to_owned(),
            compute_capability: ComputeCapability::new(9, 0),
            multiprocessors: 4,
            shared_bytes: 232_448,
        };
        Self { properties, folder, mistake: None, state: Mutex::default() }
    }

    /// The same with a mistake in all its kernels.
    #[must_use]
    pub fn with_mistake(folder: PathBuf, mistake: Mistake) -> Self {
        Self { mistake: Some(mistake), ..Self::new(folder) }
    }
}

impl Device for EmulatedDevice {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory(&self) -> Result<(u64, u64), DeviceError> {
        Ok((MEMORY_BYTES.saturating_sub(self.state.lock().memory.bytes()), MEMORY_BYTES))
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        let mut state = self.state.lock();
        let free = MEMORY_BYTES.saturating_sub(state.memory.bytes());
        let taken = if bytes as u64 <= free { state.memory.allocate(bytes) } else { None };
        taken.ok_or(DeviceError::OutOfMemory { bytes: bytes as u64, free })
    }

    fn free(&self, address: u64) {
        self.state.lock().memory.free(address);
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.allocate(bytes)
    }

    fn free_pinned(&self, address: u64) {
        self.free(address);
    }

    fn stream(&self) -> Stream {
        STEPS
    }

    fn new_stream(&self) -> Result<Stream, DeviceError> {
        Ok(Stream(self.state.lock().handle()))
    }

    fn copy_in(&self, _stream: Stream, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        inside(self.state.lock().memory.copy_in(to, from))
    }

    fn copy_out(&self, _stream: Stream, to: &mut [u8], from: u64) -> Result<(), DeviceError> {
        inside(self.state.lock().memory.copy_out(to, from))
    }

    fn copy_within(&self, stream: Stream, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        self.state.lock().enqueue(stream, Work::Copy { to, from, bytes })
    }

    fn fill(&self, stream: Stream, address: u64, byte: u8, bytes: usize) -> Result<(), DeviceError> {
        self.state.lock().enqueue(stream, Work::Fill { address, byte, bytes })
    }

    fn synchronize(&self, _stream: Stream) -> Result<(), DeviceError> {
        self.state.lock().lost.clone().map_or(Ok(()), Err)
    }

    fn new_event(&self) -> Result<Event, DeviceError> {
        Ok(Event(self.state.lock().handle()))
    }

    fn record(&self, _stream: Stream, _event: Event) -> Result<(), DeviceError> {
        Ok(())
    }

    fn wait(&self, _event: Event) -> Result<(), DeviceError> {
        self.synchronize(STEPS)
    }

    fn free_event(&self, _event: Event) {}

    fn load_module(&self, image: &[u8]) -> Result<Module, DeviceError> {
        let kernels: Vec<Kernel> = serde_json::from_slice(image)
            .map_err(|error| DeviceError::Failed(format!("no image of the emulation: {error}")))?;
        let mut state = self.state.lock();
        let module = state.handle();
        state.modules.insert(module, kernels.into_iter().map(|kernel| (kernel.name(), kernel)).collect());
        Ok(Module(module))
    }

    fn function(&self, module: Module, name: &str) -> Result<Function, DeviceError> {
        let kernel = self.state.lock().modules.get(&module.0).and_then(|module| module.get(name)).cloned();
        let kernel =
            kernel.ok_or_else(|| DeviceError::Failed(format!("the image has no kernel called {name}")))?;
        // Without the lock: it may take a second.
        let compiled = compile(&self.folder, &kernel, self.mistake.as_ref())
            .and_then(|path| CompiledKernel::load(&path));
        let compiled = compiled.map_err(|error| DeviceError::Failed(error.to_string()))?;
        let mut state = self.state.lock();
        let function = state.handle();
        state.functions.insert(function, (name.to_owned(), Arc::new(compiled)));
        Ok(Function(function))
    }

    fn unload_module(&self, module: Module) {
        self.state.lock().modules.remove(&module.0);
    }

    fn launch(&self, stream: Stream, launch: &Launch<'_>) -> Result<(), DeviceError> {
        let Launch { function, grid, block, shared_bytes, arguments, overlaps: _ } = *launch;
        if block[1] != 1 || block[2] != 1 || grid.contains(&0) || shared_bytes > self.properties.shared_bytes
        {
            return Err(DeviceError::Failed(format!("no such launch: {launch:?}")));
        }
        let work = Work::Launch {
            function: function.0,
            grid,
            threads: block[0],
            shared_bytes,
            arguments: arguments.to_vec(),
        };
        self.state.lock().enqueue(stream, work)
    }

    fn begin_graph(&self, stream: Stream) -> Result<(), DeviceError> {
        self.state.lock().recordings.insert(stream, Vec::new());
        Ok(())
    }

    fn end_graph(&self, stream: Stream) -> Result<Graph, DeviceError> {
        let mut state = self.state.lock();
        let recorded = state.recordings.remove(&stream).ok_or_else(|| unknown("recording"))?;
        let graph = state.handle();
        state.graphs.insert(graph, recorded.into());
        Ok(Graph(graph))
    }

    fn launch_graph(&self, stream: Stream, graph: Graph) -> Result<(), DeviceError> {
        let mut state = self.state.lock();
        let works = state.graphs.get(&graph.0).cloned().ok_or_else(|| unknown("graph"))?;
        works.iter().try_for_each(|work| state.enqueue(stream, work.clone()))
    }

    fn free_graph(&self, graph: Graph) {
        self.state.lock().graphs.remove(&graph.0);
    }

    fn raw_stream(&self, _stream: Stream) -> Option<u64> {
        None
    }

    fn make_current(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}
