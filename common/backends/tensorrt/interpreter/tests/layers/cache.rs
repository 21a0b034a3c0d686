use roundhouse_tensorrt_interpreter::Tensor;
use roundhouse_tensorrt_network::LayerKind;

use crate::{Operand, fails, floats, gives, ints32};

#[test]
fn rows_are_written_from_the_index_of_their_sequence_on() {
    // [2 sequences, 2 heads, 3 positions, 1].
    let cache = floats(&[2, 2, 3, 1], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0]);
    let update = floats(&[2, 2, 2, 1], &[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0]);
    let expected = vec![-1.0, -2.0, 3.0, -3.0, -4.0, 6.0, 7.0, -5.0, -6.0, 10.0, -7.0, -8.0];
    let expected = Tensor::float(&[2, 2, 3, 1], expected);
    gives(LayerKind::KvCacheUpdate, &[cache, update, ints32(&[2], &[0, 1])], expected);
}

#[test]
fn rows_out_of_bounds_are_silently_ignored() {
    let written = |index: i64, expected: [f32; 3]| {
        let cache = floats(&[1, 1, 3, 1], &[1.0, 2.0, 3.0]);
        let update = floats(&[1, 1, 2, 1], &[-1.0, -2.0]);
        let expected = Tensor::float(&[1, 1, 3, 1], expected.to_vec());
        gives(LayerKind::KvCacheUpdate, &[cache, update, ints32(&[1], &[index])], expected);
    };
    written(1, [1.0, -1.0, -2.0]);
    written(2, [1.0, 2.0, -1.0]);
    written(3, [1.0, 2.0, 3.0]);
    written(i64::from(i32::MAX), [1.0, 2.0, 3.0]);
    written(-1, [-2.0, 2.0, 3.0]);
}

#[test]
fn an_update_fits_its_cache() {
    let dynamic = |shape: &[usize]| floats(shape, &vec![0.0; shape.iter().product()]).dynamic();
    let refused = |update: Operand, indices: &[i64]| {
        let indices = ints32(&[indices.len()], indices).dynamic();
        fails(
            LayerKind::KvCacheUpdate,
            &[dynamic(&[1, 2, 3, 4]), update, indices],
            "to a cache of [1, 2, 3, 4]",
        );
    };
    refused(dynamic(&[2, 2, 1, 4]), &[0]);
    refused(dynamic(&[1, 1, 1, 4]), &[0]);
    refused(dynamic(&[1, 2, 1, 3]), &[0]);
    refused(dynamic(&[1, 2, 4, 4]), &[0]);
    refused(dynamic(&[1, 2, 1, 4]), &[0, 0]);
}
