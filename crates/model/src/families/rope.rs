//! The fields of a rotation: base, and YaRN where there is one.

use serde_json::Map;

use super::limit;
use crate::fields::Fields;
use crate::rope::{RopeSpec, Yarn};

/// Reads the rotation of a config's layers. Older files have `rope_theta` and perhaps
/// `rope_scaling`, those that transformers 5 saved have all of it in `rope_parameters`.
pub(super) fn read(fields: &mut Fields<'_>, dims: usize) -> RopeSpec {
    let (older, newer) = (fields.object("rope_scaling"), fields.object("rope_parameters"));
    if older.is_some() && newer.is_some() {
        fields.problem("rope_parameters", "stands beside rope_scaling; one of them is right");
    }
    let Some(map) = newer.or(older) else {
        return RopeSpec::plain(dims, fields.number("rope_theta", 1.0, BASE_MAX));
    };
    let name = if newer.is_some() { "rope_parameters." } else { "rope_scaling." };
    let mut inner = Fields::new(map, name);
    let base = base(fields, &mut inner);
    inner.may_be("partial_rotary_factor", &1.into());
    let is_yarn = is_yarn(&mut inner, map);
    let yarn = is_yarn.then(|| yarn(&mut inner));
    fields.problems.extend(inner.finish());
    RopeSpec { dims, base, yarn }
}

/// Larger bases are mistakes.
const BASE_MAX: f64 = 1e12;

fn base(fields: &mut Fields<'_>, inner: &mut Fields<'_>) -> f64 {
    if inner.optional("rope_theta").is_none() {
        return fields.number("rope_theta", 1.0, BASE_MAX);
    }
    let base = inner.number("rope_theta", 1.0, BASE_MAX);
    fields.may_be("rope_theta", &base.into());
    base
}

fn is_yarn(inner: &mut Fields<'_>, map: &Map<String, serde_json::Value>) -> bool {
    // The name of older files.
    inner.ignore(&["type"]);
    let name = if map.contains_key("rope_type") { "rope_type" } else { "type" };
    inner.choice(name, &[("default", false), ("yarn", true)]).unwrap_or(false)
}

fn yarn(fields: &mut Fields<'_>) -> Yarn {
    const TURNS_MAX: f64 = 1e6;
    let factor = fields.number("factor", 1.0, 1e6);
    let mut or = |name, absent, min, max| match fields.optional(name) {
        Some(_) => fields.number(name, min, max),
        None => absent,
    };
    let beta_fast = or("beta_fast", 32.0, 1e-6, TURNS_MAX);
    let beta_slow = or("beta_slow", 1.0, 1e-6, TURNS_MAX);
    let usual = f64::from(Yarn::usual_magnitude(factor));
    let magnitude = or("attention_factor", usual, 1e-3, 1e3) as f32;
    let truncate = fields.optional("truncate").is_none() || fields.bool("truncate");
    let original_positions = fields.size("original_max_position_embeddings", limit::POSITIONS);
    Yarn { factor, original_positions, beta_fast, beta_slow, truncate, magnitude }
}
