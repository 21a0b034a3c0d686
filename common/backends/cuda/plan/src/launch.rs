//! Which kernels a step launches.
//!
//! Both sides ask here: the builder for the kernels that an engine can need, the runtime for those of the rows at hand.
//! A kernel may be made for how many multiprocessors share the work; for that the number usual for a compute
//! capability counts ([`nominal_multiprocessors`]), which the builder knows too.

mod attention;
mod linear;
mod rest;

use std::collections::HashMap;

use roundhouse_backend::BackendError;
use roundhouse_cuda_kernels::{Advance, ArgMax, Kernel, Launch, Nominal};
use roundhouse_engine::ComputeCapability;

use crate::plan::{ConstantId, Plan, Rows, WeightId};
use crate::step::{Ids, Step};
use crate::unsupported;
use crate::view::Span;

pub use attention::{counter_bytes, scratch_bytes};

/// A launch, its arguments by what they are.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedLaunch {
    /// The kernel.
    pub kernel: Kernel,
    /// Its geometry.
    pub launch: Launch,
    /// Its arguments, in order.
    pub arguments: Vec<Argument>,
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// No address.
    Null,
    /// The first row's part of a buffer.
    Span(Span),
    /// A weight.
    Weight(WeightId),
    /// A constant.
    Constant(ConstantId),
    /// One integer a token.
    Ids(Ids),
    /// The number of its sequence of each token.
    RowSequence,
    /// The sequences.
    Sequences,
    /// The tiles of queries.
    Tiles,
    /// The rows whose logits are wanted.
    Selected,
    /// Memory that kernels need beside the buffers, see [`scratch_bytes`].
    Scratch,
    /// What finding the likeliest tokens needs, see [`Greedy`].
    Greedy(Greedy),
    /// [`Linear::counters`](roundhouse_cuda_kernels::Linear::counters) integers that are zeros between launches.
    Counters,
    /// An `int`.
    Int(i32),
    /// A `long long`.
    Long(i64),
    /// A `float`.
    Float(f32),
}

/// Memory of [`greedy_launches`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Greedy {
    /// Eight bytes a row, zeros between steps.
    Best,
    /// Four bytes a row, zeros between steps.
    Count,
    /// The token of each row.
    Tokens,
    /// How often each row went on: a part of the step's block, zeros at first.
    Turns,
    /// The tokens of all turns.
    Found,
}

/// How many sequences have one row, and how many tiles of queries the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attended {
    /// Whether some sequence has one row.
    pub single: bool,
    /// Tiles of the sequences that have more.
    pub tiles: usize,
}

/// The rows of a step of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StepShape {
    /// Tokens, padding included.
    pub tokens: usize,
    /// Rows whose logits are wanted.
    pub selected: usize,
    /// Whether those are all rows, in order.
    pub selects_all: bool,
    /// For attention.
    pub attended: Attended,
}

/// What launches depend on beside the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchContext {
    /// What kernels are made for.
    pub nominal: Nominal,
    /// What the device has.
    pub multiprocessors: u32,
}

/// The multiprocessors of the usual GPU of a compute capability.
#[must_use]
pub const fn nominal_multiprocessors(capability: ComputeCapability) -> u32 {
    match (capability.major, capability.minor) {
        (8, 0) => 108,
        (8, 6) => 84,
        (8, 9) => 142,
        (9, _) => 132,
        (10, _) => 148,
        (12, _) => 170,
        _ => 64,
    }
}

impl LaunchContext {
    /// What a builder knows.
    #[must_use]
    pub const fn nominal(capability: ComputeCapability) -> Self {
        let multiprocessors = nominal_multiprocessors(capability);
        let warpgroups = matches!((capability.major, capability.minor), (9, 0));
        Self { nominal: Nominal { multiprocessors, warpgroups }, multiprocessors }
    }
}

/// What a plan's steps are asked for.
struct Launcher<'a> {
    plan: &'a Plan,
    shape: StepShape,
    context: LaunchContext,
    launches: Vec<PlannedLaunch>,
}

/// The launches of all steps for rows of this shape.
///
/// # Errors
/// [`BackendError::Unsupported`] for sizes beyond what kernels count with.
pub fn launches(
    plan: &Plan,
    shape: StepShape,
    context: LaunchContext,
) -> Result<Vec<PlannedLaunch>, BackendError> {
    let mut launcher = Launcher { plan, shape, context, launches: Vec::new() };
    for step in &plan.steps {
        launcher.step(step)?;
    }
    Ok(launcher.launches)
}

/// The launches that follow those of a step of one row a sequence whose logits are all computed: they find each row's
/// likeliest token and make it that of the next step.
///
/// # Errors
/// As [`launches`].
pub fn greedy_launches(plan: &Plan, rows: usize) -> Result<[PlannedLaunch; 2], BackendError> {
    let logits = plan.buffer(plan.logits);
    let arg_max = ArgMax {};
    let found = PlannedLaunch {
        launch: arg_max.launch(count(rows)?, count(plan.vocab_size)?),
        kernel: arg_max.into(),
        arguments: vec![
            Argument::Span(Span::of(plan.logits)),
            long(logits.stride)?,
            Argument::Int(int(plan.vocab_size)?),
            Argument::Greedy(Greedy::Best),
            Argument::Greedy(Greedy::Count),
            Argument::Greedy(Greedy::Tokens),
        ],
    };
    let advance = Advance {};
    let advanced = PlannedLaunch {
        launch: advance.launch(),
        kernel: advance.into(),
        arguments: vec![
            Argument::Greedy(Greedy::Tokens),
            Argument::Ids(Ids::Tokens),
            Argument::Ids(Ids::Positions),
            Argument::RowSequence,
            Argument::Sequences,
            Argument::Greedy(Greedy::Turns),
            Argument::Greedy(Greedy::Found),
            Argument::Int(int(rows)?),
        ],
    };
    Ok([found, advanced])
}

/// Every kernel that a plan's steps can launch in an image for GPUs of this compute capability, each once.
///
/// # Errors
/// As [`launches`].
pub fn kernels(plan: &Plan, capability: ComputeCapability) -> Result<Vec<Kernel>, BackendError> {
    let context = LaunchContext::nominal(capability);
    let mut kernels: HashMap<String, Kernel> = HashMap::new();
    let mut add = |shape| -> Result<(), BackendError> {
        for launch in launches(plan, shape, context)? {
            kernels.entry(launch.kernel.name()).or_insert(launch.kernel);
        }
        Ok(())
    };
    // What is chosen changes at powers of two, and beyond the largest batch of decode steps.
    let sizes = |most: usize| {
        let powers =
            (0..).map(|power| 1_usize << power).take_while(move |&size| size < 2 * most && size <= 64);
        // Of more rows, whole tiles count.
        powers.chain((65..most).step_by(128)).chain((most > 64).then_some(most))
    };
    for tokens in sizes(plan.limits.tokens) {
        let all = tokens.min(plan.limits.rows);
        let single = Attended { single: true, tiles: 0 };
        add(StepShape { tokens, selected: all, selects_all: true, attended: single })?;
        let both = Attended { single: true, tiles: 1 };
        add(StepShape { tokens, selected: 0, selects_all: false, attended: both })?;
    }
    for selected in sizes(plan.limits.rows) {
        let attended = Attended { single: true, tiles: 1 };
        add(StepShape { tokens: plan.limits.tokens, selected, selects_all: false, attended })?;
    }
    for launch in greedy_launches(plan, 1)? {
        kernels.insert(launch.kernel.name(), launch.kernel);
    }
    let mut kernels: Vec<(String, Kernel)> = kernels.into_iter().collect();
    kernels.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(kernels.into_iter().map(|(_, kernel)| kernel).collect())
}

/// A size as kernels count.
fn int(size: usize) -> Result<i32, BackendError> {
    i32::try_from(size).map_err(|_| unsupported(format!("a size of {size}")))
}

fn count(size: usize) -> Result<u32, BackendError> {
    u32::try_from(size).map_err(|_| unsupported(format!("a size of {size}")))
}

fn long(size: usize) -> Result<Argument, BackendError> {
    i64::try_from(size).map(Argument::Long).map_err(|_| unsupported(format!("a size of {size}")))
}

impl Launcher<'_> {
    /// How many rows a buffer has in this step.
    fn rows(&self, span: Span) -> usize {
        match self.plan.buffer(span.buffer).rows {
            Rows::Tokens => self.shape.tokens,
            Rows::Selected => self.shape.selected,
        }
    }

    /// Where rows are read: where all are selected, at their source.
    fn source(&self, span: Span) -> Span {
        let selected = self.plan.buffer(span.buffer).rows == Rows::Selected;
        if !selected || !self.shape.selects_all {
            return span;
        }
        let source = self.plan.steps.iter().find_map(|step| match step {
            Step::Select { from, to, .. } if to.buffer == span.buffer => {
                Some(Span { offset: from.offset + span.offset, ..*from })
            }
            _ => None,
        });
        source.unwrap_or(span)
    }

    /// Elements from one row of a buffer to the next.
    fn stride(&self, span: Span) -> Result<i32, BackendError> {
        int(self.plan.buffer(span.buffer).stride)
    }

    fn long_stride(&self, span: Span) -> Result<Argument, BackendError> {
        long(self.plan.buffer(span.buffer).stride)
    }

    fn push(&mut self, kernel: impl Into<Kernel>, launch: Launch, arguments: Vec<Argument>) {
        self.launches.push(PlannedLaunch { kernel: kernel.into(), launch, arguments });
    }

    fn step(&mut self, step: &Step) -> Result<(), BackendError> {
        match step {
            Step::Embed(embed) => self.embed(embed),
            Step::Norm(norm) => self.norm(norm),
            Step::Linear(linear) => self.linear(linear),
            Step::Prepare(prepare) => self.prepare(prepare),
            Step::Attend(attend) => self.attend(attend),
            Step::Rotate { rotary, from, to, heads, head_dim } => {
                self.rotate(rotary, *from, *to, *heads, *head_dim)
            }
            Step::Select { from, to, width } => self.select(*from, *to, *width),
            Step::Map { function, from, to } => self.map(*function, from, to),
            Step::Binary { op, a, b, to } => self.binary(*op, a, b, to),
            Step::Numbers { ids, to } => self.numbers(*ids, *to),
            Step::Softmax { from, to, groups, width } => self.softmax(*from, *to, *groups, *width),
            Step::Experts(experts) => self.experts(experts),
        }
    }
}
