//! Series for which vLLM has no name.

use kilotok_engine::{Caps, PageKind};
use kilotok_sched::Stats;
use prometheus::{Gauge, Histogram, IntCounter};

use super::buckets;
use super::builder::SeriesBuilder;

pub(super) struct KilotokSeries {
    pub(super) plans_refused: IntCounter,
    pub(super) log_lines_lost: IntCounter,
    pub(super) mask_seconds: Histogram,
    pub(super) step_seconds: Histogram,
    pub(super) host_seconds: Histogram,
    pub(super) step_rows: Histogram,
    /// Drafts by position in the row, as pairs of verified and accepted: those verified by sample
    /// and match, by rejection sampling, and those whose acceptance was assumed.
    pub(super) matched: Vec<(IntCounter, IntCounter)>,
    pub(super) judged: Vec<(IntCounter, IntCounter)>,
    pub(super) assumed: Vec<(IntCounter, IntCounter)>,
    /// For each page group: pages in use, and pages cached for later requests.
    usage: Vec<(Gauge, Gauge)>,
}

impl KilotokSeries {
    pub(super) fn new(make: &SeriesBuilder<'_>, caps: &Caps) -> Self {
        let [matched, judged, assumed] = drafts(make, caps);
        Self {
            plans_refused: make.counter(
                "kilotok:plans_refused_total",
                "Plans of steps that the engine refused: a fault of the scheduler.",
            ),
            log_lines_lost: make.counter(
                "kilotok:log_lines_lost_total",
                "Lines of the log that were lost because it was not read fast enough.",
            ),
            mask_seconds: make.histogram(
                "kilotok:mask_seconds",
                "Time to make the grammar masks of one row.",
                buckets::short(),
            ),
            step_seconds: make.histogram(
                "kilotok:step_seconds",
                "Time of a step in the engine.",
                buckets::short(),
            ),
            host_seconds: make.histogram(
                "kilotok:host_seconds",
                "Time between two steps, in which the host planned and delivered.",
                buckets::short(),
            ),
            step_rows: make.histogram(
                "kilotok:step_rows",
                "Requests that had a share of a step.",
                buckets::counts(caps.row_max),
            ),
            matched,
            judged,
            assumed,
            usage: usage(make, caps),
        }
    }

    pub(super) fn publish(&self, stats: &Stats) {
        for ((used, kept), group) in self.usage.iter().zip(&stats.groups) {
            let part = |count: u32| f64::from(count) / f64::from(group.page_count.max(1));
            used.set(part(group.used));
            kept.set(part(group.kept));
        }
    }
}

/// By rule and position: verified and accepted drafts.
fn drafts(make: &SeriesBuilder<'_>, caps: &Caps) -> [Vec<(IntCounter, IntCounter)>; 3] {
    let labels = ["rule", "position"];
    let verified = make.counters_of(
        "kilotok:drafts_verified_total",
        "Drafts that were verified, by the rule and their place in the row.",
        &labels,
    );
    let accepted = make.counters_of(
        "kilotok:drafts_accepted_total",
        "Drafts that were accepted, by the rule and their place in the row.",
        &labels,
    );
    ["match", "rejection", "assumed"].map(|rule| {
        let places = (0..caps.draft_max).map(|place| place.to_string());
        let counters = places.map(|place| {
            let values = [rule, &place];
            (verified.with_label_values(&values), accepted.with_label_values(&values))
        });
        counters.collect()
    })
}

fn usage(make: &SeriesBuilder<'_>, caps: &Caps) -> Vec<(Gauge, Gauge)> {
    let labels = ["group", "kind"];
    let used = make.gauges("kilotok:pages_used", "Pages in use, as a part of all.", &labels);
    let kept =
        make.gauges("kilotok:pages_kept", "Pages kept for later, as a part of all.", &labels);
    let gauges = caps.groups.iter().enumerate().map(|(index, group)| {
        let kind = match group.kind {
            PageKind::Full => "full",
            PageKind::Window => "window",
            PageKind::Draft => "draft",
        };
        let values = [&*index.to_string(), kind];
        (used.with_label_values(&values), kept.with_label_values(&values))
    });
    gauges.collect()
}
