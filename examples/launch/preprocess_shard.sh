#!/usr/bin/env bash
# One part (shard) of a corpus, made on this machine, or with --merge the datasets joined from all parts; arguments of tools/preprocess_data.py:
#   NUM_SHARDS=16 SHARD_INDEX=3 bash examples/launch/preprocess_shard.sh [--dry-run] --input /data/raw --output-prefix /data/web ...
#   NUM_SHARDS=16 bash examples/launch/preprocess_shard.sh --merge [--dry-run] --input /data/raw --output-prefix /data/web ...
# The number of the part comes from SHARD_INDEX, an array job of Slurm or an indexed Job of Kubernetes. A part that was killed continues
# where it was when the same command is run again; a part that is complete is left as it is. All parts write beside the same prefix.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=examples/launch/common.sh
source examples/launch/common.sh

merge=0
if [ "${1:-}" = --merge ]; then
  merge=1
  shift
fi
parse_launcher_arguments "$@"
# SLURM_ARRAY_TASK_COUNT is no substitute: it is 1 when a single part is made again.
require_number NUM_SHARDS 2 "the number of parts"
python=$(find_python)
command=("$python" tools/preprocess_data.py "${arguments[@]}" --num-shards "$NUM_SHARDS" --resume)
if [ "$merge" = 1 ]; then
  run "${command[@]}" --merge-shards
  exit
fi
SHARD_INDEX=${SHARD_INDEX:-${SLURM_ARRAY_TASK_ID:-${JOB_COMPLETION_INDEX:-}}}
require_number SHARD_INDEX 0 "the number of the part to make (or start this script in an array job of Slurm, or in an indexed Job of Kubernetes)"
[ "$SHARD_INDEX" -lt "$NUM_SHARDS" ] || fail "SHARD_INDEX=$SHARD_INDEX must be between 0 and $((NUM_SHARDS - 1)) (NUM_SHARDS=$NUM_SHARDS)"
run "${command[@]}" --shard-id "$SHARD_INDEX"
