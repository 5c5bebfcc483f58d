set -eo pipefail
# Split as a shell does it, but nothing in it is run.
readarray -d '' batch_args < <(BATCH_ARGS="$BATCH_ARGS" "$HOME/.pixtral-sky/batch/bin/python" -Ic '
import os, shlex
print(*shlex.split(os.environ["BATCH_ARGS"]), "ok", sep="\0", end="\0")' 2>/dev/null)
[ "${#batch_args[@]}" -gt 0 ] || { echo "pixtral: BATCH_ARGS is not quoted as in a shell: $BATCH_ARGS" >&2; exit 1; }
unset 'batch_args[-1]'
rank=$((${SKYPILOT_JOB_RANK:-0} + 1)) shares=${SKYPILOT_NUM_JOBS:-1}
part="part-$rank-of-$shares"
results=/bucket/results
work="$HOME/pixtral-batch"

# A mounted bucket takes no appended line, and an fsync there keeps nothing. So the batch writes to the disk of this
# machine, and whole copies go to the bucket; the record of the options first, as lines without it are nobody's. A
# line that a copy has cut in two is cut off, and asked again, by whoever goes on.
files=("$part.jsonl.run.json" "$part.errors.jsonl" "$part.jsonl")
save() {
  for file in "${files[@]}"; do
    [ ! -s "$work/$file" ] || cp "$work/$file" "$results/$file" || echo "pixtral: $results/$file is not saved." >&2
  done
}

# What another machine has done of this share. When it cannot be read, the job ends: to begin anew would overwrite it.
mkdir -p "$work" "$results"
for file in "${files[@]}"; do
  [ -e "$work/$file" ] || [ ! -e "$results/$file" ] || cp "$results/$file" "$work/$file"
done

serve &
server=$!
finish() {
  trap '' TERM INT # what is here is saved first
  kill -TERM $saver "$server" 2>/dev/null || true
  wait $saver || true # or its last copy, an older one, would come after this
  save
  wait "$server" || true
}
trap finish EXIT
trap 'exit 143' TERM INT
until (: < "/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; do
  kill -0 "$server" 2>/dev/null || { echo "pixtral: the server has ended. Its last words are above." >&2; exit 1; }
  sleep 1
done

{
  trap 'kill $pause 2>/dev/null; exit' TERM
  while :; do sleep "$SAVE_SECONDS" >/dev/null 2>&1 & pause=$!; wait $pause; save; done
} &
saver=$!
echo "== share $rank of $shares"
PIXTRAL_ENDPOINT="http://127.0.0.1:$PORT" "$HOME/.pixtral-sky/batch/bin/pixtral-sky" batch "/bucket/$INPUT" \
  -o "$work/$part.jsonl" --shard "$rank/$shares" -p "$PROMPT" "${batch_args[@]}" &
batch=$!
trap 'kill -TERM "$batch" 2>/dev/null || true' TERM INT
# The first wait returns when a signal comes, the second with its end.
wait "$batch" || wait "$batch"
