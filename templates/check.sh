set -eo pipefail
fail() { echo "pixtral: $*" >&2; exit 1; }
step() { echo "== $*"; }

# What cannot work is said at once, not after 35 GB and a model's start.
[[ $MAX_IMAGES =~ ^[1-9][0-9]*$ ]] || fail "MAX_IMAGES=$MAX_IMAGES is no number of pictures."
[[ $MAX_MODEL_LEN =~ ^(-1|[1-9][0-9]*)?$ ]] || fail "MAX_MODEL_LEN=$MAX_MODEL_LEN is no number of tokens (nor -1: all that fit)."
[ -z "$ALLOWED_MEDIA_HOSTS" ] || fail "ALLOWED_MEDIA_HOSTS is called IMAGE_URLS now: IMAGE_URLS=${ALLOWED_MEDIA_HOSTS// /,}"
[[ $IMAGE_URLS =~ ^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(,([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]))*$ ]] || fail "IMAGE_URLS=$IMAGE_URLS is neither public, none, nor names of hosts: a.example,b.example"
[[ $ALLOWED_ORIGINS =~ ^([a-z][a-z0-9+.-]*://[A-Za-z0-9._-]+(:[0-9]+)?(,[a-z][a-z0-9+.-]*://[A-Za-z0-9._-]+(:[0-9]+)?)*)?$ ]] || fail "ALLOWED_ORIGINS=$ALLOWED_ORIGINS are no origins of web pages. They look like https://app.example,http://localhost:3000"
[[ $PRECISION =~ ^(bf16|fp8)$ ]] || fail "PRECISION=$PRECISION is neither bf16 nor fp8."
[[ $MODEL_REVISION =~ ^[A-Za-z0-9][A-Za-z0-9._/-]*$ ]] || fail "MODEL_REVISION=$MODEL_REVISION is no branch, tag or commit."
[[ $PACKAGES_AS_OF =~ ^([0-9]{4}-[0-9]{2}-[0-9]{2})?$ ]] || fail "PACKAGES_AS_OF=$PACKAGES_AS_OF is no date. It looks like 2026-11-15."
[[ $IDLE_MINUTES =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "IDLE_MINUTES=$IDLE_MINUTES is no number of minutes (0: never)."
[[ $START_MINUTES =~ ^[1-9][0-9]*$ ]] || fail "START_MINUTES=$START_MINUTES is no whole number of minutes from 1 on."
[[ $MAX_BODY_MIB =~ ^[1-9][0-9]*$ ]] || fail "MAX_BODY_MIB=$MAX_BODY_MIB is no number of MiB."
[[ $PORT =~ ^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$ ]] || fail "PORT=$PORT is no port: 1 to 65535."
# Other characters change on their way through YAML, JSON and a header.
[[ $PIXTRAL_API_KEY =~ ^[A-Za-z0-9._~+/=-]*$ ]] || fail "PIXTRAL_API_KEY has characters that a key cannot have. Make one: openssl rand -hex 32"
if [ -n "$SKYPILOT_SERVE_REPLICA_ID" ] && [ -z "$PIXTRAL_API_KEY" ]; then # it would never be ready
  fail "a service needs a key. Run: sky serve up -n pixtral service.yaml --secret PIXTRAL_API_KEY"
fi
# A picture of 1024x1024 or more is 4,160 tokens, and a prompt full of them must fit.
prompt_of_images=$((MAX_IMAGES * 4160))
[ "${MAX_MODEL_LEN:--1}" -eq -1 ] || [ "$MAX_MODEL_LEN" -gt "$prompt_of_images" ] ||
  fail "MAX_IMAGES=$MAX_IMAGES pictures can need $prompt_of_images tokens, and MAX_MODEL_LEN=$MAX_MODEL_LEN. Raise it, or lower MAX_IMAGES."
