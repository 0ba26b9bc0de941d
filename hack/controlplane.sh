#!/usr/bin/env bash
# Gets kube-apiserver, etcd and kubectl, and prints the folder that holds them
# as the one line on stdout, to be used as KUBEBUILDER_ASSETS. Progress goes to
# stderr. Looked at in this order:
#   1. $KUBEBUILDER_ASSETS, if it holds kube-apiserver and etcd;
#   2. bin/k8s/<version>, built by an earlier run from the same sources;
#   3. a build from the Go modules that hack/controlplane/go.mod names.
# bin/kubectl is there afterwards in each case: a link to the folder's kubectl,
# or a kubectl built for it where the folder has none.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source_dir=$root/hack/controlplane
. "$root/hack/lib.sh"

version=$(awk '$1 == "k8s.io/kubernetes" { print $2; exit }' "$source_dir/go.mod")
assets=$root/bin/k8s/${version#v}
stamp=$assets/.stamp

# What the binaries are made of: a change to any of it is a new build.
fingerprint() {
	(cd "$source_dir" && cat go.mod go.sum cmd/*/main.go "$root/hack/controlplane.sh" && go env GOOS GOARCH) |
		sha256
}

ldflags() {
	local major minor package flags="-s -w"
	IFS=. read -r major minor _ <<<"${version#v}"
	for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
		flags+=" -X $package.gitVersion=$version -X $package.gitMajor=$major -X $package.gitMinor=$minor"
		flags+=" -X $package.gitTreeState=clean"
	done
	printf '%s' "$flags"
}

# build NAME...: builds the commands into $assets. A new file is moved over the
# old one, so that a running one is left alone.
build() {
	local name targets=()
	mkdir -p "$assets"
	staging=$(mktemp -d "$assets/.build.XXXXXX")
	trap 'rm -rf "$staging"' EXIT
	for name in "$@"; do targets+=("./cmd/$name"); done
	if ! (cd "$source_dir" && GOWORK=off CGO_ENABLED=0 with_heartbeat "$staging/log" \
		go build -v -trimpath -buildvcs=false -ldflags "$(ldflags)" -o "$staging/" "${targets[@]}"); then
		fail "the build of $* failed"
	fi
	for name in "$@"; do mv -f "$staging/$name" "$assets/$name"; done
}

# link_kubectl FOLDER: bin/kubectl is FOLDER's kubectl.
link_kubectl() {
	mkdir -p "$root/bin"
	ln -sfn "$1/kubectl" "$root/bin/.kubectl.$$"
	mv -f "$root/bin/.kubectl.$$" "$root/bin/kubectl"
}

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
	if [ -x "$KUBEBUILDER_ASSETS/kube-apiserver" ] && [ -x "$KUBEBUILDER_ASSETS/etcd" ]; then
		given=$(cd "$KUBEBUILDER_ASSETS" && pwd)
		say "using kube-apiserver ($("$given/kube-apiserver" --version)) and etcd of KUBEBUILDER_ASSETS=$given"
		if [ -x "$given/kubectl" ]; then
			link_kubectl "$given"
		else
			with_lock "$root/bin/k8s/.lock"
			if [ ! -x "$assets/kubectl" ]; then
				say "building kubectl $version (the first time takes about a minute)"
				build kubectl
			fi
			link_kubectl "$assets"
		fi
		printf '%s\n' "$given"
		exit 0
	fi
	say "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS holds no kube-apiserver and etcd: not used"
fi

need go "see https://go.dev/doc/install"
with_lock "$root/bin/k8s/.lock"
want=$(fingerprint)
if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] &&
	[ -x "$assets/kube-apiserver" ] && [ -x "$assets/etcd" ] && [ -x "$assets/kubectl" ]; then
	say "kube-apiserver, etcd and kubectl $version are in ${assets#"$root"/}"
else
	say "building kube-apiserver, etcd and kubectl $version from their Go modules:"
	say "the first build takes about 5 minutes on 2 cores, later ones are cached"
	build kube-apiserver etcd kubectl
	printf '%s\n' "$want" >"$stamp"
	say "built ${assets#"$root"/}"
fi
link_kubectl "$assets"
printf '%s\n' "$assets"
