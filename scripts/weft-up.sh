# For other scripts to source: a `weft up` of their own, which ends with them. Wants $weft (the program) and $model; gives $work (a folder), $data and
# $admin (URLs of the planes), and exports what the command line needs to reach it.
work=$(mktemp -d)
cleanup() {
    status=$?
    [ -z "${server:-}" ] || { kill "$server" 2>/dev/null && wait "$server" || true; }
    [ "$status" = 0 ] || { echo "--- log of weft up"; tail -40 "$work/log"; } >&2
    rm -rf "$work"
}
trap cleanup EXIT

"$weft" up --model "$model" --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --data-dir "$work/data" \
    --admin-key test-admin-key >"$work/out" 2>"$work/log" &
server=$!
for _ in $(seq 300); do
    grep -q '^serving ' "$work/out" && break
    kill -0 "$server" 2>/dev/null || { echo "weft up ended early" >&2; exit 1; }
    sleep 0.2
done
data=$(sed -n 's/^data plane *//p' "$work/out")
admin=$(sed -n 's/^admin plane *//p' "$work/out")
export WEFT_ADMIN_URL=$admin WEFT_ADMIN_KEY=test-admin-key
