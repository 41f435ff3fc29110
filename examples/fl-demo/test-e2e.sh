#!/usr/bin/env bash
# The quick-start guide from end to end: program, registry, services, model, round, result. Each step is a PASS or FAIL line;
# the exit code is 0 if all passed, 1 at the first that failed, 2 for a wrong command line.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: test-e2e.sh [--no-start]

Tests the stack of .propeller, or that of deploy/.env on the guide's ports; where neither runs, one of its own on free ports.

  --no-start       fail where nothing runs, instead of starting a stack

Environment:
  STATE            state folder of the stack to test (of 'propeller up')
  ENV_FILE         where the client ids and keys are (default: .env in STATE, else deploy/.env)
  WASM             the program; built if it is missing (default: a temporary file)
  TASK_WASM_IMAGE  run this image, and build and push none
  REGISTRY         push to this registry (default: that of the stack)
  TIMEOUT_S        seconds that the round may take (default: 60)
  PROPELLER        the propeller command (default: the one in .venv, else the one in PATH)
  MANAGER_URL COORDINATOR_URL MODEL_REGISTRY_URL AGGREGATOR_URL DATA_STORE_URL
                   addresses, where they are not those of the stack or the guide
EOF
}

START=yes
for argument in "$@"; do
  case $argument in
    --no-start) START=no ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
  esac
done

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
TEMPORARY=$(mktemp -d)
STACK=  # the process of a stack of our own
CURL=(curl --silent --show-error --max-time 10 --config "$TEMPORARY/curl")
CHECKS=0

finish() {
  local code=$?
  trap '' INT TERM
  # Interrupted while it reads a command substitution, bash 5.2 cannot run the trap and ends with 2; nothing else here does.
  ((code != 2)) || code=130
  if [[ -n $STACK ]]; then
    kill "$STACK" 2>/dev/null || true
    wait "$STACK" || true
  fi
  rm -rf "$TEMPORARY"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

pass() { printf 'PASS  %s\n' "$1" && CHECKS=$((CHECKS + 1)); }

# fail WHAT FIX: the script ends here, as what follows would fail for the same cause.
fail() {
  printf 'FAIL  %s\n      fix: %s\n' "$1" "$2"
  exit 1
}

# json EXPRESSION: a Python expression about `d`, the document on standard input; prints nothing where it has no such thing.
json() {
  python3 -c '
import json, sys
try:
    print(eval(sys.argv[1], {"d": json.load(sys.stdin)}))
except (ValueError, KeyError, TypeError, IndexError):
    pass' "$1"
}

# variable NAME: its value in the environment file.
variable() {
  sed -n "s/^[[:space:]]*$1[[:space:]]*=[[:space:]]*//p" "$ENV_FILE" | tail -n 1 |
    sed 's/[[:space:]]#.*//; s/[[:space:]]*$//' | tr -d "\"'"
}

check_prerequisites() {
  local command
  for command in curl python3; do
    command -v "$command" >/dev/null || fail "prerequisites: $command is not installed" "install it with your system's packages"
  done
  if [[ -z ${PROPELLER:-} ]]; then
    PROPELLER=$ROOT/.venv/bin/propeller
    [[ -x $PROPELLER ]] || PROPELLER=$(command -v propeller || true)
  fi
  "${PROPELLER:-false}" --version >/dev/null 2>&1 ||
    fail "prerequisites: the propeller command is not there" "run 'make setup' in $ROOT, or name it with PROPELLER=/path/to/propeller"
  pass "prerequisites: curl, python3, $("$PROPELLER" --version)"
}

answers() { curl --silent --fail --max-time 3 --output "$TEMPORARY/answer" "$1" 2>/dev/null; }

# Which stack to test: the one that is asked for, else one that runs here, else one of our own.
find_stack() {
  if [[ -n ${STATE:-} ]]; then
    [[ -r $STATE/stack.json ]] || fail "stack: none is ready on $STATE" "propeller up --state $STATE"
  elif [[ -z ${ENV_FILE:-} && -r .propeller/stack.json ]] && answers "$(address .propeller manager)/health"; then
    STATE=.propeller
  elif [[ -n ${ENV_FILE:-} || -r deploy/.env ]] && { [[ -n ${ENV_FILE:-} ]] || answers "${MANAGER_URL:-http://localhost:7070}/health"; }; then
    STATE=
  elif [[ $START == no ]]; then
    fail "stack: nothing runs on .propeller, nor on the guide's ports" "start one with 'propeller up', or leave --no-start out"
  else
    start_stack
  fi
  ENV_FILE=${ENV_FILE:-${STATE:-deploy}/.env}
  [[ -r $ENV_FILE ]] || fail "stack: $ENV_FILE cannot be read" "write it with 'propeller provision --env-file $ENV_FILE', or name another with ENV_FILE"
}

start_stack() {
  STATE=$TEMPORARY/state
  set -m # in a process group of its own: Ctrl-C is for this script, which ends it in order
  "$PROPELLER" up --ports auto --state "$STATE" >"$TEMPORARY/up" 2>&1 &
  STACK=$!
  set +m
  local tries
  for ((tries = 0; tries < 600; tries++)); do
    [[ -r $STATE/stack.json ]] && pass "stack: started one of our own, on free ports" && return
    kill -0 "$STACK" 2>/dev/null || break
    sleep 0.1
  done
  cat "$TEMPORARY/up"
  fail "stack: 'propeller up' did not become ready" "see the lines above"
}

# address STATE SERVICE: where a service of an embedded stack is.
address() { json "d['services']['$2']['url']" <"$1/stack.json"; }

read_addresses() {
  if [[ -n $STATE ]]; then
    MANAGER_URL=${MANAGER_URL:-$(address "$STATE" manager)}
    COORDINATOR_URL=${COORDINATOR_URL:-$(address "$STATE" coordinator)}
    MODEL_REGISTRY_URL=${MODEL_REGISTRY_URL:-$(address "$STATE" model_registry)}
    AGGREGATOR_URL=${AGGREGATOR_URL:-$(address "$STATE" aggregator)}
    DATA_STORE_URL=${DATA_STORE_URL:-$(address "$STATE" data_store)}
    PUSH_TO=$(address "$STATE" oci_registry)
    PUSH_TO=${REGISTRY:-${PUSH_TO#http://}}
    PULL_FROM=$PUSH_TO
  else
    MANAGER_URL=${MANAGER_URL:-http://localhost:7070}
    COORDINATOR_URL=${COORDINATOR_URL:-http://localhost:8086}
    MODEL_REGISTRY_URL=${MODEL_REGISTRY_URL:-http://localhost:8084}
    AGGREGATOR_URL=${AGGREGATOR_URL:-http://localhost:8085}
    DATA_STORE_URL=${DATA_STORE_URL:-http://localhost:8083}
    PUSH_TO=${REGISTRY:-localhost:5000}
    PULL_FROM=${REGISTRY:-local-registry:5000} # by its name inside the containers' network
  fi
}

read_clients() {
  local name
  for name in PROPLET_CLIENT_ID PROPLET_2_CLIENT_ID PROPLET_3_CLIENT_ID OPERATOR_CLIENT_ID OPERATOR_CLIENT_KEY; do
    [[ -n $(variable "$name") ]] || fail "clients: $name is empty or missing in $ENV_FILE" "propeller provision --env-file $ENV_FILE"
  done
  PROPLET_CLIENT_ID=$(variable PROPLET_CLIENT_ID)
  PROPLET_2_CLIENT_ID=$(variable PROPLET_2_CLIENT_ID)
  PROPLET_3_CLIENT_ID=$(variable PROPLET_3_CLIENT_ID)
  export PROPLET_CLIENT_ID PROPLET_2_CLIENT_ID PROPLET_3_CLIENT_ID
  # For services that ask who calls; in a file, since every user of a machine can read command lines.
  (umask 077 && printf 'user = "%s:%s"\n' "$(variable OPERATOR_CLIENT_ID)" "$(variable OPERATOR_CLIENT_KEY)" >"$TEMPORARY/curl")
  pass "clients: three proplets in $ENV_FILE"
}

check_services() {
  local service url
  while read -r service url; do
    answers "$url/health" || fail "services: $service does not answer on $url" "propeller doctor; its log says why it ended or what it waits for"
  done <<EOF
manager $MANAGER_URL
coordinator $COORDINATOR_URL
model-registry $MODEL_REGISTRY_URL
aggregator $AGGREGATOR_URL
local-data-store $DATA_STORE_URL
EOF
  pass "services: manager, coordinator, model registry, aggregator, data store are healthy"
}

push_program() {
  if [[ -n ${TASK_WASM_IMAGE:-} ]]; then
    pass "program: $TASK_WASM_IMAGE, as TASK_WASM_IMAGE says"
    return
  fi
  WASM=${WASM:-$TEMPORARY/fl-client.wasm}
  [[ -f $WASM ]] || build_program
  local pushed
  pushed=$("$PROPELLER" push "$WASM" "$PUSH_TO/fl-client-wasm:e2e" 2>&1) ||
    fail "program: it cannot be pushed to $PUSH_TO: $pushed" "check that the registry runs, or name another with REGISTRY"
  TASK_WASM_IMAGE=$PULL_FROM/fl-client-wasm:e2e
  pass "program: pushed as $PUSH_TO/fl-client-wasm:e2e, $(sed -n 's/^Digest: //p' <<<"$pushed")"
}

# Go as in the guide, else C, else the program that is shipped with Propeller.
build_program() {
  local python=${PROPELLER%/*}/python
  if command -v go >/dev/null && [[ -d $ROOT/programs/logreg_go ]]; then
    (cd "$ROOT/programs/logreg_go" && GOOS=wasip1 GOARCH=wasm GOTOOLCHAIN=local go build -o "$TEMPORARY/built.wasm" .) ||
      fail "program: programs/logreg_go cannot be built" "see the compiler's words above, or name a built program with WASM"
    mv "$TEMPORARY/built.wasm" "$WASM"
    pass "program: built from programs/logreg_go with $(go version | cut -d ' ' -f 3)"
  elif "$python" -c 'import ziglang' 2>/dev/null; then
    "$python" "$ROOT/programs/build.py" "$TEMPORARY" >/dev/null ||
      fail "program: programs/logreg_c cannot be built" "see the compiler's words above, or name a built program with WASM"
    mv "$TEMPORARY/logreg.wasm" "$WASM"
    pass "program: built from programs/logreg_c (no Go compiler is in PATH)"
  else
    cp "$ROOT/src/propeller/data/logreg.wasm" "$WASM"
    pass "program: the one that is shipped (there is no compiler: neither Go nor the ziglang package)"
  fi
}

create_model() {
  local status
  status=$("${CURL[@]}" --output "$TEMPORARY/answer" --write-out '%{http_code}' "$MODEL_REGISTRY_URL/models/0")
  if [[ $status == 200 ]]; then
    pass "model: version 0 is there"
    return
  fi
  "${CURL[@]}" --fail-with-body --output "$TEMPORARY/answer" -X POST "$MODEL_REGISTRY_URL/models" -H 'Content-Type: application/json' \
    -d '{"version": 0, "model": {"w": [0.0, 0.0, 0.0], "b": 0.0}}' ||
    fail "model: version 0 cannot be stored: $(cat "$TEMPORARY/answer")" "see the log of the model registry"
  pass "model: version 0 made"
}

run_experiment() {
  ROUND_ID=r-e2e-$(date +%s)-$$
  "${CURL[@]}" --fail-with-body --output "$TEMPORARY/answer" -X POST "$MANAGER_URL/fl/experiments" -H 'Content-Type: application/json' -d "{
    \"experiment_id\": \"exp-$ROUND_ID\",
    \"round_id\": \"$ROUND_ID\",
    \"model_ref\": \"fl/models/global_model_v0\",
    \"participants\": [\"$PROPLET_CLIENT_ID\", \"$PROPLET_2_CLIENT_ID\", \"$PROPLET_3_CLIENT_ID\"],
    \"hyperparams\": {\"epochs\": 1, \"lr\": 0.01, \"batch_size\": 16},
    \"k_of_n\": 3,
    \"timeout_s\": ${TIMEOUT_S:-60},
    \"task_wasm_image\": \"$TASK_WASM_IMAGE\"
  }" || fail "experiment: the manager refuses it: $(cat "$TEMPORARY/answer")" "propeller doctor"
  [[ $(json "d['status']" <"$TEMPORARY/answer") == configured ]] || fail "experiment: unexpected answer $(cat "$TEMPORARY/answer")" "propeller doctor"
  pass "experiment: round $ROUND_ID is configured with $TASK_WASM_IMAGE"
}

wait_for_round() {
  local state=collecting end=$((SECONDS + ${TIMEOUT_S:-60} + 30))
  while [[ $state != completed && $state != failed && $SECONDS -lt $end ]]; do
    "${CURL[@]}" --max-time 30 --fail-with-body --output "$TEMPORARY/answer" "$COORDINATOR_URL/rounds/$ROUND_ID/complete?wait_s=10" ||
      fail "round: the coordinator does not tell of it: $(cat "$TEMPORARY/answer")" "see the coordinator's log"
    state=$(json "d['state']" <"$TEMPORARY/answer")
  done
  local updates
  updates=$(json "d['num_updates']" <"$TEMPORARY/answer")
  if [[ $state != completed || $updates != 3 ]]; then
    "${CURL[@]}" --output "$TEMPORARY/round" "$COORDINATOR_URL/rounds/$ROUND_ID"
    json "chr(10).join('      ' + f['proplet_id'] + ': ' + f['reason'] for f in d['failures'])" <"$TEMPORARY/round"
    fail "round: $ROUND_ID is $state with $updates of 3 updates: $(json "d.get('reason') or 'no reason is given'" <"$TEMPORARY/round")" \
      "propeller logs${STATE:+ --state $STATE} --round $ROUND_ID, and propeller doctor --image $TASK_WASM_IMAGE"
  fi
  VERSION=$(json "d['model_version']" <"$TEMPORARY/answer")
  pass "round: completed with 3 of 3 updates"
}

verify_model() {
  "${CURL[@]}" --fail-with-body --output "$TEMPORARY/answer" "$MODEL_REGISTRY_URL/models/$VERSION" ||
    fail "model: version $VERSION cannot be read: $(cat "$TEMPORARY/answer")" "see the log of the model registry"
  [[ $(json "any(d['w'])" <"$TEMPORARY/answer") == True ]] ||
    fail "model: the weights of version $VERSION are all zero: $(cat "$TEMPORARY/answer")" "look for DEBUG: in the proplets' logs, and at their datasets"
  pass "model: version $VERSION has learned: $(cat "$TEMPORARY/answer")"
}

# expect COUNT SERVICE PHRASE [ABOUT]: so many lines of the service (a pattern) that are about the round, or ABOUT, have the phrase.
expect() {
  local found
  found=$(grep -F -- "${4:-$ROUND_ID}" "$TEMPORARY/logs" | grep -c -E "^[0-9:.]+ $2 .*$3" || true)
  [[ $found -ge $1 ]] || fail "logs: '$3' is $found times in the log of $2, not $1" "propeller logs --state $STATE --round $ROUND_ID"
}

verify_logs() {
  if [[ -z $STATE ]]; then
    printf 'SKIP  logs: see step 8 of docs/guide.md for what docker compose logs should show\n'
    return
  fi
  "$PROPELLER" logs --state "$STATE" >"$TEMPORARY/logs" || fail "logs: they cannot be read" "see the line above"
  expect 3 manager 'launched task'
  expect 3 'proplet-[123]' 'Requesting binary from registry'
  expect 3 proxy 'Received container request' "$TASK_WASM_IMAGE"
  # Devices that have the program already are sent nothing; those of a new stack have none.
  [[ -z $STACK ]] || expect 1 proxy 'successfully sent all chunks' "$TASK_WASM_IMAGE"
  expect 3 'proplet-[123]' 'Executing task'
  expect 3 'proplet-[123]' 'Loaded dataset with .* samples from Local Data Store'
  expect 3 'proplet-[123]' 'DEBUG: Final model after training'
  expect 3 'proplet-[123]' 'Task .* completed successfully'
  expect 1 coordinator 'Received experiment configuration'
  expect 3 coordinator 'Received update'
  expect 1 coordinator 'Round complete: received k_of_n updates'
  expect 1 coordinator 'Aggregated model stored'
  pass "logs: the phrases of the guide's step 8 are there"
}

check_prerequisites
find_stack
read_addresses
read_clients
check_services
push_program
create_model
run_experiment
wait_for_round
verify_model
verify_logs
printf 'All %d checks passed.\n' "$CHECKS"
