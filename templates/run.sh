# include: check.sh

export PATH="${VENV:-$HOME/.pixtral-sky/venv}/bin:$PATH"
command -v vllm >/dev/null || fail "there is no vllm in VENV=$VENV."

# No key, no open door: without one, only this machine can connect.
host="${LISTEN:-0.0.0.0}"
if [ -z "$PIXTRAL_API_KEY" ]; then
  host=127.0.0.1
  echo "pixtral: no PIXTRAL_API_KEY, so it listens on 127.0.0.1 only. From your machine:" \
    "ssh -N -L $PORT:localhost:$PORT pixtral"
fi

# The front door, an ASGI guard before all of vLLM: a short list of routes, the key, the size of a request,
# and the clock that ends an idle server.
door=$(mktemp -d)
trap 'rm -rf "$door"' EXIT
cat > "$door/front_door.py" <<'FRONT_DOOR'
# include: ../pixtral_sky/front_door.py
FRONT_DOOR
# Without httptools, which takes heads without end into memory, uvicorn uses h11, which has a limit.
echo 'raise ImportError' > "$door/httptools.py"
export PYTHONPATH="$door${PYTHONPATH:+:$PYTHONPATH}"

export VLLM_API_KEY="$PIXTRAL_API_KEY"                 # a second lock behind the door, and never in argv
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1            # nothing is reported to anyone
export VLLM_USE_RUST_FRONTEND=0                        # that front end knows no middleware
export VLLM_MEDIA_URL_ALLOW_REDIRECTS=0                # an allowed host cannot point to another one
export GLOO_SOCKET_IFNAME=lo                           # its processes find each other on this machine only
export VLLM_RPC_BASE_PATH="$door"                      # their sockets are in a folder of this user alone, and go with it
export VLLM_SERVER_DEV_MODE=0                          # no development routes behind the door either

eval "extra_args=($EXTRA_ARGS)" 2>/dev/null || fail "EXTRA_ARGS is not quoted as in a shell: $EXTRA_ARGS"
read -ra media_hosts <<< "${ALLOWED_MEDIA_HOSTS:-/}" # '/' is the name of no host

step "starting the server"
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
  --allowed-media-domains "${media_hosts[@]}" \
  --middleware front_door.FrontDoor --api-server-count 1 --h11-max-incomplete-event-size 65536 \
  --no-enable-log-requests --disable-uvicorn-access-log \
  "${extra_args[@]}" &
# Who ends this script ends the server.
server=$!
trap 'kill -TERM "$server" 2>/dev/null' TERM INT
# One that hangs on its way up would cost money for ever: the clock of the front door begins when it is up.
SECONDS=0
until (: < "/dev/tcp/$host/$PORT") 2>/dev/null || ! kill -0 "$server" 2>/dev/null; do
  if [ "$SECONDS" -gt $((START_MINUTES * 60)) ]; then
    { kill -KILL "$server"; wait "$server"; } 2>/dev/null || true
    fail "the server is not up after START_MINUTES=$START_MINUTES, and was ended. Its last words are above."
  fi
  sleep 1
done
# The first wait returns when a signal comes, the second with its end.
wait "$server" || wait "$server"
