//! An experiment's results as a page: one file, no scripts, nothing loaded.

use std::fmt::Write;
use weft_experiments::{ArmReport, Comparison, Decision, EndReason, KeepReason, Report, Verdict};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1b1b;background:#fff}
table{border-collapse:collapse;margin:1rem 0;width:100%}th,td{border-bottom:1px solid #ddd;padding:.35rem .6rem;text-align:right}
th:first-child,td:first-child,td.text{text-align:left}caption{text-align:left;font-weight:600;padding:.3rem 0}
.better{color:#05631f}.worse{color:#a11212}.note{color:#555}";

/// The page. Cost: linear in arms and metrics.
pub(super) fn page(report: &Report) -> String {
    let mut html = String::new();
    let title = format!("{} · {}/{}", report.experiment, report.tenant, report.adapter);
    let title = escaped(&title);
    // Writing to a string cannot fail.
    let _ = write!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>\
         <p>It is <b>{}</b>, revision {}. <b>{}</b></p>",
        escaped(report.state.as_str()),
        report.revision,
        escaped(&decision(&report.decision)),
    );
    arms(&mut html, &report.arms);
    comparisons(&mut html, &report.comparisons);
    let split = if report.split.is_broken {
        "Requests do not go where the weights send them"
    } else {
        "The split is as planned"
    };
    let _ = write!(
        html,
        "<p class=\"note\">{split} (p = {:.4}). Intervals hold at all times: looking often is safe.</p></body></html>",
        report.split.p_value
    );
    html
}

fn arms(html: &mut String, arms: &[ArmReport]) {
    html.push_str("<table><caption>Arms</caption><tr><th>arm</th><th>weight</th><th>requests</th><th>units</th>");
    for metric in arms.first().into_iter().flat_map(|arm| &arm.metrics) {
        let _ = write!(html, "<th>{}</th>", escaped(&metric.name));
    }
    html.push_str("</tr>");
    for arm in arms {
        let role = serde_json::to_value(arm.role).ok();
        let role = role.as_ref().and_then(|role| role.as_str()).unwrap_or_default();
        let _ = write!(
            html,
            "<tr><td title=\"{}\">{} <span class=\"note\">{role}</span></td><td>{}</td><td>{}</td><td>{}</td>",
            arm.digest,
            escaped(&arm.name),
            arm.weight,
            arm.exposures,
            arm.units
        );
        for metric in &arm.metrics {
            let mean = metric.mean.map_or("—".to_owned(), |mean| format!("{mean:.4}"));
            let tail = metric.p95.map_or(String::new(), |p95| format!(", p95 {p95:.1}"));
            let _ = write!(html, "<td>{mean} <span class=\"note\">n {}{tail}</span></td>", metric.count);
        }
        html.push_str("</tr>");
    }
    html.push_str("</table>");
}

fn comparisons(html: &mut String, comparisons: &[Comparison]) {
    html.push_str(
        "<table><caption>Against the control</caption><tr><th>arm</th><th>metric</th><th>difference</th><th>from</th><th>to</th><th>p</th><th></th></tr>",
    );
    for comparison in comparisons {
        let (class, verdict) = match comparison.verdict {
            Verdict::Better => ("better", "better"),
            Verdict::Worse => ("worse", "worse"),
            Verdict::Undecided => ("note", "undecided"),
        };
        let number = |value: Option<f64>| value.map_or("—".to_owned(), |value| format!("{value:+.4}"));
        let p = comparison.p_value.map_or("—".to_owned(), |p| format!("{p:.4}"));
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=\"text\">{}</td><td>{}</td><td>{:+.4}</td><td>{:+.4}</td><td>{p}</td><td class=\"{class}\">{verdict}</td></tr>",
            escaped(&comparison.arm),
            escaped(&comparison.metric),
            number(comparison.estimate),
            comparison.interval.low,
            comparison.interval.high,
        );
    }
    html.push_str("</table>");
}

fn decision(decision: &Decision) -> String {
    match decision {
        Decision::Keep { reason: KeepReason::NotRunning } => "Nothing is being tested.".to_owned(),
        Decision::Keep { reason: KeepReason::Undecided } => "Nothing is shown yet.".to_owned(),
        Decision::Keep { reason: KeepReason::SplitBroken } => {
            "The split is broken: nothing may be concluded.".to_owned()
        }
        Decision::StopArms { stops } => {
            let arms: Vec<&str> = stops.iter().map(|stop| stop.arm.as_str()).collect();
            format!("A guardrail is about to stop {}.", arms.join(", "))
        }
        Decision::Winner { arm } => format!("{arm} is better and worse in nothing: it may be promoted."),
        Decision::End { reason: EndReason::Time } => "Its time is over.".to_owned(),
        Decision::End { reason: EndReason::NoArms } => "No arm beside the control is left.".to_owned(),
    }
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_shows_every_arm_and_runs_nothing_of_what_it_shows() {
        let description = br#"{"id":"e","tenant":"t","adapter":"a","primary":"feedback","arms":[
            {"name":"v1","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","role":"control","weight":9},
            {"name":"v2","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b856","weight":1}],
            "metrics":[{"name":"feedback","kind":"binary","better":"higher"}]}"#;
        let experiment = weft_experiments::Experiment::parse(description).unwrap().started().unwrap();
        let mut report = weft_experiments::report(&experiment, &weft_experiments::Statistics::new(&experiment), 1);
        report.arms[1].name = "<script>".to_owned();
        let page = page(&report);
        for part in ["e · t/a", "v1", "&lt;script&gt;", "feedback", "Nothing is shown yet", "undecided"] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("<script>"));
    }
}
