#!/bin/bash
# A sweep on SLURM: one Ray node per machine of the job, all ended with it. ~/runs and ~/env (the checkout
# installed by "make setup", or any venv with bkray) are on a disk that all machines see.
#
#   sbatch deploy/slurm.sh act --preset small          the words behind it are those of "bkray sweep"
#
# Started anew after a preemption (--requeue), it goes on with what it had begun.
#SBATCH --job-name=bkray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@180
set -euo pipefail

BKRAY_ENV=${BKRAY_ENV:-$HOME/env}
out=${BKRAY_OUT:-$HOME/runs/slurm-$SLURM_JOB_ID}
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs may share a machine
export PATH=$BKRAY_ENV/bin:$PATH

# A token of this job alone, in a file that only its user reads.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/slurm-$SLURM_JOB_ID
mkdir -p "$HOME/.ray"
(umask 077 && python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")

nodes=()
while read -r node; do nodes+=("$node"); done < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$head:$port
steps=()
sweep=
stop() {
    if [ -n "$sweep" ]; then
        kill -TERM "$sweep" 2> /dev/null || true # trials end after their window, tables are written
        wait "$sweep" || true
    fi
}
clean() {
    for step in "${steps[@]}"; do kill -TERM "$step" 2> /dev/null || true; done
    wait || true
    rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap 'stop; exit 143' TERM INT
trap clean EXIT

ray_node() { # ray_node HOST WORDS...: a node of Ray that lives as long as the step
    local host=$1
    shift
    srun --nodes=1 --ntasks=1 --nodelist="$host" ray start --block \
        --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
        --resources="{\"slot\": ${SLURM_CPUS_PER_TASK:-1}}" "$@" &
    steps+=($!)
}

ray_node "$head" --head --port="$port" --dashboard-host=127.0.0.1
timeout 120 bash -c "until ray status --address '$address' > /dev/null 2>&1; do sleep 2; done"
for node in "${nodes[@]:1}"; do ray_node "$node" --address="$address"; done
bkray cluster verify --address "$address" --nodes "${#nodes[@]}" --wait 300

if [ -d "$out" ]; then
    bkray resume "$out" --address "$address" &
else
    bkray sweep "$@" --address "$address" --out "$out" &
fi
sweep=$!
wait "$sweep"
