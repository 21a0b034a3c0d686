//! What is neither a product nor attention.

use roundhouse_backend::BackendError;
use roundhouse_cuda_kernels::{
    Binary, Embedding, ExpertsDown, ExpertsGateUp, Map, Numbers, Router, SelectRows, Softmax,
};

use super::{Argument, Launcher, count, int, long};
use crate::step::{Activation, BinaryOp, Embed, Experts, Function, Ids, Operand};
use crate::unsupported;
use crate::view::{MAX_AXES, Span, Strided};

/// The last axes of a grid, as kernels take them apart.
struct Sizes {
    elements: usize,
    middle: usize,
    inner: usize,
}

impl Sizes {
    fn new(sizes: &[usize]) -> Result<Self, BackendError> {
        if sizes.len() > MAX_AXES {
            return Err(unsupported(format!("more than {MAX_AXES} axes")));
        }
        let mut last = sizes.iter().rev().copied();
        let (inner, middle) = (last.next().unwrap_or(1), last.next().unwrap_or(1));
        Ok(Self { elements: sizes.iter().product(), middle, inner })
    }

    fn arguments(&self) -> Result<[Argument; 3], BackendError> {
        Ok([
            Argument::Int(int(self.elements)?),
            Argument::Int(int(self.middle)?),
            Argument::Int(int(self.inner)?),
        ])
    }
}

/// Three strides, outermost first.
fn strides(strides: &[usize]) -> Result<[Argument; MAX_AXES], BackendError> {
    let mut all = [Argument::Long(0); MAX_AXES];
    for (place, &stride) in all.iter_mut().rev().zip(strides.iter().rev()) {
        *place = long(stride)?;
    }
    Ok(all)
}

impl Launcher<'_> {
    fn grid(&self, grid: &Strided) -> Result<Vec<Argument>, BackendError> {
        let span = self.source(grid.span);
        let mut arguments = vec![Argument::Span(span), self.long_stride(span)?];
        arguments.extend(strides(&grid.strides)?);
        Ok(arguments)
    }

    pub(super) fn embed(&mut self, embed: &Embed) -> Result<(), BackendError> {
        use Argument::{Float, Ids as Integers, Int, Null, Weight};

        let table = self.plan.weight(embed.table);
        let kernel = Embedding { dtype: table.dtype };
        let arguments = vec![
            Integers(embed.ids),
            Weight(embed.table),
            Null,
            Null,
            Argument::Span(embed.to),
            Int(int(table.columns)?),
            Int(int(table.rows)?),
            Int(0),
            Float(embed.scale),
        ];
        if self.plan.buffer(embed.to.buffer).stride != table.columns {
            return Err(unsupported("an embedding whose rows are no whole vectors"));
        }
        let launch = kernel.launch(count(self.shape.tokens)?);
        self.push(kernel, launch, arguments);
        Ok(())
    }

    pub(super) fn select(&mut self, from: Span, to: Span, width: usize) -> Result<(), BackendError> {
        if self.shape.selected == 0 || self.shape.selects_all {
            return Ok(());
        }
        if self.plan.buffer(to.buffer).stride != width {
            return Err(unsupported("selected rows that are no whole vectors"));
        }
        let kernel = SelectRows { dtype: self.plan.buffer(from.buffer).dtype };
        let launch = kernel.launch(count(self.shape.selected)?);
        let arguments = vec![
            Argument::Span(from),
            Argument::Int(self.stride(from)?),
            Argument::Selected,
            Argument::Span(to),
            Argument::Int(int(width)?),
        ];
        self.push(kernel, launch, arguments);
        Ok(())
    }

    pub(super) fn map(
        &mut self,
        function: Function,
        from: &Strided,
        to: &Strided,
    ) -> Result<(), BackendError> {
        let rows = self.rows(to.span);
        if rows == 0 {
            return Ok(());
        }
        let dtype = |view: &Strided| self.plan.buffer(view.span.buffer).dtype;
        let kernel = Map { from: dtype(from), to: dtype(to) };
        let (code, parameter) = match function {
            Function::Copy => (0, 0.0),
            Function::Activation(activation) => (code(activation), 0.0),
            Function::Sigmoid => (4, 0.0),
            Function::Scale(factor) => (5, factor),
            Function::SoftCap(cap) => (6, cap),
        };
        let sizes = Sizes::new(&to.sizes)?;
        let mut arguments = self.grid(from)?;
        arguments.extend(self.grid(to)?);
        arguments.extend(sizes.arguments()?);
        arguments.extend([Argument::Int(code), Argument::Float(parameter)]);
        let launch = kernel.launch(count(rows)?, count(sizes.elements)?);
        self.push(kernel, launch, arguments);
        Ok(())
    }

    pub(super) fn binary(
        &mut self,
        op: BinaryOp,
        a: &Operand,
        b: &Operand,
        to: &Strided,
    ) -> Result<(), BackendError> {
        let rows = self.rows(to.span);
        if rows == 0 {
            return Ok(());
        }
        let kernel = Binary { dtype: self.plan.buffer(to.span.buffer).dtype };
        let sizes = Sizes::new(&to.sizes)?;
        let mut arguments = Vec::new();
        for operand in [a, b] {
            match operand {
                Operand::Rows(grid) => arguments.extend(self.grid(grid)?),
                Operand::Weight { weight, strides: own } => {
                    arguments.extend([Argument::Weight(*weight), Argument::Long(0)]);
                    arguments.extend(strides(own)?);
                }
            }
        }
        arguments.extend(self.grid(to)?);
        arguments.extend(sizes.arguments()?);
        arguments.push(Argument::Int(match op {
            BinaryOp::Mul => 0,
            BinaryOp::SiluMul => 1,
            BinaryOp::Add => 4,
        }));
        let launch = kernel.launch(count(rows)?, count(sizes.elements)?);
        self.push(kernel, launch, arguments);
        Ok(())
    }

    pub(super) fn numbers(&mut self, ids: Ids, to: Span) -> Result<(), BackendError> {
        let kernel = Numbers { dtype: self.plan.buffer(to.buffer).dtype };
        let rows = self.shape.tokens;
        let launch = kernel.launch(count(rows)?);
        let arguments =
            vec![Argument::Ids(ids), Argument::Span(to), self.long_stride(to)?, Argument::Int(int(rows)?)];
        self.push(kernel, launch, arguments);
        Ok(())
    }

    pub(super) fn softmax(
        &mut self,
        from: Span,
        to: Span,
        groups: usize,
        width: usize,
    ) -> Result<(), BackendError> {
        let rows = self.rows(to);
        if rows == 0 {
            return Ok(());
        }
        let from = self.source(from);
        let kernel = Softmax { dtype: self.plan.buffer(to.buffer).dtype };
        let launch = kernel.launch(count(rows)?, count(groups)?);
        let arguments = vec![
            Argument::Span(from),
            self.long_stride(from)?,
            Argument::Span(to),
            self.long_stride(to)?,
            Argument::Int(int(width)?),
        ];
        self.push(kernel, launch, arguments);
        Ok(())
    }

    pub(super) fn experts(&mut self, experts: &Experts) -> Result<(), BackendError> {
        let rows = self.rows(experts.to);
        if rows == 0 {
            return Ok(());
        }
        let router = Router { dtype: self.plan.buffer(experts.router_logits.buffer).dtype };
        let launch = router.launch(count(rows)?, count(experts.experts)?);
        let (logits, chosen, shares) =
            (self.source(experts.router_logits), Span::of(experts.chosen), Span::of(experts.shares));
        let arguments = vec![
            Argument::Span(logits),
            self.long_stride(logits)?,
            Argument::Span(chosen),
            self.long_stride(chosen)?,
            Argument::Span(shares),
            self.long_stride(shares)?,
            Argument::Int(int(experts.experts)?),
            Argument::Int(int(experts.top_k)?),
            Argument::Int(i32::from(experts.normalize)),
        ];
        self.push(router, launch, arguments);

        let dtype = self.plan.weight(experts.gate_up).dtype;
        let (x, gated) = (self.source(experts.x), Span::of(experts.gated));
        let each = [experts.hidden, experts.intermediate, experts.experts, experts.top_k];
        let [hidden, intermediate, all, top_k] = each;
        let number = |size: usize| int(size).map(Argument::Int);
        let kernel = ExpertsGateUp { dtype };
        let launch = kernel.launch(count(rows)?, count(top_k)?, count(intermediate)?);
        let arguments = vec![
            Argument::Span(x),
            Argument::Int(self.stride(x)?),
            Argument::Span(chosen),
            Argument::Int(self.stride(chosen)?),
            Argument::Weight(experts.gate_up),
            Argument::Span(gated),
            Argument::Int(self.stride(gated)?),
            number(hidden)?,
            number(intermediate)?,
            number(all)?,
        ];
        self.push(kernel, launch, arguments);

        let kernel = ExpertsDown { dtype };
        let launch = kernel.launch(count(rows)?, count(hidden)?);
        let arguments = vec![
            Argument::Span(gated),
            Argument::Int(self.stride(gated)?),
            Argument::Span(chosen),
            Argument::Int(self.stride(chosen)?),
            Argument::Span(shares),
            Argument::Int(self.stride(shares)?),
            Argument::Weight(experts.down),
            Argument::Span(experts.to),
            Argument::Int(self.stride(experts.to)?),
            number(hidden)?,
            number(intermediate)?,
            number(all)?,
            number(top_k)?,
        ];
        self.push(kernel, launch, arguments);
        Ok(())
    }
}

/// As kernels number them.
const fn code(activation: Activation) -> i32 {
    match activation {
        Activation::Silu => 1,
        Activation::Gelu => 2,
        Activation::GeluTanh => 3,
    }
}
