#!/bin/bash
# Trains the arms.
# Written by slurm.launch, which submits it with its dependencies; by hand: sbatch 'outputs/a study/slurm/1/scripts/train.sh'
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
#SBATCH --no-requeue
#SBATCH --signal=B:USR1@600
#SBATCH --open-mode=append
#SBATCH --output='/home/me/frankenstein suite/outputs/a study/slurm/1/logs/train.%j.out'
#SBATCH --reservation='it'"'"'s mine'

slurm='outputs/a study/slurm/1' # logs and attempt counts
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

# Jobs may not requeue themselves here: successors of this one wait in the queue. An ended task is not started again.
if [[ -e $slurm/ended/$name ]]; then
    exit "$(<"$slurm/ended/$name")"
fi

# Each attempt has its own log; file descriptor 3 is the output shared by all attempts.
attempt=1
if [[ -e $slurm/attempts/$name ]]; then
    attempt=$(($(<"$slurm/attempts/$name") + 1))
fi
if ((attempt > 3)); then
    echo "$name was started 3 times; the end of its last log:"
    tail -n 15 "$slurm/logs/$name.3.log"
    exit 1
fi
echo "$attempt" >"$slurm/attempts/$name"
log=$slurm/logs/$name.$attempt.log
exec 3>&1 >"$log" 2>&1
echo "$name, attempt $attempt, job $SLURM_JOB_ID on $(hostname), $(date)"

# Before the time limit Slurm sends USR1, on preemption TERM. Both are forwarded as TERM, on which the command saves.
stopped=0
pid=
trap 'stopped=1; [[ -z $pid ]] || scancel --signal=TERM "$SLURM_JOB_ID"' USR1 TERM

source .venv/bin/activate

# A launcher on each of 2 nodes, one process per GPU; the launchers meet at the first node (c10d).
# They get TERM from scancel: on TERM, srun would end them immediately.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=595 # gives the processes time to save
# shellcheck disable=SC2016 # each node inserts its own rank; rank 0 is the host
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" apptainer exec --nv 'a b.sif' bash -c \
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
# A stopped task is continued by a successor; a task that ended, successfully or not, is not started again.
if ((!interrupted || attempt == 3)); then
    echo "$status" >"$slurm/ended/$name"
fi
if ((status != 0)); then
    {
        echo "$name ended with status $status in attempt $attempt; the end of $log:"
        tail -n 15 "$log"
    } >&3
fi
exit "$status"
