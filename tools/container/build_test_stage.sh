#!/usr/bin/env bash
# Builds the Dockerfile's stage `test` from the last commit in a clean root, without Docker and without a registry of images, and runs
# the doctor and a few tests in it:
#   sudo bash tools/container/build_test_stage.sh [--suite bookworm] [--mirror URL] [--folder DIR] [-- make test PYTEST_ARGS="-k doctor"]
#
# In place of the image that FROM names, debootstrap makes a Debian with Python of the same release; buildah executes every instruction.
# --mirror is Debian's mirror (default: the one that apt on this machine uses), --folder holds the work (8 GB; default: a new one in
# TMPDIR, removed at the end), and the words after -- are the command that is run in the image as its user (default: the one above).
# pip in the build uses the configuration of pip on this machine: indexes, certificates, local folders of wheels.
#
# It needs root, and of Debian: apt-get install buildah debootstrap git python3-pip.
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 1
}

suite=bookworm
mirror=
folder=
checks=(make test "PYTEST_ARGS=-k doctor")
while [ "$#" -gt 0 ]; do
  case "$1" in
  --suite | --mirror | --folder)
    [ "$#" -gt 1 ] || fail "$1 needs a value"
    printf -v "${1#--}" %s "$2"
    shift 2
    ;;
  --)
    shift
    checks=("$@")
    break
    ;;
  *) fail "unknown argument $1; known are --suite, --mirror, --folder and --" ;;
  esac
done
for program in debootstrap buildah git python3; do
  command -v "$program" >/dev/null || fail "$program was not found; apt-get install buildah debootstrap git python3-pip"
done
[ "$(id -u)" = 0 ] || fail "debootstrap and buildah need root here; run it with sudo"
# shellcheck disable=SC2016  # apt-get replaces $(REPO_URI)
mirror=${mirror:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' "Codename: $suite" | head -n 1)}
[ -n "$mirror" ] || fail "apt on this machine knows no mirror of $suite; name one with --mirror URL"
repository=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
[ -z "$(git -C "$repository" status --porcelain)" ] || echo "note: only what is committed goes into the image"

folder=${folder:-$(mktemp -d)}
mkdir -p "$folder"
buildah() {
  command buildah --root "$folder/storage" --runroot "$folder/run" "$@"
}
clean_up() {
  buildah rm --all >/dev/null 2>&1 || true
  buildah rmi --all --force >/dev/null 2>&1 || true
  rm -rf "$folder"
}
trap clean_up EXIT
step() {
  echo "== $* (after ${SECONDS} s)"
}

step "debootstrap $suite"
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv "$suite" "$folder/debian" "$mirror" >"$folder/debootstrap.log" ||
  fail "debootstrap failed: $(tail -n 3 "$folder/debootstrap.log")"

step "an image of it in place of $(sed -n 's/^ARG PYTHON_IMAGE=//p' "$repository/Dockerfile")"
tar -C "$folder/debian" --exclude='./dev/*' -cf "$folder/debian.tar" .
container=$(buildah from scratch)
buildah add --quiet "$container" "$folder/debian.tar" / >/dev/null
buildah commit --quiet --rm "$container" localhost/debian-python >/dev/null
rm -rf "$folder/debian" "$folder/debian.tar"

step "build the stage test of $(git -C "$repository" describe --always)"
git clone --quiet --no-local "$repository" "$folder/context"
python3 "$repository/tools/container/pip_configuration.py" "$folder/pip.conf" >"$folder/mounts"
mapfile -t mounts <"$folder/mounts"
isolation=(--isolation chroot --network host "${mounts[@]}")
buildah build --pull-never --format docker --target test "${isolation[@]}" --tag localhost/megatron-fwpkm:test \
  --build-arg PYTHON_IMAGE=localhost/debian-python --build-arg TORCH_PIP_ARGS= "$folder/context"
buildah images

container=$(buildah from --pull-never localhost/megatron-fwpkm:test)
step "its health check"
buildah run "${isolation[@]}" "$container" -- id
buildah run "${isolation[@]}" "$container" -- .venv/bin/python tools/doctor.py --quick
step "${checks[*]}"
buildah run "${isolation[@]}" "$container" -- "${checks[@]}"
step "done: the stage test builds and its checks pass"
