#!/usr/bin/env bash
# Puts the CRDs that config/gateways is held against into bin/gateways/crds, and
# prints that folder as the one line on stdout: Gateway API's and Envoy
# Gateway's, and Istio's, of the versions by which the modules in hack/gateways
# translate the samples. Nothing is built. Progress goes to stderr.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/hack/lib.sh"

folder=$root/bin/gateways
need go "see https://go.dev/doc/install"
with_lock "$folder/.lock"

# crds NAME MODULE PATH: copies PATH, a file or a folder in MODULE, into crds/NAME.
# The version is what hack/gateways/NAME/go.mod says, and is checked by go.sum
# there. The module's own dependencies are not asked for.
crds() {
	local name=$1 module=$2 path=$3 source_dir version want got dir
	source_dir=$root/hack/gateways/$name
	version=$(awk -v module="$module" '$1 == module { print $2; exit }' "$source_dir/go.mod")
	want=$(awk -v module="$module" -v version="$version" '$1 == module && $2 == version { print $3 }' "$source_dir/go.sum")
	[ -n "$version" ] && [ -n "$want" ] || fail "hack/gateways/$name has no version of $module"
	if [ "$(cat "$folder/.stamp-$name" 2>/dev/null)" = "$version $want $path" ] && [ -d "$folder/crds/$name" ]; then return; fi
	say "fetching the CRDs of $module $version"
	got=$(cd / && GOWORK=off GO111MODULE=on GOFLAGS=-mod=mod go mod download -json "$module@$version") || fail "$module $version could not be fetched: $got"
	[ "$(sed -n 's/^.*"Sum": "\(.*\)",*$/\1/p' <<<"$got")" = "$want" ] || fail "$module $version is not what hack/gateways/$name/go.sum says"
	dir=$(sed -n 's/^.*"Dir": "\(.*\)",*$/\1/p' <<<"$got")
	rm -rf "${folder:?}/crds/$name"
	mkdir -p "$folder/crds/$name"
	find "$dir/$path" -name '*.yaml' -exec install -m 0644 {} "$folder/crds/$name/" \;
	printf '%s %s %s\n' "$version" "$want" "$path" >"$folder/.stamp-$name"
}

crds envoygateway github.com/envoyproxy/gateway charts/gateway-helm/charts/crds/crds
crds istio istio.io/api kubernetes/customresourcedefinitions.gen.yaml
printf '%s\n' "$folder/crds"
