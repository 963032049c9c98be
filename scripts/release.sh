#!/usr/bin/env bash
# Builds what a release consists of into FOLDER: for each target an archive with the static binary
# and a bill of materials (CycloneDX); a statement of provenance (in-toto, SLSA's form) that says
# from what the archives were built; and SHA256SUMS over all of it, signed where RELEASE_SIGN_KEY
# names an SSH key.
#
# Needs GNU tar and coreutils, so Linux.
#
# Usage: scripts/release.sh VERSION FOLDER [OS/ARCH...]
#
# First govulncheck checks what is built, the standard library included. GOVULNDB says where its
# database is, file:///… for a copy without a network. A release that could not be checked is
# refused, unless RELEASE_UNCHECKED says why, which goes into the folder's NOTES.
#
# Every binary is built twice, from two copies of the commit in different folders and with an
# empty build cache each, and both must have the same bytes. So anyone with the commit can build the
# same release: scripts/release-go pins the version of Go, and the go command fetches it.
#
# The image of a release is built from the same commit, with its base pinned by digest: `make pin`
# where the registry can be reached, and a commit of what that changed. Its final stage is FROM
# scratch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

GOTOOLCHAIN=$(<scripts/release-go)
export GOTOOLCHAIN

say() { printf '==> %s\n' "$*"; }
fail() { printf 'release: %s\n' "$*" >&2; exit 1; }

(($# >= 2)) || fail 'usage: scripts/release.sh VERSION FOLDER [OS/ARCH...]'
version=$1 out=$2
targets=("${@:3}")
((${#targets[@]})) || targets=(linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64)
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

tools=$PWD/scripts/tools/go.mod

# build COPY OS ARCH writes the binary of one copy of the commit, with a separate cache.
build() {
	(
		cd "$work/$1/source"
		GOCACHE=$work/$1/cache-$2-$3 GOOS=$2 GOARCH=$3 go build -tags timetzdata -ldflags "-s -w -buildid= -X main.version=$version" \
			-o "$work/$1/renewd-$2-$3" ./cmd/renewd
	)
	chmod -R u+w "$work/$1/cache-$2-$3"
	rm -rf "$work/$1/cache-$2-$3"
}

for copy in one another/folder; do
	mkdir -p "$work/$copy/source"
	git archive "$commit" | tar -x -C "$work/$copy/source"
done

say 'modules are what go.sum says'
go mod verify

say 'known vulnerabilities'
notes="commit $commit, $(go env GOVERSION)"
status=0
scripts/vuln.sh ./cmd/renewd || status=$?
case $status in
0) notes+=$'\ngovulncheck found nothing that renewd calls' ;;
3) fail 'govulncheck found something: see above. If a newer Go mends it, name that in scripts/release-go and in Dockerfile' ;;
*)
	[[ -n ${RELEASE_UNCHECKED:-} ]] || fail 'govulncheck could not look: point GOVULNDB at its database, or say in RELEASE_UNCHECKED why it does without'
	notes+=$'\nNOT checked for known vulnerabilities: '$RELEASE_UNCHECKED
	;;
esac

say 'digests of images'
if scripts/pin-images.sh --check >"$work/unpinned" 2>/dev/null; then
	notes+=$'\nall images have digests'
else
	notes+=$'\npinned by version, not by digest (make pin):\n'$(<"$work/unpinned")
fi

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
	program=renewd
	[[ $os != windows ]] || program=renewd.exe
	cp "$binary" "$work/$name/$program"
	cp README.md CHANGELOG.md LICENSE SECURITY.md ARCHITECTURE.md "$work/$name/"
	cp -R docs "$work/$name/docs"
	cp -R deploy/nats deploy/postgres "$work/$name/deploy/"
	find "$work/$name" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
	chmod -R u=rwX,go=rX "$work/$name"
	tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=gnu -C "$work" -c "$name" |
		gzip -n -9 >"$out/$name.tar.gz"
	# Without serial number and time: the same bytes for the same commit.
	GOFLAGS='' go tool -modfile="$tools" cyclonedx-gomod bin -json -noserial -notimestamp \
		-version "$version" -output "$out/$name.cdx.json" "$binary"
done

printf '%s\n' "$notes" >"$out/NOTES"

# The statement proves nothing by itself. The signature under SHA256SUMS vouches for it.
say 'provenance'
as='s/^(\S+)  (.*)$/    {"name": "\2", "digest": {"sha256": "\1"}}/; $!s/$/,/'
subjects=$(cd "$out" && sha256sum -- *.tar.gz | sed -E "$as")
source=https://github.com/renewd/renewd
cat >"$out/provenance.json" <<END
{
  "_type": "https://in-toto.io/Statement/v1",
  "subject": [
$subjects
  ],
  "predicateType": "https://slsa.dev/provenance/v1",
  "predicate": {
    "buildDefinition": {
      "buildType": "$source/blob/$commit/scripts/release.sh",
      "externalParameters": {"version": "$version", "targets": "${targets[*]}"},
      "resolvedDependencies": [
        {"uri": "git+$source@$commit", "digest": {"gitCommit": "$commit"}},
        {"uri": "https://go.dev/dl/", "name": "$(go env GOVERSION)"}
      ]
    },
    "runDetails": {"builder": {"id": "$source/blob/$commit/scripts/release.sh"}}
  }
}
END

(cd "$out" && sha256sum -- *.tar.gz *.json NOTES >SHA256SUMS)
if [[ -n ${RELEASE_SIGN_KEY:-} ]]; then
	ssh-keygen -q -Y sign -f "$RELEASE_SIGN_KEY" -n renewd-release "$out/SHA256SUMS"
fi
say "in $out:"
ls -l "$out"
