#!/usr/bin/env bash
# Builds the two Helms that the chart is tested with, from the Go modules in
# hack/helm, and prints the folder that holds them, as helm3 and helm4, as the
# one line on stdout. Beside them, in crds/, stand the CRDs of the operators
# that the chart can make objects for. Progress goes to stderr.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/hack/lib.sh"

folder=$root/bin/helm
need go "see https://go.dev/doc/install"
with_lock "$folder/.lock"
for major in 3 4; do
	source_dir=$root/hack/helm/v$major
	module=helm.sh/helm/v$major
	version=$(awk -v module="$module" '$1 == module { print $2; exit } $1 == "require" && $2 == module { print $3; exit }' "$source_dir/go.mod")
	want=$({ cat "$source_dir/go.mod" "$source_dir/go.sum" "$root/hack/helm.sh" && go env GOOS GOARCH; } | sha256)
	if [ "$(cat "$folder/.stamp$major" 2>/dev/null)" = "$want" ] && [ -x "$folder/helm$major" ]; then
		say "helm $version is in ${folder#"$root"/}"
		continue
	fi
	say "building helm $version from its Go modules (the first time takes a minute or two)"
	flags="-s -w -X $module/internal/version.version=$version"
	# What it takes for a cluster's version where it is not connected to one.
	minor=$(awk '$1 == "k8s.io/client-go" { split($2, v, "."); print v[2]; exit }' "$source_dir/go.mod")
	for package in chartutil lint/rules; do
		flags+=" -X $module/pkg/$package.k8sVersionMajor=1 -X $module/pkg/$package.k8sVersionMinor=$minor"
	done
	staging=$(mktemp -d "$folder/.build.XXXXXX")
	if ! (cd "$source_dir" && GOWORK=off CGO_ENABLED=0 with_heartbeat "$staging/log" \
		go build -v -trimpath -buildvcs=false -ldflags "$flags" -o "$staging/helm" "$module/cmd/helm"); then
		rm -rf "$staging"
		fail "the build of helm $version failed"
	fi
	mv -f "$staging/helm" "$folder/helm$major"
	rm -rf "$staging"
	printf '%s\n' "$want" >"$folder/.stamp$major"
done
module_files "$folder/crds" github.com/cert-manager/cert-manager v1.21.2 deploy/crds/cert-manager.io_certificates.yaml deploy/crds/cert-manager.io_issuers.yaml
module_files "$folder/crds" github.com/prometheus-operator/prometheus-operator v0.85.0 \
	example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml
printf '%s\n' "$folder"
