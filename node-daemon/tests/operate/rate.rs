//! A container that logs faster than it may is held to its rate, and told so. The operator's own sources are not.

use crate::node::{Node, assert_each_once, lines};

#[test]
fn the_operators_own_sources_are_not_held_to_a_rate() {
    let mut node = Node::new();
    node.configure(
        "policy: {default: {rate: 1kB/s}}\nsources:\n  - {name: app, path: 'DIR/logs/app.log'}\n\
         outputs:\n  files: {type: file, path: 'DIR/out/{target}.ndjson'}\n",
    );
    node.write("app.log", lines(0..20_000));
    node.start();
    node.until("all at once", || {
        node.messages("out/app.ndjson").len() == 20_000
    });
    node.stop();
    assert_each_once(&node.messages("out/app.ndjson"), 0..20_000);
}
