//! Numbers that are not finite. A row that produces them leaves them in its pages, rows that read
//! those pages leave more, and rows that then choose or score tokens fail. Later requests must not
//! start from pages of failed requests.

use std::collections::BTreeSet;

use kilotok_abi::PageId;
use kilotok_engine::{Caps, PageGroup, Row, RowFault, RowOutput, StepOutput, StepPlan};

type Pages = BTreeSet<(usize, PageId)>;

#[derive(Default)]
pub(super) struct Poison {
    /// Pages that contain such numbers.
    pages: Pages,
    /// Pages of rows that failed in earlier steps; below, those of this step.
    known: Pages,
    failed: Pages,
}

impl Poison {
    /// Applies the effect of a step's rows on their pages. The row `source` produces such numbers
    /// by itself.
    pub(super) fn spread(
        &mut self,
        caps: &Caps,
        plan: &StepPlan,
        output: &mut StepOutput,
        source: Option<u32>,
    ) {
        // The scheduler does not learn about the faults of a step that was lost.
        self.failed.clear();
        for (index, (row, out)) in (0..).zip(plan.rows.iter().zip(&mut output.rows)) {
            let bad = Some(index) == source || !read(caps, row).is_disjoint(&self.pages);
            for (page, whole) in written(caps, row) {
                if bad {
                    self.pages.insert(page);
                } else if whole {
                    self.pages.remove(&page);
                    self.known.remove(&page);
                }
            }
            if bad && (row.sample || !row.scored.is_empty()) {
                let all = read(caps, row).into_iter().chain(written(caps, row).map(|own| own.0));
                self.failed.extend(all.filter(|page| self.pages.contains(page)));
                let fault = Some(RowFault::NotFinite { position: row.start + 1 });
                *out = RowOutput { fault, ..RowOutput::default() };
            }
        }
    }

    /// Notes that the scheduler has learned about the step's faults.
    pub(super) fn is_known(&mut self) {
        self.known.append(&mut self.failed);
    }

    /// Checks that no row starts from the pages of a failed one.
    pub(super) fn check(&self, caps: &Caps, plan: &StepPlan) -> Result<(), String> {
        let starting = plan.rows.iter().filter(|row| row.setup.is_some());
        for row in starting {
            if let Some(page) = read(caps, row).intersection(&self.known).next() {
                return Err(format!("slot {} starts from {page:?} of a failed row", row.slot));
            }
        }
        Ok(())
    }
}

/// Pages with positions before those of the row.
fn read(caps: &Caps, row: &Row) -> Pages {
    let groups = caps.groups.iter().zip(&row.pages).enumerate();
    let pages = groups.flat_map(|(index, (group, run))| {
        let (first, end) = (first_page(group, row), row.start.div_ceil(group.page_tokens));
        (first..end).map(move |number| (index, run.pages[(number - run.first) as usize]))
    });
    pages.collect()
}

/// Pages with positions of the row, and whether all of a page's contents are the row's.
fn written<'r>(caps: &'r Caps, row: &'r Row) -> impl Iterator<Item = ((usize, PageId), bool)> + 'r {
    let groups = caps.groups.iter().zip(&row.pages).enumerate();
    groups.flat_map(move |(index, (group, run))| {
        let tokens = group.page_tokens;
        (row.start / tokens..row.end().div_ceil(tokens)).map(move |number| {
            let page = run.pages[(number - run.first) as usize];
            ((index, page), number * tokens >= row.start)
        })
    })
}

fn first_page(group: &PageGroup, row: &Row) -> u32 {
    group.first_needed(row.start) / group.page_tokens
}
