use super::*;

fn injected(written: &str, options: &Options) -> String {
    let injected = manifest(written, options).expect("a manifest");
    let problems: String = injected
        .problems
        .iter()
        .map(|p| format!("# {p}\n"))
        .collect();
    format!("{problems}{}", injected.text)
}

/// The shapes that pods have in the wild.
const SHAPES: [(&str, &str); 12] = [
    (
        "pod",
        "apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec:
  containers:
  - name: nginx
    image: nginx:1.29
    env:
    - {name: aliyun_logs_access, value: /var/log/nginx/*.log}
    - {name: aliyun_logs_access_format, value: nginx}
    - {name: OTHER, value: untouched}
    volumeMounts:
    - {name: logs, mountPath: /var/log/nginx}
    - {name: data, mountPath: /data}
  volumes:
  - {name: logs, emptyDir: {}}
  - {name: data, emptyDir: {}}
",
    ),
    (
        "deployment_with_fields_nobody_knows",
        "apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  futureField: {a: [1, 2.5, true, null]}
  template:
    metadata: {labels: {app: web}}
    spec:
      securityContext: {runAsUser: 1000, runAsGroup: 2000, fsGroup: 3000}
      containers:
      - name: web
        newField: kept
        env: [{name: aliyun_logs_app, value: /logs/app.log}]
        volumeMounts: [{name: logs, mountPath: /logs, subPath: web, mountPropagation: HostToContainer}]
      volumes: [{name: logs, persistentVolumeClaim: {claimName: logs}}]
",
    ),
    (
        "statefulset_of_root_with_fs_group",
        "kind: StatefulSet
metadata: {name: db, namespace: data}
spec:
  template:
    spec:
      securityContext: {runAsUser: 0, fsGroup: 999}
      containers:
      - name: db
        env: [{name: aliyun_logs_slow, value: /logs/slow.log}]
        volumeMounts: [{name: logs, mountPath: /logs}]
",
    ),
    (
        "daemonset_on_a_host_path",
        "kind: DaemonSet
metadata: {name: agent}
spec:
  template:
    spec:
      containers:
      - name: agent
        securityContext: {runAsUser: 4711}
        env: [{name: aliyun_logs_agent, value: /host/agent/*.log}]
        volumeMounts: [{name: h, mountPath: /host, readOnly: true}]
      volumes: [{name: h, hostPath: {path: /var/log}}]
",
    ),
    (
        "job",
        "kind: Job
metadata: {name: import}
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: import
        env: [{name: aliyun_logs_import, value: /logs/import.log}]
        volumeMounts: [{name: logs, mountPath: /logs}]
      volumes: [{name: logs, emptyDir: {}}]
",
    ),
    (
        "cron_job",
        "kind: CronJob
metadata: {name: nightly}
spec:
  schedule: '0 3 * * *'
  jobTemplate:
    spec:
      template:
        spec:
          containers:
          - name: nightly
            env: [{name: aliyun_logs_night, value: /logs/n.log}]
            volumeMounts: [{name: logs, mountPath: /logs}]
          volumes: [{name: logs, emptyDir: {}}]
",
    ),
    (
        "two_containers_that_declare_and_an_init_container",
        "kind: Pod
metadata: {name: pair}
spec:
  initContainers:
  - name: prepare
    env: [{name: aliyun_logs_prepare, value: /logs/prepare.log}]
    volumeMounts: [{name: a, mountPath: /logs}]
  containers:
  - name: one
    env: [{name: aliyun_logs_one, value: /logs/x.log}]
    volumeMounts: [{name: a, mountPath: /logs}]
  - name: two
    securityContext: {runAsUser: 1002}
    env: [{name: aliyun_logs_two, value: /logs/x.log}]
    volumeMounts: [{name: b, mountPath: /logs}]
",
    ),
    (
        "a_declaration_outside_every_volume",
        "kind: Pod
metadata: {name: inside}
spec:
  containers:
  - name: app
    env:
    - {name: aliyun_logs_good, value: /logs/app.log}
    - {name: aliyun_logs_lost, value: /opt/app/app.log}
    volumeMounts: [{name: logs, mountPath: /logs}]
",
    ),
    (
        "stdout_alone_needs_no_shim",
        "kind: Pod  # and this comment stays
metadata: {name: quiet}
spec:
  containers:
  - name: app
    env: [{name: aliyun_logs_app, value: stdout}]
",
    ),
    (
        "declared_by_annotations",
        "kind: Pod
metadata:
  name: noted
  annotations:
    aliyun.logs.app: /logs/app.log
    aliyun.logs.app.format: json
    aliyun.logs.custom.config: app.multiline.pattern=^x
spec:
  containers:
  - {name: other}
  - name: app
    volumeMounts: [{name: logs, mountPath: /logs}]
",
    ),
    (
        "sub_path_expressions_nested_mounts_and_values_from_elsewhere",
        "kind: Pod
metadata: {name: nested}
spec:
  containers:
  - name: app
    resources: {limits: {cpu: 1, memory: 1Gi}}
    env:
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: aliyun_logs_all, value: '/logs/**/*.log'}
    - {name: aliyun_logs_all_target, valueFrom: {configMapKeyRef: {name: c, key: k}}}
    volumeMounts:
    - {name: a, mountPath: /logs, subPathExpr: $(POD)}
    - {name: b, mountPath: /logs/deeper}
    - {name: c, mountPath: /logsother}
",
    ),
    (
        "many_documents_of_which_one_needs_it",
        "# a comment
apiVersion: v1
kind: Service   # untouched
metadata: {name: s}
---
kind: Pod
metadata: {name: off, annotations: {ringpilot.dev/inject: none}}
spec:
  containers:
  - {name: a, env: [{name: aliyun_logs_a, value: /l/a}], volumeMounts: [{name: l, mountPath: /l}]}
---
kind: List
items:
- kind: Pod
  metadata: {name: on}
  spec:
    containers:
    - {name: a, env: [{name: aliyun_logs_a, value: /l/a}], volumeMounts: [{name: l, mountPath: /l}]}
",
    ),
];

#[test]
fn each_shape_of_a_pod_gets_what_it_needs_and_keeps_all_else() {
    for (name, written) in SHAPES {
        insta::assert_snapshot!(name, injected(written, &Options::default()));
    }
}

#[test]
fn asked_twice_it_is_done_once() {
    for (name, written) in SHAPES {
        let once = manifest(written, &Options::default()).expect("a manifest");
        let twice = manifest(&once.text, &Options::default()).expect("still a manifest");
        assert_eq!(once.text, twice.text, "{name}");
        assert!(twice.changed.is_empty(), "{name}");
    }
}

#[test]
fn auto_goes_by_the_profile_and_the_runtime_class_and_the_pod_has_the_last_word() {
    let pod = |more: &str, annotation: &str| {
        format!(
            "kind: Pod\nmetadata: {{name: x, annotations: {{{annotation}}}}}\nspec:\n  {more}\n  containers:\n  - \
             {{name: a, env: [{{name: aliyun_logs_a, value: /l/a}}], volumeMounts: [{{name: l, mountPath: /l}}]}}\n"
        )
    };
    let is_injected = |mode, profile, more: &str, annotation: &str| {
        let options = Options {
            mode,
            profile,
            runtime_classes: vec!["kata".into()],
            ..Options::default()
        };
        let injected = manifest(&pod(more, annotation), &options).expect("a manifest");
        !injected.changed.is_empty()
    };
    use Mode::{Auto, None, Shim};
    use Profile::{Hybrid, NodeOnly, Restricted};
    let kata = "runtimeClassName: kata";
    for (mode, profile, more, annotation, expected) in [
        (Auto, Restricted, "", "", true),
        (Auto, NodeOnly, "", "", false),
        (Auto, NodeOnly, kata, "", false),
        (Auto, Hybrid, "", "", false),
        (Auto, Hybrid, kata, "", true),
        (Shim, NodeOnly, "", "", true),
        (None, Restricted, "", "", false),
        (None, Restricted, "", "ringpilot.dev/inject: shim", true),
        (Shim, Restricted, "", "ringpilot.dev/inject: none", false),
        (Shim, NodeOnly, "", "ringpilot.dev/inject: auto", false),
        (Shim, NodeOnly, "", "ringpilot.dev/inject: yes-please", true),
    ] {
        let found = is_injected(mode, profile, more, annotation);
        assert_eq!(found, expected, "{mode:?} {profile:?} {more} {annotation}");
    }
}

#[test]
fn what_is_no_pod_stops_nothing() {
    for written in [
        "",
        "---\n---\n",
        "just text",
        "[1, 2]",
        "kind: Pod",
        "kind: Pod\nspec: 7",
        "kind: Pod\nspec: {containers: no, initContainers: {}, volumes: 7}",
        "kind: Pod\nspec: {containers: [1, {name: 7, env: x}, {env: [1, {name: aliyun_logs_a, value: /l/a}], volumeMounts: [7]}]}",
        "kind: CronJob\nspec: {jobTemplate: []}",
        "kind: List\nitems: {}",
    ] {
        let injected = manifest(written, &Options::default()).expect("a manifest");
        assert_eq!(injected.text, written);
    }
    let error = manifest("a: b\n---\na: [", &Options::default()).expect_err("no manifest");
    assert!(error.starts_with("in document 2:"), "{error}");
}
