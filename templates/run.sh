# include: check.sh

main() {
  export PATH="${VENV:-$HOME/.pixtral-sky/venv}/bin:$PATH"
  command -v vllm >/dev/null || fail "there is no vllm in VENV=$VENV."

  # Without a key only this machine can connect.
  host="${LISTEN:-0.0.0.0}"
  if [ -z "$PIXTRAL_API_KEY" ]; then
    host=127.0.0.1
    echo "There is no PIXTRAL_API_KEY, so it listens on 127.0.0.1 only. From your machine:" \
      "ssh -N -L $PORT:localhost:$PORT pixtral"
  fi

  scratch=$(mktemp -d /tmp/pixtral.XXXXXX) # in /tmp, as a socket's path has 107 characters at most
  # However this script ends, no server stays behind: it would keep the GPU.
  server="" asked_to_end=""
  trap '[ -z "$server" ] || kill -KILL -- "-$server" 2>/dev/null; rm -rf "$scratch"' EXIT
  # An ASGI middleware before all of vLLM: a short list of routes, the key, the size of a request, pictures by URL, and the
  # clock that ends an idle server. Its code is at the end of this script.
  write_gateway "$scratch/pixtral_gateway"
  # Without httptools, which takes heads without end into memory, uvicorn uses h11, which has a limit.
  echo 'raise ImportError' > "$scratch/httptools.py"
  ulimit -n "$(ulimit -Hn)" 2>/dev/null || true # a connection is an open file
  export PYTHONPATH="$scratch${PYTHONPATH:+:$PYTHONPATH}"

  [ -d "$MODEL" ] || export HF_HUB_OFFLINE="${HF_HUB_OFFLINE-1}" # the weights are here: no start depends on the Hub
  export GATEWAY_STATE="$scratch"                        # what a server that is started again goes on with
  export VLLM_API_KEY="$PIXTRAL_API_KEY"                 # a second lock behind the gateway, and never in argv
  export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1            # nothing is reported to anyone
  export VLLM_USE_RUST_FRONTEND=0                        # that front end knows no middleware
  export VLLM_SERVER_DEV_MODE=0                          # no development routes behind the gateway either
  export VLLM_MAX_IMAGE_PIXELS=52000000                  # a 50-megapixel phone passes; what is decoded takes 20 bytes each
  export VLLM_MAX_N_SEQUENCES=16                         # n=16384, the default, holds up all others for half a minute
  export UV_THREADPOOL_SIZE=64                           # of 4 threads, four names that hang leave none to look up another
  export VLLM_RPC_BASE_PATH="$scratch"                   # its sockets are in a folder of this user alone, and go with it
  export GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo     # its processes find each other on this machine only
  # Without what would be compiled with nvcc, which many machines lack (docs/gpus.md): FlashInfer's sampler and all-reduce,
  # and DeepGEMM. Two flags below leave out the rest.
  export VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_ALLREDUCE_USE_FLASHINFER=0 VLLM_USE_DEEP_GEMM=0
  export VLLM_ENGINE_READY_TIMEOUT_S=$((START_MINUTES * 60)) # not its own 10 minutes, wherever it has such a limit

  # Split as a shell does it, but nothing in it is run.
  readarray -d '' extra_args < <(EXTRA_ARGS="$EXTRA_ARGS" python3 -Ic '
import os, shlex
print(*shlex.split(os.environ["EXTRA_ARGS"]), "ok", sep="\0", end="\0")' 2>/dev/null)
  [ "${#extra_args[@]}" -gt 0 ] || fail "EXTRA_ARGS is not quoted as in a shell: $EXTRA_ARGS"
  unset 'extra_args[-1]'

  # What the GPUs decide. Where there are none (a rehearsal), it is as on small ones.
  gpus=$SKYPILOT_NUM_GPUS_PER_NODE gpu_args=()
  found=$(nvidia-smi --query-gpu=name,memory.total,compute_cap --format=csv,noheader,nounits 2>/dev/null |
    grep -E '^[^,]+, *[0-9]+, *[0-9.]+$') || found="CPU, 0, 9.0"
  IFS=, read -r gpu mib capability <<< "$found" # the first of a line each: NVIDIA L4, 23034, 8.9
  # Tokens that are computed in one step: a full picture is 4,160, and has to fit. While a step lasts no other answer goes
  # on, and on slow GPUs a large one takes seconds; on an A100 it is no faster.
  step_tokens=4352
  [ "$mib" -lt 71680 ] || [[ $gpu == *A100* ]] || step_tokens=8192
  # vLLM wants this share free when CUDA and NCCL are up already: of two L4's 22.05 GiB, 19.77 were.
  memory=0.92
  [ "$gpus" -eq 1 ] || [ "$mib" -ge 30720 ] || memory=0.88
  # It trusts the driver's word that GPUs can reach each other, and hangs without NVLink where that is wrong.
  [ "$gpus" -eq 1 ] || [[ $(nvidia-smi topo -m 2>/dev/null) =~ NV[0-9] ]] || gpu_args+=(--disable-custom-all-reduce)
  # It quantizes while it loads, and all but the decoder stays bf16. By channel is closer, and needs the FP8 units that GPUs
  # have since Ada (8.9); an Ampere GPU has none, and unpacks the weights.
  fp8=fp8_per_channel
  [ "${capability//[!0-9]/}" -ge 89 ] || fp8=fp8_per_tensor
  [ "$PRECISION" = bf16 ] || gpu_args+=(--quantization "$fp8")
  # Without a number vLLM takes all that fits (-1), and here not more than this. Pixtral knows 128,000.
  context=$((prompt_of_images < 28672 ? 32768 : prompt_of_images < 123904 ? prompt_of_images + 4096 : 128000))
  [ -n "$MAX_MODEL_LEN" ] || gpu_args+=(--hf-overrides "{\"text_config\": {\"max_position_embeddings\": $context}}")
  echo "On $gpus x $gpu: $PRECISION, ${MAX_MODEL_LEN:-at most $context} tokens of context, $step_tokens a step," \
    "$memory of the memory ${gpu_args[*]}"

  # It fetches no picture: / is the name of no host. It keeps none for later requests either: when one is refused late, it
  # takes its picture for kept, and fails the next request with it. Answers by JSON Schema have no white space between: a
  # model can lose itself in it. One API server, as the idle clock is that of one. 64 requests at once are more than the
  # memory holds of full ones; room for 1,024 would cost some of it.
  start() {
    set -m # in a process group of its own, so that nothing of a dead server stays
    vllm serve "$MODEL" \
      --revision "$MODEL_REVISION" \
      --served-model-name pixtral mistralai/Pixtral-12B-2409 \
      --host "$host" --port "$PORT" \
      --tensor-parallel-size "$gpus" \
      --tokenizer-mode mistral --config-format mistral --load-format mistral \
      --limit-mm-per-prompt "{\"image\": $MAX_IMAGES}" \
      --max-model-len "${MAX_MODEL_LEN:--1}" \
      --max-num-seqs 64 --max-num-batched-tokens "$step_tokens" --gpu-memory-utilization "$memory" "${gpu_args[@]}" \
      --no-enable-flashinfer-autotune -cc.pass_config.fuse_allreduce_rms=false \
      --enable-auto-tool-choice --tool-call-parser mistral \
      --structured-outputs-config '{"backend": "guidance", "disable_any_whitespace": true}' \
      --allowed-media-domains / --mm-processor-cache-gb 0 \
      --middleware pixtral_gateway.gateway.Gateway --api-server-count 1 --h11-max-incomplete-event-size 65536 \
      --no-enable-log-requests --disable-uvicorn-access-log \
      "${extra_args[@]}" &
    server=$!
    set +m
  }

  listens() { (: < "/dev/tcp/$host/$PORT") 2>/dev/null; }

  # Returns when the server listens, or has ended. One that hangs on its way up would cost money for ever: the clock of the
  # gateway begins when it is up. START_MINUTES are for all starts of an hour together.
  wait_until_up() {
    until listens; do
      kill -0 "$server" 2>/dev/null || return 0
      if [ "$starting" -gt $((START_MINUTES * 60)) ]; then
        { kill -KILL -- "-$server"; wait "$server"; } 2>/dev/null || true
        fail "the server is not up after START_MINUTES=$START_MINUTES, and was ended. Its last words are above."
      fi
      sleep 1 || true # a signal for all of us
      starting=$((starting + 1))
    done
    is_up=1
  }

  # Who ends this script ends the server.
  trap 'asked_to_end=1; kill -TERM "$server" 2>/dev/null' TERM INT HUP

  # A server that dies when it was up (out of memory: exit code 137) is started again, three times in an hour at most.
  give_up() { echo "pixtral: the server died (exit code $status), $1." >&2; exit "$status"; }
  step "starting the server"
  restarts=() starting=0
  while :; do
    # The one before may take a moment to let go.
    for _ in {1..60}; do listens && sleep 1 || break; done
    ! listens || fail "port $PORT is in use on this machine, by something else."
    is_up="" before=$starting
    start
    wait_until_up
    took=$((starting - before)) status=0
    wait "$server" 2>/dev/null || status=$?
    # The first wait returns when a signal comes, the second with the server's end.
    [ -z "$asked_to_end" ] || { status=0; wait "$server" || status=$?; }
    kill -KILL -- "-$server" 2>/dev/null || true # an engine whose server was killed would keep the GPU
    server=""
    [ -z "$asked_to_end" ] && [ ! -e "$scratch/idle" ] || exit "$status"
    [ "$status" -ne 0 ] || status=1 # vLLM ends with 0 also when its engine has died
    [ -n "$is_up" ] || exit "$status"
    while [ "${#restarts[@]}" -gt 0 ] && [ "${restarts[0]}" -lt $((SECONDS - 3600)) ]; do restarts=("${restarts[@]:1}"); done
    [ "${#restarts[@]}" -gt 0 ] || starting=$took
    [ "${#restarts[@]}" -lt 3 ] || give_up "after 3 restarts in an hour"
    # SkyServe replaces a replica that is not ready for 180 seconds: to end at once is faster then.
    [ -z "$SKYPILOT_SERVE_REPLICA_ID" ] || [ "$took" -lt 150 ] || give_up "and a start takes longer than SkyServe waits"
    restarts+=("$SECONDS")
    step "the server died (exit code $status), and is started again: ${#restarts[@]} of 3 times in an hour"
  done
}

# modules: write_gateway ../pixtral_sky/server

main
