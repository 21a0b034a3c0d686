//! Products with weights and norms.

use roundhouse_backend::BackendError;
use roundhouse_cuda_kernels as kernels;
use roundhouse_cuda_kernels::{Method, Prologue, Weight};
use roundhouse_graph::DType;

use super::{Argument, Launcher, count, int};
use crate::step::{Activation, Epilogue, Linear, Norm, NormKind, QuantizedWeight};
use crate::view::Span;

/// Shared memory that normed rows may take: more, and too few blocks fit a multiprocessor.
const NORMED_BYTES: usize = 64 << 10;

impl Launcher<'_> {
    pub(super) fn norm(&mut self, norm: &Norm) -> Result<(), BackendError> {
        self.push_norm(norm.kind, self.source(norm.from), norm.to, norm.residual, [norm.groups, norm.width])
    }

    fn push_norm(
        &mut self,
        kind: NormKind,
        from: Span,
        to: Span,
        residual: Option<Span>,
        [groups, width]: [usize; 2],
    ) -> Result<(), BackendError> {
        use Argument::{Float, Int, Null, Weight};

        let rows = self.rows(to);
        if rows == 0 {
            return Ok(());
        }
        let unit_offset = kind.unit_offset;
        let kernel = kernels::Norm {
            dtype: self.plan.buffer(to.buffer).dtype,
            kind: if kind.centered {
                kernels::NormKind::Layer
            } else {
                kernels::NormKind::Rms { unit_offset }
            },
            add_before: false,
            add_after: residual.is_some(),
        };
        let launch = kernel.launch(count(rows)?, count(groups)?, count(width)?);
        let arguments = vec![
            Argument::Span(from),
            Int(self.stride(from)?),
            Null,
            Null,
            Weight(kind.weight),
            kind.bias.map_or(Null, Weight),
            residual.map_or(Null, Argument::Span),
            Argument::Span(to),
            Int(self.stride(to)?),
            Int(int(width)?),
            Float(kind.epsilon),
        ];
        self.push(kernel, launch, arguments);
        Ok(())
    }

    pub(super) fn linear(&mut self, linear: &Linear) -> Result<(), BackendError> {
        use Argument::{Float, Int, Null};

        let rows = self.rows(linear.to);
        if rows == 0 {
            return Ok(());
        }
        let (outputs, columns) = (self.plan.weight(linear.weight).rows, linear.columns(self.plan));
        let dtype = self.plan.buffer(linear.x.buffer).dtype;
        let weight = self.weight(linear.quantized);
        let (rows, columns_count) = (count(rows)?, count(columns)?);
        let nominal = self.context.nominal;
        let normed = linear.norm.is_some();
        let method = Method::choose(dtype, weight, rows, count(outputs)?, columns_count, normed, nominal);

        let mut x = self.source(linear.x);
        let mut normed = linear.norm;
        let inside = match method {
            Method::Any => true,
            Method::Rows { rows, .. } => rows as usize * columns * dtype.size() <= NORMED_BYTES,
            Method::Tensor { .. } => rows == 1 && columns * dtype.size() <= NORMED_BYTES,
            Method::Tiles { .. } | Method::Warpgroups { .. } => false,
        };
        if let Some((kind, buffer)) = normed.filter(|_| !inside) {
            let to = Span::of(buffer);
            self.push_norm(kind, x, to, None, [1, columns])?;
            (x, normed) = (to, None);
        }
        let kind = normed.map(|(kind, _)| kind);
        let prologue = match kind {
            None => Prologue::None,
            Some(kind) if kind.centered => Prologue::LayerNorm,
            Some(NormKind { unit_offset, .. }) => Prologue::RmsNorm { unit_offset },
        };
        let gated = matches!(linear.epilogue, Epilogue::Gate(_));
        let n = if gated { outputs / 2 } else { outputs };
        let activation = match linear.epilogue {
            Epilogue::Map(activation) | Epilogue::Gate(activation) => of(activation),
            _ => kernels::Activation::None,
        };
        let (residual, cap) = match linear.epilogue {
            Epilogue::Add(residual) => (Some(residual), None),
            Epilogue::SoftCap(cap) => (None, Some(cap)),
            _ => (None, None),
        };
        let float_output = self.plan.buffer(linear.to.buffer).dtype == DType::F32;
        let epilogue = kernels::Epilogue {
            bias: linear.bias.is_some(),
            activation,
            gated,
            soft_cap: cap.is_some(),
            residual: residual.is_some(),
            float_output: float_output && dtype != DType::F32,
        };
        let kernel = kernels::Linear { dtype, weight, columns: columns_count, method, prologue, epilogue };
        let multiprocessors = self.context.multiprocessors;
        let launch = kernel.launch(rows, count(n)?, multiprocessors);
        let scratch = kernel.scratch_bytes(rows, count(n)?, multiprocessors) > 0;
        let residual = residual.map(|residual| self.source(residual));
        let arguments = vec![
            Argument::Span(x),
            Int(self.stride(x)?),
            kind.map_or(Null, |kind| Argument::Weight(kind.weight)),
            kind.and_then(|kind| kind.bias).map_or(Null, Argument::Weight),
            Float(kind.map_or(0.0, |kind| kind.epsilon)),
            Argument::Weight(linear.weight),
            linear.quantized.map_or(Null, |quantized| Argument::Weight(quantized.scales)),
            linear.quantized.and_then(|quantized| quantized.offsets).map_or(Null, Argument::Weight),
            linear.bias.map_or(Null, Argument::Weight),
            residual.map_or(Null, Argument::Span),
            Int(residual.map_or(Ok(0), |residual| self.stride(residual))?),
            Argument::Span(linear.to),
            Int(self.stride(linear.to)?),
            Int(int(n)?),
            Int(int(columns)?),
            Int(int(rows as usize)?),
            Float(1.0),
            Float(cap.unwrap_or(0.0)),
            Int(kernel.flags()),
            if scratch { Argument::Counters } else { Null },
            if scratch { Argument::Scratch } else { Null },
        ];
        self.push(kernel, launch, arguments);
        Ok(())
    }
}

impl Launcher<'_> {
    /// How kernels read a matrix.
    fn weight(&self, quantized: Option<QuantizedWeight>) -> Weight {
        quantized.map_or(Weight::Float, |QuantizedWeight { quantization, scales, offsets }| {
            Weight::Quantized {
                format: quantization.format,
                group_size: quantization.group_size,
                offsets: offsets.is_some(),
                scales: self.plan.weight(scales).dtype,
            }
        })
    }
}

const fn of(activation: Activation) -> kernels::Activation {
    match activation {
        Activation::Silu => kernels::Activation::Silu,
        Activation::Gelu => kernels::Activation::Gelu,
        Activation::GeluTanh => kernels::Activation::GeluTanh,
    }
}
