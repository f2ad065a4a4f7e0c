//! The experts of a layer: down(silu(gate x) * up x), weighted and added in order of expert.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::attn_out::add_ranks;
use super::router::Routes;
use crate::math::{SiluMul, Vectorised};
use crate::matmul::{RowsTimes, task_rows, transpose};
use crate::products::add_scaled;
use crate::weights::{LayerWeights, Mlp};

/// x += sum over ranks of the experts' weighted outputs.
pub(crate) fn run(weights: &LayerWeights, routes: &[Routes], h: &[f32], x: &mut [f32]) {
    let hidden = h.len() / routes.len();
    let mut tokens_of: BTreeMap<usize, Vec<(usize, f32)>> = BTreeMap::new();
    for (token, routes) in routes.iter().enumerate() {
        for route in &routes.routes {
            tokens_of.entry(route.expert).or_default().push((token, route.weight));
        }
    }
    let parts = weights.ranks.iter().map(|rank| {
        let units = tokens_of.iter().map(|(&expert, tokens)| Unit {
            mlp: &rank.feed_forward[expert],
            x: tokens
                .iter()
                .flat_map(|(token, _)| &h[token * hidden..][..hidden])
                .copied()
                .collect(),
        });
        let outputs = apply(&units.collect::<Vec<_>>());
        let mut part = vec![0.0; h.len()];
        for (tokens, outputs) in tokens_of.values().zip(outputs) {
            for ((token, weight), output) in tokens.iter().zip(outputs.chunks_exact(hidden)) {
                add_scaled(&mut part[token * hidden..][..hidden], *weight, output);
            }
        }
        part
    });
    add_ranks(x, parts);
}

/// One network with the vectors it is applied to, `[n, hidden]`.
pub(crate) struct Unit<'a> {
    pub(crate) mlp: &'a Mlp,
    pub(crate) x: Vec<f32>,
}

impl Unit<'_> {
    fn n(&self) -> usize {
        self.x.len() / self.mlp.gate.cols
    }
}

/// Outputs of every unit, `[n, hidden]`, all units at once so that all cores have work.
pub(crate) fn apply(units: &[Unit<'_>]) -> Vec<Vec<f32>> {
    let mut inner: Vec<_> =
        units.iter().map(|unit| vec![0.0; unit.mlp.gate.rows * unit.n()]).collect();
    let tasks = units.iter().zip(&mut inner).flat_map(|(unit, inner)| {
        let rows = task_rows(&unit.mlp.gate, unit.n());
        let tasks = inner.chunks_mut(rows * unit.n()).enumerate();
        tasks.map(move |(task, out)| (unit, task * rows, out))
    });
    let memory = || (Vec::new(), Vec::new());
    tasks.collect::<Vec<_>>().into_par_iter().for_each_init(memory, |memory, task| {
        let ((decoded, up), (unit, first, gate)) = (memory, task);
        let (Unit { mlp, x }, decoded) = (unit, &mut *decoded);
        up.resize(gate.len(), 0.0);
        RowsTimes { w: &mlp.gate, first, x, decoded, out: &mut *gate }.dispatch();
        RowsTimes { w: &mlp.up, first, x, decoded, out: up }.dispatch();
        SiluMul { gate, up }.dispatch();
    });
    for (unit, inner) in units.iter().zip(&mut inner) {
        *inner = transpose(inner, unit.n());
    }
    let mut outputs: Vec<_> =
        units.iter().map(|unit| vec![0.0; unit.mlp.down.rows * unit.n()]).collect();
    let tasks = units.iter().zip(&inner).zip(&mut outputs).flat_map(|((unit, inner), output)| {
        let rows = task_rows(&unit.mlp.down, unit.n());
        let tasks = output.chunks_mut(rows * unit.n()).enumerate();
        tasks.map(move |(task, out)| (unit, inner, task * rows, out))
    });
    tasks.collect::<Vec<_>>().into_par_iter().for_each_init(Vec::new, |decoded, task| {
        let (unit, inner, first, out) = task;
        RowsTimes { w: &unit.mlp.down, first, x: inner, decoded, out }.dispatch();
    });
    units.iter().zip(outputs).map(|(unit, output)| transpose(&output, unit.n())).collect()
}
