# Sourced by tools/run and tools/test, in the root of the repository: makes .venv with the product in it.
# Works with bash 3.2.

say() { printf '==> %s\n' "$*"; }

# Prints the first Python that is new enough; PYTHON, when set, is the only candidate.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return 0
    fi
  done
  echo "Python 3.11 or newer with the venv module is needed and was not found (Debian, Ubuntu: apt install python3-venv)." >&2
  return 1
}

# What an installation depends on: when it changes, the next call installs again.
fingerprint() {
  cat setup.cfg setup.py pyproject.toml native/*.pyx $(find native/src -type f | sort) | cksum
}

# install_product EXTRAS: the product, editable, with its native modules and these extras ("" for none) in .venv.
install_product() {
  local stamp=".venv/.installed${1:+-$1}" python
  if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint)" ]; then
    return 0
  fi
  if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    say "making .venv with $python"
    "$python" -m venv .venv
  fi
  say "installing mlx-serving${1:+ with extras $1} (a minute or two the first time)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${1:+[$1]}"
  fingerprint >"$stamp"
}
