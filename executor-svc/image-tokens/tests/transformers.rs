//! Orders and positions are those of Transformers, for images of several sizes together.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure")]

use std::path::Path;

use roundhouse_backend::{ImageTokens, SequenceImages};
use roundhouse_image_tokens::{GridError, ImageGrid, PatchWindows, token_places};
use serde::Deserialize;

/// What tests/golden/tiny_vision_language.py writes of `get_vision_window_index`, `get_vision_position_ids` and
/// `get_rope_index`.
#[derive(Deserialize)]
struct Golden {
    patch_size: u32,
    spatial_merge_size: u32,
    window_size: u32,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    grid_thw: Vec<[u32; 3]>,
    window_index: Vec<i64>,
    cu_window_seqlens: Vec<usize>,
    /// Rows and columns, in the order of pre-processing.
    patch_positions: [Vec<i64>; 2],
    /// Text before each image, and behind the last.
    text_lengths: Vec<usize>,
    /// Along time, height and width.
    token_positions: [Vec<i64>; 3],
    rope_delta: i64,
}

impl Case {
    fn grids(&self) -> Vec<ImageGrid> {
        let grid = |&[frames, height, width]: &[u32; 3]| ImageGrid { frames, height, width };
        self.grid_thw.iter().map(grid).collect()
    }
}

fn golden() -> Golden {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().parent().unwrap();
    let text = std::fs::read_to_string(workspace.join("tests/golden/qwen2-5-vl-indices.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Where each run of equal numbers ends, after a 0.
fn ends(segments: &[i64]) -> Vec<usize> {
    let runs = segments.chunk_by(|a, b| a == b).scan(0, |end, run| {
        *end += run.len();
        Some(*end)
    });
    std::iter::once(0).chain(runs).collect()
}

#[test]
fn windows_are_transformers() {
    let golden = golden();
    for case in &golden.cases {
        let (merge, window_size, patch_size) =
            (golden.spatial_merge_size, golden.window_size, golden.patch_size);
        let windows = PatchWindows::new(&case.grids(), merge, window_size, patch_size).unwrap();
        let context = format!("{:?}", case.grid_thw);
        assert_eq!(windows.window_index, case.window_index, "{context}");
        assert_eq!(ends(&windows.window_segment_ids), case.cu_window_seqlens, "{context}");
        let frames = case.grids().into_iter().flat_map(|grid| {
            let frame = (grid.height * grid.width) as usize;
            std::iter::repeat_n(frame, grid.frames as usize)
        });
        let lengths: Vec<usize> = ends(&windows.image_segment_ids).windows(2).map(|w| w[1] - w[0]).collect();
        assert_eq!(lengths, frames.collect::<Vec<_>>(), "{context}");

        let group = (merge * merge) as usize;
        let patches = windows.window_segment_ids.len();
        for (found, expected) in windows.position_ids.chunks(patches).zip(&case.patch_positions) {
            let expected = windows.window_index.iter().flat_map(|&token| {
                let first = token as usize * group;
                &expected[first..first + group]
            });
            assert!(found.iter().eq(expected), "{context}");
        }
        for (place, &token) in windows.window_index.iter().enumerate() {
            assert_eq!(windows.reverse_index[token as usize], place as i64, "{context}");
        }
    }
}

#[test]
fn tokens_are_placed_as_transformers_places_them_and_text_goes_on_behind() {
    let golden = golden();
    for case in &golden.cases {
        let context = format!("{:?}", case.grid_thw);
        let mut images = SequenceImages::new();
        let mut length = 0;
        for (grid, text) in case.grids().into_iter().zip(&case.text_lengths) {
            length += text;
            let (places, extent) = token_places(grid, golden.spatial_merge_size).unwrap();
            let features = vec![0.0; places.len()].into();
            let image = ImageTokens { first: length, features, places: places.into(), extent };
            length = image.tokens().end;
            images.place(image, 0, usize::MAX, 1).unwrap();
        }
        length += case.text_lengths.last().unwrap();
        let positions: Vec<[i64; 3]> = images.positions(0..length).collect();
        for (axis, expected) in case.token_positions.iter().enumerate() {
            let found: Vec<i64> = positions.iter().map(|position| position[axis]).collect();
            assert_eq!(&found, expected, "{context} axis {axis}");
        }
        let next = images.positions(length..length + 1).next().unwrap();
        assert_eq!(next, [length as i64 + case.rope_delta; 3], "{context}");
    }
}

#[test]
fn sizes_that_no_tower_takes_are_refused() {
    let grid = |height, width| ImageGrid { frames: 1, height, width };
    let windows = |grid, merge, window_size, patch_size| {
        PatchWindows::new(&[grid], merge, window_size, patch_size).unwrap_err()
    };
    for bad in [grid(3, 4), grid(4, 3), grid(0, 4), ImageGrid { frames: 0, ..grid(4, 4) }] {
        assert_eq!(windows(bad, 2, 112, 14), GridError::Size { grid: bad, merge: 2 });
        assert_eq!(token_places(bad, 2).unwrap_err(), GridError::Size { grid: bad, merge: 2 });
    }
    let huge = grid(u32::MAX - 1, u32::MAX - 1);
    assert!(matches!(windows(huge, 2, 112, 14), GridError::TooMany { .. }));
    assert!(matches!(token_places(huge, 2).unwrap_err(), GridError::TooMany { .. }));
    assert!(matches!(windows(grid(4, 4), 2, 27, 14), GridError::Window { .. }));
    assert!(matches!(windows(grid(4, 4), 0, 112, 14), GridError::Window { .. }));
}
