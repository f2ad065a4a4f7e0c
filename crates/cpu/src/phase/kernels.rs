//! Phases of the kernels beside these, on the same inputs, where both compute the same steps in
//! F32. `cargo xtask emulate phase::kernels` runs them without a GPU, `run.sh harness` on one.

use std::env;
use std::io::Write;
use std::process::{Command, Stdio};

use kilotok_abi::philox;
use kilotok_model::{Activation, RouterScores};

use super::router::{choose, tests::spec};
use crate::math::{Activate, Vectorised, add_bias, sigmoid};

/// Names the program of `kernels/harness/phase.cu`.
const PROGRAM: &str = "KILOTOK_PHASE";

/// The kernel's outputs for rows of inputs, or none without the program.
#[expect(clippy::disallowed_methods, reason = "`xtask emulate` and `run.sh` name the program here")]
fn kernel(phase: usize, inputs: &[f32]) -> Option<Vec<f32>> {
    let Ok(program) = env::var(PROGRAM) else {
        println!("skipped: {PROGRAM} is not set");
        return None;
    };
    let mut command = Command::new(program);
    command.arg(phase.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytemuck::cast_slice(inputs)).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Some(output.stdout.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect())
}

/// Within four times the relative error that `activation.cuh` states, or what a GPU may take for
/// zero.
fn near(found: f32, own: f32) -> bool {
    let error = own.abs() / (1 << 17) as f32 + 1e-37;
    found == own || found.is_nan() && own.is_nan() || own.is_finite() && (found - own).abs() < error
}

#[test]
fn activations() {
    let clamped = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
    let edges = [0.0, 1e-39, 1e-20, 0.25, 1.0, 6.5, 7.0, 7.5, 20.0, 87.0, 90.0, 3e38];
    let edges = [&edges[..], &[f32::INFINITY, f32::NAN]].concat();
    let sides: Vec<f32> = edges.iter().flat_map(|edge| [*edge, -edge]).collect();
    let pairs: Vec<_> = sides.iter().flat_map(|gate| sides.iter().map(|up| [*gate, *up])).collect();
    for (phase, activation) in [Activation::SiluMul, clamped].into_iter().enumerate() {
        let Some(found) = kernel(phase, pairs.as_flattened()) else { return };
        assert_eq!(found.len(), pairs.len());
        for ([gate, up], found) in pairs.iter().zip(found) {
            let mut own = [*gate];
            Activate { activation, gate: &mut own, up: &[*up] }.dispatch();
            let [own] = own;
            assert!(near(found, own), "{activation:?} of {gate:e}, {up:e}: {found:e}, not {own:e}");
        }
    }
}

/// From these the logits of a token are drawn, so that most tie; in the first case from -2 to 2.
const LOGITS: [&[f32]; 7] = [
    &[],
    &[-2.0, -1.0, -0.0, 0.0, 1.0, 2.0],
    &[-0.0, 0.0],
    &[-100.0, -90.0, -88.0, 16.0, 17.0, 20.0],
    &[f32::NEG_INFINITY, 1.0, 2.0],
    &[f32::INFINITY, 1.0, 2.0],
    &[f32::NAN, -f32::NAN, 1.0, 2.0],
];

/// Experts of the kinds of network of `phase_model`, and their weights.
#[test]
fn choices() {
    use RouterScores::{CorrectedSigmoid, Softmax};
    for (phase, count, top_k, scores, normalise, biased, scale) in [
        (2, 384, 8, CorrectedSigmoid, true, true, 2.5),
        (3, 40, 4, Softmax, true, true, 1.0),
        (4, 72, 8, Softmax, false, false, 1.0),
    ] {
        let mut spec = spec(scores, normalise);
        (spec.count, spec.top_k, spec.router.scale) = (count, top_k, scale);
        let (mut inputs, mut wanted) = (Vec::new(), Vec::new());
        for token in 0..49 {
            let draw = |expert: usize| philox([expert as u32, 0, 0, 0], [token, 0]);
            let levels = LOGITS[token as usize % LOGITS.len()];
            let logit = |expert| match (levels, draw(expert)[0]) {
                ([], bits) => bits.cast_signed() as f32 / (1 << 30) as f32,
                (levels, bits) => levels[bits as usize % levels.len()],
            };
            // -0 changes no score, not even its sign.
            let bias = |expert| if biased { (draw(expert)[1] % 3) as f32 / 4.0 } else { -0.0 };
            let mut logits: Vec<f32> = (0..count).map(logit).collect();
            let bias: Vec<f32> = (0..count).map(bias).collect();
            let correction = match scores {
                CorrectedSigmoid => {
                    inputs.extend(logits.iter().map(|logit| sigmoid(*logit)));
                    &bias[..]
                }
                Softmax => {
                    inputs.extend(&logits);
                    add_bias(&mut logits, &bias);
                    &[]
                }
            };
            inputs.push(1.0);
            inputs.extend(&bias);
            wanted.push(choose(&spec, correction, &logits).routes);
        }
        let Some(found) = kernel(phase, &inputs) else { return };
        assert_eq!(found.len(), wanted.len() * top_k * 2);
        for (token, (found, wanted)) in found.chunks(top_k * 2).zip(wanted).enumerate() {
            let (experts, weights) = found.split_at(top_k);
            for ((expert, weight), own) in experts.iter().zip(weights).zip(wanted) {
                // The sign of a NaN, by which experts are chosen, is not the same on a GPU.
                let same = *expert as usize == own.expert || own.weight.is_nan();
                assert!(
                    same && near(*weight, own.weight),
                    "{scores:?}, token {token}: expert {expert} by {weight:e}, not {own:?}"
                );
            }
        }
    }
}
