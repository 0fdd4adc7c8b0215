# Sourced by the scripts beside it with the extras to install, e.g. `. environment.sh cpu,dev`: makes .venv if absent, installs
# the package there if what decides the installation has changed, and puts its commands on PATH.
set -euo pipefail
root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
python="$root/.venv/bin/python"
extras="${1/cpu/${RA_BLIP_FAISS:-cpu}}" # RA_BLIP_FAISS=gpu: FAISS with its GPU part
want="$root $(cat "$root/setup.py" "$root"/requirements/*.txt | cksum)"

# The stamp of more extras (installed-cpu,dev) serves fewer of them (installed-cpu) too.
if ! [ -x "$python" ] || ! grep -qsxF -- "$want" "$root/.venv/installed-$extras"*; then
  python3 -c 'import sys; sys.exit("ra-blip needs Python 3.10 or later; python3 is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
  # A .venv that was cut short, or whose Python is gone, has no working pip: make it again in place.
  "$python" -m pip --version >/dev/null 2>&1 || python3 -m venv "$root/.venv"
  constraints=(-c "$root/requirements/constraints.txt")
  # A torch that is in .venv already is kept, whatever its build (GPU users: make .venv, pip install your torch, come back).
  # Else Linux without an NVIDIA device is held to the version whose CPU build may be offered by the index or PIP_FIND_LINKS.
  if [ "$(uname)" = Linux ] && ! [ -e /dev/nvidiactl ] && ! [ -e /dev/dxg ] && ! "$python" -m pip show -q torch 2>/dev/null; then
    constraints+=(-c "$root/requirements/constraints-cpu.txt")
  fi
  echo "Installing ra-blip[$extras] in $root/.venv"
  PIP_REQUIRE_VIRTUALENV=1 "$python" -m pip install --disable-pip-version-check "${constraints[@]}" -e "$root[$extras]"
  echo "$want" >"$root/.venv/installed-$extras"
fi
export PATH="$root/.venv/bin:$PATH"
