#!/usr/bin/env bash
# Install Ceph's programs for scripts/s3_server from the machine's own package sources (Debian, Ubuntu).
#
# Exits 0 when they are there, 1 when they cannot be installed here, and says why.
set -euo pipefail

packages=(ceph-mon ceph-osd radosgw ceph-common)

have_all() {
    local program
    for program in ceph ceph-mon ceph-osd monmaptool radosgw radosgw-admin; do
        command -v "$program" >/dev/null || return 1
    done
}

have_all && exit 0
if ! command -v apt-get >/dev/null; then
    echo "install: there is no apt-get here; install Ceph's monitor, OSD and RADOS Gateway in this system's way." >&2
    exit 1
fi
as_root=()
if [[ $(id -u) -ne 0 ]]; then
    if ! sudo -n true 2>/dev/null; then
        echo "install: needs root. Run: sudo apt-get install --no-install-recommends ${packages[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install)
# The lists of packages may be old or missing; then they are fetched, once.
"${install[@]}" "${packages[@]}" >/dev/null || {
    "${as_root[@]}" apt-get -qq update && "${install[@]}" "${packages[@]}" >/dev/null
}
have_all || {
    echo "install: the packages are there, and some of their programs are not." >&2
    exit 1
}
