//! The chosen experts of a mixture.

use roundhouse_cuda_kernels::{ExpertsDown, ExpertsGateUp};
use roundhouse_graph::DType;

use super::linear::weight_scale;
use super::{FLOATS, arguments};
use crate::compare::{SUM_SLACK, rounded_slack};
use crate::{Case, Random, Runner, compare};

pub(super) fn cases() -> Vec<Case> {
    FLOATS.into_iter().flat_map(|dtype| [case(dtype, 64, 40), case(dtype, 21, 9)]).collect()
}

fn case(dtype: DType, hidden: usize, intermediate: usize) -> Case {
    let (gate_up, down) = (ExpertsGateUp { dtype }, ExpertsDown { dtype });
    let kernels = vec![gate_up.clone().into(), down.clone().into()];
    let run = move |runner: &Runner| {
        let mut random = Random::new(hidden as u64);
        let (rows, top_k, experts) = (3, 2, 5);
        let x_stride = hidden.next_multiple_of(8) + 8;
        let (gated_stride, out_stride) = ((top_k * intermediate).next_multiple_of(8), hidden + 1);
        let x = runner.numbers(dtype, &random.floats(rows * x_stride, 2.0))?;
        let weight = random.floats(experts * 2 * intermediate * hidden, weight_scale(hidden));
        let up_weight = runner.numbers(dtype, &weight)?;
        let weight = random.floats(experts * hidden * intermediate, weight_scale(intermediate));
        let down_weight = runner.numbers(dtype, &weight)?;
        let chosen = [4, 0, 2, 1, 3, 4];
        let chosen_memory = runner.integers(&chosen)?;
        let shares = runner.numbers(DType::F32, &random.floats(rows * top_k, 1.0))?;
        let gated = runner.output(dtype, rows * gated_stride)?;
        let out = runner.output(dtype, rows * out_stride)?;
        runner.launch(
            &gate_up.clone().into(),
            gate_up.launch(rows as u32, top_k as u32, intermediate as u32),
            arguments![
                &x,
                x_stride,
                &chosen_memory,
                top_k,
                &up_weight,
                &gated,
                gated_stride,
                hidden,
                intermediate,
                experts
            ],
        )?;
        let found = runner.read(dtype, &gated.memory)?;
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mut expected = Vec::new();
        let mut stored = Vec::new();
        for row in 0..rows {
            let x = &x.values[row * x_stride..row * x_stride + hidden];
            for k in 0..top_k {
                let expert = chosen[row * top_k + k] as usize;
                for i in 0..intermediate {
                    let weight = |part: usize| {
                        let at = ((expert * 2 + part) * intermediate + i) * hidden;
                        &up_weight.values[at..at + hidden]
                    };
                    let gate = dot(x, weight(0));
                    expected.push(gate / (1.0 + (-gate).exp()) * dot(x, weight(1)));
                    stored.push(found[row * gated_stride + k * intermediate + i]);
                }
            }
        }
        compare("gate and up of experts", dtype, &stored, &expected, SUM_SLACK)?;
        runner.launch(
            &down.clone().into(),
            down.launch(rows as u32, hidden as u32),
            arguments![
                &gated,
                gated_stride,
                &chosen_memory,
                top_k,
                &shares,
                top_k,
                &down_weight,
                &out,
                out_stride,
                hidden,
                intermediate,
                experts,
                top_k
            ],
        )?;
        let found = runner.read(dtype, &out.memory)?;
        for row in 0..rows {
            let expected: Vec<f64> = (0..hidden)
                .map(|j| {
                    (0..top_k)
                        .map(|k| {
                            let at = (chosen[row * top_k + k] as usize * hidden + j) * intermediate;
                            let from = (row * top_k + k) * intermediate;
                            let h = &stored[from..from + intermediate];
                            shares.values[row * top_k + k]
                                * dot(h, &down_weight.values[at..at + intermediate])
                        })
                        .sum()
                })
                .collect();
            let found = &found[row * out_stride..row * out_stride + hidden];
            compare("down of experts", dtype, found, &expected, rounded_slack(dtype))?;
        }
        Ok(())
    };
    Case::new(format!("experts {dtype} {hidden}x{intermediate}"), kernels, run)
}
