//! Quantises weights by what a model computes with them: a column makes up for the rounding of those before it, as far as the
//! inputs that the matrix sees move together (GPTQ: Frantar et al. 2022).
//!
//! [`calibrate`] lets the model write the text that its matrices see, and runs it half a layer at a time: the inputs of
//! a half are what the halves before it give with their weights quantised. Everything runs on the CPU.

#![forbid(unsafe_code)]

mod calibrate;
mod engine;
mod error;
mod moments;
mod overlay;
mod rounded;
mod rows;
mod stage;
#[cfg(test)]
mod test_support;
mod text;
mod triangle;

pub use calibrate::{Calibrated, Subject, calibrate, targets};
pub use engine::Progress;
pub use error::CalibrationError;
pub use rounded::{CalibratedWeights, Rounded};
pub use rows::{RoundedRow, round_row};
pub use text::Text;
pub use triangle::Triangle;
