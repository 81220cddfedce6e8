use super::*;
use crate::discover::{Pod, Runtime, State, Stdout, Workload};
use crate::problem::Problem;
use crate::settings::CollectStdout;
use proptest::prelude::*;

fn workload(environment: &[(&str, &str)]) -> Workload {
    Workload {
        runtime: Runtime::Cri,
        id: "7d4f".repeat(16),
        name: "web".to_owned(),
        labels: Default::default(),
        annotations: Default::default(),
        environment: environment
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        mounts: Vec::new(),
        stdout: Stdout::Cri("/var/log/pods/shop_web-7d4f_1/nginx/0.log".into()),
        roots: Vec::new(),
        pid: 1,
        created_ns: 0,
        state: State::Running,
        pod: Some(Pod {
            name: "web-7d4f".to_owned(),
            namespace: "shop".to_owned(),
            uid: "1".to_owned(),
            container: "nginx".to_owned(),
        }),
    }
}

fn reading() -> Reading {
    Reading {
        prefixes: vec!["aliyun".to_owned()],
        collect_stdout: CollectStdout::Declared,
        time_zone: "UTC".to_owned(),
        own: Vec::new(),
    }
}

fn said(environment: &[(&str, &str)]) -> (Vec<Declaration>, Vec<Problem>) {
    read(&workload(environment), &reading())
}

fn names(declarations: &[Declaration]) -> Vec<&str> {
    declarations
        .iter()
        .map(|declaration| declaration.name.as_str())
        .collect()
}

#[test]
fn a_log_pilot_declaration_is_read_with_every_attribute() {
    let (declarations, problems) = said(&[
        ("PATH", "/bin"),
        ("aliyun_logs_access", "/var/log/nginx/*.log"),
        (
            "aliyun_logs_access_tags",
            "env=prod,query=a=b, team = shop ,",
        ),
        ("aliyun_logs_access_target", "web"),
        ("aliyun_logs_access_format", "regexp"),
        (
            "aliyun_logs_access_format_pattern",
            r"/(?<time>\S+) (?<text>.*)/",
        ),
        (
            "aliyun_logs_access_format_time_format",
            "%Y-%m-%dT%H:%M:%S.%L",
        ),
        ("aliyun_logs_access_format_time_zone", "Asia/Shanghai"),
        ("aliyun_logs_catalina", "stdout"),
    ]);
    assert_eq!(problems, []);
    let access = &declarations[0];
    assert_eq!(access.what, What::Files("/var/log/nginx/*.log".to_owned()));
    assert_eq!(
        (access.tag("query"), access.tag("team")),
        (Some("a=b"), Some("shop"))
    );
    assert_eq!(access.target, "web");
    let time = TimeKey {
        key: None,
        format: Some("%Y-%m-%dT%H:%M:%S.%L".to_owned()),
        zone: Some("Asia/Shanghai".to_owned()),
    };
    let pattern = r"/(?<time>\S+) (?<text>.*)/".to_owned();
    assert_eq!(access.format, Format::Regexp { pattern, time });
    assert_eq!(declarations[1], Declaration::new("catalina", What::Stdout));
}

/// What log-pilot drops whole containers for.
#[test]
fn a_bad_declaration_stops_no_other_and_every_problem_says_what_to_do() {
    let (declarations, problems) = said(&[
        ("aliyun_logs_good", "/logs/good.log"),
        ("aliyun_logs_my_app", "stdout"),
        ("aliyun_logs_typo", "/logs/a.log"),
        ("aliyun_logs_typo_format", "ngnix"),
        ("aliyun_logs_relative", "logs/a.log"),
        ("aliyun_logs_out", "STDOUT"),
        ("aliyun_logs_link", "/dev/stdout"),
        ("aliyun_logs_folder", "/logs/"),
        ("aliyun_logs_up", "/logs/../../etc/shadow"),
        ("aliyun_logs_empty", ""),
        ("aliyun_logs_a b", "stdout"),
        ("aliyun_logs__stdout", "stdout"),
        ("aliyun_logs__under", "stdout"),
        ("aliyun_logs_bad", "/logs/b.log"),
        ("aliyun_logs_bad_target", "../etc"),
        ("aliyun_logs_re", "/logs/c.log"),
        ("aliyun_logs_re_format", "regexp"),
        ("aliyun_logs_cols", "/logs/c.csv"),
        ("aliyun_logs_cols_format", "csv"),
        ("aliyun_logs_zone", "/logs/d.log"),
        ("aliyun_logs_zone_format", "json"),
        ("aliyun_logs_zone_format_time_zone", "Shanghai"),
        ("aliyun_logs_good_tagz", "a=b"),
        ("aliyun_logs_gone_format", "json"),
        ("aliyun_logs_gone.tags", "a=b"),
        ("aliyun_logs_good.formt", "json"),
        ("aliyun_logs_good_format_time_key", "ts"),
        ("aliyun_logs_good_tags", "a=b,=c,d,index=../x"),
    ]);
    assert_eq!(names(&declarations), ["good", "my_app"]);
    assert_eq!(declarations[0].tags, [("a".to_owned(), "b".to_owned())]);
    insta::assert_snapshot!(
        problems
            .iter()
            .map(|p| format!("{p}\n"))
            .collect::<String>()
    );
}

#[test]
fn custom_config_is_honoured_line_by_line_and_what_is_not_supported_is_told() {
    let config = r#"
# how Java writes
web.multiline.pattern='^\d{4}-'
web.multiline.negate=true
web.multiline.match=after
web.multiline.max_lines=100
web.multiline.timeout=3s
web.include_lines=["^ERR", "^WARN"]
web.exclude_lines='DEBUG'
web.max_bytes=65536
web.encoding=gbk
web.ignore_older=24h
web.tail_files=true
web.fields.team=shop
web.scan_frequency=10s
web.multilin.pattern=x
other.encoding=gbk
webb.encoding=gbk
nonsense
java.multiline.negate=true
python.encoding=klingon
go.multiline.match=inside
plain.multiline.pattern=^[0-9]{4}
"#;
    let (declarations, problems) = said(&[
        ("aliyun_logs_web", "/logs/web.log"),
        ("aliyun_logs_java", "/logs/java.log"),
        ("aliyun_logs_python", "/logs/python.log"),
        ("aliyun_logs_go", "/logs/go.log"),
        ("aliyun_logs_plain", "/logs/plain.log"),
        ("aliyun_logs_custom_config", config),
    ]);
    assert_eq!(names(&declarations), ["plain", "web"]);
    let (plain, web) = (&declarations[0], &declarations[1]);
    assert_eq!(
        plain.multiline.as_ref().map(|rule| rule.pattern.as_str()),
        Some("^[0-9]{4}")
    );
    let rule = Multiline {
        pattern: r"^\d{4}-".to_owned(),
        negate: true,
        place: Place::After,
        max_lines: 100,
        timeout: Duration::from_secs(3),
    };
    assert_eq!(web.multiline, Some(rule));
    assert_eq!(web.include, ["^ERR", "^WARN"]);
    assert_eq!(web.exclude, ["DEBUG"]);
    assert_eq!(
        (web.max_bytes, web.encoding.as_deref()),
        (Some(65_536), Some("gbk"))
    );
    assert_eq!(web.ignore_older, Some(Duration::from_secs(86_400)));
    assert_eq!(web.start_at, Some(StartAt::End));
    assert_eq!(web.tag("team"), Some("shop"));
    insta::assert_snapshot!(
        problems
            .iter()
            .map(|p| format!("{p}\n"))
            .collect::<String>()
    );
}

#[test]
fn a_tag_named_index_or_topic_overrides_the_target_for_its_backend_alone() {
    let (declarations, problems) = said(&[
        ("aliyun_logs_web", "stdout"),
        ("aliyun_logs_web_target", "t"),
        ("aliyun_logs_web_tags", "index=i,topic=k"),
    ]);
    assert_eq!(problems, []);
    let target = |kind| declarations[0].target_for(kind);
    assert_eq!(
        [
            target("elasticsearch"),
            target("kafka"),
            target("redis"),
            target("file")
        ],
        ["i", "k", "k", "t"]
    );
}

#[test]
fn a_container_has_at_most_a_hundred_targets() {
    let keys: Vec<String> = (0..150).map(|n| format!("aliyun_logs_log{n:03}")).collect();
    let environment: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "stdout")).collect();
    let (declarations, problems) = said(&environment);
    assert_eq!((declarations.len(), problems.len()), (100, 50));
    assert!(problems[0].reason.contains("100 targets"));
}

#[test]
fn all_stdout_is_collected_once_under_the_best_name_and_never_our_own() {
    let all = Reading {
        collect_stdout: CollectStdout::All,
        ..reading()
    };
    let mut pod = workload(&[("aliyun_logs_file", "/logs/a.log")]);
    let (declarations, _) = read(&pod, &all);
    assert_eq!(names(&declarations), ["file", "_stdout"]);
    assert_eq!(declarations[1].target, "nginx");

    pod.labels
        .insert("com.docker.compose.project".to_owned(), "shop".to_owned());
    assert_eq!(read(&pod, &all).0[1].target, "shop");
    pod.labels.insert(
        "com.docker.stack.namespace".to_owned(),
        "shop/stack".to_owned(),
    );
    assert_eq!(read(&pod, &all).0[1].target, "shop-stack");
    pod.labels.clear();
    pod.pod = None;
    assert_eq!(read(&pod, &all).0[1].target, "web");

    let own = Reading {
        own: vec![pod.id.clone()],
        ..all.clone()
    };
    assert_eq!(names(&read(&pod, &own).0), ["file"]);
    let declared = workload(&[("aliyun_logs_out", "stdout")]);
    assert_eq!(names(&read(&declared, &all).0), ["out"]);
}

proptest! {
    /// Any environment, any labels: no panic, no target that could leave its place, a cure for every problem.
    #[test]
    fn nothing_a_workload_writes_can_harm_us(
        keys in proptest::collection::vec(("aliyun_logs_[a-z_.]{0,12}|aliyun_logs_(web|custom)_(config|tags|format|target)", "stdout|/[a-z*./]{0,9}|\\PC{0,20}|web\\.[a-z.]{1,20}=\\PC{0,9}"), 0..30)
    ) {
        let mut web = workload(&[("aliyun_logs_web", "stdout")]);
        web.environment.extend(keys.iter().cloned());
        web.labels.extend(keys.into_iter().map(|(key, value)| (key.replace('_', "."), value)));
        let (declarations, problems) = read(&web, &reading());
        for declaration in declarations {
            prop_assert_eq!(target::check(&declaration.target), Ok(()));
            prop_assert_eq!(target::check(declaration.target_for("elasticsearch")), Ok(()));
        }
        for problem in problems {
            prop_assert!(!problem.reason.is_empty() && !problem.cure.is_empty());
        }
    }
}
