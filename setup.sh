# Sourced by run_all.sh and tests/run.sh: makes .venv with the pinned packages, once, and puts it on the PATH.
# Usage: source setup.sh requirements.txt [more requirements files]      PYTHON names another interpreter.
ich_install() {  # a requirements file and the package; remembered in a stamp, so that a second call does nothing
    local stamp=".venv/installed-${1//\//-}" wanted
    wanted="$(cat pyproject.toml "$1")"
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    echo "Installing $1 into .venv (once; a few minutes)"
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv || return
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1" || return
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable . || return
    printf '%s\n' "$wanted" > "$stamp.$$" && mv "$stamp.$$" "$stamp"
}
"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.11" >&2
    exit 1
}
for ich_file in "$@"; do
    ich_install "$ich_file" || { echo "The packages could not be installed; see the lines above" >&2; exit 1; }
done
export PATH="$PWD/.venv/bin:$PATH" NO_ALBUMENTATIONS_UPDATE=1
