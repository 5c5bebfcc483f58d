# include: check.sh

venv="${VENV:-$HOME/.pixtral-sky/venv}"
# What is installed has no business with the keys.
without_secrets() { env -u HF_TOKEN -u PIXTRAL_API_KEY "$@"; }

# vLLM's wheels are built for CUDA 13, and CUDA 13 needs driver 580 or newer.
if command -v nvidia-smi >/dev/null; then
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader) || fail "nvidia-smi finds no GPU: $driver"
  driver=${driver%%$'\n'*} # a line a GPU
  [ "${driver%%.*}" -ge 580 ] || fail "the NVIDIA driver here is $driver, and this vLLM needs 580 or newer." \
    "Set resources.image_id to an image with a newer driver, or try another cloud: --infra."
elif [ -z "$VENV" ]; then
  fail "there is no NVIDIA driver on this machine (no nvidia-smi). Set resources.image_id to an image that has one."
fi

# Triton, with which vLLM makes kernels, has a C compiler build the code that starts them.
if [ -z "$VENV" ] && [ -z "$CC" ] && ! command -v gcc >/dev/null && ! command -v clang >/dev/null; then
  as_root=$([ "$(id -u)" -eq 0 ] || echo sudo -n)
  { without_secrets $as_root apt-get update && without_secrets $as_root apt-get install -y gcc libc6-dev; } >/dev/null 2>&1 ||
    fail "there is no C compiler on this machine (gcc), and apt-get cannot install one. Install it, or choose another image."
fi

# A directory is a model that is here already; a name is one on the Hugging Face Hub, behind its licence.
if [ ! -d "$MODEL" ]; then
  hub="${HF_ENDPOINT:-https://huggingface.co}"
  [[ $HF_TOKEN =~ ^[A-Za-z0-9_-]*$ ]] || fail "HF_TOKEN has characters that a token cannot have."
  header=""; [ -z "$HF_TOKEN" ] || header="header = \"Authorization: Bearer $HF_TOKEN\""
  # The token goes in by standard input: arguments can be read by every user of a machine.
  status=$(printf '%s\n' "$header" | curl -sIL -K - -o /dev/null -w '%{http_code}' --retry 3 \
    "$hub/$MODEL/resolve/${MODEL_REVISION//\//%2F}/params.json") || true
  case "$status" in
    200) ;;
    401) fail "the Hugging Face token is missing or wrong. Accept the licence at $hub/$MODEL, make a token" \
         "at $hub/settings/tokens, and pass it: HF_TOKEN=... and --secret HF_TOKEN." ;;
    403) fail "this Hugging Face token does not open $MODEL. Accept the licence at $hub/$MODEL with the account" \
         "of the token; a fine-grained token also needs read access to gated repositories." ;;
    404) fail "there is no $MODEL in Mistral's format (no params.json at revision $MODEL_REVISION) at $hub." \
         "Check MODEL and MODEL_REVISION." ;;
    *)   fail "$hub does not answer for $MODEL (HTTP $status). Check the machine's network, or HF_ENDPOINT." ;;
  esac
fi

if [ -z "$VENV" ]; then
  step "installing vLLM"
  # include: uv.sh
  # Python of uv's own has the headers that Triton compiles with; where it cannot be fetched, another one may do.
  [ -x "$venv/bin/python" ] || without_secrets "$uv" venv --managed-python --python 3.12 "$venv" ||
    without_secrets "$uv" venv --python 3.12 "$venv"
  # Compiled now, while nobody waits for an answer: the server then starts twice as fast.
  without_secrets "$uv" pip install --python "$venv/bin/python" --compile-bytecode \
    ${PACKAGES_AS_OF:+--exclude-newer "$PACKAGES_AS_OF"} "vllm==0.32.0"
fi

# The weights come now, so that the server's readiness is about the server. Only Mistral's format:
# the repository has nothing else of the model, but a copy of it might.
if [ ! -d "$MODEL" ]; then
  step "downloading $MODEL"
  HF_XET_HIGH_PERFORMANCE=1 "$venv/bin/hf" download "$MODEL" --revision "$MODEL_REVISION" \
    --include "consolidated*.safetensors" --include params.json --include tekken.json
fi
