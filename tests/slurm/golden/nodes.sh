#!/bin/bash
# Trains the arms.
# Written by slurm.launch, which submits it with what it waits for; by hand: sbatch 'outputs/a study/slurm/1/scripts/train.sh'
#SBATCH --job-name='a study/train'
#SBATCH --chdir='/home/me/frankenstein suite'
#SBATCH --account='lab 7'
#SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:h100:8
#SBATCH --cpus-per-task=64
#SBATCH --mem=960G
#SBATCH --time=1-00:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --open-mode=append
#SBATCH --output='/home/me/frankenstein suite/outputs/a study/slurm/1/logs/train.%j.out'
#SBATCH --reservation='it'"'"'s mine'

slurm='outputs/a study/slurm/1' # logs, and how often each task was started
name=full-seed0
directory='outputs/a study/arms/full-seed0'
command=(
    train.grpo
    --config configs/pocket/grpo.yaml
    --model_name_or_path 'outputs/a study/sft'
    --seed 0
    --freeze mid llm:0-8
    --output_dir 'outputs/a study/arms/full-seed0'
)

# Each attempt has a log of its own; file descriptor 3 is the one that all share.
attempt=1
if [[ -e $slurm/attempts/$name ]]; then
    attempt=$(($(<"$slurm/attempts/$name") + 1))
fi
if ((attempt > 5)); then
    echo "$name was started 5 times; the end of its last log:"
    tail -n 15 "$slurm/logs/$name.5.log"
    exit 1
fi
echo "$attempt" >"$slurm/attempts/$name"
log=$slurm/logs/$name.$attempt.log
exec 3>&1 >"$log" 2>&1
echo "$name, attempt $attempt, job $SLURM_JOB_ID on $(hostname), $(date)"

# Ahead of the time limit Slurm sends USR1, on preemption TERM. Both reach the command as TERM, on which it saves itself.
stopped=0
pid=
trap 'stopped=1; [[ -z $pid ]] || scancel --signal=TERM "$SLURM_JOB_ID"' USR1 TERM

source .venv/bin/activate

# A launcher on each of 2 nodes, one process a GPU; the launchers meet at the first node (c10d).
# They get TERM by scancel: srun would end them at once on it.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=595 # they leave their processes time to save
# shellcheck disable=SC2016 # each node puts its own number in; the first one is the host, whatever names they go by
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c \
    'exec accelerate launch --machine_rank "$SLURM_NODEID" --rdzv_conf "is_host=$((SLURM_NODEID == 0))" "$@"' launcher \
    --config_file configs/accelerate/nodes.yaml --num_machines 2 --num_processes 16 \
    --rdzv_backend c10d --main_process_ip "$head" --main_process_port "$port" -m "${command[@]}" &
pid=$!

if ((stopped)); then
    kill -TERM "$pid" # the signal came before the command
fi
while kill -0 "$pid" 2>/dev/null; do
    wait "$pid" # a signal ends wait, not the command
done
wait "$pid"
status=$?

interrupted=0
if ((status != 0)); then
    if ((stopped || status == 75)) || grep -qs '"status": "interrupted"' "$directory/run.json"; then
        interrupted=1
    fi
fi
# What was stopped goes back into the queue, where it continues; unless Slurm has ended the job by itself already.
if ((interrupted && attempt < 5)) && [[ ! -e $slurm/cancelled ]]; then
    own="$SLURM_JOB_ID"
    if ! state=$(squeue --noheader --jobs="$own" --format=%T) || [[ $state == RUNNING ]]; then
        echo "$name was stopped in attempt $attempt and is requeued" >&3
        trap - USR1 TERM
        if scontrol requeue "$own"; then
            sleep 60 # until Slurm ends this attempt
        else
            echo "Slurm refused; where it always does, the cluster's settings need requeue: false" >&3
        fi
    fi
fi
if ((status != 0)); then
    {
        echo "$name ended with status $status in attempt $attempt; the end of $log:"
        tail -n 15 "$log"
    } >&3
fi
exit "$status"
