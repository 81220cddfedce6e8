//! A secret is nowhere but where it is needed; a secret file that changes counts.

use crate::bulk::Bulk;
use crate::node::{Node, lines, ringpilot, text};

/// base64 of `elastic:PASSWORD`.
fn basic(password: &str) -> String {
    use base64::Engine;
    let login = format!("elastic:{password}");
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(login)
    )
}

#[test]
fn no_secret_is_in_logs_status_check_or_explain_and_a_changed_secret_file_counts() {
    const WRONG: &str = "hunter2-wrong";
    const RIGHT: &str = "hunter2-right";
    let bulk = Bulk::start();
    bulk.with(|state| state.login = Some(basic(RIGHT)));
    let mut node = Node::new();
    std::fs::write(node.path("password"), WRONG).expect("a write");
    let outputs = format!(
        "outputs:\n  es: {{type: elasticsearch, hosts: ['{}'], username: elastic, password: {{file: DIR/password}}}}\n  \
         url: {{type: elasticsearch, hosts: ['{}']}}\n",
        bulk.address,
        bulk.address.replace("://", &format!("://elastic:{WRONG}@")),
    );
    node.configure(&format!(
        "sources:\n  - {{name: app, path: 'DIR/logs/app.log'}}\n{outputs}"
    ));
    node.write("app.log", lines(0..10));
    let mut said = String::new();
    let mut keep = |output: &std::process::Output| {
        said.push_str(&text(&output.stdout));
        said.push_str(&text(&output.stderr));
        output.status.code()
    };
    let check = |words: &[&str]| {
        let mut command = ringpilot();
        command
            .args(["check", "-c"])
            .arg(node.path("c.yaml"))
            .args(words);
        command.output().expect("the program")
    };
    assert_eq!(keep(&check(&[])), Some(0));
    assert_eq!(keep(&check(&["--connect"])), Some(1));
    assert_eq!(keep(&check(&["--connect", "--json"])), Some(1));
    node.start();
    node.until("it is refused", || {
        node.status()["outputs"][0]["trouble"]
            .to_string()
            .contains("authenticate")
    });
    keep(&node.say(&["explain"]));
    keep(&node.say(&["explain", "--json"]));
    keep(&node.say(&["top", "--json"]));
    keep(&node.say(&["top"]));
    // A misspelled key holds a secret, too.
    let bad = node.path("bad.yaml");
    std::fs::write(
        &bad,
        format!("outputs: {{es: {{type: elasticsearch, hosts: [a], passwrd: {WRONG}}}}}"),
    )
    .expect("a write");
    let mut command = ringpilot();
    let refused = command
        .args(["check", "-c"])
        .arg(&bad)
        .output()
        .expect("the program");
    assert_eq!(keep(&refused), Some(1));
    let mut command = ringpilot();
    let refused = command
        .args(["run", "-c"])
        .arg(&bad)
        .output()
        .expect("the program");
    assert_eq!(keep(&refused), Some(2));
    std::fs::write(node.path("password"), RIGHT).expect("a write");
    node.until("the new password counts", || {
        bulk.with(|state| state.documents.len()) == 10
    });
    node.stop();
    said.push_str(&node.log());
    assert!(said.contains("authenticate"), "{said}");
    let secrets = [
        WRONG.to_owned(),
        RIGHT.to_owned(),
        basic(WRONG),
        basic(RIGHT),
    ];
    for secret in secrets {
        assert!(!said.contains(&secret), "{secret} is told:\n{said}");
    }
}
