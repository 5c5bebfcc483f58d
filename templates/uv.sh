# uv of one version, and checked by its hash. SkyPilot's own uv, which is of any version, or pip installs it.
uv_version=0.13.9
uv="$HOME/.pixtral-sky/uv-$uv_version/bin/uv"
if [ ! -x "$uv" ]; then
  uv_wheels="uv==$uv_version
    --hash=sha256:d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19
    --hash=sha256:ecb6028d79dc96fbeafffe5c8af62a7099487ebc05a701e76714eebcffd06375" # x86_64, aarch64
  export PATH="$PATH:$HOME/.local/bin"
  installer=(python3 -m pip)
  ! command -v uv >/dev/null || installer=(uv pip)
  mkdir -p "$HOME/.pixtral-sky"
  echo $uv_wheels > "$HOME/.pixtral-sky/uv.txt" # on one line
  without_secrets "${installer[@]}" install --quiet --require-hashes --target "${uv%/bin/uv}" -r "$HOME/.pixtral-sky/uv.txt" ||
    fail "uv $uv_version cannot be installed: see above. It wants a uv or pip here, and a package index (UV_DEFAULT_INDEX, PIP_INDEX_URL)."
fi
