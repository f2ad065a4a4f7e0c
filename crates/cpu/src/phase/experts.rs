//! The experts of a layer: down(activation(gate x, up x)), with biases where the model has them,
//! weighted and added in order of expert.

use std::collections::BTreeMap;

use kilotok_model::Activation;
use rayon::prelude::*;

use super::attn_out::add_ranks;
use super::router::Routes;
use crate::math::{Activate, AddScaled, Vectorised, add_bias};
use crate::matmul::{RowsTimes, Task, tasks, vectors};
use crate::weights::{LayerWeights, Mlp};

/// x += sum over ranks of the experts' weighted outputs.
pub(crate) fn run(
    activation: Activation,
    weights: &LayerWeights,
    routes: &[Routes],
    h: &[f32],
    x: &mut [f32],
) {
    let hidden = h.len() / routes.len();
    let mut tokens_of: BTreeMap<usize, Vec<(usize, f32)>> = BTreeMap::new();
    for (token, routes) in routes.iter().enumerate() {
        for route in &routes.routes {
            tokens_of.entry(route.expert).or_default().push((token, route.weight));
        }
    }
    let parts = weights.ranks.iter().enumerate().map(|(index, rank)| {
        let units = tokens_of.iter().map(|(&expert, tokens)| Unit {
            mlp: &rank.feed_forward[expert],
            x: tokens.iter().map(|(token, _)| &h[token * hidden..][..hidden]).collect(),
        });
        let outputs = apply(activation, &units.collect::<Vec<_>>());
        let mut part = vec![0.0; h.len()];
        for ((&expert, tokens), mut outputs) in tokens_of.iter().zip(outputs) {
            // Once, as ranks are added up.
            let bias = if index == 0 { &weights.down_bias[expert][..] } else { &[] };
            for (&(token, a), x) in tokens.iter().zip(outputs.chunks_exact_mut(hidden)) {
                add_bias(x, bias);
                AddScaled { y: &mut part[token * hidden..][..hidden], a, x }.dispatch();
            }
        }
        part
    });
    add_ranks(x, parts);
}

/// One network with the vectors it is applied to.
pub(crate) struct Unit<'a> {
    pub(crate) mlp: &'a Mlp,
    pub(crate) x: Vec<&'a [f32]>,
}

/// Outputs of every unit, `[n, hidden]`, all units at once so that all cores have work.
pub(crate) fn apply(activation: Activation, units: &[Unit<'_>]) -> Vec<Vec<f32>> {
    let zeros = |rows: fn(&Mlp) -> usize| {
        let of_unit = |unit: &Unit<'_>| vec![0.0; rows(unit.mlp) * unit.x.len()];
        units.iter().map(of_unit).collect::<Vec<_>>()
    };
    let mut inner = zeros(|mlp| mlp.gate.rows);
    let inner_tasks = units.iter().zip(&mut inner).flat_map(|(unit, inner)| {
        let places: &mut Vec<_> = &mut inner.chunks_exact_mut(unit.mlp.gate.rows).collect();
        tasks(&unit.mlp.gate, &unit.x, places, units.len()).into_iter().map(|gate| (gate, unit.mlp))
    });
    let memory = || (Vec::new(), Vec::new());
    inner_tasks.collect::<Vec<_>>().into_par_iter().for_each_init(memory, |memory, task| {
        let (decoded, up_values) = memory;
        let (Task { w: gate, first, x, mut out }, mlp) = task;
        RowsTimes { w: gate, first, x, decoded: &mut *decoded, out: &mut out }.dispatch();
        let count = out[0].len();
        up_values.resize(x.len() * count, 0.0);
        let mut places: Vec<_> = up_values.chunks_exact_mut(count).collect();
        RowsTimes { w: &mlp.up, first, x, decoded, out: &mut places }.dispatch();
        let rows = first..first + count;
        for (gate, up) in out.into_iter().zip(places) {
            add_bias(gate, mlp.gate_bias.get(rows.clone()).unwrap_or_default());
            add_bias(up, mlp.up_bias.get(rows.clone()).unwrap_or_default());
            Activate { activation, gate, up }.dispatch();
        }
    });
    let inner: Vec<_> =
        units.iter().zip(&inner).map(|(unit, inner)| vectors(inner, unit.mlp.down.cols)).collect();
    let mut outputs = zeros(|mlp| mlp.down.rows);
    let down_tasks = units.iter().zip(&inner).zip(&mut outputs).flat_map(|((unit, x), output)| {
        let down = &unit.mlp.down;
        let places: &mut Vec<_> = &mut output.chunks_exact_mut(down.rows).collect();
        tasks(down, x, places, units.len())
    });
    let down_tasks: Vec<_> = down_tasks.collect();
    down_tasks.into_par_iter().for_each_init(Vec::new, |decoded, task| task.run(decoded));
    outputs
}
