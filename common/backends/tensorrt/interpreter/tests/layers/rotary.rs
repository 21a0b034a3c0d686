use roundhouse_tensorrt_interpreter::Tensor;
use roundhouse_tensorrt_network::LayerKind;

use crate::{Operand, fails, floats, gives, ints};

/// Position 0 turns nothing; position 1 turns the first pair by a right angle and doubles the second.
fn tables() -> [Operand; 2] {
    [floats(&[2, 2], &[1.0, 1.0, 0.0, 2.0]), floats(&[2, 2], &[0.0, 0.0, 1.0, 0.0])]
}

fn operands(x: Operand, position_ids: Operand) -> [Operand; 4] {
    let [cos, sin] = tables();
    [x, cos, sin, position_ids]
}

fn rotary(interleaved: bool, dim: usize) -> LayerKind {
    LayerKind::RotaryEmbedding { interleaved, dim }
}

#[test]
fn pairs_are_halves_or_neighbours() {
    let x = floats(&[1, 1, 2, 4], &[1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
    let operands = operands(x, ints(&[1, 2], &[0, 1]));
    // Halves: (1, 3) turns to (−3, 1) and (2, 4) doubles.
    let halves = Tensor::float(&[1, 1, 2, 4], vec![1.0, 2.0, 3.0, 4.0, -3.0, 4.0, 1.0, 8.0]);
    gives(rotary(false, 4), &operands, halves.clone());
    gives(rotary(false, 0), &operands, halves);
    // Neighbours: (1, 2) turns to (−2, 1) and (3, 4) doubles.
    let neighbours = Tensor::float(&[1, 1, 2, 4], vec![1.0, 2.0, 3.0, 4.0, -2.0, 1.0, 6.0, 8.0]);
    gives(rotary(true, 4), &operands, neighbours);
}

#[test]
fn dimensions_after_the_rotated_ones_stay() {
    let x = floats(&[1, 1, 1, 6], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let expected = Tensor::float(&[1, 1, 1, 6], vec![-3.0, 4.0, 1.0, 8.0, 5.0, 6.0]);
    gives(rotary(false, 4), &operands(x, ints(&[1, 1], &[1])), expected);
}

#[test]
fn every_sequence_and_token_has_its_position_and_every_head_the_same() {
    // Two sequences of two heads and two tokens, whose heads are (1, 0, 0, 0).
    let head = [1.0, 0.0, 0.0, 0.0];
    let (still, turned) = ([1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]);
    let x = floats(&[2, 2, 2, 4], &head.repeat(8));
    let expected = [still, turned, still, turned, turned, still, turned, still].concat();
    gives(
        rotary(false, 4),
        &operands(x, ints(&[2, 2], &[0, 1, 1, 0])),
        Tensor::float(&[2, 2, 2, 4], expected),
    );
}

#[test]
fn positions_are_inside_the_tables() {
    let x = floats(&[1, 1, 1, 4], &[1.0; 4]);
    for position in [-1, 2, i64::MAX] {
        let words = format!("position {position} in tables of 2");
        fails(rotary(false, 4), &operands(x.clone(), ints(&[1, 1], &[position])), &words);
    }
}

#[test]
fn positions_have_the_shape_of_the_tokens() {
    let x = floats(&[1, 1, 1, 4], &[1.0; 4]);
    let [mut x, cos, sin, ids] = operands(x, ints(&[1, 2], &[0, 0]).dynamic());
    // Batch and tokens are dynamic, as those of the positions; the head dimension cannot be.
    x.dims = Some(vec![-1, 1, -1, 4]);
    fails(rotary(false, 4), &[x, cos, sin, ids], "position_ids of [1, 2]");
}
