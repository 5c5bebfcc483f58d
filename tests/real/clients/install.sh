#!/bin/bash
# What the proof of docs/guides/clients.md, of `chat` and of docs/guides/monitoring.md needs: each client of its table in an
# environment of its own (with ALL=1 also those that CI leaves out), the page in another, and as root on Debian, where they are
# missing, Node and Chromium; and Prometheus.
set -euo pipefail
cd "$(dirname "$0")/../../.."
guide=docs/guides/clients.md
day=$(grep -o 'packages as of [0-9-]*' $guide | cut -d' ' -f4)
folder=${XDG_CACHE_HOME:?}/pixtral-sky/clients

missing=()
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
command -v chromium >/dev/null || missing+=(chromium)
command -v jq >/dev/null || missing+=(jq)
if [ ${#missing[@]} -gt 0 ]; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# Unpacked, as the package installed would start a service.
if [ ! -e "$folder/prometheus" ]; then
  unpacked=$(mktemp -d)
  chmod 755 "$unpacked" # for apt's own user
  apt-get update -qq
  (cd "$unpacked" && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb prometheus)
  mkdir -p "$folder"
  mv "$unpacked/prometheus" "$folder/"
  rm -r "$unpacked"
fi

# | [NAME](#section) | `pip install PACKAGES` | `make clients` | ...
grep -P '^\| \[.*\]\(#.*\) \| `(pip|npm) install .*` \| `make clients'"${ALL:+( ALL=1)?}"'` \|' $guide |
  sed -E 's/^[^#]*#([^)]*)\) \| `(pip|npm) install ([^`]*)`.*/\1 \2 \3/' |
  while read -r name installer packages; do
    made="$installer $packages $day" environment=$folder/$name
    [ "$(cat "$environment/complete" 2>/dev/null)" != "$made" ] || continue
    rm -rf "$environment"
    mkdir -p "$environment"
    if [ "$installer" = pip ]; then
      .venv/bin/uv venv --quiet --no-project --python .venv/bin/python "$environment"
      # shellcheck disable=SC2086
      .venv/bin/uv pip install --quiet --python "$environment/bin/python" --compile-bytecode --exclude-newer "$day" $packages
    else
      # shellcheck disable=SC2086
      npm install --silent --no-audit --no-fund --prefix "$environment" --before "$day" $packages </dev/null
    fi
    echo "$made" > "$environment/complete"
  done

# The page, with nothing but its extra.
made="$day $(grep '^chat = ' pyproject.toml) $PWD"
if [ "$(cat "$folder/chat/complete" 2>/dev/null)" != "$made" ]; then
  rm -rf "$folder/chat"
  .venv/bin/uv venv --quiet --no-project --python .venv/bin/python "$folder/chat"
  .venv/bin/uv pip install --quiet --python "$folder/chat/bin/python" --compile-bytecode --exclude-newer "$day" --editable ".[chat]"
  echo "$made" > "$folder/chat/complete"
fi
