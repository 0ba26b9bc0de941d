#!/usr/bin/env bash
# Builds Prometheus and promtool, by which the alert rules and the dashboard are
# tested, from the Go modules in hack/prometheus, and prints the folder that
# holds them as the one line on stdout. Progress goes to stderr.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/hack/lib.sh"

folder=$root/bin/prometheus
source_dir=$root/hack/prometheus
module=github.com/prometheus/prometheus
need go "see https://go.dev/doc/install"
with_lock "$folder/.lock"
version=$(awk -v module="$module" '$1 == "require" && $2 == module { print $3; exit } $1 == module { print $2; exit }' "$source_dir/go.mod")
want=$({ cat "$source_dir/go.mod" "$source_dir/go.sum" "$root/hack/prometheus.sh" && go env GOOS GOARCH; } | sha256)
if [ "$(cat "$folder/.stamp" 2>/dev/null)" != "$want" ] || [ ! -x "$folder/promtool" ]; then
	say "building Prometheus $version from its Go modules (the first time takes two minutes or three)"
	staging=$(mktemp -d "$folder/.build.XXXXXX")
	# Without the discovery of machines in clouds, which is most of what there would be to compile.
	if ! (cd "$source_dir" && GOWORK=off CGO_ENABLED=0 with_heartbeat "$staging/log" \
		go build -v -trimpath -buildvcs=false -tags=remove_all_sd -ldflags='-s -w' -o "$staging/" "$module/cmd/prometheus" "$module/cmd/promtool"); then
		rm -rf "$staging"
		fail "the build of Prometheus $version failed"
	fi
	mv -f "$staging/prometheus" "$staging/promtool" "$folder/"
	rm -rf "$staging"
	printf '%s\n' "$want" >"$folder/.stamp"
else
	say "Prometheus $version is in ${folder#"$root"/}"
fi
printf '%s\n' "$folder"
