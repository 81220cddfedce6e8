use super::*;

fn no_env(_: &str) -> Option<String> {
    None
}

fn shown(result: Result<Settings, Vec<Problem>>) -> String {
    match result {
        Ok(_) => "good\n".to_owned(),
        Err(problems) => problems.iter().map(|p| format!("{p}\n")).collect(),
    }
}

/// The example of the interface, word for word: what is documented is what is read.
const DOCUMENTED: &str = r#"
node_name: ${NODE_NAME}
data_dir: /var/lib/ringpilot        # checkpoint, dead letters, control socket
http: 127.0.0.1:9210                # /metrics /healthz /readyz /api/status and the status page at /
memory_budget: 32MiB
shutdown_grace: 10s
label_prefixes: [aliyun]            # PILOT_LOG_PREFIX
collect_stdout: declared
host_root: auto
start_at: beginning
time_zone: UTC                      # for times without one
max_line_bytes: 256KiB              # at most 1MiB
batch_wait: 500ms
workers: auto
fields: log-pilot                   # or ecs
fields_from: {labels: [app], annotations: []}
metrics: {per_container: false}
discover:                           # each: auto (default: when its socket or folder exists), true, false, or settings
  docker: {socket: auto}            # /var/run/docker.sock, $XDG_RUNTIME_DIR, podman
  cri: {socket: auto, kubelet_dir: /var/lib/kubelet, pod_logs_dir: /var/log/pods}
  rings: {dir: /var/lib/ringpilot/rings}
policy:                             # what a workload may ask for
  default: {targets: ["*"], rate: none, on_excess: wait, pinned_bytes: 1GiB}   # on_excess: wait, or drop (counted)
  namespaces: {team-a: {targets: ["team-a-*"], rate: 5MB/s}}
sources:                            # besides what is discovered
  - name: access
    path: /var/log/nginx/*.log      # globs; from: beginning (default) or end
    format: nginx
    tags: {env: prod}
    target: web
    outputs: [es]                   # all by default
    multiline: {start: '^\d{4}-'}   # short for pattern, negate: true, match: after
outputs:
  es:      {type: elasticsearch, hosts: ["http://127.0.0.1:9200"], index: "{target}-{date}", compression: none}
  kafka:   {type: kafka, brokers: ["127.0.0.1:9092"], topic: "{target}"}
  archive: {type: file, path: "/data/{target}.ndjson", codec: json}   # codec: json, or raw for the line alone
"#;

#[test]
fn the_documented_configuration_is_read_whole() {
    let env = |name: &str| (name == "NODE_NAME").then(|| "node-1".to_owned());
    let settings = Settings::from_yaml(DOCUMENTED, &env).expect("the documented example");
    insta::assert_debug_snapshot!(settings);
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    let env = |name: &str| (name == "NODE_NAME").then(|| "node-1".to_owned());
    let whole = Settings::from_yaml(DOCUMENTED, &env).expect("the documented example");
    let empty = Settings::from_yaml("outputs: {c: {type: console}}", &env).expect("a least one");
    let same = Settings {
        sources: vec![],
        outputs: empty.outputs.clone(),
        policy: PolicySettings::default(),
        fields_from: FieldsFrom::default(),
        // A folder that is named is meant to be used.
        discover: Discover {
            rings: RingSettings {
                mode: Mode::Auto,
                ..whole.discover.rings.clone()
            },
            ..whole.discover.clone()
        },
        ..whole
    };
    assert_eq!(empty, same);
}

#[test]
fn without_a_file_or_an_output_records_go_to_the_console() {
    for settings in [
        Settings::from_environment(&no_env),
        Settings::from_yaml("", &no_env),
    ] {
        let settings = settings.expect("defaults");
        assert_eq!(
            settings.outputs,
            [OutputSettings::of(
                "console",
                settings.outputs[0].settings.clone()
            )]
        );
        assert_eq!(settings.label_prefixes, ["aliyun"]);
    }
}

#[test]
fn the_environment_names_node_and_prefixes_where_the_file_does_not() {
    let env = |name: &str| match name {
        "NODE_NAME" => Some("n7".to_owned()),
        "PILOT_LOG_PREFIX" => Some("aliyun, custom,".to_owned()),
        _ => None,
    };
    let settings = Settings::from_yaml("batch_wait: 1s", &env).expect("good");
    assert_eq!(
        (settings.node_name.as_str(), settings.label_prefixes.len()),
        ("n7", 2)
    );
    let settings = Settings::from_yaml("{node_name: n1, label_prefixes: [x]}", &env).expect("good");
    assert_eq!(
        (settings.node_name.as_str(), settings.label_prefixes.len()),
        ("n1", 1)
    );
}

#[test]
fn every_wrong_key_says_where_it_is_and_what_to_write() {
    let wrong = r#"
nodename: x
memory_budget: lots
start_at: yesterday
max_line_bytes: 2MiB
time_zone: Mars/Olympus
workers: many
http: everywhere
collect_stdout: never
host_root: host
label_prefixes: ["a b"]
discover: {dockr: true, cri: maybe}
policy: {default: {rate: fast, targes: ["*"]}, namespaces: {a: {on_excess: explode}}}
sources:
  - {name: a b, path: var/log, format: ngnix, target: "../x", outputs: [ess]}
  - {path: /x}
  - {name: x, path: /x, format: regexp, multiline: {strat: x}, time_zone: Nowhere}
  - {name: y, path: /y, keys: [a]}
outputs:
  es: {type: elasticsaerch, hosts: []}
  k a: {type: kafka}
  nothing: {type: null}
  c: {type: console, batch_bytes: 1, concurrency: 0, retry: {max_backof: 1s}, timeout: 5}
  d: {type: console, renamed_from: c, dead_letters: {when_full: burn}}
  e: console
"#;
    insta::assert_snapshot!(shown(Settings::from_yaml(wrong, &no_env)));
}

#[test]
fn a_file_that_is_no_yaml_or_not_there_is_told_in_one_line() {
    let mut all = shown(Settings::from_yaml("a: [1,\nb: 2", &no_env));
    all += &shown(Settings::from_yaml("- a\n- b", &no_env));
    all += &shown(Settings::from_yaml(
        "outputs: {a: {type: console}, a: {type: console}}",
        &no_env,
    ));
    all += &shown(Settings::from_yaml("data_dir: ${DATA_DIR}/x", &no_env));
    all += &shown(Settings::load(
        Some(Path::new("/nonexistent/ringpilot.yaml")),
        &no_env,
    ));
    insta::assert_snapshot!(all);
}

#[test]
fn no_secret_is_shown_by_settings_or_their_problems() {
    let env = |name: &str| (name == "PW").then(|| "hunter2".to_owned());
    let yaml = r#"
outputs:
  es: {type: elasticsearch, hosts: ["http://u:${PW}@es"], password: "${PW}", api_key: hunter2}
  h: {type: http, url: "http://u:hunter2@h/", headers: {Authorization: hunter2}}
"#;
    let settings = Settings::from_yaml(yaml, &env).expect("good");
    assert!(!format!("{settings:?} {settings:#?}").contains("hunter2"));
    let wrong = yaml.replace("api_key", "timeout: 'http://a:hunter2@b', batch_bytes");
    let problems = Settings::from_yaml(&wrong, &env).expect_err("wrong");
    assert_eq!(problems.len(), 2);
    let told = format!("{problems:?}");
    // What an operator typed where a size is wanted is shown; what a URL or a variable hides is not.
    assert!(!told.contains("a:hunter2@b"), "{told}");
}
