//! A plan on a device.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use roundhouse_backend::BackendError;
use roundhouse_cuda_device::{
    Device, DeviceError, Function, Graph, Launch, Memory, Module, OwnedEvent, Pinned, Stream,
};
use roundhouse_cuda_plan::{
    Argument, Attended, Greedy, Ids, LaunchContext, Plan, PlannedLaunch, Rows, StepShape, counter_bytes,
    greedy_launches, launches, scratch_bytes,
};
use roundhouse_engine::{CacheKind, ComputeCapability};
use roundhouse_graph::DType;
use roundhouse_weights::MappedWeights;

use crate::error;
use crate::step::{BlockLayout, Part, shape, write_block};
use crate::weights::DeviceWeights;

/// The largest batch of decode steps whose launches are recorded.
const LARGEST_RECORDED: usize = 64;

/// The most steps of [`Executor::greedy`].
pub(crate) const MOST_TURNS: usize = 16;

/// Steps of [`Executor::greedy`] that are enqueued at a time: one that runs while the host sees to the one before.
const TURNS_AHEAD: usize = 2;

/// Where weights begin that are not copied from the file.
const CONSTANT_ALIGNMENT: usize = 256;

/// A launch with its arguments as the device takes them.
struct Ready {
    function: Function,
    grid: [u32; 3],
    block: u32,
    shared_bytes: u32,
    arguments: Vec<u64>,
}

/// A plan on a device.
pub(crate) struct Executor {
    device: Arc<dyn Device>,
    stream: Stream,
    plan: Plan,
    context: LaunchContext,
    module: Module,
    /// By the kernel's name.
    functions: HashMap<String, Function>,
    weights: DeviceWeights,
    constants: Vec<u64>,
    _constant_memory: Memory,
    slots: Vec<Memory>,
    scratch: Memory,
    counters: Memory,
    block: Memory,
    block_host: Pinned,
    logits_host: Pinned,
    /// By the number of rows and whether they find the next tokens.
    graphs: HashMap<(usize, bool), Graph>,
    greedy: GreedyMemory,
    /// Without a cache: the memory that all sequences share.
    own_cache: Option<Memory>,
    logits_of_all: bool,
}

impl Executor {
    /// Loads the weights and the kernels of `image`.
    pub(crate) fn load(
        device: Arc<dyn Device>,
        plan: Plan,
        image: &[u8],
        weights: &MappedWeights,
        target: ComputeCapability,
    ) -> Result<Self, BackendError> {
        let multiprocessors = device.properties().multiprocessors;
        let context = LaunchContext { multiprocessors, ..LaunchContext::nominal(target) };
        let most = StepShape {
            tokens: plan.limits.tokens,
            selected: plan.limits.rows.max(plan.limits.tokens),
            selects_all: false,
            attended: Attended { single: true, tiles: plan.limits.tokens },
        };
        let block_bytes = BlockLayout::new(most).bytes;
        let logits_of_all = plan.buffer(plan.logits).rows == Rows::Tokens;
        let logits_bytes = plan.limits.rows.max(1) * plan.vocab_size * DType::F32.size();
        let scratch_bytes = usize::try_from(scratch_bytes(&plan, context)?).unwrap_or(usize::MAX);
        let allocate = |bytes: usize| Memory::new(&device, bytes).map_err(|error| error::device(&error));
        let pinned = |bytes: usize| Pinned::new(&device, bytes).map_err(|error| error::device(&error));

        let slots = plan.slot_bytes().into_iter().map(allocate).collect::<Result<Vec<_>, _>>()?;
        let scratch = allocate(scratch_bytes)?;
        let counter_bytes = counter_bytes(context);
        let counters = allocate(counter_bytes)?;
        let zeros = device.fill(device.stream(), counters.address(), 0, counter_bytes);
        zeros.map_err(|error| error::device(&error))?;
        let own_cache = match plan.cache_kind {
            CacheKind::None => Some(allocate(plan.cache.bytes(plan.limits.sequence))?),
            _ => None,
        };
        let greedy = GreedyMemory::new(&device).map_err(|error| error::device(&error))?;
        let (constants, constant_memory) =
            copy_constants(&device, &plan.constants).map_err(|error| error::device(&error))?;
        let (block, block_host, logits_host) =
            (allocate(block_bytes)?, pinned(block_bytes)?, pinned(logits_bytes)?);
        let weights = DeviceWeights::load(&device, &plan, weights)?;
        let module = device.load_module(image).map_err(|error| error::device(&error))?;
        let mut executor = Self {
            stream: device.stream(),
            plan,
            context,
            module,
            functions: HashMap::new(),
            weights,
            constants,
            _constant_memory: constant_memory,
            slots,
            scratch,
            counters,
            block,
            block_host,
            logits_host,
            graphs: HashMap::new(),
            greedy,
            own_cache,
            logits_of_all,
            device,
        };
        executor.look_up(target)?;
        Ok(executor)
    }

    /// Finds every kernel now: what is missing is a broken engine, and a recording must not load any.
    fn look_up(&mut self, target: ComputeCapability) -> Result<(), BackendError> {
        for kernel in roundhouse_cuda_plan::kernels(&self.plan, target)? {
            let name = kernel.name();
            let function = self.device.function(self.module, &name).map_err(|error| error::device(&error))?;
            self.functions.insert(name, function);
        }
        Ok(())
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes on the device beside those of the weights.
    pub(crate) fn workspace_bytes(&self) -> u64 {
        let all =
            self.slots.iter().chain([&self.scratch, &self.counters, &self.block]).chain(&self.own_cache);
        all.map(|memory| memory.bytes() as u64).sum()
    }

    pub(crate) fn weight_bytes(&self) -> u64 {
        self.weights.bytes() as u64
    }

    /// Without a cache: the memory that all sequences share, and its positions.
    pub(crate) fn own_cache(&self) -> (u64, usize) {
        self.own_cache.as_ref().map_or((0, 0), |memory| (memory.address(), self.plan.limits.sequence))
    }

    /// Runs one step and appends the logits that each part wants to those of its number in `logits`.
    pub(crate) fn run(
        &mut self,
        parts: &[Part<'_>],
        logits: &mut [&mut Vec<f32>],
    ) -> Result<(), DeviceError> {
        let exact = shape(parts, self.logits_of_all);
        let bucket = self.bucket(exact);
        let shape = match bucket {
            Some(rows) => StepShape { tokens: rows, selected: rows, selects_all: true, ..exact },
            None => exact,
        };
        let bytes = BlockLayout::new(shape).bytes;
        write_block(parts, shape, &mut self.block_host.bytes_mut()[..bytes]);
        self.device.copy_in(self.stream, self.block.address(), &self.block_host.bytes()[..bytes])?;
        match bucket {
            Some(_) => {
                let graph = self.graph(shape, false)?;
                self.device.launch_graph(self.stream, graph)?;
            }
            None => {
                // One by one: the device works on the first while the host prepares the others.
                let layout = BlockLayout::new(shape);
                for planned in self.planned(shape)? {
                    self.launch(&self.resolve(planned, layout)?)?;
                }
            }
        }
        self.collect(parts, shape, logits)
    }

    /// The rows of the recording that does a step: one row a sequence. All logits are computed, whichever are wanted.
    fn bucket(&self, exact: StepShape) -> Option<usize> {
        let decodes = exact.attended.tiles == 0;
        let rows = exact.tokens.next_power_of_two();
        let most = LARGEST_RECORDED.min(self.plan.limits.tokens).min(self.plan.limits.rows);
        (decodes && rows <= most).then_some(rows)
    }

    /// The most sequences that [`Executor::greedy`] takes.
    pub(crate) fn most_greedy_sequences(&self) -> usize {
        LARGEST_RECORDED.min(self.plan.limits.tokens).min(self.plan.limits.rows)
    }

    /// Runs up to `steps` steps of one token a sequence, the next one's tokens being the likeliest after each; how many
    /// those were. No more steps than [`MOST_TURNS`]. `each` is given the tokens of each and says whether more begin.
    pub(crate) fn greedy(
        &mut self,
        parts: &[Part<'_>],
        steps: usize,
        each: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<usize, DeviceError> {
        let rows = parts.len().next_power_of_two();
        let shape =
            StepShape { tokens: rows, selected: rows, selects_all: true, ..shape(parts, self.logits_of_all) };
        let bytes = BlockLayout::new(shape).bytes;
        write_block(parts, shape, &mut self.block_host.bytes_mut()[..bytes]);
        self.device.copy_in(self.stream, self.block.address(), &self.block_host.bytes()[..bytes])?;
        let graph = self.graph(shape, true)?;
        let row_bytes = rows * size_of::<u32>();
        let (mut begun, mut done, mut steps) = (0, 0, steps.min(MOST_TURNS));
        while done < steps {
            while begun < steps.min(done + TURNS_AHEAD) {
                self.device.launch_graph(self.stream, graph)?;
                self.device.record(self.stream, self.greedy.ends[begun % TURNS_AHEAD].get())?;
                begun += 1;
            }
            self.device.wait(self.greedy.ends[done % TURNS_AHEAD].get())?;
            let found = self.greedy.found.part(done * row_bytes..(done + 1) * row_bytes);
            let tokens: &[u32] = bytemuck::cast_slice(found);
            done += 1;
            if each(&tokens[..parts.len()]).is_break() {
                steps = begun;
            }
        }
        Ok(done)
    }

    fn graph(&mut self, shape: StepShape, greedy: bool) -> Result<Graph, DeviceError> {
        match self.graphs.get(&(shape.tokens, greedy)) {
            Some(&graph) => Ok(graph),
            None => self.record(shape, greedy),
        }
    }

    fn record(&mut self, shape: StepShape, greedy: bool) -> Result<Graph, DeviceError> {
        let mut all = self.ready(shape)?;
        if greedy {
            let planned = greedy_launches(&self.plan, shape.tokens);
            let planned = planned.map_err(|error| DeviceError::Failed(error.to_string()))?;
            let layout = BlockLayout::new(shape);
            for planned in planned {
                all.push(self.resolve(planned, layout)?);
            }
        }
        self.device.begin_graph(self.stream)?;
        let recorded = all.iter().try_for_each(|ready| self.launch(ready));
        // It is ended also where it failed: else the stream is of no more use.
        let graph = self.device.end_graph(self.stream);
        recorded?;
        let graph = graph?;
        self.graphs.insert((shape.tokens, greedy), graph);
        Ok(graph)
    }

    fn launch(&self, ready: &Ready) -> Result<(), DeviceError> {
        let launch = Launch {
            function: ready.function,
            grid: ready.grid,
            block: [ready.block, 1, 1],
            shared_bytes: ready.shared_bytes,
            arguments: &ready.arguments,
            overlaps: true,
        };
        self.device.launch(self.stream, &launch)
    }

    fn ready(&self, shape: StepShape) -> Result<Vec<Ready>, DeviceError> {
        let layout = BlockLayout::new(shape);
        self.planned(shape)?.into_iter().map(|planned| self.resolve(planned, layout)).collect()
    }

    fn planned(&self, shape: StepShape) -> Result<Vec<PlannedLaunch>, DeviceError> {
        let planned = launches(&self.plan, shape, self.context);
        planned.map_err(|error| DeviceError::Failed(error.to_string()))
    }

    fn resolve(&self, planned: PlannedLaunch, layout: BlockLayout) -> Result<Ready, DeviceError> {
        let PlannedLaunch { kernel, launch, arguments } = planned;
        let name = kernel.name();
        let function = self.functions.get(&name).copied();
        let function = function.ok_or_else(|| DeviceError::Failed(format!("no kernel {name}")))?;
        let block = |offset: usize| self.block.address() + offset as u64;
        let argument = |argument: Argument| match argument {
            Argument::Null => 0,
            Argument::Span(span) => {
                let buffer = self.plan.buffer(span.buffer);
                let slot = self.slots.get(buffer.slot).map_or(0, Memory::address);
                slot + (span.offset * buffer.dtype.size()) as u64
            }
            Argument::Weight(id) => self.weights.addresses[id.0],
            Argument::Constant(id) => self.constants[id.0],
            Argument::Ids(Ids::Tokens) => block(layout.ids),
            Argument::Ids(Ids::Positions) => block(layout.positions),
            Argument::RowSequence => block(layout.row_sequence),
            Argument::Sequences => block(layout.sequences),
            Argument::Tiles => block(layout.tiles),
            Argument::Selected => block(layout.selected),
            Argument::Scratch => self.scratch.address(),
            Argument::Greedy(Greedy::Turns) => block(layout.turns),
            Argument::Greedy(memory) => self.greedy.address(memory),
            Argument::Counters => self.counters.address(),
            Argument::Int(value) => u64::from(value.cast_unsigned()),
            Argument::Long(value) => value.cast_unsigned(),
            Argument::Float(value) => u64::from(value.to_bits()),
        };
        let arguments = arguments.into_iter().map(argument).collect();
        let (grid, block, shared_bytes) = (launch.grid, launch.block, launch.shared_bytes);
        Ok(Ready { function, grid, block, shared_bytes, arguments })
    }

    /// Copies the wanted logits to the host.
    fn collect(
        &mut self,
        parts: &[Part<'_>],
        shape: StepShape,
        logits: &mut [&mut Vec<f32>],
    ) -> Result<(), DeviceError> {
        let buffer = *self.plan.buffer(self.plan.logits);
        let row_bytes = buffer.stride * DType::F32.size();
        let base = self.slots.get(buffer.slot).map_or(0, Memory::address);
        let width = self.plan.vocab_size * DType::F32.size();
        // Where every row has logits a part's are the last of its rows, else they are one after the other.
        let every = self.logits_of_all || shape.selects_all;
        let (mut row, mut selected, mut copied) = (0, 0, 0);
        for part in parts {
            row += part.tokens.len();
            let first = if every { row - part.rows } else { selected };
            selected += part.rows;
            for wanted in first..first + part.rows {
                let place = self.logits_host.bytes_mut().get_mut(copied * width..(copied + 1) * width);
                let place =
                    place.ok_or_else(|| DeviceError::Failed("more logits than planned".to_owned()))?;
                self.device.copy_out(self.stream, place, base + (wanted * row_bytes) as u64)?;
                copied += 1;
            }
        }
        self.device.synchronize(self.stream)?;
        let mut rows = self.logits_host.bytes().chunks_exact(width.max(1));
        for (part, logits) in parts.iter().zip(logits) {
            for row in rows.by_ref().take(part.rows) {
                logits.extend_from_slice(bytemuck::cast_slice(row));
            }
        }
        Ok(())
    }
}

/// What finding the likeliest tokens needs on the device.
struct GreedyMemory {
    memory: Memory,
    /// Where the last kernel of a step writes its tokens.
    found: Pinned,
    /// The ends of the steps that are enqueued.
    ends: [OwnedEvent; TURNS_AHEAD],
}

impl GreedyMemory {
    const BEST: usize = 0;
    const COUNT: usize = Self::BEST + LARGEST_RECORDED * size_of::<u64>();
    const TOKENS: usize = Self::COUNT + LARGEST_RECORDED * size_of::<u32>();
    const BYTES: usize = Self::TOKENS + LARGEST_RECORDED * size_of::<u32>();
    const FOUND_BYTES: usize = MOST_TURNS * LARGEST_RECORDED * size_of::<u32>();

    fn new(device: &Arc<dyn Device>) -> Result<Self, DeviceError> {
        let memory = Memory::new(device, Self::BYTES)?;
        device.fill(device.stream(), memory.address(), 0, memory.bytes())?;
        device.synchronize(device.stream())?;
        let (found, ends) =
            (Pinned::new(device, Self::FOUND_BYTES)?, [OwnedEvent::new(device)?, OwnedEvent::new(device)?]);
        Ok(Self { memory, found, ends })
    }

    fn address(&self, part: Greedy) -> u64 {
        let offset = match part {
            Greedy::Best => Self::BEST,
            Greedy::Count => Self::COUNT,
            Greedy::Tokens | Greedy::Turns => Self::TOKENS,
            Greedy::Found => return self.found.address(),
        };
        self.memory.address() + offset as u64
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        for &graph in self.graphs.values() {
            self.device.free_graph(graph);
        }
        self.device.unload_module(self.module);
    }
}

fn copy_constants(
    device: &Arc<dyn Device>,
    constants: &[Vec<f32>],
) -> Result<(Vec<u64>, Memory), DeviceError> {
    let mut offsets = Vec::new();
    let mut bytes: Vec<u8> = Vec::new();
    for constant in constants {
        offsets.push(bytes.len() as u64);
        bytes.extend_from_slice(bytemuck::cast_slice(constant));
        bytes.resize(bytes.len().next_multiple_of(CONSTANT_ALIGNMENT), 0);
    }
    let memory = Memory::new(device, bytes.len())?;
    device.copy_in(device.stream(), memory.address(), &bytes)?;
    device.synchronize(device.stream())?;
    Ok((offsets.into_iter().map(|offset| memory.address() + offset).collect(), memory))
}
