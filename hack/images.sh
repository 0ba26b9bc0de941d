#!/usr/bin/env bash
# images.sh DIR: builds the images of manager and enforcer into DIR, without Docker. TAG and PLATFORM (linux/amd64) say which.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/hack/lib.sh"

out=$(mkdir -p "${1:-$root/bin/images}" && cd "${1:-$root/bin/images}" && pwd)
platform=${PLATFORM:-linux/$(go env GOARCH)}
staging=$(mktemp -d "$out/.build.XXXXXX")
trap 'rm -rf "$staging"' EXIT
say "building manager and enforcer for $platform"
(cd "$root" && CGO_ENABLED=0 GOOS=${platform%/*} GOARCH=${platform#*/} go build -trimpath -ldflags='-s -w' -o "$staging/" ./cmd/manager ./cmd/enforcer)
(cd "$root/hack/images" && GOWORK=off GOFLAGS= CGO_ENABLED=0 go run . -out "$out" -tag "${TAG:-dev}" -platform "$platform" "$staging/manager" "$staging/enforcer")
