//! Attention and what comes before it.

use roundhouse_backend::BackendError;
use roundhouse_cuda_kernels::{
    AttentionCombine, AttentionDecode, AttentionPrefill, HeadNorm, Linear, RotaryAppend,
};
use roundhouse_graph::DType;

use super::{Argument, LaunchContext, Launcher, count, int, long};
use crate::plan::Plan;
use crate::step::{Attend, Ids, Prepare, Rotary, Step};
use crate::view::Span;

/// Bytes that kernels need beside the buffers, at the most.
///
/// # Errors
/// [`BackendError::Unsupported`] for sizes beyond what kernels count with.
pub fn scratch_bytes(plan: &Plan, context: LaunchContext) -> Result<u64, BackendError> {
    let halves = matches!(plan.dtype, DType::F16 | DType::Bf16);
    let mut most = if halves { Linear::most_scratch_bytes(context.multiprocessors) } else { 0 };
    for step in &plan.steps {
        let Step::Attend(attend) = step else { continue };
        let (heads, kv_heads) = (count(attend.q_heads)?, count(attend.kv_heads)?);
        let group = heads / kv_heads;
        let decode = AttentionDecode::new(plan.dtype, count(attend.head_dim)?, group);
        for rows in 1..=count(plan.limits.tokens)? {
            let splits = decode.splits(rows, kv_heads, context.multiprocessors);
            most = most.max(decode.partial_bytes(rows, heads, splits));
            if splits == 1 {
                break;
            }
        }
    }
    Ok(most)
}

/// Bytes of the integers of [`Argument::Counters`].
#[must_use]
pub fn counter_bytes(context: LaunchContext) -> usize {
    4 * Linear::counters(context.multiprocessors) as usize
}

impl Launcher<'_> {
    /// The places of a site's keys and values, and the rows of their rings.
    fn cache_arguments(&self, site: usize) -> Result<[Argument; 5], BackendError> {
        let cache = &self.plan.cache;
        let (k, v) = (cache.offset(2 * site), cache.offset(2 * site + 1));
        let ring = cache.tensors.get(2 * site).is_some_and(|tensor| tensor.ring);
        let ring_rows = Argument::Int(int(if ring { cache.ring_rows } else { 0 })?);
        Ok([long(k.full)?, long(k.ring)?, long(v.full)?, long(v.ring)?, ring_rows])
    }

    pub(super) fn prepare(&mut self, prepare: &Prepare) -> Result<(), BackendError> {
        use Argument::{Float, Ids as Integers, Int, Null, RowSequence, Sequences, Weight};

        let head_norm = match prepare.norm {
            None => HeadNorm::None,
            Some(norm) if norm.unit_offset => HeadNorm::RmsUnitOffset,
            Some(_) => HeadNorm::Rms,
        };
        let kernel = RotaryAppend { dtype: self.plan.dtype, head_norm };
        let rows = count(self.rows(prepare.qkv))?;
        let (heads, kv_heads) = (count(prepare.q_heads)?, count(prepare.kv_heads)?);
        let launch = kernel.launch(rows, heads, kv_heads, count(prepare.head_dim)?);
        let mut arguments = vec![
            Argument::Span(prepare.qkv),
            Int(self.stride(prepare.qkv)?),
            Int(int(prepare.q_heads)?),
            Int(int(prepare.kv_heads)?),
            Int(int(prepare.head_dim)?),
        ];
        arguments.extend(rotary_arguments(prepare.rotary.as_ref())?);
        arguments.extend([
            prepare.norm.map_or(Null, |norm| Weight(norm.q)),
            prepare.norm.map_or(Null, |norm| Weight(norm.k)),
            Float(prepare.norm.map_or(0.0, |norm| norm.epsilon)),
            Integers(Ids::Positions),
            RowSequence,
            Sequences,
        ]);
        arguments.extend(self.cache_arguments(prepare.site)?);
        arguments.extend([Argument::Span(prepare.qkv), Int(self.stride(prepare.qkv)?)]);
        self.push(kernel, launch, arguments);
        Ok(())
    }

    /// The same kernel, of queries alone.
    pub(super) fn rotate(
        &mut self,
        rotary: &Rotary,
        from: Span,
        to: Span,
        heads: usize,
        head_dim: usize,
    ) -> Result<(), BackendError> {
        use Argument::{Float, Ids as Integers, Int, Long, Null};

        let dtype = self.plan.buffer(from.buffer).dtype;
        let kernel = RotaryAppend { dtype, head_norm: HeadNorm::None };
        let launch = kernel.launch(count(self.rows(from))?, count(heads)?, 0, count(head_dim)?);
        let mut arguments = vec![
            Argument::Span(from),
            Int(self.stride(from)?),
            Int(int(heads)?),
            Int(0),
            Int(int(head_dim)?),
        ];
        arguments.extend(rotary_arguments(Some(rotary))?);
        arguments.extend([Null, Null, Float(0.0), Integers(Ids::Positions), Null, Null]);
        arguments.extend([Long(0), Long(0), Long(0), Long(0), Int(0)]);
        arguments.extend([Argument::Span(to), Int(self.stride(to)?)]);
        self.push(kernel, launch, arguments);
        Ok(())
    }

    pub(super) fn attend(&mut self, attend: &Attend) -> Result<(), BackendError> {
        let head_dim = count(attend.head_dim)?;
        let Some(prefill) = AttentionPrefill::new(self.plan.dtype, head_dim) else {
            return self.decode(attend, i32::MAX);
        };
        if self.shape.attended.single {
            self.decode(attend, 1)?;
        }
        if self.shape.attended.tiles == 0 {
            return Ok(());
        }
        let launch = prefill.launch(count(self.shape.attended.tiles)?, count(attend.q_heads)?);
        let mut arguments = vec![
            Argument::Span(attend.q),
            Argument::Int(self.stride(attend.q)?),
            Argument::Sequences,
            Argument::Tiles,
            Argument::Int(int(attend.q_heads / attend.kv_heads)?),
        ];
        arguments.extend(self.cache_arguments(attend.site)?);
        arguments.extend(score_arguments(attend)?);
        arguments.extend([Argument::Span(attend.to), Argument::Int(self.stride(attend.to)?)]);
        self.push(prefill, launch, arguments);
        Ok(())
    }

    /// Attention of the rows of sequences that have at most `max_rows`.
    fn decode(&mut self, attend: &Attend, max_rows: i32) -> Result<(), BackendError> {
        use Argument::{Int, RowSequence, Scratch, Sequences};

        let (heads, kv_heads) = (count(attend.q_heads)?, count(attend.kv_heads)?);
        let rows = count(self.shape.tokens)?;
        let kernel = AttentionDecode::new(self.plan.dtype, count(attend.head_dim)?, heads / kv_heads);
        let splits = kernel.splits(rows, kv_heads, self.context.multiprocessors);
        let launch = kernel.launch(rows, heads, kv_heads, splits);
        let mut arguments = vec![
            Argument::Span(attend.q),
            Int(self.stride(attend.q)?),
            Int(int(attend.q_heads / attend.kv_heads)?),
            Int(int(attend.head_dim)?),
            RowSequence,
            Sequences,
            Int(max_rows),
        ];
        arguments.extend(self.cache_arguments(attend.site)?);
        arguments.extend(score_arguments(attend)?);
        let to = [Argument::Span(attend.to), Int(self.stride(attend.to)?)];
        arguments.extend([Scratch, to[0], to[1]]);
        self.push(kernel, launch, arguments);

        if splits > 1 {
            let combine = AttentionCombine { dtype: self.plan.dtype };
            let launch = combine.launch(rows, heads, count(attend.head_dim)?, splits);
            let mut arguments = vec![Scratch, Int(int(splits as usize)?), Int(int(attend.head_dim)?)];
            arguments.extend([RowSequence, Sequences, Int(max_rows), window_argument(attend)?]);
            arguments.extend(to);
            self.push(combine, launch, arguments);
        }
        Ok(())
    }
}

fn window_argument(attend: &Attend) -> Result<Argument, BackendError> {
    Ok(Argument::Int(int(attend.window.unwrap_or(0))?))
}

/// Window, scale and soft cap, 0 where there is none.
fn score_arguments(attend: &Attend) -> Result<[Argument; 3], BackendError> {
    let soft_cap = Argument::Float(attend.soft_cap.unwrap_or(0.0));
    Ok([window_argument(attend)?, Argument::Float(attend.scale), soft_cap])
}

/// Columns that are rotated, whether pairs are neighbours, angles and factor.
fn rotary_arguments(rotary: Option<&Rotary>) -> Result<[Argument; 4], BackendError> {
    use Argument::{Constant, Float, Int, Null};

    Ok(match rotary {
        None => [Int(0), Int(0), Null, Float(1.0)],
        Some(rotary) => [
            Int(int(rotary.rotary_dim)?),
            Int(i32::from(rotary.interleaved)),
            Constant(rotary.inv_freq),
            Float(rotary.factor),
        ],
    })
}
