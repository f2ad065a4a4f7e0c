//! The sizes of an engine: before anything is loaded, determines those that the user left open from
//! the model's needs and the machine's memory, and prints them as a table.

use std::fmt;

use anyhow::{Result, bail, ensure};
use indicatif::BinaryBytes;
use kilotok_batch::Sizes;
use kilotok_engine::{PageGroup, PageKind};
use kilotok_model::{ModelSpec, check_ranks};
use kilotok_sched::Limits;

use crate::config::EngineSettings;
use crate::machine::Memory;

/// Longest context by default; the user must ask for a longer one.
const CONTEXT_USUAL: u32 = 32_768;
/// Upper limit of pages; more is a mistake.
const PAGES_MAX: u64 = 1 << 24;

/// The memory that an engine has, on any device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// The name of everything that takes memory besides keys and values, and below, its bytes.
    pub(crate) fixed: &'static str,
    pub(crate) fixed_bytes: u64,
    /// `None` if the system does not report it.
    pub(crate) memory: Option<Memory>,
    /// Bytes for keys and values, unless the user sets them.
    pub(crate) kv_bytes: u64,
    /// Bytes of an element of a key or value.
    pub(crate) value_bytes: usize,
    /// The longest step, if the device limits it.
    pub(crate) step: Option<StepBound>,
}

/// The longest step that a device can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepBound {
    pub(crate) token_max: u32,
    /// The reason why steps cannot be longer.
    pub(crate) why: &'static str,
}

/// A planned engine, and its memory.
#[derive(Clone, Debug)]
pub(crate) struct EnginePlan {
    pub(crate) sizes: Sizes,
    pub(crate) groups: Vec<PageGroup>,
    /// Tokens of a prompt and its reply together: what was asked for, or less if the pages hold
    /// less. It is the engine's `position_max`, and so what the scheduler admits.
    pub(crate) context_max: u32,
    room: Room,
}

impl EnginePlan {
    pub(crate) fn new(
        settings: &EngineSettings,
        limits: &Limits,
        spec: &ModelSpec,
        room: Room,
    ) -> Result<Self> {
        check_ranks(spec, settings.rank_count)?;
        let trained = trained(spec);
        let context_max = context_asked(settings, spec);
        ensure!(
            context_max <= trained,
            "--context-max is {context_max}, but the model was trained for {trained} positions"
        );
        let token_max = step_tokens(settings, limits.chunk_max, spec);
        let mut sizes = Sizes {
            rank_count: settings.rank_count,
            slot_count: settings.slot_count,
            token_max: room.step.map_or(token_max, |bound| token_max.min(bound.token_max)),
            position_max: context_max,
            page_tokens: settings.page_tokens,
            page_count: 1,
        };
        sizes.page_count = page_count(settings, &sizes, spec, &room)?;
        let positions = u64::from(sizes.page_count) * u64::from(sizes.page_tokens);
        let context_max = context_max.min(u32::try_from(positions).unwrap_or(u32::MAX));
        sizes.position_max = context_max;
        let groups = sizes.groups(spec, room.value_bytes).groups;
        let plan = Self { sizes, groups, context_max, room };
        plan.fits()
    }

    /// A warning if chunks of prompts are shorter than was asked for.
    pub(crate) fn shorter_chunks(&self, chunk_max: u32) -> Option<String> {
        let StepBound { token_max, why } =
            self.room.step.filter(|bound| bound.token_max < chunk_max)?;
        Some(format!(
            "--chunk-max is {chunk_max}, and a step has at most {token_max} prompt tokens: {why}"
        ))
    }

    fn pages_bytes(&self) -> u64 {
        let bytes = |group: &PageGroup| group.page_bytes * u64::from(group.page_count);
        self.groups.iter().map(bytes).sum()
    }

    /// Tokens of all contexts together, and tokens per GiB, counting the memory of all ranks.
    fn token_counts(&self) -> (u64, u64) {
        let tokens = u64::from(self.sizes.page_count) * u64::from(self.sizes.page_tokens);
        let of_gib = u128::from(tokens) * (1 << 30) / u128::from(self.pages_bytes().max(1));
        (tokens, of_gib as u64)
    }

    fn fits(self) -> Result<Self> {
        let needed = self.room.fixed_bytes.saturating_add(self.pages_bytes());
        if let Some(memory) = self.room.memory.filter(|memory| memory.total < needed) {
            bail!(
                "the model does not fit: {} take {}, keys and values {} (--kv-gib, or what --slots \
                 and --context-max come to), and memory is {}",
                self.room.fixed,
                BinaryBytes(self.room.fixed_bytes),
                BinaryBytes(self.pages_bytes()),
                BinaryBytes(memory.total)
            );
        }
        Ok(self)
    }
}

/// Tokens of a step with the longest chunk and a row for each slot, including drafts.
pub(crate) fn step_tokens(settings: &EngineSettings, chunk_max: u32, spec: &ModelSpec) -> u32 {
    let row_tokens = spec.drafter.as_ref().map_or(1, |drafter| drafter.rows as u32);
    chunk_max.saturating_add(settings.slot_count.saturating_mul(row_tokens))
}

fn trained(spec: &ModelSpec) -> u32 {
    u32::try_from(spec.position_max).unwrap_or(u32::MAX)
}

/// The longest context to plan for; memory may limit it further.
pub(crate) fn context_asked(settings: &EngineSettings, spec: &ModelSpec) -> u32 {
    settings.context_max.unwrap_or(trained(spec).min(CONTEXT_USUAL))
}

/// Pages of a group that holds all positions: as many as all slots need, or as memory allows. The
/// page counts of the other groups follow from it, see [`Sizes::groups`].
fn page_count(
    settings: &EngineSettings,
    sizes: &Sizes,
    spec: &ModelSpec,
    room: &Room,
) -> Result<u32> {
    let bytes = |page_count: u64| {
        let page_count = page_count.min(PAGES_MAX) as u32;
        Sizes { page_count, ..sizes.clone() }.groups(spec, room.value_bytes).bytes()
    };
    let context_max = sizes.position_max;
    let one = u64::from(context_max.div_ceil(settings.page_tokens));
    let (there, most) = match settings.kv_bytes {
        Some(bytes) => (bytes, PAGES_MAX),
        None => (room.kv_bytes, PAGES_MAX.min(one * u64::from(settings.slot_count))),
    };
    let count = last_within(most, |count| bytes(count) <= there);
    if settings.context_max.is_some() && count < one {
        let (only, advice) = match settings.kv_bytes {
            Some(_) => ("may be only", ", or raise --kv-gib"),
            None => ("is memory for only", ""),
        };
        bail!(
            "--context-max {context_max} with --slots {} needs {} of keys and values, but there \
             {only} {}: lower one of them{advice}",
            settings.slot_count,
            BinaryBytes(bytes(one)),
            BinaryBytes(there)
        );
    }
    ensure!(
        count > 0 && count * u64::from(settings.page_tokens) > 1,
        "{} do not hold one page of keys and values, which takes {}: {}",
        BinaryBytes(there),
        BinaryBytes(bytes(1)),
        if settings.kv_bytes.is_some() { "raise --kv-gib" } else { "there is no more memory" }
    );
    Ok(count as u32)
}

/// The largest number up to `most` that fits, if every smaller number fits too.
fn last_within(most: u64, fits: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

/// Prints the memory table.
impl fmt::Display for EnginePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, what: &str, count: &str, bytes: u64| {
            writeln!(f, "  {what:<22} {count:<38} {:>10}", BinaryBytes(bytes).to_string())
        };
        line(f, self.room.fixed, "", self.room.fixed_bytes)?;
        for group in &self.groups {
            let what = match (group.kind, group.window) {
                (PageKind::Draft, _) => "pages, drafter".to_owned(),
                (_, Some(keys)) => format!("pages, window of {keys}"),
                (_, None) => "pages, full attention".to_owned(),
            };
            let token_bytes = group.page_bytes / u64::from(group.page_tokens);
            let PageGroup { page_count, page_tokens, .. } = group;
            let count = format!("{page_count} pages of {page_tokens}, {token_bytes} bytes a token");
            line(f, &what, &count, group.page_bytes * u64::from(group.page_count))?;
        }
        let (tokens, of_gib) = self.token_counts();
        let tokens = format!("{tokens} tokens, {of_gib} in a GiB");
        line(f, "keys and values", &tokens, self.pages_bytes())?;
        line(f, "together", "", self.room.fixed_bytes + self.pages_bytes())?;
        match self.room.memory {
            Some(memory) => {
                let of = format!("of {}", BinaryBytes(memory.total));
                line(f, "free memory", &of, memory.free)
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kilotok_model::Knobs;
    use kilotok_testkit::Toy;
    use kilotok_weights::read_spec;

    use super::*;
    use crate::config::EngineKind;

    const GIB: u64 = 1 << 30;

    fn settings() -> EngineSettings {
        EngineSettings {
            kind: EngineKind::Cpu,
            rank_count: 1,
            slot_count: 4,
            slots_given: true,
            page_tokens: 16,
            context_max: None,
            kv_bytes: None,
        }
    }

    fn plan(settings: &EngineSettings, free: u64) -> Result<EnginePlan> {
        let room = Room {
            fixed: "weights",
            fixed_bytes: 1 << 20,
            memory: Some(Memory { total: 16 * GIB, free }),
            kv_bytes: free / 4,
            value_bytes: 4,
            step: None,
        };
        EnginePlan::new(settings, &Limits::default(), &Toy::flash().spec(), room)
    }

    #[test]
    fn every_slot_has_room_if_there_is_memory() {
        let plan = plan(&settings(), 8 * GIB).unwrap();
        let spec = Toy::flash().spec();
        assert_eq!(plan.context_max as usize, spec.position_max.min(CONTEXT_USUAL as usize));
        assert_eq!(plan.sizes.page_count, plan.context_max.div_ceil(16) * 4);
        let drafts = spec.drafter.unwrap().rows as u32;
        assert_eq!(plan.sizes.token_max, Limits::default().chunk_max + 4 * drafts);
    }

    #[test]
    fn little_memory_makes_a_short_context_or_an_error() {
        let usual = plan(&settings(), 8 * GIB).unwrap();
        let page: u64 = usual.groups.iter().map(|group| group.page_bytes).sum();
        let small = EngineSettings { kv_bytes: Some(page * 3), ..settings() };
        assert_eq!(plan(&small, 8 * GIB).unwrap().context_max, 48);
        let long = EngineSettings { context_max: Some(64), ..small.clone() };
        let error = plan(&long, 8 * GIB).unwrap_err().to_string();
        assert!(error.contains("--kv-gib"), "{error}");
        let none = EngineSettings { kv_bytes: Some(page - 1), ..settings() };
        assert!(plan(&none, 8 * GIB).is_err());
        assert!(plan(&settings(), page).is_err(), "a quarter of one page");
        let beyond = EngineSettings { context_max: Some(u32::MAX), ..settings() };
        let error = plan(&beyond, 8 * GIB).unwrap_err().to_string();
        assert!(error.contains("trained"), "{error}");
    }

    #[test]
    fn the_table_adds_up() {
        let plan = plan(&settings(), 8 * GIB).unwrap();
        let table = plan.to_string();
        let together = BinaryBytes(plan.room.fixed_bytes + plan.pages_bytes()).to_string();
        assert!(table.contains(&together), "{table}");
        assert_eq!(table.matches("pages,").count(), plan.groups.len());
    }

    /// The plan of one of eight ranks of MiMo-V2.5-Pro, with this much memory for keys and values.
    fn eighth(kv_gib: u64, settings: &EngineSettings) -> Result<EnginePlan> {
        let folder = Path::new("benches/models/slice");
        let spec = read_spec(folder, &Knobs::default()).unwrap();
        let room = Room {
            fixed: "weights",
            fixed_bytes: 0,
            memory: None,
            kv_bytes: kv_gib * GIB,
            value_bytes: 2,
            step: Some(StepBound { token_max: 8192, why: "the kernels take no more" }),
        };
        EnginePlan::new(settings, &Limits::default(), &spec, room)
    }

    #[test]
    fn chunks_that_are_shorter_than_asked_for_are_told_of() {
        let bound = eighth(8, &settings()).unwrap();
        assert_eq!(bound.sizes.token_max, 8192);
        assert_eq!(bound.shorter_chunks(8192), None);
        assert_eq!(
            bound.shorter_chunks(8193).unwrap(),
            "--chunk-max is 8193, and a step has at most 8192 prompt tokens: the kernels take no \
             more"
        );
        let boundless = plan(&settings(), 8 * GIB).unwrap();
        assert_eq!(boundless.shorter_chunks(u32::MAX), None);
    }

    #[test]
    fn windows_take_a_part_of_the_memory_and_not_most_of_it() {
        let long = EngineSettings { context_max: Some(1 << 20), ..settings() };
        let tokens = |plan: &EnginePlan| plan.token_counts().0;
        let plans = [8, 16].map(|gib| eighth(gib, &long).unwrap());
        let [small, large] = plans;
        // With the same number of pages in every group it was 22,672 tokens per GiB.
        assert!(small.token_counts().1 > 130_000, "{small}");
        let more = (tokens(&large) - tokens(&small)) / 8;
        assert!((140_000..160_000).contains(&more), "{more} more tokens for each GiB\n{large}");
        assert!(large.to_string().contains("6400 bytes a token"), "{large}");
    }

    #[test]
    fn windows_of_all_slots_and_the_longest_context_must_fit() {
        let long = EngineSettings { context_max: Some(1 << 20), ..settings() };
        let crowd = EngineSettings { slot_count: 256, ..long.clone() };
        eighth(8, &long).unwrap();
        let error = eighth(8, &crowd).unwrap_err().to_string();
        assert!(error.contains("--context-max 1048576 with --slots 256 needs"), "{error}");
        assert!(error.contains("lower one of them"), "{error}");
        let crowd = EngineSettings { context_max: None, ..crowd };
        assert_eq!(eighth(8, &crowd).unwrap().context_max, CONTEXT_USUAL);
    }
}
