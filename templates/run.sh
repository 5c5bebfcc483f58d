set -eo pipefail
fail() { echo "pixtral: $*" >&2; exit 1; }
export PATH="${VENV:-$HOME/.pixtral-sky/venv}/bin:$PATH"

# No key, no open door: without one, only this machine can connect.
if [ -n "$PIXTRAL_API_KEY" ]; then
  host="${LISTEN:-0.0.0.0}"
elif [ -n "$SKYPILOT_SERVE_REPLICA_ID" ]; then
  fail "a service needs a key. Run: sky serve up -n pixtral service.yaml --secret PIXTRAL_API_KEY"
else
  host=127.0.0.1
  echo "pixtral: no PIXTRAL_API_KEY, so it listens on 127.0.0.1 only. From your machine:" \
    "ssh -N -L $PORT:localhost:$PORT pixtral"
fi

# A picture of 1024x1024 or more is 4,160 tokens, and a prompt full of them must fit.
prompt_of_images=$((MAX_IMAGES * 4160))
[ "$MAX_MODEL_LEN" -eq -1 ] || [ "$MAX_MODEL_LEN" -gt "$prompt_of_images" ] ||
  fail "MAX_IMAGES=$MAX_IMAGES pictures can need $prompt_of_images tokens, and MAX_MODEL_LEN=$MAX_MODEL_LEN. Raise it, or lower MAX_IMAGES."

# The front door, an ASGI guard before all of vLLM: a short list of routes, the key, the size of a request,
# and the clock that ends an idle server.
door=$(mktemp -d)
trap 'rm -rf "$door"' EXIT
cat > "$door/front_door.py" <<'FRONT_DOOR'
# include: ../pixtral_sky/front_door.py
FRONT_DOOR
export PYTHONPATH="$door${PYTHONPATH:+:$PYTHONPATH}"

export VLLM_API_KEY="$PIXTRAL_API_KEY"                 # a second lock behind the door, and never in argv
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1            # nothing is reported to anyone
export VLLM_USE_RUST_FRONTEND=0                        # that front end knows no middleware
export VLLM_MEDIA_URL_ALLOW_REDIRECTS=0                # an allowed host cannot point to another one
export VLLM_SERVER_DEV_MODE=0                          # no development routes behind the door either

eval "extra_args=($EXTRA_ARGS)" # quoted as in a shell

# A prompt full of pictures is computed in one step: vLLM's own 2,048 tokens would cut each picture in two or
# more. Answers by JSON Schema have no white space between: a model can lose itself in it. One API server,
# as the idle clock is that of one.
vllm serve "$MODEL" \
  --served-model-name pixtral mistralai/Pixtral-12B-2409 \
  --host "$host" --port "$PORT" \
  --tensor-parallel-size "$SKYPILOT_NUM_GPUS_PER_NODE" \
  --tokenizer-mode mistral --config-format mistral --load-format mistral \
  --limit-mm-per-prompt "{\"image\": $MAX_IMAGES}" \
  --max-model-len "$MAX_MODEL_LEN" \
  --max-num-batched-tokens $((prompt_of_images > 8192 ? prompt_of_images : 8192)) \
  --structured-outputs-config '{"backend": "guidance", "disable_any_whitespace": true}' \
  --allowed-media-domains ${ALLOWED_MEDIA_HOSTS:-none.invalid} \
  --middleware front_door.FrontDoor --api-server-count 1 \
  --no-enable-log-requests --disable-uvicorn-access-log \
  "${extra_args[@]}"
