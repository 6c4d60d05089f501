//! The report for a browser: one HTML file with its charts inside, nothing loaded from elsewhere.

use lamella::weights::compress::{AllocationReport, ArrayRow, CompressReport};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::{CliError, print};

const WIDTH: u32 = 860;
const HEIGHT: u32 = 360;
const OWN: RGBColor = RGBColor(20, 96, 160);
const OTHER: RGBColor = RGBColor(200, 90, 20);
const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;font-size:12px;width:100%}td,th{padding:2px 6px;border-bottom:1px solid #ddd;\
text-align:right}td:first-child,th:first-child{text-align:left;font-family:monospace;word-break:break-all}\
svg{max-width:100%;height:auto}.note{color:#666}";

/// The whole page.
pub(crate) fn page(model: &str, report: &CompressReport) -> Result<String, CliError> {
    let mut body = format!(
        "<h1>{}</h1><p>{} of {} ({:.1} %), {} weights at {:.3} bits each; recipe <code>{}</code></p>",
        escaped(model),
        print::bytes(report.bytes),
        print::bytes(report.source_bytes),
        100.0 * report.bytes as f64 / report.source_bytes.max(1) as f64,
        report.weights,
        report.bits_per_weight,
        escaped(&report.recipe),
    );
    for warning in &report.warnings {
        body.push_str(&format!("<p class=note>{}</p>", escaped(warning)));
    }
    if let Some(found) = &report.allocation {
        body.push_str(&format!(
            "<h2>Loss over size</h2><p>Predicted {} of the original's output, from each array's effect measured alone on \
             {} tokens: {:.5} here, {:.5} with one relative step for all arrays in as many bytes ({:.2} of it).</p>{}",
            metric(found),
            found.tokens,
            found.loss,
            found.uniform_loss,
            found.loss / found.uniform_loss.max(f64::MIN_POSITIVE),
            rate_distortion(report, found)?,
        ));
    }
    let free: Vec<&ArrayRow> = report.arrays.iter().filter(|array| array.step_ratio.is_some()).collect();
    if !free.is_empty() {
        body.push_str("<h2>Bits of each array</h2><p>In the order of the file");
        if free.iter().any(|array| array.uniform_bits_per_weight.is_some()) {
            body.push_str("; lines: what one relative step for all would give");
        }
        body.push_str(&format!(".</p>{}", bits(&free)?));
    }
    let measured: Vec<&ArrayRow> = free.iter().copied().filter(|row| row.measured_loss.is_some()).collect();
    if !measured.is_empty() {
        body.push_str(&format!(
            "<h2>Predicted and measured</h2><p>Error of each array's output over that of leaving it out: predicted from \
             samples of rows before coding, measured after.</p>{}",
            predictions(&measured)?,
        ));
    }
    body.push_str(&table(report));
    Ok(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{}</title><style>{STYLE}</style><body>{body}</body></html>\n",
        escaped(model)
    ))
}

fn metric(found: &AllocationReport) -> &str {
    if found.metric == "kl" { "KL divergence (nats per token)" } else { "squared distance of embeddings" }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws on an area of the usual size and returns the SVG element.
fn drawn(draw: impl FnOnce(&Area<'_>) -> Result<(), String>) -> Result<String, CliError> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        let fail = |reason: String| CliError::usage(format!("the report's chart was not drawn: {reason}"));
        area.fill(&WHITE).map_err(|error| fail(error.to_string()))?;
        draw(&area).map_err(fail)?;
        area.present().map_err(|error| fail(error.to_string()))?;
    }
    // Inside HTML there is no XML declaration; a view box lets the page scale it.
    let size = format!("width=\"{WIDTH}\" height=\"{HEIGHT}\"");
    Ok(svg.find("<svg").map_or(String::new(), |at| svg[at..].replacen(&size, "", 1)))
}

fn power(value: &f64) -> String {
    format!("{value:.0e}")
}

fn whole(value: &f64) -> String {
    format!("{value:.0}")
}

fn text<E: std::error::Error>(error: E) -> String {
    error.to_string()
}

/// Lowest and highest of positive values, a little apart.
fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut low, mut high) = (f64::INFINITY, 0.0f64);
    for value in values.filter(|value| *value > 0.0 && value.is_finite()) {
        (low, high) = (low.min(value), high.max(value));
    }
    if high > 0.0 { (low / 1.3, high * 1.3) } else { (0.5, 2.0) }
}

fn rate_distortion(report: &CompressReport, found: &AllocationReport) -> Result<String, CliError> {
    let bits_of = |bytes: f64| bytes * 8.0 / report.weights.max(1) as f64;
    let (low, high) = span(found.curve.iter().flat_map(|point| [point.loss, point.uniform_loss]));
    let all = || found.curve.iter().map(|point| bits_of(point.bytes));
    let (left, right) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
    drawn(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(left..right, (low..high).log_scale())
            .map_err(text)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("bits per weight of the file").y_desc("predicted loss").light_line_style(WHITE);
        mesh.y_label_formatter(&power).draw().map_err(text)?;
        let mut line = |name: &str, color: RGBColor, loss: &dyn Fn(usize) -> f64| -> Result<(), String> {
            let points = (0..found.curve.len()).map(|at| (bits_of(found.curve[at].bytes), loss(at)));
            chart
                .draw_series(LineSeries::new(points, color.stroke_width(2)))
                .map_err(text)?
                .label(name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(2)));
            Ok(())
        };
        line("one relative step for all", OTHER, &|at| found.curve[at].uniform_loss)?;
        line("this allocation", OWN, &|at| found.curve[at].loss)?;
        let here = (bits_of(report.bytes as f64), found.loss);
        chart
            .draw_series([Circle::new(here, 5, OWN.filled())])
            .map_err(text)?
            .label("this file")
            .legend(|(x, y)| Circle::new((x + 9, y), 5, OWN.filled()));
        let mut legend = chart.configure_series_labels();
        legend.position(SeriesLabelPosition::UpperRight).background_style(WHITE).border_style(BLACK);
        legend.draw().map_err(text)
    })
}

fn bits(rows: &[&ArrayRow]) -> Result<String, CliError> {
    let all = rows.iter().flat_map(|row| [Some(row.bits_per_weight), row.uniform_bits_per_weight]);
    let top = all.flatten().fold(0.0f64, f64::max) * 1.15 + 0.1;
    drawn(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..rows.len() as f64, 0.0..top)
            .map_err(text)?;
        let mut mesh = chart.configure_mesh();
        mesh.disable_x_mesh().x_desc("array").y_desc("bits per weight").light_line_style(WHITE);
        mesh.x_label_formatter(&whole).draw().map_err(text)?;
        let bar = |(at, row): (usize, &&ArrayRow)| {
            let corners = [(at as f64 + 0.1, 0.0), (at as f64 + 0.9, row.bits_per_weight)];
            Rectangle::new(corners, OWN.mix(0.75).filled())
        };
        chart.draw_series(rows.iter().enumerate().map(bar)).map_err(text)?;
        let line = |(at, row): (usize, &&ArrayRow)| {
            let bits = row.uniform_bits_per_weight?;
            let ends = vec![(at as f64 + 0.05, bits), (at as f64 + 0.95, bits)];
            Some(PathElement::new(ends, OTHER.stroke_width(2)))
        };
        chart.draw_series(rows.iter().enumerate().filter_map(line)).map(|_| ()).map_err(text)
    })
}

fn predictions(rows: &[&ArrayRow]) -> Result<String, CliError> {
    let pairs: Vec<(f64, f64)> = rows
        .iter()
        .filter_map(|row| Some((row.predicted_loss, row.measured_loss?)))
        .filter(|pair| pair.0 > 0.0 && pair.1 > 0.0)
        .collect();
    let (low, high) = span(pairs.iter().flat_map(|pair| [pair.0, pair.1]));
    drawn(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d((low..high).log_scale(), (low..high).log_scale())
            .map_err(text)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("predicted").y_desc("measured").light_line_style(WHITE);
        mesh.x_label_formatter(&power).y_label_formatter(&power);
        mesh.draw().map_err(text)?;
        let diagonal = LineSeries::new([(low, low), (high, high)], BLACK.mix(0.3));
        chart.draw_series(diagonal).map_err(text)?;
        let point = |&pair: &(f64, f64)| Circle::new(pair, 4, OWN.mix(0.7).filled());
        chart.draw_series(pairs.iter().map(point)).map(|_| ()).map_err(text)
    })
}

fn table(report: &CompressReport) -> String {
    let mut rows = String::from(
        "<h2>Arrays</h2><table><tr><th>array<th>recipe<th>bytes<th>bits<th>uniform bits<th>predicted<th>measured\
         <th>of the model's loss</tr>",
    );
    let number = |value: Option<f64>, places: usize| value.map_or(String::new(), |v| format!("{v:.places$}"));
    let small = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2e}"));
    for array in &report.arrays {
        rows.push_str(&format!(
            "<tr><td>{}<td>{}<td>{}<td>{:.3}<td>{}<td>{:.2e}<td>{}<td>{}</tr>",
            escaped(&array.name),
            escaped(&array.recipe),
            array.bytes,
            array.bits_per_weight,
            number(array.uniform_bits_per_weight, 3),
            array.predicted_loss,
            small(array.measured_loss),
            small(array.model_loss),
        ));
    }
    rows + "</table>"
}

/// Text inside HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, bits: f64) -> ArrayRow {
        ArrayRow {
            name: name.to_owned(),
            shape: vec![8, 8],
            recipe: "house".to_owned(),
            bytes: 20,
            bits_per_weight: bits,
            step_ratio: Some(1.0),
            uniform_bits_per_weight: Some(2.5),
            model_loss: Some(0.01),
            predicted_loss: 0.02,
            measured_loss: Some(0.021),
            reason: String::new(),
        }
    }

    #[test]
    fn charts_are_whole_svg_and_names_are_escaped() {
        let rows = [row("a<b", 2.0), row("c", 3.0)];
        let rows: Vec<&ArrayRow> = rows.iter().collect();
        for svg in [bits(&rows).unwrap(), predictions(&rows).unwrap()] {
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
            assert!(svg.contains("viewBox=\"0 0 860 360\"") && !svg.contains("NaN"), "{svg}");
        }
        assert_eq!(escaped("a<b"), "a&lt;b");
    }
}
