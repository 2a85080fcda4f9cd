{{/* Names of objects: the release's, with the chart's unless it is in there already; short enough for a suffix. */}}
{{- define "weft.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "weft.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of objects; takes root and component. */}}
{{- define "weft.labels" -}}
{{ include "weft.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "weft.image" -}}
{{- $image := .Values.image -}}
{{- $tag := default .Chart.AppVersion $image.tag -}}
{{- if $image.digest }}{{ printf "%s@%s" $image.repository $image.digest }}{{ else }}{{ printf "%s:%s" $image.repository $tag }}{{ end -}}
{{- end -}}

{{- define "weft.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "weft.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}{{ end -}}
{{- end -}}

{{/* A value as the text of a variable: whole numbers never as 1e+10, lists with commas. */}}
{{- define "weft.text" -}}
{{- if kindIs "float64" . -}}
{{- if eq (floor .) . }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end -}}
{{- else if kindIs "slice" . -}}
{{ join "," . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end -}}

{{/*
Variables of a service: those of the chart, then its `settings`, sorted. Takes component, chart (a map of settings), settings (from
the values). A setting that the chart's ports, mounts or secrets depend on is refused.
*/}}
{{- define "weft.variables" -}}
{{- $own := list "listen" "admin_listen" "metrics_listen" "neighbours_listen" "advertise" "name" "registry" "cache" "dir" "memory_dir" "model" "admin_key" "admin_key_file" "admin_keys" "nats_url" "redis_url" "redis_ca_file" "redis_cert_file" "redis_key_file" "s3_secret_access_key" "s3_access_key_id" "tls_cert_file" "tls_key_file" "tls_ca_file" "insecure_network" -}}
{{- $component := .component -}}
{{- range $name, $_ := .settings -}}
{{- if has $name $own }}{{ fail (printf "%s.settings.%s is wired by the chart: it has a value or a secret of its own" $component $name) }}{{ end -}}
{{- end -}}
{{- range $name, $value := mergeOverwrite (deepCopy .chart) .settings }}
- name: WEFT_{{ upper $name }}
  value: {{ include "weft.text" $value | quote }}
{{- end }}
{{- end -}}

{{/* A variable from a secret. Takes name, secret, key. */}}
{{- define "weft.secretVariable" }}
- name: {{ .name }}
  valueFrom:
    secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}
{{- end -}}

{{/* What every service is told: logs, NATS, transport. Takes root. */}}
{{- define "weft.commonSettings" -}}
{{- $settings := dict "log" .Values.logFilter "log_format" "json" "nats_subject_prefix" .Values.nats.subjectPrefix -}}
{{- if .Values.nats.tlsSecret -}}
{{- $_ := set $settings "nats_ca_file" "/etc/weft/nats/ca.crt" -}}
{{- if .Values.nats.clientCertificate -}}
{{- $_ := set $settings "nats_cert_file" "/etc/weft/nats/tls.crt" -}}
{{- $_ := set $settings "nats_key_file" "/etc/weft/nats/tls.key" -}}
{{- end -}}
{{- end -}}
{{- if include "weft.tls" . -}}
{{- $_ := set $settings "tls_cert_file" "/etc/weft/tls/tls.crt" -}}
{{- $_ := set $settings "tls_key_file" "/etc/weft/tls/tls.key" -}}
{{- $_ := set $settings "tls_ca_file" "/etc/weft/tls/ca.crt" -}}
{{- else -}}
{{- $_ := set $settings "insecure_network" true -}}
{{- end -}}
{{- toJson $settings -}}
{{- end -}}

{{/* How the gateway knows Redis. Takes root. */}}
{{- define "weft.redisSettings" -}}
{{- $settings := dict -}}
{{- if .Values.redis.tlsSecret -}}
{{- $_ := set $settings "redis_ca_file" "/etc/weft/redis/ca.crt" -}}
{{- if .Values.redis.clientCertificate -}}
{{- $_ := set $settings "redis_cert_file" "/etc/weft/redis/tls.crt" -}}
{{- $_ := set $settings "redis_key_file" "/etc/weft/redis/tls.key" -}}
{{- end -}}
{{- end -}}
{{- toJson $settings -}}
{{- end -}}

{{- define "weft.s3Settings" -}}
{{- $s3 := .Values.s3 -}}
{{- $settings := dict "s3_bucket" $s3.bucket "s3_region" $s3.region "s3_path_style" $s3.pathStyle -}}
{{- with $s3.endpoint }}{{ $_ := set $settings "s3_endpoint" . }}{{ end -}}
{{- with $s3.prefix }}{{ $_ := set $settings "s3_prefix" . }}{{ end -}}
{{- toJson $settings -}}
{{- end -}}

{{/* Variables of every service that are no plain settings. */}}
{{- define "weft.commonVariables" -}}
{{- include "weft.secretVariable" (dict "name" "WEFT_NATS_URL" "secret" .Values.nats.existingSecret "key" .Values.nats.secretKey) -}}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "weft.s3Variables" -}}
{{- with .Values.s3 -}}
{{- if .existingSecret -}}
{{- include "weft.secretVariable" (dict "name" "WEFT_S3_ACCESS_KEY_ID" "secret" .existingSecret "key" .accessKeyIdKey) -}}
{{- include "weft.secretVariable" (dict "name" "WEFT_S3_SECRET_ACCESS_KEY" "secret" .existingSecret "key" .secretAccessKeyKey) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Not empty: the services talk TLS. */}}
{{- define "weft.tls" -}}
{{- if or .Values.tls.certManager.enabled .Values.tls.secrets.gateway .Values.tls.secrets.registry .Values.tls.secrets.cacheDaemon .Values.tls.secrets.worker }}yes{{ end -}}
{{- end -}}

{{/* The secret with a service's certificate. Takes root, component. */}}
{{- define "weft.tlsSecret" -}}
{{- $own := index .root.Values.tls.secrets (ternary "cacheDaemon" .component (eq .component "cache-daemon")) -}}
{{- default (printf "%s-%s-tls" (include "weft.fullname" .root) .component) $own -}}
{{- end -}}

{{/* Volumes of every service: /tmp and certificates. Takes root, component. */}}
{{- define "weft.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if include "weft.tls" .root }}
- name: tls
  secret: {secretName: {{ include "weft.tlsSecret" . }}, defaultMode: 0440}
{{- end }}
{{- if .root.Values.nats.tlsSecret }}
- name: nats-tls
  secret: {secretName: {{ .root.Values.nats.tlsSecret }}, defaultMode: 0440}
{{- end }}
{{- end -}}

{{- define "weft.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if include "weft.tls" .root }}
- {name: tls, mountPath: /etc/weft/tls, readOnly: true}
{{- end }}
{{- if .root.Values.nats.tlsSecret }}
- {name: nats-tls, mountPath: /etc/weft/nats, readOnly: true}
{{- end }}
{{- end -}}

{{/* Annotations of a Pod. Takes root, values (of the component), port (of its metrics). */}}
{{- define "weft.podAnnotations" -}}
{{- $annotations := dict -}}
{{- if .root.Values.metrics.enabled -}}
{{- $annotations = dict "prometheus.io/scrape" "true" "prometheus.io/port" (toString .port) "prometheus.io/path" "/metrics" -}}
{{- end -}}
{{- with mergeOverwrite $annotations .values.podAnnotations }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* What a Pod says of where and as whom it runs. Takes root, values, component. */}}
{{- define "weft.podSpec" -}}
serviceAccountName: {{ include "weft.serviceAccountName" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext: {{ toJson .root.Values.podSecurityContext }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.affinity }}
affinity: {{ toJson . }}
{{- end }}
{{- $selector := include "weft.selector" . | fromYaml }}
{{- with .values.topologySpread }}
topologySpreadConstraints:
  {{- range . }}
  - {{ toJson (merge (dict "labelSelector" (dict "matchLabels" $selector)) .) }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Seconds from SIGTERM until the kubelet kills: the delay, the grace, and time to say good-bye. Takes delayMs, graceSeconds. */}}
{{- define "weft.terminationSeconds" -}}
{{- add (ceil (divf (float64 .delayMs) 1000.0)) .graceSeconds 10 -}}
{{- end -}}

{{/*
server.args, told apart by the service that has the flag: JSON of {worker: [...], gateway: [...], modelId, logFormat}. What follows a flag
until the next one is its value.
*/}}
{{- define "weft.serverArgs" -}}
{{- $gateway := list "--max-concurrent-requests" "--max-best-of" "--cors-allow-origin" -}}
{{- $both := list "--max-stop-sequences" -}}
{{- $wired := list "--hostname" "--port" "-p" "--json-output" -}}
{{- $out := dict "worker" list "gateway" list "modelId" "" -}}
{{- $flag := "" -}}
{{- range $word := .Values.server.args -}}
  {{- $word = toString $word -}}
  {{- $value := $word -}}
  {{- if hasPrefix "-" $word -}}
    {{- $flag = first (splitList "=" $word) -}}
    {{- $value = ternary (trimPrefix (printf "%s=" $flag) $word) "" (contains "=" $word) -}}
  {{- else if not $flag -}}
    {{- fail (printf "server.args: %s follows no flag" $word) -}}
  {{- end -}}
  {{- if eq $flag "--model-id" -}}
    {{- with $value }}{{ $_ := set $out "modelId" . }}{{ end -}}
  {{- else if has $flag $wired -}}
    {{- /* The chart's own ports and logs. */ -}}
  {{- else -}}
    {{- if or (has $flag $gateway) (has $flag $both) }}{{ $_ := set $out "gateway" (append $out.gateway $word) }}{{ end -}}
    {{- if not (has $flag $gateway) }}{{ $_ := set $out "worker" (append $out.worker $word) }}{{ end -}}
  {{- end -}}
{{- end -}}
{{- toJson $out -}}
{{- end -}}

{{/* The hub's name of the model to fetch; empty: none. */}}
{{- define "weft.modelId" -}}
{{- $id := default (include "weft.serverArgs" . | fromJson).modelId .Values.model.id -}}
{{- if not (hasPrefix "/" $id) }}{{ $id }}{{ end -}}
{{- end -}}

{{/* Where the base is in the container. */}}
{{- define "weft.modelPath" -}}
{{- $given := (include "weft.serverArgs" . | fromJson).modelId -}}
{{- if .Values.model.path }}{{ .Values.model.path }}
{{- else if include "weft.modelId" . }}/models/{{ include "weft.modelId" . }}
{{- else }}{{ $given }}{{ end -}}
{{- end -}}

{{/* What no default can be good for. */}}
{{- define "weft.check" -}}
{{- if and (not (include "weft.tls" .)) (not .Values.insecureNetwork) -}}
{{- fail "the services need certificates: set tls.secrets or tls.certManager.enabled, or insecureNetwork: true if this cluster's network may read every prompt" -}}
{{- end -}}
{{- if and (include "weft.tls" .) .Values.insecureNetwork }}{{ fail "insecureNetwork and tls exclude each other" }}{{ end -}}
{{- if include "weft.tls" . -}}
{{- range $service, $secret := .Values.tls.secrets -}}
{{- if and $secret $.Values.tls.certManager.enabled }}{{ fail (printf "tls.secrets.%s and tls.certManager.enabled exclude each other" $service) }}{{ end -}}
{{- if not (or $secret $.Values.tls.certManager.enabled) }}{{ fail (printf "tls.secrets.%s is not set: all four services need a certificate" $service) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerName) }}{{ fail "tls.certManager.issuerName is not set" }}{{ end -}}
{{- range $value, $what := dict "admin.existingSecret" .Values.admin.existingSecret "nats.existingSecret" .Values.nats.existingSecret "s3.bucket" .Values.s3.bucket -}}
{{- if not $what }}{{ fail (printf "%s is not set" $value) }}{{ end -}}
{{- end -}}
{{- if not (include "weft.modelPath" .) }}{{ fail "no base model: set model.path or model.id, or --model-id in server.args" }}{{ end -}}
{{- if and .Values.model.path (include "weft.modelId" .) }}{{ fail "model.path and model.id (or --model-id) exclude each other" }}{{ end -}}
{{- if and .Values.model.volume .Values.model.persistence.enabled }}{{ fail "model.volume and model.persistence.enabled exclude each other" }}{{ end -}}
{{- if and .Values.model.path (not .Values.model.volume) (not .Values.model.persistence.enabled) }}{{ fail "model.path needs model.volume or model.persistence.enabled" }}{{ end -}}
{{- end -}}

{{/* The node's folder in which the daemon and the workers of this release meet. Takes root, base. */}}
{{- define "weft.hostFolder" -}}
{{ trimSuffix "/" .base }}/{{ .root.Release.Namespace }}-{{ include "weft.fullname" .root }}
{{- end -}}

{{/* Volumes that the daemon and the workers of a node share. */}}
{{- define "weft.nodeVolumes" -}}
{{- $cache := .Values.cacheDaemon -}}
- name: cache-socket
  hostPath: {path: {{ include "weft.hostFolder" (dict "root" . "base" $cache.hostPath) }}/run, type: DirectoryOrCreate}
- name: cache
  hostPath: {path: {{ include "weft.hostFolder" (dict "root" . "base" $cache.hostPath) }}/cache, type: DirectoryOrCreate}
{{- if gt (int64 $cache.memoryBytes) 0 }}
- name: cache-memory
  hostPath: {path: {{ include "weft.hostFolder" (dict "root" . "base" $cache.memoryHostPath) }}, type: DirectoryOrCreate}
{{- end }}
{{- end -}}

{{/* The same in a container, at one path in both: a lease is answered with the path of a file. Takes root, readOnly. */}}
{{- define "weft.nodeMounts" -}}
- {name: cache-socket, mountPath: /run/weft, readOnly: {{ .readOnly }}}
- {name: cache, mountPath: /var/lib/weft/cache, readOnly: {{ .readOnly }}}
{{- if gt (int64 .root.Values.cacheDaemon.memoryBytes) 0 }}
- {name: cache-memory, mountPath: /var/lib/weft/memory, readOnly: {{ .readOnly }}}
{{- end }}
{{- end -}}
