//! Products with weights, norms and embeddings.

use roundhouse_backend::BackendError;
use roundhouse_graph::{DType, ExpertAttributes, Node, NodeId, Op, ValueId};

use super::fusion::Then;
use super::product::Product;
use super::{Compiler, Place};
use crate::plan::{BufferId, WeightId};
use crate::step::{Activation, Embed, Epilogue, Experts, Linear, Norm, NormKind, QuantizedWeight, Step};
use crate::unsupported;
use crate::view::{Span, View};

/// What a product reads.
struct Input {
    x: View,
    norm: Option<(NormKind, BufferId)>,
}

impl Compiler<'_> {
    /// What a linear reads, before its norm where that is a part of it.
    fn input(&mut self, x: ValueId, norm: Option<NodeId>) -> Result<Input, BackendError> {
        let Some(norm) = norm.map(|id| self.graph.node(id)) else {
            return Ok(Input { x: self.contiguous(x)?, norm: None });
        };
        let kind = self.norm_kind(norm)?;
        let x = self.contiguous(norm.inputs[0])?;
        let normed = self.buffer(self.rows_of(x.span), x.elements(), self.dtype_of(x.span));
        Ok(Input { x, norm: Some((kind, normed)) })
    }

    /// The input with its norm as a step of its own, for several products.
    fn normed_first(&mut self, Input { x, norm }: Input) -> Input {
        let Some((kind, buffer)) = norm else { return Input { x, norm } };
        let (to, width) = (Span::of(buffer), x.elements());
        self.steps.push(Step::Norm(Norm { kind, from: x.span, to, residual: None, groups: 1, width }));
        Input { x: View { span: to, ..x }, norm: None }
    }

    /// A node that fusions found to be a product.
    fn product(&self, id: NodeId) -> Result<Product, BackendError> {
        let node = self.graph.node(id);
        Product::of(node).ok_or_else(|| unsupported(format!("{} as a product", node.op.name())))
    }

    /// The matrices of products one below the other.
    fn matrix(&mut self, products: &[Product]) -> Result<(WeightId, Option<QuantizedWeight>), BackendError> {
        let weights: Vec<ValueId> = products.iter().map(|product| product.weight).collect();
        let Some(attributes) = products[0].quantized.map(|parts| parts.attributes) else {
            return Ok((self.joined_weight(&weights)?, None));
        };
        let parts = products.iter().filter_map(|product| product.quantized);
        let scales: Vec<ValueId> = parts.clone().map(|parts| parts.scales).collect();
        let offsets: Vec<ValueId> = parts.filter_map(|parts| parts.offsets).collect();
        let weight = self.joined_rows(&weights, DType::U8)?;
        let scales = self.joined_weight(&scales)?;
        let offsets = if offsets.is_empty() { None } else { Some(self.joined_weight(&offsets)?) };
        Ok((weight, Some(QuantizedWeight { quantization: attributes.quantization, scales, offsets })))
    }

    /// Linears of one input: their results are parts of the rows of one buffer. Neighbours whose matrices are stored alike
    /// are one product.
    pub(super) fn linears(&mut self, nodes: &[NodeId], norm: Option<NodeId>) -> Result<(), BackendError> {
        let graph = self.graph;
        let products = nodes.iter().map(|&id| self.product(id)).collect::<Result<Vec<_>, _>>()?;
        let alike: Vec<&[Product]> = products.chunk_by(|a, b| a.is_stored_like(b, graph)).collect();
        let input = self.input(products[0].x, norm)?;
        let Input { x, norm } = if alike.len() > 1 { self.normed_first(input) } else { input };
        let matrices = alike.iter().map(|part| self.matrix(part)).collect::<Result<Vec<_>, _>>()?;
        let width = matrices.iter().map(|(weight, _)| self.weights[weight.0].rows).sum();
        let buffer = self.buffer(self.rows_of(x.span), width, self.float(products[0].output)?);
        let mut offset = 0;
        for (products, (weight, quantized)) in alike.into_iter().zip(matrices) {
            let biases: Vec<ValueId> = products.iter().filter_map(|product| product.bias).collect();
            let bias = if biases.is_empty() { None } else { Some(self.joined_weight(&biases)?) };
            let (to, epilogue) = (Span { buffer, offset }, Epilogue::Store);
            let x_span = x.span;
            for product in products {
                let sizes = self.sizes(product.output)?;
                let mut view = View::of(buffer, x.tokens, &sizes);
                view.span.offset = offset;
                offset += view.elements();
                self.places.insert(product.output, Place::View(view));
            }
            self.push_linear(Linear { x: x_span, norm, weight, quantized, bias, epilogue, wide: None, to })?;
        }
        Ok(())
    }

    pub(super) fn linear(
        &mut self,
        id: NodeId,
        norm: Option<NodeId>,
        then: &Then,
        output: ValueId,
    ) -> Result<(), BackendError> {
        let product = self.product(id)?;
        let Input { x, norm } = self.input(product.x, norm)?;
        let (weight, quantized) = self.matrix(&[product])?;
        let bias = product.bias.map(|bias| self.weight(bias)).transpose()?;
        let epilogue = match *then {
            Then::Store => Epilogue::Store,
            Then::Add(residual) => Epilogue::Add(self.contiguous(residual)?.span),
            Then::Map(activation) => Epilogue::Map(activation),
            Then::SoftCap(cap) => Epilogue::SoftCap(cap),
        };
        let to = self.output(output, &x)?;
        self.places.insert(output, Place::View(to.clone()));
        let (x, to) = (x.span, to.span);
        self.push_linear(Linear { x, norm, weight, quantized, bias, epilogue, wide: None, to })
    }

    pub(super) fn gated(
        &mut self,
        nodes: [NodeId; 2],
        norm: Option<NodeId>,
        activation: Activation,
        output: ValueId,
    ) -> Result<(), BackendError> {
        let [gate, up] = [self.product(nodes[0])?, self.product(nodes[1])?];
        let Input { x, norm } = self.input(gate.x, norm)?;
        let (weight, quantized) = self.matrix(&[gate, up])?;
        let to = self.output(output, &x)?;
        let wide = self.buffer(self.rows_of(x.span), self.weights[weight.0].rows, self.dtype_of(to.span));
        self.places.insert(output, Place::View(to.clone()));
        let (epilogue, wide, x, to) = (Epilogue::Gate(activation), Some(wide), x.span, to.span);
        self.push_linear(Linear { x, norm, weight, quantized, bias: None, epilogue, wide, to })
    }

    fn push_linear(&mut self, linear: Linear) -> Result<(), BackendError> {
        let weight = &self.weights[linear.weight.0];
        let x = self.dtype_of(linear.x);
        if linear.quantized.is_none() && weight.dtype != x {
            return Err(unsupported(format!(
                "activations of dtype {x} times weights of dtype {}",
                weight.dtype
            )));
        }
        let to = self.dtype_of(linear.to);
        if to != x && to != DType::F32 {
            return Err(unsupported(format!("activations of dtype {x} to results of dtype {to}")));
        }
        self.steps.push(Step::Linear(linear));
        Ok(())
    }

    pub(super) fn norm_kind(&mut self, node: &Node) -> Result<NormKind, BackendError> {
        let weight = self.weight(node.inputs[1])?;
        let bias = node.inputs.get(2).map(|&bias| self.weight(bias)).transpose()?;
        match node.op {
            Op::RmsNorm { epsilon, unit_offset } => {
                Ok(NormKind { centered: false, weight, bias: None, epsilon, unit_offset })
            }
            Op::LayerNorm { epsilon } => {
                Ok(NormKind { centered: true, weight, bias, epsilon, unit_offset: false })
            }
            _ => Err(unsupported(format!("{} as a norm", node.op.name()))),
        }
    }

    /// A norm by itself, of the last axis, and what is added to it.
    pub(super) fn norm(
        &mut self,
        node: &Node,
        residual: Option<ValueId>,
        output: ValueId,
    ) -> Result<View, BackendError> {
        let kind = self.norm_kind(node)?;
        let mut from = self.view(node.inputs[0])?;
        // Groups that are not one after the other in the order of the axes still may lie side by side.
        let side_by_side =
            |view: &View| view.groups().is_some_and(|(groups, stride, width)| groups == 1 || stride == width);
        let aligned =
            (from.span.offset * self.dtype_of(from.span).size()).is_multiple_of(super::VECTOR_BYTES);
        if !side_by_side(&from) || !aligned {
            from = self.copied(&from, self.dtype_of(from.span));
        }
        let to = self.output(output, &from)?;
        let residual = residual.map(|id| self.contiguous(id)).transpose()?.map(|view| view.span);
        let Some((groups, _, width)) = from.groups() else {
            return Err(unsupported("a norm of this layout"));
        };
        if residual.is_some() && groups != 1 {
            return Err(unsupported("a norm of this layout"));
        }
        if let Some(residual) = residual
            && self.buffers[residual.buffer.0].stride != self.buffers[to.span.buffer.0].stride
        {
            return Err(unsupported("a residual of other rows"));
        }
        self.steps.push(Step::Norm(Norm { kind, from: from.span, to: to.span, residual, groups, width }));
        Ok(to)
    }

    /// Rows of a table.
    pub(super) fn embedding(
        &mut self,
        node: &Node,
        ids: ValueId,
        table: ValueId,
        scale: f32,
    ) -> Result<View, BackendError> {
        let Some(Place::Ids(ids)) = self.places.get(&ids).cloned() else {
            return Err(unsupported("indices that are neither tokens nor positions"));
        };
        let tokens =
            self.token_axis(node.output).ok_or_else(|| unsupported("an embedding without tokens"))?;
        let table = self.weight(table)?;
        let sizes = self.sizes(node.output)?;
        let width = sizes.iter().product();
        if width != self.weights[table.0].columns {
            return Err(unsupported("a table of more than two dimensions"));
        }
        let buffer = self.buffer(crate::plan::Rows::Tokens, width, self.float(node.output)?);
        self.steps.push(Step::Embed(Embed { ids, table, scale, to: Span::of(buffer) }));
        Ok(View::of(buffer, tokens, &sizes))
    }

    pub(super) fn experts(
        &mut self,
        node: &Node,
        attributes: ExpertAttributes,
    ) -> Result<View, BackendError> {
        let [x, router_logits] = [self.contiguous(node.inputs[0])?, self.contiguous(node.inputs[1])?];
        let (gate_up, down) = (self.weight(node.inputs[2])?, self.weight(node.inputs[3])?);
        let (hidden, experts) = (x.elements(), router_logits.elements());
        let intermediate = self.weights[down.0].columns;
        let top_k = usize::try_from(attributes.top_k).unwrap_or(usize::MAX);
        let fits = |id: WeightId, rows: usize, columns: usize| {
            let weight = &self.weights[id.0];
            (weight.rows, weight.columns) == (rows, columns)
        };
        if !fits(gate_up, experts * 2 * intermediate, hidden) || !fits(down, experts * hidden, intermediate) {
            return Err(unsupported("experts of this shape"));
        }
        let to = self.output(node.output, &x)?;
        let rows = self.rows_of(x.span);
        let (chosen, shares) = (self.buffer(rows, top_k, DType::F32), self.buffer(rows, top_k, DType::F32));
        let gated = self.buffer(rows, top_k * intermediate, self.dtype_of(x.span));
        self.steps.push(Step::Experts(Experts {
            x: x.span,
            router_logits: router_logits.span,
            gate_up,
            down,
            experts,
            top_k,
            normalize: attributes.normalize,
            hidden,
            intermediate,
            chosen,
            shares,
            gated,
            to: to.span,
        }));
        Ok(to)
    }
}
