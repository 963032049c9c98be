#!/usr/bin/env bash
# Builds what a release consists of into FOLDER: for each target an archive with the static binary, and a bill of materials
# (CycloneDX); SHA256SUMS over all of it, signed where RELEASE_SIGN_KEY names an SSH key.
#
# Needs GNU tar and coreutils, so Linux.
#
# Usage: scripts/release.sh VERSION FOLDER [OS/ARCH...]      default: linux and darwin, amd64 and arm64
#
# Every binary is built twice, from two copies of the commit in different folders and with an empty build cache each, and the
# two must be the same bytes: whoever has the commit and this version of Go can build what was released. Then govulncheck
# looks at it; GOVULNDB says where its database is, file:///… for a copy without a network. A release that could not be
# looked at is refused, unless RELEASE_UNCHECKED says why, which goes into the folder's NOTES.
#
# The image of a release is built from the same commit, with the base pinned by digest. A tag can be moved, and a digest
# has to be looked up where the registry can be reached and compared with what a second machine sees:
#
#     base=$(sed -n 's/^FROM .*\(golang:[^ ]*\) AS build$/\1/p' Dockerfile)
#     digest=$(docker buildx imagetools inspect "$base" --format '{{.Manifest.Digest}}')
#     sed "s|$base|$base@$digest|" Dockerfile |
#         docker buildx build --file - --build-arg VERSION="$VERSION" --platform linux/amd64,linux/arm64 --sbom true --provenance true .
#
# The final image is FROM scratch and has no base of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
govulncheck_version=v1.9.0
cyclonedx_version=v1.10.0

say() { printf '==> %s\n' "$*"; }
fail() { printf 'release: %s\n' "$*" >&2; exit 1; }

(($# >= 2)) || fail 'usage: scripts/release.sh VERSION FOLDER [OS/ARCH...]'
version=$1 out=$2
targets=("${@:3}")
((${#targets[@]})) || targets=(linux/amd64 linux/arm64 darwin/amd64 darwin/arm64)
[[ $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$ ]] || fail "VERSION $version: want v1.2.3, or v1.2.3-rc.1"
[[ -z $(git status --porcelain) ]] || fail 'the work tree is not clean: what is built must be a commit'
[[ ! -e $out ]] || fail "$out is there already: remove it, or name another folder"

mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH CGO_ENABLED=0 GOFLAGS='-trimpath -buildvcs=false -mod=readonly' GOWORK=off LC_ALL=C
commit=$(git rev-parse HEAD)

# tool NAME PACKAGE@VERSION leaves a tool of this very version in .cache/bin.
tool() {
	local at=$PWD/.cache/bin/$1
	if ! go version -m "$at" 2>/dev/null | grep -qP "^\tmod\t\S+\t${2#*@}\t"; then
		say "building $1 ${2#*@}"
		GOFLAGS='' GOBIN=$PWD/.cache/bin go install "$2"
	fi
}

# build COPY OS ARCH writes the binary of one copy of the commit, with a cache of its own.
build() {
	(
		cd "$work/$1/source"
		GOCACHE=$work/$1/cache-$2-$3 GOOS=$2 GOARCH=$3 go build -tags timetzdata -ldflags "-s -w -buildid= -X main.version=$version" \
			-o "$work/$1/renewd-$2-$3" ./cmd/renewd
	)
	chmod -R u+w "$work/$1/cache-$2-$3"
	rm -rf "$work/$1/cache-$2-$3"
}

tool govulncheck "golang.org/x/vuln/cmd/govulncheck@$govulncheck_version"
tool cyclonedx-gomod "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@$cyclonedx_version"

for copy in one another/folder; do
	mkdir -p "$work/$copy/source"
	git archive "$commit" | tar -x -C "$work/$copy/source"
done

say 'modules are what go.sum says'
go mod verify

for target in "${targets[@]}"; do
	os=${target%/*} arch=${target#*/}
	[[ $os/$arch == "$target" && $os != "$target" ]] || fail "$target: want OS/ARCH"
	say "$target, twice"
	build one "$os" "$arch"
	build another/folder "$os" "$arch"
	binary=$work/one/renewd-$os-$arch
	cmp "$binary" "$work/another/folder/renewd-$os-$arch" || fail "$target: two builds of $commit differ"

	name=renewd-$version-$os-$arch
	mkdir -p "$work/$name/deploy"
	cp "$binary" "$work/$name/renewd"
	cp README.md LICENSE SECURITY.md ARCHITECTURE.md "$work/$name/"
	cp -R docs "$work/$name/docs"
	cp -R deploy/nats deploy/postgres "$work/$name/deploy/"
	find "$work/$name" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
	chmod -R u=rwX,go=rX "$work/$name"
	tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=gnu -C "$work" -c "$name" |
		gzip -n -9 >"$out/$name.tar.gz"
	# Without serial number and time: the same bytes for the same commit.
	.cache/bin/cyclonedx-gomod bin -json -noserial -notimestamp -version "$version" -output "$out/$name.cdx.json" "$binary"
done

say 'known vulnerabilities'
database=()
[[ -z ${GOVULNDB:-} ]] || database=(-db "$GOVULNDB")
notes="commit $commit, $(go env GOVERSION)"
status=0
GOFLAGS='' .cache/bin/govulncheck "${database[@]}" -tags timetzdata ./cmd/renewd || status=$?
case $status in
0) notes+=$'\ngovulncheck found nothing that renewd calls' ;;
3) fail 'govulncheck found something: see above' ;;
*)
	[[ -n ${RELEASE_UNCHECKED:-} ]] || fail 'govulncheck could not look: point GOVULNDB at its database, or say in RELEASE_UNCHECKED why it does without'
	notes+=$'\nNOT checked for known vulnerabilities: '$RELEASE_UNCHECKED
	;;
esac
printf '%s\n' "$notes" >"$out/NOTES"

(cd "$out" && sha256sum -- *.tar.gz *.cdx.json NOTES >SHA256SUMS)
if [[ -n ${RELEASE_SIGN_KEY:-} ]]; then
	ssh-keygen -q -Y sign -f "$RELEASE_SIGN_KEY" -n renewd-release "$out/SHA256SUMS"
fi
say "in $out:"
ls -l "$out"
