//! A new configuration pauses nothing that is the same, and loses nothing.

use crate::node::{Node, assert_each_once, lines, text};

const FILES: &str = "files: {type: file, path: 'DIR/out/{target}.ndjson'";
const MORE: &str = "more: {type: file, path: 'DIR/more/{target}.ndjson', start_at: beginning}";

fn configuration(n: usize) -> String {
    let source = "sources:\n  - {name: app, path: 'DIR/logs/app*.log', target: app}\n";
    match n % 5 {
        0 => format!("{source}outputs:\n  {FILES}}}\n"),
        1 => format!("{source}outputs:\n  {FILES}, concurrency: 2}}\n  {MORE}\n"),
        2 => format!(
            "{source}  - {{name: other, path: 'DIR/logs/other.log'}}\noutputs:\n  {FILES}, rotate_size: 1GiB}}\n  {MORE}\n"
        ),
        3 => format!("{source}outputs:\n  {FILES}}}\n  void: {{type: \"null\"}}\n"),
        _ => format!(
            "{source}  - {{name: other, path: 'DIR/logs/oth*.log'}}\noutputs:\n  {FILES}, timeout: 9s}}\n  {MORE}\n"
        ),
    }
}

/// `RINGPILOT_RELOADS=100` is the long form.
#[test]
fn reloads_under_load_lose_nothing_and_repeat_nothing() {
    let reloads: usize = std::env::var("RINGPILOT_RELOADS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20);
    let mut node = Node::new();
    node.configure(&configuration(0));
    node.start();
    let each = 2_000;
    for n in 0..reloads {
        for file in 0..4 {
            let from = n * each + file * each / 4;
            node.write(&format!("app{file}.log"), lines(from..from + each / 4));
        }
        node.configure(&configuration(n + 1));
        node.told(&["reload"]);
    }
    node.configure(&configuration(1));
    node.told(&["reload"]);
    let all = reloads * each;
    node.until("all is delivered", || {
        node.messages("out/app.ndjson").len() == all
            && node.messages("more/app.ndjson").len() == all
    });
    node.stop();
    assert_each_once(&node.messages("out/app.ndjson"), 0..all);
    assert_each_once(&node.messages("more/app.ndjson"), 0..all);
}

#[test]
fn a_wrong_configuration_is_refused_whole_and_the_old_one_goes_on() {
    let mut node = Node::new();
    node.configure(&configuration(0));
    node.start();
    let wrong = configuration(1).replace("start_at: beginning", "start_at: beginning, codek: raw");
    node.configure(&wrong);
    let refused = node.say(&["reload"]);
    assert_eq!(refused.status.code(), Some(2));
    let told = text(&refused.stderr);
    assert!(
        told.contains("the old one goes on") && told.contains("codek"),
        "{told}"
    );
    node.write("app0.log", lines(0..10));
    node.until("it goes on", || node.messages("out/app.ndjson").len() == 10);
    assert_eq!(node.status()["outputs"].as_array().map(Vec::len), Some(1));
    assert!(node.status()["problems"].to_string().contains("codek"));
    node.configure(&configuration(0));
    assert_eq!(node.told(&["reload"]).trim(), "nothing has changed");
    assert!(!node.status()["problems"].to_string().contains("codek"));
}

#[test]
fn a_new_output_begins_now_a_removed_one_is_remembered_and_a_renamed_one_goes_on() {
    let mut node = Node::new();
    node.configure(&configuration(0));
    node.write("app0.log", lines(0..10));
    node.start();
    node.until("the first ten", || {
        node.messages("out/app.ndjson").len() == 10
    });
    let now = "more: {type: file, path: 'DIR/more/{target}.ndjson'}";
    let with = |output: &str| configuration(0) + "  " + output + "\n";
    node.configure(&with(now));
    node.told(&["reload"]);
    node.write("app0.log", lines(10..20));
    node.until("the next ten", || {
        node.messages("more/app.ndjson").len() == 10
    });
    node.configure(&configuration(0));
    node.told(&["reload"]);
    node.write("app0.log", lines(20..30));
    node.until("without it", || node.messages("out/app.ndjson").len() == 30);
    node.configure(&with(now));
    node.hang_up();
    node.until("what came meanwhile", || {
        node.messages("more/app.ndjson").len() == 20
    });
    node.configure(&with(
        "moved: {type: file, path: 'DIR/more/{target}.ndjson', renamed_from: more}",
    ));
    node.told(&["reload"]);
    node.write("app0.log", lines(30..40));
    node.until("under its new name", || {
        node.messages("more/app.ndjson").len() == 30
    });
    node.stop();
    // The name is remembered over a restart, too.
    node.start();
    node.write("app0.log", lines(40..50));
    node.until("after a restart", || {
        node.messages("more/app.ndjson").len() == 40
    });
    node.stop();
    assert_each_once(&node.messages("out/app.ndjson"), 0..50);
    assert_each_once(&node.messages("more/app.ndjson"), 10..50);
}

#[test]
fn a_source_that_is_removed_and_comes_back_goes_on_where_it_stood() {
    let mut node = Node::new();
    let none = format!("outputs:\n  {FILES}}}\n");
    node.configure(&configuration(0));
    node.write("app0.log", lines(0..10));
    node.start();
    node.until("the first ten", || {
        node.messages("out/app.ndjson").len() == 10
    });
    node.configure(&none);
    assert_eq!(node.told(&["reload"]).trim(), "source `app` is removed");
    node.write("app0.log", lines(10..20));
    node.until("it is let go", || {
        node.status()["sources"]
            .as_array()
            .is_some_and(Vec::is_empty)
    });
    assert_eq!(node.messages("out/app.ndjson").len(), 10);
    node.configure(&configuration(0));
    node.told(&["reload"]);
    node.until("it goes on", || node.messages("out/app.ndjson").len() == 20);
    node.stop();
    assert_each_once(&node.messages("out/app.ndjson"), 0..20);
}
