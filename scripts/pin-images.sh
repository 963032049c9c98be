#!/usr/bin/env bash
# Writes the digest behind each image that is named by a tag, in the Dockerfile and
# docker-compose.yml, since a tag can be moved and a digest cannot. An image that has its digest is
# left alone. Needs docker with buildx, and the registry. Look at the diff, and compare a digest
# with what a second machine sees.
#
# Usage: scripts/pin-images.sh          or, to check alone: scripts/pin-images.sh --check
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
files=(Dockerfile docker-compose.yml)

fail() { printf 'pin-images: %s\n' "$*" >&2; exit 1; }
[[ $# == 0 || $# == 1 && $1 == --check ]] || fail 'usage: scripts/pin-images.sh [--check]'

# What is built here has no digest yet, and scratch is no image.
named='s/^FROM (--platform=\S+ )?(\S+).*/\2/p; s/^\s+image: (\S+)$/\1/p'
mapfile -t images < <(sed -nE "$named" "${files[@]}" | grep -vE '^(scratch|renewd:.*)$' | sort -u)
((${#images[@]})) || fail 'no image found: this script looks in the wrong place'

missing=0
for image in "${images[@]}"; do
	[[ $image == *@sha256:* ]] && continue
	missing=$((missing + 1))
	if [[ ${1:-} == --check ]]; then
		printf '%s has no digest\n' "$image"
		continue
	fi
	digest=$(docker buildx imagetools inspect "$image" --format '{{.Manifest.Digest}}') ||
		fail "$image: its registry does not answer: nothing more is changed"
	[[ $digest =~ ^sha256:[0-9a-f]{64}$ ]] || fail "$image: $digest is no digest"
	pattern=$(sed 's/[.[\*^$]/\\&/g' <<<"$image")
	sed -i -E "s|(\s)$pattern(\s\|$)|\1$image@$digest\2|" "${files[@]}"
	printf '%s@%s\n' "$image" "$digest"
done
[[ ${1:-} != --check || $missing == 0 ]] || fail 'make pin where the registry can be reached'
