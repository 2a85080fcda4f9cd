//! Charts as SVG files.

use crate::outcome::Outcome;
use anyhow::{Context, Result, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use std::path::Path;

/// Curves over common axes.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// Above the picture.
    pub title: String,
    /// Name of the horizontal axis.
    pub x: String,
    /// Name of the vertical axis.
    pub y: String,
    /// Logarithmic horizontal axis.
    pub x_log: bool,
    /// Logarithmic vertical axis.
    pub y_log: bool,
    /// Name and points of each curve; points that an axis cannot show are left out.
    pub curves: Vec<(String, Vec<(f64, f64)>)>,
}

const SIZE: (u32, u32) = (800, 480);
const COLOURS: &[RGBColor] = &[
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xd6, 0x27, 0x28),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0xff, 0x7f, 0x0e),
    RGBColor(0x94, 0x67, 0xbd),
    RGBColor(0x8c, 0x56, 0x4b),
];

impl Chart {
    /// Draws it into a file, whose folder is made if it is missing. Without points nothing is written.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let shown = self.shown();
        let points = || shown.iter().flat_map(|(_, points)| points);
        if points().next().is_none() {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let x = span(points().map(|point| point.0), self.x_log);
        let y = span(points().map(|point| point.1), self.y_log);
        let drawn = match (self.x_log, self.y_log) {
            (false, false) => self.draw::<RangedCoordf64, RangedCoordf64>(path, x.0..x.1, y.0..y.1, &shown),
            (true, false) => self.draw(path, (x.0..x.1).log_scale(), y.0..y.1, &shown),
            (false, true) => self.draw(path, x.0..x.1, (y.0..y.1).log_scale(), &shown),
            (true, true) => self.draw(path, (x.0..x.1).log_scale(), (y.0..y.1).log_scale(), &shown),
        };
        drawn.with_context(|| format!("cannot draw {}", path.display()))
    }

    fn shown(&self) -> Vec<(&str, Vec<(f64, f64)>)> {
        let fits = |value: f64, log: bool| value.is_finite() && (!log || value > 0.0);
        let keep = |point: &&(f64, f64)| fits(point.0, self.x_log) && fits(point.1, self.y_log);
        self.curves
            .iter()
            .map(|(name, points)| (name.as_str(), points.iter().filter(keep).copied().collect()))
            .collect()
    }

    fn draw<X, Y>(
        &self,
        path: &Path,
        x: impl AsRangedCoord<CoordDescType = X, Value = f64>,
        y: impl AsRangedCoord<CoordDescType = Y, Value = f64>,
        shown: &[(&str, Vec<(f64, f64)>)],
    ) -> Result<()>
    where
        X: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let words = |error: &dyn std::fmt::Display| anyhow!("{error}");
        let root = SVGBackend::new(path, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|error| words(&error))?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(x, y)
            .map_err(|error| words(&error))?;
        let label = |value: &f64| short(*value);
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc(&self.x)
            .y_desc(&self.y)
            .x_label_formatter(&label)
            .y_label_formatter(&label)
            .draw()
            .map_err(|error| words(&error))?;
        for ((name, points), colour) in shown.iter().zip(COLOURS.iter().cycle()) {
            let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
            let series = chart.draw_series(line).map_err(|error| words(&error))?;
            series.label(*name).legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        let labels = chart.configure_series_labels().border_style(BLACK).background_style(WHITE.mix(0.9)).draw();
        labels.map_err(|error| words(&error))?;
        root.present().map_err(|error| words(&error))
    }
}

/// Bounds of an axis with some air; never empty.
fn span(values: impl Iterator<Item = f64>, log: bool) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    if log {
        (low / 1.2, high * 1.2)
    } else {
        let low = low.min(0.0);
        (low, high + ((high - low) * 0.05).max(1e-9))
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.1}").trim_end_matches(".0").to_owned(),
        _ => format!("{value:.3}"),
    }
}

/// Which part of requests had their first token within a time, warm and cold apart.
#[must_use]
pub fn first_tokens(title: &str, outcomes: &[Outcome]) -> Chart {
    let curve = |cold: bool| {
        let some = outcomes.iter().filter(|outcome| outcome.completed() && outcome.cold() == cold);
        distribution(some.map(Outcome::ttft_ms).collect())
    };
    let curves = [("warm", curve(false)), ("cold", curve(true))];
    Chart {
        title: title.to_owned(),
        x: "time to first token, ms".to_owned(),
        y: "part of the requests".to_owned(),
        x_log: true,
        y_log: false,
        curves: curves
            .into_iter()
            .filter(|(_, points)| !points.is_empty())
            .map(|(name, points)| (name.to_owned(), points))
            .collect(),
    }
}

/// The cumulated distribution of samples.
#[must_use]
pub fn distribution(mut samples: Vec<f64>) -> Vec<(f64, f64)> {
    samples.sort_by(f64::total_cmp);
    let count = samples.len() as f64;
    samples.into_iter().enumerate().map(|(index, sample)| (sample, (index + 1) as f64 / count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_are_svg_with_their_curves_and_names() {
        let dir = tempfile::tempdir().unwrap();
        for (x_log, y_log) in [(false, false), (true, false), (false, true), (true, true)] {
            let path = dir.path().join(format!("{x_log}-{y_log}/chart.svg"));
            let curves = vec![
                ("warm".to_owned(), vec![(0.0, 0.0), (0.5, 1.0), (2.0, 40.0), (16.0, f64::NAN)]),
                ("cold".to_owned(), vec![(1.0, 3.0)]),
            ];
            let chart = Chart { title: "A title".into(), x: "x".into(), y: "y".into(), x_log, y_log, curves };
            chart.save(&path).unwrap();
            let svg = std::fs::read_to_string(&path).unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
            for part in ["A title", "warm", "cold", "polyline"] {
                assert!(svg.contains(part), "{part}");
            }
            assert!(!svg.contains("NaN"), "{svg}");
        }
    }

    #[test]
    fn a_chart_without_points_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.svg");
        let curves = vec![("log of nothing".to_owned(), vec![(0.0, 1.0)])];
        Chart { x_log: true, curves, ..Chart::default() }.save(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_distribution_climbs_to_one() {
        assert_eq!(distribution(vec![3.0, 1.0]), [(1.0, 0.5), (3.0, 1.0)]);
    }
}
