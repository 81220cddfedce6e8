//! How long one line takes from its file's bytes to text: line ends, envelopes, encodings, patterns.
//! `cargo bench -p ringpilot-bench --bench decode`; in `cargo test` each runs once.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringpilot::declare::{Multiline, Place};
use ringpilot::decode::charset::Charset;
use ringpilot::decode::lines::{self, Unit};
use ringpilot::decode::{cri, docker_json, multiline, time};
use ringpilot::filter::Filter;
use ringpilot::pattern::Pattern;

/// A line of 200 bytes, as an access log has them.
const TEXT: &str = r#"10.132.0.17 - - [24/Mar/2026:08:15:42 +0000] 'GET /api/v1/orders/8812?expand=items HTTP/1.1' 200 5120 'https://shop.example/cart' 'Mozilla/5.0 (X11; Linux x86_64)' rt=0.012 uct=0.001 urt=0.011 id=ab12"#;

const NGINX: &str = r#"/^(?<remote>[^ ]*) (?<host>[^ ]*) (?<user>[^ ]*) \[(?<time>[^\]]*)\] '(?<method>\S+)(?: +(?<path>[^']*?)(?: +\S*)?)?' (?<code>[^ ]*) (?<size>[^ ]*)(?: '(?<referer>[^']*)' '(?<agent>[^']*)')?/"#;

fn docker(log: &str) -> Vec<u8> {
    let tail = r#""stream":"stdout","time":"2026-03-24T08:15:42.123456789Z"}"#;
    format!("{{\"log\":\"{log}\",{tail}\n").into_bytes()
}

fn envelopes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("envelope");
    group.throughput(Throughput::Elements(1));
    let mut plain = docker(&format!("{TEXT}\\n"));
    group.bench_function("docker_json", |bencher| {
        bencher.iter(|| docker_json::decode(black_box(&mut plain)));
    });
    let few = docker(&format!("{}\\n", TEXT.replace('\'', "\\\"")));
    group.bench_function("docker_json, 6 escapes", |bencher| {
        let copy = || few.clone();
        bencher.iter_batched_ref(
            copy,
            |line| docker_json::decode(line),
            BatchSize::SmallInput,
        );
    });
    let json = r#"{\"time\":\"2026-03-24T08:15:42Z\",\"level\":\"info\",\"logger\":\"orders\",\"msg\":\"stored\",\"id\":\"8812\",\"user\":\"bob\",\"took\":\"12ms\",\"trace\":\"ab12cd34\"}\n"#;
    let many = docker(json);
    group.bench_function("docker_json, 33 escapes", |bencher| {
        let copy = || many.clone();
        bencher.iter_batched_ref(
            copy,
            |line| docker_json::decode(line),
            BatchSize::SmallInput,
        );
    });
    let attributed = docker(&format!(
        "{TEXT}\\n\",\"attrs\":{{\"tag\":\"web\"}},\"x\":\""
    ));
    group.bench_function("docker_json, other keys", |bencher| {
        let copy = || attributed.clone();
        bencher.iter_batched_ref(
            copy,
            |line| docker_json::decode(line),
            BatchSize::SmallInput,
        );
    });
    let line = format!("2026-03-24T08:15:42.123456789Z stdout F {TEXT}\n").into_bytes();
    group.bench_function("cri", |bencher| {
        bencher.iter(|| cri::decode(black_box(&line)))
    });
    group.bench_function("time", |bencher| {
        bencher.iter(|| time::rfc3339(black_box(b"2026-03-24T08:15:42.123456789Z")));
    });
    group.finish();
}

fn line_ends(criterion: &mut Criterion) {
    let slice = format!("{TEXT}\n").repeat(1_000).into_bytes();
    let wide: Vec<u8> = slice.iter().flat_map(|&byte| [byte, 0]).collect();
    let mut group = criterion.benchmark_group("1,000 line ends");
    for (name, unit, bytes) in [
        ("bytes", Unit::One, &slice),
        ("UTF-16", Unit::Utf16Le, &wide),
    ] {
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let (mut lines, mut from) = (0, 0);
                while let Some(end) = lines::next_line(unit, black_box(bytes), from) {
                    (lines, from) = (lines + 1, end);
                }
                lines
            });
        });
    }
    group.finish();
}

fn text(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("text");
    group.throughput(Throughput::Elements(1));
    let gbk = Charset::new("gbk").expect("a label");
    let mut scratch = Vec::new();
    group.bench_function("gbk, ASCII only", |bencher| {
        bencher.iter(|| gbk.to_utf8(black_box(TEXT.as_bytes()), &mut scratch).len());
    });
    let chinese = b"2026-03-24 08:15:42 \xd6\xd0\xb9\xfa".repeat(8);
    group.bench_function("gbk", |bencher| {
        bencher.iter(|| gbk.to_utf8(black_box(&chinese), &mut scratch).len());
    });
    let java = multiline::Rule::new(&Multiline {
        pattern: r"^\d{4}-\d{2}-\d{2}".to_owned(),
        negate: true,
        place: Place::After,
        max_lines: Multiline::MAX_LINES,
        timeout: Multiline::TIMEOUT,
    })
    .expect("a pattern");
    group.bench_function("multi-line, one line", |bencher| {
        bencher.iter(|| java.place(black_box(TEXT.as_bytes()), 1));
    });
    let exclude = ["^DEBUG".to_owned(), "/healthz".to_owned()];
    let filter = Filter::new(&[], &exclude).expect("patterns");
    group.bench_function("filter, two patterns", |bencher| {
        bencher.iter(|| filter.keeps(black_box(TEXT.as_bytes())));
    });
    let mut groups = Vec::new();
    let hard = NGINX.replace("/^", "/^(?=[0-9])");
    for (name, pattern) in [("regexp, plain", NGINX), ("regexp, hard", &hard)] {
        let pattern = Pattern::new(pattern).expect("a pattern");
        group.bench_function(name, |bencher| {
            bencher.iter(|| pattern.find_groups(black_box(TEXT.as_bytes()), &mut groups));
        });
    }
    group.finish();
}

criterion_group!(benches, envelopes, line_ends, text);
criterion_main!(benches);
