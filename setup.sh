# Sourced by run_all.sh and tests/run.sh: installs the pinned packages into .venv once, and puts it on the PATH.
# Usage: source setup.sh requirements.txt [more requirements files]      PYTHON: another interpreter.
ich_python() {  # create .venv with Python 3.11 or newer; an incomplete one is replaced
    .venv/bin/python -m pip --version > /dev/null 2>&1 && return
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "Python 3.11 or newer is required; set PYTHON=/path/to/python3.11" >&2
        return 1
    }
    "${PYTHON:-python3}" -m venv --clear .venv
}
ich_install() {  # a requirements file and the package; a stamp makes a second call return at once
    local stamp=".venv/installed-${1//\//-}" wanted
    wanted="$(cat pyproject.toml "$1")"
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    echo "Installing $1 into .venv (once; a few minutes)"
    ich_python || return
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1" || return
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable . || return
    printf '%s\n' "$wanted" > "$stamp.$$" && mv "$stamp.$$" "$stamp"
}
ich_setup() {  # one process installs at a time, if the system has flock
    ! command -v flock > /dev/null || flock 9
    local file
    for file in "$@"; do
        ich_install "$file" || { echo "The packages could not be installed; see the lines above" >&2; exit 1; }
    done
}
ich_setup "$@" 9> .setup.lock
export PATH="$PWD/.venv/bin:$PATH" NO_ALBUMENTATIONS_UPDATE=1
