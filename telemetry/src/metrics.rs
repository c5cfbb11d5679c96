//! Metrics as plain values: a family is a name, a sentence, and its rows at the moment of the scrape.
//!
//! Nothing is counted for the sake of metrics that the process does not know anyway, so a process that nobody scrapes
//! pays nothing. `prometheus-client` writes the text.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
pub use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

pub type Labels = Vec<(&'static str, String)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
    Histogram,
}

/// One metric: shown even when it has no rows, so that the page of metrics can be held against it.
#[derive(Clone, Debug)]
pub struct Family {
    /// Without unit and `_total`, which the format adds.
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: Kind,
    rows: Vec<(Labels, f64)>,
    histogram: Option<Histogram>,
}

impl Family {
    fn new(name: &'static str, help: &'static str, kind: Kind) -> Self {
        Self { name, help, unit: None, kind, rows: Vec::new(), histogram: None }
    }

    pub fn gauge(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, Kind::Gauge)
    }

    pub fn counter(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, Kind::Counter)
    }

    /// In seconds.
    pub fn histogram(name: &'static str, help: &'static str, histogram: Histogram) -> Self {
        let mut family = Self::new(name, help, Kind::Histogram).seconds();
        family.histogram = Some(histogram);
        family
    }

    pub fn seconds(mut self) -> Self {
        self.unit = Some(Unit::Seconds);
        self
    }

    pub fn bytes(mut self) -> Self {
        self.unit = Some(Unit::Bytes);
        self
    }

    /// A metric without labels.
    pub fn value(self, value: f64) -> Self {
        self.row(Vec::new(), value)
    }

    pub fn row(mut self, labels: Labels, value: f64) -> Self {
        self.rows.push((labels, value));
        self
    }

    pub fn rows(mut self, rows: impl IntoIterator<Item = (Labels, f64)>) -> Self {
        self.rows.extend(rows);
        self
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Gauge => MetricType::Gauge,
            Kind::Counter => MetricType::Counter,
            Kind::Histogram => MetricType::Histogram,
        };
        let mut metric = encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), kind)?;
        if let Some(histogram) = &self.histogram {
            return histogram.encode(metric);
        }
        for (labels, value) in &self.rows {
            if labels.is_empty() {
                self.encode_row(&mut metric, *value)?;
            } else {
                self.encode_row(&mut metric.encode_family(labels)?, *value)?;
            }
        }
        Ok(())
    }

    fn encode_row(&self, row: &mut MetricEncoder<'_>, value: f64) -> fmt::Result {
        match self.kind {
            Kind::Counter => row.encode_counter::<NoLabelSet, f64, f64>(&value, None),
            Kind::Gauge | Kind::Histogram => row.encode_gauge(&value),
        }
    }
}

/// Buckets from 100 µs to 13 s, each twice the one before.
pub fn seconds_histogram() -> Histogram {
    Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(0.0001, 2.0, 18))
}

#[derive(Debug)]
struct Scrape(Vec<Family>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|family| family.encode(&mut encoder))
    }
}

/// The text that `/metrics` answers: OpenMetrics 1.0, which Prometheus reads since 2.5.
pub fn render(families: Vec<Family>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(families)));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_written_as_openmetrics_has_it() {
        let labels = |name: &str| vec![("target_cluster", name.to_owned())];
        let families = vec![
            Family::gauge("hawser_age", "How old.").seconds().row(labels("eu\"west"), 1.5),
            Family::counter("hawser_refused", "Refused.").rows([(labels("a"), 2.0)]),
            Family::gauge("hawser_empty", "Nothing yet."),
        ];
        let text = render(families).unwrap();
        assert!(text.contains("# HELP hawser_age_seconds How old.\n"), "{text}");
        assert!(text.contains("# UNIT hawser_age_seconds seconds\n"), "{text}");
        assert!(text.contains("hawser_age_seconds{target_cluster=\"eu\\\"west\"} 1.5\n"), "{text}");
        assert!(text.contains("hawser_refused_total{target_cluster=\"a\"} 2"), "{text}");
        assert!(text.contains("# TYPE hawser_empty gauge\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
