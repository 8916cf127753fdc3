#!/usr/bin/env bash
# A cluster's life under steady load: it grows, shrinks, loses a machine for good and has a disk swapped; at the end
# every acknowledged write is read back through every node. Needs Rust, bash and redis-cli.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: scripts/grow-and-shrink.sh [OPTION]...

  --keys N          keys that are written over and over      [default: 30000]
  --value-bytes N   length of a value                        [default: 200]
  --rate N          writes a second, and as many reads       [default: 1500]
  --seconds N       steady load between two changes          [default: 5]
  --port N          first of 60 ports                        [default: 23000]
  --profile NAME    release, or dev for a quick build        [default: release]
  --keep            leave the directory with data, logs and the record of writes
  --help

Exits with 0 only if every acknowledged write can be read through every node.
TEXT
}

keys=30000 value_bytes=200 rate=1500 seconds=5 port=23000 profile=release keep=false
while [ $# -gt 0 ]; do
  case "$1" in
    --keys | --value-bytes | --rate | --seconds | --port | --profile)
      [ $# -ge 2 ] || { usage >&2; exit 2; }
      name=${1#--}
      printf -v "${name//-/_}" '%s' "$2"
      shift 2 ;;
    --keep) keep=true; shift ;;
    --help | -h) usage; exit 0 ;;
    *) echo "unknown option: $1" >&2; usage >&2; exit 2 ;;
  esac
done
command -v redis-cli >/dev/null || { echo "redis-cli is missing (Debian: apt-get install redis-tools)" >&2; exit 2; }

cd "$(dirname "$0")/.."
cargo build --quiet --profile "$profile" --package oort --bin oort --example steady_load
target=${CARGO_TARGET_DIR:-target}/$([ "$profile" = dev ] && echo debug || echo "$profile")
oort=$target/oort steady_load=$target/examples/steady_load
dir=$(mktemp -d "${TMPDIR:-/tmp}/oort-grow-and-shrink.XXXXXX")
declare -A pids=()
asked=1 # the node that commands are sent to
load=

finish() {
  local code=$?
  trap - EXIT
  if [ $code -ne 0 ]; then
    for log in "$dir"/*.log; do
      echo "--- the end of $log ---" >&2
      tail -n 15 "$log" >&2
    done
  fi
  # Only what was started here, by its id. What has ended already is no error.
  for pid in "${pids[@]}" $load; do kill -9 "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  if $keep; then echo "kept: $dir" >&2; else rm -rf "$dir"; fi
  [ $code -eq 0 ] || echo "FAILED" >&2
  exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM

redis() { echo "127.0.0.1:$((port + $1))"; }
peer() { echo "127.0.0.1:$((port + 40 + $1))"; }

# start NUMBER SEEDS [OPTION]...: one node that knows the peer addresses SEEDS.
start() {
  local number=$1 seeds=$2
  shift 2
  "$oort" start --name "node$number" --dir "$dir/node$number" --redis "$(redis "$number")" \
    --http "127.0.0.1:$((port + 20 + number))" --peer "$(peer "$number")" --join "$seeds" "$@" \
    >>"$dir/node$number.log" 2>&1 &
  pids[$number]=$!
}

# end NUMBER SIGNAL
end() {
  kill "-$2" "${pids[$1]}"
  wait "${pids[$1]}" 2>/dev/null || true
  unset "pids[$1]"
}

step() { printf '\n== %s\n' "$*"; }

# What an operator types.
operator() {
  echo "\$ oort $*"
  "$oort" "$@" --node "$(redis "$asked")" | tee -a "$dir/commands"
}

# Waits until the asked node sees COUNT members that are up.
until_up() {
  local tries
  for tries in $(seq 300); do
    [ "$("$oort" cluster status --node "$(redis "$asked")" 2>/dev/null | awk '$2 == "up"' | wc -l)" -eq "$1" ] && return
    sleep 0.1
  done
  echo "$1 nodes are not up after $((tries / 10)) s" >&2
  return 1
}

# The load goes on with what is measured under another name, and the cluster is left alone for a while.
steadily() {
  echo "$1" >&"${steady_load_in}"
  sleep "$seconds"
}
during() { echo "$1" >&"${steady_load_in}"; }

step "3 nodes"
for number in 1 2 3; do start "$number" "$(peer 1),$(peer 2),$(peer 3)" --cluster-size 3; done
until_up 3
nodes=$(for number in 1 2 3 4 5 6 7; do redis "$number"; done | paste -sd,)
coproc LOAD {
  exec "$steady_load" run --nodes "$nodes" --record "$dir/record" --keys "$keys" --rate "$rate" \
    --value-bytes "$value_bytes" 2>"$dir/load.log"
}
load=$LOAD_PID
exec {steady_load_in}>&"${LOAD[1]}" {steady_load_out}<&"${LOAD[0]}"
read -r -u "$steady_load_out" line && [ "$line" = filled ]
echo "$keys keys are written; from now on $rate writes a second go on, and as many reads"
steadily "3 nodes"

step "3 more join"
for number in 4 5 6; do start "$number" "$(peer 1)"; done
until_up 6
during "3 join"
for number in 4 5 6; do operator cluster join "node$number"; done
steadily "6 nodes"

step "the first 3 leave, and are stopped"
asked=4
during "3 leave"
for number in 1 2 3; do
  operator cluster leave "node$number"
  end "$number" TERM
done
steadily "3 others"

step "node5 is lost for good"
end 5 KILL
steadily "1 of 3 is down"
during "remove"
operator cluster remove node5
steadily "2 nodes"

step "a new machine takes its share"
start 7 "$(peer 4),$(peer 6)"
until_up 3
during "join"
operator cluster join node7
steadily "3 nodes again"

step "node6 gets a new disk"
end 6 KILL
rm -rf "$dir/node6"
start 6 "$(peer 4),$(peer 7)"
until_up 3
steadily "an empty disk"
operator cluster status
during "replace"
operator cluster replace node6 node6 --gone
steadily "all are well"

step "every acknowledged write is read through every node"
operator cluster status
exec {steady_load_in}>&-
eval "exec ${LOAD[1]}>&-"
cat <&"$steady_load_out"
wait "$load" || { echo "the load failed" >&2; cat "$dir/load.log" >&2; exit 1; }
load=
"$steady_load" verify --nodes "$(redis 4),$(redis 6),$(redis 7)" --record "$dir/record"
sed -n 's/.*(\([0-9]*\) keys, .* fetched)$/\1/p' "$dir/commands" | awk '{ sum += $1 } END { print "keys moved: " sum + 0 }'
echo "grow-and-shrink: no acknowledged write is lost"
