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

{{- /* Labels that select the egress gateways' pods; they cannot change in the life of the Deployment. */ -}}
{{- define "cloister.gatewayLabels" -}}
app.kubernetes.io/name: cloister
app.kubernetes.io/component: egress-gateway
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

{{- /* A list of strings as CEL has it; the schema refuses quotes in them. */ -}}
{{- define "cloister.celList" -}}
[{{ range $index, $each := . }}{{ if $index }}, {{ end }}'{{ $each }}'{{ end }}]
{{- end -}}

{{- /* CEL: whether a name matches one of a list of globs, whose letters the schema bounds; no glob, no
name. Takes (dict "name" "globs"). */ -}}
{{- define "cloister.celMatches" -}}
{{- if .globs -}}
{{ .name }}.matches('^({{ join "|" .globs | replace "." "[.]" | replace "*" ".*" | replace "?" "." }})$')
{{- else -}}
false
{{- end -}}
{{- end -}}

{{- /* The sandbox namespaces, for a binding: by the label that the API server itself keeps, so that who
may label a namespace does not get it out of the policies' reach. */ -}}
{{- define "cloister.guardedNamespaces" -}}
namespaceSelector:
  matchExpressions:
    - key: kubernetes.io/metadata.name
      operator: In
      values:
        {{- range .Values.sandboxNamespaces }}
        - {{ .name }}
        {{- end }}
{{- end -}}

{{- /* CEL: whether the operator asks. */ -}}
{{- define "cloister.celOperator" -}}
request.userInfo.username == 'system:serviceaccount:{{ .Release.Namespace }}:cloister-operator'
{{- end -}}

{{- /* CEL: whether RBAC or the values make the caller one of the platform's. */ -}}
{{- define "cloister.celPlatform" -}}
authorizer.group('cloister.dev').resource('sandboxnamespaces').namespace(request.namespace).check('administer').allowed() || request.userInfo.groups.exists(g, g in {{ include "cloister.celList" .Values.admission.platformGroups }})
{{- end -}}

{{- /* CEL: whether a controller of the cluster itself asks, as the garbage collector does. */ -}}
{{- define "cloister.celControllers" -}}
request.userInfo.username == 'system:kube-controller-manager' || 'system:serviceaccounts:kube-system' in request.userInfo.groups
{{- end -}}

{{- /* Mirrors of package managers, as name=URL. */ -}}
{{- define "cloister.mirrors" -}}
{{- $found := list -}}
{{- range $name, $url := .Values.egress.packageManagers.mirrors -}}
  {{- $found = append $found (printf "%s=%s" $name $url) -}}
{{- end -}}
{{- join "," $found -}}
{{- end -}}
