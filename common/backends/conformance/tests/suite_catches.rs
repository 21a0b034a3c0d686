//! The suite fails backends that are wrong in the ways that backends are.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic in a test is a failed test")]

use std::any::Any;
use std::ops::Range;
use std::path::Path;

use roundhouse_backend::{
    BackendError, BuildProgress, Builder, BuiltFile, Cache, CacheGrowth, KvBlock, Model, Runtime, Sequence,
    WeightSource,
};
use roundhouse_backend_conformance::ReferenceBackend;
use roundhouse_backend_conformance::suite::{self, Backend, Failure};
use roundhouse_engine::{
    BackendKind, CacheKind, EngineFiles, EngineOptions, Manifest, MemoryPlan, Precision, Target,
};
use roundhouse_graph::{Graph, Op, PassReport, QuantizedLinearAttributes, Rewriter, WeightFormat};

/// What is wrong with [`Faulty`].
#[derive(Clone, Copy)]
enum Fault {
    /// Ops with attributes that are off.
    Ops(fn(&mut Op)),
    /// A batch runs and then fails.
    RunsBeforeItChecks,
    /// `truncate` does nothing.
    KeepsTokens,
    /// `truncate` far back forgets everything and does not say so.
    ForgetsSilently,
    /// All sequences after the first read the first one's tokens.
    MixesSequences,
    /// Caches hold more than asked for.
    LargeCaches,
    /// Blocks are of the positions before.
    ShiftsBlocks,
    /// Blocks are taken in wherever they belong.
    TakesAnyBlock,
    /// Any engine is taken.
    TakesForeign,
    /// Progress is not reported.
    Silent,
}

struct Faulty(Fault);

impl Builder for Faulty {
    fn kind(&self) -> BackendKind {
        BackendKind::Cpu
    }

    fn version(&self) -> String {
        ReferenceBackend.version()
    }

    fn target(&self, options: &EngineOptions) -> Target {
        ReferenceBackend.target(options)
    }

    fn multiplies_quantized(&self, attributes: QuantizedLinearAttributes, options: &EngineOptions) -> bool {
        ReferenceBackend.multiplies_quantized(attributes, options)
    }

    fn lower(&self, graph: Graph, _: &EngineOptions) -> Result<(Graph, Vec<PassReport>), BackendError> {
        let Fault::Ops(change) = self.0 else { return Ok((graph, Vec::new())) };
        let mut rewriter = Rewriter::new(graph);
        for id in rewriter.nodes_where(|_| true) {
            let mut op = rewriter.node(id).op.clone();
            change(&mut op);
            rewriter.set_op(id, op)?;
        }
        Ok((rewriter.finish()?, Vec::new()))
    }

    fn memory_plan(&self, graph: &Graph, options: &EngineOptions) -> MemoryPlan {
        ReferenceBackend.memory_plan(graph, options)
    }

    fn build(
        &self,
        graph: &Graph,
        options: &EngineOptions,
        weights: &dyn WeightSource,
        directory: &Path,
        progress: &dyn BuildProgress,
    ) -> Result<Vec<BuiltFile>, BackendError> {
        struct Nobody;
        impl BuildProgress for Nobody {
            fn bytes(&self, _: u64, _: u64) -> Result<(), BackendError> {
                Ok(())
            }
            fn log(&self, _: &str) {}
        }
        let progress = if matches!(self.0, Fault::Silent) { &Nobody } else { progress };
        ReferenceBackend.build(graph, options, weights, directory, progress)
    }
}

impl Runtime for Faulty {
    fn kind(&self) -> BackendKind {
        BackendKind::Cpu
    }

    fn check(&self, manifest: &Manifest) -> Result<(), BackendError> {
        if matches!(self.0, Fault::TakesForeign) { Ok(()) } else { ReferenceBackend.check(manifest) }
    }

    fn load(&self, engine: &EngineFiles) -> Result<Box<dyn Model>, BackendError> {
        Ok(Box::new(FaultyModel { model: ReferenceBackend.load(engine)?, fault: self.0 }))
    }
}

struct FaultyModel {
    model: Box<dyn Model>,
    fault: Fault,
}

struct FaultyCache {
    cache: Box<dyn Cache>,
    fault: Fault,
}

impl Cache for FaultyCache {
    fn len(&self) -> usize {
        self.cache.len()
    }

    fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    fn truncate(&mut self, len: usize) -> usize {
        match self.fault {
            Fault::KeepsTokens => len.min(self.cache.len()),
            Fault::ForgetsSilently if len + 20 < self.cache.len() => {
                self.cache.truncate(0);
                len
            }
            _ => self.cache.truncate(len),
        }
    }

    fn bytes(&self) -> u64 {
        self.cache.bytes()
    }

    fn export(&self, positions: Range<usize>) -> Result<KvBlock, BackendError> {
        let shift = usize::from(matches!(self.fault, Fault::ShiftsBlocks) && positions.start > 0);
        let block = self.cache.export(positions.start - shift..positions.end - shift)?;
        Ok(KvBlock::new(block.engine().into(), positions, block.bytes().to_vec()))
    }

    fn import(&mut self, block: &KvBlock) -> Result<(), BackendError> {
        let mut positions = block.positions();
        if matches!(self.fault, Fault::TakesAnyBlock) {
            positions = self.cache.len()..self.cache.len() + positions.len();
        }
        self.cache.import(&KvBlock::new(block.engine().into(), positions, block.bytes().to_vec()))
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl Model for FaultyModel {
    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn memory_plan(&self) -> MemoryPlan {
        self.model.memory_plan()
    }

    fn cache_growth(&self) -> CacheGrowth {
        self.model.cache_growth()
    }

    fn new_cache(&self, max_seq_len: usize) -> Result<Box<dyn Cache>, BackendError> {
        let extra = if matches!(self.fault, Fault::LargeCaches) && max_seq_len < 20 { 1 } else { 0 };
        let cache = self.model.new_cache(max_seq_len + extra)?;
        Ok(Box::new(FaultyCache { cache, fault: self.fault }))
    }

    fn forward(&self, batch: &mut [Sequence<'_>]) -> Result<(), BackendError> {
        let first: Vec<u32> = batch[0].tokens.to_vec();
        let mut inner: Vec<Sequence<'_>> = Vec::new();
        for sequence in batch {
            let Sequence { cache, tokens, request, logits } = sequence;
            let cache = &mut *cache.as_any_mut().downcast_mut::<FaultyCache>().unwrap().cache;
            let tokens = if matches!(self.fault, Fault::MixesSequences) && first.len() == tokens.len() {
                &first[..]
            } else {
                tokens
            };
            inner.push(Sequence { cache, tokens, request: *request, logits });
        }
        if matches!(self.fault, Fault::RunsBeforeItChecks) {
            return inner.chunks_mut(1).try_for_each(|sequence| self.model.forward(sequence));
        }
        self.model.forward(&mut inner)
    }
}

type Test = fn(&Backend<'_>) -> Result<(), Failure>;

fn run(fault: Fault, test: Test) -> Result<(), Failure> {
    let backend = Faulty(fault);
    let lower = |graph: Graph, options: &EngineOptions| roundhouse_lowering::lower(graph, options).unwrap();
    let mut suite = Backend::new(&backend, &backend, &lower);
    suite.precisions = vec![Precision::Bf16];
    suite.caches = vec![CacheKind::InPlace];
    test(&suite)
}

#[track_caller]
fn caught(fault: Fault, test: Test) {
    match run(fault, test) {
        Err(Failure::Departure { .. }) => {}
        result => panic!("not caught: {result:?}"),
    }
}

/// In bf16, whose tolerance is the widest.
#[test]
fn wrong_arithmetic_is_caught() {
    let faults: &[fn(&mut Op)] = &[
        |op| {
            if let Op::ScaledDotProductAttention(attributes) = op {
                attributes.window = attributes.window.map(|window| window + 1);
            }
        },
        |op| {
            if let Op::ScaledDotProductAttention(attributes) = op {
                attributes.scale = attributes.scale.map(|scale| scale * 1.5);
            }
        },
        |op| {
            if let Op::ScaledDotProductAttention(attributes) = op {
                attributes.soft_cap = None;
            }
        },
        |op| {
            if let Op::RotaryEmbedding(attributes) = op {
                attributes.interleaved = !attributes.interleaved;
            }
        },
        |op| {
            if let Op::RmsNorm { unit_offset, .. } = op {
                *unit_offset = false;
            }
        },
        |op| {
            if matches!(op, Op::SoftCap { .. }) {
                *op = Op::Scale { factor: 1.0 };
            }
        },
        |op| {
            if matches!(op, Op::Silu) {
                *op = Op::Scale { factor: 0.5 };
            }
        },
    ];
    for &fault in faults {
        caught(Fault::Ops(fault), suite::logits_equal_the_reference);
    }
}

#[test]
fn bytes_that_are_read_in_another_format_are_caught() {
    let other: fn(&mut Op) = |op| {
        if let Op::QuantizedLinear(attributes) = op {
            let format = &mut attributes.quantization.format;
            if *format == WeightFormat::Fp8 {
                *format = WeightFormat::Int8;
            }
        }
    };
    caught(Fault::Ops(other), suite::quantized_products_equal_the_reference);
}

#[test]
fn the_faulty_backend_without_a_fault_passes() {
    run(Fault::Ops(|_| {}), |backend| suite::all(backend, &[])).unwrap();
}

#[test]
fn steps_that_run_before_all_is_checked_are_caught() {
    caught(Fault::RunsBeforeItChecks, suite::failed_steps_change_nothing);
}

#[test]
fn caches_that_keep_truncated_tokens_are_caught() {
    caught(Fault::KeepsTokens, suite::truncated_caches_go_on_as_fresh_ones);
}

#[test]
fn caches_that_forget_silently_are_caught() {
    caught(Fault::ForgetsSilently, suite::long_sequences_are_cut_or_emptied);
}

#[test]
fn windows_that_lose_a_key_are_caught() {
    let narrower: fn(&mut Op) = |op| {
        if let Op::ScaledDotProductAttention(attributes) = op {
            attributes.window = attributes.window.map(|window| window - 1);
        }
    };
    for test in [
        suite::long_sequences_see_their_windows as Test,
        suite::long_ragged_batches_equal_one_by_one,
        suite::long_sequences_are_cut_or_emptied,
        suite::long_sequences_are_isolated,
    ] {
        caught(Fault::Ops(narrower), test);
    }
}

#[test]
fn mixed_up_sequences_are_caught() {
    caught(Fault::MixesSequences, suite::ragged_batches_equal_one_by_one);
}

#[test]
fn blocks_of_other_positions_are_caught() {
    caught(Fault::ShiftsBlocks, suite::imported_blocks_go_on_as_computed_tokens);
    caught(Fault::TakesAnyBlock, suite::blocks_that_do_not_follow_are_refused);
}

#[test]
fn caches_of_the_wrong_size_are_caught() {
    caught(Fault::LargeCaches, suite::requests_beyond_the_engine_are_refused);
}

#[test]
fn foreign_engines_that_are_taken_are_caught() {
    caught(Fault::TakesForeign, suite::foreign_engines_are_refused);
}

#[test]
fn silent_builds_are_caught() {
    caught(Fault::Silent, suite::builds_report_progress_and_stop_when_asked);
}
