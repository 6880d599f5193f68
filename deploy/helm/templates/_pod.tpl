{{/*
The pod of Master and Worker. Call with (dict "root" $ "configMap" NAME).
No readinessProbe: a pod that is not ready has no DNS record, and the workers wait for that record.
*/}}
{{- define "cogvx.podTemplate" -}}
{{- $root := .root -}}
{{- with $root -}}
metadata:
  labels:
    {{- include "cogvx.stableLabels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "cogvx.serviceAccountName" . }}
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: {{ int64 .Values.preemption.gracePeriodSeconds }}
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: {{ int64 .Values.securityContext.runAsUser }}
    runAsGroup: {{ int64 .Values.securityContext.runAsUser }}
    fsGroup: {{ int64 .Values.securityContext.runAsUser }}
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: pytorch # the operator looks for this name
      image: {{ include "cogvx.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        {{- include "cogvx.arguments" . | nindent 8 }}
      env:
        {{- include "cogvx.environment" . | nindent 8 }}
      {{- with .Values.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: pytorchjob-port
          containerPort: 23456
      resources:
        {{- include "cogvx.resources" . | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: {{ .Values.securityContext.readOnlyRootFilesystem }}
        capabilities:
          drop: [ALL]
      volumeMounts:
        - name: config
          mountPath: /etc/cogvx/config
          readOnly: true
        - name: scratch
          mountPath: /scratch
        - name: tmp
          mountPath: /tmp
        - name: shm
          mountPath: /dev/shm
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ $.configMap | quote }}
    - name: scratch
      emptyDir:
        sizeLimit: {{ .Values.scratch.sizeLimit }}
    - name: tmp
      emptyDir:
        sizeLimit: {{ .Values.tmp.sizeLimit }}
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ .Values.shm.sizeLimit }}
{{- end }}
{{- end }}

{{/* The words after the image's entry point, `cogvx launch`. */}}
{{- define "cogvx.arguments" -}}
- train
- --base
{{- range (include "cogvx.layerNames" . | trim | splitList "\n") }}
- {{ printf "/etc/cogvx/config/%s" . }}
{{- end }}
- --run-id
- {{ include "cogvx.runId" . | quote }}
{{- range concat .Values.run.args .Values.run.overrides }}
- {{ include "cogvx.word" . | quote }}
{{- end }}
{{- end }}

{{/* A value as a word of the command line: Helm turns 10000000 into 1e+07. */}}
{{- define "cogvx.word" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}
{{ int64 . }}
{{- else -}}
{{ toString . }}
{{- end }}
{{- end }}

{{- define "cogvx.environment" -}}
- name: COGVX_GRACE_PERIOD_S
  value: {{ int64 .Values.preemption.gracePeriodSeconds | quote }}
{{- with .Values.s3.endpointUrl }}
- name: AWS_ENDPOINT_URL_S3
  value: {{ . | quote }}
{{- end }}
{{- with .Values.s3.region }}
- name: AWS_REGION
  value: {{ . | quote }}
{{- end }}
{{- with .Values.s3.existingSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.s3.secretKeys.accessKeyId }}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.s3.secretKeys.secretAccessKey }}
- name: AWS_SESSION_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.s3.secretKeys.sessionToken }}
      optional: true
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "cogvx.resources" -}}
{{- $resources := deepCopy .Values.resources }}
{{- if gt (int .Values.gpusPerPod) 0 }}
{{- $limits := merge (dict .Values.gpuResourceName (int .Values.gpusPerPod)) (default dict $resources.limits) }}
{{- $resources = set $resources "limits" $limits }}
{{- end }}
{{- toYaml $resources }}
{{- end }}
