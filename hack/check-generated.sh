#!/usr/bin/env bash
# check-generated.sh PATH...: runs `make generate` and fails if that changed, added
# or removed anything below the PATHs. Compares with what lay there before, not with
# a commit, so that it tells stale files from ones that were only not committed yet.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT

for path in "$@"; do
	if [ -e "$path" ]; then
		mkdir -p "$before/$(dirname "$path")"
		cp -R "$path" "$before/$path"
	fi
done

"${MAKE:-make}" --no-print-directory generate

stale=0
for path in "$@"; do
	if [ ! -e "$before/$path" ] && [ ! -e "$path" ]; then continue; fi
	diff -ruN "$before/$path" "$path" || stale=1
done
if ((stale)); then
	echo "check-generated: the files above were stale. They have been written anew: look them over and commit them." >&2
	exit 1
fi
echo "check-generated: all generated files are up to date"
