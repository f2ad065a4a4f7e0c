//! The sizes of an engine: settles what the user left open by the model's needs and the machine's
//! memory, before anything is loaded, and prints it as a table.

use std::fmt;

use anyhow::{Result, bail, ensure};
use indicatif::BinaryBytes;
use kilotok_batch::Sizes;
use kilotok_engine::{PageGroup, PageKind};
use kilotok_model::{ModelSpec, check_ranks};
use kilotok_sched::Limits;

use crate::config::EngineSettings;
use crate::machine::Memory;

/// Default of the longest context; a longer one must be asked for.
const CONTEXT_USUAL: u32 = 32_768;
/// Upper limit of pages; more is a mistake.
const PAGES_MAX: u64 = 1 << 24;

/// The room that an engine has, on any device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// What takes memory besides keys and values, and its bytes.
    pub(crate) fixed: &'static str,
    pub(crate) fixed_bytes: u64,
    /// If the system reports it.
    pub(crate) memory: Option<Memory>,
    /// Bytes for keys and values, unless the user sets them.
    pub(crate) kv_bytes: u64,
    /// Bytes of an element of a key or value.
    pub(crate) value_bytes: usize,
    /// Largest number of tokens in a step.
    pub(crate) token_max: u32,
}

/// A planned engine, and its memory.
#[derive(Clone, Debug)]
pub(crate) struct EnginePlan {
    pub(crate) sizes: Sizes,
    pub(crate) groups: Vec<PageGroup>,
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
        let draft_max = spec.drafter.as_ref().map_or(0, |drafter| drafter.rows as u32 - 1);
        let decode_max = u64::from(settings.slot_count) * u64::from(draft_max + 1);
        let token_max = u64::from(limits.chunk_max) + decode_max;
        let mut sizes = Sizes {
            rank_count: settings.rank_count,
            slot_count: settings.slot_count,
            token_max: u32::try_from(token_max).unwrap_or(u32::MAX).min(room.token_max),
            position_max: context_max,
            page_tokens: settings.page_tokens,
            page_count: 1,
        };
        let groups = |sizes: &Sizes| sizes.groups(spec, room.value_bytes).groups;
        // One page of each group.
        let page_bytes: u64 = groups(&sizes).iter().map(|group| group.page_bytes).sum();
        sizes.page_count = page_count(settings, context_max, page_bytes.max(1), room.kv_bytes)?;
        let positions = u64::from(sizes.page_count) * u64::from(sizes.page_tokens);
        let context_max = context_max.min(u32::try_from(positions).unwrap_or(u32::MAX));
        sizes.position_max = context_max;
        let groups = groups(&sizes);
        let plan = Self { sizes, groups, context_max, room };
        plan.fits()
    }

    fn pages_bytes(&self) -> u64 {
        let bytes = |group: &PageGroup| group.page_bytes * u64::from(group.page_count);
        self.groups.iter().map(bytes).sum()
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

fn trained(spec: &ModelSpec) -> u32 {
    u32::try_from(spec.position_max).unwrap_or(u32::MAX)
}

/// The longest context, if there is memory for it.
pub(crate) fn context_asked(settings: &EngineSettings, spec: &ModelSpec) -> u32 {
    settings.context_max.unwrap_or(trained(spec).min(CONTEXT_USUAL))
}

/// Pages of each group: as many as all slots need, or as there is memory for.
fn page_count(
    settings: &EngineSettings,
    context_max: u32,
    page_bytes: u64,
    kv_bytes: u64,
) -> Result<u32> {
    let one = u64::from(context_max.div_ceil(settings.page_tokens));
    let all = one * u64::from(settings.slot_count);
    let count = match settings.kv_bytes {
        Some(bytes) => bytes / page_bytes,
        None => all.min(kv_bytes / page_bytes),
    };
    if settings.context_max.is_some() && count < one {
        let (only, advice) = match settings.kv_bytes {
            Some(_) => ("may be only", ", or raise --kv-gib"),
            None => ("is memory for only", ""),
        };
        bail!(
            "--context-max {context_max} needs {} of keys and values, but there {only} {}: lower \
             it{advice}",
            BinaryBytes(one * page_bytes),
            BinaryBytes(count * page_bytes)
        );
    }
    ensure!(
        count > 0 && count * u64::from(settings.page_tokens) > 1,
        "{} do not hold one page of keys and values, which takes {}: {}",
        BinaryBytes(settings.kv_bytes.unwrap_or(kv_bytes)),
        BinaryBytes(page_bytes),
        if settings.kv_bytes.is_some() { "raise --kv-gib" } else { "there is no more memory" }
    );
    Ok(count.min(PAGES_MAX) as u32)
}

/// The memory table.
impl fmt::Display for EnginePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, what: &str, count: &str, bytes: u64| {
            writeln!(f, "  {what:<22} {count:<28} {:>10}", BinaryBytes(bytes).to_string())
        };
        line(f, self.room.fixed, "", self.room.fixed_bytes)?;
        for group in &self.groups {
            let what = match (group.kind, group.window) {
                (PageKind::Draft, _) => "pages, drafter".to_owned(),
                (_, Some(keys)) => format!("pages, window of {keys}"),
                (_, None) => "pages, full attention".to_owned(),
            };
            let count = format!("{} pages of {} tokens", group.page_count, group.page_tokens);
            line(f, &what, &count, group.page_bytes * u64::from(group.page_count))?;
        }
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
    use kilotok_testkit::Toy;

    use super::*;
    use crate::config::EngineKind;

    const GIB: u64 = 1 << 30;

    fn settings() -> EngineSettings {
        EngineSettings {
            kind: EngineKind::Cpu,
            rank_count: 1,
            slot_count: 4,
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
            token_max: u32::MAX,
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
}
