//! DOT, for Graphviz.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::{Graph, Node, Origin, ValueId};

impl Graph {
    /// As a DOT digraph: inputs are ellipses, weights plain text, nodes boxes, outputs bold.
    #[must_use]
    pub fn to_dot(&self) -> String {
        let mut dot = format!("digraph {} {{\n  node [fontname=\"monospace\"];\n", quoted(&self.name));
        let makers: HashMap<ValueId, &Node> = self.nodes().map(|(_, node)| (node.output, node)).collect();
        for (id, value) in self.values() {
            let (kind, shape) = match &value.origin {
                Origin::Input { .. } => ("input".to_owned(), "ellipse"),
                Origin::Weight { .. } => ("weight".to_owned(), "plaintext"),
                Origin::Node => (String::new(), "box"),
            };
            let kind = makers.get(&id).map_or(kind, |node| {
                [vec![node.op.name().to_owned()], self.attributes(&node.op)].concat().join(" ")
            });
            let label = format!("{kind}\n{}\n{}", value.name, self.show_type(value.dtype, &value.shape));
            let style = if self.outputs().contains(&id) { ", style=bold" } else { "" };
            // Writing to a string cannot fail.
            let _ = writeln!(dot, "  v{} [shape={shape}, label={}{style}];", id.0, quoted(&label));
        }
        for (_, node) in self.nodes() {
            for input in &node.inputs {
                let _ = writeln!(dot, "  v{} -> v{};", input.0, node.output.0);
            }
        }
        dot.push_str("}\n");
        dot
    }
}

/// A DOT string. Line breaks become `\n`, which Graphviz centres.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
