//! What an output refused can be looked at, and is sent again once, under the id it had.

use crate::bulk::Bulk;
use crate::node::{Node, lines, text};

#[test]
fn a_refused_record_is_listed_shown_and_sent_again_under_its_id() {
    let bulk = Bulk::start();
    bulk.with(|state| state.refuses = Some("line-000003".to_owned()));
    let mut node = Node::new();
    let outputs = format!(
        "outputs:\n  es: {{type: elasticsearch, hosts: ['{}']}}\n",
        bulk.address
    );
    node.configure(&format!(
        "sources:\n  - {{name: app, path: 'DIR/logs/app.log'}}\n{outputs}"
    ));
    node.write("app.log", lines(0..10));
    assert_eq!(
        node.told(&["dead-letters", "list"]).trim(),
        "no output has dead letters"
    );
    node.start();
    node.until("the letter", || {
        node.told(&["dead-letters", "list"])
            .contains("mapper_parsing_exception")
    });
    let list: serde_json::Value =
        serde_json::from_str(&node.told(&["dead-letters", "list", "--json"])).expect("JSON");
    assert_eq!(list["es"]["letters"], 1);
    assert_eq!(list["es"]["reasons"]["mapper_parsing_exception"], 1);
    let shown: serde_json::Value =
        serde_json::from_str(&node.told(&["dead-letters", "show", "es", "--json"])).expect("JSON");
    assert_eq!(shown["target"], "app");
    assert_eq!(shown["offset"], 3 * 12);
    assert_eq!(shown["log"], "source `app`");
    assert_eq!(shown["record"]["message"], "line-000003");
    let told = node.told(&["dead-letters", "show"]);
    assert!(
        told.contains("failed to parse field [n]") && told.contains("at byte 36"),
        "{told}"
    );
    // Refused again: it stays.
    let again = node.say(&["dead-letters", "retry", "es"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stdout).contains("refused again: mapper_parsing_exception"));
    // Mended: it goes, and a tap sees nothing of it because no flow has it.
    bulk.with(|state| state.refuses = None);
    let done = node.told(&["dead-letters", "retry"]);
    assert_eq!(done.trim(), "output es: 1 delivered, 0 left");
    assert_eq!(bulk.with(|state| state.documents.len()), 10);
    assert_eq!(
        node.told(&["dead-letters", "list"]).trim(),
        "no output has dead letters"
    );
    let wrong = node.say(&["dead-letters", "show", "ess"]);
    assert!(!wrong.status.success() && text(&wrong.stderr).contains("use `es`"));
    node.stop();
    // Without a daemon it says who sends.
    let nobody = node.say(&["dead-letters", "retry", "es"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("they are sent by the daemon"));
}
