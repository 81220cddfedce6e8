{{- define "ringpilot.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- define "ringpilot.fullname" -}}
{{- $name := include "ringpilot.name" . -}}
{{- default (ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name)) .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- define "ringpilot.selector" -}}
app.kubernetes.io/name: {{ include "ringpilot.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "ringpilot.labels" -}}
{{ include "ringpilot.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}
{{- define "ringpilot.account" -}}
{{- default (ternary (include "ringpilot.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}
{{- define "ringpilot.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}
{{- /* The whole configuration: the operator's, and what the chart knows of the node. */ -}}
{{- define "ringpilot.config" -}}
{{- $cri := ne .Values.profile "restricted" -}}
{{- $discover := dict "docker" false "cri" false "rings" (dict "dir" "/rings") -}}
{{- if $cri -}}
{{- $settings := dict "kubelet_dir" .Values.cri.kubeletDir "pod_logs_dir" .Values.cri.podLogsDir -}}
{{- if .Values.cri.socket }}{{ $_ := set $settings "socket" .Values.cri.socket }}{{ end -}}
{{- $_ := set $discover "cri" $settings -}}
{{- end -}}
{{- if eq .Values.profile "node-only" }}{{ $_ := set $discover "rings" false }}{{ end -}}
{{- $own := dict "node_name" "${NODE_NAME}" "data_dir" "/var/lib/ringpilot" "host_root" "/host" "metrics_listen" (printf "0.0.0.0:%d" (int .Values.metricsPort)) "discover" $discover -}}
{{- if not .Values.config.outputs }}{{ $_ := set $own "outputs" (dict "console" (dict "type" "console")) }}{{ end -}}
{{- toYaml (merge $own .Values.config) }}
{{- end }}
