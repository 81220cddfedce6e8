//! What one record costs to write. `cargo bench -p ringpilot-bench --bench batch`; run once, small, by `cargo test`.
#![allow(
    missing_docs,
    reason = "criterion's macros make items that nobody reads"
)]

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringpilot::batch::escape::escape;
use ringpilot::batch::id::{RecordId, end_and_bytes, write_action};
use ringpilot::batch::json::{Entry, Flags, Names, Writer};
use ringpilot::declare::{Declaration, What};
use ringpilot::discover::{Pod, Workload, fixed};
use ringpilot::parse::{Field, Name, Record, Value};
use ringpilot::settings::{FieldShape, FieldsFrom};
use ringpilot::tag::Tags;

const CLEAN: &str = "2026-11-24 11:30:25.123 INFO [worker-7] c.e.shop.OrderService - order 8c1f2a77 of user u-123456 \
    paid: 3 items, 129.90 EUR, card, risk 0.02, took 12 ms (db 5 ms, psp 6 ms), region eu-1, next: ship it";
const NGINX: &str = r#"10.2.3.4 - - [24/Nov/2026:11:30:25 +0000] "GET /api/v1/orders/12345?page=2 HTTP/1.1" 200 5123 "https://shop.example.com/cart" "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)""#;
const JSON: &str = r#"{"time":"2026-11-24T11:30:25Z","level":"info","msg":"request done","path":"/api/v1/orders","status":200,"ms":12,"user":"u-123","trace":"abcdef0123456789","span":"0123456789abcdef","host":"eu-1"}"#;
const CJK: &str = "2026-11-24 11:30:25 信息 订单服务 处理完成，用户编号 12345，耗时 12 毫秒，状态成功，区域 华东一区，请求编号 abcdef，下一步 发送通知 给用户";

/// Nine tags.
fn tags() -> Tags {
    let workload = Workload {
        name: "web".to_owned(),
        labels: BTreeMap::new(),
        pod: Some(Pod {
            name: "web-7d4f9c6b5d-x2k8p".to_owned(),
            namespace: "shop".to_owned(),
            uid: String::new(),
            container: "nginx".to_owned(),
        }),
        ..fixed::workload()
    };
    let mut declaration = Declaration::new("access", What::Stdout);
    declaration.tags = vec![("env".to_owned(), "prod".to_owned())];
    let from = FieldsFrom::default();
    Tags::render(
        &workload,
        &declaration,
        "node-1",
        FieldShape::LogPilot,
        &from,
    )
}

/// The members of [`JSON`], as a parser tells them: everything between quotes at even places is a name.
fn members() -> Record {
    let mut record = Record::default();
    let object = JSON.trim_end_matches('}');
    let mut at = 1;
    for member in object[1..].split(",\"") {
        let Some((name, value)) = member.trim_start_matches('"').split_once("\":") else {
            continue;
        };
        let find = |text: &str, from: usize| from + JSON[from..].find(text).unwrap_or(0);
        let start = find(name, at);
        let value_start = start + name.len() + 2;
        at = value_start + value.len();
        record.fields.push(Field {
            name: Name::Json(start as u32, (start + name.len()) as u32),
            value: Value::Json(value_start as u32, at as u32),
        });
    }
    record
}

fn escaping(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("escape");
    for (name, text) in [
        ("clean", CLEAN),
        ("nginx", NGINX),
        ("json", JSON),
        ("cjk", CJK),
    ] {
        group.throughput(Throughput::Bytes(text.len() as u64));
        let mut out = Vec::new();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                escape(&mut out, black_box(text.as_bytes()));
            });
        });
    }
}

fn records(criterion: &mut Criterion) {
    let (tags, mut writer, mut out) = (tags(), Writer::default(), Vec::new());
    let own = ["remote", "method", "path", "code", "size", "agent"].map(str::to_owned);
    let own = Names::render(&own, &tags);
    let mut fields = Record::default();
    fields.fields = (0..6_u16)
        .map(|n| Field {
            name: Name::Own(n),
            value: Value::Text(u32::from(n) * 20, u32::from(n) * 20 + 15),
        })
        .collect();
    let (none, members) = (Record::default(), members());
    let mut time_ns = 1_795_519_825_123_456_789;
    let mut group = criterion.benchmark_group("record");
    group.throughput(Throughput::Elements(1));
    for (name, text, record, step_ns) in [
        ("text_at_one_time", CLEAN, &none, 0),
        ("text", CLEAN, &none, 1_037),
        ("text_nginx", NGINX, &none, 1_037),
        ("fields", CLEAN, &fields, 1_000_000_000),
        ("members", JSON, &members, 1_000_000_000),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                // As full as a slice makes it.
                if out.len() > 512 * 1024 {
                    out.clear();
                }
                time_ns += step_ns;
                let entry = Entry {
                    text: black_box(text.as_bytes()),
                    record,
                    time_ns,
                    channel: None,
                    flags: Flags::default(),
                };
                writer.write_record(&mut out, &tags, &own, &entry);
            });
        });
    }
    let mut start = 0;
    group.bench_function("action", |bencher| {
        bencher.iter(|| {
            if out.len() > 512 * 1024 {
                out.clear();
            }
            start += 200;
            let id = RecordId {
                source_hash: 7,
                generation: 1,
                start,
                end_and_bytes: end_and_bytes(start + 200, black_box(CLEAN.as_bytes())),
            };
            write_action(&mut out, &id, None);
        });
    });
}

criterion_group!(benches, escaping, records);
criterion_main!(benches);
