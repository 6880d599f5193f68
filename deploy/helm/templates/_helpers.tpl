{{/* Name of the application: stays the same across upgrades. */}}
{{- define "cogvx.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 41 | trimSuffix "-" }}
{{- end }}

{{/* Release and chart name, without repetition; 41 characters leave room for "-" and 8 of the hash. */}}
{{- define "cogvx.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 41 | trimSuffix "-" }}
{{- else if contains (include "cogvx.name" .) .Release.Name }}
{{- .Release.Name | trunc 41 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "cogvx.name" .) | trunc 41 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Selector labels. They are on pods, so none may change with the chart's version. */}}
{{- define "cogvx.stableLabels" -}}
app.kubernetes.io/name: {{ include "cogvx.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: trainer
{{- end }}

{{- define "cogvx.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "cogvx.stableLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: cogvx-train
{{- end }}

{{- define "cogvx.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "cogvx.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "cogvx.image" -}}
{{- $name := .Values.image.repository }}
{{- with .Values.image.registry }}{{ $name = printf "%s/%s" . $name }}{{ end }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $name .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $name (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "cogvx.runId" -}}
{{- default .Release.Name .Values.run.id }}
{{- end }}

{{/* Processes of a pod, a number: the operator's `auto` counts the CPUs of the host. */}}
{{- define "cogvx.nprocPerNode" -}}
{{- if kindIs "invalid" .Values.nprocPerNode }}
{{- max 1 (int .Values.gpusPerPod) }}
{{- else }}
{{- int .Values.nprocPerNode }}
{{- end }}
{{- end }}

{{/*
File names of the layers, one per line; the number in front keeps the order however they are listed.
*/}}
{{- define "cogvx.layerNames" -}}
{{- range $index, $layer := .Values.config.layers }}
{{- if kindIs "map" $layer }}
{{ printf "%02d-inline.yaml" $index }}
{{- else }}
{{ printf "%02d-%s" $index ($layer | replace "/" "-") }}
{{- end }}
{{- end }}
{{- end }}

{{/* The ConfigMap's data. */}}
{{- define "cogvx.configData" -}}
{{- range $index, $layer := .Values.config.layers }}
{{- if kindIs "map" $layer }}
{{ printf "%02d-inline.yaml" $index }}: |
  {{- toYaml $layer | nindent 2 }}
{{- else }}
{{ printf "%02d-%s" $index ($layer | replace "/" "-") }}: |
  {{- $.Files.Get (printf "files/configs/%s" $layer) | trim | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/*
The part of the names that changes with what the pods run: running pods never see a new
configuration, and a recreated pod never joins ranks that run an older one.
*/}}
{{- define "cogvx.digest" -}}
{{- $pod := include "cogvx.podTemplate" (dict "root" . "configMap" "") }}
{{- list (include "cogvx.configData" .) $pod (toString (int .Values.workers)) (include "cogvx.nprocPerNode" .) | join "\n" | sha256sum | trunc 8 }}
{{- end }}

{{- define "cogvx.jobName" -}}
{{- printf "%s-%s" (include "cogvx.fullname" .) (include "cogvx.digest" .) }}
{{- end }}

{{/* Checks that the schema cannot express; all failures are reported together. */}}
{{- define "cogvx.validate" -}}
{{- $wrong := list }}
{{- $fullname := include "cogvx.fullname" . }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $fullname) }}
{{- $wrong = append $wrong (printf "the name '%s' has to start with a letter and hold a-z, 0-9 and - only: set fullnameOverride" $fullname) }}
{{- end }}
{{- range .Values.config.layers }}
{{- if and (kindIs "string" .) (not ($.Files.Get (printf "files/configs/%s" .))) }}
{{- $wrong = append $wrong (printf "config.layers: the chart has no files/configs/%s; write the layer as a map, or copy the file there" .) }}
{{- end }}
{{- end }}
{{- if gt (len (include "cogvx.configData" .)) 921600 }}
{{- $wrong = append $wrong "config.layers: more than 900 KiB, and a ConfigMap holds 1 MiB: keep lists of prompts or files in the bucket and name them" }}
{{- end }}
{{- range .Values.env }}
{{- if regexMatch "^(PET_.*|MASTER_ADDR|MASTER_PORT|RANK|WORLD_SIZE|LOCAL_RANK)$" .name }}
{{- $wrong = append $wrong (printf "env: %s is set by the operator, which would win" .name) }}
{{- end }}
{{- end }}
{{- if $wrong }}
{{- fail (printf "\n  - %s" (join "\n  - " $wrong)) }}
{{- end }}
{{- end }}
