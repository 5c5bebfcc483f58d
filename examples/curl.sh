#!/bin/bash
# Two pictures in one request, with nothing but curl and base64.
#
#   eval "$(pixtral-sky endpoint --env)"    # or set PIXTRAL_ENDPOINT and PIXTRAL_API_KEY yourself
#   bash examples/curl.sh
set -eo pipefail
: "${PIXTRAL_ENDPOINT:?is not set. Run: eval \"\$(pixtral-sky endpoint --env)\"}"
cd "$(dirname "$0")"

picture() { printf '{"type": "image_url", "image_url": {"url": "data:%s;base64,%s"}}' "$1" "$(base64 < "$2" | tr -d '\n')"; }

# The key goes in as a file that only curl sees, and the pictures through a pipe: arguments are short, and
# every user of a machine can read them.
cat <<JSON |
{
  "model": "pixtral",
  "max_tokens": ${MAX_TOKENS:-256},
  "messages": [{"role": "user", "content": [
    {"type": "text", "text": "Describe this chart in detail please."},
    $(picture image/png chart.png),
    {"type": "text", "text": "And what does this receipt add up to?"},
    $(picture image/jpeg receipt.jpg)
  ]}]
}
JSON
curl -sS --fail-with-body "$PIXTRAL_ENDPOINT/v1/chat/completions" \
  -H "Content-Type: application/json" \
  -H @<(echo "Authorization: Bearer $PIXTRAL_API_KEY") \
  --data-binary @-
