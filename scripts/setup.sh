#!/usr/bin/env bash
# Create the virtual environment given as the first argument, with the pinned dependencies and this project.
#
#   PYTHON=python3.12 bash scripts/setup.sh .venv
#
# uv is used, with a tenth of pip's work: the one on the PATH, or one that is put into the environment. pip alone gives
# the same packages.
set -euo pipefail

venv=${1:?usage: setup.sh VENV}
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'; then
    echo "setup: $python is $("$python" -V 2>&1); Python 3.11, 3.12 or 3.13 is needed." >&2
    echo "setup: name one with: make PYTHON=python3.12 …" >&2
    exit 1
fi

with_uv() {
    export VIRTUAL_ENV="$PWD/$venv"
    "$uv" pip install --quiet --require-hashes -r requirements/dev.txt &&
        "$uv" pip install --quiet --no-deps --no-build-isolation -e .
}

with_pip() {
    "$venv/bin/pip" install --quiet --no-compile --require-hashes -r requirements/dev.txt
    "$venv/bin/pip" install --quiet --no-compile --no-deps --no-build-isolation -e .
}

if uv=$(command -v uv); then
    "$uv" venv --quiet --clear --seed --python "$python" "$venv"
else
    "$python" -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --require-hashes -r requirements/uv.txt && uv="$venv/bin/uv"
fi
# An index may be set up for pip alone: then uv finds nothing, and pip does.
if [[ -z $uv ]] || ! with_uv; then
    echo "setup: without uv; pip takes some minutes" >&2
    with_pip
fi

# Without compiled bytecode TensorFlow imports in 14 s instead of 5, and PYTHONDONTWRITEBYTECODE, where it is set,
# would keep it from ever being written on import. A few packages ship files for other Python versions that do not
# compile; they are never imported, so their failure is not ours. What is compiled of this project counts until a file
# of it changes: a tenth of the start of every job and worker.
env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -m compileall -q -j 0 \
    "$venv"/lib/python*/site-packages transfer jobs >/dev/null || true
touch "$venv/.ready"
