//! How long one record takes from text to fields, by format, and what reading its time adds.
//! `cargo bench -p ringpilot-bench --bench parse`; in `cargo test` each runs once.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringpilot::declare::{Format, TimeKey};
use ringpilot::parse::{Parser, Record};

const COMBINED: &str = r#"172.17.0.1 - alice [12/Mar/2024:06:25:24 +0000] "GET /api/v1/orders/8213?expand=items HTTP/1.1" 200 1534 "https://shop.example.com/cart" "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/122.0.0.0 Safari/537.36""#;

const APACHE_ERROR: &str = "[Wed Oct 11 14:32:52.123456 2000] [core:error] [pid 35708:tid 4328636416] [client 72.15.99.187:1234] AH00128: File does not exist: /usr/local/apache2/htdocs/favicon.ico";

const JSON: &str = r#"{"time":"2024-03-12T06:25:24.123456789Z","level":"info","logger":"shop.orders","message":"order 8213 accepted for customer 55, 3 items, total 123.45 EUR","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","duration_ms":12.5,"ok":true,"user":{"id":55,"roles":["buyer","admin"]},"host":"web-7d4f"}"#;

/// A stack trace, with an escape for each line end and tabulator.
const TRACE: &str = r#"{"level":"error","exception":"java.lang.IllegalStateException: no such order\n\tat com.example.shop.Orders.find(Orders.java:118)\n\tat com.example.shop.Orders.accept(Orders.java:64)\n\tat com.example.shop.Api.post(Api.java:201)\n\tat java.base/java.lang.Thread.run(Thread.java:840)\n"}"#;

const CSV: &str = r#"2024-03-12 06:25:24.123,info,shop.orders,"order 8213 accepted, 3 items",4bf92f3577b34da6a3ce929d0e0e4736,12.5,true,55,"said ""hi""",web-7d4f"#;
const KEYS: [&str; 10] = [
    "time", "level", "logger", "message", "trace", "duration", "ok", "user", "said", "host",
];

/// Each group ends where the next begins: matched in one pass.
const STRICT: &str = r#"^(?<remote>[^ ]*) (?<host>[^ ]*) (?<user>[^ ]*) \[(?<time>[^\]]*)\] "(?<method>\S+) (?<path>[^ ]*) (?<protocol>[^"]*)" (?<code>\d+) (?<size>\d+) "(?<referer>[^"]*)" "(?<agent>[^"]*)"$"#;
/// fluentd's own for nginx, in which a path may end in several places.
const LOOSE: &str = r#"^(?<remote>[^ ]*) (?<host>[^ ]*) (?<user>[^ ]*) \[(?<time>[^\]]*)\] "(?<method>\S+)(?: +(?<path>[^\"]*?)(?: +\S*)?)?" (?<code>[^ ]*) (?<size>[^ ]*)(?: "(?<referer>[^\"]*)" "(?<agent>[^\"]*)")?$"#;

fn time_key(key: &str, format: Option<&str>) -> TimeKey {
    TimeKey {
        key: Some(key.to_owned()),
        format: format.map(str::to_owned),
        zone: Some("Asia/Shanghai".to_owned()),
    }
}

fn formats(criterion: &mut Criterion) {
    let csv = |time| Format::Csv {
        keys: KEYS.map(str::to_owned).to_vec(),
        time,
    };
    let regexp = |pattern: &str| Format::Regexp {
        pattern: pattern.to_owned(),
        time: time_key("time", Some("%d/%b/%Y:%H:%M:%S %z")),
    };
    let local = Some("%Y-%m-%d %H:%M:%S.%L");
    let cases = [
        ("nginx", Format::Nginx, COMBINED),
        ("apache2", Format::Apache2, COMBINED),
        ("apache_error", Format::ApacheError, APACHE_ERROR),
        ("json", Format::Json(TimeKey::default()), JSON),
        ("json, time", Format::Json(time_key("time", None)), JSON),
        ("json, escapes", Format::Json(TimeKey::default()), TRACE),
        ("csv", csv(TimeKey::default()), CSV),
        ("csv, local time", csv(time_key("time", local)), CSV),
        ("regexp, strict", regexp(STRICT), COMBINED),
        ("regexp, loose", regexp(LOOSE), COMBINED),
    ];
    let mut group = criterion.benchmark_group("parse");
    for (name, format, text) in cases {
        let parser = Parser::new(&format, "UTC").expect("a good format");
        let mut record = Record::default();
        parser.parse(text.as_bytes(), 0, &mut record);
        assert_eq!(
            (record.failure, record.time_failure),
            (None, None),
            "{name}"
        );
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                parser.parse(black_box(text.as_bytes()), 0, &mut record);
                black_box(&record);
            });
        });
    }
    group.finish();
}

/// An object of 100,000 keys, none repeated, all repeated: what a workload can make of a megabyte.
fn worst(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("100,000 keys");
    group.sample_size(10);
    let parser = Parser::new(&Format::Json(TimeKey::default()), "UTC").expect("a good format");
    let mut record = Record::default();
    for (name, different) in [("different", 100_000), ("one", 1)] {
        let members: Vec<String> = (0..100_000)
            .map(|n| format!("\"{}\":0", n % different))
            .collect();
        let text = format!("{{{}}}", members.join(","));
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| parser.parse(black_box(text.as_bytes()), 0, &mut record));
        });
    }
    group.finish();
}

criterion_group!(benches, formats, worst);
criterion_main!(benches);
