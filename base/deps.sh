#!/bin/sh
# deps.sh check     says which Debian packages the build needs and does not find; exit 1 if any
# deps.sh install [test]
#                   installs them (and, with "test", what the tests need): as root, or through sudo
#                   when it asks for no password; otherwise prints the command to run and exits 1
set -eu

BUILD="gcc libc6-dev make pkg-config libh2o-evloop-dev libssl-dev zlib1g-dev libleveldb-dev
libprotobuf-c-dev protobuf-c-compiler libjansson-dev uthash-dev libxxhash-dev curl"
TEST="libcmocka-dev python3 clang libclang-rt-14-dev valgrind procps iproute2 git"

missing() {
    for package in "$@"; do
        status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$status" = installed ] || printf ' %s' "$package"
    done
}

if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "kvraftd: this is no Debian system; the packages it is built with are called there:" >&2
    echo " " $BUILD >&2
    exit 0
fi

case "${1:-check}" in
check)
    lacking=$(missing $BUILD)
    if [ -n "$lacking" ]; then
        echo "kvraftd: the build needs these Debian packages:$lacking" >&2
        echo "install them with:  make deps    or    apt-get install -y$lacking" >&2
        exit 1
    fi
    ;;
install)
    want=$BUILD
    [ "${2:-}" = test ] && want="$BUILD $TEST"
    lacking=$(missing $want)
    [ -n "$lacking" ] || exit 0
    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        echo "kvraftd needs Debian packages that only root can install. Please run:" >&2
        echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends$lacking" >&2
        exit 1
    fi
    echo "installing:$lacking"
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        $lacking >/dev/null
    ;;
*)
    echo "usage: deps.sh check | install [test]" >&2
    exit 2
    ;;
esac
