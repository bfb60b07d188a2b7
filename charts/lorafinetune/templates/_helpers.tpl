{{- define "lorafinetune.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "lorafinetune.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "lorafinetune.fullname" .) -}}
{{- else -}}
{{- required "serviceAccount.name: needed where serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "lorafinetune.tlsSecret" -}}
{{- include "lorafinetune.fullname" . }}-webhook-tls
{{- end }}

{{- define "lorafinetune.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "lorafinetune.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* One image reference of (dict "image" .Values.image "chart" .Chart). */}}
{{- define "lorafinetune.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (.image.tag | default .chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{- /* What the operator may do in each namespace whose runs it looks after. */}}
{{- define "lorafinetune.runRules" -}}
- apiGroups: [lorafinetune.io]
  resources: [lorafinetunes]
  verbs: [get, list, watch, patch, delete]  # delete: spec.ttlSecondsAfterFinished
- apiGroups: [lorafinetune.io]
  resources: [lorafinetunes/status]
  verbs: [patch]
# Owner references with blockOwnerDeletion need it where the cluster enforces them.
- apiGroups: [lorafinetune.io]
  resources: [lorafinetunes/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
# Written on runs; read of their pods, for an autoscaler and a kubelet say there what stands nowhere else.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [get, list, create, patch]
# A run's storage keys: read by name, never listed, and used only if labelled lorafinetune.io/storage: "true".
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
{{- end }}
