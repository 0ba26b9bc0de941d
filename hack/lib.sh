# Sourced by the scripts beside it: words to the user, a lock, a heartbeat.
# shellcheck shell=bash

# say TEXT: one line of progress. stdout is kept for what a script hands back.
say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; }

fail() {
	say "$*"
	exit 1
}

# need COMMAND HINT: stops unless COMMAND is there.
need() { command -v "$1" >/dev/null 2>&1 || fail "$1 was not found: $2"; }

# sha256: the digest of stdin.
sha256() {
	if command -v sha256sum >/dev/null 2>&1; then sha256sum; else shasum -a 256; fi | cut -d' ' -f1
}

# with_lock FILE: holds FILE until the script ends, so that two runs at once
# do the work once. Without flock (macOS) they may do it twice, which is only slow.
with_lock() {
	mkdir -p "$(dirname "$1")"
	if ! command -v flock >/dev/null 2>&1; then return; fi
	exec 9>"$1"
	if ! flock -n 9; then
		say "waiting for another run that holds ${1}"
		flock 9
	fi
}

# with_heartbeat LOG COMMAND...: runs COMMAND with its output in LOG, says every
# 20 seconds how long it has been running and what it wrote last, and shows LOG's
# end if COMMAND fails.
with_heartbeat() {
	local log=$1 command_pid began=$SECONDS next=20 status=0
	shift
	"$@" >"$log" 2>&1 9>&- &
	command_pid=$!
	trap 'kill "$command_pid" 2>/dev/null; wait "$command_pid" 2>/dev/null; exit 130' INT TERM
	while kill -0 "$command_pid" 2>/dev/null; do
		if ((SECONDS - began >= next)); then
			say "still at it after $((SECONDS - began)) s, now at: $(tail -n 1 "$log")"
			next=$((next + 20))
		fi
		sleep 0.2
	done
	wait "$command_pid" || status=$?
	trap - INT TERM
	if ((status != 0)); then
		say "failed after $((SECONDS - began)) s; the end of its output:"
		tail -n 40 "$log" >&2
	fi
	return "$status"
}

# pip_target FOLDER REQUIREMENTS: installs what REQUIREMENTS pins, by hash, into
# FOLDER, unless that has been done already. Not a venv: Debian's python3 cannot
# make one without a further package, while pip is all that this needs.
pip_target() {
	local folder=$1 requirements=$2 staging want
	need python3 "install Python 3.10 or later, with pip"
	want=$({
		cat "$requirements"
		python3 -c 'import sys, sysconfig; print(sys.executable, sys.version, sysconfig.get_platform())'
	} | sha256)
	if [ "$(cat "$folder/.stamp" 2>/dev/null)" = "$want" ]; then return; fi
	python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip: install it (Debian: apt-get install python3-pip)"
	say "installing what ${requirements#"$root"/} pins, with pip"
	mkdir -p "$(dirname "$folder")"
	staging=$(mktemp -d "$folder.XXXXXX")
	if ! with_heartbeat "$staging.log" python3 -m pip install --disable-pip-version-check --no-input \
		--require-hashes --only-binary :all: --target "$staging" -r "$requirements"; then
		rm -rf "$staging" "$staging.log"
		fail "pip could not install ${requirements#"$root"/}"
	fi
	printf '%s\n' "$want" >"$staging/.stamp"
	rm -rf "$folder" "$staging.log"
	mv "$staging" "$folder"
}

# module_files FOLDER MODULE VERSION PATH...: copies files of a Go module into FOLDER, unless it has those of this version.
module_files() {
	local folder=$1 module=$2 version=$3 stamp dir path
	shift 3
	stamp=$folder/.$(printf '%s' "$module" | tr / _)
	if [ "$(cat "$stamp" 2>/dev/null)" = "$version" ]; then return; fi
	need go "see https://go.dev/doc/install"
	say "fetching files of $module $version"
	# From the root, where there is no workspace; the module itself is not among the project's.
	dir=$(cd / && GOWORK=off GOFLAGS=-mod=mod go mod download -json "$module@$version" | sed -n 's/^.*"Dir": "\(.*\)",*$/\1/p')
	[ -n "$dir" ] || fail "$module $version could not be fetched"
	mkdir -p "$folder"
	for path in "$@"; do install -m 0644 "$dir/$path" "$folder/"; done
	printf '%s\n' "$version" >"$stamp"
}
