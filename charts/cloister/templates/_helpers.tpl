{{/*
Names are fixed, not derived from the release: the CRDs and ClusterRoles exist once in a cluster, and
clients look for the ConfigMap, the Service and the ServiceAccounts under these names.
*/}}

{{- /* Labels of everything that is not the operator's pod. */ -}}
{{- define "cloister.labels" -}}
app.kubernetes.io/name: cloister
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: cloister
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* Labels that select the operator's pod; they cannot change in the life of the Deployment. */ -}}
{{- define "cloister.operatorLabels" -}}
app.kubernetes.io/name: cloister
app.kubernetes.io/component: operator
{{- end -}}

{{- /* An image reference from {repository, tag, digest}; the digest wins. Takes (dict "image" "root"). */ -}}
{{- define "cloister.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* The image of sandboxes whose Environment names none. */ -}}
{{- define "cloister.sandboxImage" -}}
{{ .Values.sandbox.image | default (printf "cloister/sandbox:%s" .Chart.AppVersion) }}
{{- end -}}

{{- /* Names of the sandbox namespaces, joined by commas. */ -}}
{{- define "cloister.sandboxNamespaces" -}}
{{- $names := list -}}
{{- range .Values.sandboxNamespaces -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- join "," $names -}}
{{- end -}}

{{- /* The runtime classes' names: an entry is a name, or a map with one. */ -}}
{{- define "cloister.runtimeClasses" -}}
{{- $names := list -}}
{{- range .Values.sandbox.allowedRuntimeClasses -}}
{{- if kindIs "map" . -}}
{{- $names = append $names .name -}}
{{- else -}}
{{- $names = append $names . -}}
{{- end -}}
{{- end -}}
{{- join "," $names -}}
{{- end -}}

{{- /* Those of them whose pods get no user namespace of their own. */ -}}
{{- define "cloister.runtimeClassesOnHostUsers" -}}
{{- $names := list -}}
{{- range .Values.sandbox.allowedRuntimeClasses -}}
{{- if and (kindIs "map" .) (eq (toString (get . "userNamespaces")) "false") -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end -}}
{{- join "," $names -}}
{{- end -}}
