//! The comparison as a table, with the bars that it has to meet.

use std::fmt::Write as _;

use super::fleet::Way;
use super::{Compare, Cost};

/// CPU that a pod may cost beyond what its lines cost on the node, in percent of a core.
const POD_PERCENT: f64 = 0.05;
/// Memory that it may.
const POD_BYTES: u64 = 2_000_000;
/// Connections of one daemon at the sink: as many as its output has requests at a time (`concurrency`), by default.
const ONE_SET: usize = 4;

/// Markdown: each way a line, then the bars.
pub(super) fn table(
    asked: &Compare,
    costs: &[Cost],
    missing: &[(Way, &str)],
) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let sizes: Vec<String> = asked.line_bytes.iter().map(ToString::to_string).collect();
    writeln!(
        out,
        "{} pods of {} files, {} lines/s each, lines of {} bytes in turn, {} s; then {} pods write {} lines at full speed.\n",
        asked.pods,
        asked.files,
        asked.rate,
        sizes.join(", "),
        asked.seconds,
        asked.busy,
        asked.full_lines,
    )?;
    out.push_str(
        "| | processes | CPU, % of a core | of it in pods | wake-ups/s | write to sink p50, p99 ms | PSS MB, after full speed | \
         PSS of a pod's process MB | connections | at full speed CPU s/GB | lines | lost | twice |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for cost in costs {
        let pods = cost.processes > 1 || cost.pod_pss_bytes > 0;
        let of_pods = |text: String| if pods { text } else { "-".to_owned() };
        writeln!(
            out,
            "| {} | {} | {:.2} | {} | {:.0} | {:.0}, {:.0} | {:.1}, {:.1} | {} | {} | {:.2} | {} | {} | {} |",
            cost.way.name(),
            cost.processes,
            cost.steady_cpu_percent,
            of_pods(format!("{:.2}", cost.steady_pods_cpu_percent)),
            cost.wakes_per_second,
            cost.p50_ms,
            cost.p99_ms,
            cost.pss_bytes as f64 / 1e6,
            cost.full_pss_bytes as f64 / 1e6,
            of_pods(format!("{:.2}", cost.pod_pss_bytes as f64 / 1e6)),
            cost.connections,
            cost.full_cpu_seconds_per_gb,
            cost.lines,
            cost.lost,
            cost.repeated,
        )?;
    }
    for (way, why) in missing {
        writeln!(out, "| {} | {why} |", way.name())?;
    }
    out.push('\n');
    bars(&mut out, asked, costs)?;
    Ok(out)
}

fn bars(out: &mut String, asked: &Compare, costs: &[Cost]) -> std::fmt::Result {
    let of = |way: Way| costs.iter().find(|cost| cost.way == way);
    let Some(hybrid) = of(Way::Hybrid) else {
        return Ok(());
    };
    out.push_str("| what the hybrid has to be | is | bar | |\n|---|---|---|---|\n");
    let mut bar = |what: &str, is: String, most: String, met: bool| {
        let verdict = if met { "met" } else { "missed" };
        writeln!(out, "| {what} | {is} | {most} | {verdict} |")
    };
    if let Some(node) = of(Way::Node) {
        let most = node.steady_cpu_percent + POD_PERCENT * f64::from(asked.pods);
        bar(
            "CPU: node's and 0.05 % of a core for each pod",
            format!("{:.2} %", hybrid.steady_cpu_percent),
            format!("{most:.2} %"),
            hybrid.steady_cpu_percent <= most,
        )?;
        let times = hybrid.full_cpu_seconds_per_gb / node.full_cpu_seconds_per_gb;
        bar(
            "CPU at full speed, times node's",
            format!("{times:.2}"),
            "1.5".to_owned(),
            times <= 1.5,
        )?;
        bar(
            "connections at the sink: one daemon's set",
            hybrid.connections.to_string(),
            ONE_SET.to_string(),
            hybrid.connections <= ONE_SET,
        )?;
    }
    if let Some(sidecar) = of(Way::Sidecar) {
        let part = hybrid.steady_cpu_percent / sidecar.steady_cpu_percent;
        bar(
            "CPU, of sidecar's",
            format!("{part:.2}"),
            "0.33".to_owned(),
            part <= 1.0 / 3.0,
        )?;
    }
    bar(
        "memory of a pod's process",
        format!("{:.2} MB", hybrid.pod_pss_bytes as f64 / 1e6),
        "2 MB".to_owned(),
        hybrid.pod_pss_bytes <= POD_BYTES,
    )?;
    bar(
        "lines lost",
        hybrid.lost.to_string(),
        "0".to_owned(),
        hybrid.lost == 0,
    )
}
