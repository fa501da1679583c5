#!/usr/bin/env bash
# A sweep in one Slurm job: Ray's head and the sweep on the first node, Ray's workers on the others.
# All ends with the job. From the project's folder, on storage that every node has mounted:
#
#   sbatch cluster/slurm.sh --name first --space search_spaces/lambdas.yaml \
#       --data sketchy=/shared/sketchy-shards --storage file:///shared/runs --workers 2
#   sbatch cluster/slurm.sh --resume --name first --storage file:///shared/runs --workers 2
#
# EDIT: the partition, and how many nodes of what size for how long.
#SBATCH --job-name=dsn-ray
#SBATCH --partition=EDIT-partition
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
# Five minutes before its time is over the sweep is stopped as by Ctrl-C, and says how to go on.
#SBATCH --signal=B:INT@300
#SBATCH --output=%x-%j.log

set -euo pipefail
set -m # each background command is its own group: a signal reaches the sweep and nothing else

cd "${SLURM_SUBMIT_DIR:?this script is run by sbatch}"
source .venv/bin/activate

# The token lies in ~/.ray/auth_token; every node reads it there.
export RAY_AUTH_MODE=token
ray get-auth-token --generate > /dev/null

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(hostname --all-ip-addresses | cut -d ' ' -f 1)
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_ADDRESS="$address:$port"
deadline=$((SECONDS + 300))

die() {
    echo "error: $*" >&2
    exit 1
}

end() {
    local running
    running=$(jobs -p)
    # shellcheck disable=SC2086 # one word per process
    [ -z "$running" ] || kill $running 2> /dev/null || true
    wait || true
}
trap end EXIT

alive() {
    python -c '
import logging, ray
ray.init(logging_level=logging.ERROR, log_to_driver=False)
print(sum(node["Alive"] for node in ray.nodes()))' 2> /dev/null || true
}

srun --ntasks-per-node=1 --overlap test -r ~/.ray/auth_token ||
    die "a node does not see ~/.ray/auth_token; copy it there, or share the home folder."

srun --nodes=1 --ntasks=1 --nodelist="$head" --cpus-per-task="$SLURM_CPUS_PER_TASK" --overlap \
    ray start --block --head --node-ip-address="$address" --port="$port" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --dashboard-host=127.0.0.1 \
    --temp-dir="/tmp/ray-$SLURM_JOB_ID" &
until ray status > /dev/null 2>&1; do
    ((SECONDS < deadline)) ||
        die "Ray's head did not answer at $RAY_ADDRESS within 5 minutes; see above what it said."
    sleep 2
done

others=$((SLURM_JOB_NUM_NODES - 1))
if ((others > 0)); then
    srun --nodes="$others" --ntasks="$others" --exclude="$head" \
        --cpus-per-task="$SLURM_CPUS_PER_TASK" --overlap \
        ray start --block --address="$RAY_ADDRESS" --num-cpus="$SLURM_CPUS_PER_TASK" &
fi
until [ "$(alive)" = "$SLURM_JOB_NUM_NODES" ]; do
    ((SECONDS < deadline)) ||
        die "not all $SLURM_JOB_NUM_NODES nodes had joined after 5 minutes; see above what they said."
    sleep 2
done

python -m dsn_ray.tune "$@" &
sweep=$!
trap 'kill -INT "$sweep" 2> /dev/null || true' INT TERM
status=0
wait "$sweep" || status=$?
while kill -0 "$sweep" 2> /dev/null; do # a signal has ended the first wait, the sweep is ending
    status=0
    wait "$sweep" || status=$?
done
exit "$status"
